"""Add: residual sums of two codes on a new grid, in integers."""

from __future__ import annotations

import numpy as np

from golden.arithmetic import round_half_even_shift, saturate
from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


def scaled_sum(constants: Constants, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``round_half_even((multiplier_a*a + multiplier_b*b + offset) / 2**shift)`` of codes, int64."""
    total = a.astype(np.int64) * constants["multiplier_a"].astype(np.int64)
    total = total + b.astype(np.int64) * constants["multiplier_b"].astype(np.int64)
    result: np.ndarray = round_half_even_shift(total + constants["offset"], constants["shift"])
    return result


class AddSpec(Spec):
    """``saturate(round_half_even((multiplier_a*a + multiplier_b*b + offset) / 2**shift))``.

    The zero points of both inputs and of the output are in the offset. Each of the
    three may have power-of-two factors a channel (the PTS grid), hence a multiplier,
    offset and shift a channel.

    Attributes
    ----------
    channels : int
        Size of the last axis.
    a_bits, b_bits, output_bits : int
        Widths of the unsigned codes.
    multiplier_bits : int
        Width of the unsigned multipliers.
    shift_bits : int
        Width of the shift.
    offset_bits : int
        Width of the signed offset.

    Constants
    ---------
    multiplier_a, multiplier_b, offset, shift : [channels]
    """

    kind = "add"
    channels: int = ranged(1, 1 << 16)
    a_bits: int = ranged(1, 16)
    b_bits: int = ranged(1, 16)
    output_bits: int = ranged(1, 16)
    multiplier_bits: int = ranged(1, 31)
    shift_bits: int = ranged(1, 6)
    offset_bits: int = ranged(1, 61)

    @property
    def constants(self) -> dict[str, Constant]:
        row = (self.channels,)
        return {
            "multiplier_a": Constant(row, IntFormat(self.multiplier_bits)),
            "multiplier_b": Constant(row, IntFormat(self.multiplier_bits)),
            "offset": Constant(row, IntFormat(self.offset_bits, signed=True)),
            "shift": Constant(row, IntFormat(self.shift_bits)),
        }

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.a_bits), IntFormat(self.b_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1] or inputs[0][-1] != self.channels:
            raise HwsimError(f"add: operands of shapes {inputs[0]} and {inputs[1]} for {self.channels} channels")
        return inputs[0]

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes of the sum of ``a`` and ``b``, ``[..., channels]`` each."""
        return saturate(scaled_sum(constants, *inputs), self.output)
