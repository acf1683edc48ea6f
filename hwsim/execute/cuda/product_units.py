"""The matrix products of `golden` as operations on stored codes: see `hwsim.execute.cuda.products`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from golden.asymmetric_linear import centred_weights
from golden.spec import Constants, IntFormat
from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.products import (
    ByteProduct,
    Digits,
    ExactProduct,
    Left,
    Sums,
    digits_of,
    holds,
    requantized,
    sums_of,
)
from hwsim.execute.cuda.requantization import Requantization, Table, requantization, with_bias

Operation = Callable[..., torch.Tensor]

_BYTE = IntFormat(8, signed=True)
# Products of two bytes whose sum has 32 bits. A tensor core may saturate a longer one (``satfinite``), so that not even
# a sum that wraps would be right.
_LONGEST = (1 << 17) - 1
_NO_ZERO = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Setting:
    """What a unit's operation depends on besides spec and constants.

    Attributes
    ----------
    device : torch.device
    table : Table or None
        A unit behind it that is part of its kernel.
    merged : bool
        Heads will be put side by side next.
    reachable : collection of int or None
        Codes that the first input can have, where that is known.
    """

    device: torch.device
    table: Table | None = None
    merged: bool = False
    reachable: Collection[int] | None = None


@dataclass(frozen=True)
class Cut:
    """Products of a left code that are shifted one by one: ``(mantissa[code] * y << guard) >> shift[code]``.

    Attributes
    ----------
    mantissas, shifts : ndarray of int64, an element a code
    guard : int
    """

    mantissas: np.ndarray
    shifts: np.ndarray
    guard: int

    def weights(self, reachable: Collection[int] | None) -> np.ndarray | None:
        """What each code weighs where no product of a reachable code loses anything, else None."""
        lossless = (self.shifts <= self.guard) | (self.mantissas == 0)
        codes = np.arange(len(self.shifts))
        if not (lossless | ~np.isin(codes, codes if reachable is None else list(reachable))).all():
            return None
        return np.where(lossless, self.mantissas << np.maximum(self.guard - self.shifts, 0), 0)


# ------------------------------------------------------------------------------------------- constant right operands


class _Linear:
    """A linear unit of any kind.

    Parameters
    ----------
    weight : ndarray of int64 [outputs, inputs]
        Centred; they stand for ``weight << raised``.
    bias : ndarray of int64 [outputs] or None
    left : Left
    cut : Cut, optional
        Its weights are `left.values` where that is enough.
    limits : tuple of int, optional
        Of a saturating accumulator.
    requantize : callable or None
        From whether sums have 32 bits to constants; None leaves int64 sums.
    """

    def __init__(
        self,
        spec: Any,
        weight: np.ndarray,
        bias: np.ndarray | None,
        left: Left,
        sums: Sums,
        setting: Setting,
        requantize: Callable[[bool], Requantization] | None,
        cut: Cut | None = None,
        raised: int = 0,
    ) -> None:
        saturates, wraps = (getattr(spec, "overflow", "prove") == kind for kind in ("saturate", "wrap"))
        digits = None if saturates or cut is not None else digits_of(left)
        bytes_do = digits is not None and holds(_BYTE, int(weight.min()), int(weight.max()))
        bytes_do = bytes_do and weight.shape[1] <= _LONGEST
        self.outputs, self.setting = len(weight), setting
        self.wrap_bits = spec.accumulator.bits if wraps else 0
        self.product: ByteProduct | None = None
        self.constants = None if requantize is None else requantize(bytes_do and not sums.long)
        if bytes_do:
            assert digits is not None
            if digits.count == 0:
                # Bytes are kept lower than the codes: what that takes away is constant.
                offset = carriers.offset_of(left.bits)
                bias = offset * (weight << raised).sum(axis=1) + (0 if bias is None else bias)
                left = replace(left, zero=np.array([offset], np.int64))
            largest = max(abs(number) for number in _stored(left, digits))
            reach = int(np.abs(weight).sum(axis=1).max()) * largest << raised
            # What wraps does so with its bias, which therefore stays in the sums.
            constants = self.constants if reach < 1 << 31 and not wraps else None
            if constants is not None and constants.common_shift and bias is not None:
                self.constants, bias = with_bias(constants, bias), None
            self.product = ByteProduct(
                left, digits, _NO_ZERO, bias, sums, setting.device, self.constants, raised=raised
            )
            kind = torch.int8
        else:
            limits = (spec.accumulator.minimum, spec.accumulator.maximum) if saturates else None
            if cut is None and left.values is not None:
                cut = Cut(left.values, np.zeros_like(left.values), 0)
            tables = None if cut is None else (cut.mantissas, cut.shifts, cut.guard)
            self.exact = ExactProduct((left.bits, None), (_NO_ZERO, _NO_ZERO), bias, setting.device, limits, tables)
            weight, kind = weight << raised, torch.int64
        # [1, 1, inputs, outputs], inputs side by side.
        self.weight = carriers.constant(weight, setting.device, kind).t()[None, None]

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        rows = carriers.as_rows(codes)[None, None]
        shape = (*codes.shape[:-1], self.outputs)
        if self.product is None:
            sums = self.exact(rows, self.weight, 1)
            found = sums if self.constants is None else requantized(sums, self.constants, 1, self.wrap_bits)
            return found.view(shape)
        dtype = self.constants.end.dtype if self.constants is not None else self.product.kind
        out = carriers.empty(shape, dtype, self.setting.device)
        self.product(rows, self.weight, out.flatten(0, -2)[None, None], 1)
        return out


def _linear_of(
    spec: Any, constants: Constants, setting: Setting, weight: np.ndarray, left: Left, cut: Cut | None = None
) -> Operation:
    def requantize(words: bool) -> Requantization:
        return requantization(spec.requantize, constants, setting.device, setting.table, words=words)

    bounds = spec.bounds(constants)
    bias = constants["bias"].astype(np.int64)
    # `weight` is without the shift of `LinearSpec.effective_weights`, so that it fits bytes; sums are shifted instead.
    raised = getattr(spec, "bias_fraction_bits", 0)
    return _Linear(spec, weight, bias, left, sums_of(spec, bounds), setting, requantize, cut, raised)


def linear(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.linear`."""
    return _linear_of(spec, constants, setting, constants["weight"].astype(np.int64), _plain(spec.input_bits))


def asymmetric_linear(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.asymmetric_linear`."""
    return _linear_of(spec, constants, setting, centred_weights(constants), _plain(spec.input_bits))


def twin_linear(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.twin.TwinLinearSpec`."""
    left = Left(spec.input_bits, spec.decoded(constants), _NO_ZERO)
    return _linear_of(spec, constants, setting, constants["weight"].astype(np.int64), left)


def adalog_linear(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.adalog_linear`."""
    cut = _adalog_cut(spec, constants)
    weights = cut.weights(setting.reachable)
    left = Left(spec.code_bits + 1, weights, _NO_ZERO)
    return _linear_of(spec, constants, setting, centred_weights(constants), left, cut if weights is None else None)


def log_sqrt2_linear(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.log_sqrt2.LogSqrt2LinearSpec`."""
    weight, bias = centred_weights(constants), constants["bias"].astype(np.int64)
    sums = sums_of(spec, spec.bounds(constants))
    parts = []
    for parity, start in enumerate((bias, None)):
        cut = _parity_cut(spec, parity)
        weights = cut.weights(setting.reachable)
        left = Left(spec.code_bits + 1, weights, _NO_ZERO)
        parts.append(
            _Linear(
                spec, weight, start, left, sums, setting, None, cut if weights is None else None
            )
        )  # fmt: skip
    join = _Join(spec, constants, setting)
    return lambda codes: join(parts[0](codes), parts[1](codes), 1)


def _plain(bits: int) -> Left:
    return Left(bits, None, _NO_ZERO)


def _adalog_cut(spec: Any, constants: Constants) -> Cut:
    """Tables for every code that the format holds; those past the last weigh nothing."""
    shift, mantissa = (constants[name].astype(np.int64) for name in ("shift_table", "mantissa_table"))
    dead = shift > spec.largest_shift
    spare = np.zeros(len(shift), np.int64)
    return Cut(
        np.append(np.where(dead, 0, mantissa), spare), np.append(np.where(dead, 0, shift), spare), spec.guard_bits
    )


def _parity_cut(spec: Any, parity: int) -> Cut:
    """Codes of one parity weigh ``2**-(code // 2)``, the others nothing."""
    code = np.arange(2 << spec.code_bits)
    chosen = (code < spec.zero_symbol) & (code % 2 == parity)
    return Cut(chosen.astype(np.int64), np.where(chosen, np.minimum(code // 2, 63), 0), spec.guard_bits)


class _Join:
    """Even and odd sums of log-sqrt2 codes to codes: `golden.log_sqrt2.join_parities`."""

    def __init__(self, spec: Any, constants: Constants, setting: Setting) -> None:
        one = {**constants, "multiplier": np.ones_like(constants["multiplier"])}
        self.constants = requantization(spec.requantize, one, setting.device, setting.table, words=False)
        self.even, self.odd = (
            carriers.constant(constants[name], setting.device) for name in ("multiplier", "multiplier_odd")
        )

    def __call__(self, even: torch.Tensor, odd: torch.Tensor, inside_channel: int) -> torch.Tensor:
        """Of sums of one shape; `inside_channel` as in `hwsim.execute.cuda.products.requantized`."""
        # [.., channels, inside]: for columns as channels nothing is inside.
        shape = (-1, self.constants.channels, inside_channel) if self.constants.channels > 1 else (-1, 1, 1)
        factors = self.even[:, None], self.odd[:, None]
        parts = (
            part.reshape(shape).to(torch.int64) * factor for part, factor in zip((even, odd), factors, strict=True)
        )
        joined = sum(parts, start=torch.zeros((), dtype=torch.int64, device=even.device))
        return requantized(joined.contiguous(), self.constants, inside_channel).view(even.shape)


def _stored(left: Left, digits: Digits) -> tuple[int, int]:
    """Range of what the weights are multiplied by."""
    if left.values is not None:
        return int(left.values.min()), int(left.values.max())
    offset = carriers.offset_of(left.bits) if digits.count == 0 else 0
    return -offset, IntFormat(left.bits).maximum - offset


# -------------------------------------------------------------------------------------------- products of activations


class _Matmul:
    """A product of two activations of any kind; `left.zero` and `zero_b` are those of the codes."""

    def __init__(
        self,
        spec: Any,
        left: Left,
        right_bits: int,
        zero_b: np.ndarray,
        sums: Sums,
        setting: Setting,
        requantize: Callable[[bool], Requantization] | None,
        cut: Cut | None = None,
    ) -> None:
        saturates = getattr(spec, "overflow", "prove") == "saturate"
        digits: Digits | None = None if saturates or cut is not None else digits_of(left)
        bytes_do = digits is not None and right_bits <= 8 and getattr(spec, "inner", 0) <= _LONGEST
        self.wrap_bits = spec.accumulator.bits if getattr(spec, "overflow", "prove") == "wrap" else 0
        self.setting, self.heads = setting, spec.heads
        self.constants = None if requantize is None else requantize(bytes_do and not sums.long)
        self.product: ByteProduct | None = None
        if bytes_do:
            assert digits is not None
            offset = carriers.offset_of(right_bits)
            self.product = ByteProduct(
                left, digits, zero_b - offset, None, sums, setting.device, self.constants, spec.heads > 1
            )
        else:
            limits = (spec.accumulator.minimum, spec.accumulator.maximum) if saturates else None
            if cut is None and left.values is not None:
                cut = Cut(left.values, np.zeros_like(left.values), 0)
            tables = None if cut is None else (cut.mantissas, cut.shifts, cut.guard)
            self.exact = ExactProduct(
                (left.bits, right_bits), (left.zero, zero_b), None, setting.device, limits, tables
            )

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = self._four_axes(a), self._four_axes(b)
        if left.stride(-1) != 1:
            left = left.contiguous()
        heads, rows, columns = left.shape[1], left.shape[2], right.shape[3]
        batch = max(len(left), len(right))
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns)
        if self.product is None:
            sums = self.exact(left, right, heads)
            if self.constants is None:
                return sums.view(shape)
            return requantized(sums, self.constants, rows * columns, self.wrap_bits).view(shape)
        dtype = self.constants.end.dtype if self.constants is not None else self.product.kind
        if self.setting.merged:
            out = carriers.empty((batch, rows, heads, columns), dtype, self.setting.device).transpose(1, 2)
        else:
            out = carriers.empty((batch, heads, rows, columns), dtype, self.setting.device)
        self.product(left, right, out, heads)
        if len(shape) == 3:
            return out[0] if self.heads > 1 else out[:, 0]
        return out.unflatten(0, shape[:-3]) if len(shape) > 4 else out

    def _four_axes(self, operand: torch.Tensor) -> torch.Tensor:
        """``[batch, heads, M, N]`` of ``[..., M, N]``; a view wherever that is possible."""
        if operand.ndim == 3:
            return operand[None] if self.heads > 1 else operand[:, None]
        return operand.flatten(0, -4) if operand.ndim > 4 else operand


def _matmul_of(
    spec: Any,
    constants: Constants,
    setting: Setting,
    left: Left,
    right: tuple[int, str],
    cut: Cut | None = None,
) -> Operation:
    def requantize(words: bool) -> Requantization:
        return requantization(spec.requantize, constants, setting.device, setting.table, words=words)

    bits, name = right
    return _Matmul(
        spec, left, bits, _per_head(constants[name]), sums_of(spec, spec.bounds(constants)), setting, requantize, cut
    )


def _per_head(zero: np.ndarray) -> np.ndarray:
    return zero.astype(np.int64).reshape(-1)


def matmul(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.matmul`."""
    left = Left(spec.a_bits, None, _per_head(constants["zero_a"]))
    return _matmul_of(spec, constants, setting, left, (spec.b_bits, "zero_b"))


def log2_matmul(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.log2_matmul`."""
    bits = spec.inputs[0].bits
    codes = np.arange(1 << bits)
    weights = np.int64(1) << (spec.last_code - np.minimum(codes, spec.last_code))
    weights[codes == spec.zero_symbol] = 0
    return _matmul_of(spec, constants, setting, _weighted(bits, weights, spec), (spec.value_bits, "zero_v"))


def twin_matmul(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.twin.TwinMatmulSpec`."""
    left = _weighted(spec.code_bits, spec.weights(constants), spec)
    return _matmul_of(spec, constants, setting, left, (spec.value_bits, "zero_v"))


def adalog_matmul(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.adalog.AdaLogMatmulSpec`."""
    cut = _adalog_cut(spec, constants)
    weights = cut.weights(setting.reachable)
    left = _weighted(spec.code_bits + 1, weights, spec)
    right = spec.value_bits, "zero_v"
    return _matmul_of(spec, constants, setting, left, right, cut if weights is None else None)


def log_sqrt2_matmul(spec: Any, constants: Constants, setting: Setting) -> Operation:
    """`golden.log_sqrt2.LogSqrt2MatmulSpec`."""
    parts = []
    for parity in range(2):
        cut = _parity_cut(spec, parity)
        weights = cut.weights(setting.reachable)
        left = _weighted(spec.code_bits + 1, weights, spec)
        parts.append(
            _Matmul(
                spec, left, spec.value_bits, _per_head(constants["zero_v"]), sums_of(spec, spec.bounds(constants)),
                replace(setting, merged=False), None, cut if weights is None else None,
            )
        )  # fmt: skip
    join = _Join(spec, constants, setting)

    def operation(codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        even, odd = parts[0](codes, values), parts[1](codes, values)
        return join(even, odd, even.shape[-2] * even.shape[-1])

    return operation


def _weighted(bits: int, weights: np.ndarray | None, spec: Any) -> Left:
    return Left(bits, weights, np.zeros(spec.heads, np.int64))


UNITS: dict[str, Callable[[Any, Constants, Setting], Operation]] = {
    "linear": linear,
    "asymmetric_linear": asymmetric_linear,
    "twin_linear": twin_linear,
    "adalog_linear": adalog_linear,
    "log_sqrt2_linear": log_sqrt2_linear,
    "matmul": matmul,
    "log2_matmul": log2_matmul,
    "twin_matmul": twin_matmul,
    "adalog_matmul": adalog_matmul,
    "log_sqrt2_matmul": log_sqrt2_matmul,
}
