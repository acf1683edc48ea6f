"""Twin uniform codes of probabilities and GELU outputs (PTQ4ViT: Yuan et al., ECCV 2022).

Of ``bits`` bits one says which of two ranges a value lies in; their steps differ
by a power of two, so that products of both ranges add up after a shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from golden.accumulate import signed_bits
from golden.errors import HwsimError
from golden.twin import TwinLinearSpec, TwinMatmulSpec, TwinQuantizeSpec
from hwsim.quantize.quantizers.logarithm import GELU_DEPTH
from hwsim.quantize.quantizers.protocol import Observer

if TYPE_CHECKING:
    from hwsim.networks.graph import FloatNode
    from hwsim.quantize.lowering.builder import ProgramBuilder

# Ratios of the two softmax steps that the search tries: 2**0 to 2**19.
SOFTMAX_SHIFTS = range(20)
# A fine step of 2**-23 at most: what the integer softmax resolves.
FINEST_PROBABILITY = 23


@dataclass(frozen=True)
class TwinSoftmaxGrid:
    """Probabilities below ``2**-shift`` in steps of ``2**-(bits-1+shift)``, the others of ``2**-(bits-1)``.

    The highest bit of a code is set in the coarse range.

    Parameters
    ----------
    bits : int
    shift : int
        0 or more.
    """

    bits: int
    shift: int

    @property
    def half(self) -> int:
        """Codes of each range."""
        return 1 << (self.bits - 1)

    def codes(self, x: Tensor) -> Tensor:
        fine = (x * (self.half << self.shift)).round().clamp(0, self.half - 1)
        coarse = (x * self.half).round().clamp(0, self.half - 1)
        return torch.where(x < 2.0**-self.shift, fine, self.half + coarse)

    def values(self, codes: Tensor) -> Tensor:
        coarse = codes >= self.half
        return torch.where(coarse, codes - self.half, codes * 2.0**-self.shift) / self.half

    def record(self) -> dict[str, Any]:
        return {"shift": self.shift}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Probabilities fine enough for the small range, then the choice of the range and a shift."""
        fine = min(self.bits - 1 + self.shift, FINEST_PROBABILITY)
        name, probability = builder.emit_probability(node, fine + 1)
        spec = TwinQuantizeSpec(probability_bits=probability.probability_bits, code_bits=self.bits)
        builder.emit(node.name, spec, (name,), {"shift": self.shift})

    def emit_product(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Both ranges in one accumulator, in steps of the fine one."""
        values = builder.second_operand(node, "zero_v")
        unit = values.scale / (self.half << self.shift)
        requantize, constants = builder.requantizer(node.name, unit / values.outgoing.scale, values.outgoing)
        spec = TwinMatmulSpec(
            code_bits=self.bits,
            value_bits=values.bits,
            row_length=values.inner,
            heads=values.heads,
            requantize=requantize,
        )
        builder.emit_narrowed(node, spec, constants | values.constants | {"range_shift": self.shift})


@dataclass(frozen=True)
class ReleasedTwinSoftmaxGrid:
    """The released quantizer, which adds both ranges instead of choosing one; fake quantization only.

    Values are ``high/L + low/(L * 2**shift)`` with ``L = 2**(bits-1) - 1``; a code holds both.

    Parameters
    ----------
    bits, shift : int
    """

    bits: int
    shift: int

    @property
    def levels(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def codes(self, x: Tensor) -> Tensor:
        split = 2.0**-self.shift
        high = (x.clamp(split, 1) * self.levels).round().clamp(0, self.levels)
        low = (x.clamp(0, split) / (split / self.levels)).round().clamp(0, self.levels)
        return high * (self.levels + 1) + low

    def values(self, codes: Tensor) -> Tensor:
        high = torch.floor(codes / (self.levels + 1))
        low = codes - high * (self.levels + 1)
        return high / self.levels + low * (2.0**-self.shift / self.levels)

    def record(self) -> dict[str, Any]:
        return {"shift": self.shift, "as_released": True}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Refuse: a code would hold both ranges.

        Raises
        ------
        HwsimError
            Always.
        """
        raise HwsimError(
            f"{node.name}: the released twin softmax adds both ranges, so that no integer program has it; "
            "calibrate without --as-released"
        )


@dataclass(frozen=True)
class TwinGeluGrid:
    """Signed codes plus ``2**(bits-1)``: below zero in steps of `negative`, above in steps of `positive`.

    Parameters
    ----------
    negative, positive : float
        Float32 steps; the integer program needs their ratio to be a power of two.
    bits : int
    """

    negative: float
    positive: float
    bits: int

    @property
    def half(self) -> int:
        return 1 << (self.bits - 1)

    def codes(self, x: Tensor) -> Tensor:
        below = (x / self.negative).round().clamp(-self.half, 0)
        above = (x / self.positive).round().clamp(0, self.half - 1)
        return self.half + torch.where(x < 0, below, above)

    def values(self, codes: Tensor) -> Tensor:
        signed = codes - self.half
        return torch.where(signed < 0, signed * self.negative, signed * self.positive)

    def record(self) -> dict[str, Any]:
        return {"negative": self.negative, "positive": self.positive}

    @property
    def shift(self) -> int:
        """log2 of ``positive / negative``.

        Raises
        ------
        HwsimError
            It is no integer, as with the released search.
        """
        mantissa, exponent = math.frexp(self.positive / self.negative)
        if mantissa != 0.5:
            raise HwsimError(
                f"the steps {self.negative:.3g} and {self.positive:.3g} of a twin quantizer do not differ by a power "
                "of two, so that no integer program has them; calibrate without --as-released"
            )
        return exponent - 1

    def emit_linear(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Codes are shifted onto the finer of both steps."""
        weight = builder.calibration.weights[node.name]
        shift = self.shift
        outputs, inputs = weight.codes.shape
        outgoing = builder.linear_output(node)
        unit = builder.row_units(weight, min(self.negative, self.positive) * weight.scale, outgoing)
        bias = np.rint(node.parameters["bias"].astype(np.float64) / unit).astype(np.int64)
        requantize, constants = builder.requantizer(node.name, unit / outgoing.scales(outputs), outgoing)
        spec = TwinLinearSpec(
            input_features=inputs,
            output_features=outputs,
            input_bits=self.bits,
            # Asymmetric weights less their zero points are signed and one bit wider.
            weight_bits=weight.bits + (weight.zero_point is not None),
            bias_bits=signed_bits(int(bias.min()), int(bias.max())),
            overflow=builder.widths.overflow,
            requantize=requantize,
        )
        shifts = {"shift_negative": max(-shift, 0), "shift_positive": max(shift, 0)}
        builder.emit_narrowed(
            node, spec, {"weight": weight.centred, "bias": bias, **shifts, **constants}, builder.widths.accumulator_bits
        )


@dataclass(frozen=True)
class TwinSoftmax:
    """Twin codes of probabilities; the ratio of the steps has the least squared error until a search refines it.

    Parameters
    ----------
    bits : int
        2 to 8.
    as_released : bool
        Add both ranges, as the released code does (fake quantization only).
    """

    bits: int = 8
    as_released: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise HwsimError(f"a twin quantizer takes 2 to 8 bits, not {self.bits}")

    def grid(self, shift: int) -> TwinSoftmaxGrid | ReleasedTwinSoftmaxGrid:
        """The grid of one ratio."""
        kind = ReleasedTwinSoftmaxGrid if self.as_released else TwinSoftmaxGrid
        return kind(self.bits, shift)

    def observer(self) -> Observer:
        return _LeastError([self.grid(shift) for shift in SOFTMAX_SHIFTS])


@dataclass(frozen=True)
class TwinGelu:
    """Twin codes of GELU outputs, the negative range just covering GELU's.

    Parameters
    ----------
    bits : int
        2 to 8.
    power_of_two : bool
        Steps that differ by a power of two, as the integer program needs; otherwise the positive one
        is free (fake quantization only), as in the released code.
    """

    bits: int = 8
    power_of_two: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise HwsimError(f"a twin quantizer takes 2 to 8 bits, not {self.bits}")

    @property
    def negative(self) -> float:
        return float(np.float32(GELU_DEPTH / (1 << (self.bits - 1))))

    def grid(self, positive: float) -> TwinGeluGrid:
        """The grid of a positive step; rounded to the nearest allowed one in octaves."""
        if self.power_of_two:
            positive = self.negative * 2.0 ** round(math.log2(positive / self.negative))
        return TwinGeluGrid(self.negative, positive, self.bits)

    def observer(self) -> Observer:
        return _GeluRange(self)


class _LeastError:
    """Of several grids the one with the least squared error over all batches, the first of equals."""

    def __init__(self, grids: list[TwinSoftmaxGrid | ReleasedTwinSoftmaxGrid]) -> None:
        self.grids = grids
        self.errors = [0.0] * len(grids)

    def update(self, x: Tensor) -> None:
        for index, grid in enumerate(self.grids):
            self.errors[index] += float((x - grid.values(grid.codes(x))).square().sum())

    def grid(self, last: Tensor) -> TwinSoftmaxGrid | ReleasedTwinSoftmaxGrid:
        return self.grids[self.errors.index(min(self.errors))]


class _GeluRange:
    """``max(x) / (2**(bits-1) - 0.5)`` in steps of the positive range; a power of two rounded up to cover it."""

    def __init__(self, quantizer: TwinGelu) -> None:
        self.quantizer = quantizer
        self.highest = 0.0

    def update(self, x: Tensor) -> None:
        self.highest = max(self.highest, float(x.max()))

    def grid(self, last: Tensor) -> TwinGeluGrid:
        half = 1 << (self.quantizer.bits - 1)
        negative = self.quantizer.negative
        positive = max(self.highest / (half - 0.5), negative * 2.0**-8)
        if self.quantizer.power_of_two:
            positive = negative * 2.0 ** math.ceil(math.log2(positive / negative))
        return TwinGeluGrid(negative, positive, self.quantizer.bits)
