# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False, check-untyped-defs=False
"""Matrix products of integers as Triton kernels.

`product` sends bytes through the tensor cores. A left operand that is wider than a byte, or stands for what a table
says, becomes signed base-256 digits in registers: the digit of place p of a value x is byte p of
``x + 128 * (1 + 256 + ...)``, less 128. The products of each digit have sums of their own, which are joined at the
end. The sum of one digit's products has 32 bits (see `hwsim.execute.cuda.product_units`), because tensor cores may
saturate; sums joined in 32 bits are exact modulo 2^32, which is enough where the result is proven to fit, or wraps.

`exact_product` is for all that is left: 64-bit integers, one element of the inner axis after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.execute.cuda.arithmetic import kept_code, requantize


@triton.jit(do_not_specialize=["rows"])
def product(
    a,
    b,
    values,
    bias,
    zero_a,
    zero_b,
    multiplier,
    addend,
    shift,
    table,
    out,
    rows,
    columns,
    inner,
    readable,
    writable,
    heads,
    a_batch,
    a_head,
    a_row,
    b_batch,
    b_head,
    b_inner,
    b_column,
    out_batch,
    out_head,
    out_row,
    zero_head,
    channel_head,
    channel_column,
    a_offset,
    digit_offset,
    raised,
    spare,
    highest,
    out_offset,
    DIGITS: tl.constexpr,
    DECODED: tl.constexpr,
    NEGATED: tl.constexpr,
    ZERO_A: tl.constexpr,
    ZERO_B: tl.constexpr,
    RAISED: tl.constexpr,
    BIAS: tl.constexpr,
    LONG: tl.constexpr,
    WRAPS: tl.constexpr,
    RAW: tl.constexpr,
    SHIFT: tl.constexpr,
    TABLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``a @ b`` of stored codes, one tile of one head of one image, to codes or (RAW) to sums.

    Zero points, one a head (`zero_head` 1) or one, are those of stored codes. DIGITS 0 takes the bytes of a as they
    are. Else the value of a stored code plus `a_offset` is that number less the zero point of a, or its entry in
    `values` (DECODED), which may be the negative (NEGATED) where that has fewer digits. Sums are shifted left by
    `raised` before the bias is added; LONG sums are int64. Up to
    `readable` elements of a row of a may be read, and up to `writable` of one of out be written: padding makes them
    whole vectors. EVEN: the inner axis is a multiple of INNER.
    """
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    tile, group = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    image, head = (group // heads).to(tl.int64), group % heads
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, INNER)
    a_rows = a + image * a_batch + head * a_head + row.to(tl.int64)[:, None] * a_row
    b_columns = b + image * b_batch + head * b_head + column[None, :] * b_column
    in_rows, in_columns = row[:, None] < rows, column[None, :] < columns

    row_total = tl.zeros((ROWS,), tl.int64 if LONG else tl.int32)
    column_total = tl.zeros((COLUMNS,), tl.int32)
    # Of the digits, the highest first; those that are not there cost nothing.
    sums, second, third, fourth = (
        tl.zeros((ROWS, COLUMNS), tl.int32),
        tl.zeros((ROWS, COLUMNS), tl.int32),
        tl.zeros((ROWS, COLUMNS), tl.int32),
        tl.zeros((ROWS, COLUMNS), tl.int32),
    )
    for start in range(0, inner, INNER):
        k = start + step
        inside = k[None, :] < inner
        if EVEN:
            left = tl.load(a_rows + k[None, :], mask=in_rows, other=0)
            right = tl.load(b_columns + k[:, None] * b_inner, mask=in_columns, other=0)
        else:
            left = tl.load(a_rows + k[None, :], mask=in_rows & (k[None, :] < readable), other=0)
            right = tl.load(b_columns + k[:, None] * b_inner, mask=in_columns & (k[:, None] < inner), other=0)
        if DIGITS == 0:
            if ZERO_B:
                counted = left.to(tl.int32)
                row_total += tl.sum(counted if EVEN else tl.where(inside, counted, 0), axis=1)
            if ZERO_A:
                column_total += tl.sum(right.to(tl.int32), axis=0)
            sums = tl.dot(left, right, sums, out_dtype=tl.int32)
        else:
            value = left.to(tl.int32) + a_offset
            if DECODED:
                value = tl.load(values + (value if EVEN else tl.where(inside, value, 0)))
            elif ZERO_A:
                value -= tl.load(zero_a + head * zero_head).to(tl.int32)
            if ZERO_B:
                counted = value if EVEN else tl.where(inside, value, 0)
                row_total += tl.sum(counted.to(tl.int64) if LONG else counted, axis=1)
            if DIGITS == 1:
                sums = tl.dot(value.to(tl.int8), right, sums, out_dtype=tl.int32)
            else:
                # Less 128 is the highest bit of a byte flipped, in all bytes at once.
                digits = (value + digit_offset) ^ -0x7F7F7F80
                sums = tl.dot((digits >> (8 * (DIGITS - 1))).to(tl.int8), right, sums, out_dtype=tl.int32)
                second = tl.dot((digits >> (8 * (DIGITS - 2))).to(tl.int8), right, second, out_dtype=tl.int32)
                if DIGITS > 2:
                    third = tl.dot((digits >> (8 * (DIGITS - 3))).to(tl.int8), right, third, out_dtype=tl.int32)
                if DIGITS > 3:
                    fourth = tl.dot(digits.to(tl.int8), right, fourth, out_dtype=tl.int32)
    total = sums.to(tl.int64) if LONG else sums
    if DIGITS > 1:
        total = total * 256 + second
    if DIGITS > 2:
        total = total * 256 + third
    if DIGITS > 3:
        total = total * 256 + fourth

    channel = head * channel_head + column * channel_column
    some = column < columns
    if ZERO_B:
        total -= row_total[:, None] * tl.load(zero_b + head * zero_head)
    if ZERO_A and DIGITS == 0:
        total -= column_total[None, :] * tl.load(zero_a + head * zero_head)
        if ZERO_B:
            total += inner * tl.load(zero_a + head * zero_head) * tl.load(zero_b + head * zero_head)
    if NEGATED:
        total = -total
    if RAISED:
        total = total << raised
    if BIAS:
        total += tl.load(bias + column, mask=some, other=0)[None, :]
    if WRAPS:
        total = (total << spare) >> spare
    place = image * out_batch + head * out_head + row.to(tl.int64)[:, None] * out_row + column[None, :]
    if RAW:
        tl.store(out + place, total, mask=in_rows & (column[None, :] < writable))
    else:
        code = requantize(
            total,
            tl.load(multiplier + channel, mask=some, other=0)[None, :],
            tl.load(addend + channel, mask=some, other=0)[None, :],
            tl.load(shift + channel, mask=some, other=0)[None, :],
            highest,
            SHIFT,
        )
        kept = kept_code(code, table, out_offset, TABLE)
        tl.store(out + place, kept, mask=in_rows & (column[None, :] < writable))


@triton.jit(do_not_specialize=["rows"])
def exact_product(
    a,
    b,
    mantissas,
    shifts,
    start,
    zero_a,
    zero_b,
    out,
    rows,
    columns,
    inner,
    heads,
    a_batch,
    a_head,
    a_row,
    b_batch,
    b_head,
    b_inner,
    b_column,
    zero_head,
    a_offset,
    b_offset,
    guard,
    low,
    high,
    DECODED: tl.constexpr,
    SATURATES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """int64 sums ``start + sum_k x_k * y_k`` [batch, heads, rows, columns], clipped after every product (SATURATES).

    x and y are stored codes plus their offset, less the zero point of the head. DECODED: a code of the left operand
    weighs ``((mantissas[code] * y) << guard) >> shifts[code]``, each product cut on its own.
    """
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    tile, group = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    image, head = (group // heads).to(tl.int64), group % heads
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < rows, column < columns
    a_rows = a + image * a_batch + head * a_head + row.to(tl.int64) * a_row
    b_columns = b + image * b_batch + head * b_head + column.to(tl.int64) * b_column
    from_a = a_offset - tl.load(zero_a + head * zero_head)
    from_b = b_offset - tl.load(zero_b + head * zero_head)
    total = tl.zeros((ROWS, COLUMNS), tl.int64) + tl.load(start + column, mask=in_columns, other=0)[None, :]
    if SATURATES:
        total = tl.minimum(tl.maximum(total, low), high)
    for k in range(0, inner):
        x = tl.load(a_rows + k, mask=in_rows, other=0).to(tl.int64)
        y = tl.load(b_columns + k * b_inner, mask=in_columns, other=0).to(tl.int64) + from_b
        if DECODED:
            code = x + a_offset
            weighed = tl.load(mantissas + code, mask=in_rows, other=0)[:, None] * y[None, :]
            total += (weighed << guard) >> tl.load(shifts + code, mask=in_rows, other=0)[:, None]
        else:
            total += (x + from_a)[:, None] * y[None, :]
        if SATURATES:
            total = tl.minimum(tl.maximum(total, low), high)
    place = (group.to(tl.int64) * rows + row.to(tl.int64)[:, None]) * columns + column[None, :]
    tl.store(out + place, total, mask=in_rows[:, None] & in_columns[None, :])
