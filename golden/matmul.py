"""Matmul: integer product of two activations."""

from __future__ import annotations

import numpy as np

from golden.accumulate import OVERFLOW, WRAP_OR_SATURATE, accumulate, prove_fits
from golden.errors import HwsimError
from golden.heads import check_heads, head_axis, largest_centred, requantize_heads, zero_point_constant
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, one_of, ranged


def matmul_shape(a: Shape, b: Shape, unit: str) -> Shape:
    """Shape of ``a @ b``; raises `HwsimError` when they do not fit."""
    if a[:-2] != b[:-2] or a[-1] != b[-2]:
        raise HwsimError(f"{unit}: operands of shapes {a} and {b} do not fit")
    return (*a[:-1], b[-1])


class MatmulSpec(Spec):
    """``requantize((a - zero_a) @ (b - zero_b))`` over the last two axes.

    Attributes
    ----------
    a_bits, b_bits : int
        Widths of the unsigned codes.
    inner : int
        Length of the contracted axis.
    overflow : {"prove", "wrap", "saturate"}
        See `golden.accumulate`; the accumulator is the requantizer's input format.
    heads : int
        See `golden.heads`.
    requantize : RequantizeSpec

    Constants
    ---------
    zero_a, zero_b : see `golden.heads`, signed, one bit wider than the codes
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "matmul"
    a_bits: int = ranged(1, 24)
    b_bits: int = ranged(1, 24)
    inner: int = ranged(1, 1 << 20)
    overflow: str = one_of(*OVERFLOW, default="prove")
    heads: int = ranged(1, 1 << 10, default=1)
    requantize: RequantizeSpec

    def validate(self) -> None:
        check_heads(self)

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "zero_a": zero_point_constant(self.heads, self.a_bits),
            "zero_b": zero_point_constant(self.heads, self.b_bits),
            **self.requantize.constants,
        }

    @property
    def accumulator(self) -> IntFormat:
        return self.requantize.input

    @property
    def output(self) -> IntFormat:
        return self.requantize.output

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.a_bits), IntFormat(self.b_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] != self.inner:
            raise HwsimError(f"matmul: an inner axis of {inputs[0][-1]} for a unit of {self.inner}")
        return matmul_shape(inputs[0], inputs[1], self.kind)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum."""
        largest = self.inner
        for name, bits in (("zero_a", self.a_bits), ("zero_b", self.b_bits)):
            largest *= largest_centred(constants[name], bits)
        return -largest, largest

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        if self.overflow == "prove":
            prove_fits(*self.bounds(constants), self.accumulator, "matmul", WRAP_OR_SATURATE)

    def accumulate(self, constants: Constants, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., M, N]`` of ``a [..., M, inner]`` and ``b [..., inner, N]``, int64."""
        a = a.astype(np.int64) - head_axis(constants["zero_a"])
        b = b.astype(np.int64) - head_axis(constants["zero_b"])
        return accumulate(a, b, 0, self.accumulator, self.overflow)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., M, N]``."""
        return requantize_heads(self, constants, self.accumulate(constants, *inputs))
