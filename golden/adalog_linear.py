"""Linear layers on AdaLog codes: look up, multiply by the weight, shift, accumulate.

Source: AdaLog (Wu et al., ECCV 2024), eq. 10 for the product and eq. 13-15 for the shift of GELU's
outputs, which lies in the bias.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from golden.accumulate import FEWER_GUARD_BITS, prove_fits, signed_bits
from golden.adalog import AdaLogMatmulSpec
from golden.asymmetric_linear import centred_weights
from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class AdaLogLinearSpec(Spec):
    """``requantize(bias + sum_k ((mantissa[code_k] * (w_k - zero_w)) << guard_bits) >> shift[code_k])``.

    The sum is that of `AdaLogMatmulSpec`, its second operand the weights: `product` gives that unit,
    which is the one that hardware has. Each product is shifted, and cut towards minus infinity, on its own.

    Attributes
    ----------
    input_features, output_features : int
    code_bits : int
        The zero symbol is ``2**code_bits``.
    weight_bits : int
        Width of the unsigned weights.
    bias_bits : int
        Width of the signed bias.
    guard_bits, largest_shift : int
        As in `AdaLogMatmulSpec`.
    requantize : RequantizeSpec
        Its input format is the accumulator.

    Constants
    ---------
    weight : [output_features, input_features], unsigned `weight_bits`
    zero_weight : [output_features], unsigned `weight_bits`
    bias : [output_features], in units of the accumulator
    shift_table, mantissa_table : as in `AdaLogMatmulSpec`
    multiplier, shift, zero_point : as in `RequantizeSpec`
    """

    kind = "adalog_linear"
    input_features: int = ranged(1, 1 << 14)
    output_features: int = ranged(1, 1 << 20)
    code_bits: int = ranged(2, 8)
    weight_bits: int = ranged(1, 15)
    bias_bits: int = ranged(1, 62)
    guard_bits: int = ranged(0, 32)
    largest_shift: int = ranged(0, 63)
    requantize: RequantizeSpec

    def validate(self) -> None:
        if not self.requantize.input.signed:
            raise HwsimError("adalog_linear spec: the accumulator (requantize.input) must be signed")
        if self.requantize.channels not in (1, self.output_features):
            raise HwsimError(f"adalog_linear spec: requantize.channels must be 1 or {self.output_features}")

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    def product(self, constants: Constants) -> tuple[AdaLogMatmulSpec, dict[str, np.ndarray], np.ndarray]:
        """The matrix product unit that gives the sums without the bias, its constants, and its second operand.

        The centred weights ``[input_features, output_features]`` are moved up by ``2**weight_bits``, which is
        the zero point of that operand. The requantizer's constants are those of the first output channel, and the
        accumulator is as wide as that unit proves it for any weights.
        """
        spec = AdaLogMatmulSpec(
            code_bits=self.code_bits,
            value_bits=self.weight_bits + 1,
            row_length=self.input_features,
            guard_bits=self.guard_bits,
            largest_shift=self.largest_shift,
            requantize=dataclasses.replace(self.requantize, channels=1),
        )
        zero = 1 << self.weight_bits
        shared = {name: constants[name] for name in ("shift_table", "mantissa_table", "zero_point")}
        shared |= {name: constants[name][:1] for name in ("multiplier", "shift")}
        shared["zero_v"] = np.array(zero)
        accumulator = IntFormat(signed_bits(*spec.bounds(shared)), signed=True)
        spec = dataclasses.replace(spec, requantize=dataclasses.replace(spec.requantize, input=accumulator))
        return spec, shared, (centred_weights(constants) + zero).T

    @property
    def constants(self) -> dict[str, Constant]:
        unsigned = IntFormat(self.weight_bits)
        entries = (1 << self.code_bits,)
        return {
            "weight": Constant((self.output_features, self.input_features), unsigned),
            "zero_weight": Constant((self.output_features,), unsigned),
            "bias": Constant((self.output_features,), IntFormat(self.bias_bits, signed=True)),
            "shift_table": Constant(entries, IntFormat(10)),
            "mantissa_table": Constant(entries, IntFormat(self.code_bits + 1)),
            **self.requantize.constants,
        }

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.code_bits + 1)

    @property
    def accumulator(self) -> IntFormat:
        return self.requantize.input

    @property
    def output(self) -> IntFormat:
        return self.requantize.output

    def shape(self, *inputs: Shape) -> Shape:
        *rest, features = inputs[0]
        if features != self.input_features:
            raise HwsimError(f"adalog_linear: {features} input features for a unit of {self.input_features}")
        return (*rest, self.output_features)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum, for any row of codes."""
        shift = constants["shift_table"].astype(np.int64)
        mantissa = np.where(shift > self.largest_shift, 0, constants["mantissa_table"].astype(np.int64))
        # A product reaches no farther than the largest of the codes, and is cut by less than one.
        largest = int(((mantissa << self.guard_bits) >> np.minimum(shift, 63)).max()) + 1
        bias = constants["bias"].astype(np.int64)
        weight = centred_weights(constants)
        low = (np.minimum(weight, 0).sum(axis=1) * largest - self.input_features + np.minimum(bias, 0)).min()
        high = (np.maximum(weight, 0).sum(axis=1) * largest + np.maximum(bias, 0)).max()
        return int(low), int(high)

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, "adalog_linear", FEWER_GUARD_BITS)

    def accumulate(self, constants: Constants, codes: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., output_features]``, int64, in units of ``2**-guard_bits / (2**(code_bits+1) - 2)``."""
        product, shared, weights = self.product(constants)
        rows = codes.reshape(-1, self.input_features)
        sums = product.accumulate(shared, rows, weights) + constants["bias"].astype(np.int64)
        return sums.reshape(*codes.shape[:-1], self.output_features)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., output_features]`` of codes ``[..., input_features]``."""
        return self.requantize.compute(constants, self.accumulate(constants, *inputs))
