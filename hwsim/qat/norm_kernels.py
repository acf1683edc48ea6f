"""LayerNorm on a GPU, many short rows a program.

Torch's kernels take one row a block, and the rows of an IRM are the 16 to 64 channels of a head.
Written in Triton; values in any float type, arithmetic and result in float32.
"""

# Triton reads annotations as its own: its functions have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values of a program.
AT_ONCE = 2048


@triton.jit
def _forward(x_in, weight_in, bias_in, y_out, rows, channels, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    within = channel < channels
    mask = (row < rows)[:, None] & within[None, :]
    at = row[:, None] * channels + channel[None, :]
    x = tl.load(x_in + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_in + channel, mask=within, other=0.0)
    bias = tl.load(bias_in + channel, mask=within, other=0.0)
    centred = tl.where(mask, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    tl.store(y_out + at, centred * scale[:, None] * weight[None, :] + bias[None, :], mask=mask)


@triton.jit
def _backward(
    x_in, gradient_in, weight_in, x_out, sums_out, rows, channels, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    within = channel < channels
    mask = (row < rows)[:, None] & within[None, :]
    at = row[:, None] * channels + channel[None, :]
    x = tl.load(x_in + at, mask=mask, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_in + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_in + channel, mask=within, other=0.0)
    centred = tl.where(mask, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    normal = centred * scale[:, None]
    weighted = gradient * weight[None, :]
    mean = tl.sum(weighted, axis=1) / channels
    slope = tl.sum(weighted * normal, axis=1) / channels
    of_x = (weighted - mean[:, None] - normal * slope[:, None]) * scale[:, None]
    tl.store(x_out + at, of_x.to(x_out.dtype.element_ty), mask=mask)
    # Sums of the rows of this program: of gamma, then of beta.
    place = sums_out + tl.program_id(0) * 2 * channels + channel
    tl.store(place, tl.sum(gradient * normal, axis=0), mask=within)
    tl.store(place + channels, tl.sum(gradient, axis=0), mask=within)


def _layout(x: Tensor) -> tuple[int, int, int, int]:
    """Rows, channels, rows a program, channels rounded up to a power of two."""
    channels = x.shape[-1]
    block = triton.next_power_of_2(channels)
    return x.numel() // channels, channels, max(1, AT_ONCE // block), block


class ShortRows(torch.autograd.Function):
    """LayerNorm over the last axis of a tensor with gamma and beta."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalised values, float32."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        result = torch.empty_like(x, dtype=torch.float32)
        rows, channels, together, block = _layout(x)
        grid = (triton.cdiv(rows, together),)
        _forward[grid](x, weight, bias, result, rows, channels, eps, ROWS=together, BLOCK=block)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of `x`, gamma and beta."""
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        rows, channels, together, block = _layout(x)
        programs = triton.cdiv(rows, together)
        result = torch.empty_like(x)
        sums = torch.empty((programs, 2, channels), device=x.device)
        _backward[(programs,)](x, gradient, weight, result, sums, rows, channels, ctx.eps, ROWS=together, BLOCK=block)
        of_weight, of_bias = sums.sum(dim=0)
        return result, of_weight, of_bias, None
