# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""Swin's units of `golden` as compiled kernels, equal to the last bit: see `hwsim.execute.numba_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.spec import Constants
from golden.token_mean import TokenMeanSpec
from golden.windows import ShiftMaskSpec, WindowBiasSpec, position_bias, shift_mask
from hwsim.execute.numba_kernels import Kernel, Requantizer, _clip, _kernel, _round_half_even_shift


@_kernel
def _window_bias(scores, bias, multiplier, shift, highest, out):
    windows, pairs = scores.shape
    for window in range(windows):
        first = (window * pairs) % bias.size
        for pair in range(pairs):
            total = np.int64(scores[window, pair]) * multiplier + bias[first + pair]
            out[window, pair] = _clip(_round_half_even_shift(total, shift), 0, highest)


@_kernel
def _shift_mask(scores, masked, offset, out):
    images, windows, heads, pairs = scores.shape
    for image in range(images):
        for window in range(windows):
            for head in range(heads):
                for pair in range(pairs):
                    score = np.int64(scores[image, window, head, pair])
                    out[image, window, head, pair] = 0 if masked[window, pair] else score + offset


@_kernel
def _token_sums(codes, zero, out):
    batch, tokens, channels = codes.shape
    for image in range(batch):
        for channel in range(channels):
            out[image, channel] = -zero * tokens
        for token in range(tokens):
            for channel in range(channels):
                out[image, channel] += codes[image, token, channel]


def _window_bias_kernel(spec: WindowBiasSpec, constants: Constants) -> Kernel:
    multiplier, by, offset, shift = (
        int(constants[name]) for name in ("multiplier_a", "multiplier_b", "offset", "shift")
    )
    length = spec.window**2

    def kernel(scores: np.ndarray, table: np.ndarray) -> np.ndarray:
        bias = position_bias(table[0].astype(np.int64), spec.window) * by + offset
        rows = np.ascontiguousarray(scores).reshape(-1, length * length)
        out = np.empty(rows.shape, spec.output.dtype)
        _window_bias(rows, np.ascontiguousarray(bias).ravel(), multiplier, shift, spec.output.maximum, out)
        return out.reshape(scores.shape)

    return kernel


def _shift_mask_kernel(spec: ShiftMaskSpec, constants: Constants) -> Kernel:
    masked = shift_mask(spec.height, spec.width, spec.window, spec.shift)
    masked = masked.reshape(len(masked), -1)
    offset = int(constants["offset"])

    def kernel(scores: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(scores).reshape(*scores.shape[:3], -1)
        out = np.empty(flat.shape, spec.output.dtype)
        _shift_mask(flat, masked, offset, out)
        return out.reshape(scores.shape)

    return kernel


def _token_mean_kernel(spec: TokenMeanSpec, constants: Constants) -> Kernel:
    requantize = Requantizer(spec.requantize, constants)
    zero = int(constants["zero_in"])

    def kernel(codes: np.ndarray) -> np.ndarray:
        sums = np.empty((len(codes), codes.shape[-1]), np.int64)
        _token_sums(np.ascontiguousarray(codes), zero, sums)
        return requantize(sums[:, None])

    return kernel


KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "window_bias": _window_bias_kernel,
    "shift_mask": _shift_mask_kernel,
    "token_mean": _token_mean_kernel,
}
