"""AdaLog codes of GELU outputs: the shift that makes them positive goes into the next bias (Wu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from golden.accumulate import signed_bits
from golden.adalog import BASE_DENOMINATOR, adalog_tables, lossless_guard_bits
from golden.adalog_linear import AdaLogLinearSpec
from hwsim.quantize.quantizers.adalog import WIDEST_GUARD, check_adalog
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


@dataclass(frozen=True)
class ShiftAdaLogGrid:
    """``2**-T1[code] * T2[code] / (2L-2) * scale - depth``, the zero symbol ``-depth`` (AdaLog, eq. 13-14).

    Parameters
    ----------
    bits : int
    q : int
        Numerator of log2 of the base, over 37.
    scale : float
        A float32 value above 0: what code 0 stands for, plus GELU's depth.
    """

    bits: int
    q: int
    scale: float

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of GELU outputs as float32."""
        return codes_by_thresholds(x + GELU_DEPTH, log_boundaries(self.bits, self.q / BASE_DENOMINATOR, self.scale))

    def values(self, codes: Tensor) -> Tensor:
        shift, mantissa = adalog_tables(self.bits, self.q)
        entry = np.exp2(-shift.astype(np.float64)) * mantissa / ((2 << self.bits) - 2) * self.scale
        return code_values(np.append(entry, 0.0) - GELU_DEPTH, codes)

    def record(self) -> dict[str, Any]:
        return {"q": self.q, "scale": self.scale, "depth": GELU_DEPTH}

    def emit_linear(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Table, shift and multiply by the weights; the depth is in the bias (eq. 15)."""
        weight = builder.calibration.weights[node.name]
        unsigned, zero = weight.unsigned
        shift, mantissa = adalog_tables(self.bits, self.q)
        top = (2 << self.bits) - 2
        outputs, inputs = weight.codes.shape
        outgoing = builder.linear_output(node)
        whole = builder.row_units(weight, self.scale / top * weight.scale, outgoing)
        bias = node.parameters["bias"].astype(np.float64) - GELU_DEPTH * weight.centred.sum(axis=1) * weight.scale
        # Any weights and codes.
        room = builder.sum_room(inputs * top << weight.bits, bias / whole, 0)
        guard = builder.guard_bits(lossless_guard_bits(self.bits, self.q), room, WIDEST_GUARD)
        unit = whole / 2**guard
        codes = np.rint(bias / unit).astype(np.int64)
        requantize, constants = builder.requantizer(node.name, unit / outgoing.scales(outputs), outgoing)
        spec = AdaLogLinearSpec(
            input_features=inputs,
            output_features=outputs,
            code_bits=self.bits,
            weight_bits=weight.bits,
            bias_bits=signed_bits(int(codes.min()), int(codes.max())),
            guard_bits=guard,
            largest_shift=min(63, self.bits + weight.bits + 4 + guard),
            requantize=requantize,
        )
        tables = {"shift_table": shift, "mantissa_table": mantissa}
        operand = {"weight": unsigned, "zero_weight": zero, "bias": codes}
        builder.emit_narrowed(node, spec, operand | tables | constants, builder.widths.accumulator_bits)


@dataclass(frozen=True)
class ShiftAdaLog:
    """AdaLog codes of GELU outputs; code 0 is the largest one seen, until a search refines it.

    Parameters
    ----------
    bits : int
        2 to 8.
    q : int
        Numerator of log2 of the base, over 37, 10 to 137; 37 makes Log2 codes. 0 lets the search choose.
    """

    bits: int = 4
    q: int = 0

    def __post_init__(self) -> None:
        check_adalog(self.bits, self.q)

    def observer(self) -> Observer:
        return _Largest(self)


class _Largest:
    """The largest value seen, and the q for which the last code reaches a thousandth of it."""

    def __init__(self, quantizer: ShiftAdaLog) -> None:
        self.quantizer = quantizer
        self.highest = 0.0

    def update(self, x: Tensor) -> None:
        check_depth(x, "shift-adalog")
        self.highest = max(self.highest, float(x.max()))

    def grid(self, last: Tensor) -> ShiftAdaLogGrid:
        bits = self.quantizer.bits
        q = self.quantizer.q or min(137, max(10, round(370 / ((1 << bits) - 1))))
        return ShiftAdaLogGrid(bits, q, float(np.float32(self.highest + GELU_DEPTH)))
