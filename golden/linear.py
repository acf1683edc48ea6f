"""Linear: integer matrix product with constant weights, bias and requantization."""

from __future__ import annotations

import numpy as np

from golden.accumulate import OVERFLOW, WRAP_OR_SATURATE, accumulate, dot_bounds, prove_fits
from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, one_of, ranged


class LinearSpec(Spec):
    """``requantize((weight << bias_fraction_bits) @ q + bias)`` over the last axis.

    The input zero point is folded into the bias (DESIGN rule 4), so q is the raw code. The shift, which is wiring,
    lets the bias be finer than a step of input times a step of weight: with codes of 2 or 3 bits these are coarse.

    Attributes
    ----------
    input_features, output_features : int
    input_bits : int
        Width of the unsigned input codes.
    weight_bits : int
        Width of the signed weights.
    bias_bits : int
        Width of the signed bias.
    bias_fraction_bits : int
        Bits of the bias below the product of two codes.
    overflow : {"prove", "wrap", "saturate"}
        See `golden.accumulate`; the accumulator is the requantizer's input format.
    requantize : RequantizeSpec

    Constants
    ---------
    weight : [output_features, input_features]
    bias : [output_features]
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "linear"
    input_features: int = ranged(1, 1 << 20)
    output_features: int = ranged(1, 1 << 20)
    input_bits: int = ranged(1, 16)
    weight_bits: int = ranged(1, 16)
    bias_bits: int = ranged(1, 40)
    bias_fraction_bits: int = ranged(0, 16, default=0)
    overflow: str = one_of(*OVERFLOW, default="prove")
    requantize: RequantizeSpec

    def validate(self) -> None:
        if not self.requantize.input.signed:
            raise HwsimError("linear spec: the accumulator (requantize.input) must be signed")
        if self.requantize.channels not in (1, self.output_features):
            raise HwsimError(f"linear spec: requantize.channels must be 1 or {self.output_features}")

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "weight": Constant((self.output_features, self.input_features), IntFormat(self.weight_bits, signed=True)),
            "bias": Constant((self.output_features,), IntFormat(self.bias_bits, signed=True)),
            **self.requantize.constants,
        }

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.input_bits)

    @property
    def accumulator(self) -> IntFormat:
        return self.requantize.input

    @property
    def output(self) -> IntFormat:
        return self.requantize.output

    def shape(self, *inputs: Shape) -> Shape:
        *rest, features = inputs[0]
        if features != self.input_features:
            raise HwsimError(f"linear: {features} input features for a unit of {self.input_features}")
        return (*rest, self.output_features)

    def effective_weights(self, constants: Constants) -> np.ndarray:
        """What the weights stand for in units of the accumulator, int64 ``[output_features, input_features]``."""
        weight: np.ndarray = constants["weight"].astype(np.int64) << self.bias_fraction_bits
        return weight

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum."""
        return dot_bounds(self.effective_weights(constants), constants["bias"].astype(np.int64), 0, self.input.maximum)

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        if self.overflow == "prove":
            prove_fits(*self.bounds(constants), self.accumulator, "linear", WRAP_OR_SATURATE)

    def accumulate(self, constants: Constants, codes: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., output_features]``, int64."""
        rows = codes.reshape(-1, self.input_features).astype(np.int64)
        weight = self.effective_weights(constants).T
        total = accumulate(rows, weight, constants["bias"].astype(np.int64), self.accumulator, self.overflow)
        return total.reshape(*codes.shape[:-1], self.output_features)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., output_features]`` of codes ``[..., input_features]``."""
        return self.requantize.compute(constants, self.accumulate(constants, *inputs))
