"""The program under construction: grids, emitted units, and the parts that several units share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.accumulate import signed_bits
from golden.adalog import AdaLogMatmulSpec
from golden.adalog_linear import AdaLogLinearSpec
from golden.errors import HwsimError
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import WIDEST_SCORE, exponential_constants, lossless_fraction_bits
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec, dyadic_parts
from golden.softmax import SoftmaxSpec
from golden.spec import IntFormat, Shape, Spec
from golden.token_mean import TokenMeanSpec
from golden.twin import TwinMatmulSpec
from hwsim.networks.graph import MOVEMENTS, FloatNode
from hwsim.program import INPUT, Node, Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.lowering.carriers import carrier_grids
from hwsim.quantize.quantizers.power_of_two import PowerOfTwoGrid
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.quantizers.uniform import HeadGrid, UniformGrid
from hwsim.quantize.weights import QuantizedWeight

SHIFT_BITS = 6
# Bits below an output step in which a constant output channel has its bias.
CONSTANT_BITS = 8


@dataclass(frozen=True)
class ChannelGrid:
    """Uniform codes whose scale and zero point depend on the channel (last axis).

    Attributes
    ----------
    scale : ndarray of float64 [channels]
    zero_point : int
        What the requantizer adds.
    offset : ndarray of int64 [channels]
        What a channel's zero point has more; it lies in the bias.
    bits : int
    """

    scale: np.ndarray
    zero_point: int
    offset: np.ndarray
    bits: int

    @property
    def highest(self) -> int:
        return (1 << self.bits) - 1

    def scales(self, channels: int) -> np.ndarray:
        """Scale of every channel, float64."""
        assert channels == len(self.scale)
        return self.scale


@dataclass(frozen=True)
class Operand:
    """Second operand of a matrix product, and where the product goes.

    Attributes
    ----------
    bits, heads, inner : int
        Width of its codes, heads with a grid of their own (1: one for all), length of the contracted axis.
    scale : ndarray of float64 [heads]
        Its scale, times the factor that the float network multiplies the product by.
    constants : dict
        The zero point under the name asked for.
    outgoing : UniformGrid
    """

    bits: int
    heads: int
    inner: int
    scale: np.ndarray
    constants: dict[str, Any]
    outgoing: UniformGrid


class ProgramBuilder:
    """Collects the units of a program.

    Parameters
    ----------
    calibration : Calibration

    Attributes
    ----------
    grids : dict of str to grid
        Those of the calibration and, for points that the recipe leaves in float, the
        carriers that the integer program has instead.
    fraction_bits : dict of str to int
        i-exp's fraction bits that the scores of a node settle for the softmax behind them.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.graph = calibration.graph
        self.widths = calibration.recipe.lowering
        self.grids: dict[str, Grid] = {**carrier_grids(calibration), **calibration.grids}
        self.nodes: list[Node] = []
        self.errors: dict[str, dict[str, float]] = {}
        self.shapes: dict[str, Shape] = {INPUT: self.graph.image_size}
        self.formats: dict[str, IntFormat] = {}
        self.fraction_bits: dict[str, int] = {}

    def program(self) -> Program:
        header = {
            "network": self.graph.name,
            "recipe": self.calibration.recipe.name,
            "classes": self.graph.classes,
            "mean": list(self.graph.mean),
            "std": list(self.graph.std),
            "crop_ratio": self.graph.crop_ratio,
            "calibration_images": self.calibration.images,
            "scales": {
                name: {"grid": type(grid).__name__, "bits": grid.bits, **grid.record()}
                for name, grid in self.grids.items()
            },
            "lowering": self.errors,
        }
        return Program(tuple(self.nodes), self.graph.image_size, header)

    def emit(self, name: str, spec: Spec, inputs: tuple[str, ...], constants: dict[str, Any] | None = None) -> None:
        """Add a unit."""
        arrays = {key: np.asarray(value, dtype=np.int64) for key, value in (constants or {}).items()}
        self.shapes[name] = spec.shape(*(self.shapes[source] for source in inputs))
        self.formats[name] = spec.output
        self.nodes.append(Node(name, spec, inputs, arrays))

    def emit_narrowed(
        self,
        node: FloatNode,
        spec: LinearSpec
        | MatmulSpec
        | Log2MatmulSpec
        | AdaLogMatmulSpec
        | AdaLogLinearSpec
        | LogSqrt2MatmulSpec
        | LogSqrt2LinearSpec
        | TwinMatmulSpec
        | TokenMeanSpec,
        constants: dict[str, Any],
        bits: int | None = None,
    ) -> None:
        """Add a matrix product or a sum with an accumulator of `bits`, or the narrowest that is proven."""
        arrays = {key: np.asarray(value, dtype=np.int64) for key, value in constants.items()}
        accumulator = IntFormat(bits or signed_bits(*spec.bounds(arrays)), signed=True)
        spec = dataclasses.replace(spec, requantize=dataclasses.replace(spec.requantize, input=accumulator))
        self.emit(node.name, spec, node.inputs, arrays)

    def bits(self, name: str) -> int:
        """Width of the codes at a node that was emitted."""
        return self.formats[name].bits

    def grid(self, name: str) -> Grid:
        """Grid of the codes at a node, through data movement."""
        node = self.graph[name]
        while node.name not in self.grids and node.operation in MOVEMENTS:
            node = self.graph[node.inputs[0]]
        if node.name not in self.grids:
            raise HwsimError(f"{name}: recipe {self.calibration.recipe.name} gives this point no codes")
        return self.grids[node.name]

    def uniform(self, name: str) -> UniformGrid:
        """Like `grid`, for points that must have one scale a tensor.

        Raises
        ------
        HwsimError
            They have another grid; names the point.
        """
        grid = self.grid(name)
        if not isinstance(grid, UniformGrid):
            raise HwsimError(
                f"{name}: this point needs one scale a tensor, recipe {self.calibration.recipe.name} "
                f"gives it a {type(grid).__name__}"
            )
        return grid

    def linear_output(self, node: FloatNode) -> UniformGrid | PowerOfTwoGrid | ChannelGrid:
        """Grid of the codes that a linear layer gives: its own, or those of the heads that it is split into.

        Raises
        ------
        HwsimError
            Queries, keys and values differ in width.
        """
        parts = [user for user in self.graph.nodes if user.operation == "split_heads" and node.name in user.inputs]
        grids = [self.calibration.grids.get(part.name) for part in parts]
        if not any(grids):
            own = self.grid(node.name)
            return own if isinstance(own, PowerOfTwoGrid) else self.uniform(node.name)
        if node.name in self.calibration.grids:
            raise HwsimError(f"{node.name}: the recipe quantizes it both whole and by heads; choose one")
        channels = len(node.parameters["bias"])
        scale, zero_point = np.zeros(channels), np.zeros(channels, np.int64)
        widths = set()
        for part, grid in zip(parts, grids, strict=True):
            if not isinstance(grid, UniformGrid | HeadGrid):
                raise HwsimError(f"{part.name}: heads of one projection need uniform grids for query, key and value")
            heads, count = part.attributes["heads"], part.attributes["parts"]
            for array, of_heads in ((scale, grid.scales(heads)), (zero_point, grid.zero_points(heads))):
                array.reshape(count, heads, -1)[part.attributes["part"]] = of_heads[:, None]
            widths.add(grid.bits)
        if len(widths) > 1 or not scale.all():
            raise HwsimError(f"{node.name}: query, key and value need the same bits, not {sorted(widths)}")
        common = int(zero_point[0])
        return ChannelGrid(scale, common, zero_point - common, widths.pop())

    def requantizer(
        self,
        name: str,
        ratios: np.ndarray,
        outgoing: UniformGrid | PowerOfTwoGrid | ChannelGrid,
        incoming: IntFormat | None = None,
    ) -> tuple[RequantizeSpec, dict[str, Any]]:
        """Spec and constants that multiply sums by `ratios` [1 or channels] onto a uniform grid.

        Without the format of what comes in, the widest is taken, for `emit_narrowed` to narrow.
        """
        parts = [dyadic_parts(float(ratio), self.widths.multiplier_bits, SHIFT_BITS) for ratio in ratios]
        worst = max(error for _, _, error in parts)
        self.errors[name] = {"relative_error": worst, "steps": worst * outgoing.highest}
        spec = RequantizeSpec(
            input=incoming or IntFormat(62 - self.widths.multiplier_bits, signed=True),
            output_bits=outgoing.bits,
            multiplier_bits=self.widths.multiplier_bits,
            shift_bits=SHIFT_BITS,
            channels=len(parts),
        )
        return spec, {
            "multiplier": [multiplier for multiplier, _, _ in parts],
            "shift": [shift for _, shift, _ in parts],
            "zero_point": outgoing.zero_point,
        }

    def row_units(
        self, weight: QuantizedWeight, unit: np.ndarray, outgoing: UniformGrid | PowerOfTwoGrid | ChannelGrid
    ) -> np.ndarray:
        """Units of the sums of a linear layer, float64 [outputs], given those of its weights.

        A row of zeros has a step next to nothing, in which its bias would be an integer beyond all widths. Its output
        is the bias whatever the step, so it gets a fraction of a step of the output.
        """
        own = np.ldexp(outgoing.scales(len(unit)), -CONSTANT_BITS)
        return np.where(weight.centred.any(axis=1), unit, own)

    def sum_room(self, sums: int, bias: np.ndarray, spare: int) -> int:
        """Guard bits for which a signed accumulator has room below its multiplier.

        Parameters
        ----------
        sums : int
            No sum of products without guard bits is larger.
        bias : ndarray of float64
            In units of these sums.
        spare : int
            Bits of 62 that the requantizer needs beside the multiplier's.
        """
        whole = 62 - self.widths.multiplier_bits - spare
        # Sums below a quarter and a bias below half of what the accumulator holds.
        return min(whole - 3 - sums.bit_length(), whole - 2 - int(np.abs(bias).max()).bit_length())

    def guard_bits(self, lossless: int, room: int, limit: int) -> int:
        """Guard bits of a product on logarithmic codes: the lossless ones, unless something wants fewer.

        Parameters
        ----------
        lossless : int
            As many as the largest shift.
        room : int
            Of the accumulator; where there is none the spec of the unit refuses it.
        limit : int
            Of the unit.
        """
        wanted = self.widths.guard_bits
        return max(0, min(lossless, room, limit, lossless if wanted is None else wanted))

    def second_operand(self, node: FloatNode, zero_point: str) -> Operand:
        """The second operand of a matrix product; `zero_point` names the constant."""
        name = node.inputs[1]
        grid = self.grid(name)
        if not isinstance(grid, UniformGrid | HeadGrid):
            raise HwsimError(f"{name}: the second operand of a matrix product cannot be a {type(grid).__name__}")
        heads = len(grid.scale) if isinstance(grid, HeadGrid) else 1
        zero = grid.zero_points(heads)
        return Operand(
            bits=grid.bits,
            heads=heads,
            inner=self.shapes[name][-2],
            scale=grid.scales(heads) * node.attributes["scale"],
            constants={zero_point: zero if heads > 1 else zero[0]},
            outgoing=self.uniform(node.name),
        )

    def exponentials(self, node: FloatNode) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields and constants that all softmax units share.

        Raises
        ------
        HwsimError
            Scores wider than the softmax units take.
        """
        (name,) = node.inputs
        scores = self.uniform(name)
        if scores.bits > WIDEST_SCORE:
            raise HwsimError(f"{name}: softmax units take scores of at most {WIDEST_SCORE} bits, not {scores.bits}")
        constants = exponential_constants(scores.scale)
        width = self.bits(name)
        fraction = min(self.widths.exponential_fraction_bits, lossless_fraction_bits(int(constants["x0"]), width))
        fraction = self.fraction_bits.get(name, fraction)
        fields = {
            "score_bits": width,
            "fraction_bits": fraction,
            "row_length": self.shapes[name][-1],
            "polynomial_bits": int(constants["c"]).bit_length(),
        }
        return fields, dict(constants)

    def emit_probability(self, node: FloatNode, least_bits: int = 1) -> tuple[str, SoftmaxSpec]:
        """Add the integer softmax in front of a quantizer of probabilities; its name and spec.

        Parameters
        ----------
        node : FloatNode
            Of the softmax.
        least_bits : int
            Fraction bits that the quantizer needs.
        """
        fields, constants = self.exponentials(node)
        spec = SoftmaxSpec(probability_bits=max(self.widths.probability_bits, least_bits), **fields)
        name = f"{node.name}.probability"
        self.emit(name, spec, node.inputs, constants)
        return name, spec

    def add_constants(
        self,
        name: str,
        operands: list[UniformGrid | PowerOfTwoGrid],
        outgoing: UniformGrid | PowerOfTwoGrid,
        channels: int,
    ) -> dict[str, np.ndarray]:
        """Multipliers, offset and shift [channels] that add two operands onto a grid."""
        ratios = [grid.scales(channels) / outgoing.scales(channels) for grid in operands]
        integers, shift = self._common_shift(name, ratios)
        errors = [
            np.abs(np.ldexp(integer.astype(float), -shift) - ratio)
            for integer, ratio in zip(integers, ratios, strict=True)
        ]
        self.errors[name] = {
            "relative_error": max(float((error / ratio).max()) for error, ratio in zip(errors, ratios, strict=True)),
            "steps": float(
                sum(error.max() * ((1 << grid.bits) - 1) for error, grid in zip(errors, operands, strict=True))
            ),
        }
        offset = np.left_shift(outgoing.zero_point, shift)
        for integer, grid in zip(integers, operands, strict=True):
            offset = offset - integer * grid.zero_point
        return {"multiplier_a": integers[0], "multiplier_b": integers[1], "offset": offset, "shift": shift}

    def _common_shift(self, name: str, ratios: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Integer multipliers [channels] of two operands over one shift a channel; the larger takes the full width."""
        bits = self.widths.multiplier_bits
        exponent = np.frexp(np.maximum(*ratios))[1].astype(np.int64)
        shift = np.minimum(bits - exponent, (1 << SHIFT_BITS) - 1)
        integers = [np.rint(np.ldexp(ratio, shift)).astype(np.int64) for ratio in ratios]
        # Rounding up may have carried into one more bit.
        shift = shift - (np.maximum(*integers) >> bits > 0)
        if (shift < 0).any():
            raise HwsimError(f"{name}: an operand's scale is too far above that of the sum; widen multiplier_bits")
        return [np.rint(np.ldexp(ratio, shift)).astype(np.int64) for ratio in ratios], shift
