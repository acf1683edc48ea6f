"""AdaLog codes of probabilities: an adaptive logarithm base (Wu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from golden.adalog import (
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.errors import HwsimError
from hwsim.quantize.quantizers.protocol import Observer

if TYPE_CHECKING:
    from hwsim.networks.graph import FloatNode
    from hwsim.quantize.lowering.builder import ProgramBuilder


@dataclass(frozen=True)
class AdaLogGrid:
    """``2**-T1[code] * T2[code] / (2L-2)`` with a zero symbol past the last code (AdaLog, eq. 7-9).

    Parameters
    ----------
    bits : int
    q : int
        Numerator of log2 of the base, over 37.
    """

    bits: int
    q: int

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of probabilities as float32 (the scale is fixed at 1)."""
        position = (-torch.log2(x.clamp(min=1e-15)) * 37 / self.q).round()
        return position.clamp(0, self.zero_symbol)

    def values(self, codes: Tensor) -> Tensor:
        shift, mantissa = adalog_tables(self.bits, self.q)
        entry = np.append(np.exp2(-shift.astype(np.float64)) * mantissa / ((2 << self.bits) - 2), 0.0)
        return torch.from_numpy(entry.astype(np.float32)).to(codes.device)[codes.long()]

    def record(self) -> dict[str, Any]:
        return {"q": self.q}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Probabilities, then thresholds."""
        name, probability = builder.emit_probability(node)
        thresholds = adalog_thresholds(self.bits, self.q, probability_scale(probability.probability_bits))
        spec = AdaLogQuantizeSpec(input_bits=probability.output.bits, code_bits=self.bits)
        builder.emit(node.name, spec, (name,), {"thresholds": thresholds})

    def emit_product(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Table, shift and multiply."""
        values = builder.second_operand(node, "zero_v")
        shift, mantissa = adalog_tables(self.bits, self.q)
        product = self.bits + 3 + values.bits
        room = 62 - builder.widths.multiplier_bits - product - values.inner.bit_length()
        guard = min(lossless_guard_bits(self.bits, self.q), room, 32)
        unit = values.scale / ((2 << self.bits) - 2) / 2**guard
        requantize, constants = builder.requantizer(node.name, unit / values.outgoing.scale, values.outgoing)
        spec = AdaLogMatmulSpec(
            code_bits=self.bits,
            value_bits=values.bits,
            row_length=values.inner,
            guard_bits=guard,
            largest_shift=min(63, product + guard),
            heads=values.heads,
            requantize=requantize,
        )
        tables = {"shift_table": shift, "mantissa_table": mantissa}
        builder.emit_narrowed(node, spec, constants | values.constants | tables)


@dataclass(frozen=True)
class AdaLog:
    """AdaLog codes of probabilities; q has the smallest squared error over the calibration batches.

    Parameters
    ----------
    bits : int
        2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise HwsimError(f"AdaLog takes 2 to 8 attention bits, not {self.bits}")

    def observer(self) -> Observer:
        return _AdaLogBase(self.bits)


class _AdaLogBase:
    CANDIDATES = range(10, 138)

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.errors = [0.0] * len(self.CANDIDATES)

    def update(self, x: Tensor) -> None:
        for index, q in enumerate(self.CANDIDATES):
            grid = AdaLogGrid(self.bits, q)
            self.errors[index] += float((x - grid.values(grid.codes(x))).square().sum())

    def grid(self, last: Tensor) -> AdaLogGrid:
        best = min(range(len(self.errors)), key=self.errors.__getitem__)
        return AdaLogGrid(self.bits, self.CANDIDATES[best])
