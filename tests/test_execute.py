"""The compiled kernels give the bits of the reference, for random units of every kind."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_cases import MAKERS, Case

from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.softmax import SoftmaxSpec
from golden.spec import Spec
from hwsim.execute import numba_kernels, product_kernels, softmax_kernels

KERNELS = numba_kernels.KERNELS | softmax_kernels.KERNELS | product_kernels.KERNELS


def run_both(case: Case) -> tuple[np.ndarray, np.ndarray]:
    spec, constants, inputs = case
    checked = spec.check_constants(constants)
    codes = tuple(format.check(array, "input") for format, array in zip(spec.inputs, inputs, strict=True))
    reference = spec.compute(checked, *codes)
    assert reference.dtype == spec.output.dtype
    spec.output.check(reference, "output")
    return reference, KERNELS[spec.kind](spec, checked)(*codes)


@pytest.mark.parametrize("unit", MAKERS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_kernel_equals_reference(unit: str, seed: int) -> None:
    reference, fast = run_both(MAKERS[unit](np.random.default_rng(seed)))
    assert fast.dtype == reference.dtype
    assert np.array_equal(fast, reference)


# Widths that some of the random units of a kind must have at least.
_PRODUCT = {"requantize.output_bits": 11, "requantize.multiplier_bits": 21}
_LINEAR = {"input_bits": 11, "weight_bits": 9, "bias_fraction_bits": 4, **_PRODUCT}
_SOFTMAX = {"score_bits": 14, "fraction_bits": 25, "polynomial_bits": 18}
WIDE: dict[str, dict[str, int]] = {
    "linear": _LINEAR,
    "asymmetric_linear": _LINEAR,
    "twin_linear": _LINEAR,
    "adalog_linear": {"code_bits": 8, "weight_bits": 9, **_PRODUCT},
    "log_sqrt2_linear": {"code_bits": 8, "weight_bits": 9, **_PRODUCT},
    "matmul": {"a_bits": 18, "b_bits": 9, **_PRODUCT},
    "log2_matmul": {"code_bits": 5, "value_bits": 11, "requantize.output_bits": 11},
    "adalog_matmul": {"code_bits": 8, "value_bits": 9, **_PRODUCT},
    "log_sqrt2_matmul": {"code_bits": 8, "value_bits": 9, **_PRODUCT},
    "twin_matmul": {"code_bits": 8, "value_bits": 9, **_PRODUCT},
    "adalog_quantize": {"code_bits": 8, "input_bits": 18},
    "twin_quantize": {"code_bits": 8, "probability_bits": 18},
    "lookup": {"input_bits": 11, "output_bits": 11},
    "add": {"a_bits": 11, "b_bits": 11, "output_bits": 11, "multiplier_bits": 21},
    "log_softmax": _SOFTMAX,
    "softmax": {"probability_bits": 17, **_SOFTMAX},
    "layernorm": {
        "input_bits": 9,
        "output_bits": 11,
        "alpha_bits": 3,
        "mantissa_bits": 17,
        "gamma_bits": 13,
        "beta_bits": 21,
    },
}


def test_units_are_wide_and_give_different_codes() -> None:
    """Units of one code, or of usual widths alone, would leave most of a kernel out."""
    for unit, make in MAKERS.items():
        cases = [make(np.random.default_rng(seed)) for seed in range(40)]
        different = [
            len(np.unique(spec.compute(spec.check_constants(constants), *inputs))) > 3
            for spec, constants, inputs in cases
        ]
        assert np.mean(different) >= 0.4, unit
        for field, least in WIDE.get(unit, {}).items():
            assert max(operator.attrgetter(field)(spec) for spec, *_ in cases) >= least, (unit, field)
    assert {name.split()[0] for name in MAKERS} == set(WIDE)


@pytest.mark.parametrize("unit", ["linear", "lookup", "add", "layernorm", "log_softmax"])
def test_comparison_sees_one_changed_constant(unit: str) -> None:
    """A kernel built from constants with one bit flipped must not pass the comparison on some case."""
    field, flip = {
        "linear": ("weight", 1),
        "lookup": ("table", 1),
        "add": ("multiplier_a", 1),
        "layernorm": ("beta", 1),
        "log_softmax": ("x0", 1),
    }[unit]
    differs = 0
    for seed in range(40):
        spec, constants, inputs = MAKERS[unit](np.random.default_rng(seed))
        checked = spec.check_constants(constants)
        broken = {name: array.copy() for name, array in checked.items()}
        broken[field] = broken[field] ^ flip
        codes = tuple(format.check(array, "input") for format, array in zip(spec.inputs, inputs, strict=True))
        differs += not np.array_equal(spec.compute(checked, *codes), KERNELS[unit](spec, broken)(*codes))
    assert differs > 0


def test_every_arithmetic_unit_is_covered() -> None:
    assert {name.split()[0] for name in MAKERS} | {"requantize"} == set(KERNELS)


@pytest.mark.parametrize("unit", ["log_softmax", "softmax"])
def test_exponentials_that_a_double_does_not_hold(unit: str) -> None:
    """A fine scale and many octaves: the kernels take another way than for the usual widths."""
    constants = exponential_constants(0.003)
    widths: dict[str, Any] = {"score_bits": 14, "fraction_bits": 30, "row_length": 60, "polynomial_bits": 19}
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 1 << 14, (50, 60))
    scores[25:] = (1 << 14) - 1 - rng.integers(0, 2000, (25, 60))
    for extra in range(1, 6):
        spec: Spec = (
            LogSoftmaxSpec(code_bits=extra, **widths)
            if unit == "log_softmax"
            else SoftmaxSpec(probability_bits=2 * extra, **widths)
        )
        reference, fast = run_both((spec, constants, (scores,)))
        assert len(np.unique(reference)) > 2
        assert np.array_equal(fast, reference)
    assert int(spec.exponentials(constants).max()) * 60 > 1 << 53  # type: ignore[attr-defined]


def test_ties_of_the_logarithm() -> None:
    """Sums of exactly 1.5, 2.5, 5.5 and 11.5 times an exponential, and one step to both sides."""
    # A table of exponentials of our own: the exponential of a distance is the distance.
    rows = np.array(
        [[2, 1, 0], [2, 2, 1], [4, 6, 0], [2, 2, 0], [2, 9, 0], [4, 19, 0], [4, 17, 0], [2, 21, 0], [2, 20, 0]]
    )
    scores = np.concatenate([np.full((len(rows), 1), 255), 255 - rows], axis=1).astype(np.uint8)
    out = np.empty_like(scores)
    softmax_kernels._log_softmax(scores, np.arange(256.0), 15, 16, out)
    for row, codes in zip(rows, out, strict=True):
        total = int(row.sum())
        for exponential, code in zip(row, codes[1:], strict=True):
            if exponential == 0:
                assert code == 16
                continue
            ratio = round(Fraction(total, int(exponential)))
            octave = ratio.bit_length() - 1
            assert code == octave + (octave > 0 and ratio >> (octave - 1) & 1)
