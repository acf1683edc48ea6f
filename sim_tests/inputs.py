"""Inputs made for a layer's constants: the whole input space where it is small, and corners where it is not.

Expected outputs come from the spec (`golden`), as for dumped activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from golden.adalog import AdaLogDecodeSpec, AdaLogMatmulSpec, AdaLogQuantizeSpec
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, ratio_threshold
from golden.log_sqrt2 import LogSqrt2SumsSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, Spec
from golden.vectors import Accumulating, UnitVectors

# Specs of matrix products on logarithmic codes.
Product = Log2MatmulSpec | AdaLogMatmulSpec | LogSqrt2SumsSpec

# Inputs of more bits are tried at every threshold and beside it only.
EXHAUSTIVE_BITS = 20
# Rows at a boundary end with so many elements, chosen among so many of the smallest exponentials.
_FINE, _FINE_STEPS = 3, 60


def exhaustive(layer: UnitVectors) -> UnitVectors | None:
    """The whole input space of a layer's unit, or every boundary in it, with the layer's constants.

    * lookup, AdaLog decode: every code
    * Log-Int-Softmax: every pair of scores, as rows of two
    * log2, AdaLog and log-sqrt2 product: every pair of code and value
    * AdaLog quantize: every value, or every threshold and its neighbours
    * requantize: every value, or both sides of each rounding boundary, and the extremes

    Returns
    -------
    UnitVectors or None
        None for a kind whose input space is never small.
    """
    kind = type(layer.spec)
    if kind not in _EXHAUSTIVE:
        return None
    return vectors_for(layer, *_EXHAUSTIVE[kind](layer.spec, layer.constants))


def boundaries(layer: UnitVectors) -> Iterator[UnitVectors]:
    """Rows of scores whose sums lie on, or a few units beside, the threshold at which a code changes.

    For each distance below the maximum and each code, rows with an element at this distance and others that
    bring the sum there (`golden.log_softmax.ratio_threshold`): the largest that fit, then the three that
    come nearest. Rows of one length make one set of vectors. Other kinds have none.
    """
    spec = layer.spec
    if not isinstance(spec, LogSoftmaxSpec) or spec.row_length < _FINE + 3:
        return
    table = spec.exponentials(layer.constants)
    small = np.flatnonzero(table)[-_FINE_STEPS:]
    triples = np.stack(np.meshgrid(small, small, small, indexing="ij"), axis=-1).reshape(-1, _FINE)
    sums = table[triples].sum(axis=1)
    order = np.argsort(sums, kind="stable")
    triples, sums = triples[order], sums[order]
    rows: dict[int, list[list[int]]] = {}
    for distance in range(len(table)):
        for code in range(1, spec.zero_symbol + 1):
            threshold = (2 * ratio_threshold(code) - 1) * int(table[distance])
            rest = threshold // 2 - int(table[0]) - int(table[distance])
            row = [0, distance]
            while rest > sums[-1] // 2 and len(row) < spec.row_length - _FINE:
                row.append(int(np.searchsorted(-table, -rest)))  # the largest that fits
                rest -= int(table[row[-1]])
            if not sums[0] <= rest <= sums[-1]:
                continue
            near = int(np.searchsorted(sums, rest))
            for place in range(max(near - 2, 0), min(near + 2, len(sums))):
                whole = row + triples[place].tolist()
                rows.setdefault(len(whole), []).append(whole)
    for _, same in sorted(rows.items()):
        yield vectors_for(layer, len(table) - 1 - np.array(same)[None])


def corners(layer: UnitVectors, seed: int = 0) -> Iterator[UnitVectors]:
    """Rows of every kind of length, of extremes, equal and random values, with the layer's constants."""
    dice = np.random.default_rng(seed)
    spec = layer.spec
    if isinstance(spec, Product):
        for length in _lengths(spec.row_length):
            codes = _code_rows(spec, length, dice)
            values = _rows_of_extremes(0, spec.inputs[1].maximum, (length, 5), dice)
            yield vectors_for(layer, codes[None], values[None])
        return
    format = spec.inputs[0]
    # Of the codes past the zero symbol no spec says what they mean.
    highest = spec.zero_symbol if isinstance(spec, AdaLogDecodeSpec) else format.maximum
    channels = spec.channels if isinstance(spec, LayerNormSpec | LookupSpec | RequantizeSpec) else 1
    if isinstance(spec, LayerNormSpec) or channels > 1:
        lengths = [channels]
    else:
        lengths = _lengths(getattr(spec, "row_length", 40))
    for length in lengths:
        yield vectors_for(layer, _rows_of_extremes(format.minimum, highest, (24, length), dice)[None])


def vectors_for(layer: UnitVectors, *inputs: np.ndarray) -> UnitVectors:
    """Vectors of the same unit and constants on other inputs, which count as one image."""
    spec = layer.spec
    sums = spec.accumulate(layer.constants, *inputs) if isinstance(spec, Accumulating) else None
    return UnitVectors(
        spec=spec,
        constants=layer.constants,
        inputs=inputs,
        output=spec.compute(layer.constants, *inputs),
        accumulator=sums,
        network=layer.network,
        recipe=layer.recipe,
        layer=layer.layer,
        images=(0,),
    )


def _every_code(spec: LookupSpec, constants: Constants) -> tuple[np.ndarray, ...]:
    codes = np.arange(1 << spec.input_bits)
    return (codes[None, None] if spec.channels == 1 else np.repeat(codes[None, :, None], spec.channels, axis=2),)


def _every_decoded_code(spec: AdaLogDecodeSpec, constants: Constants) -> tuple[np.ndarray, ...]:
    return (np.arange(spec.zero_symbol + 1)[None, None],)


def _every_score_pair(spec: LogSoftmaxSpec, constants: Constants) -> tuple[np.ndarray, ...]:
    scores = np.arange(1 << spec.score_bits)
    length = min(2, spec.row_length)
    return (np.stack(np.meshgrid(*[scores] * length, indexing="ij"), axis=-1).reshape(1, -1, length),)


def _every_product(spec: Product, constants: Constants) -> tuple[np.ndarray, ...]:
    codes = np.arange(spec.inputs[0].maximum + 1)
    codes = codes[codes <= spec.zero_symbol]
    return codes[None, :, None], np.arange(1 << spec.value_bits)[None, None]


def _every_quantized(spec: AdaLogQuantizeSpec, constants: Constants) -> tuple[np.ndarray, ...]:
    if spec.input_bits <= EXHAUSTIVE_BITS:
        return (np.arange(1 << spec.input_bits)[None, None],)
    thresholds = constants["thresholds"].astype(np.int64)
    values = np.concatenate([thresholds - 1, thresholds, thresholds + 1, [0, spec.input.maximum]])
    return (np.unique(values[(values >= 0) & (values <= spec.input.maximum)])[None, None],)


def _every_boundary(spec: RequantizeSpec, constants: Constants) -> tuple[np.ndarray, ...]:
    if spec.input.bits <= EXHAUSTIVE_BITS:
        values = np.arange(spec.input.minimum, spec.input.maximum + 1)
        return (np.repeat(values[None, :, None], spec.channels, axis=2).reshape(1, -1, spec.channels),)
    zero = int(constants["zero_point"])
    columns = []
    for multiplier, shift in zip(constants["multiplier"].tolist(), constants["shift"].tolist(), strict=True):
        found = [spec.input.minimum, -1, 0, 1, spec.input.maximum]
        for code in range(-1, (1 << spec.output_bits) + 1):
            # The input at which the exact quotient passes code + 1/2, rounded down.
            exact = ((2 * (code - zero) + 1) << shift) // (2 * multiplier) if multiplier else 0
            found += [exact - 1, exact, exact + 1, exact + 2]
        columns.append(np.clip(np.array(found, dtype=object), spec.input.minimum, spec.input.maximum))
    return (np.stack(columns, axis=1).astype(np.int64)[None],)


_EXHAUSTIVE: dict[type[Spec], Callable[..., tuple[np.ndarray, ...]]] = {
    LookupSpec: _every_code,
    AdaLogDecodeSpec: _every_decoded_code,
    LogSoftmaxSpec: _every_score_pair,
    Log2MatmulSpec: _every_product,
    AdaLogMatmulSpec: _every_product,
    LogSqrt2SumsSpec: _every_product,
    AdaLogQuantizeSpec: _every_quantized,
    RequantizeSpec: _every_boundary,
}


def _lengths(longest: int) -> list[int]:
    return sorted({length for length in (1, 2, 3, 7, longest - 1, longest) if 1 <= length <= longest})


def _rows_of_extremes(low: int, high: int, shape: tuple[int, int], dice: np.random.Generator) -> np.ndarray:
    """Rows that are equal, extreme, one peak, nearly equal, and of every magnitude."""
    rows, length = shape
    made = np.empty(shape, np.int64)
    for row in range(rows):
        pick = row % 8
        if pick == 0:
            made[row] = dice.choice([low, high, int(dice.integers(low, high + 1))])
        elif pick == 1:
            made[row] = dice.choice([low, high], length)
        elif pick == 2:
            made[row] = low
            made[row, dice.integers(length)] = high
        elif pick == 3:
            made[row] = high
            made[row, dice.integers(length)] = low
        elif pick == 4:
            centre = int(dice.integers(low, high + 1))
            made[row] = np.clip(centre + dice.integers(-2, 3, length), low, high)
        elif pick == 5:
            made[row] = dice.integers(low, high + 1, length) >> dice.integers(0, high.bit_length(), length)
        else:
            made[row] = dice.integers(low, high + 1, length)
    return made


def _code_rows(spec: Product, length: int, dice: np.random.Generator) -> np.ndarray:
    """Rows of codes whose weights add up to at most one, as those of a softmax do, int64 [9, length]."""
    zero = min(spec.zero_symbol, spec.inputs[0].maximum)
    even = min((length - 1).bit_length(), zero)
    codes = np.minimum(even + dice.integers(0, zero + 1 - even, (9, length)), zero)
    codes[0] = zero
    codes[1] = zero
    codes[1, 0] = 0
    codes[2] = zero
    codes[2, -1] = 0
    codes[3] = even
    codes[4] = zero
    codes[4, : 2 * (length // 2)] = np.maximum(even, 1)
    return codes


def other_constants(layer: UnitVectors, seed: int) -> UnitVectors | None:
    """The same activations with constants that no network chose: a loadable unit must take any.

    Constants are random over their whole width, but such that results do not all saturate. None where
    the spec refuses a few such choices, and for Log-Int-Softmax, whose constants follow from one scale.
    """
    dice = np.random.default_rng(seed)
    if isinstance(layer.spec, LogSoftmaxSpec):
        return None
    for _ in range(8):
        constants = {
            name: dice.integers(constant.format.minimum, constant.format.maximum, constant.shape, endpoint=True)
            for name, constant in layer.spec.constants.items()
        }
        constants |= _sensible(layer.spec, layer.constants, dice)
        try:
            checked = layer.spec.check_constants(constants, layer.layer)
            return vectors_for(replace(layer, constants=checked), *layer.inputs)
        except HwsimError:
            continue
    return None


def _sensible(spec: Spec, constants: Constants, dice: np.random.Generator) -> dict[str, np.ndarray]:
    """Choices for those constants that cannot be just anything."""
    if isinstance(spec, RequantizeSpec):
        # With a small shift the low digits of a product of small values decide.
        widest = min(spec.input.bits + spec.multiplier_bits - spec.output_bits, (1 << spec.shift_bits) - 1)
        shift = dice.integers(0, widest, spec.channels, endpoint=True)
        return {"shift": shift}
    if isinstance(spec, AdaLogQuantizeSpec):
        reach = dice.integers(0, spec.input_bits + 1, 1 << spec.code_bits)
        return {"thresholds": np.sort(dice.integers(0, 1 << reach))[::-1].copy()}
    if isinstance(spec, LayerNormSpec):
        chosen = {name: dice.permutation(constants[name]) for name in ("beta",)}
        return {
            **chosen,
            "alpha": dice.integers(0, 1 << spec.alpha_bits, spec.channels),
            "zero_in": np.array(dice.integers(0, 1 << spec.input_bits)),
            "fraction_bits": constants["fraction_bits"],
        }
    if isinstance(spec, AdaLogDecodeSpec | AdaLogMatmulSpec):
        order = dice.permutation(1 << spec.code_bits)
        shifts = constants["shift_table"][order]
        if dice.random() < 0.5:
            # Past the guard bits there is a fraction to round, or to cut off.
            highest = min(spec.guard_bits + spec.code_bits + 4, spec.constants["shift_table"].format.maximum)
            shifts = dice.integers(0, highest + 1, len(order))
        found = {
            "shift_table": shifts,
            "mantissa_table": np.maximum(constants["mantissa_table"] - dice.integers(0, 2, 1 << spec.code_bits), 0)[
                order
            ],
        }
    else:
        found = {}
    if isinstance(spec, Product):
        highest = 1 << spec.value_bits
        # About as far from the middle as accumulators of a network's width allow.
        found["zero_v"] = constants["zero_v"] + dice.integers(-highest // 5, highest // 5)
        if not isinstance(spec, LogSqrt2SumsSpec):
            found |= {name: constants[name] for name in spec.requantize.constants}
    return found


def some_rows(layer: UnitVectors, count: int = 20) -> UnitVectors:
    """The first rows of the first image of dumped activations; of a product the first matrix and columns."""
    if isinstance(layer.spec, Product):
        codes, values = (array[0].reshape(-1, *array.shape[-2:])[:1] for array in layer.inputs)
        return vectors_for(layer, codes[:, :count], values[..., :8])
    (codes,) = layer.inputs
    return vectors_for(layer, codes[0].reshape(1, -1, codes.shape[-1])[:, :count])


def scaling_of(layer: UnitVectors) -> UnitVectors | None:
    """The requantization behind a product, as vectors of its own unit; None for other kinds."""
    spec = layer.spec
    if not isinstance(spec, Log2MatmulSpec | AdaLogMatmulSpec) or layer.accumulator is None:
        return None
    inner = spec.requantize
    return UnitVectors(
        spec=inner,
        constants={name: layer.constants[name] for name in inner.constants},
        inputs=(layer.accumulator,),
        output=layer.output,
        accumulator=None,
        network=layer.network,
        recipe=layer.recipe,
        layer=layer.layer,
        images=layer.images,
    )
