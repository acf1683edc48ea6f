"""Log-sqrt2 codes of probabilities and of shifted GELU outputs (RepQ-ViT: Li et al., ICCV 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from golden.accumulate import signed_bits
from golden.adalog import AdaLogQuantizeSpec, log_thresholds
from golden.errors import HwsimError
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec, lossless_guard_bits
from hwsim.quantize.quantizers.logarithm import (
    GELU_DEPTH,
    check_depth,
    code_values,
    codes_by_thresholds,
    log_boundaries,
)
from hwsim.quantize.quantizers.protocol import Observer

if TYPE_CHECKING:
    from hwsim.networks.graph import FloatNode
    from hwsim.quantize.lowering.builder import ProgramBuilder

# Widest accumulator of both parities: two products with 16-bit multipliers are added in 62 bits.
ACCUMULATOR_ROOM = 61
# Of the units.
WIDEST_GUARD = 40


def _entries(bits: int, scale: float) -> np.ndarray:
    """What each code stands for, the zero symbol last, float64."""
    return np.append(scale * np.exp2(-np.arange(1 << bits) / 2), 0.0)


@dataclass(frozen=True)
class LogSqrt2Grid:
    """``scale * 2**(-code/2)`` with a zero symbol past the last code.

    Parameters
    ----------
    bits : int
    scale : float
        A float32 value above 0.
    """

    bits: int
    scale: float = 1.0

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of probabilities as float32."""
        return codes_by_thresholds(x, log_boundaries(self.bits, 0.5, self.scale))

    def values(self, codes: Tensor) -> Tensor:
        return code_values(_entries(self.bits, self.scale), codes)

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Probabilities, then thresholds."""
        name, probability = builder.emit_probability(node)
        scale = Fraction(self.scale) * (1 << probability.probability_bits)
        spec = AdaLogQuantizeSpec(input_bits=probability.output.bits, code_bits=self.bits)
        thresholds = np.minimum(log_thresholds(self.bits, Fraction(1, 2), scale), spec.input.maximum)
        builder.emit(node.name, spec, (name,), {"thresholds": thresholds})

    def emit_product(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """A sum of the even and one of the odd codes."""
        values = builder.second_operand(node, "zero_v")
        plain = values.bits + 2 + values.inner.bit_length()
        room = ACCUMULATOR_ROOM - 1 - builder.widths.multiplier_bits - plain
        guard = builder.guard_bits(lossless_guard_bits(self.bits), room, WIDEST_GUARD)
        unit = self.scale * values.scale / 2**guard
        requantize, constants = _two_multipliers(builder, node.name, unit / values.outgoing.scale, values.outgoing)
        spec = LogSqrt2MatmulSpec(
            code_bits=self.bits,
            value_bits=values.bits,
            row_length=values.inner,
            guard_bits=guard,
            heads=values.heads,
            requantize=requantize,
        )
        builder.emit_narrowed(node, spec, constants | values.constants)


@dataclass(frozen=True)
class ShiftLogSqrt2Grid:
    """``scale * 2**(-code/2) - depth`` of GELU outputs, the zero symbol ``-depth``.

    Parameters
    ----------
    bits : int
    scale : float
        A float32 value above 0: what code 0 stands for, plus GELU's depth.
    """

    bits: int
    scale: float

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of GELU outputs as float32."""
        return codes_by_thresholds(x + GELU_DEPTH, log_boundaries(self.bits, 0.5, self.scale))

    def values(self, codes: Tensor) -> Tensor:
        return code_values(_entries(self.bits, self.scale) - GELU_DEPTH, codes)

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale, "depth": GELU_DEPTH}

    def emit_linear(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """A sum of the even and one of the odd codes; GELU's depth is in the bias."""
        weight = builder.calibration.weights[node.name]
        codes, zero = weight.unsigned
        outputs, inputs = codes.shape
        outgoing = builder.linear_output(node)
        whole = builder.row_units(weight, self.scale * weight.scale, outgoing)
        bias = node.parameters["bias"].astype(np.float64) - GELU_DEPTH * weight.centred.sum(axis=1) * weight.scale
        # Two products with a multiplier are added.
        room = builder.sum_room(int(np.abs(weight.centred).sum(axis=1).max()), bias / whole, 62 - ACCUMULATOR_ROOM)
        guard = builder.guard_bits(lossless_guard_bits(self.bits), room, WIDEST_GUARD)
        unit = whole / 2**guard
        bias_codes = np.rint(bias / unit).astype(np.int64)
        requantize, constants = _two_multipliers(builder, node.name, unit / outgoing.scales(outputs), outgoing)
        spec = LogSqrt2LinearSpec(
            input_features=inputs,
            output_features=outputs,
            code_bits=self.bits,
            weight_bits=weight.bits,
            bias_bits=signed_bits(int(bias_codes.min()), int(bias_codes.max())),
            guard_bits=guard,
            requantize=requantize,
        )
        operand = {"weight": codes, "zero_weight": zero, "bias": bias_codes}
        builder.emit_narrowed(node, spec, operand | constants, builder.widths.accumulator_bits)


def _two_multipliers(builder: ProgramBuilder, name: str, ratios: np.ndarray, outgoing: Any) -> tuple[Any, Any]:
    """Requantizer whose second multiplier, of the odd codes, is that of the even ones over sqrt(2)."""
    requantize, constants = builder.requantizer(name, ratios, outgoing)
    # An odd code u adds v >> u // 2, which lacks 2**(-1/2).
    constants["multiplier_odd"] = [
        round(ratio * math.sqrt(0.5) * 2.0**shift) for ratio, shift in zip(ratios, constants["shift"], strict=True)
    ]
    return replace(requantize, input=replace(requantize.input, bits=requantize.input.bits - 1)), constants


@dataclass(frozen=True)
class LogSqrt2:
    """Log-sqrt2 codes of probabilities; code 0 is the largest one seen, until a search refines it.

    Parameters
    ----------
    bits : int
        2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_log_bits(self.bits)

    def observer(self) -> Observer:
        return _Largest(self.bits, 0.0)


@dataclass(frozen=True)
class ShiftLogSqrt2:
    """Log-sqrt2 codes of GELU outputs, GELU's depth added; code 0 is the largest one seen, until a search refines it.

    Parameters
    ----------
    bits : int
        2 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_log_bits(self.bits)

    def observer(self) -> Observer:
        return _Largest(self.bits, GELU_DEPTH)


def check_log_bits(bits: int) -> None:
    """Refuse a width out of range.

    Raises
    ------
    HwsimError
        Names it.
    """
    if not 2 <= bits <= 8:
        raise HwsimError(f"a log-sqrt2 quantizer takes 2 to 8 bits, not {bits}")


class _Largest:
    def __init__(self, bits: int, depth: float) -> None:
        self.bits = bits
        self.depth = depth
        self.highest = 0.0

    def update(self, x: Tensor) -> None:
        if self.depth:
            check_depth(x, "shift-log-sqrt2")
        self.highest = max(self.highest, float(x.max()))

    def grid(self, last: Tensor) -> LogSqrt2Grid | ShiftLogSqrt2Grid:
        scale = float(np.float32(max(self.highest, 0.0) + self.depth))
        if self.depth:
            return ShiftLogSqrt2Grid(self.bits, scale)
        return LogSqrt2Grid(self.bits, scale or 1.0)
