# amaranth: UnusedElaboratable=no
"""The self-test: every unit beside its activations and expected codes, the result on lamps and as text."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from amaranth.back import verilog as amaranth_verilog
from amaranth.hdl import Cat, ClockDomain, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Out

from golden.errors import HwsimError
from rtl import verilog
from rtl.boards import printer
from rtl.boards.board import Board
from rtl.boards.pll import Pll, pll
from rtl.boards.uart import UartTransmitter
from rtl.boards.unit_check import Stimulus, UnitCheck

TOP = "selftest"
BAUD = 115_200
DEFAULT_MHZ = {Fraction(25): Fraction(100), Fraction(48): Fraction(96)}
"""The clock that is made from a board's oscillator."""

SETTLE_CYCLES = 256
"""Cycles after the PLL has locked before anything runs."""


class SelfTest(wiring.Component):
    """Checks all units at the same time, prints the result, waits, and starts again.

    Parameters
    ----------
    stimuli : sequence of Stimulus
        One a kind.
    title : str
        First line of the text.
    divisor : int
        Clock cycles a bit of the serial line.
    pause : int
        Cycles between a result and the next run.

    Attributes
    ----------
    uart_tx : Out(1)
    lamps : Out(one bit a unit)
        Dark while the first run goes on, then lit for a unit that passed, blinking for one that failed.
    finished, passed : Out(1)
        Of all units; `finished` stays while the next run goes on.
    """

    def __init__(self, stimuli: Sequence[Stimulus], *, title: str, divisor: int, pause: int):
        self.stimuli, self.title, self.divisor, self.pause = stimuli, title, divisor, pause
        super().__init__({"uart_tx": Out(1, init=1), "lamps": Out(len(stimuli)), "finished": Out(1), "passed": Out(1)})

    def _symbols(self) -> list[printer.Symbol]:
        count = len(self.stimuli)
        symbols = printer.literal(f"{self.title}\r\n")
        for place, stimulus in enumerate(self.stimuli):
            symbols += printer.literal(f"{stimulus.kind} {stimulus.elements} elements ")
            symbols += printer.number(2 * place) + printer.literal(" mismatches ")
            symbols += printer.number(2 * place + 1) + printer.literal(" cycles")
            symbols += printer.verdict(place, "", " FAIL") + printer.literal("\r\n")
        return symbols + printer.verdict(count, "PASS", "FAIL") + printer.literal("\r\n")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        checks = [UnitCheck(stimulus) for stimulus in self.stimuli]
        for check in checks:
            m.submodules[check.stimulus.kind] = check
        numbers = [number for check in checks for number in (check.mismatches, check.cycles)]
        verdicts = [check.passed for check in checks]
        all_done, all_passed = Signal(), Signal()
        m.d.sync += [all_done.eq(Cat(check.done for check in checks).all()), all_passed.eq(Cat(verdicts).all())]

        m.submodules.printer = text = printer.Printer(self._symbols(), numbers, [*verdicts, all_passed])
        m.submodules.uart = uart = UartTransmitter(self.divisor)
        m.d.comb += [
            uart.i.payload.eq(text.o.payload),
            uart.i.valid.eq(text.o.valid),
            text.o.ready.eq(uart.i.ready),
            self.uart_tx.eq(uart.tx),
        ]
        start, timer = Signal(), Signal(range(self.pause))
        m.d.comb += [check.start.eq(start) for check in checks]
        with m.FSM():
            with m.State("START"):
                m.d.sync += start.eq(1)
                m.next = "STARTED"
            with m.State("STARTED"):
                m.d.sync += start.eq(0)
                m.next = "FORGET"
            with m.State("FORGET"):
                # In this cycle `all_done` is still that of the run before.
                m.next = "RUN"
            with m.State("RUN"), m.If(all_done):
                m.next = "PRINT"
            with m.State("PRINT"):
                m.d.comb += text.start.eq(1)
                m.d.sync += [self.finished.eq(1), self.passed.eq(all_passed), timer.eq(0)]
                m.next = "PRINTING"
            with m.State("PRINTING"), m.If(text.done):
                m.next = "PAUSE"
            with m.State("PAUSE"):
                m.d.sync += timer.eq(timer + 1)
                with m.If(timer == self.pause - 1):
                    m.next = "START"

        blink = Signal(range(max(self.pause // 4, 2)))
        dark = Signal()
        m.d.sync += blink.eq(Mux(blink == max(self.pause // 4, 2) - 1, 0, blink + 1))
        with m.If(blink == 0):
            m.d.sync += dark.eq(~dark)
        with m.If(all_done):
            m.d.sync += self.lamps.eq(Cat(passed | ~dark for passed in verdicts))
        return m


def clock_of(board: Board, mhz: Fraction | None) -> Pll:
    """The clock of a board's self-test, by default four times 25 MHz or twice 48 MHz."""
    return pll(board.clock_mhz, DEFAULT_MHZ[board.clock_mhz] if mhz is None else mhz)


def build_verilog(
    board: Board, clock: Pll, stimuli: Sequence[Stimulus], *, pause: int = 1 << 26, divisor: int | None = None
) -> str:
    """Verilog of the whole self-test, the units included: the text that is simulated and synthesized.

    Parameters
    ----------
    board : Board
    clock : Pll
    stimuli : sequence of Stimulus
        One a kind, and no more than the board has lamps.
    pause : int
        Clock cycles between a result and the next run.
    divisor : int, optional
        Clock cycles a bit of the serial line, by default those of `BAUD`.

    Returns
    -------
    str
        The module `TOP` has the ports of the board's pins: ``clk``, ``uart_tx``, ``led``.

    Raises
    ------
    HwsimError
        No units, two of a kind, or more than there are lamps.
    """
    kinds = [stimulus.kind for stimulus in stimuli]
    if not kinds or len(set(kinds)) < len(kinds):
        raise HwsimError(f"a self-test takes one or more units, one of a kind, not {', '.join(kinds) or 'none'}")
    if not board.traffic_light and len(kinds) > len(board.leds):
        raise HwsimError(f"{board.name} has {len(board.leds)} lamps for {len(kinds)} units; choose fewer with --unit")
    test = SelfTest(stimuli, title=title(board, clock), divisor=divisor or bit_cycles(clock), pause=pause)
    m = Module()
    pins = [Signal(name="clk"), Signal(name="uart_tx"), Signal(len(board.leds), name="led")]
    clock_in, uart_tx, led = pins
    clock_out, locked, settled = Signal(name="clock"), Signal(), Signal()
    m.submodules.pll = clock.instance(clock_in, clock_out, locked)
    # Nothing but the wait for a steady clock runs without a reset.
    m.domains.boot = boot = ClockDomain(reset_less=True)
    m.domains.sync = sync = ClockDomain()
    steady, count = Signal(), Signal(range(SETTLE_CYCLES))
    m.submodules.steady = FFSynchronizer(locked, steady, o_domain="boot")
    m.d.comb += [boot.clk.eq(clock_out), sync.clk.eq(clock_out), sync.rst.eq(~settled)]
    m.d.boot += [count.eq(Mux(steady, count + ~settled, 0)), settled.eq(steady & (settled | count.all()))]
    m.submodules.test = test
    lamps = Cat(test.finished & ~test.passed, test.finished & test.passed, ~test.finished)
    lit = lamps if board.traffic_light else test.lamps
    inverted = sum(pin.inverted << place for place, pin in enumerate(board.leds))
    m.d.comb += [uart_tx.eq(test.uart_tx), led.eq(lit ^ inverted)]
    text = amaranth_verilog.convert(m, name=TOP, ports=pins, emit_src=False, strip_internal_attrs=True)
    return "\n".join([text, *(verilog.export(stimulus.unit, stimulus.kind) for stimulus in stimuli)])


def title(board: Board, clock: Pll) -> str:
    """First line of the text."""
    return f"vit-hwsim self-test on {board.name} at {float(clock.output_mhz):g} MHz"


def bit_cycles(clock: Pll) -> int:
    """Clock cycles a bit of the serial line."""
    return round(clock.output_mhz * 1_000_000 / BAUD)
