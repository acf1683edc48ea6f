"""Attention times V on Log2 codes: shift and accumulate, nothing truncated.

Source: FQ-ViT (Lin et al., IJCAI 2022, eq. 16) in the form that is valid for a
matrix product: shift left by the distance from the last code, rescale once.
"""

from __future__ import annotations

import numpy as np

from golden.accumulate import accumulate, prove_fits
from golden.errors import HwsimError
from golden.heads import check_heads, head_axis, largest_centred, requantize_heads, zero_point_constant
from golden.matmul import matmul_shape
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, one_of, ranged


class Log2MatmulSpec(Spec):
    """``requantize(sum_k (v_k - zero_v) << (last - code_k))``, zero symbols left out.

    Attributes
    ----------
    code_bits : int
        Width of the Log2 codes; ``last = 2**code_bits - 1`` and the zero symbol is ``last + 1``.
    value_bits : int
        Width of the unsigned codes of V.
    row_length : int
        Longest row of codes.
    beyond : {"zero", "saturate"}
        Of the softmax that makes the codes; only "zero" has the zero symbol.
    heads : int
        See `golden.heads`.
    requantize : RequantizeSpec
        Its input format is the accumulator.

    Constants
    ---------
    zero_v : see `golden.heads`, signed `value_bits` + 1
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "log2_matmul"
    code_bits: int = ranged(1, 5)
    value_bits: int = ranged(1, 16)
    row_length: int = ranged(1, 1 << 14)
    beyond: str = one_of("zero", "saturate", default="zero")
    heads: int = ranged(1, 1 << 10, default=1)
    requantize: RequantizeSpec

    def validate(self) -> None:
        check_heads(self)

    @property
    def last_code(self) -> int:
        return (1 << self.code_bits) - 1

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "zero_v": zero_point_constant(self.heads, self.value_bits),
            **self.requantize.constants,
        }

    @property
    def accumulator(self) -> IntFormat:
        return self.requantize.input

    @property
    def output(self) -> IntFormat:
        return self.requantize.output

    @property
    def largest_row_weight(self) -> int:
        """Largest sum of ``2**(last - code)`` over a row that a Log-Int-Softmax can make.

        Code c means a rounded ratio R below ``3 * 2**(c-1)``, hence S/E below 1.5 * 2**c and
        ``2**-c < 1.5 * E/S``; the row sums to less than 1.5. A saturating softmax adds at most
        one unit an element.
        """
        return (3 << self.last_code >> 1) + (self.row_length if self.beyond == "saturate" else 0)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.code_bits + (self.beyond == "zero")), IntFormat(self.value_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"{self.kind}: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return matmul_shape(inputs[0], inputs[1], self.kind)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum of a row that comes from a softmax."""
        largest = self.largest_row_weight * largest_centred(constants["zero_v"], self.value_bits)
        return -largest, largest

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, "log2_matmul")

    def accumulate(self, constants: Constants, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., M, N]`` of ``codes [..., M, K]`` and ``values [..., K, N]``, int64.

        In units of ``2**-last_code`` value steps.
        """
        weight = np.int64(1) << (self.last_code - np.minimum(codes, self.last_code).astype(np.int64))
        weight = np.where(codes == self.zero_symbol, 0, weight)
        centred = values.astype(np.int64) - head_axis(constants["zero_v"])
        return accumulate(weight, centred, 0, self.accumulator, "prove")

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., M, N]``."""
        return requantize_heads(self, constants, self.accumulate(constants, *inputs))
