# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False
"""Softmax and LayerNorm as Triton kernels: some rows a program, each read once."""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.execute.cuda.arithmetic import bit_length, divide_half_even, floor_sqrt, kept_code, round_half_even_shift


@triton.jit
def _below_maximum(scores, row, column, rows, length, readable, step):
    """Distances, int32, of stored scores from the maximum of their row; 0 outside, and what is inside."""
    inside = (row[:, None] < rows) & (column[None, :] < length)
    loaded = tl.load(
        scores + row.to(tl.int64)[:, None] * step + column[None, :],
        mask=(row[:, None] < rows) & (column[None, :] < readable),
        other=0,
    ).to(tl.int32)
    highest = tl.max(tl.where(inside, loaded, -(1 << 30)), axis=1)
    return tl.where(inside, highest[:, None] - loaded, 0), inside


@triton.jit(do_not_specialize=["rows"])
def log_softmax(
    scores, exponentials, table, out, rows, length, readable, score_step, out_step, last, past, offset,
    TABLE: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Log2 codes as in `hwsim.execute.softmax_kernels`: by the exponents of doubles that hold integers below 2^53."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, LENGTH)
    below, inside = _below_maximum(scores, row, column, rows, length, readable, score_step)
    value = tl.where(inside, tl.load(exponentials + below), 0.0)
    twice = 2.0 * tl.sum(value, axis=1)[:, None]
    above, thrice = twice + value, 3.0 * value
    code = ((above.to(tl.int64, bitcast=True) - thrice.to(tl.int64, bitcast=True)) >> 52).to(tl.int32) + 1
    code -= tl.where(thrice > twice, 1, 0) + tl.where(5.0 * value == twice, 1, 0)
    code = tl.where(code <= last, code, past)
    kept = kept_code(code, table, offset, TABLE)
    tl.store(out + row.to(tl.int64)[:, None] * out_step + column[None, :], kept, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def softmax(
    scores, exponentials, table, out, rows, length, readable, score_step, out_step, probability_bits, offset,
    TABLE: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """``round_half_even(2**probability_bits * E / S)`` of int64 exponentials."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, LENGTH)
    below, inside = _below_maximum(scores, row, column, rows, length, readable, score_step)
    value = tl.where(inside, tl.load(exponentials + below), 0)
    total = tl.maximum(tl.sum(value, axis=1), 1)[:, None]
    code = divide_half_even(value << probability_bits, total).to(tl.int32)
    kept = kept_code(code, table, offset, TABLE)
    tl.store(out + row.to(tl.int64)[:, None] * out_step + column[None, :], kept, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def layernorm(
    codes, alpha, gamma, beta, out, rows, channels, code_step, out_step, zero, fraction_bits, highest, offset,
    MANTISSA: tl.constexpr, RADICAND: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """`golden.layernorm`; `zero` is the zero point of stored codes."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CHANNELS)
    some = column < channels
    inside = (row[:, None] < rows) & some[None, :]
    stored = tl.load(codes + row.to(tl.int64)[:, None] * code_step + column[None, :], mask=inside, other=0)
    x = (stored.to(tl.int64) - zero) << tl.load(alpha + column, mask=some, other=0)[None, :]
    x = tl.where(inside, x, 0)
    first = tl.sum(x, axis=1)
    variance = channels * tl.sum(x * x, axis=1) - first * first
    half_length = (bit_length(variance) + 1) // 2
    excess = 2 * half_length - RADICAND
    leading = tl.where(excess >= 0, variance >> tl.maximum(excess, 0), variance << tl.maximum(-excess, 0))
    limit = tl.full((ROWS,), 1, tl.int64) << (RADICAND + 2 * (MANTISSA - 1))
    mantissa = tl.minimum(floor_sqrt(limit // tl.maximum(leading, 1)), (1 << MANTISSA) - 1)
    mantissa = tl.where(variance > 0, mantissa, 0)
    exponent = tl.where(variance > 0, MANTISSA - 1 + half_length, 0)
    scale = tl.load(gamma + column, mask=some, other=0)[None, :]
    moved = tl.load(beta + column, mask=some, other=0)[None, :] << exponent[:, None]
    numerator = scale * (mantissa[:, None] * (channels * x - first[:, None])) + moved
    code = round_half_even_shift(numerator, (exponent + fraction_bits)[:, None])
    code = tl.minimum(tl.maximum(code, 0), highest) - offset
    tl.store(out + row.to(tl.int64)[:, None] * out_step + column[None, :], code, mask=inside)
