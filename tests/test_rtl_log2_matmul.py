# amaranth: UnusedElaboratable=no
"""The Log2 shift-accumulate unit in Amaranth's simulator against golden."""

import random
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from requantization import requantizer, scaling
from stream_bench import Phase, run

from golden.errors import HwsimError
from golden.log2_matmul import Log2MatmulSpec
from rtl.log2_matmul import Log2Matmul


def layer_of(zero_v, *, bits=25, **changes):
    fields = {"code_bits": 4, "value_bits": 8, "row_length": 50, "requantize": requantizer(bits)}
    spec = Log2MatmulSpec(**(fields | changes))
    return spec, spec.check_constants({"zero_v": np.array(zero_v), **scaling(1, 0)})


def expected(layer, rows):
    """Sums of each row by golden."""
    spec, constants = layer
    return [
        spec.accumulate(constants, np.array([[code for code, _ in row]]), np.array([v for _, v in row]))[0].tolist()
        for row in rows
    ]


def elements(rows):
    return [[{"code": code, "values": list(values)} for code, values in row] for row in rows]


def sums(results):
    return [[row.elements for row in phase] for phase in results]


def possible_row(dice, spec, length, lanes, codes):
    """A row of at most the weight that a softmax can give."""
    row, weight = [], 0
    for _ in range(length):
        code = dice.choice(codes)
        add = 0 if code > spec.last_code else 1 << (spec.last_code - code)
        if weight + add > spec.largest_row_weight:
            code, add = (spec.zero_symbol, 0) if spec.beyond == "zero" else (spec.last_code, 1)
        weight += add
        row.append((code, [dice.choice([0, 1, 127, 128, 255, dice.randrange(256)]) for _ in range(lanes)]))
    return row


def corner_rows(spec, lanes):
    """Zero symbols only, code 0 up to the weight bound, extreme values, one element, the longest row."""
    zero, last, longest = spec.zero_symbol, spec.last_code, spec.row_length
    extremes = [[0] * lanes, [255] * lanes, [255 * (lane % 2) for lane in range(lanes)]]
    rows = [[(zero, v)] * longest for v in extremes]
    rows += [[(0, v)] for v in extremes] + [[(zero, extremes[1])], [(last, extremes[1])]]
    rows += [[(0, v), (1, v), *[(zero, v)] * (longest - 2)] for v in extremes]  # weight 1.5
    rows += [[(last, v)] * longest for v in extremes]
    return rows


@pytest.mark.parametrize("zero_v", [-256, 0, 117, 255])
def test_corner_rows(zero_v):
    layer = layer_of(zero_v, bits=25 if 0 <= zero_v <= 255 else 26)
    rows = corner_rows(layer[0], 3)
    unit = Log2Matmul(layer[0], lanes=3)
    results = run(unit, [Phase(elements(rows), unit.writes(*layer))])
    assert sums(results) == [expected(layer, rows)]


def test_weights_are_powers_of_two():
    """Every code and every value by plain integers, not by golden."""
    spec, constants = layer_of(0, row_length=1)
    unit = Log2Matmul(spec, constants=constants)
    inputs = [(code, value) for code in range(17) for value in (0, 1, 2, 85, 128, 170, 255)]
    (results,) = run(unit, [Phase([[{"code": code, "values": [value]}] for code, value in inputs])])
    assert [row.elements for row in results] == [[value * 2 ** (15 - c) if c < 16 else 0] for c, value in inputs]


def test_saturating_softmax_has_no_zero_symbol():
    layer = layer_of(-3, beyond="saturate", bits=26)
    dice = random.Random(5)
    rows = [possible_row(dice, layer[0], length, 2, range(16)) for length in (1, 50, 7)]
    unit = Log2Matmul(layer[0], lanes=2)
    assert sums(run(unit, [Phase(elements(rows), unit.writes(*layer))])) == [expected(layer, rows)]


def test_constants_between_rows_of_different_lengths_with_stalls():
    layers = [
        layer_of(zero_v, row_length=length, bits=bits)
        for zero_v, length, bits in ((128, 50, 25), (-256, 9, 26), (255, 20, 25))
    ]
    unit = Log2Matmul.covering(layers, lanes=4)
    dice = random.Random(2)
    rows = [
        [possible_row(dice, spec, dice.randint(1, spec.row_length), 4, range(17)) for _ in range(8)]
        for spec, _ in layers
    ]
    phases = [Phase(elements(part), unit.writes(*layer)) for part, layer in zip(rows, layers, strict=True)]
    results = run(unit, phases, stall_in=0.3, stall_out=0.6, seed=7)
    assert sums(results) == [expected(layer, part) for part, layer in zip(rows, layers, strict=True)]


def test_rows_of_one_element_wait_for_a_slow_consumer():
    layer = layer_of(10)
    rows = [[(code % 17, [code])] for code in range(40)]
    unit = Log2Matmul(layer[0])
    results = run(unit, [Phase(elements(rows), unit.writes(*layer))], stall_out=0.8, seed=3)
    assert sums(results) == [expected(layer, rows)]


@pytest.mark.parametrize("code_bits", [1, 3, 4, 5])
def test_cycles(code_bits):
    layer = layer_of(1, code_bits=code_bits, bits=42)
    unit = Log2Matmul(layer[0], lanes=2)
    lengths = (50, 1, 2, 3, 1, 1, 50)
    rows = [[(code_bits % 2, [1, 2])] * length for length in lengths]
    (results,) = run(unit, [Phase(elements(rows), unit.writes(*layer))])
    assert [row.out_cycles[0] - row.last_in for row in results] == [unit.latency] * len(rows)
    for row, following in pairwise(results):
        assert following.last_in - row.last_in == unit.cycles_per_row(following.last_in - following.first_in + 1)
    assert [row.last_in - row.first_in + 1 for row in results] == list(lengths)


def test_a_row_longer_than_proven_wraps_around():
    layer = layer_of(0, row_length=1, bits=25)
    rows = [[(0, [255])] * 3]
    unit = Log2Matmul(layer[0])
    total = 3 * 255 << 15
    assert total >= 1 << 24
    assert sums(run(unit, [Phase(elements(rows), unit.writes(*layer))])) == [[[total - (1 << 25)]]]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_specs(data):
    code_bits = data.draw(st.integers(1, 5))
    value_bits = data.draw(st.sampled_from([1, 3, 8, 11]))
    lanes = data.draw(st.integers(1, 3))
    zero_v = data.draw(st.integers(-(1 << value_bits), (1 << value_bits) - 1))
    layer = layer_of(
        zero_v,
        code_bits=code_bits,
        value_bits=value_bits,
        beyond=data.draw(st.sampled_from(["zero", "saturate"])),
        row_length=12,
        bits=46,
    )
    codes = st.integers(0, layer[0].last_code + (layer[0].beyond == "zero"))
    values = st.lists(st.integers(0, (1 << value_bits) - 1), min_size=lanes, max_size=lanes)
    rows = data.draw(
        st.lists(st.lists(st.tuples(codes, values), min_size=1, max_size=12), min_size=1, max_size=6), label="rows"
    )
    baked = data.draw(st.booleans())
    unit = Log2Matmul(layer[0], lanes=lanes, constants=layer[1] if baked else None)
    writes = [] if baked else unit.writes(*layer)
    stall = data.draw(st.sampled_from([0.0, 0.4]))
    assert sums(run(unit, [Phase(elements(rows), writes)], stall_in=stall, stall_out=stall)) == [expected(layer, rows)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_bits": 3}, "code_bits 3 and 4"),
        ({"value_bits": 7}, "value_bits 7 and 8"),
        ({"beyond": "saturate"}, "beyond saturate and zero"),
    ],
)
def test_layers_that_need_units_of_their_own(changes, message):
    with pytest.raises(HwsimError, match=message):
        Log2Matmul.covering([layer_of(0, bits=30), layer_of(0, bits=30, **changes)])


def test_a_wider_accumulator_is_refused():
    unit = Log2Matmul(layer_of(0, bits=25)[0])
    with pytest.raises(HwsimError, match="accumulator has 26 bits, the unit was built with 25"):
        unit.writes(*layer_of(0, bits=26))


def test_a_wrong_zero_point_is_seen():
    layer = layer_of(120)
    rows = [possible_row(random.Random(3), layer[0], 20, 2, range(12))]
    unit = Log2Matmul(layer[0], lanes=2)
    ((address, word),) = unit.writes(*layer)
    assert sums(run(unit, [Phase(elements(rows), [(address, word ^ 1)])])) != [expected(layer, rows)]


def test_reset_in_a_row_and_a_beat_without_element():
    """After a reset nothing of the row before is left; a beat that keeps no element adds nothing."""
    layer = layer_of(0)
    unit = Log2Matmul(layer[0], constants=layer[1])
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
        for _ in range(8):
            await send(0, 255)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for _ in range(20):
            assert not ctx.get(unit.o.valid)
            await ctx.tick()
        await send(14, 5)
        await send(0, 255, keep=0)
        await send(15, 3, last=1)
        ctx.set(unit.o.ready, 1)
        (payload,) = await ctx.tick().sample(unit.o.payload).until(unit.o.valid)
        assert payload["data"][0] == 2 * 5 + 3

    simulator.add_testbench(bench)
    simulator.run()
