"""Learned step size quantization (LSQ): fake quantization whose steps and zero points have gradients.

A value goes to the code ``clamp(round(x / s + z), low, high)`` and comes back as ``(code - z) * s``, in float32, with
half-to-even rounding: exactly what `hwsim.quantize.quantizers.uniform.UniformGrid` (low = 0, z the zero point) and
`hwsim.quantize.weights.QuantizedWeight` (signed codes, z = 0) compute, so that a trained step is a grid as it is.

References
----------
S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020: gradients of the step (equation 3), its initial value
``2 * mean(|x|) / sqrt(Qp)`` and the gradient scale ``1 / sqrt(N * Qp)`` (sections 2.1 and 2.2). The gradient of the
zero point follows from the same straight-through rule, as in Y. Bhalgat et al., "LSQ+", CVPR Workshops 2020.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hwsim.quantize.quantizers.uniform import FLOAT32_EPS

# A step that training pushes to 0 or below stays here; the same floor as that of observed grids.
SMALLEST_STEP = FLOAT32_EPS


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The fused kernels, None where Triton is not installed."""
    try:
        from hwsim.quantize import lsq_kernels
    except ImportError:
        return None
    return lsq_kernels


class LearnedStep(torch.autograd.Function):
    """See `lsq`; all arguments but the last two are tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        zero_point: Tensor,
        low: Tensor,
        high: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        fused: bool,
    ) -> Tensor:
        """Values on the grid."""
        ctx.save_for_backward(x, step, zero_point, low, high, scale)
        ctx.fused = fused
        if fused:
            result: Tensor = _kernels().forward(x, step, zero_point, low, high, dtype)
            return result
        zero = torch.clamp(zero_point.round(), low, high)
        code = torch.clamp((x.float() / step + zero).round(), low, high)
        return ((code - zero) * step).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Straight through where nothing is clipped; the step and the zero point by the chain rule."""
        (gradient,) = gradients
        x, step, zero_point, low, high, scale = ctx.saved_tensors
        if ctx.fused:
            learns_zero = ctx.needs_input_grad[2]
            of_x, of_step, of_zero = _kernels().backward(x, gradient, step, zero_point, low, high, learns_zero)
            of_zero = of_zero * scale if learns_zero else None
            return of_x, of_step * scale, of_zero, None, None, None, None, None
        gradient = gradient.float()
        zero = torch.clamp(zero_point.round(), low, high)
        position = x.float() / step + zero
        inside = (position >= low) & (position <= high)
        of_x = of_step = of_zero = None
        if ctx.needs_input_grad[0]:
            of_x = torch.where(inside, gradient, 0.0).to(x.dtype)
        if ctx.needs_input_grad[1]:
            code = torch.clamp(position.round(), low, high)
            slope = torch.where(inside, code - position, code - zero)
            of_step = (gradient * slope).sum_to_size(step.shape) * scale
        if ctx.needs_input_grad[2]:
            # Inside, the zero point cancels.
            of_zero = torch.where(inside, 0.0, -gradient * step).sum_to_size(zero_point.shape) * scale
        return of_x, of_step, of_zero, None, None, None, None, None


def lsq(
    x: Tensor,
    step: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    zero_point: Tensor | None = None,
    gradient_scale: Tensor | float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
    fused: bool = False,
) -> Tensor:
    """Fake-quantize `x` on a grid that can be learned.

    Parameters
    ----------
    x : Tensor
        Of any float type; the arithmetic is in float32.
    step : float32 Tensor
        Above 0; a scalar, or of a shape that broadcasts against `x`, such as [outputs, 1] for weights of [outputs,
        inputs].
    low, high : Tensor or float
        First and last code: ``-2**(b-1)``, ``2**(b-1) - 1`` for weights, 0 and ``2**b - 1`` for activations.
    zero_point : float32 Tensor, optional
        In codes; rounded, and kept among the codes, before use. The shape of `step`. 0 by default.
    gradient_scale : Tensor or float
        Multiplies the gradients of `step` and `zero_point`, see `gradient_scale`.
    dtype : torch.dtype
        Of the result.
    fused : bool
        On a GPU, where the shapes allow it, use the kernels of `hwsim.quantize.lsq_kernels`.

    Returns
    -------
    Tensor
        Of the shape of `x`, with gradients to `x`, `step` and `zero_point`.

    Notes
    -----
    Scalar float32 tensors on the device of `x` for `low`, `high` and `gradient_scale` save their transfer at every
    call, and let one compiled graph serve every width.
    """

    def scalar(value: Tensor | float) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32, device=x.device)

    zero = scalar(0.0) if zero_point is None else zero_point
    kernels = _kernels() if fused and x.is_cuda and not torch.compiler.is_compiling() else None
    result: Tensor = LearnedStep.apply(
        x,
        step,
        zero,
        scalar(low),
        scalar(high),
        scalar(gradient_scale),
        dtype,
        kernels is not None and kernels.fits(x, step, zero),
    )
    return result


def gradient_scale(count: int, positive: int) -> float:
    """LSQ's gradient scale ``1 / sqrt(N * Qp)``.

    Parameters
    ----------
    count : int
        Values that share the step. Of an activation, those of the whole batch, as in Q-ViT's released code; LSQ's
        paper counts the features of a layer.
    positive : int
        Qp, the largest code counted from 0.
    """
    return 1 / math.sqrt(count * positive)


def initial_step(mean_magnitude: Tensor, positive: int) -> Tensor:
    """LSQ's initial step ``2 * mean(|x|) / sqrt(Qp)``, at least `SMALLEST_STEP`.

    Parameters
    ----------
    mean_magnitude : float32 Tensor
        Mean of ``|x|`` of each group of values that share a step.
    positive : int
        Qp, the largest code counted from 0.
    """
    return (2 * mean_magnitude.float() / math.sqrt(positive)).clamp(min=SMALLEST_STEP)
