# amaranth: UnusedElaboratable=no
"""The AdaLog units in Amaranth's simulator against golden."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import unsigned
from hypothesis import given, settings
from hypothesis import strategies as st
from requantization import requantizer, scaling
from stream_bench import Phase, run

from golden.adalog import (
    AdaLogDecodeSpec,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
)
from golden.errors import HwsimError
from rtl.adalog_decode import AdaLogDecode
from rtl.adalog_matmul import AdaLogMatmul
from rtl.adalog_quantize import AdaLogQuantize


def tables(code_bits, q):
    shift, mantissa = adalog_tables(code_bits, q)
    return {"shift_table": shift, "mantissa_table": mantissa}


def elements(results):
    return [[row.elements for row in phase] for phase in results]


def phases_of(unit, layers, rows):
    return [Phase(part, unit.writes(*layer)) for part, layer in zip(rows, layers, strict=True)]


def check_elementwise(unit, layers, rows, **stalls):
    """Rows of each layer one phase after the other, every element against golden."""
    results = run(unit, phases_of(unit, layers, rows), **stalls)
    assert elements(results) == [
        [spec.compute(constants, np.array(row)).tolist() for row in part]
        for part, (spec, constants) in zip(rows, layers, strict=True)
    ]
    return results


def cut(values, lengths):
    """Values as rows of the lengths, the last one takes the rest."""
    rows = []
    for length in lengths:
        rows.append(values[:length])
        values = values[length:]
    return [row for row in [*rows, values] if row]


def check_cycles_of_elementwise(unit, results):
    """Latency from beat to beat, and rows back to back at `cycles_per_row`."""
    for row in results:
        assert row.out_cycles[0] - row.first_in == row.out_cycles[-1] - row.last_in == unit.latency
        assert row.last_in - row.first_in + 1 == unit.cycles_per_row(len(row.elements))
    for row, following in pairwise(results):
        assert following.last_in - row.last_in == unit.cycles_per_row(len(following.elements))


# --- quantize ---


def quantize_layer(input_bits, code_bits, thresholds):
    spec = AdaLogQuantizeSpec(input_bits=input_bits, code_bits=code_bits)
    return spec, spec.check_constants({"thresholds": np.array(thresholds)})


def published_quantize_layer(input_bits, code_bits, q):
    scale = Fraction((1 << input_bits) - 1)
    return quantize_layer(input_bits, code_bits, adalog_thresholds(code_bits, q, scale))


@pytest.mark.parametrize(("code_bits", "q"), [(2, 37), (3, 60), (4, 20), (4, 137), (6, 11)])
def test_quantize_every_value(code_bits, q):
    layer = published_quantize_layer(9, code_bits, q)
    unit = AdaLogQuantize(layer[0], lanes=3)
    check_elementwise(unit, [layer], [cut(list(range(512)), [1, 2, 3, 197, 50])])


@pytest.mark.parametrize(("code_bits", "q"), [(3, 40), (4, 20), (4, 11), (8, 9)])
def test_quantize_about_every_threshold(code_bits, q):
    layer = published_quantize_layer(25, code_bits, q)
    edges = {0, (1 << 25) - 1}
    for threshold in layer[1]["thresholds"].tolist():
        edges |= {max(threshold - 1, 0), threshold, threshold + 1}
    unit = AdaLogQuantize(layer[0], constants=layer[1])
    values = sorted(edges)
    (results,) = run(unit, [Phase([values])])
    assert results[0].elements == [sum(v <= t for t in layer[1]["thresholds"].tolist()) for v in values]


@pytest.mark.parametrize("thresholds", [[0] * 8, [63] * 8, [63, 63, 40, 40, 40, 40, 40, 0], list(range(7, -1, -1))])
def test_quantize_equal_and_extreme_thresholds(thresholds):
    layer = quantize_layer(6, 3, thresholds)
    check_elementwise(AdaLogQuantize(layer[0], lanes=4), [layer], [[list(range(64))]])


def test_quantize_reload_and_stalls():
    layers = [published_quantize_layer(bits, 4, q) for bits, q in ((12, 20), (9, 37), (12, 100))]
    unit = AdaLogQuantize.covering(layers, lanes=2)
    dice = random.Random(1)
    rows = [
        [[dice.randrange(1 << spec.input_bits) for _ in range(dice.randint(1, 9))] for _ in range(12)]
        for spec, _ in layers
    ]
    check_elementwise(unit, layers, rows, stall_in=0.3, stall_out=0.4, seed=4)


@pytest.mark.parametrize("lanes", [1, 4])
def test_quantize_cycles(lanes):
    layer = published_quantize_layer(10, 5, 30)
    unit = AdaLogQuantize(layer[0], lanes=lanes)
    (results,) = check_elementwise(unit, [layer], [cut(list(range(0, 1024, 9)), [1, 1, 8, 5, 50])])
    check_cycles_of_elementwise(unit, results)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_quantize_random_specs(data):
    bits = data.draw(st.integers(1, 32))
    code_bits = data.draw(st.integers(2, 5))
    value = st.integers(0, (1 << bits) - 1)
    thresholds = data.draw(st.lists(value, min_size=1 << code_bits, max_size=1 << code_bits))
    layer = quantize_layer(bits, code_bits, sorted(thresholds, reverse=True))
    rows = data.draw(st.lists(st.lists(st.one_of(value, st.sampled_from(thresholds)), min_size=1), min_size=1))
    unit = AdaLogQuantize(layer[0], lanes=data.draw(st.integers(1, 3)))
    check_elementwise(unit, [layer], [rows], stall_in=0.2, stall_out=0.2)


def test_quantize_refuses_other_codes_and_wider_inputs():
    narrow, wide = published_quantize_layer(9, 4, 20), published_quantize_layer(10, 4, 20)
    with pytest.raises(HwsimError, match="code_bits 3 and 4"):
        AdaLogQuantize.covering([narrow, published_quantize_layer(9, 3, 20)])
    with pytest.raises(HwsimError, match="input has 10 bits, the unit was built with 9"):
        AdaLogQuantize(narrow[0]).writes(*wide)


def test_quantize_every_wrong_threshold_is_seen():
    layer = published_quantize_layer(9, 3, 40)
    unit = AdaLogQuantize(layer[0], lanes=4)
    writes = unit.writes(*layer)
    wrong = [[(a, t - (a == place)) for a, t in writes] for place in range(len(writes)) if writes[place][1]]
    results = run(unit, [Phase([list(range(512))], part) for part in [writes, *wrong]])
    right = layer[0].compute(layer[1], np.arange(512)).tolist()
    assert [row.elements == right for (row,) in results] == [True] + [False] * len(wrong)


# --- decode ---


def decode_layer(code_bits, guard_bits, largest_shift, constants):
    spec = AdaLogDecodeSpec(code_bits=code_bits, guard_bits=guard_bits, largest_shift=largest_shift)
    return spec, spec.check_constants(constants)


@pytest.mark.parametrize(
    ("code_bits", "q", "guard_bits", "largest_shift"),
    [(4, 20, 8, 8), (4, 20, 0, 63), (4, 20, 3, 63), (4, 137, 16, 40), (3, 10, 1, 1), (6, 70, 32, 63), (8, 5, 10, 30)],
)
def test_decode_every_code(code_bits, q, guard_bits, largest_shift):
    layer = decode_layer(code_bits, guard_bits, largest_shift, tables(code_bits, q))
    unit = AdaLogDecode(layer[0], lanes=3)
    codes = list(range((1 << code_bits) + 1))
    (results,) = check_elementwise(unit, [layer], [cut(codes, [1, 4])])
    shift, mantissa = adalog_tables(code_bits, q)
    exact = [
        round(Fraction(int(m) << guard_bits, 1 << int(s))) if s <= largest_shift else 0
        for m, s in zip(mantissa, shift, strict=True)
    ]
    assert [value for row in results for value in row.elements] == [*exact, 0]


def test_decode_every_rounding():
    """Every mantissa at every shift, ties included."""
    for guard_bits in (0, 2):
        cases = [(shift, half) for shift in range(10) for half in (range(8), range(8, 16))]
        layers = [
            decode_layer(3, guard_bits, 9, {"shift_table": np.full(8, shift), "mantissa_table": np.array(half)})
            for shift, half in cases
        ]
        unit = AdaLogDecode.covering(layers, lanes=2)
        results = run(unit, phases_of(unit, layers, [[list(range(9))]] * len(layers)))
        for (shift, half), (row,) in zip(cases, results, strict=True):
            assert row.elements == [*(round(Fraction(m << guard_bits, 1 << shift)) for m in half), 0]


def test_decode_reload_and_stalls():
    layers = [
        decode_layer(4, guard, largest, tables(4, q))
        for guard, largest, q in ((8, 8, 20), (4, 30, 60), (12, 15, 137), (0, 2, 10))
    ]
    unit = AdaLogDecode.covering(layers, lanes=2)
    dice = random.Random(1)
    rows = [[[dice.randrange(17) for _ in range(dice.randint(1, 9))] for _ in range(12)] for _ in layers]
    check_elementwise(unit, layers, rows, stall_in=0.3, stall_out=0.4, seed=4)


@pytest.mark.parametrize(("guard_bits", "largest_shift"), [(8, 8), (5, 60), (0, 0)])
def test_decode_cycles(guard_bits, largest_shift):
    layer = decode_layer(4, guard_bits, largest_shift, tables(4, 20))
    unit = AdaLogDecode(layer[0], lanes=2, constants=layer[1])
    (results,) = run(unit, [Phase(cut([n % 17 for n in range(60)], [1, 1, 8, 5, 30]))])
    check_cycles_of_elementwise(unit, results)


def test_decode_refuses_more_guard_bits_and_farther_shifts():
    unit = AdaLogDecode(decode_layer(4, 4, 6, tables(4, 20))[0])
    with pytest.raises(HwsimError, match="5 guard_bits, the unit was built with 4"):
        unit.writes(*decode_layer(4, 5, 5, tables(4, 20)))
    with pytest.raises(HwsimError, match="largest_shift 7 is 3 past its guard_bits, the unit was built for 2"):
        unit.writes(*decode_layer(4, 4, 7, tables(4, 20)))


def test_decode_every_wrong_table_entry_is_seen():
    layer = decode_layer(4, 8, 8, tables(4, 20))
    unit = AdaLogDecode(layer[0], lanes=4)
    writes = unit.writes(*layer)
    wrong = [
        [(a, word ^ ((a == place) << bit)) for a, word in writes]
        for place in range(16)
        for bit in (0, len(unit.w.payload.data) - 1)
    ]
    results = run(unit, [Phase([list(range(17))], part) for part in [writes, *wrong]])
    right = layer[0].compute(layer[1], np.arange(17)).tolist()
    assert [row.elements == right for (row,) in results] == [True] + [False] * len(wrong)


# --- matrix product ---


def matmul_layer(zero_v, q, guard_bits, largest_shift, *, bits=40, **changes):
    fields = {
        "code_bits": 4,
        "value_bits": 8,
        "row_length": 50,
        "guard_bits": guard_bits,
        "largest_shift": largest_shift,
        "requantize": requantizer(bits),
    }
    spec = AdaLogMatmulSpec(**(fields | changes))
    return spec, spec.check_constants({"zero_v": np.array(zero_v), **tables(spec.code_bits, q), **scaling(1, 0)})


def sums_of(layer, rows):
    spec, constants = layer
    return [
        spec.accumulate(constants, np.array([[code for code, _ in row]]), np.array([v for _, v in row]))[0].tolist()
        for row in rows
    ]


def pairs(rows):
    return [[{"code": code, "values": list(values)} for code, values in row] for row in rows]


def check_matmul(unit, layers, rows, **stalls):
    results = run(unit, phases_of(unit, layers, [pairs(part) for part in rows]), **stalls)
    assert elements(results) == [sums_of(layer, part) for layer, part in zip(layers, rows, strict=True)]
    return results


def random_rows(dice, spec, count, lanes):
    values = [0, 1, (1 << spec.value_bits) - 1, 1 << spec.value_bits - 1]
    return [
        [
            (
                dice.randrange(spec.zero_symbol + 1),
                [dice.choice([*values, dice.randrange(1 << spec.value_bits)]) for _ in range(lanes)],
            )
            for _ in range(dice.randint(1, spec.row_length))
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("zero_v", [-256, 0, 255])
@pytest.mark.parametrize(("q", "guard_bits", "largest_shift"), [(20, 8, 8), (20, 2, 63), (137, 0, 30), (10, 4, 4)])
def test_matmul_corner_rows(zero_v, q, guard_bits, largest_shift):
    layer = matmul_layer(zero_v, q, guard_bits, largest_shift)
    extremes = [[0, 255], [255, 0]]
    rows = [[(code, v)] * 50 for code in (0, 16) for v in extremes]
    rows += [[(code, v)] for code in range(17) for v in extremes]
    rows += [[(code % 17, v) for code in range(50)] for v in extremes]
    check_matmul(AdaLogMatmul(layer[0], lanes=2), [layer], [rows])


@pytest.mark.parametrize("guard_bits", [0, 3, 12])
def test_matmul_terms_are_floors_of_fractions(guard_bits):
    """Each code with values of both signs, by Fractions."""
    layer = matmul_layer(100, 60, guard_bits, 21)
    inputs = [(code, value) for code in range(17) for value in (0, 1, 98, 99, 100, 101, 102, 255)]
    unit = AdaLogMatmul(layer[0])
    (results,) = run(unit, phases_of(unit, [layer], [pairs([[(code, [value])] for code, value in inputs])]))
    shift, mantissa = adalog_tables(4, 60)
    assert shift[15] == 24
    for (code, value), row in zip(inputs, results, strict=True):
        counts = code < 16 and shift[code] <= 21
        term = Fraction(int(mantissa[code]) * (value - 100) << guard_bits, 1 << int(shift[code])) if counts else 0
        assert row.elements == [term // 1], (code, value)


def test_matmul_default_guard_bits_lose_nothing():
    guard_bits = lossless_guard_bits(4, 20)
    layer = matmul_layer(100, 20, guard_bits, guard_bits)
    rows = random_rows(random.Random(8), layer[0], 6, 3)
    results = check_matmul(AdaLogMatmul(layer[0], lanes=3), [layer], [rows])
    shift, mantissa = adalog_tables(4, 20)
    weights = [Fraction(int(m), 1 << int(s)) for m, s in zip(mantissa, shift, strict=True)] + [Fraction(0)]
    for row, (out,) in zip(rows, [[r.elements] for r in results[0]], strict=True):
        exact = [sum(weights[code] * (v[lane] - 100) for code, v in row) for lane in range(3)]
        assert [Fraction(value, 1 << guard_bits) for value in out] == exact


def test_matmul_reload_and_stalls():
    layers = [
        matmul_layer(zero_v, q, guard, largest, row_length=length)
        for zero_v, q, guard, largest, length in (
            (128, 20, 8, 8, 30),
            (-256, 60, 4, 30, 9),
            (255, 137, 12, 15, 12),
            (0, 10, 0, 2, 5),
        )
    ]
    unit = AdaLogMatmul.covering(layers, lanes=2)
    dice = random.Random(6)
    rows = [random_rows(dice, spec, 6, 2) for spec, _ in layers]
    check_matmul(unit, layers, rows, stall_in=0.3, stall_out=0.6, seed=2)


@pytest.mark.parametrize(("code_bits", "guard_bits"), [(3, 0), (4, 8), (6, 20)])
def test_matmul_cycles(code_bits, guard_bits):
    layer = matmul_layer(3, 20, guard_bits, guard_bits, code_bits=code_bits, bits=42)
    unit = AdaLogMatmul(layer[0], lanes=2, constants=layer[1])
    lengths = (50, 1, 2, 3, 1, 1, 50)
    (results,) = run(unit, [Phase(pairs([[(1, [1, 2])] * length for length in lengths]))])
    assert [row.out_cycles[0] - row.last_in for row in results] == [unit.latency] * len(lengths)
    assert [row.last_in - row.first_in + 1 for row in results] == list(lengths)
    for (row, following), length in zip(pairwise(results), lengths[1:], strict=True):
        assert following.last_in - row.last_in == unit.cycles_per_row(length) == length


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_matmul_random_specs(data):
    code_bits = data.draw(st.integers(2, 5))
    value_bits = data.draw(st.sampled_from([1, 4, 8, 12]))
    guard_bits = data.draw(st.integers(0, 20))
    entries = 1 << code_bits
    spec = AdaLogMatmulSpec(
        code_bits=code_bits,
        value_bits=value_bits,
        row_length=8,
        guard_bits=guard_bits,
        largest_shift=data.draw(st.integers(0, 63)),
        requantize=requantizer(47),
    )
    table = st.lists(st.integers(0, 1023), min_size=entries, max_size=entries)
    near = st.lists(st.integers(0, 40), min_size=entries, max_size=entries)
    mantissas = st.lists(st.integers(0, 2 * entries - 1), min_size=entries, max_size=entries)
    limit = 1 << value_bits
    constants = spec.check_constants(
        {
            "shift_table": np.array(data.draw(st.one_of(near, table))),
            "mantissa_table": np.array(data.draw(mantissas)),
            "zero_v": np.array(data.draw(st.integers(-limit, limit - 1))),
            **scaling(1, 0),
        }
    )
    dice = random.Random(data.draw(st.integers(0, 1000)))
    lanes = data.draw(st.integers(1, 2))
    layer = (spec, constants)
    unit = AdaLogMatmul(spec, lanes=lanes)
    check_matmul(unit, [layer], [random_rows(dice, spec, 5, lanes)], stall_in=0.2, stall_out=0.2)


def test_matmul_refuses_what_it_does_not_cover():
    unit = AdaLogMatmul(matmul_layer(0, 20, 4, 6)[0])
    assert unit.w.payload.address.shape() == unsigned(5)
    with pytest.raises(HwsimError, match="value_bits 7 and 8"):
        AdaLogMatmul.covering([matmul_layer(0, 20, 4, 6), matmul_layer(0, 20, 4, 6, value_bits=7)])
    with pytest.raises(HwsimError, match="5 guard_bits, the unit was built with 4"):
        unit.writes(*matmul_layer(0, 20, 5, 5))
    with pytest.raises(HwsimError, match="largest_shift 7 is 3 past its guard_bits, the unit was built for 2"):
        unit.writes(*matmul_layer(0, 20, 4, 7))
    with pytest.raises(HwsimError, match="accumulator has 41 bits, the unit was built with 40"):
        unit.writes(*matmul_layer(0, 20, 4, 6, bits=41))


def test_matmul_every_wrong_constant_is_seen():
    layer = matmul_layer(100, 20, 8, 8)
    unit = AdaLogMatmul(layer[0])
    writes = unit.writes(*layer)
    wrong = [[(a, word ^ (a == place)) for a, word in writes] for place, _ in writes]
    rows = [[(code, [255])] for code in range(17)]
    results = run(unit, [Phase(pairs(rows), part) for part in [writes, *wrong]])
    right = sums_of(layer, rows)
    assert [[row.elements for row in phase] == right for phase in results] == [True] + [False] * len(wrong)
