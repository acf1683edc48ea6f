"""The convolutional teacher of the embedded networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsim.networks.embedded import CLASS_NAMES


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def build_teacher(width: int) -> nn.Sequential:
    """A residual network for images [B, 1, 28, 28] with `width` channels in its first stage."""
    # Strided convolutions and a flat mean instead of pooling layers, whose CUDA gradients are not deterministic.
    return nn.Sequential(
        _convolution(1, width),
        _Residual(width),
        _convolution(width, 2 * width, stride=2),
        _Residual(2 * width),
        _convolution(2 * width, 4 * width, stride=2),
        _Residual(4 * width),
        _Residual(4 * width),
        _Mean(),
        nn.Linear(4 * width, len(CLASS_NAMES)),
    )


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Ensemble(nn.Module):
    """Mean class probabilities of several teachers."""

    def __init__(self, teachers: Sequence[nn.Module], temperature: float) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        probabilities = [F.softmax(teacher(x).float() / self.temperature, 1) for teacher in self.teachers]
        return torch.stack(probabilities).mean(0)
