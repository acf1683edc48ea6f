"""A small example of every kind of unit, with rows of any length: for tests that work on all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from golden.adalog import (
    AdaLogDecodeSpec,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
)
from golden.layernorm import LayerNormSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.log_sqrt2 import LogSqrt2SumsSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat, Spec
from rtl.catalog import Rows

# Elements of the longest row, and channels of the LayerNorm.
LONGEST = 21
CODE_BITS = 4


@dataclass(frozen=True)
class Example:
    """A unit and rows for it.

    Attributes
    ----------
    spec : Spec
    constants : Constants
    rows : callable
        Takes a number of rows, their length, a number of lanes and a Generator; gives `Rows` of that length.
    layer, images
        As of `golden.vectors.UnitVectors`, for reports.
    """

    spec: Spec
    constants: Constants
    rows: Callable[[int, int, int, np.random.Generator], Rows]
    layer: str
    images: tuple[int, ...] = (0,)


def example(kind: str, seed: int = 0) -> Example:
    """The example of a kind of `rtl.catalog.UNITS`; examples of other seeds have other constants."""
    return _MAKERS[kind](np.random.default_rng(seed), f"{kind} of seed {seed}")


def _elementwise(spec: Any, constants: dict[str, np.ndarray], layer: str) -> Example:
    checked = spec.check_constants(constants)

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        codes = dice.integers(spec.input.minimum, spec.input.maximum, (count, length), endpoint=True)
        return Rows((codes,), spec.compute(checked, codes))

    return Example(spec, checked, rows, layer)


def _lookup(dice: np.random.Generator, layer: str) -> Example:
    return _elementwise(LookupSpec(input_bits=6, output_bits=5), {"table": dice.integers(0, 32, (1, 64))}, layer)


def _scaling(dice: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "multiplier": dice.integers(1 << 11, 1 << 12, 1),
        "shift": dice.integers(14, 20, 1),
        "zero_point": np.array(dice.integers(100, 150)),
    }


def _requantizer(bits: int) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(bits, signed=True), output_bits=8, multiplier_bits=12, shift_bits=6, channels=1
    )


def _requantize(dice: np.random.Generator, layer: str) -> Example:
    return _elementwise(_requantizer(16), _scaling(dice), layer)


def _adalog_quantize(dice: np.random.Generator, layer: str) -> Example:
    thresholds = adalog_thresholds(CODE_BITS, int(dice.integers(10, 30)), Fraction(1 << 10))
    return _elementwise(AdaLogQuantizeSpec(input_bits=11, code_bits=CODE_BITS), {"thresholds": thresholds}, layer)


def _adalog_decode(dice: np.random.Generator, layer: str) -> Example:
    shift, mantissa = adalog_tables(CODE_BITS, int(dice.integers(10, 30)))
    spec = AdaLogDecodeSpec(code_bits=CODE_BITS, guard_bits=4, largest_shift=63)
    checked = spec.check_constants({"shift_table": shift, "mantissa_table": mantissa})

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        codes = dice.integers(0, (1 << CODE_BITS) + 1, (count, length))
        return Rows((codes,), spec.compute(checked, codes))

    return Example(spec, checked, rows, layer)


def _softmax() -> LogSoftmaxSpec:
    return LogSoftmaxSpec(score_bits=6, code_bits=CODE_BITS, fraction_bits=12, row_length=LONGEST, polynomial_bits=9)


def _log_softmax(dice: np.random.Generator, layer: str) -> Example:
    spec = _softmax()
    checked = spec.check_constants(exponential_constants(float(dice.uniform(0.1, 0.3))))

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        scores = dice.integers(0, 64, (count, length)) >> dice.integers(0, 5, (count, 1))
        return Rows((scores,), replace(spec, row_length=length).compute(checked, scores))

    return Example(spec, checked, rows, layer)


def _layernorm(dice: np.random.Generator, layer: str) -> Example:
    spec = LayerNormSpec(
        channels=LONGEST, input_bits=6, output_bits=6, alpha_bits=1, mantissa_bits=10, radicand_bits=12,
        gamma_bits=8, beta_bits=12,
    )  # fmt: skip
    checked = spec.check_constants(
        {
            "zero_in": np.array(dice.integers(20, 40)),
            "alpha": dice.integers(0, 2, LONGEST),
            "gamma": dice.integers(-40, 40, LONGEST),
            "beta": dice.integers(20 << 5, 40 << 5, LONGEST),
            "fraction_bits": np.array(5),
        }
    )

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        """Channels that lack are zero, those past the last one are dropped."""
        codes = dice.integers(0, 64, (count, length))
        channels = np.full((count, LONGEST), int(checked["zero_in"]))
        channels[:, : min(length, LONGEST)] = codes[:, :LONGEST]
        return Rows((codes,), spec.compute(checked, channels))

    return Example(spec, checked, rows, layer)


def _product(spec: Any, constants: dict[str, np.ndarray], codes_of: Any, layer: str) -> Example:
    checked = spec.check_constants(constants)

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        codes = codes_of(count, length, dice)
        values = dice.integers(0, 64, (count, length, lanes))
        sums = replace(spec, row_length=length).accumulate(checked, codes[:, None, :], values)
        return Rows((codes, values), sums[:, 0, :])

    return Example(spec, checked, rows, layer)


def _log2_matmul(dice: np.random.Generator, layer: str) -> Example:
    """Codes are those of a softmax, for which the width of the sums is proven."""
    spec = Log2MatmulSpec(code_bits=CODE_BITS, value_bits=6, row_length=LONGEST, requantize=_requantizer(25))
    softmax = _log_softmax(dice, layer)

    def codes(count: int, length: int, dice: np.random.Generator) -> np.ndarray:
        return softmax.rows(count, length, 1, dice).output

    return _product(spec, {"zero_v": np.array(dice.integers(10, 50)), **_scaling(dice)}, codes, layer)


def _adalog_matmul(dice: np.random.Generator, layer: str) -> Example:
    shift, mantissa = adalog_tables(CODE_BITS, int(dice.integers(10, 30)))
    spec = AdaLogMatmulSpec(
        code_bits=CODE_BITS,
        value_bits=6,
        row_length=LONGEST,
        guard_bits=4,
        largest_shift=63,
        requantize=_requantizer(40),
    )
    constants = {"zero_v": np.array(dice.integers(10, 50)), "shift_table": shift, "mantissa_table": mantissa}

    def codes(count: int, length: int, dice: np.random.Generator) -> np.ndarray:
        return dice.integers(0, (1 << CODE_BITS) + 1, (count, length))

    return _product(spec, {**constants, **_scaling(dice)}, codes, layer)


def _log_sqrt2_sums(dice: np.random.Generator, layer: str) -> Example:
    """Fewer guard bits than would lose nothing, so that terms are rounded down."""
    spec = LogSqrt2SumsSpec(code_bits=CODE_BITS, value_bits=6, row_length=LONGEST, guard_bits=4, accumulator_bits=17)
    checked = spec.check_constants({"zero_v": np.array(dice.integers(10, 50))})

    def rows(count: int, length: int, lanes: int, dice: np.random.Generator) -> Rows:
        codes = dice.integers(0, (1 << CODE_BITS) + 1, (count, length))
        values = dice.integers(0, 64, (count, length, lanes))
        sums = replace(spec, row_length=length).compute(checked, codes[:, None, :], values)
        return Rows((codes, values), np.concatenate([sums[:, 0, :, 0], sums[:, 0, :, 1]], axis=1))

    return Example(spec, checked, rows, layer)


_MAKERS: dict[str, Callable[[np.random.Generator, str], Example]] = {
    "adalog_decode": _adalog_decode,
    "adalog_matmul": _adalog_matmul,
    "adalog_quantize": _adalog_quantize,
    "layernorm": _layernorm,
    "log2_matmul": _log2_matmul,
    "log_softmax": _log_softmax,
    "log_sqrt2_sums": _log_sqrt2_sums,
    "lookup": _lookup,
    "requantize": _requantize,
}
