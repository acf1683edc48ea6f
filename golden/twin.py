"""Twin uniform codes: two ranges whose steps differ by a power of two.

Source: PTQ4ViT (Yuan et al., ECCV 2022), section 3.1: one bit of a code selects
the range. The released code adds both ranges instead; these units select.
"""

from __future__ import annotations

import numpy as np

from golden.accumulate import accumulate, dot_bounds, prove_fits
from golden.arithmetic import round_half_even_shift
from golden.errors import HwsimError
from golden.heads import check_heads, head_axis, largest_centred, requantize_heads, zero_point_constant
from golden.linear import LinearSpec
from golden.matmul import matmul_shape
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class TwinQuantizeSpec(Spec):
    """Probabilities p, in units of ``2**-probability_bits``, to twin codes of k = `code_bits` bits.

    Below ``2**-shift`` the code is ``round_half_even(p * 2**(k-1+shift))``, else
    ``2**(k-1) + round_half_even(p * 2**(k-1))``; each range saturates at its last code.

    Attributes
    ----------
    probability_bits : int
        Fraction bits of the probabilities, which have one bit more.
    code_bits : int

    Constants
    ---------
    shift : [], unsigned 5 bits, at most `probability_bits`
    """

    kind = "twin_quantize"
    probability_bits: int = ranged(1, 24)
    code_bits: int = ranged(2, 8)

    @property
    def constants(self) -> dict[str, Constant]:
        return {"shift": Constant((), IntFormat(5))}

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.probability_bits + 1)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.code_bits)

    def prove(self, constants: Constants) -> None:
        if int(constants["shift"]) > self.probability_bits:
            raise HwsimError(
                f"twin_quantize: shift {int(constants['shift'])} exceeds probability_bits {self.probability_bits}; "
                "the small range would hold zero only"
            )

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes of probabilities of any shape."""
        p = inputs[0].astype(np.int64)
        shift, half = int(constants["shift"]), 1 << (self.code_bits - 1)
        ranges = []
        for fraction_bits in (self.code_bits - 1 + shift, self.code_bits - 1):
            excess = self.probability_bits - fraction_bits
            scaled = round_half_even_shift(p, excess) if excess >= 0 else p << -excess
            ranges.append(np.minimum(scaled, half - 1))
        fine, coarse = ranges
        chosen = np.where(p < 1 << (self.probability_bits - shift), fine, half + coarse)
        return chosen.astype(self.output.dtype)


class TwinMatmulSpec(Spec):
    """Twin codes of probabilities times V: ``requantize(sum_k (c_k << (f_k * range_shift)) * (v_k - zero_v))``.

    c is the lower ``code_bits - 1`` bits of a code and f its highest bit; the sum counts steps of
    the small range.

    Attributes
    ----------
    code_bits : int
    value_bits : int
        Width of the unsigned codes of V.
    row_length : int
        Longest row of codes.
    heads : int
        See `golden.heads`.
    requantize : RequantizeSpec
        Its input format is the accumulator.

    Constants
    ---------
    range_shift : [], unsigned 5 bits
    zero_v : see `golden.heads`, signed `value_bits` + 1
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "twin_matmul"
    code_bits: int = ranged(2, 8)
    value_bits: int = ranged(1, 16)
    row_length: int = ranged(1, 1 << 14)
    heads: int = ranged(1, 1 << 10, default=1)
    requantize: RequantizeSpec

    def validate(self) -> None:
        check_heads(self)

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "range_shift": Constant((), IntFormat(5)),
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
        return IntFormat(self.code_bits), IntFormat(self.value_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"{self.kind}: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return matmul_shape(inputs[0], inputs[1], self.kind)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum."""
        largest = largest_centred(constants["zero_v"], self.value_bits)
        largest *= self.row_length * int(self.weights(constants).max())
        return -largest, largest

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, self.kind)

    def weights(self, constants: Constants) -> np.ndarray:
        """What each code stands for, int64 ``[2**code_bits]``."""
        half = np.arange(1 << (self.code_bits - 1), dtype=np.int64)
        return np.concatenate([half, half << int(constants["range_shift"])])

    def accumulate(self, constants: Constants, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., M, N]`` of ``codes [..., M, K]`` and ``values [..., K, N]``, int64."""
        centred = values.astype(np.int64) - head_axis(constants["zero_v"])
        return accumulate(self.weights(constants)[codes], centred, 0, self.accumulator, "prove")

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., M, N]``."""
        return requantize_heads(self, constants, self.accumulate(constants, *inputs))


class TwinLinearSpec(LinearSpec):
    """A linear layer behind twin codes of signed activations, such as those of GELU.

    An input code u of k = `input_bits` bits stands for ``s = u - 2**(k-1)``, shifted left by
    `shift_negative` below zero and by `shift_positive` above; the rest is `LinearSpec`.

    Constants
    ---------
    shift_negative, shift_positive : [], unsigned 5 bits; one of them 0
    weight, bias, multiplier, shift, zero_point : as in `LinearSpec`
    """

    kind = "twin_linear"

    @property
    def constants(self) -> dict[str, Constant]:
        shift = Constant((), IntFormat(5))
        return {**super().constants, "shift_negative": shift, "shift_positive": shift}

    def decoded(self, constants: Constants) -> np.ndarray:
        """What each code stands for, int64 ``[2**input_bits]``, rising."""
        signed = np.arange(1 << self.input_bits, dtype=np.int64) - (1 << (self.input_bits - 1))
        return np.where(
            signed < 0, signed << int(constants["shift_negative"]), signed << int(constants["shift_positive"])
        )

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum."""
        decoded, weight = self.decoded(constants), self.effective_weights(constants)
        return dot_bounds(weight, constants["bias"].astype(np.int64), int(decoded[0]), int(decoded[-1]))

    def accumulate(self, constants: Constants, codes: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., output_features]``, int64."""
        return super().accumulate(constants, self.decoded(constants)[codes])
