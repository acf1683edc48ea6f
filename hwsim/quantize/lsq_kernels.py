"""`hwsim.quantize.lsq` on a GPU in one kernel forward and one backward, where PyTorch needs about twenty.

Written in Triton; values in any float type, arithmetic in float32. A program of the grid takes a row of a weight, or a
chunk of an activation, and leaves its share of the gradients of step and zero point, which are added up in a fixed
order: the result is the same in every run. Triton's ``/`` is not rounded to the nearest float on a GPU, ``div_rn`` is:
a value next to the border of two codes depends on it.
"""

# Triton reads annotations as its own: its functions have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values of an activation that a program takes, and at most at once.
CHUNK, AT_ONCE = 4096, 1024


@triton.jit
def _half_even(x):
    # 1.5 * 2**23 leaves no fraction bits; the addition rounds half to even. For codes, which are small.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _forward(
    x_in,
    step_in,
    zero_in,
    low_in,
    high_in,
    y_out,
    count,
    length,
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    step = tl.load(step_in + row * stride)
    low, high = tl.load(low_in), tl.load(high_in)
    zero = _half_even(tl.minimum(tl.maximum(tl.load(zero_in), low), high))
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        at = row * length + place
        mask = (place < length) & (at < count)
        x = tl.load(x_in + at, mask=mask, other=0.0).to(tl.float32)
        position = tl.div_rn(x, step) + zero
        code = _half_even(tl.minimum(tl.maximum(position, low), high))
        # A NaN must come out again, or a run that diverged would not show.
        y = tl.where(position == position, (code - zero) * step, position)
        tl.store(y_out + at, y.to(y_out.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    x_in,
    gradient_in,
    step_in,
    zero_in,
    low_in,
    high_in,
    x_out,
    sums_out,
    count,
    length,
    stride,
    rows,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    step = tl.load(step_in + row * stride)
    low, high = tl.load(low_in), tl.load(high_in)
    zero = _half_even(tl.minimum(tl.maximum(tl.load(zero_in), low), high))
    of_step = tl.zeros([BLOCK], tl.float32)
    of_zero = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        at = row * length + place
        mask = (place < length) & (at < count)
        x = tl.load(x_in + at, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_in + at, mask=mask, other=0.0).to(tl.float32)
        position = tl.div_rn(x, step) + zero
        inside = (position >= low) & (position <= high)
        code = _half_even(tl.minimum(tl.maximum(position, low), high))
        of_step += gradient * tl.where(inside, code - position, code - zero)
        of_zero += tl.where(inside, 0.0, -gradient * step)
        tl.store(x_out + at, tl.where(inside, gradient, 0.0).to(x_out.dtype.element_ty), mask=mask)
    tl.store(sums_out + row, tl.sum(of_step, axis=0))
    tl.store(sums_out + rows + row, tl.sum(of_zero, axis=0))


def fits(x: Tensor, step: Tensor, zero_point: Tensor) -> bool:
    """Whether the kernels know these shapes: one step, or one for each row of a matrix; one zero point."""
    rows = x.ndim == 2 and step.shape == (x.shape[0], 1)
    return zero_point.numel() == 1 and (step.numel() == 1 or rows) and 0 < x.numel() < 1 << 31


def _layout(x: Tensor, step: Tensor) -> tuple[int, int, int, int]:
    """Rows, their length, the stride of the steps, and the values at once."""
    count = x.numel()
    rows, length, stride = (-(-count // CHUNK), CHUNK, 0) if step.numel() == 1 else (len(x), count // len(x), 1)
    return rows, length, stride, min(AT_ONCE, triton.next_power_of_2(length))


def forward(x: Tensor, step: Tensor, zero_point: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """Values on the grid, in `dtype`; arguments as of `hwsim.quantize.lsq.lsq`."""
    x = x.contiguous()
    result = torch.empty_like(x, dtype=dtype)
    rows, length, stride, block = _layout(x, step)
    _forward[(rows,)](x, step, zero_point, low, high, result, x.numel(), length, stride, BLOCK=block)
    return result


def backward(
    x: Tensor,
    gradient: Tensor,
    step: Tensor,
    zero_point: Tensor,
    low: Tensor,
    high: Tensor,
    learns_zero: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, `step` and, if asked for, `zero_point`, the latter two not scaled."""
    x, gradient = x.contiguous(), gradient.contiguous()
    result = torch.empty_like(x)
    rows, length, stride, block = _layout(x, step)
    sums = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    _backward[(rows,)](
        x, gradient, step, zero_point, low, high, result, sums, x.numel(), length, stride, rows, BLOCK=block
    )
    if step.numel() == 1:
        of_step, of_zero = sums.sum(dim=1)
    else:
        of_step, of_zero = sums[0], sums[1].sum() if learns_zero else zero_point
    return result, of_step.reshape(step.shape), of_zero.reshape(zero_point.shape)
