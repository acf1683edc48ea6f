"""The Verilog writer against Amaranth's own simulator: every operator, register and memory form that units use."""

import random
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from stream_bench import Phase, run

from golden.spec import IntFormat
from rtl import axi, fpga_tools
from rtl.arithmetic import round_half_even_shift, saturate
from rtl.stream import row_signature
from rtl.verilog import export
from sim_tests.beats import beats_of
from sim_tests.build import build_simulator
from sim_tests.simulate import BeatBits, Play, simulate
from sim_tests.toolchain import find_toolchain

INPUTS = {"a": unsigned(8), "b": unsigned(5), "c": signed(9), "d": signed(6), "e": unsigned(3), "f": unsigned(1)}


def expressions(a, b, c, d, e, f):
    """One of each operator, with operands of unequal width and sign."""
    yield from (a + b, c + d, a + c, a + 1, a + f, a - b, c - d, c - 5, 7 - a, -c, -a, abs(c))
    yield from (a * b, c * d, a * d, c * 3, ~c, ~a, a & c, b | c, b ^ c, a & f, (a & b) + (c ^ d))
    yield from (a < b, c < d, a < d, a <= b, c > d, c >= d, a == d, a == b, a != c, a >= 3, c < 0, c == -1)
    yield from (a << e, c << e, a >> e, c >> e, c >> 2, a << 3, (c >> e) + a, (c >> e) < (a >> 1))
    yield from (
        a.bit_select(e, 2),
        a.word_select(e[:2], 2),
        c.bit_select(e[:2], 4).as_signed(),
        a.any(),
        a.all(),
        c.xor(),
    )
    yield from (Mux(f, a, d), Mux(a < b, c, d + 1), Mux(e, b, c) - d, ~(a.any() | c.all()), f & (a.any() | ~f))
    yield from (Cat(a[3:5], c[-1], f), a.replicate(2) + b, c.as_unsigned() + d, a.as_signed() * c)
    yield from (saturate(c + d, IntFormat(5)), saturate(c * d, IntFormat(7, signed=True)))
    yield from (round_half_even_shift(c * d, 3), round_half_even_shift(a * b, 5), Array([a, b, c])[e[:2]])
    yield sum((a[bit] for bit in range(8)), start=b)


ATTRIBUTES = {"ram_style": "distributed", "no_rw_check": 1}
OUTPUT = data.StructLayout(
    {
        f"y{place}": value.shape()
        for place, value in enumerate(expressions(*(Signal(shape) for shape in INPUTS.values())))
    }
    | {"accumulator": signed(16), "count": unsigned(4), "state": unsigned(2), "choice": unsigned(4)}
    | {"word": unsigned(7), "new_word": unsigned(7), "old_word": unsigned(7), "mixed": unsigned(9)}
)


class Medley(wiring.Component):
    """A register after every expression, counters, a state machine and three read ports of one memory."""

    spec = SimpleNamespace(kind="medley", to_dict=lambda: {"kind": "medley"})
    loadable, lanes, latency, parameters, addresses = False, 1, 1, {}, ()

    def __init__(self):
        element = data.StructLayout(INPUTS)
        super().__init__({"i": In(row_signature(element, 1)), "o": Out(row_signature(OUTPUT, 1))})

    def cycles_per_row(self, length):
        """``length``."""
        return length

    def elaborate(self, platform):
        m = Module()
        beat, out = self.i.payload, self.o.payload.data[0]
        a, b, c, d, e, f = (Signal(shape, name=name) for name, shape in INPUTS.items())
        m.d.comb += [signal.eq(beat.data[0][signal.name]) for signal in (a, b, c, d, e, f)]
        enable = Signal()
        taken = Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            self.i.ready.eq(enable),
            taken.eq(enable & self.i.valid),
        ]
        with m.If(enable):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.last.eq(beat.last), self.o.payload.keep.eq(1)]
        m.submodules.words = words = memory.Memory(shape=7, depth=12, init=range(3, 15), attrs=ATTRIBUTES)
        writer = words.write_port()
        readers = {
            "word": words.read_port(),
            "new_word": words.read_port(transparent_for=[writer]),
            "old_word": words.read_port(domain="comb"),
        }
        m.d.comb += [writer.addr.eq(b % 8), writer.data.eq(a), writer.en.eq(f & taken)]
        for name, reader in readers.items():
            m.d.comb += reader.addr.eq(a[:3])
            if name != "old_word":
                m.d.comb += reader.en.eq(taken)
        choice, mixed = Signal(4), Signal(9)
        with m.Switch(a):
            with m.Case("1-------"):
                m.d.comb += choice.eq(1)
            with m.Case("01------", "001----1"):
                m.d.comb += choice.eq(e)
            with m.Default():
                m.d.comb += choice.eq(b)
        with m.If(taken):
            for place, value in enumerate(expressions(a, b, c, d, e, f)):
                m.d.sync += out[f"y{place}"].eq(value)
            m.d.sync += [out.accumulator.eq(Mux(f, c * d, out.accumulator + c)), out.choice.eq(choice)]
            m.d.sync += out.old_word.eq(readers["old_word"].data)
            with m.If(e == 7):
                m.d.sync += out.count.eq(0)
            with m.Else():
                m.d.sync += out.count.eq(out.count + 1)
            with m.FSM():
                with m.State("IDLE"), m.If(f):
                    m.next = "WORK"
                with m.State("WORK"):
                    m.d.sync += out.state.eq(1)
                    with m.If(e == 2):
                        m.next = "REST"
                with m.State("REST"):
                    m.d.sync += out.state.eq(2)
                    m.next = "IDLE"
            m.d.sync += mixed[2:6].eq(a)
        # A vector that is partly a register and partly not, its parts depending on each other.
        m.d.comb += [mixed[:2].eq(mixed[3:5]), mixed[6:].eq(mixed[:3] + 1)]
        m.d.comb += [out.mixed.eq(mixed), out.word.eq(readers["word"].data), out.new_word.eq(readers["new_word"].data)]
        return m


def stimulus(count=400):
    dice = random.Random(7)
    extremes = {name: _ends(shape) for name, shape in INPUTS.items()}
    return [
        {
            name: dice.choice(extremes[name]) if dice.random() < 0.2 else dice.choice(range(*_range(shape)))
            for name, shape in INPUTS.items()
        }
        for _ in range(count)
    ]


def _range(shape):
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    return low, low + (1 << shape.width)


def _ends(shape):
    low, high = _range(shape)
    return [low, high - 1, 0]


def integers(element):
    return [element[name] for name, _ in OUTPUT]


@pytest.mark.parametrize("stall_seed", [None, 4])
def test_verilog_computes_what_amaranth_simulates(pytestconfig, stall_seed):
    elements = stimulus()
    rows = [elements[start : start + 8] for start in range(0, len(elements), 8)]
    ((*simulated,),) = run(Medley(), [Phase(rows)])
    wanted = np.array([[integers(element) for element in row.elements] for row in simulated])
    members = [wanted[:, :, place] for place in range(wanted.shape[2])]
    expected = beats_of(OUTPUT, 1, members)

    tools = find_toolchain()
    unit = Medley()
    widths = {port.name: port.width // 8 for port in axi.ports(unit)}
    bits = BeatBits(widths["s_axis_tdata"], widths["m_axis_tdata"], 1)
    build_dir = pytestconfig.rootpath / "build" / "simulators"
    text = export(unit, "medley")
    simulator = build_simulator(text, "medley", bits.bench_parameters, [], build_dir=build_dir, tools=tools)
    inputs = [np.array([[element[name] for element in row] for row in rows]) for name in INPUTS]
    beats = beats_of(data.StructLayout(INPUTS), 1, inputs, padding=np.random.default_rng(0))
    play = Play(np.zeros((0, 1), np.uint8), beats.packed(), len(expected.last))
    outcome = simulate(simulator, bits, [play], stall_seed=stall_seed, tools=tools)
    assert outcome.unstable == []
    given = outcome.layers[0].given
    assert given.shape == expected.packed().shape
    assert (given == expected.packed()).all()


def test_lint_of_the_medley_has_nothing_to_say(tmp_path):
    tools = find_toolchain()
    (tmp_path / "medley.v").write_text(export(Medley(), "medley"))
    command = [tools.verilator, "--lint-only", "-Wall", "-Wno-PROCASSINIT", "medley.v"]
    result = subprocess.run(command, cwd=tmp_path, env=tools.environment(), capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_attributes_of_a_memory_reach_synthesis(tmp_path):
    text = export(Medley(), "medley")
    assert text.count("(*") == 1 and "hdlname" not in text
    assert '(* no_rw_check = 1, ram_style = "distributed" *) reg [6:0] medley_words [0:11];' in text
    (tmp_path / "medley.v").write_text(text)
    passes = "read_verilog medley.v; proc; check -assert; select -assert-count 1 m:*words a:ram_style=distributed %i; "
    passes += "select -assert-count 1 m:*words a:no_rw_check=1 %i"
    assert fpga_tools.run("yosys", ["-q", "-p", passes], tmp_path, "log") == 0, (tmp_path / "log").read_text()
    (tmp_path / "medley.v").write_text(text.replace("(*", "/*").replace("*)", "*/"))
    assert fpga_tools.run("yosys", ["-q", "-p", passes], tmp_path, "log") != 0
