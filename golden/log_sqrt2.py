"""Matrix products on log-sqrt2 codes: a sum of the even codes, one of the odd codes, and two multipliers at the end.

Source: RepQ-ViT (Li et al., ICCV 2023): code u stands for ``2**(-u/2)``. The released code multiplies each element
by sqrt(2) or 1; the even codes are powers of two, and so are the odd ones times sqrt(2), so that integers add up each
kind by shifts and the factor is applied once.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from golden.accumulate import FEWER_GUARD_BITS, accumulate, prove_fits, signed_bits
from golden.arithmetic import dyadic, saturate
from golden.asymmetric_linear import centred_weights
from golden.errors import HwsimError
from golden.heads import check_heads, head_axis, largest_centred, zero_point_constant
from golden.matmul import matmul_shape
from golden.requantize import RequantizeSpec
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


def lossless_guard_bits(code_bits: int) -> int:
    """Guard bits at which no shift of a product cuts anything: half the last code."""
    return ((1 << code_bits) - 1) // 2


def parity_sums(
    codes: np.ndarray, values: np.ndarray, code_bits: int, guard_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ``(value << guard_bits) >> code // 2`` over the even and over the odd codes, int64.

    Parameters
    ----------
    codes : ndarray [..., M, K]
        The zero symbol ``2**code_bits`` weighs nothing.
    values : ndarray of int64 [..., K, N]

    Returns
    -------
    even, odd : ndarray of int64 [..., M, N]
        A product is cut towards minus infinity below the guard bits.
    """
    exact = IntFormat(63, signed=True)
    sums = []
    for parity in range(2):
        total: np.ndarray = np.zeros(1, np.int64)
        for code in range(parity, 1 << code_bits, 2):
            term = (values << guard_bits) >> min(code // 2, 63)
            if term.any():
                total = total + accumulate((codes == code).astype(np.int64), term, 0, exact, "prove")
        sums.append(total)
    shape = np.broadcast_shapes(codes.shape[:-1] + (1,), values.shape[:-2] + (1, values.shape[-1]))
    return np.broadcast_to(sums[0], shape), np.broadcast_to(sums[1], shape)


def join_parities(even: np.ndarray, odd: np.ndarray, constants: Constants, output: IntFormat) -> np.ndarray:
    """``saturate(round_half_even((even*multiplier + odd*multiplier_odd) / 2**shift + zero_point))``.

    Multipliers and shift lie on the last axis, or are broadcast.
    """
    joined = even * constants["multiplier"].astype(np.int64) + odd * constants["multiplier_odd"].astype(np.int64)
    return saturate(dyadic(joined, 1, constants["shift"], constants["zero_point"]), output)


class LogSqrt2SumsSpec(Spec):
    """The sums of a product on log-sqrt2 codes alone, `parity_sums` of ``v - zero_v``: what hardware has a unit for.

    `LogSqrt2MatmulSpec.sums` and `LogSqrt2LinearSpec.sums` say which of these a product is made of.

    Attributes
    ----------
    code_bits, value_bits, row_length, guard_bits : int
        As in `LogSqrt2MatmulSpec`.
    accumulator_bits : int
        Width of the signed sums.

    Constants
    ---------
    zero_v : signed `value_bits` + 1
    """

    kind = "log_sqrt2_sums"
    code_bits: int = ranged(1, 8)
    value_bits: int = ranged(1, 16)
    row_length: int = ranged(1, 1 << 14)
    guard_bits: int = ranged(0, 40)
    accumulator_bits: int = ranged(2, 62)

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        return {"zero_v": zero_point_constant(1, self.value_bits)}

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.accumulator_bits, signed=True)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.code_bits + 1), IntFormat(self.value_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][-1] > self.row_length:
            raise HwsimError(f"{self.kind}: a row of {inputs[0][-1]} exceeds row_length {self.row_length}")
        return (*matmul_shape(inputs[0], inputs[1], self.kind), 2)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum of one parity, for any row of codes."""
        largest = (largest_centred(constants["zero_v"], self.value_bits) << self.guard_bits) * self.row_length
        return -largest, largest

    def prove(self, constants: Constants) -> None:
        prove_fits(*self.bounds(constants), self.output, self.kind, FEWER_GUARD_BITS)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Sums ``[..., M, N, 2]``, even codes first, of codes ``[..., M, K]`` and values ``[..., K, N]``."""
        codes, values = inputs
        centred = values.astype(np.int64) - constants["zero_v"].astype(np.int64)
        return np.stack(parity_sums(codes, centred, self.code_bits, self.guard_bits), axis=-1)


def _check_width(spec: LogSqrt2MatmulSpec | LogSqrt2LinearSpec) -> None:
    requantize = spec.requantize
    if requantize.input.bits + requantize.multiplier_bits > 61:
        raise HwsimError(
            f"{spec.kind} spec: an accumulator of {requantize.input.bits} bits and two multipliers of "
            f"{requantize.multiplier_bits} bits exceed 62 bits; take fewer guard bits"
        )


class LogSqrt2MatmulSpec(Spec):
    """Log-sqrt2 codes times V: `parity_sums` of ``v - zero_v``, then `join_parities`.

    Attributes
    ----------
    code_bits, value_bits, row_length : int
        As in `golden.log2_matmul.Log2MatmulSpec`; the zero symbol is ``2**code_bits``.
    guard_bits : int
        Fraction bits of the accumulators.
    heads : int
        See `golden.heads`.
    requantize : RequantizeSpec
        Its input format is that of both accumulators.

    Constants
    ---------
    zero_v : see `golden.heads`, signed `value_bits` + 1
    multiplier, multiplier_odd : of the even and of the odd codes, as in `RequantizeSpec`
    shift, zero_point : as in `RequantizeSpec`
    """

    kind = "log_sqrt2_matmul"
    code_bits: int = ranged(1, 8)
    value_bits: int = ranged(1, 16)
    row_length: int = ranged(1, 1 << 14)
    guard_bits: int = ranged(0, 40)
    heads: int = ranged(1, 1 << 10, default=1)
    requantize: RequantizeSpec

    def validate(self) -> None:
        check_heads(self)
        _check_width(self)

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        requantize = self.requantize.constants
        zero_v = zero_point_constant(self.heads, self.value_bits)
        return {"zero_v": zero_v, "multiplier_odd": requantize["multiplier"], **requantize}

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

    @property
    def sums(self) -> LogSqrt2SumsSpec:
        """The unit that gives both sums, of one head."""
        return LogSqrt2SumsSpec(
            code_bits=self.code_bits,
            value_bits=self.value_bits,
            row_length=self.row_length,
            guard_bits=self.guard_bits,
            accumulator_bits=self.accumulator.bits,
        )

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum of one parity, for any row of codes."""
        return self.sums.bounds(constants)

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, self.kind, FEWER_GUARD_BITS)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., M, N]``."""
        codes, values = inputs
        centred = values.astype(np.int64) - head_axis(constants["zero_v"])
        even, odd = parity_sums(codes, centred, self.code_bits, self.guard_bits)
        return self.join(constants, even, odd)

    def join(self, constants: Constants, even: np.ndarray, odd: np.ndarray) -> np.ndarray:
        """Codes of both sums ``[..., M, N]``."""
        if self.heads == 1:
            return join_parities(even, odd, constants, self.output)
        swapped = join_parities(np.swapaxes(even, -3, -1), np.swapaxes(odd, -3, -1), constants, self.output)
        return np.swapaxes(swapped, -3, -1)


class LogSqrt2LinearSpec(Spec):
    """A linear layer on log-sqrt2 codes: `parity_sums` of the weights, the bias in the even sum, then `join_parities`.

    Attributes
    ----------
    input_features, output_features, code_bits, weight_bits, bias_bits, guard_bits : int
        As in `golden.adalog_linear.AdaLogLinearSpec`.
    requantize : RequantizeSpec
        Its input format is that of both accumulators.

    Constants
    ---------
    weight, zero_weight, bias : as in `golden.adalog_linear.AdaLogLinearSpec`
    multiplier, multiplier_odd, shift, zero_point : as in `LogSqrt2MatmulSpec`
    """

    kind = "log_sqrt2_linear"
    input_features: int = ranged(1, 1 << 14)
    output_features: int = ranged(1, 1 << 20)
    code_bits: int = ranged(1, 8)
    weight_bits: int = ranged(1, 15)
    bias_bits: int = ranged(1, 62)
    guard_bits: int = ranged(0, 40)
    requantize: RequantizeSpec

    def validate(self) -> None:
        if not self.requantize.input.signed or self.requantize.channels not in (1, self.output_features):
            raise HwsimError(
                f"{self.kind} spec: requantize must have a signed input (the accumulator) and 1 or "
                f"{self.output_features} channels"
            )
        _check_width(self)

    @property
    def zero_symbol(self) -> int:
        return 1 << self.code_bits

    @property
    def constants(self) -> dict[str, Constant]:
        unsigned, requantize = IntFormat(self.weight_bits), self.requantize.constants
        return {
            "weight": Constant((self.output_features, self.input_features), unsigned),
            "zero_weight": Constant((self.output_features,), unsigned),
            "bias": Constant((self.output_features,), IntFormat(self.bias_bits, signed=True)),
            "multiplier_odd": requantize["multiplier"],
            **requantize,
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

    def sums(self, constants: Constants) -> tuple[LogSqrt2SumsSpec, dict[str, np.ndarray], np.ndarray]:
        """The unit that gives both sums without the bias, its constants, and its second operand.

        The centred weights ``[input_features, output_features]`` are moved up by ``2**weight_bits``, which is the zero
        point of that operand; the sums are as wide as the unit proves them for any weights.
        """
        zero = 1 << self.weight_bits
        found = {"zero_v": np.array(zero)}
        widest = LogSqrt2SumsSpec(
            code_bits=self.code_bits,
            value_bits=self.weight_bits + 1,
            row_length=self.input_features,
            guard_bits=self.guard_bits,
            accumulator_bits=62,
        )
        spec = dataclasses.replace(widest, accumulator_bits=signed_bits(*widest.bounds(found)))
        return spec, found, (centred_weights(constants) + zero).T

    def shape(self, *inputs: Shape) -> Shape:
        *rest, features = inputs[0]
        if features != self.input_features:
            raise HwsimError(f"{self.kind}: {features} input features for a unit of {self.input_features}")
        return (*rest, self.output_features)

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Range of every partial sum of one parity, for any row of codes."""
        bias, weight = constants["bias"].astype(np.int64), centred_weights(constants)
        low = (np.minimum(weight, 0).sum(axis=1) << self.guard_bits) + np.minimum(bias, 0)
        high = (np.maximum(weight, 0).sum(axis=1) << self.guard_bits) + np.maximum(bias, 0)
        return int(low.min()) - self.input_features, int(high.max())

    def prove(self, constants: Constants) -> None:
        self.requantize.prove(constants)
        prove_fits(*self.bounds(constants), self.accumulator, self.kind, FEWER_GUARD_BITS)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., output_features]`` of codes ``[..., input_features]``."""
        (codes,) = inputs
        rows = codes.reshape(-1, self.input_features)
        even, odd = parity_sums(rows, centred_weights(constants).T, self.code_bits, self.guard_bits)
        result = join_parities(even + constants["bias"].astype(np.int64), odd, constants, self.output)
        return result.reshape(*codes.shape[:-1], self.output_features)
