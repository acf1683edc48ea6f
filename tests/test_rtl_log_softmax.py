# amaranth: UnusedElaboratable=no
"""The Log-Int-Softmax unit in Amaranth's simulator against golden, and its comparison against Fractions."""

import dataclasses
import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_bench import Phase, run

from golden.errors import HwsimError
from golden.log_softmax import LogSoftmaxSpec, exponential_constants, lossless_fraction_bits
from rtl.log2_ratio import ExponentialFormat, Log2Ratio
from rtl.log_softmax import LogSoftmax

# Powers of two: the exponential d steps below the maximum is 2**(n-d).
POWERS = {"x0": np.array(-1), "b": np.array(5), "c": np.array(1)}


def layer_of(scale, **changes):
    """A spec and its constants, lossless for the score scale."""
    constants = exponential_constants(scale)
    fields = {
        "score_bits": 8,
        "code_bits": 4,
        "fraction_bits": lossless_fraction_bits(int(constants["x0"]), 8),
        "row_length": 40,
        "polynomial_bits": int(constants["c"]).bit_length(),
    }
    spec = LogSoftmaxSpec(**(fields | changes))
    return spec, spec.check_constants(constants)


def powers_layer(**changes):
    fields = {"score_bits": 5, "code_bits": 4, "fraction_bits": 30, "row_length": 50, "polynomial_bits": 1}
    spec = LogSoftmaxSpec(**(fields | changes))
    return spec, spec.check_constants(POWERS)


def expected(layer, rows):
    spec, constants = layer
    return [spec.compute(constants, np.array(row)).tolist() for row in rows]


def elements(results):
    return [[row.elements for row in phase] for phase in results]


def scores(dice, length, maximum=255):
    """A row with a spread of its own."""
    centre, spread = dice.randrange(maximum + 1), dice.choice([1, 4, 16, 64, 256])
    return [min(max(round(dice.gauss(centre, spread)), 0), maximum) for _ in range(length)]


def corner_rows(length, maximum=255):
    one_hot = [0] * length
    one_hot[length // 2] = maximum
    return [
        [0] * length,
        [maximum] * length,
        [7] * length,
        one_hot,
        [maximum] + [0] * (length - 1),
        [maximum - 1] * (length - 1) + [maximum],
        [at * maximum // max(length - 1, 1) for at in range(length)],
        [0],
        [maximum],
        [maximum, 0],
        [0, maximum, 1],
    ]


# --- the comparison ---


def code_of(total, exponential, code_bits, zero_symbol):
    """The definition: rounded ratio, highest bit, second highest bit."""
    past = (1 << code_bits) if zero_symbol else (1 << code_bits) - 1
    if exponential == 0:
        return past
    ratio = round(Fraction(total, exponential))
    octave = ratio.bit_length() - 1
    code = octave + (ratio >> (octave - 1) & 1 if octave else 0)
    return code if code < 1 << code_bits else past


@pytest.mark.parametrize(("code_bits", "zero_symbol"), [(4, True), (2, True), (2, False), (1, False)])
def test_comparison_of_every_sum_with_every_exponential(code_bits, zero_symbol):
    """Four-bit exponentials, all at once in a lane each, with every sum of four that can occur."""
    count, compared = 4, 0
    for maximum in (8, 10, 11, 13, 15):
        shared = ExponentialFormat(exponential_bits=6, mantissa_bits=5, count=count, code_bits=code_bits)
        exponentials, thresholds, limit = shared.words([maximum, *range(maximum + 1)])
        dut = Log2Ratio(shared, lanes=len(exponentials), zero_symbol=zero_symbol)
        sums = range(exponentials[0], count * exponentials[0] + 1)
        codes = compare(dut, exponentials, thresholds, limit, sums)
        for total, got in zip(sums, codes, strict=True):
            for lane, exponential in enumerate(exponentials):
                # The row holds its maximum and this element.
                if total >= exponentials[0] + (exponential if lane else 0):
                    wanted = code_of(total, exponential, code_bits, zero_symbol)
                    assert got[lane] == wanted, f"S={total} E={exponential} maximum={exponentials[0]}"
                    compared += 1
    assert compared > 5000


def compare(dut, exponentials, thresholds, limit, sums):
    """Codes of a `Log2Ratio` whose lanes hold fixed words, for a sum each cycle."""
    codes = []

    async def bench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.peak_limit, limit)
        for lane, (exponential, threshold) in enumerate(zip(exponentials, thresholds, strict=True)):
            ctx.set(dut.exponentials[lane], exponential)
            ctx.set(dut.thresholds.as_value().word_select(lane, dut.format.threshold.size), threshold)
        for total in (*sums, *[0] * dut.latency):
            ctx.set(dut.total, total)
            _, _, got = await ctx.tick().sample(dut.codes)
            codes.append(list(got))

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return codes[dut.latency :]


def test_threshold_words():
    """A word holds ``3*E`` exactly, as mantissa and distance from ``2**X``; small exponentials are past every code."""
    shared = ExponentialFormat(exponential_bits=10, mantissa_bits=6, count=4, code_bits=2)
    exponentials, thresholds, limit = shared.words([20, 12, 5, 1, 0])
    assert exponentials == [640, 384, 160, 32, 0]
    assert limit == 3 * 640 >> 4
    for exponential, word in zip(exponentials[:3], thresholds, strict=False):
        mantissa, base = word & 63, word >> 6
        distance = base - (1 << shared.base_bits) if base >> (shared.base_bits - 1) else base
        assert Fraction(64 + mantissa, 64) * Fraction(2) ** (10 - distance) == 3 * exponential
    assert [word >> 6 for word in thresholds[3:]] == [4, 4]


# --- the unit against golden ---


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 8])
def test_layers_of_one_unit(lanes):
    """Corner rows and random rows of four layers, with the constants reloaded in between, under random stalls."""
    dice = random.Random(lanes)
    layers = [layer_of(scale) for scale in (0.05, 0.013, 0.31, 1.6)]
    dut = LogSoftmax.covering(layers, lanes=lanes)
    rows = corner_rows(40)
    phases = []
    for layer in layers:
        own = [scores(dice, dice.randint(1, 40)) for _ in range(2 + lanes)]
        phases.append(Phase([*rows, *own], dut.writes(*layer)))
    results = run(dut, phases, stall_in=0.2, stall_out=0.3, seed=lanes)
    assert elements(results) == [expected(layer, phase.rows) for layer, phase in zip(layers, phases, strict=True)]


def test_ties_and_their_neighbours():
    """Sums that are exactly 1.5, 2.5, 5.5, ... exponentials, and those one unit off: half-to-even, by hand."""
    layer = powers_layer()
    top, last = 31, 1  # the last is 2**-30 of the top
    cases = [
        ([top, top - 1], 1),  # 1.5 rounds to 2
        ([top, *range(top - 2, top - 30, -1)], 0),  # 1.5 less one unit
        ([top, top, top - 1], 1),  # 2.5 rounds to 2
        ([top, top, top - 1, last], 2),  # 2.5 and one unit more
        ([top] * 5 + [top - 1], 3),  # 5.5 rounds to 6
        ([top] * 5 + list(range(top - 2, top - 31, -1)), 2),  # 5.5 less one unit
        ([top] * 11 + [top - 1], 4),  # 11.5 rounds to 12
        ([top] * 11 + list(range(top - 2, top - 31, -1)), 3),
        ([top] * 23 + [top - 1], 5),
        ([top] * 23 + [top - 2], 4),
        ([top] * 47 + [top - 1], 6),
        ([top] * 48, 6),
        ([top] * 47, 5),
    ]
    dut = LogSoftmax(layer[0], lanes=4)
    rows = [row for row, _ in cases]
    results = elements(run(dut, [Phase(rows, dut.writes(*layer))]))[0]
    assert [row[0] for row in results] == [code for _, code in cases]
    assert results == expected(layer, rows)


def test_every_row_of_two_and_three():
    """All pairs of five-bit scores and all triples of three-bit scores."""
    for bits, length in ((5, 2), (3, 3)):
        layer = layer_of(0.15, score_bits=bits, fraction_bits=6, row_length=length)
        rows = list(itertools.product(range(1 << bits), repeat=length))
        dut = LogSoftmax.covering([layer], lanes=length)
        results = run(dut, [Phase(rows, dut.writes(*layer))])
        assert elements(results) == [expected(layer, rows)]


@st.composite
def random_layers(draw):
    score_bits = draw(st.integers(2, 8))
    row_length = draw(st.integers(1, 30))
    scale = draw(st.one_of(st.floats(0.003, 1.6), st.sampled_from([0.0031, 0.69, 0.7, 1.67])))
    constants = exponential_constants(scale)
    spec = LogSoftmaxSpec(
        score_bits=score_bits,
        code_bits=draw(st.integers(1, 5)),
        fraction_bits=draw(st.integers(0, 30)),
        row_length=row_length,
        polynomial_bits=int(constants["c"]).bit_length() + draw(st.integers(0, 3)),
        beyond=draw(st.sampled_from(["zero", "saturate"])),
    )
    return spec, spec.check_constants(constants)


@settings(max_examples=20, deadline=None)
@given(random_layers(), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["default", "covering", "baked"]), st.randoms())
def test_random_specs(layer, lanes, build, dice):
    """Any spec, built three ways: as wide as the spec allows, as narrow as the constants need, with them baked in."""
    spec, constants = layer
    maximum = (1 << spec.score_bits) - 1
    rows = [scores(dice, dice.randint(1, spec.row_length), maximum) for _ in range(6)]
    rows += [row for row in corner_rows(spec.row_length, maximum) if len(row) <= spec.row_length]
    if build == "covering":
        dut = LogSoftmax.covering([layer], lanes=lanes)
    else:
        dut = LogSoftmax(spec, lanes=lanes, constants=constants if build == "baked" else None)
    writes = dut.writes(spec, constants) if dut.loadable else []
    results = run(dut, [Phase(rows, writes)], stall_in=dice.choice([0, 0.4]), stall_out=dice.choice([0, 0.4]))
    assert elements(results) == [expected(layer, rows)]


def test_one_wrong_bit_of_a_table_shows():
    """A flipped bit in each table changes codes: the comparison with golden can fail."""
    layer = powers_layer()
    dut = LogSoftmax(layer[0])
    writes = dict(dut.writes(*layer))
    rows = [[31, 30], [31, 31, 30], [31] * 5 + [30]]
    phases = [Phase(rows, list(writes.items()))]
    for address, bit in ((1, 29), (32, 1), (64, 0)):
        phases.append(Phase(rows, [*(writes | {address: writes[address] ^ (1 << bit)}).items()]))
    right, *wrong = elements(run(dut, phases))
    assert right == expected(layer, rows)
    assert all(result != right for result in wrong)


# --- rows, cycles, reset ---


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_cycles_and_latency(lanes):
    """Rows back to back go in and out a beat a cycle, whatever their length, the longest one included."""
    layer = layer_of(0.2, score_bits=4, row_length=48)
    dut = LogSoftmax(layer[0], lanes=lanes)
    lengths = (1, 2, 8, 9, 48)
    phases = [Phase([[3] * length] * (30 if length < 8 else 10)) for length in lengths]
    for length, results in zip(lengths, run(dut, phases), strict=True):
        beats = -(-length // lanes)
        assert dut.cycles_per_row(length) == beats
        assert {after.first_in - row.first_in for row, after in itertools.pairwise(results)} == {beats}
        assert {after.out_cycles[0] - row.out_cycles[0] for row, after in itertools.pairwise(results)} == {beats}
        assert {row.out_cycles[0] - row.last_in for row in results} == {dut.row_latency(length)}
    assert dut.latency == dut.row_latency(48)


# Cycles of rows of 50, 197, 577 and 1025.
@pytest.mark.parametrize(
    ("lanes", "cycles"),
    [(1, (50, 197, 577, 1025)), (2, (25, 99, 289, 513)), (4, (13, 50, 145, 257)), (8, (7, 25, 73, 129))],
)
def test_cycles_of_long_rows(lanes, cycles):
    dice = random.Random(lanes)
    layer = layer_of(0.2, score_bits=4, row_length=1025)
    dut = LogSoftmax.covering([layer], lanes=lanes)
    assert tuple(map(dut.cycles_per_row, (50, 197, 577, 1025))) == cycles
    # The simulator is too slow for the longest rows with few lanes.
    lengths = (50, 197, 577, 1025)[: 2 if lanes < 4 else 3 if lanes == 4 else 4]
    phases = [Phase([scores(dice, length, maximum=15) for _ in range(2)]) for length in lengths]
    phases[0] = Phase(phases[0].rows, dut.writes(*layer))
    results = run(dut, phases)
    assert elements(results) == [expected(layer, phase.rows) for phase in phases]
    for wanted, (row, after) in zip(cycles, results, strict=False):
        assert after.first_in - row.first_in == wanted
        assert after.out_cycles[0] - row.out_cycles[0] == wanted


@pytest.mark.parametrize("lanes", [1, 4])
def test_rows_of_different_lengths_back_to_back(lanes):
    """The input never waits, and every row is right, when lengths change from row to row."""
    dice = random.Random(5)
    layer = layer_of(0.05, row_length=48)
    lengths = [48, 20, 30, 48, 1, 2, 3, 48, 48, 7, 40, 1, 48, 9, 33, 16, 16, 48]
    rows = [scores(dice, length) for length in lengths]
    dut = LogSoftmax(layer[0], lanes=lanes)
    (results,) = run(dut, [Phase(rows, dut.writes(*layer))])
    assert elements([results]) == [expected(layer, rows)]
    beats = sum(dut.cycles_per_row(length) for length in lengths)
    assert results[-1].last_in - results[0].first_in + 1 == beats


def test_many_short_rows_behind_a_long_one():
    """More short rows than the queues hold wait at the input, and nothing is lost."""
    dice = random.Random(6)
    layer = layer_of(0.05, row_length=48)
    rows = [scores(dice, length) for length in [48, *[1] * 60, 48, *[2] * 40]]
    dut = LogSoftmax(layer[0])
    results = run(dut, [Phase(rows, dut.writes(*layer))], stall_out=0.5, seed=3)
    assert elements(results) == [expected(layer, rows)]


@pytest.mark.parametrize("lanes", [1, 4])
def test_row_longer_than_built_for_is_ended(lanes):
    """The beat that fills the longest row leaves with `last`; the rest is a row of its own."""
    dice = random.Random(7)
    layer = layer_of(0.05, row_length=10)
    dut = LogSoftmax(layer[0], lanes=lanes)
    cut = -(-10 // lanes) * lanes
    long_row, short_row = scores(dice, 2 * cut + 3), scores(dice, 4)
    (results,) = run(dut, [Phase([long_row, short_row, short_row, short_row], dut.writes(*layer))])
    spec = dataclasses.replace(layer[0], row_length=cut)
    pieces = [long_row[:cut], long_row[cut : 2 * cut], long_row[2 * cut :], short_row]
    assert elements([results]) == [expected((spec, layer[1]), pieces)]


@pytest.mark.parametrize("lanes", [1, 4])
def test_reset_in_the_middle_of_rows(lanes):
    """After a reset of one cycle, with rows in every pass, the unit starts with a new row; its tables stay."""
    layer = layer_of(0.05)
    spec, constants = layer
    dice = random.Random(8)
    before, after = [255] * 40, scores(dice, 40, maximum=100)
    unit = LogSoftmax(spec, lanes=lanes)
    reset = Signal()
    codes = []

    async def bench(ctx):
        async def offer(row, ended):
            for at in range(0, len(row), lanes):
                ctx.set(unit.i.payload.data, row[at : at + lanes])
                ctx.set(unit.i.payload.last, ended and at + lanes >= len(row))
                ctx.set(unit.i.valid, 1)
                await ctx.tick().until(unit.i.ready)
            ctx.set(unit.i.valid, 0)

        ctx.set(unit.i.payload.keep, (1 << lanes) - 1)
        ctx.set(unit.w.valid, 1)
        for address, word in unit.writes(spec, constants):
            ctx.set(unit.w.payload, {"address": address, "data": word})
            await ctx.tick()
        ctx.set(unit.w.valid, 0)
        await offer(before, True)
        await offer(before, True)  # pass 2 and 3 at work on the first
        await offer(before[:20], False)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        await offer(after, True)
        ctx.set(unit.o.ready, 1)
        ended = 0
        while not ended:
            (payload,) = await ctx.tick().sample(unit.o.payload).until(unit.o.valid)
            codes.extend(payload["data"])
            ended = payload["last"]

    simulator = Simulator(ResetInserter(reset)(unit))
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert [codes] == expected(layer, [after])


# --- refusals ---


def test_layers_a_unit_cannot_serve():
    layer = layer_of(0.05)
    with pytest.raises(HwsimError, match="code_bits 3 and 4"):
        LogSoftmax.covering([layer, layer_of(0.05, code_bits=3)])
    with pytest.raises(HwsimError, match="beyond saturate and zero"):
        LogSoftmax.covering([layer, layer_of(0.05, beyond="saturate")])
    dut = LogSoftmax.covering([layer])
    with pytest.raises(HwsimError, match="row_length 40, the layer 41"):
        dut.writes(*layer_of(0.05, row_length=41))
    with pytest.raises(HwsimError, match="score_bits 8, the layer 9"):
        dut.writes(*layer_of(0.05, score_bits=9))
    with pytest.raises(HwsimError, match="need 36 bits and a mantissa of 9, the unit has 29 and 11"):
        dut.writes(*layer_of(0.08))
    rising = {"x0": np.array(-9), "b": np.array(0), "c": np.array(5)}
    with pytest.raises(HwsimError, match="row maximum must be the largest"):
        dut.writes(layer[0], rising)
