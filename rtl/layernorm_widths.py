"""Width of every intermediate of the LayerNorm unit, each from a bound on what it can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from golden.layernorm import LayerNormSpec


@dataclass(frozen=True)
class LayerNormWidths:
    """Widths of a unit that may be loaded with any constants its spec allows.

    Parameters
    ----------
    spec : LayerNormSpec
    lanes : int
        Elements a beat.
    smallest_fraction_bits : int
        Smallest ``fraction_bits`` that will be loaded.

    Notes
    -----
    Symbols as in `golden.layernorm.LayerNormSpec`. A row's X, together with 0 (what a missing
    element counts as), lie in an interval no longer than `value_limit`: for ``zero_in <= 0`` from 0
    up, else ``(2**input_bits - 1) << alpha`` wide. From this

    * ``|S1| <= C * value_limit`` and ``|C*X - S1| <= (C - 1) * value_limit``;
    * ``D = sum over i < j of (X_i - X_j)**2 <= floor(C*C / 4) * value_limit**2``;
    * ``(C*X - S1)**2 <= (C - 1) * D``, since the deviations of a row add up to 0 and their squares to C*D.
    """

    spec: LayerNormSpec
    lanes: int
    smallest_fraction_bits: int

    @property
    def beats(self) -> int:
        """Beats a row."""
        return -(-self.spec.channels // self.lanes)

    @property
    def zeros(self) -> int:
        """``C = odd << zeros``: products with C are made with `odd`, the rest is wiring."""
        return (self.spec.channels & -self.spec.channels).bit_length() - 1

    @property
    def odd(self) -> int:
        return self.spec.channels >> self.zeros

    @property
    def value_limit(self) -> int:
        """Largest ``|X|``."""
        codes = (1 << self.spec.input_bits) - 1
        return (codes + (1 << self.spec.input_bits)) << ((1 << self.spec.alpha_bits) - 1)

    @property
    def value_bits(self) -> int:
        return signed_width(self.value_limit)

    @property
    def multiple_bits(self) -> int:
        """``odd * X``."""
        return signed_width(self.odd * self.value_limit)

    @property
    def square_bits(self) -> int:
        """``odd * X * X``."""
        return max(1, (self.odd * self.value_limit**2).bit_length())

    @property
    def sum_bits(self) -> int:
        """S1."""
        return signed_width(self.spec.channels * self.value_limit)

    @property
    def digits(self) -> int:
        """Pairs of bits of D."""
        largest = self.spec.channels**2 // 4 * self.value_limit**2
        return max(1, (largest.bit_length() + 1) // 2)

    @property
    def squares_bits(self) -> int:
        """``odd * S2``, modulo ``4**digits`` once its zeros are appended: enough for D."""
        return max(1, 2 * self.digits - self.zeros)

    @property
    def deviation_bits(self) -> int:
        """``C*X - S1``."""
        return signed_width((self.spec.channels - 1) * self.value_limit)

    @property
    def fine_bits(self) -> int:
        """Low bits of the exponent that fit into the mantissa's multiplier operand of 17 bits."""
        fine_bits = 0
        while self.spec.mantissa_bits + (2 << fine_bits) - 1 <= 17 and (1 << fine_bits) < self.digits:
            fine_bits += 1
        return fine_bits

    @property
    def mantissa_bits(self) -> int:
        """The mantissa, shifted left by up to ``2**fine_bits - 1``."""
        return self.spec.mantissa_bits + (1 << self.fine_bits) - 1

    @property
    def scaled_bits(self) -> int:
        """``gamma * (C*X - S1)``."""
        return signed_width(((self.spec.channels - 1) * self.value_limit) << (self.spec.gamma_bits - 1))

    @property
    def half_bits(self) -> int:
        """Bits kept below an output of ``fraction_bits`` 0, so that there is a half to round on."""
        return int(self.smallest_fraction_bits == 0)

    @property
    def smallest_shift(self) -> int:
        """Bits below the point of the product with the mantissa for coarse exponent 0, less `half_bits`."""
        return self.spec.mantissa_bits - 1 + (1 << self.fine_bits) - self.half_bits

    @property
    def normalised_bits(self) -> int:
        """``floor(gamma * m * (C*X - S1) / 2**e)``, with `half_bits` below the point.

        The mantissa is at most ``2**e / sqrt(D)`` for a D that is cut to its leading bits d, and
        ``D < (d + 1)/d`` times the cut one, with d from ``2**(radicand_bits - 2)`` up; so the magnitude is at
        most ``|gamma| * sqrt((C - 1) * (1 + 2**(2 - radicand_bits)))``.
        """
        least = 1 << (self.spec.radicand_bits - 2)
        square = (self.spec.channels - 1) << (2 * (self.spec.gamma_bits - 1 + self.half_bits))
        return signed_width(math.isqrt(square * (least + 1) // least) + 1)

    @property
    def shifted_bits(self) -> int:
        """The normalised value plus beta."""
        return max(self.normalised_bits, self.spec.beta_bits + self.half_bits) + 1


def signed_width(limit: int) -> int:
    """Bits of a signed integer from ``-limit`` to ``limit``."""
    return limit.bit_length() + 1
