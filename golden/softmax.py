"""Integer softmax to fixed-point probabilities, the input of any quantizer behind it."""

from __future__ import annotations

import numpy as np

from golden.arithmetic import round_half_even_divide
from golden.errors import HwsimError
from golden.log_softmax import WIDEST_SCORE, exponential_table, prove_exponential
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class SoftmaxSpec(Spec):
    """Rows of score codes to ``round_half_even(2**probability_bits * E / S)``.

    The exponentials E are i-exp, exactly as in `golden.log_softmax.LogSoftmaxSpec`,
    and S is their sum; a row of one element gives ``2**probability_bits``.

    Attributes
    ----------
    score_bits, fraction_bits, row_length, polynomial_bits : int
        As in `LogSoftmaxSpec`.
    probability_bits : int
        Fraction bits of the result.

    Constants
    ---------
    x0, b, c : as in `LogSoftmaxSpec`
    """

    kind = "softmax"
    score_bits: int = ranged(2, WIDEST_SCORE)
    fraction_bits: int = ranged(0, 30)
    row_length: int = ranged(1, 1 << 14)
    polynomial_bits: int = ranged(1, 32)
    probability_bits: int = ranged(1, 24)

    def validate(self) -> None:
        if self.polynomial_bits + self.fraction_bits + self.probability_bits > 61 or self.sum_bits > 61:
            raise HwsimError("softmax spec: exponential times probability exceeds 61 bits; lower fraction_bits")

    @property
    def sum_bits(self) -> int:
        """Width of the row sum."""
        return self.polynomial_bits + self.fraction_bits + (self.row_length - 1).bit_length()

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "x0": Constant((), IntFormat(32, signed=True)),
            "b": Constant((), IntFormat(32)),
            "c": Constant((), IntFormat(self.polynomial_bits)),
        }

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.score_bits)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.probability_bits + 1)

    def prove(self, constants: Constants) -> None:
        prove_exponential(constants, self.fraction_bits, self.score_bits, self.polynomial_bits, self.kind)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"softmax: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return inputs[0]

    def exponentials(self, constants: Constants) -> np.ndarray:
        """Exponential of a score 0, 1, ... steps below the row maximum, int64 ``[2**score_bits]``."""
        polynomial, shift = exponential_table(constants, self.fraction_bits, 1 << self.score_bits)
        return polynomial << shift

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Probabilities of rows of scores ``[..., N]``, N at most `row_length`."""
        (scores,) = inputs
        self.shape(scores.shape)
        below_maximum = scores.max(axis=-1, keepdims=True).astype(np.int64) - scores
        exponential = self.exponentials(constants)[below_maximum]
        total = np.broadcast_to(exponential.sum(axis=-1, keepdims=True), exponential.shape)
        return round_half_even_divide(exponential << self.probability_bits, total).astype(self.output.dtype)
