"""LayerNorm on power-of-two-scale codes, in integers with one rounding at the end.

Source: FQ-ViT (Lin et al., IJCAI 2022, section 4.1) for the power-of-two factors
of the input channels. The released code leaves the square root, gamma, beta and
the division in float and truncates them to 8 bits a token; here they are integer
operations (DESIGN rule 7). The released form is `golden.published.int_layernorm`.
"""

from __future__ import annotations

import numpy as np

from golden.arithmetic import reciprocal_sqrt, round_half_even_shift, saturate
from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class LayerNormSpec(Spec):
    """Normalise the last axis of PTS codes and apply gamma and beta.

    With ``X = (q - zero_in) << alpha``, ``S1 = sum X``, ``S2 = sum X*X``,
    ``D = C*S2 - S1*S1`` and ``1/sqrt(D)`` as ``m * 2**-e`` (`golden.arithmetic.reciprocal_sqrt`)::

        y = saturate(round_half_even((gamma * m * (C*X - S1) + (beta << e)) / 2**(e + fraction_bits)))

    where gamma and beta are in units of ``2**-fraction_bits`` output steps and beta
    holds the output zero point. D = 0 (all X equal) gives ``round_half_even(beta / 2**fraction_bits)``.

    Attributes
    ----------
    channels : int
        C, the length of a row.
    input_bits, output_bits : int
        Widths of the unsigned codes.
    alpha_bits : int
        Width of the power-of-two exponents; 0 for inputs of one scale (alpha is then all 0).
    mantissa_bits, radicand_bits : int
        Widths of the reciprocal square root.
    gamma_bits, beta_bits : int
        Widths of the signed constants.
    fraction_bits_bits : int
        Width of the run-time constant ``fraction_bits``.

    Constants
    ---------
    zero_in : [], signed `input_bits` + 1
    alpha : [channels], unsigned
    gamma : [channels], signed `gamma_bits`
    beta : [channels], signed `beta_bits`
    fraction_bits : []
    """

    kind = "layernorm"
    channels: int = ranged(1, 1 << 13)
    input_bits: int = ranged(1, 16)
    output_bits: int = ranged(1, 16)
    alpha_bits: int = ranged(0, 3)
    mantissa_bits: int = ranged(4, 24)
    radicand_bits: int = ranged(4, 32)
    gamma_bits: int = ranged(2, 24)
    beta_bits: int = ranged(2, 40)
    fraction_bits_bits: int = ranged(1, 5, default=5)

    def validate(self) -> None:
        if self.radicand_bits % 2:
            raise HwsimError(f"layernorm spec: radicand_bits must be even, not {self.radicand_bits}")
        if self.radicand_bits + 2 * (self.mantissa_bits - 1) > 62:
            raise HwsimError("layernorm spec: radicand_bits + 2 * mantissa_bits must not exceed 64")
        if self.variance_bits > 62 or self.numerator_bits > 62:
            raise HwsimError(
                f"layernorm spec: {self.channels} channels of {self.value_bits} bits need a numerator of "
                f"{max(self.variance_bits, self.numerator_bits)} bits, above 62; narrow gamma_bits, beta_bits or "
                "mantissa_bits"
            )

    @property
    def value_bits(self) -> int:
        """Width of the signed X: the zero point may lie one bit outside the codes, the factor adds its range."""
        return self.input_bits + 2 + ((1 << self.alpha_bits) - 1)

    @property
    def sum_bits(self) -> int:
        """Width of the signed S1."""
        return self.value_bits + (self.channels - 1).bit_length()

    @property
    def deviation_bits(self) -> int:
        """Width of the signed ``C*X - S1``."""
        return self.value_bits + self.channels.bit_length() + 1

    @property
    def variance_bits(self) -> int:
        """Width of the unsigned D, at most ``C*C*max(X*X)``."""
        return 2 * (self.value_bits - 1) + 2 * self.channels.bit_length()

    @property
    def largest_exponent(self) -> int:
        """Largest e of the reciprocal square root."""
        return self.mantissa_bits - 1 + (self.variance_bits + 1) // 2

    @property
    def numerator_bits(self) -> int:
        """Width of the signed sum that is rounded.

        ``|C*X - S1| <= sqrt(C*D)`` and ``m <= 2**e / sqrt(D)`` bound the product by ``|gamma| * sqrt(C) * 2**e``
        (one more bit for the cut radicand), so both terms scale with ``2**e``.
        """
        root = ((self.channels - 1).bit_length() + 1) // 2
        return max(self.gamma_bits + root + 1, self.beta_bits) + self.largest_exponent + 1

    @property
    def constants(self) -> dict[str, Constant]:
        row = (self.channels,)
        return {
            "zero_in": Constant((), IntFormat(self.input_bits + 1, signed=True)),
            "alpha": Constant(row, IntFormat(max(self.alpha_bits, 1))),
            "gamma": Constant(row, IntFormat(self.gamma_bits, signed=True)),
            "beta": Constant(row, IntFormat(self.beta_bits, signed=True)),
            "fraction_bits": Constant((), IntFormat(self.fraction_bits_bits)),
        }

    def prove(self, constants: Constants) -> None:
        if self.alpha_bits == 0 and constants["alpha"].any():
            raise HwsimError("layernorm: alpha must be 0 everywhere when alpha_bits is 0")
        shift = self.largest_exponent + int(constants["fraction_bits"])
        if shift > 63:
            raise HwsimError(
                f"layernorm: fraction_bits {constants['fraction_bits']} make a last shift of up to {shift}, above 63; "
                "use fewer, or narrow mantissa_bits"
            )

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.input_bits)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] != self.channels:
            raise HwsimError(f"layernorm: rows of {inputs[0][-1]} for a unit of {self.channels} channels")
        return inputs[0]

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Output codes of rows of input codes ``[..., channels]``."""
        (codes,) = inputs
        constants = {name: array.astype(np.int64) for name, array in constants.items()}
        x = (codes.astype(np.int64) - constants["zero_in"]) << constants["alpha"]
        s1 = x.sum(axis=-1, keepdims=True)
        s2 = (x * x).sum(axis=-1, keepdims=True)
        variance = self.channels * s2 - s1 * s1
        mantissa, exponent = np.zeros_like(variance), np.zeros_like(variance)
        for row in np.ndindex(variance.shape):
            if variance[row] > 0:
                mantissa[row], exponent[row] = reciprocal_sqrt(
                    int(variance[row]), self.mantissa_bits, self.radicand_bits
                )
        numerator = constants["gamma"] * (mantissa * (self.channels * x - s1)) + (constants["beta"] << exponent)
        return saturate(round_half_even_shift(numerator, exponent + constants["fraction_bits"]), self.output)
