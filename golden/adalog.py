"""AdaLog: logarithmic quantizer with a searched base, its tables and its matrix product.

Source: AdaLog (Wu et al., ECCV 2024), eq. 7-10: the base is ``2**(q/37)``; a code A
stands for ``2**-T1[A] * T2[A] / (2L - 2)`` with ``L = 2**bits`` and two small integer
tables. The paper's rule for values past the last code is a clip; the released
code makes them zero, and so does this one, with a symbol of its own.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from golden.accumulate import FEWER_GUARD_BITS, accumulate, prove_fits
from golden.arithmetic import round_half_even_shift
from golden.errors import HwsimError
from golden.heads import check_heads, head_axis, largest_centred, requantize_heads, zero_point_constant
from golden.matmul import matmul_shape
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged

BASE_DENOMINATOR = 37


def adalog_tables(code_bits: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift table T1 and mantissa table T2 (eq. 8 and 9), int64 ``[2**code_bits]`` each.

    Raises
    ------
    HwsimError
        `code_bits` not in 2..8 or q not in 1..255.
    """
    if not 2 <= code_bits <= 8:
        raise HwsimError(f"AdaLog code bits must be between 2 and 8, not {code_bits}")
    if not 1 <= q <= 255:
        raise HwsimError(f"AdaLog q must be between 1 and 255, not {q}")
    product = q * np.arange(1 << code_bits, dtype=np.int64)
    top = (2 << code_bits) - 2
    # 2**-(k/37) is irrational but for k = 0, so the rounding can meet no tie and the double is far enough from one.
    mantissa = [round(top * 2.0 ** -(k / BASE_DENOMINATOR)) for k in range(BASE_DENOMINATOR)]
    return product // BASE_DENOMINATOR, np.array(mantissa, dtype=np.int64)[product % BASE_DENOMINATOR]


def adalog_thresholds(code_bits: int, q: int, scale: Fraction) -> np.ndarray:
    """`log_thresholds` of base ``2**(q/37)``."""
    return log_thresholds(code_bits, Fraction(q, BASE_DENOMINATOR), scale)


def log_thresholds(code_bits: int, exponent: Fraction, scale: Fraction) -> np.ndarray:
    """Largest input integer whose code is above c, for ``c = 0 .. 2**code_bits - 1``; code A stands for ``base**-A``.

    Parameters
    ----------
    exponent : Fraction
        log2 of the base; 1/2 makes RepQ-ViT's log-sqrt2 codes.
    scale : Fraction
        The input that code 0 stands for (scale of the quantizer over the step of the input).

    Returns
    -------
    ndarray of int64 [2**code_bits]
        ``code = count of thresholds >= x``; all of them is the zero symbol. Exact: the code is
        ``round_half_even(-log2(x/scale) / exponent)``, so with ``exponent = q/r`` x has a code above c when
        ``(x/scale)**(2r) < 2**-((2c+1)q)``, or is equal and c is odd.
    """
    power = 2 * exponent.denominator
    thresholds = []
    for code in range(1 << code_bits):
        octaves = (2 * code + 1) * exponent.numerator
        # floor of the root of scale**power / 2**octaves, from a float first guess and exact steps.
        guess = int(float(scale) * 2.0 ** (-octaves / power))

        def above(x: int, octaves: int = octaves, code: int = code) -> bool:
            left = x**power * scale.denominator**power << octaves
            right = scale.numerator**power
            return left < right or (left == right and code % 2 == 1)

        while above(guess + 1):
            guess += 1
        while guess > 0 and not above(guess):
            guess -= 1
        thresholds.append(guess)
    return np.array(thresholds, dtype=np.int64)


class AdaLogQuantizeSpec(Spec):
    """Unsigned fixed-point values to AdaLog codes by counting thresholds, never by a logarithm.

    Attributes
    ----------
    input_bits : int
        Width of the unsigned values.
    code_bits : int
        Codes are ``0 .. 2**code_bits - 1`` and the zero symbol ``2**code_bits``.

    Constants
    ---------
    thresholds : [2**code_bits], unsigned `input_bits`, never increasing
        From `adalog_thresholds`; the code is the count of thresholds at or above the value.
    """

    kind = "adalog_quantize"
    input_bits: int = ranged(1, 32)
    code_bits: int = ranged(2, 8)

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        return {"thresholds": Constant((1 << self.code_bits,), self.input)}

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.input_bits)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.code_bits + 1)

    def prove(self, constants: Constants) -> None:
        if (np.diff(constants["thresholds"].astype(np.int64)) > 0).any():
            raise HwsimError("adalog_quantize: the thresholds must never increase")

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes of values of any shape."""
        (values,) = inputs
        thresholds = constants["thresholds"].astype(np.int64)
        return (values[..., None].astype(np.int64) <= thresholds).sum(axis=-1).astype(self.output.dtype)


class AdaLogMatmulSpec(Spec):
    """``requantize(sum_k ((mantissa[code_k] * (v_k - zero_v)) << guard_bits) >> shift[code_k])``.

    Each product is shifted before the sum (eq. 10), and its fraction below ``2**-guard_bits`` is
    cut off towards minus infinity (an arithmetic shift). With `guard_bits` no smaller than any
    shift, see `lossless_guard_bits`, nothing is lost. A code whose entry in the shift table
    exceeds `largest_shift` contributes nothing, and neither does the zero symbol.

    Attributes
    ----------
    code_bits, value_bits, row_length : int
        As in `golden.log2_matmul.Log2MatmulSpec`; the zero symbol is ``2**code_bits``.
    guard_bits : int
        Fraction bits of the accumulator.
    largest_shift : int
        The reach of the shifter: of a code with a larger entry in the shift table nothing is left.
    heads : int
        See `golden.heads`.
    requantize : RequantizeSpec
        Its input format is the accumulator.

    Constants
    ---------
    shift_table : [2**code_bits], unsigned 10-bit
    mantissa_table : [2**code_bits], unsigned `code_bits` + 1
    zero_v : see `golden.heads`, signed `value_bits` + 1
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "adalog_matmul"
    code_bits: int = ranged(2, 8)
    value_bits: int = ranged(1, 16)
    row_length: int = ranged(1, 1 << 14)
    guard_bits: int = ranged(0, 32)
    largest_shift: int = ranged(0, 63)
    heads: int = ranged(1, 1 << 10, default=1)
    requantize: RequantizeSpec

    def validate(self) -> None:
        check_heads(self)

    @property
    def product_bits(self) -> int:
        """Width of the signed product of mantissa and value."""
        return self.code_bits + 1 + self.value_bits + 2

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        entries = (1 << self.code_bits,)
        return {
            "shift_table": Constant(entries, IntFormat(10)),
            "mantissa_table": Constant(entries, IntFormat(self.code_bits + 1)),
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
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.code_bits + 1), IntFormat(self.value_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"{self.kind}: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return matmul_shape(inputs[0], inputs[1], self.kind)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum, for any row of codes."""
        value = largest_centred(constants["zero_v"], self.value_bits)
        shift = constants["shift_table"].astype(np.int64)
        mantissa = np.where(shift > self.largest_shift, 0, constants["mantissa_table"].astype(np.int64))
        product = (mantissa * value << self.guard_bits) >> np.minimum(shift, 63)
        largest = (int(product.max()) + 1) * self.row_length
        return -largest, largest

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, "adalog_matmul", FEWER_GUARD_BITS)

    def accumulate(self, constants: Constants, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., M, N]`` of ``codes [..., M, K]`` and ``values [..., K, N]``, int64.

        In units of ``2**-guard_bits / (2**(code_bits+1) - 2)`` value steps.
        """
        centred = values.astype(np.int64) - head_axis(constants["zero_v"])
        shifts = constants["shift_table"].astype(np.int64)
        total = np.zeros(
            np.broadcast_shapes(codes.shape[:-1] + (1,), values.shape[:-2] + (1, values.shape[-1])), np.int64
        )
        for code, mantissa in enumerate(constants["mantissa_table"].astype(np.int64)):
            if shifts[code] > self.largest_shift:
                continue
            term = (mantissa * centred << self.guard_bits) >> shifts[code]
            total += accumulate((codes == code).astype(np.int64), term, 0, self.accumulator, "prove")
        return total

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., M, N]``."""
        return requantize_heads(self, constants, self.accumulate(constants, *inputs))


class AdaLogDecodeSpec(Spec):
    """AdaLog codes back to fixed point: ``round_half_even(mantissa[code] * 2**guard_bits / 2**shift[code])``.

    Attributes
    ----------
    code_bits, guard_bits, largest_shift : int
        As in `AdaLogMatmulSpec`: a code whose entry in the shift table exceeds `largest_shift`
        gives 0, and so does the zero symbol.

    Constants
    ---------
    shift_table, mantissa_table : as in `AdaLogMatmulSpec`
    """

    kind = "adalog_decode"
    code_bits: int = ranged(2, 8)
    guard_bits: int = ranged(0, 32)
    largest_shift: int = ranged(0, 63)

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        entries = (1 << self.code_bits,)
        return {
            "shift_table": Constant(entries, IntFormat(10)),
            "mantissa_table": Constant(entries, IntFormat(self.code_bits + 1)),
        }

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.code_bits + 1)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.code_bits + 1 + self.guard_bits)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Fixed-point values, `guard_bits` fraction bits below the mantissa's units, any shape."""
        (codes,) = inputs
        shift = constants["shift_table"].astype(np.int64)
        entry = round_half_even_shift(
            constants["mantissa_table"].astype(np.int64) << self.guard_bits, np.minimum(shift, self.largest_shift)
        )
        entry = np.append(np.where(shift > self.largest_shift, 0, entry), 0)
        return entry[codes].astype(self.output.dtype)


def probability_scale(probability_bits: int) -> Fraction:
    """What AdaLog code 0 of a softmax stands for in fixed point: the paper fixes ``s_A = 1`` there."""
    return Fraction(1 << probability_bits)


def lossless_guard_bits(code_bits: int, q: int) -> int:
    """Guard bits at which the shift of an AdaLog product cuts nothing: the largest entry of T1."""
    return math.floor(q * ((1 << code_bits) - 1) / BASE_DENOMINATOR)
