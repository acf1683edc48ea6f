# amaranth: UnusedElaboratable=no
"""Proofs: the quick ones, and each of them failing where it must."""

import dataclasses
import itertools

import numpy as np
import pytest
from amaranth.hdl import Const, Fragment, Module, Mux, Signal, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from golden.errors import HwsimError
from hwsim.cli import cli
from rtl import catalog
from rtl.verilog import export
from sim_tests.formal import solver
from sim_tests.formal.adders import Narrowing, narrowings
from sim_tests.formal.bench import BENCH, UNIT, Bench
from sim_tests.formal.cases import cases, full_size
from sim_tests.formal.dependence import ready_reaches
from sim_tests.formal.overflow import ARGUED, INTENDED, findings, instrumented
from sim_tests.formal.pieces import Piece
from sim_tests.formal.prove import settled
from sim_tests.formal.ranges import ranges_of
from sim_tests.formal.solver import Job, find_programs, solve

LOOKUP = cases()["lookup"]


def bench_of(case, **changes):
    fields = {"rows": 2, "longest": case.longest, "table": case.table()}
    return Bench(case.baked(), case.framing(1), **(fields | changes))


def verdict(tmp_path, verilog, bench, depth=8, method="bmc"):
    return solve(Job("job", method, depth, {"unit.v": verilog, "bench.il": bench}, BENCH), tmp_path)


# --- stream contract and equality ---


def test_every_unit_of_the_catalog_has_a_case():
    assert set(cases()) == set(catalog.UNITS)
    assert all(list(full_size(kind)) for kind in catalog.UNITS)


def test_the_lookup_unit_equals_its_reference(tmp_path):
    found = verdict(tmp_path, export(LOOKUP.baked(), UNIT), bench_of(LOOKUP).rtlil())
    assert (found.result, found.reason) == ("proven", "")


def test_one_flipped_bit_of_a_table_is_refuted_with_a_trace(tmp_path):
    table = LOOKUP.constants["table"].copy()
    table[1, 6] ^= 1
    wrong = dataclasses.replace(LOOKUP, constants={"table": table})
    found = verdict(tmp_path, export(wrong.baked(), UNIT), bench_of(LOOKUP).rtlil())
    assert found.result == "refuted"
    assert "equal to the reference" in found.reason
    assert found.trace is not None and found.trace.read_text().startswith("$")


# Around a right unit, one fault.
WRAPPER = """
module unit (
    input wire aclk, input wire aresetn,
    input wire [7:0] s_axis_tdata, input wire s_axis_tkeep, input wire s_axis_tlast,
    input wire s_axis_tvalid, output wire s_axis_tready,
    output wire [7:0] m_axis_tdata, output wire m_axis_tkeep, output wire m_axis_tlast,
    output wire m_axis_tvalid, input wire m_axis_tready
);
    wire [7:0] data;
    wire valid, last;
    reg flip = 1'b0;
    reg [2:0] count = 3'd0;
    always @(posedge aclk) begin
        flip <= !flip;
        if (m_axis_tvalid && m_axis_tready) count <= count + 3'd1;
    end
    inner inner (.aclk(aclk), .aresetn(aresetn), .s_axis_tdata(s_axis_tdata), .s_axis_tkeep(s_axis_tkeep),
        .s_axis_tlast(s_axis_tlast), .s_axis_tvalid(s_axis_tvalid), .s_axis_tready(s_axis_tready),
        .m_axis_tdata(data), .m_axis_tkeep(m_axis_tkeep), .m_axis_tlast(last),
        .m_axis_tvalid(valid), .m_axis_tready(m_axis_tready));
    assign m_axis_tdata = DATA;
    assign m_axis_tlast = LAST;
    assign m_axis_tvalid = VALID;
endmodule
"""


def wrapped(data="data", last="last", valid="valid"):
    inner = export(LOOKUP.baked(), "inner")
    return inner + WRAPPER.replace("DATA", data).replace("LAST", last).replace("VALID", valid)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"valid": "valid && !(count[0] && flip && !m_axis_tready)"}, "an offer stays unchanged"),
        ({"last": "last || count == 3'd2"}, "last marks"),
        ({"valid": "valid && m_axis_tready"}, "ready or not"),
        ({"valid": "1'b1"}, "no beat comes out that did not go in"),
    ],
)
def test_a_broken_contract_is_refuted(tmp_path, fault, reason):
    found = verdict(tmp_path, wrapped(**fault), bench_of(LOOKUP, table=None, resets=False).rtlil())
    assert found.result == "refuted"
    assert reason in found.reason


def test_valid_that_depends_on_ready_is_seen_in_the_netlist():
    assert ready_reaches(wrapped()) == []
    assert ready_reaches(wrapped(valid="valid && m_axis_tready")) == ["m_axis_tvalid"]


def test_stability_is_inductive_and_a_dropped_one_is_not(tmp_path):
    bench = bench_of(LOOKUP).rtlil(stability_only=True)
    assert verdict(tmp_path, wrapped(), bench, 6, "prove").result == "proven"
    assert verdict(tmp_path, wrapped(data="data ^ {7'd0, flip}"), bench, 6, "prove").result == "refuted"


# --- overflow ---


class Sum(wiring.Component):
    """A beat of two 4-bit numbers to their sum, in so many bits."""

    loadable = False

    def __init__(self, bits, rows=False):
        self.bits, self.rows = bits, rows
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        total = Signal(self.bits, name="total")
        m.d.comb += [self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready), self.o.payload.eq(total)]
        first, second = self.i.payload[:4], self.i.payload[4:]
        if self.rows:
            m.d.sync += total.eq(Mux(first == 0, 0, total + second))
        else:
            m.d.sync += total.eq(first + second)
        return m


def test_a_sum_that_is_cut_is_found_and_judged_by_its_range():
    assert list(narrowings(Fragment.get(Sum(5), None))) == []
    (found,) = narrowings(Fragment.get(Sum(4), None))
    assert (found.operator, len(found.result), found.kept.width) == ("adder", 5, 4)
    assert not ranges_of(Fragment.get(Sum(4), None), {}).fits(found)
    (finding,) = findings(Sum(4), {})
    assert finding.method == "induction"


@pytest.mark.parametrize(("bits", "fits"), [(8, True), (7, False)])
def test_an_accumulator_fits_when_all_its_terms_do(bits, fits):
    # 16 terms of at most 15, the last of which is added to 15 others: 240 needs 8 bits.
    fragment = Fragment.get(Sum(bits, rows=True), None)
    (found,) = narrowings(fragment)
    assert ranges_of(fragment, {"total": 16}).fits(found) is fits


def test_an_accumulator_without_a_limit_does_not_fit():
    fragment = Fragment.get(Sum(8, rows=True), None)
    (found,) = narrowings(fragment)
    assert not ranges_of(fragment, {}).fits(found)


def test_only_what_is_named_goes_without_a_proof_and_is_not_called_proven():
    case = cases()["layernorm"]
    found = findings(case.baked(), {})
    methods = {finding.name: finding.method for finding in found if finding.method in ("intended", "argued")}
    assert methods == dict.fromkeys(INTENDED["layernorm"], "intended") | dict.fromkeys(ARGUED["layernorm"], "argued")
    results = {claim.partition(":")[0]: result for claim, _, result in settled(found, case.spec)}
    assert (results["deviation_0"], results["variance.difference"]) == ("argued", "intended wrap")


@pytest.mark.parametrize("bits", [3, 2])
def test_the_code_adder_counts_all_ones_as_minus_one_and_must_not_lose_a_bit_of_live_data(bits):
    from stream_bench import evaluate

    base, octave, live = Signal(3, name="base"), Signal(2, name="octave"), Signal(name="live")
    adder = Narrowing("ratio.base_0", "", "adder", base + octave, Const(1, 1), unsigned(bits))
    holds = ARGUED["log_softmax"]["ratio.base_0"].holds(adder, live)
    cases = np.array(list(itertools.product(range(8), range(4), range(2))))
    found = evaluate([holds], list(zip((base, octave, live), cases.T.tolist(), strict=True)))
    numbers = np.where(cases[:, 0] == 7, -1, cases[:, 0]) + cases[:, 1]
    fits = (numbers >= 0) & (numbers < 1 << bits)
    assert np.array_equal(np.array(found)[:, 0] & 1, ~cases[:, 2].astype(bool) | fits)


def test_a_sum_below_its_own_exponential_is_refuted(tmp_path):
    # A base of -1 counts on a sum of at least E: with wrong exponentials there is live data that breaks that.
    unit = cases()["log_softmax"].baked()
    for address in range(1 << unit.spec.score_bits):
        unit._baked[address] = 1
    found = solve(Job("job", "bmc", 20, {"bench.il": instrumented(unit, BENCH, None)}, BENCH), tmp_path)
    assert found.result == "refuted" and "adder ratio base" in found.reason


def test_bounds_that_are_a_precondition_are_called_so():
    _, spec, constants, limits = next(full_size("log2_matmul"))
    unit = catalog.entry("log2_matmul").unit(spec, lanes=1, constants=constants)
    assert [result for _, _, result in settled(findings(unit, limits), spec)] == ["conditional"]
    wider = {name: (low, high << 3) for name, (low, high) in limits.items()}
    assert [finding.method for finding in findings(unit, wider)] == ["induction"]


def test_the_solver_refutes_an_overflow(tmp_path):
    files = {"bench.il": instrumented(Sum(4), BENCH, None)}
    found = solve(Job("job", "bmc", 3, files, BENCH), tmp_path)
    assert found.result == "refuted"
    assert "adder total overflows" in found.reason


@given(st.integers(1, 5), st.data())
def test_pieces_hold_every_number(width, data):
    low = data.draw(st.integers(-70, 70))
    high = data.draw(st.integers(low, 75))
    start = data.draw(st.integers(0, width - 1))
    stop = data.draw(st.integers(start + 1, width))
    piece = Piece.of(width, low, high)
    part = piece.cut(start, stop)
    for number in range(low, high + 1):
        bits = number & (1 << width) - 1
        for held, size, value in ((piece, width, bits), (part, stop - start, bits >> start & (1 << stop - start) - 1)):
            assert held.low <= value <= held.high
            assert held.signed_low <= value - (value >> size - 1 << size) <= held.signed_high


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: (a * b)[1:],
        lambda a, b: (a ^ b).as_signed(),
        lambda a, b: (a & b) | b,
        lambda a, b: Mux(a < b, ~a, b >> 1),
        lambda a, b: (a << b[:2]) - b,
    ],
)
def test_ranges_hold_every_result(build):
    a, b = Signal(signed(3), name="a"), Signal(3, name="b")
    expression = build(a, b)
    target = Signal(expression.shape(), name="target")
    m = Module()
    m.d.comb += target.eq(expression)
    low, high = ranges_of(Fragment.get(m, None), {}).interval(target)
    from stream_bench import evaluate

    pairs = list(itertools.product(range(-4, 4), range(8)))
    results = np.array(evaluate([expression], [(a, [x for x, _ in pairs]), (b, [y for _, y in pairs])]))[:, 0]
    assert low <= results.min() and results.max() <= high


# --- tools and command line ---


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(solver.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HwsimError, match=r"yowasp-sby is missing.*pip install"):
        find_programs()


def test_a_proof_out_of_time_is_unknown(tmp_path):
    job = Job("job", "bmc", 8, {"unit.v": export(LOOKUP.baked(), UNIT), "bench.il": bench_of(LOOKUP).rtlil()}, BENCH)
    found = solve(job, tmp_path, seconds=0)
    assert found.result == "unknown" and "no answer" in found.reason


def test_the_command_prints_what_is_proven(tmp_path):
    options = ["prove", "lookup", "--property", "independent", "-o", str(tmp_path)]
    result = CliRunner().invoke(cli, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 proven" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"), [(["gelu"], "no hardware unit 'gelu'"), (["--property", "speed"], "no property 'speed'")]
)
def test_bad_arguments_are_refused(arguments, message):
    result = CliRunner().invoke(cli, ["prove", *arguments])
    assert isinstance(result.exception, HwsimError) and message in str(result.exception)
