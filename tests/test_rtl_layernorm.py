# amaranth: UnusedElaboratable=no
"""The LayerNorm unit and its machines in Amaranth's simulator, against golden and plain Python integers."""

import itertools
import random

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal, signed
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_bench import Phase, evaluate, run

from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from rtl.booth import booth_product
from rtl.layernorm import LayerNorm
from rtl.reciprocal_sqrt import ReciprocalSqrt
from rtl.row_sums import constant_multiple
from rtl.variance import Variance


def spec_of(channels, **changes):
    fields = {
        "channels": channels,
        "input_bits": 8,
        "output_bits": 8,
        "alpha_bits": 2,
        "mantissa_bits": 14,
        "radicand_bits": 16,
        "gamma_bits": 12,
        "beta_bits": 20,
    }
    return LayerNormSpec(**(fields | changes))


def constants_of(spec, seed, **changes):
    """Random constants over the whole range of each, but for what is given."""
    rng = np.random.default_rng(seed)
    constants = {}
    for name, constant in spec.constants.items():
        low, high = constant.format.minimum, constant.format.maximum
        if name == "alpha" and not spec.alpha_bits:
            high = 0
        constants[name] = rng.integers(low, high + 1, constant.shape)
        if name in changes:
            constants[name] = np.broadcast_to(changes[name], constant.shape)
    return spec.check_constants(constants)


def in_range(spec, seed, **changes):
    """Random constants whose results seldom saturate."""
    rng = np.random.default_rng(seed)
    gain = 1 << (spec.gamma_bits - 2)
    fraction_bits = max(spec.gamma_bits - spec.output_bits + 2, 0)
    centre = 1 << (spec.output_bits - 1 + fraction_bits)
    typical = {
        "zero_in": rng.integers(0, 1 << spec.input_bits),
        "gamma": rng.integers(-gain, gain, spec.channels),
        "beta": rng.integers(centre // 2, centre, spec.channels),
        "fraction_bits": fraction_bits,
    }
    return constants_of(spec, seed, **(typical | changes))


def expected(spec, constants, rows):
    return spec.compute(constants, np.array(rows, dtype=np.int64)).tolist()


def elements(phase):
    return [row.elements for row in phase]


def corner_rows(spec):
    top, length = spec.input.maximum, spec.channels
    one_hot = [0] * length
    one_hot[length // 2] = top
    return [
        [0] * length,
        [top] * length,
        [top // 3] * length,
        one_hot,
        [top - code for code in one_hot],
        [top * (at % 2) for at in range(length)],
        [top * (at < length // 2) for at in range(length)],
        [at * top // length for at in range(length)],
        [top // 2 + at % 2 for at in range(length)],
    ]


# --- parts ---


def test_booth_product_is_exact_for_all_small_numbers():
    multiplier, below, multiplicand = Signal(signed(5)), Signal(), Signal(signed(3))
    cases = [(a, b, c) for a in range(-16, 16) for b in (0, 1) for c in range(-4, 4)]
    partial, carry = booth_product(multiplier, below, multiplicand)
    inputs = [(signal, [case[at] for case in cases]) for at, signal in enumerate((multiplier, below, multiplicand))]
    assert evaluate([partial + carry], inputs) == [[(a + b) * c] for a, b, c in cases]


def test_constant_multiple_is_exact():
    x = Signal(signed(6))
    factors = [*range(1, 40), 63, 93, 197, 577, 1023]
    values = list(range(-32, 32))
    results = evaluate([constant_multiple(x, factor) for factor in factors], [(x, values)])
    assert results == [[factor * value for factor in factors] for value in values]


def drive(dut, payloads, patience=500):
    """Payloads through a unit with one stream in and one out, which may be taken late."""
    results = []

    async def feed(ctx):
        for payload in payloads:
            ctx.set(dut.i.payload, payload)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def collect(ctx):
        dice = random.Random(1)
        for _ in payloads:
            for _ in range(dice.choice([0, 0, 3])):
                await ctx.tick()
            ctx.set(dut.o.ready, 1)
            waited = 0
            while True:
                _, _, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
                if valid:
                    break
                waited += 1
                assert waited < patience, "no result"
            results.append({name: payload[name] for name in dut.o.payload.shape().members})
            ctx.set(dut.o.ready, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(feed)
    simulator.add_testbench(collect)
    simulator.run()
    return results


def largest_mantissa(d, mantissa_bits, radicand_bits):
    """The definition, by trying every mantissa."""
    limit = 1 << (radicand_bits + 2 * (mantissa_bits - 1))
    return max(m for m in range(1 << (mantissa_bits - 1), 1 << mantissa_bits) if m * m * d <= limit)


@pytest.mark.parametrize("quotient_bits", [1, 2])
@pytest.mark.parametrize(("mantissa_bits", "radicand_bits", "fine_bits"), [(5, 6, 2), (4, 4, 0), (6, 4, 1)])
def test_reciprocal_sqrt_of_every_radicand(mantissa_bits, radicand_bits, fine_bits, quotient_bits):
    digits = 7
    unit = ReciprocalSqrt(
        sum_bits=9,
        digits=digits,
        mantissa_bits=mantissa_bits,
        radicand_bits=radicand_bits,
        fine_bits=fine_bits,
        quotient_bits=quotient_bits,
    )
    radicands = range(1 << (radicand_bits - 2), 1 << radicand_bits)
    rows = [{"leading": d, "pair": d % digits, "nonzero": 1, "sum": -d} for d in radicands]
    rows.append({"leading": 1 << (radicand_bits - 2), "pair": 0, "nonzero": 0, "sum": 200})
    for row, got in zip(rows, drive(unit, rows), strict=True):
        step = 1 << fine_bits
        mantissa = largest_mantissa(row["leading"], mantissa_bits, radicand_bits) if row["nonzero"] else 0
        shift = -(row["pair"] + 1) % step
        assert got == {"mantissa": mantissa << shift, "coarse": row["pair"] // step, "sum": row["sum"]}


@pytest.mark.parametrize("radicand_bits", [4, 10, 24])
def test_variance_is_the_leading_bits_of_the_difference(radicand_bits):
    digits, zeros, sum_bits = 9, 2, 10
    dice = random.Random(radicand_bits)
    cases = []
    for exponent in [*range(2 * digits + 1), *range(2 * digits + 1)]:
        total = dice.choice([dice.randrange(-511, 512), -511, 511, 0])
        difference = dice.randrange(1 << exponent)
        difference += -(difference + total * total) % (1 << zeros)  # the squares have zeros below
        if difference < 4**digits:
            cases.append((total, difference))
    unit = Variance(sum_bits=sum_bits, digits=digits, zeros=zeros, radicand_bits=radicand_bits)
    mask = (1 << (2 * digits - zeros)) - 1
    inputs = [{"sum": total, "squares": (d + total * total >> zeros) & mask} for total, d in cases]
    for (total, d), got in zip(cases, drive(unit, inputs), strict=True):
        assert (got["sum"], got["nonzero"]) == (total, d > 0)
        if d:
            pair = (d.bit_length() - 1) // 2
            assert got["pair"] == pair
            assert got["leading"] == (d << radicand_bits) >> (2 * pair + 2)


# --- the unit ---


@pytest.mark.parametrize(("channels", "lanes"), [(12, 1), (12, 4), (13, 2), (5, 8), (1, 1), (2, 2)])
def test_corner_rows(channels, lanes):
    spec = spec_of(channels)
    layers = [(spec, in_range(spec, seed)) for seed in range(2)]
    layers.append((spec, constants_of(spec, 2, zero_in=-256, alpha=3, fraction_bits=11)))
    layers.append((spec, constants_of(spec, 3, zero_in=255, gamma=-2048, fraction_bits=12)))
    unit = LayerNorm.covering(layers, lanes=lanes)
    rows = corner_rows(spec)
    phases = [Phase(rows=rows, writes=unit.writes(*layer)) for layer in layers]
    assert [elements(phase) for phase in run(unit, phases)] == [expected(*layer, rows) for layer in layers]


@st.composite
def layers(draw):
    spec = spec_of(
        draw(st.integers(1, 64)),
        input_bits=draw(st.integers(1, 10)),
        output_bits=draw(st.integers(1, 12)),
        alpha_bits=draw(st.integers(0, 2)),
        mantissa_bits=draw(st.integers(4, 18)),
        radicand_bits=2 * draw(st.integers(2, 10)),
        gamma_bits=draw(st.integers(2, 14)),
        beta_bits=draw(st.integers(2, 22)),
    )
    seed = draw(st.integers(0, 1000))
    make = draw(st.sampled_from([constants_of, in_range]))
    if make is in_range and spec.gamma_bits - 2 + spec.output_bits >= spec.beta_bits:
        make = constants_of
    return spec, make(spec, seed, fraction_bits=draw(st.integers(0, 16)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(layer=layers(), lanes=st.sampled_from([1, 2, 3]), stall=st.sampled_from([0.0, 0.4]), data=st.data())
def test_random_specs(layer, lanes, stall, data):
    spec, constants = layer
    codes = st.integers(0, spec.input.maximum)
    row = st.lists(codes, min_size=spec.channels, max_size=spec.channels)
    rows = data.draw(st.lists(row, min_size=2, max_size=4))
    unit = LayerNorm(spec, lanes=lanes, fraction_range=(0, 16))
    (got,) = run(unit, [Phase(rows=rows, writes=unit.writes(spec, constants))], stall_in=stall, stall_out=stall)
    assert elements(got) == expected(spec, constants, rows)


@pytest.mark.parametrize("changes", [{"gamma_bits": 20, "beta_bits": 28, "mantissa_bits": 12}, {"alpha_bits": 3}])
def test_operands_wider_than_a_multiplier(changes):
    spec = spec_of(24, **changes)
    constants = in_range(spec, 5)
    rows = np.random.default_rng(5).integers(0, 256, (4, 24)).tolist() + corner_rows(spec)
    unit = LayerNorm(spec, constants=constants)
    assert elements(run(unit, [Phase(rows=rows)])[0]) == expected(spec, constants, rows)


@pytest.mark.parametrize(
    ("lanes", "stall_in", "stall_out"), [(1, 0.5, 0.0), (2, 0.0, 0.6), (4, 0.3, 0.3), (1, 0.1, 0.9)]
)
def test_stalls_change_nothing(lanes, stall_in, stall_out):
    spec = spec_of(20)
    constants = in_range(spec, lanes)
    rows = np.random.default_rng(lanes).integers(0, 256, (12, 20)).tolist()
    unit = LayerNorm(spec, lanes=lanes, constants=constants)
    (got,) = run(unit, [Phase(rows=rows)], stall_in=stall_in, stall_out=stall_out, seed=lanes)
    assert elements(got) == expected(spec, constants, rows)


# Beats a row, cycles a row: the second is the first unless the statistics of a row take longer.
@pytest.mark.parametrize(
    ("channels", "lanes", "cycles"),
    [(192, 1, 192), (96, 4, 24), (64, 1, 64), (32, 2, 21), (48, 1, 48), (24, 1, 24), (6, 1, 21), (7, 3, 21)],
)
def test_cycles_per_row_and_latency(channels, lanes, cycles):
    spec = spec_of(channels)
    constants = in_range(spec, channels)
    unit = LayerNorm(spec, lanes=lanes, constants=constants)
    count = 3 if channels > 90 else 6
    rows = np.random.default_rng(channels).integers(0, 256, (count, channels)).tolist()
    (got,) = run(unit, [Phase(rows=rows)])
    assert elements(got) == expected(spec, constants, rows)
    assert unit.cycles_per_row(channels) == cycles
    starts = [row.out_cycles[0] for row in got]
    assert [after - before for before, after in itertools.pairwise(starts)] == [cycles] * (count - 1)
    beats = -(-channels // lanes)
    assert [row.out_cycles for row in got] == [list(range(start, start + beats)) for start in starts]
    assert starts[0] - got[0].last_in == unit.latency


# Cycles a row with 1, 2, 4 and 8 lanes.
LONG_ROWS = {
    50: {1: 50, 2: 25, 4: 21, 8: 21},
    197: {1: 197, 2: 99, 4: 50, 8: 25},
    577: {1: 577, 2: 289, 4: 145, 8: 73},
    1025: {1: 1025, 2: 513, 4: 257, 8: 129},
}


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", LONG_ROWS)
def test_the_formula_of_long_rows(channels, lanes):
    spec = spec_of(channels)
    unit = LayerNorm(spec, lanes=lanes, constants=in_range(spec, lanes))
    assert unit.cycles_per_row(channels) == LONG_ROWS[channels][lanes]


# Every length and every number of lanes; the simulator is too slow for all pairs of them.
@pytest.mark.parametrize(("channels", "lanes"), [(50, 4), (50, 8), (197, 1), (197, 8), (577, 4), (1025, 8), (192, 2)])
def test_cycles_of_long_rows(channels, lanes):
    spec = spec_of(channels)
    constants = in_range(spec, lanes)
    unit = LayerNorm(spec, lanes=lanes, constants=constants)
    rows = np.random.default_rng(lanes).integers(0, 256, (3, channels)).tolist()
    (got,) = run(unit, [Phase(rows=rows)])
    assert elements(got) == expected(spec, constants, rows)
    starts = [row.out_cycles[0] for row in got]
    assert [after - before for before, after in itertools.pairwise(starts)] == [unit.cycles_per_row(channels)] * 2


def test_constants_are_reloaded_between_rows():
    spec = spec_of(10)
    narrow = spec_of(10, input_bits=6, alpha_bits=1, gamma_bits=9, beta_bits=15)
    layers = [(spec, in_range(spec, 1)), (narrow, in_range(narrow, 2)), (spec, in_range(spec, 3, fraction_bits=9))]
    unit = LayerNorm.covering(layers, lanes=2)
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, layer.input.maximum + 1, (3, 10)).tolist() for layer, _ in layers]
    phases = [Phase(rows=part, writes=unit.writes(*layer)) for part, layer in zip(rows, layers, strict=True)]
    got = run(unit, phases, stall_in=0.2, stall_out=0.2)
    assert [elements(phase) for phase in got] == [
        expected(*layer, part) for layer, part in zip(layers, rows, strict=True)
    ]


def test_a_corrupt_constant_shows():
    spec = spec_of(8)
    constants = in_range(spec, 4, gamma=700)  # alphas differ, or the zero point would not matter
    rows = np.random.default_rng(4).integers(0, 256, (6, 8)).tolist()
    unit = LayerNorm(spec, fraction_range=(6, 7))
    writes = unit.writes(spec, constants)
    want = expected(spec, constants, rows)
    assert elements(run(unit, [Phase(rows=rows, writes=writes)])[0]) == want
    highest_gamma = spec.gamma_bits - 2
    highest_beta = spec.gamma_bits + int(constants["beta"].max()).bit_length() - 1
    scalars = next(at for at, (address, _) in enumerate(writes) if address == 8)
    for at, bit in [(scalars, 5), (scalars, 9), (scalars + 1, highest_gamma), (scalars + 1, highest_beta), (-1, 0)]:
        wrong = list(writes)
        wrong[at] = (wrong[at][0], wrong[at][1] ^ 1 << bit)
        unit = LayerNorm(spec, fraction_range=(6, 7))
        assert elements(run(unit, [Phase(rows=rows, writes=wrong)])[0]) != want, f"write {at}, bit {bit}"


def test_saturates_at_both_ends_and_rounds_ties_to_even():
    spec = spec_of(16)
    unit_beta = 1 << 8
    # gamma = 0 leaves beta alone: k + 1/2 for every k, past both ends.
    beta = [(2 * k + 1) * unit_beta // 2 for k in (-3, -2, -1, 0, 1, 2, 3, 98, 99, 253, 254, 255, 256, 300, -400, 511)]
    constants = constants_of(spec, 0, gamma=0, beta=beta, fraction_bits=8)
    codes = [0, 0, 0, 0, 2, 2, 4, 98, 100, 254, 254, 255, 255, 255, 0, 255]
    assert expected(spec, constants, [list(range(16))]) == [codes]
    unit = LayerNorm(spec, constants=constants)
    assert elements(run(unit, [Phase(rows=[[9] * 16, list(range(16))])])[0]) == [codes, codes]


def test_a_tie_broken_far_below_the_last_bit():
    # Two channels 2**j apart: C*X - S1 = +-2**j and D = 4**j, so m = 2**p - 1 and gamma is scaled by 1 - 2**-p.
    spec = spec_of(2, alpha_bits=0, mantissa_bits=14)
    half = 1 << 9
    for gamma, codes in [(1, [20, 21]), (-1, [21, 20]), (0, [20, 20])]:
        constants = constants_of(spec, 0, zero_in=3, gamma=gamma, beta=41 * half, fraction_bits=10)
        rows = [[0, 128], [5, 6], [7, 11]]
        assert expected(spec, constants, rows) == [codes] * 3
        unit = LayerNorm(spec, constants=constants)
        assert elements(run(unit, [Phase(rows=rows)])[0]) == [codes] * 3


def test_ties_of_the_product_without_fraction_bits():
    # As above with p = 4: the product is gamma * 15/16, so 24 gives 22.5 and 8 gives 7.5, with beta on top.
    spec = spec_of(2, alpha_bits=0, mantissa_bits=4, gamma_bits=8, beta_bits=9)
    for gamma, codes in [(24, [100 - 22, 100 + 22]), (8, [100 - 8, 100 + 8]), (5, [100 - 5, 100 + 5])]:
        constants = constants_of(spec, 0, zero_in=0, gamma=gamma, beta=100, fraction_bits=0)
        assert expected(spec, constants, [[16, 32]]) == [codes]
        unit = LayerNorm(spec, constants=constants)
        assert elements(run(unit, [Phase(rows=[[16, 32]])])[0]) == [codes]


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_rows_of_a_wrong_length(lanes, stall):
    """A missing element counts as X = 0, surplus ones are dropped, and the rows around come out right."""
    spec = spec_of(10)
    constants = in_range(spec, 7, zero_in=40)
    rng = np.random.default_rng(7)
    rows = [rng.integers(0, 256, length).tolist() for length in (10, 4, 10, 13, 1, 30, 9, 11, 10, 10)]
    as_taken = [(row + [40] * 10)[:10] for row in rows]
    unit = LayerNorm(spec, lanes=lanes, constants=constants)
    (got,) = run(unit, [Phase(rows=rows)], stall_in=stall, stall_out=stall)
    assert elements(got) == expected(spec, constants, as_taken)
    assert unit.cycles_per_row(400) == -(-400 // lanes)


def test_reset_in_the_middle_of_a_row_forgets_it():
    spec = spec_of(6)
    constants = in_range(spec, 9)
    rows = np.random.default_rng(9).integers(0, 256, (2, 6)).tolist()
    reset = Signal()
    unit = LayerNorm(spec, constants=constants)
    codes = []

    async def bench(ctx):
        # Rows before the reset, so that it meets all three machines and the output at work; half a row last.
        for part in ([5] * 6, rows[1], rows[0], rows[0][:3]):
            for at, code in enumerate(part):
                ctx.set(unit.i.payload, {"data": [code], "keep": 1, "last": at == 5})
                ctx.set(unit.i.valid, 1)
                await ctx.tick().until(unit.i.ready)
        ctx.set(unit.i.valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        ctx.set(unit.o.ready, 1)
        offers = [(code, at == 5) for row in rows for at, code in enumerate(row)]
        for _ in range(300):
            ctx.set(unit.i.valid, bool(offers))
            if offers:
                ctx.set(unit.i.payload, {"data": [offers[0][0]], "keep": 1, "last": offers[0][1]})
            _, _, taken, valid, payload = await ctx.tick().sample(unit.i.ready, unit.o.valid, unit.o.payload)
            if offers and taken:
                offers.pop(0)
            if valid:
                codes.append(payload.data[0])

    simulator = Simulator(ResetInserter(reset)(unit))
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert codes == list(itertools.chain(*expected(spec, constants, rows)))


def test_widest_statistics():
    """Half the row at the largest X, half missing: the largest D, and the largest sums with a full row."""
    spec = spec_of(64)
    constants = in_range(spec, 8, zero_in=-256, alpha=3, gamma=2047)
    rows = [[255] * 32, [255] * 64, [255] * 63, [255]]
    padded = np.zeros((4, 64), dtype=np.int64)
    for row, codes in zip(padded, rows, strict=True):
        row[: len(codes)] = (np.array(codes) + 256) << 3
    unit = LayerNorm(spec, constants=constants)
    # X itself as the code of a wider spec without zero point and factors.
    wide = spec_of(64, input_bits=12, alpha_bits=0)
    plain = constants | {"zero_in": np.array(0), "alpha": np.zeros(64, dtype=np.int64)}
    assert elements(run(unit, [Phase(rows=rows)])[0]) == expected(wide, plain, padded.tolist())


# --- what cannot be built or loaded ---


def test_layers_that_do_not_fit_are_refused():
    spec = spec_of(8)
    layer = (spec, in_range(spec, 1))
    other = spec_of(8, mantissa_bits=12)
    with pytest.raises(HwsimError, match="mantissa_bits 12 and 14"):
        LayerNorm.covering([layer, (other, in_range(other, 1))])
    unit = LayerNorm.covering([layer])
    wide = spec_of(8, gamma_bits=14)
    with pytest.raises(HwsimError, match="gamma_bits 14, the layernorm unit was built with 12"):
        unit.writes(wide, in_range(wide, 1))
    with pytest.raises(HwsimError, match="fraction_bits 3, the layernorm unit was built for 6 to 6"):
        unit.writes(spec, in_range(spec, 1, fraction_bits=3))
    with pytest.raises(HwsimError, match="fraction_range must be"):
        LayerNorm(spec, fraction_range=(4, 2))


def test_one_value_of_fraction_bits_needs_no_shifter():
    spec = spec_of(8)
    assert LayerNorm(spec, fraction_range=(9, 9)).latency < LayerNorm(spec, fraction_range=(0, 31)).latency
