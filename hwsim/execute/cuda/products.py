"""Matrix products of `golden` on the GPU: which kernel a unit takes, and its constants.

A unit whose right operand fits bytes takes `hwsim.execute.cuda.product_kernels.product`; saturating accumulators,
products that are cut one by one, and wide right operands take `exact_product`. Both are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from golden.spec import IntFormat
from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.element_kernels import requantize_sums
from hwsim.execute.cuda.launch import launch
from hwsim.execute.cuda.product_kernels import exact_product, product
from hwsim.execute.cuda.requantization import Requantization

_BYTE, _WORD = IntFormat(8, signed=True), IntFormat(32, signed=True)
# Sums a program of `requantize_sums` takes.
_BLOCK = 1024


def holds(form: IntFormat, low: int, high: int) -> bool:
    """Whether a format holds ``low..high``."""
    return form.minimum <= low and high <= form.maximum


@dataclass(frozen=True)
class Left:
    """How the left operand becomes numbers.

    Attributes
    ----------
    bits : int
        Width of its codes.
    values : ndarray of int64, optional
        What each code stands for, zero point included; the code itself by default.
    zero : ndarray of int64 [heads]
        Zero points of codes without `values`.
    """

    bits: int
    values: np.ndarray | None
    zero: np.ndarray


@dataclass(frozen=True)
class Digits:
    """Signed base-256 digits of a left operand: how many (0: its bytes as they are), and of which table."""

    count: int
    values: np.ndarray | None
    negated: bool


def digits_of(left: Left) -> Digits | None:
    """Digits of an operand, None where its numbers exceed 31 bits."""
    if left.values is None:
        if left.bits <= 8:
            return Digits(0, None, False)
        top = IntFormat(left.bits).maximum
        count = _count(int(-left.zero.max()), int(top - left.zero.min()))
        return None if count is None else Digits(count, None, False)
    low, high = int(left.values.min()), int(left.values.max())
    plain, turned = _count(low, high), _count(-high, -low)
    if turned is not None and (plain is None or turned < plain):
        return Digits(turned, -left.values, True)
    return None if plain is None else Digits(plain, left.values, False)


def _count(low: int, high: int) -> int | None:
    """Digits from -128 to 127 that hold ``low..high``; None for more than 31 bits."""
    for count in range(1, 5):
        ones = (256**count - 1) // 255
        if -128 * ones <= low and high <= 127 * ones:
            return count if holds(_WORD, low, high) else None
    return None


def digit_offset(count: int) -> int:
    """``128 * (1 + 256 + ...)`` as a signed 32-bit number."""
    offset = 128 * ((256**count - 1) // 255)
    return offset - (1 << 32) if offset > _WORD.maximum else offset


@dataclass(frozen=True)
class Sums:
    """How sums are kept: whether in 64 bits, and 64 or 32 less the width at which they wrap (0: they do not)."""

    long: bool
    spare: int


def sums_of(spec: Any, bounds: tuple[int, int]) -> Sums:
    """Of a unit whose overflow is "prove" or "wrap"."""
    if getattr(spec, "overflow", "prove") == "wrap":
        long = spec.accumulator.bits > 32
        return Sums(long, (64 if long else 32) - spec.accumulator.bits)
    return Sums(not holds(_WORD, *bounds), 0)


@dataclass(frozen=True)
class Tile:
    """Size of the tile of a program, and what it runs with."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def tile_of(inner: int, digits: int, *, ending_is_long: bool) -> Tile:
    """Tile of a product, as measured on an H100 for the shapes of DeiT-Tiny.

    Parameters
    ----------
    inner : int
    digits : int
        0 for bytes. What is looked up must not be loaded ahead: that is five times slower.
    ending_is_long : bool
        Zero points of both operands or a table make the end of the kernel longer than its products.
    """
    if digits:
        return Tile(64, 64, 64 if inner > 32 else 32, 4, 1)
    if ending_is_long:
        return Tile(64, 128, 64 if inner > 32 else 32, 4, 3)
    return Tile(128, 64, 128 if inner >= 512 else 64 if inner > 32 else 32, 4, 3)


class ByteProduct:
    """``requantize(left @ right + bias)`` by `product`, right an int8 tensor ``[batch or 1, heads, inner, columns]``.

    Parameters
    ----------
    left : Left
    digits : Digits
    zero_b : ndarray of int64 [heads]
        Zero points of stored right codes.
    bias : ndarray of int64 [columns] or None
    sums : Sums
    device : torch.device
    requantize : Requantization or None
        None leaves the sums.
    channels_are_heads : bool
        Of several channels of the requantizer.
    raised : int
        Bits that products are shifted left by; zero points are 0 then.
    """

    def __init__(
        self,
        left: Left,
        digits: Digits,
        zero_b: np.ndarray,
        bias: np.ndarray | None,
        sums: Sums,
        device: torch.device,
        requantize: Requantization | None,
        channels_are_heads: bool = False,
        raised: int = 0,
    ) -> None:
        kind = torch.int64 if sums.long else torch.int32
        offset = carriers.offset_of(left.bits)
        direct = digits.count == 0
        zero_a = left.zero - offset if direct else left.zero
        self.digits, self.sums, self.device, self.requantize = digits, sums, device, requantize
        self.zeros = bool(digits.values is None and zero_a.any()), bool(zero_b.any())
        self.zero_a, self.zero_b = (_modulo(zero, kind, device) for zero in (zero_a, zero_b))
        self.bias = None if bias is None or not bias.any() else _modulo(bias, kind, device)
        none = torch.zeros(1, dtype=kind, device=device)
        self.none, self.kind, self.raised = none, kind, raised
        self.values = none if digits.values is None else carriers.constant(digits.values, device, torch.int32)
        self.a_offset = 0 if direct else offset
        self.zero_head = int(max(len(zero_a), len(zero_b)) > 1)
        several = requantize is not None and requantize.channels > 1
        self.steps = int(several and channels_are_heads), int(several and not channels_are_heads)

    def __call__(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, heads: int) -> None:
        """Fill ``out [batch, heads, rows, columns]`` from ``left [batch, heads, rows, inner]``."""
        batch, (rows, inner), columns = len(out), left.shape[2:], right.shape[-1]
        end = self.requantize
        long = self.zeros[0] or (end is not None and end.end.has_table)
        tile = tile_of(inner, self.digits.count, ending_is_long=long)
        shared = self.none
        launch(
            product, (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns) * batch * heads,),
            left, right, self.values, shared if self.bias is None else self.bias, self.zero_a, self.zero_b,
            shared if end is None else end.multiplier, shared if end is None else end.addend,
            shared if end is None else end.shift, shared if end is None else end.end.table, out,
            rows, columns, inner, carriers.readable(left), carriers.readable(out), heads,
            *_steps(left)[:3], *_steps(right),
            out.stride(0), out.stride(1), out.stride(2),
            self.zero_head, *self.steps,
            self.a_offset, digit_offset(self.digits.count), self.raised, self.sums.spare,
            0 if end is None else end.highest, 0 if end is None else end.end.offset,
            DIGITS=self.digits.count, DECODED=self.digits.values is not None, NEGATED=self.digits.negated,
            ZERO_A=self.zeros[0], ZERO_B=self.zeros[1], RAISED=self.raised > 0, BIAS=self.bias is not None,
            LONG=self.sums.long, WRAPS=self.sums.spare > 0, RAW=end is None,
            SHIFT=0 if end is None else end.common_shift, TABLE=end is not None and end.end.has_table,
            ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner, EVEN=inner % tile.inner == 0,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def _steps(operand: torch.Tensor) -> tuple[int, ...]:
    """Strides of ``[batch, heads, .., ..]``; 0 where one is for all."""
    batch, heads, *inner = operand.stride()
    return (batch if operand.shape[0] > 1 else 0, heads if operand.shape[1] > 1 else 0, *inner)


def _modulo(values: np.ndarray, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """Constants modulo 2^32 where sums are."""
    narrowed = values.astype(np.int64)
    return carriers.constant(narrowed.astype(np.int32) if kind == torch.int32 else narrowed, device, kind)


class ExactProduct:
    """int64 sums by `exact_product`.

    Parameters
    ----------
    bits : tuple of int or None
        Widths of the codes of both operands; None for a right operand that is no code.
    zeros : tuple of ndarray of int64 [heads]
        Zero points of both.
    start : ndarray of int64 [columns] or None
    device : torch.device
    limits : tuple of int, optional
        What sums saturate to after every product.
    cut : tuple, optional
        Mantissas and shifts, int64, of all codes of the left operand, and the guard bits.
    """

    def __init__(
        self,
        bits: tuple[int, int | None],
        zeros: tuple[np.ndarray, np.ndarray],
        start: np.ndarray | None,
        device: torch.device,
        limits: tuple[int, int] | None = None,
        cut: tuple[np.ndarray, np.ndarray, int] | None = None,
    ) -> None:
        self.offsets = [0 if width is None else carriers.offset_of(width) for width in bits]
        self.zeros = [carriers.constant(zero, device) for zero in zeros]
        self.zero_head = int(len(zeros[0]) > 1)
        self.start = None if start is None else carriers.constant(start, device)
        self.limits, self.device = limits, device
        none = torch.zeros(1, dtype=torch.int64, device=device)
        mantissas, shifts, self.guard = (none, none, 0) if cut is None else (*cut[:2], cut[2])
        self.cut = cut is not None
        self.tables = [
            table if isinstance(table, torch.Tensor) else carriers.constant(table, device)
            for table in (mantissas, shifts)
        ]

    def __call__(self, left: torch.Tensor, right: torch.Tensor, heads: int) -> torch.Tensor:
        """Sums ``[batch, heads, rows, columns]`` of ``[batch, heads, rows, inner]`` and ``[.., inner, columns]``."""
        batch, (rows, inner), columns = max(len(left), len(right)), left.shape[2:], right.shape[-1]
        out = torch.empty((batch, heads, rows, columns), dtype=torch.int64, device=self.device)
        start = torch.zeros(columns, dtype=torch.int64, device=self.device) if self.start is None else self.start
        low, high = (0, 0) if self.limits is None else self.limits
        tile = 32
        launch(
            exact_product, (triton.cdiv(rows, tile) * triton.cdiv(columns, tile) * batch * heads,),
            left, right, *self.tables, start, *self.zeros, out, rows, columns, inner, heads,
            *_steps(left)[:3], *_steps(right),
            self.zero_head, *self.offsets, self.guard, low, high,
            DECODED=self.cut, SATURATES=self.limits is not None, ROWS=tile, COLUMNS=tile,
        )  # fmt: skip
        return out


def requantized(sums: torch.Tensor, constants: Requantization, inside_channel: int, wrap_bits: int = 0) -> torch.Tensor:
    """Codes of contiguous int64 sums; see `requantize_sums`."""
    out = carriers.contiguous(sums.shape, constants.end.dtype, sums.device)
    launch(
        requantize_sums, (triton.cdiv(sums.numel(), _BLOCK),),
        sums, constants.multiplier, constants.addend, constants.shift, constants.end.table, out, sums.numel(),
        inside_channel, constants.channels, 64 - wrap_bits if wrap_bits else 0, constants.highest,
        constants.end.offset, WRAPS=wrap_bits > 0, SHIFT=constants.common_shift,
        TABLE=constants.end.has_table, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
