"""Requantize: from an accumulator to a code by a dyadic multiplier."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from golden.arithmetic import dyadic, saturate
from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class RequantizeSpec(Spec):
    """``saturate(round_half_even(x * multiplier / 2**shift + zero_point))``.

    Attributes
    ----------
    input : IntFormat
        Format of the accumulator.
    output_bits : int
        Width of the unsigned output code.
    multiplier_bits : int
        Width of the unsigned multiplier.
    shift_bits : int
        Width of the shift, which is 0 to ``2**shift_bits - 1``.
    channels : int
        1 for one multiplier and shift a tensor, or the size of the last axis.

    Constants
    ---------
    multiplier : [channels], unsigned `multiplier_bits`
    shift : [channels], unsigned `shift_bits`
    zero_point : [], signed `output_bits` + 1
        A range that lies outside zero has its zero point outside the codes.
    """

    kind = "requantize"
    input: IntFormat
    output_bits: int = ranged(1, 16)
    multiplier_bits: int = ranged(1, 31)
    shift_bits: int = ranged(1, 6)
    channels: int = ranged(1, 1 << 20)

    def validate(self) -> None:
        if self.input.bits + self.multiplier_bits > 62:
            raise HwsimError(
                f"requantize spec: input of {self.input.bits} bits times multiplier of {self.multiplier_bits} bits "
                "exceeds 62 bits; narrow one of them"
            )

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "multiplier": Constant((self.channels,), IntFormat(self.multiplier_bits)),
            "shift": Constant((self.channels,), IntFormat(self.shift_bits)),
            "zero_point": Constant((), IntFormat(self.output_bits + 1, signed=True)),
        }

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if self.channels not in (1, inputs[0][-1]):
            raise HwsimError(f"requantize: {self.channels} multipliers for {inputs[0][-1]} channels")
        return inputs[0]

    def prove(self, constants: Constants) -> None:
        highest = self.output_bits + 1 + int(constants["shift"].max(initial=0))
        if highest > 62:
            raise HwsimError(
                f"requantize: shift {constants['shift'].max()} moves the zero point past 62 bits; "
                "use a narrower multiplier"
            )

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes of accumulators ``[..., channels]`` (any shape for one channel)."""
        (x,) = inputs
        return saturate(
            dyadic(x, constants["multiplier"].astype(np.int64), constants["shift"], constants["zero_point"]),
            self.output,
        )


def dyadic_parts(ratio: float, multiplier_bits: int, shift_bits: int = 6) -> tuple[int, int, float]:
    """Nearest ``multiplier / 2**shift`` to a positive ratio of scales.

    Parameters
    ----------
    ratio : float
        Above 0.
    multiplier_bits, shift_bits : int
        Widths to use; the multiplier takes all its bits when the shift allows.

    Returns
    -------
    multiplier, shift : int
    error : float
        Relative error of the approximation.

    Raises
    ------
    HwsimError
        The ratio is not positive and finite, or out of the reach of the widths.
    """
    if not (ratio > 0 and math.isfinite(ratio)):
        raise HwsimError(f"a scale ratio must be positive and finite, not {ratio}")
    exact = Fraction(ratio)
    shift = min(multiplier_bits - math.frexp(ratio)[1], (1 << shift_bits) - 1)
    multiplier = round(exact * 2**shift) if shift >= 0 else 0
    if multiplier == 1 << multiplier_bits:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift < 0 or multiplier == 0:
        raise HwsimError(
            f"scale ratio {ratio:.3g} needs a multiplier outside {multiplier_bits} bits "
            f"with a shift of {shift_bits} bits"
        )
    return multiplier, shift, float(abs(Fraction(multiplier, 2**shift) - exact) / exact)
