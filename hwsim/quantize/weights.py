"""Quantized weights of linear layers: signed codes, or unsigned ones with a zero point an output channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from golden.errors import HwsimError
from hwsim.quantize.quantizers.uniform import FLOAT32_EPS


@dataclass(frozen=True)
class QuantizedWeight:
    """Weights of a linear layer as codes, signed without zero points.

    Parameters
    ----------
    codes : ndarray of int64 [outputs, inputs]
    scale : ndarray of float64 [outputs]
        Float32 values.
    bits : int
    zero_point : ndarray of int64 [outputs], optional
        Then the codes are unsigned, and these codes stand for 0.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    zero_point: np.ndarray | None = None

    @property
    def centred(self) -> np.ndarray:
        """Codes less their zero points, int64 [outputs, inputs]."""
        return self.codes if self.zero_point is None else self.codes - self.zero_point[:, None]

    @property
    def unsigned(self) -> tuple[np.ndarray, np.ndarray]:
        """Unsigned codes [outputs, inputs] and zero points [outputs], of signed codes too; int64."""
        if self.zero_point is not None:
            return self.codes, self.zero_point
        middle = 1 << (self.bits - 1)
        return self.codes + middle, np.full(len(self.codes), middle)

    def values(self) -> np.ndarray:
        """Fake-quantized weights, float32 [outputs, inputs]."""
        return (self.centred * self.scale[:, None]).astype(np.float32)


@dataclass(frozen=True)
class SymmetricWeights:
    """Signed codes, scale ``max|w| / (2**(bits-1) - 0.5)`` of each group, until a search refines it.

    Parameters
    ----------
    bits : int
        2 to 16.
    groups : int
        Groups of consecutive outputs with one scale each; 0 is a scale an output channel.

    Notes
    -----
    With a scale a channel these are FQ-ViT's released MinMax weights; PTQ4ViT has one group a
    layer and three (q, k, v) in the joint projection.
    """

    bits: int = 8
    groups: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise HwsimError(f"weights take 2 to 16 bits, not {self.bits}")

    def largest_scale(self, weight: np.ndarray) -> np.ndarray:
        """Scale of each group that clips nothing, float32 [groups]."""
        half = np.float32(((1 << self.bits) - 1) / 2)
        rows = np.abs(weight).max(axis=1)
        if self.groups:
            if len(rows) % self.groups:
                raise HwsimError(f"{len(rows)} outputs do not divide into {self.groups} groups of weights")
            rows = rows.reshape(self.groups, -1).max(axis=1)
        return np.maximum(rows / half, np.float32(FLOAT32_EPS))

    def quantize(self, weight: np.ndarray, scale: np.ndarray | None = None) -> QuantizedWeight:
        """Codes of weights float32 [outputs, inputs] with scales [groups]; without, of `largest_scale`."""
        found = self.largest_scale(weight) if scale is None else scale.astype(np.float32)
        rows = np.repeat(found, len(weight) // len(found))
        limit = 1 << (self.bits - 1)
        codes = np.clip(np.rint(weight / rows[:, None]), -limit, limit - 1)
        return QuantizedWeight(codes.astype(np.int64), rows.astype(np.float64), self.bits)


@dataclass(frozen=True)
class AsymmetricWeights:
    """Unsigned codes, a scale and a zero point an output channel (RepQ-ViT, AdaLog), until a search refines them.

    The range of a channel is its minimum and maximum, with 0 in it: then the zero point is a code.

    Parameters
    ----------
    bits : int
        2 to 16.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise HwsimError(f"weights take 2 to 16 bits, not {self.bits}")

    def quantize(
        self, weight: np.ndarray, scale: np.ndarray | None = None, zero_point: np.ndarray | None = None
    ) -> QuantizedWeight:
        """Codes of weights float32 [outputs, inputs] with scales and zero points [outputs]; without, of the range."""
        levels = (1 << self.bits) - 1
        if scale is None or zero_point is None:
            low, high = np.minimum(weight.min(axis=1), 0), np.maximum(weight.max(axis=1), 0)
            scale = np.maximum((high - low) / np.float32(levels), np.float32(FLOAT32_EPS))
            zero_point = np.rint(-low / scale)
        steps = scale.astype(np.float32)
        zero = np.clip(zero_point, 0, levels).astype(np.int64)
        codes = np.clip(np.rint(weight / steps[:, None]) + zero[:, None], 0, levels)
        return QuantizedWeight(codes.astype(np.int64), steps.astype(np.float64), self.bits, zero)


WeightQuantizer = SymmetricWeights | AsymmetricWeights
