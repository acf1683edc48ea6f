"""Token mean: the average of all tokens of a sequence, one rounding."""

from __future__ import annotations

import numpy as np

from golden.accumulate import prove_fits
from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class TokenMeanSpec(Spec):
    """``requantize(sum_t (x_t - zero_in))`` a channel; the division by the tokens is in the multiplier.

    Attributes
    ----------
    tokens : int
        Length of the sequence.
    bits : int
        Width of the unsigned codes that come in.
    requantize : RequantizeSpec
        Of one channel; its input format is the accumulator.

    Constants
    ---------
    zero_in : [], signed `bits` + 1
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "token_mean"
    tokens: int = ranged(1, 1 << 16)
    bits: int = ranged(1, 16)
    requantize: RequantizeSpec

    def validate(self) -> None:
        if self.requantize.channels != 1 or not self.requantize.input.signed:
            raise HwsimError("token_mean spec: requantize must have one channel and a signed input (the accumulator)")

    @property
    def constants(self) -> dict[str, Constant]:
        return {"zero_in": Constant((), IntFormat(self.bits + 1, signed=True)), **self.requantize.constants}

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def accumulator(self) -> IntFormat:
        return self.requantize.input

    @property
    def output(self) -> IntFormat:
        return self.requantize.output

    def shape(self, *inputs: Shape) -> Shape:
        length, channels = inputs[0]
        if length != self.tokens:
            raise HwsimError(f"token_mean: {length} tokens for a unit of {self.tokens}")
        return (1, channels)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum."""
        zero = int(constants["zero_in"])
        return min(0, -zero * self.tokens), max(0, (self.input.maximum - zero) * self.tokens)

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, self.kind)

    def accumulate(self, constants: Constants, codes: np.ndarray) -> np.ndarray:
        """Accumulators ``[B, 1, C]`` of codes ``[B, tokens, C]``, int64."""
        centred = codes.astype(np.int64) - constants["zero_in"]
        total: np.ndarray = centred.sum(axis=1, keepdims=True)
        return total

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[B, 1, C]``."""
        return self.requantize.compute(constants, self.accumulate(constants, *inputs))
