"""Log-Int-Softmax: attention scores to Log2 codes, without a divider and without floats.

Source: FQ-ViT (Lin et al., IJCAI 2022, section 4.2), its integer exponential
from I-BERT (Kim et al., ICML 2021); the released code settles what the paper
leaves open: the constants, the clamp, and the threshold at 1.5 in the binary
logarithm of the rounded ratio.
"""

from __future__ import annotations

import math

import numpy as np

from golden.arithmetic import bit_length, round_half_even_divide
from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, one_of, ranged

# exp(p) is about a * (p*p + b*p + c) on (-ln 2, 0]; I-BERT, section 3.5.
EXP_A = 0.35815147
EXP_B = 0.96963238 / EXP_A
EXP_C = 1.0 / EXP_A
# I-BERT's rounded ln 2.
EXP_LN2 = 0.6931
# Scores of 8 bits, and room below them for what a shift mask takes out (golden.windows).
WIDEST_SCORE = 14


def exponential_constants(scale: float) -> dict[str, np.ndarray]:
    """Integer i-exp constants ``x0``, ``b``, ``c`` of a score scale (0-d int64 arrays).

    Raises
    ------
    HwsimError
        The scale is not positive, or so large (about 1.67) that ``c`` is 0.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise HwsimError(f"the score scale must be positive and finite, not {scale}")
    x0 = math.floor(-EXP_LN2 / scale)
    b = math.floor(EXP_B / scale)
    c = math.floor(EXP_C / scale**2)
    if c == 0:
        raise HwsimError(f"score scale {scale:.3g} is too coarse for i-exp; it must be below {math.sqrt(EXP_C):.3g}")
    return {"x0": np.array(x0), "b": np.array(b), "c": np.array(c)}


def exponential_table(constants: Constants, fraction_bits: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """i-exp of a score that lies ``0 .. count-1`` steps below the row maximum.

    Returns
    -------
    polynomial, shift : ndarray of int64, [count]
        The exponential is ``polynomial << shift``; the shift is 0 to `fraction_bits`.
    """
    x0, b, c = (int(constants[name]) for name in ("x0", "b", "c"))
    x = np.maximum(-np.arange(count, dtype=np.int64), fraction_bits * x0)
    octave = x // x0
    r = x - x0 * octave
    polynomial = np.maximum(r * (r + b) + c, 0)
    return polynomial, fraction_bits - octave


def prove_exponential(
    constants: Constants, fraction_bits: int, score_bits: int, polynomial_bits: int, where: str
) -> None:
    """Refuse i-exp constants that make no exponential or one wider than its register.

    Raises
    ------
    HwsimError
        ``x0`` is not negative, ``c`` is 0, or the polynomial exceeds `polynomial_bits`.
    """
    if int(constants["x0"]) >= 0:
        raise HwsimError(f"{where}: x0 must be negative, not {constants['x0']}; the score scale is too coarse")
    if int(constants["c"]) == 0:
        raise HwsimError(f"{where}: c must be above 0; the score scale is too coarse")
    polynomial, _ = exponential_table(constants, fraction_bits, 1 << score_bits)
    if int(polynomial.max()) >> polynomial_bits:
        raise HwsimError(f"{where}: the polynomial exceeds {polynomial_bits} bits; widen polynomial_bits")


def lossless_fraction_bits(x0: int, score_bits: int) -> int:
    """Smallest fraction bits at which no score of the width is clamped, at most the published 30.

    Without a clamp every exponential carries the same power of two, so any larger
    value gives the same codes.
    """
    # Rounded up: n * |x0| must reach the whole width.
    return min(30, -(((1 << score_bits) - 1) // x0))


class LogSoftmaxSpec(Spec):
    """Rows of score codes to Log2 codes of their softmax.

    Attributes
    ----------
    score_bits : int
        Width of the unsigned score code; a zero point cancels against the row maximum.
    code_bits : int
        Codes are ``0 .. 2**code_bits - 1``, standing for ``2**-code``.
    fraction_bits : int
        n of i-exp (30 in the released code): scores more than n octaves below the
        maximum are clamped there.
    row_length : int
        Longest row.
    polynomial_bits : int
        Width of the i-exp polynomial, at least that of the constant ``c``.
    beyond : {"zero", "saturate"}
        What becomes of a probability past the last code: a zero symbol of its own,
        ``2**code_bits``, or the last code.

    Constants
    ---------
    x0 : [], signed, negative
        ln 2 in score steps.
    b, c : [], unsigned
        Coefficients of the polynomial ``r * (r + b) + c``.
    """

    kind = "log_softmax"
    score_bits: int = ranged(2, WIDEST_SCORE)
    code_bits: int = ranged(1, 5)
    fraction_bits: int = ranged(0, 30)
    row_length: int = ranged(1, 1 << 14)
    polynomial_bits: int = ranged(1, 32)
    beyond: str = one_of("zero", "saturate", default="zero")

    def validate(self) -> None:
        if self.sum_bits > 61:
            raise HwsimError(
                f"log_softmax spec: a sum of {self.row_length} exponentials needs {self.sum_bits} bits, above 61; "
                "lower fraction_bits"
            )

    @property
    def exponential_bits(self) -> int:
        """Width of one exponential."""
        return self.polynomial_bits + self.fraction_bits

    @property
    def sum_bits(self) -> int:
        """Width of the row sum, which cannot overflow."""
        return self.exponential_bits + (self.row_length - 1).bit_length()

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

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
        return IntFormat(self.code_bits + (self.beyond == "zero"))

    def prove(self, constants: Constants) -> None:
        prove_exponential(constants, self.fraction_bits, self.score_bits, self.polynomial_bits, self.kind)

    def exponentials(self, constants: Constants) -> np.ndarray:
        """Exponential of a score 0, 1, ... steps below the row maximum, int64 ``[2**score_bits]``."""
        polynomial, shift = exponential_table(constants, self.fraction_bits, 1 << self.score_bits)
        return polynomial << shift

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"log_softmax: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return inputs[0]

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes of rows of scores ``[..., N]``, N at most `row_length`."""
        (scores,) = inputs
        self.shape(scores.shape)
        below_maximum = scores.max(axis=-1, keepdims=True).astype(np.int64) - scores
        exponential = self.exponentials(constants)[below_maximum]
        total = exponential.sum(axis=-1, keepdims=True)
        ratio = round_half_even_divide(np.broadcast_to(total, exponential.shape), np.maximum(exponential, 1))
        octave = bit_length(ratio) - 1
        code = octave + np.where(octave > 0, (ratio >> np.maximum(octave - 1, 0)) & 1, 0)
        past = (code > self.zero_symbol - 1) | (exponential == 0)
        last = self.zero_symbol if self.beyond == "zero" else self.zero_symbol - 1
        return np.where(past, last, code).astype(self.output.dtype)


def ratio_threshold(code: int) -> int:
    """Smallest rounded ratio S/E that has at least this code: 1, 2, 3, 6, 12, ...

    Hence ``code >= c`` exactly when ``2*S > (2*T-1)*E``, or ``2*S == (2*T-1)*E`` and T is
    even (half-to-even), with T this threshold: a divider-free form.
    """
    return code + 1 if code < 2 else 3 << (code - 2)
