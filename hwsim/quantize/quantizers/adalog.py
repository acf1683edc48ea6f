"""AdaLog codes of probabilities: an adaptive logarithm base (Wu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from golden.adalog import (
    BASE_DENOMINATOR,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.errors import HwsimError
from hwsim.quantize.quantizers.logarithm import code_values, codes_by_thresholds, log_boundaries
from hwsim.quantize.quantizers.protocol import Observer

if TYPE_CHECKING:
    from hwsim.networks.graph import FloatNode
    from hwsim.quantize.lowering.builder import ProgramBuilder

# What the search tries, as published.
SEARCHED_Q = range(10, 138)
# Of the units.
WIDEST_GUARD = 32


@dataclass(frozen=True)
class AdaLogGrid:
    """``2**-T1[code] * T2[code] / (2L-2) * scale`` with a zero symbol past the last code (AdaLog, eq. 7-9).

    Parameters
    ----------
    bits : int
    q : int
        Numerator of log2 of the base, over 37.
    scale : float
        A float32 value above 0: what code 0 stands for. The paper fixes 1; a reconstruction may learn another.
    """

    bits: int
    q: int
    scale: float = 1.0

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of probabilities as float32."""
        return codes_by_thresholds(x, log_boundaries(self.bits, self.q / BASE_DENOMINATOR, self.scale))

    def values(self, codes: Tensor) -> Tensor:
        shift, mantissa = adalog_tables(self.bits, self.q)
        entry = np.exp2(-shift.astype(np.float64)) * mantissa / ((2 << self.bits) - 2) * self.scale
        return code_values(np.append(entry, 0.0), codes)

    def record(self) -> dict[str, Any]:
        return {"q": self.q, "scale": self.scale}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Probabilities, then thresholds."""
        name, probability = builder.emit_probability(node)
        spec = AdaLogQuantizeSpec(input_bits=probability.output.bits, code_bits=self.bits)
        scale = probability_scale(probability.probability_bits) * Fraction(self.scale)
        thresholds = np.minimum(adalog_thresholds(self.bits, self.q, scale), spec.input.maximum)
        builder.emit(node.name, spec, (name,), {"thresholds": thresholds})

    def emit_product(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Table, shift and multiply."""
        values = builder.second_operand(node, "zero_v")
        shift, mantissa = adalog_tables(self.bits, self.q)
        product = self.bits + 3 + values.bits
        room = 62 - builder.widths.multiplier_bits - product - values.inner.bit_length()
        guard = builder.guard_bits(lossless_guard_bits(self.bits, self.q), room, WIDEST_GUARD)
        unit = self.scale * values.scale / ((2 << self.bits) - 2) / 2**guard
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
    q : int
        Numerator of log2 of the base, over 37, 10 to 137; 37 makes Log2 codes. 0 takes the best.
    """

    bits: int = 4
    q: int = 0

    def __post_init__(self) -> None:
        check_adalog(self.bits, self.q)

    def observer(self) -> Observer:
        return _AdaLogBase(self)


def check_adalog(bits: int, q: int) -> None:
    """Refuse a width or a base out of range.

    Raises
    ------
    HwsimError
        Names it.
    """
    if not 2 <= bits <= 8:
        raise HwsimError(f"AdaLog takes 2 to 8 bits, not {bits}")
    if q and q not in SEARCHED_Q:
        raise HwsimError(f"AdaLog q must lie between {SEARCHED_Q[0]} and {SEARCHED_Q[-1]}, or be 0 (searched), not {q}")


class _AdaLogBase:
    def __init__(self, quantizer: AdaLog) -> None:
        self.bits = quantizer.bits
        self.candidates = [quantizer.q] if quantizer.q else list(SEARCHED_Q)
        self.errors = [0.0] * len(self.candidates)

    def update(self, x: Tensor) -> None:
        if len(self.candidates) == 1:
            return
        for index, q in enumerate(self.candidates):
            grid = AdaLogGrid(self.bits, q)
            self.errors[index] += float((x - grid.values(grid.codes(x))).square().sum())

    def grid(self, last: Tensor) -> AdaLogGrid:
        best = min(range(len(self.errors)), key=self.errors.__getitem__)
        return AdaLogGrid(self.bits, self.candidates[best])
