"""Matrix products whose second operand has a grid a head.

A unit of ``heads`` 1 has one zero point and one multiplier. With more, the axis
before the matrices (``[..., heads, M, N]``) has one of each for every head.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat


def check_heads(spec: Any) -> None:
    """Refuse a requantizer that does not fit the heads.

    Raises
    ------
    HwsimError
        Names the field.
    """
    if spec.requantize.channels != spec.heads or not spec.requantize.input.signed:
        raise HwsimError(
            f"{spec.kind} spec: requantize must have one channel a head ({spec.heads}) and a signed input "
            "(the accumulator)"
        )


def zero_point_constant(heads: int, bits: int) -> Constant:
    """Zero point of unsigned codes of `bits` bits: a scalar, or one a head."""
    return Constant(() if heads == 1 else (heads,), IntFormat(bits + 1, signed=True))


def head_axis(constant: np.ndarray) -> np.ndarray:
    """A constant of a head, or of all, broadcast against ``[..., heads, M, N]``."""
    return constant[:, None, None] if constant.ndim else constant


def requantize_heads(spec: Any, constants: Constants, sums: np.ndarray) -> np.ndarray:
    """Codes of accumulators ``[..., heads, M, N]``; any leading axes for one head."""
    if spec.heads == 1:
        return spec.requantize.compute(constants, sums)
    return np.swapaxes(spec.requantize.compute(constants, np.swapaxes(sums, -3, -1)), -3, -1)


def largest_centred(zero_point: np.ndarray, bits: int) -> int:
    """Largest magnitude of ``code - zero_point`` over all codes of `bits` bits and all heads."""
    zero = zero_point.astype(np.int64)
    return int(np.maximum(np.abs(zero), np.abs(IntFormat(bits).maximum - zero)).max())


def one_head(spec: Any, constants: Constants, head: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Spec and constants of a product of one head alone; of a product with one grid for all, itself."""
    if spec.heads == 1:
        return spec, dict(constants)
    one = dataclasses.replace(spec, heads=1, requantize=dataclasses.replace(spec.requantize, channels=1))
    own = {}
    for name, constant in one.constants.items():
        array = constants[name]
        if array.shape != constant.shape:
            array = array[head] if constant.shape == () else array[head : head + 1]
        own[name] = array
    return one, own
