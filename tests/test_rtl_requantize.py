# amaranth: UnusedElaboratable=no
"""The requantize unit in Amaranth's simulator against golden and Fractions."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requantization import clipped
from stream_bench import Phase, run

from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from rtl.block_multiplier import BlockMultiplier
from rtl.requantize import Requantize


def layer_of(multiplier, shift, zero_point, *, bits=25, signed=True, **changes):
    multiplier, shift = np.atleast_1d(multiplier), np.atleast_1d(shift)
    fields = {"output_bits": 8, "multiplier_bits": 16, "shift_bits": 6, "channels": len(multiplier)}
    spec = RequantizeSpec(input=IntFormat(bits, signed=signed), **(fields | changes))
    constants = {"multiplier": multiplier, "shift": shift, "zero_point": np.array(zero_point)}
    return spec, spec.check_constants(constants)


def expected(layer, rows):
    """Codes of each row, by golden where a row has all channels, else by Fractions."""
    spec, constants = layer
    multiplier, shift = constants["multiplier"].tolist(), constants["shift"].tolist()
    codes = []
    for row in rows:
        if spec.channels in (1, len(row)):
            codes.append(spec.compute(constants, np.array(row)).tolist())
        else:
            values = [
                Fraction(x * m, 1 << n) + int(constants["zero_point"])
                for x, m, n in zip(row, multiplier, shift, strict=False)
            ]
            codes.append([clipped(value, spec.output_bits) for value in values])
    return codes


def check(unit, layers, rows, *, baked=False, **stalls):
    phases = [Phase(part, [] if baked else unit.writes(*layer)) for part, layer in zip(rows, layers, strict=True)]
    results = run(unit, phases, **stalls)
    assert [[row.elements for row in phase] for phase in results] == [
        expected(layer, part) for part, layer in zip(rows, layers, strict=True)
    ]
    return results


def cut(values, length):
    return [values[start : start + length] for start in range(0, len(values), length)]


def inputs_about(layer, channel=0):
    """Inputs at the edges of the format, of the output range, and at ties."""
    spec, constants = layer
    multiplier, shift = int(constants["multiplier"][channel]), int(constants["shift"][channel])
    low, high = spec.input.minimum, spec.input.maximum
    found = {low, low + 1, -1, 0, 1, high - 1, high}
    for code in (-1, 0, 1, (1 << spec.output_bits - 1), (1 << spec.output_bits) - 1, 1 << spec.output_bits):
        for half in (Fraction(0), Fraction(1, 2)):
            target = Fraction((code - int(constants["zero_point"]) + half) * (1 << shift), max(multiplier, 1))
            found |= {target // 1 + step for step in (-1, 0, 1)}
    return sorted({min(max(int(x), low), high) for x in found})


@pytest.mark.parametrize("zero_point", [-256, 0, 3, 128, 255])
@pytest.mark.parametrize(("multiplier", "shift"), [(40001, 31), (65535, 0), (1, 53), (0, 20), (32768, 16), (9, 3)])
def test_corner_inputs(multiplier, shift, zero_point):
    layer = layer_of(multiplier, shift, zero_point)
    for blocks in (False, True):
        unit = Requantize(layer[0], lanes=2, multiplier_blocks=blocks)
        check(unit, [layer], [cut(inputs_about(layer), 7)])


@pytest.mark.parametrize(
    ("multiplier", "shift", "zero_point"), [(3, 3, 1), (1, 1, 0), (1, 1, 3), (5, 5, -2), (7, 0, 2)]
)
def test_every_input_against_fractions(multiplier, shift, zero_point):
    """All of the input space; every tie of the width is among it."""
    layer = layer_of(multiplier, shift, zero_point, bits=9, output_bits=4, multiplier_bits=3, shift_bits=3)
    unit = Requantize(layer[0], lanes=4, constants=layer[1])
    values = list(range(-256, 256))
    (results,) = run(unit, [Phase([values])])
    exact = [clipped(Fraction(x * multiplier, 1 << shift) + zero_point, 4) for x in values]
    assert results[0].elements == exact


@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_channels(lanes):
    """A row of all channels, shorter rows, and the next row from channel 0 again."""
    dice = random.Random(lanes)
    channels = 11
    multiplier = [dice.randrange(1 << 16) for _ in range(channels)]
    shift = [dice.randrange(24, 40) for _ in range(channels)]
    layer = layer_of(multiplier, shift, 17)
    rows = [
        [dice.randint(-(1 << 24), (1 << 24) - 1) for _ in range(length)] for length in (11, 1, 11, 4, 11, 11, 2, 11)
    ]
    check(Requantize(layer[0], lanes=lanes), [layer], [rows], stall_in=0.2, stall_out=0.3)
    baked = Requantize(layer[0], lanes=lanes, constants=layer[1], multiplier_blocks=True)
    check(baked, [layer], [rows], baked=True)


def test_channels_up_to_a_full_memory():
    dice = random.Random(9)
    layer = layer_of([dice.randrange(1 << 16) for _ in range(64)], [30] * 64, -7)
    rows = [[dice.randint(-(1 << 24), (1 << 24) - 1) for _ in range(64)] for _ in range(2)]
    check(Requantize(layer[0], lanes=2), [layer], [rows])


def test_a_row_past_the_last_channel_keeps_the_last_constants():
    multiplier = [1, 2, 3, 4, 5, 6]
    layer = layer_of(multiplier, [0] * 6, 0, output_bits=8)
    unit = Requantize(layer[0], lanes=2)
    (results,) = run(unit, [Phase([[1] * 11, [1] * 6], unit.writes(*layer))])
    assert [row.elements for row in results] == [[1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 5], multiplier]


def test_reload_of_other_channels_widths_and_signs():
    dice = random.Random(4)
    layers = [
        layer_of([dice.randrange(1 << 16) for _ in range(10)], [dice.randrange(40) for _ in range(10)], 5),
        layer_of(30001, 34, 131, bits=31),
        layer_of([dice.randrange(1 << 12) for _ in range(4)], [12] * 4, -3, bits=12, multiplier_bits=12, shift_bits=4),
        layer_of(40000, 33, 9, bits=28, signed=False),
    ]
    unit = Requantize.covering(layers, lanes=3)
    rows = [
        [
            [
                dice.randint(spec.input.minimum, spec.input.maximum)
                for _ in range(spec.channels if spec.channels > 1 else 37)
            ]
            for _ in range(3)
        ]
        for spec, _ in layers
    ]
    check(unit, layers, rows, stall_in=0.3, stall_out=0.3, seed=1)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("lanes", "channels", "bits", "multiplier_bits"), [(1, 1, 25, 16), (4, 12, 33, 24), (2, 7, 14, 8)]
)
def test_cycles(lanes, channels, bits, multiplier_bits, blocks):
    layer = layer_of([77] * channels, [5] * channels, 1, bits=bits, multiplier_bits=multiplier_bits)
    unit = Requantize(layer[0], lanes=lanes, multiplier_blocks=blocks)
    rows = [list(range(length)) for length in (7, 1, 1, 5, 7)]
    (results,) = check(unit, [layer], [rows])
    for row in results:
        assert row.out_cycles[0] - row.first_in == row.out_cycles[-1] - row.last_in == unit.latency
    for row, following in pairwise(results):
        assert following.last_in - row.last_in == unit.cycles_per_row(len(following.elements))
        assert following.first_in == row.last_in + 1


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_specs(data):
    signed = data.draw(st.booleans())
    bits = data.draw(st.integers(1 + signed, 40))
    multiplier_bits = data.draw(st.integers(1, min(31, 62 - bits)))
    shift_bits = data.draw(st.integers(1, 6))
    output_bits = data.draw(st.integers(1, 10))
    channels = data.draw(st.sampled_from([1, 1, 2, 5]))
    shifts = st.integers(0, min((1 << shift_bits) - 1, 61 - output_bits))
    layer = layer_of(
        [data.draw(st.integers(0, (1 << multiplier_bits) - 1)) for _ in range(channels)],
        [data.draw(shifts) for _ in range(channels)],
        data.draw(st.integers(-(1 << output_bits), (1 << output_bits) - 1)),
        bits=bits,
        signed=signed,
        output_bits=output_bits,
        multiplier_bits=multiplier_bits,
        shift_bits=shift_bits,
    )
    spec, constants = layer
    rows = [[values[n % len(values)] for n in range(8)] for values in [inputs_about(layer, c) for c in range(channels)]]
    rows += [inputs_about(layer, channels - 1)] if channels == 1 else []
    unit = Requantize(spec, lanes=data.draw(st.integers(1, 3)), multiplier_blocks=data.draw(st.booleans()))
    rows = [row[:channels] if channels > 1 else row for row in rows]
    (results,) = run(unit, [Phase(rows, unit.writes(*layer))], stall_in=0.2, stall_out=0.2)
    for row, result in zip(rows, results, strict=True):
        exact = []
        for n, x in enumerate(row):
            m, shift = (int(constants[name][n % channels]) for name in ("multiplier", "shift"))
            exact.append(clipped(Fraction(x * m, 1 << shift) + int(constants["zero_point"]), output_bits))
        assert result.elements == exact


@pytest.mark.parametrize(
    ("value_bits", "factor_bits", "blocks"),
    [(18, 17, 1), (19, 17, 2), (25, 16, 2), (35, 17, 2), (25, 18, 4), (31, 31, 4), (36, 18, 6), (2, 1, 1)],
)
def test_multiplier_blocks(value_bits, factor_bits, blocks):
    assert BlockMultiplier(value_bits, factor_bits, lanes=3).blocks == 3 * blocks


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layer_of(1, 1, 0, output_bits=7), "output_bits 7 and 8"),
        (layer_of(1, 1, 0, multiplier_bits=17), "multiplier_bits 17, the unit was built with 16"),
        (layer_of([1, 1, 1], [1, 1, 1], 0), "channels 3, the unit was built with 2"),
        (layer_of(1, 1, 0, bits=26), "input is signed 26-bit, the unit was built for signed 25-bit"),
        (layer_of(1, 1, 0, bits=25, signed=False), "input is unsigned 25-bit, the unit was built for signed 25-bit"),
    ],
)
def test_layers_that_are_not_covered(layer, message):
    unit = Requantize(layer_of([1, 1], [1, 1], 0)[0])
    with pytest.raises(HwsimError, match=message):
        unit.writes(*layer)


def test_layers_that_no_unit_covers():
    with pytest.raises(HwsimError, match="output_bits 7 and 8"):
        Requantize.covering([layer_of(1, 1, 0), layer_of(1, 1, 0, output_bits=7)])
    with pytest.raises(HwsimError, match="exceeds 62 bits"):
        Requantize.covering([layer_of(1, 1, 0, bits=40), layer_of(1, 1, 0, multiplier_bits=31)])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_constant_is_seen(place):
    """A bit of the first multiplier, of the second shift, of the zero point."""
    layer = layer_of([40000, 50000], [20, 21], 100)
    rows = [[x, x] for x in range(-5000, 5000, 500)]
    unit = Requantize(layer[0])
    writes = unit.writes(*layer)
    address, word = writes[place]
    writes[place] = (address, word ^ (1 << (13, 16, 0)[place]))
    (results,) = run(unit, [Phase(rows, writes)])
    assert [row.elements for row in results] != expected(layer, rows)
