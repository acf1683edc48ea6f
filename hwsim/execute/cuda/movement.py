"""Data movement between units: views wherever torch has one, else one copy. Sources as in `golden.rearrange`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from golden.rearrange import merge_heads, patches, split_heads
from golden.spec import Constants
from golden.windows import merge_order, window_order
from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.product_units import Operation, Setting


def _constant(spec: Any, constants: Constants, setting: Setting) -> Operation:
    value = carriers.encode(constants["value"][None], spec.bits, setting.device)
    return lambda: value


def _concat(spec: Any, constants: Constants, setting: Setting) -> Operation:
    def operation(*parts: torch.Tensor) -> torch.Tensor:
        batch = max(len(part) for part in parts)
        return torch.cat([part.expand(batch, -1, -1) for part in parts], dim=1)

    return operation


def _ordered(order: np.ndarray, setting: Setting, shape: Callable[[torch.Tensor], tuple[int, ...]]) -> Operation:
    """Tokens, axis 1, in another order and shape."""
    index = carriers.constant(order.ravel(), setting.device)
    return lambda tokens: tokens.index_select(1, index).view(shape(tokens))


def _partition_windows(spec: Any, constants: Constants, setting: Setting) -> Operation:
    order = window_order(spec.height, spec.width, spec.window, spec.shift)
    return _ordered(order, setting, lambda tokens: (len(tokens), *order.shape, tokens.shape[-1]))


def _join_windows(spec: Any, constants: Constants, setting: Setting) -> Operation:
    order = np.argsort(window_order(spec.height, spec.width, spec.window, spec.shift).ravel())
    index = carriers.constant(order, setting.device)
    return lambda windows: windows.flatten(1, 2).index_select(1, index)


def _merge_patches(spec: Any, constants: Constants, setting: Setting) -> Operation:
    order = merge_order(spec.height, spec.width)
    return _ordered(order, setting, lambda tokens: (len(tokens), len(order), 4 * tokens.shape[-1]))


UNITS: dict[str, Callable[[Any, Constants, Setting], Operation]] = {
    "patches": lambda spec, constants, setting: lambda image: patches(image, spec.size),
    "split_heads": lambda spec, constants, setting: (
        lambda tokens: split_heads(tokens, spec.heads, spec.part, spec.parts)
    ),
    "merge_heads": lambda spec, constants, setting: merge_heads,
    "transpose": lambda spec, constants, setting: lambda codes: codes.swapaxes(-1, -2),
    "take_token": lambda spec, constants, setting: lambda codes: codes[:, spec.index : spec.index + spec.count],
    "join_tokens": lambda spec, constants, setting: lambda codes: codes.reshape(len(codes), 1, -1),
    "constant": _constant,
    "concat": _concat,
    "partition_windows": _partition_windows,
    "join_windows": _join_windows,
    "merge_patches": _merge_patches,
}
