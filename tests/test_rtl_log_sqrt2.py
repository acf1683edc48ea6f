# amaranth: UnusedElaboratable=no
"""The log-sqrt2 unit in Amaranth's simulator against golden and against plain fractions."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from requantization import requantizer
from stream_bench import Phase, run

from golden.errors import HwsimError
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec, LogSqrt2SumsSpec
from rtl.log_sqrt2_sums import LogSqrt2Sums


def layer_of(zero_v, **changes):
    fields = {"code_bits": 4, "value_bits": 6, "row_length": 30, "guard_bits": 7, "accumulator_bits": 24}
    spec = LogSqrt2SumsSpec(**(fields | changes))
    return spec, spec.check_constants({"zero_v": np.array(zero_v)})


def expected(layer, rows):
    """Sums of each row, the even ones of all lanes first."""
    spec, constants = layer
    found = []
    for row in rows:
        sums = spec.compute(constants, np.array([[code for code, _ in row]]), np.array([v for _, v in row]))[0]
        found.append([*sums[:, 0].tolist(), *sums[:, 1].tolist()])
    return found


def elements(rows):
    return [[{"code": code, "values": list(values)} for code, values in row] for row in rows]


def sums(results):
    return [[row.elements for row in phase] for phase in results]


def random_rows(dice, spec, lengths, lanes):
    top = (1 << spec.value_bits) - 1
    return [
        [
            (dice.randint(0, spec.zero_symbol), [dice.choice([0, 1, top, dice.randint(0, top)]) for _ in range(lanes)])
            for _ in range(length)
        ]
        for length in lengths
    ]


def test_codes_are_half_octaves_of_each_parity():
    """Every code and value by fractions, not by golden: 7 guard bits lose nothing of 2**-(15 // 2)."""
    layer = layer_of(20, row_length=1)
    unit = LogSqrt2Sums(layer[0], constants=layer[1])
    inputs = [(code, value) for code in range(17) for value in (0, 1, 19, 20, 21, 63)]
    (results,) = run(unit, [Phase([[{"code": code, "values": [value]}] for code, value in inputs])])
    for row, (code, value) in zip(results, inputs, strict=True):
        exact = [Fraction(0), Fraction(0)]
        if code < 16:
            exact[code % 2] = Fraction(value - 20, 2 ** (code // 2)) * 2**7
        assert [Fraction(total) for total in row.elements] == exact


@pytest.mark.parametrize(("guard_bits", "code_bits"), [(0, 4), (3, 4), (9, 4), (0, 1), (2, 2), (5, 6), (0, 8), (3, 8)])
def test_fractions_are_cut_downwards(guard_bits, code_bits):
    """Guard bits too few, so that terms are rounded down each, and shifts that leave nothing but the sign."""
    zero = 33
    layer = layer_of(zero, row_length=1, guard_bits=guard_bits, code_bits=code_bits)
    unit = LogSqrt2Sums(layer[0], constants=layer[1])
    codes = sorted({*range(min(1 << code_bits, 20)), (1 << code_bits) - 2, (1 << code_bits) - 1, 1 << code_bits})
    inputs = [(code, value) for code in codes for value in (0, 32, 33, 34, 63)]
    (results,) = run(unit, [Phase([[{"code": code, "values": [value]}] for code, value in inputs])])
    for row, (code, value) in zip(results, inputs, strict=True):
        exact = [0, 0]
        if code < 1 << code_bits:
            exact[code % 2] = math.floor(Fraction((value - zero) << guard_bits, 1 << (code // 2)))
        assert row.elements == exact, (code, value)


@pytest.mark.parametrize("zero_v", [-64, 0, 31, 63])
def test_corner_rows(zero_v):
    layer = layer_of(zero_v)
    lanes, longest, zero = 3, layer[0].row_length, layer[0].zero_symbol
    extremes = [[0] * lanes, [63] * lanes, [63 * (lane % 2) for lane in range(lanes)]]
    rows = [[(code, v)] * longest for v in extremes for code in (0, 1, 15, zero)]
    rows += [[(zero, extremes[1])], [(1, extremes[0])], [(place % 2, extremes[2]) for place in range(longest)]]
    unit = LogSqrt2Sums(layer[0], lanes=lanes)
    assert sums(run(unit, [Phase(elements(rows), unit.writes(*layer))])) == [expected(layer, rows)]


def test_constants_between_rows_of_different_lengths_with_stalls():
    layers = [
        layer_of(zero_v, row_length=length, accumulator_bits=bits)
        for zero_v, length, bits in ((20, 30, 22), (-64, 9, 23), (63, 20, 21))
    ]
    unit = LogSqrt2Sums.covering(layers, lanes=4)
    dice = random.Random(2)
    rows = [random_rows(dice, spec, [dice.randint(1, spec.row_length) for _ in range(8)], 4) for spec, _ in layers]
    phases = [Phase(elements(part), unit.writes(*layer)) for part, layer in zip(rows, layers, strict=True)]
    results = run(unit, phases, stall_in=0.3, stall_out=0.6, seed=7)
    assert sums(results) == [expected(layer, part) for part, layer in zip(rows, layers, strict=True)]


def test_rows_of_one_element_wait_for_a_slow_consumer():
    layer = layer_of(10)
    rows = [[(code % 17, [code])] for code in range(40)]
    unit = LogSqrt2Sums(layer[0])
    results = run(unit, [Phase(elements(rows), unit.writes(*layer))], stall_out=0.8, seed=3)
    assert sums(results) == [expected(layer, rows)]


@pytest.mark.parametrize(("code_bits", "guard_bits"), [(1, 0), (3, 3), (4, 7), (6, 31)])
def test_cycles(code_bits, guard_bits):
    layer = layer_of(1, code_bits=code_bits, guard_bits=guard_bits, accumulator_bits=50)
    unit = LogSqrt2Sums(layer[0], lanes=2)
    # 2 cycles and one for every two bits of the largest left shift.
    assert unit.latency == 2 + -(-max(guard_bits, 1).bit_length() // 2)
    lengths = (30, 1, 2, 3, 1, 1, 30)
    rows = [[(code_bits % 2, [1, 2])] * length for length in lengths]
    (results,) = run(unit, [Phase(elements(rows), unit.writes(*layer))])
    assert [row.out_cycles[0] - row.last_in for row in results] == [unit.latency] * len(rows)
    for row, following in pairwise(results):
        assert following.last_in - row.last_in == unit.cycles_per_row(following.last_in - following.first_in + 1)


def test_a_row_longer_than_proven_wraps_around():
    layer = layer_of(0, row_length=1, accumulator_bits=14)
    unit = LogSqrt2Sums(layer[0])
    total = 2 * 63 << 7
    assert total >= 1 << 13
    rows = [[(0, [63]), (1, [1]), (0, [63])]]
    assert sums(run(unit, [Phase(elements(rows), unit.writes(*layer))])) == [[[total - (1 << 14), 1 << 7]]]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_specs(data):
    code_bits, value_bits = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([1, 3, 8, 11]))
    lanes = data.draw(st.integers(1, 3))
    layer = layer_of(
        data.draw(st.integers(-(1 << value_bits), (1 << value_bits) - 1)),
        code_bits=code_bits,
        value_bits=value_bits,
        guard_bits=data.draw(st.integers(0, 24)),
        row_length=12,
        accumulator_bits=46,
    )
    codes = st.integers(0, layer[0].zero_symbol)
    values = st.lists(st.integers(0, (1 << value_bits) - 1), min_size=lanes, max_size=lanes)
    rows = data.draw(
        st.lists(st.lists(st.tuples(codes, values), min_size=1, max_size=12), min_size=1, max_size=6), label="rows"
    )
    baked = data.draw(st.booleans())
    unit = LogSqrt2Sums(layer[0], lanes=lanes, constants=layer[1] if baked else None)
    writes = [] if baked else unit.writes(*layer)
    stall = data.draw(st.sampled_from([0.0, 0.4]))
    assert sums(run(unit, [Phase(elements(rows), writes)], stall_in=stall, stall_out=stall)) == [expected(layer, rows)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_bits": 3}, "code_bits 3 and 4"),
        ({"value_bits": 5}, "value_bits 5 and 6"),
        ({"guard_bits": 6}, "guard_bits 6 and 7"),
    ],
)
def test_layers_that_need_units_of_their_own(changes, message):
    with pytest.raises(HwsimError, match=message):
        LogSqrt2Sums.covering([layer_of(0), layer_of(0, **changes)])


def test_wider_sums_are_refused():
    unit = LogSqrt2Sums(layer_of(0)[0])
    with pytest.raises(HwsimError, match="sums have 25 bits, the unit was built with 24"):
        unit.writes(*layer_of(0, accumulator_bits=25))


@pytest.mark.parametrize("wrong", ["zero_v", "code"])
def test_a_wrong_bit_is_seen(wrong):
    layer = layer_of(12)
    rows = random_rows(random.Random(3), layer[0], [20], 2)
    unit = LogSqrt2Sums(layer[0], lanes=2)
    ((address, word),) = unit.writes(*layer)
    sent = elements(rows)
    if wrong == "code":
        sent[0][4]["code"] ^= 1
    assert sums(run(unit, [Phase(sent, [(address, word ^ (wrong == "zero_v"))])])) != [expected(layer, rows)]


def test_reset_in_a_row_and_a_beat_without_element():
    """After a reset nothing of the row before is left in either sum; a beat that keeps no element adds nothing."""
    layer = layer_of(0)
    unit = LogSqrt2Sums(layer[0], constants=layer[1])
    reset = Signal()
    simulator = Simulator(ResetInserter(reset)(unit))
    simulator.add_clock(1e-8)

    async def bench(ctx):
        async def send(code, value, *, keep=1, last=0):
            element = {"code": code, "values": [value]}
            ctx.set(unit.i.payload, {"data": [element], "keep": keep, "last": last})
            ctx.set(unit.i.valid, 1)
            await ctx.tick()
            ctx.set(unit.i.valid, 0)

        await ctx.tick().repeat(2)
        for place in range(8):
            await send(place % 2, 63)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for _ in range(20):
            assert not ctx.get(unit.o.valid)
            await ctx.tick()
        await send(14, 5)
        await send(0, 63, keep=0)
        await send(15, 3, last=1)
        ctx.set(unit.o.ready, 1)
        (payload,) = await ctx.tick().sample(unit.o.payload).until(unit.o.valid)
        assert list(payload["data"]) == [5, 3]

    simulator.add_testbench(bench)
    simulator.run()


# --- what the sums are of ---


def test_a_product_is_made_of_its_sums():
    rng = np.random.default_rng(4)
    spec = LogSqrt2MatmulSpec(code_bits=4, value_bits=6, row_length=9, guard_bits=7, requantize=requantizer(24))
    constants = spec.check_constants(
        {"zero_v": 20, "multiplier": [1234], "multiplier_odd": [873], "shift": [16], "zero_point": 9}
    )
    codes, values = rng.integers(0, 17, (2, 5, 9)), rng.integers(0, 64, (2, 9, 4))
    sums = spec.sums.compute({"zero_v": constants["zero_v"]}, codes, values)
    assert sums.shape == spec.sums.shape(codes.shape, values.shape) == (2, 5, 4, 2)
    assert np.array_equal(spec.join(constants, sums[..., 0], sums[..., 1]), spec.compute(constants, codes, values))


def test_a_linear_layer_is_made_of_its_sums_and_the_bias():
    """By numbers: half the weights times fractions."""
    rng = np.random.default_rng(4)
    spec = LogSqrt2LinearSpec(
        input_features=12, output_features=5, code_bits=3, weight_bits=4, bias_bits=12, guard_bits=3,
        requantize=requantizer(24),
    )  # fmt: skip
    constants = {
        "weight": rng.integers(0, 16, (5, 12)),
        "zero_weight": rng.integers(0, 16, 5),
        "bias": np.zeros(5),
        "multiplier": [1],
        "multiplier_odd": [1],
        "shift": [0],
        "zero_point": 0,
    }
    sums, zero, values = spec.sums(constants)
    assert sums.value_bits == 5 and int(zero["zero_v"]) == 16
    codes = rng.integers(0, 9, (7, 12))
    found = sums.compute(sums.check_constants(zero), codes, values)
    centred = constants["weight"] - constants["zero_weight"][:, None]
    for parity in range(2):
        weight = np.where((codes % 2 == parity) & (codes < 8), 2.0 ** (3 - codes // 2), 0)
        assert np.array_equal(found[..., parity], weight @ centred.T)
