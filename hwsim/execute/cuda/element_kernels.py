# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False
"""Units of one element as Triton kernels: tables, residual sums, requantization of finished sums."""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.execute.cuda.arithmetic import kept_code, requantize


@triton.jit(do_not_specialize=["count"])
def look_up(codes, table, out, count, offset, channels, entries, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Stored codes, contiguous, through a table, or through one a channel of the last axis."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    index = tl.load(codes + place, mask=inside, other=0).to(tl.int32) + offset
    if CHANNELS:
        index += (place % channels).to(tl.int32) * entries
    tl.store(out + place, tl.load(table + index, mask=inside, other=0), mask=inside)


@triton.jit(do_not_specialize=["rows", "b_rows"])
def add(
    a, b, multiplier_a, multiplier_b, addend, shift, out, rows, b_rows, channels, a_step, b_step, out_step,
    highest, offset, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Residual sums of rows; b repeats after `b_rows`. The addend holds what stored codes lack of their offset."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    some = column < channels
    inside = (row[:, None] < rows) & some[None, :]
    left = tl.load(a + row.to(tl.int64)[:, None] * a_step + column[None, :], mask=inside, other=0)
    other = row % b_rows
    right = tl.load(b + other.to(tl.int64)[:, None] * b_step + column[None, :], mask=inside, other=0)
    by_a = tl.load(multiplier_a + column, mask=some, other=0)[None, :]
    by_b = tl.load(multiplier_b + column, mask=some, other=0)[None, :]
    constant = tl.load(addend + column, mask=some, other=0)[None, :] + right.to(tl.int64) * by_b.to(tl.int64)
    down = tl.load(shift + column, mask=some, other=0)[None, :]
    code = requantize(left.to(tl.int32), by_a, constant, down, highest, SHIFT) - offset
    tl.store(out + row.to(tl.int64)[:, None] * out_step + column[None, :], code, mask=inside)


@triton.jit(do_not_specialize=["count"])
def requantize_sums(
    sums, multiplier, addend, shift, table, out, count, inside_channel, channels, spare, highest, offset,
    WRAPS: tl.constexpr, SHIFT: tl.constexpr, TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes of contiguous int64 sums; `inside_channel` sums lie together, then comes the next of the channels."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.load(sums + place, mask=inside, other=0)
    if WRAPS:
        total = (total << spare) >> spare
    channel = (place // inside_channel) % channels
    code = requantize(
        total,
        tl.load(multiplier + channel, mask=inside, other=0),
        tl.load(addend + channel, mask=inside, other=0),
        tl.load(shift + channel, mask=inside, other=0),
        highest,
        SHIFT,
    )
    kept = kept_code(code, table, offset, TABLE)
    tl.store(out + place, kept, mask=inside)
