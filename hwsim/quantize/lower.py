"""Lowering: from a calibrated network to the integer program.

Each float node becomes the unit of the same name; where a unit needs a second
one in front (a probability before its quantizer, patches moved to the grid of
the token sequence), that one's name has a suffix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from golden.accumulate import signed_bits
from golden.adalog import (
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.add import AddSpec
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants, lossless_fraction_bits
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.rearrange import (
    ConcatSpec,
    ConstantSpec,
    MergeHeadsSpec,
    PatchesSpec,
    SplitHeadsSpec,
    TakeTokenSpec,
    TransposeSpec,
)
from golden.requantize import RequantizeSpec, dyadic_parts
from golden.softmax import SoftmaxSpec
from golden.spec import IntFormat, Spec
from hwsim.networks.graph import FloatNode
from hwsim.networks.interpret import normalised_pixels
from hwsim.program import INPUT, Node, Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.grids import AdaLogGrid, Log2Grid, PowerOfTwoGrid, UniformGrid
from hwsim.quantize.observers import asymmetric_grid

SHIFT_BITS = 6


def lower(calibration: Calibration) -> Program:
    """The integer program of a calibrated network.

    Raises
    ------
    HwsimError
        A ratio of scales out of reach of the multiplier width, an accumulator that could
        overflow at the width of the recipe, or an operation without an integer form.
    """
    return _Lowering(calibration).program()


def restrict_hidden(hidden: UniformGrid, gelu: UniformGrid, bits: int) -> UniformGrid:
    """The grid of the GELU table's input, `bits` wide: the observed range with 0 in it, cut where GELU has died out.

    Below the cut GELU stays within a quarter of an output step of 0: saturating there keeps every code,
    with room for the rounding of the zero point.
    """
    low = min(float(hidden.values(torch.tensor(0.0))), 0.0)
    high = max(float(hidden.values(torch.tensor(float(hidden.highest)))), hidden.scale)
    cut = -10.0
    while cut < -0.76 and abs(_gelu(cut + 1 / 64)) < gelu.scale / 4:
        cut += 1 / 64
    scale, zero_point = asymmetric_grid(torch.tensor(max(low, cut)), torch.tensor(high), bits)
    return UniformGrid(scale, zero_point, bits)


def _gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


class _Lowering:
    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.graph = calibration.graph
        self.widths = calibration.recipe.lowering
        self.grids = dict(calibration.grids)
        for node in self.graph.nodes:
            if node.operation == "gelu":
                hidden, gelu = calibration.uniform_grid(node.inputs[0]), calibration.uniform_grid(node.name)
                self.grids[node.inputs[0]] = restrict_hidden(hidden, gelu, self.widths.hidden_bits)
        self.nodes: list[Node] = []
        self.errors: dict[str, dict[str, float]] = {}

    def program(self) -> Program:
        for node in self.graph.nodes:
            lower_node: Callable[[FloatNode], None] | None = getattr(self, f"_lower_{node.operation}", None)
            if lower_node is None:
                raise HwsimError(f"{node.name}: a {node.operation} has no integer form in this package")
            lower_node(node)
        header = {
            "network": self.graph.name,
            "recipe": self.calibration.recipe.name,
            "classes": self.graph.classes,
            "mean": list(self.graph.mean),
            "std": list(self.graph.std),
            "crop_ratio": self.graph.crop_ratio,
            "calibration_images": self.calibration.images,
            "scales": {name: _grid_record(grid) for name, grid in self.grids.items()},
            "lowering": self.errors,
        }
        return Program(tuple(self.nodes), self.graph.image_size, header)

    def _emit(self, name: str, spec: Spec, inputs: tuple[str, ...], constants: dict[str, Any] | None = None) -> None:
        arrays = {key: np.asarray(value, dtype=np.int64) for key, value in (constants or {}).items()}
        self.nodes.append(Node(name, spec, inputs, arrays))

    def _emit_narrowed(
        self,
        node: FloatNode,
        spec: LinearSpec | MatmulSpec | Log2MatmulSpec | AdaLogMatmulSpec,
        constants: dict[str, Any],
        bits: int | None = None,
    ) -> None:
        """Emit a matrix product with an accumulator of `bits`, or the narrowest that is proven."""
        arrays = {key: np.asarray(value, dtype=np.int64) for key, value in constants.items()}
        accumulator = IntFormat(bits or signed_bits(*spec.bounds(arrays)), signed=True)
        spec = dataclasses.replace(spec, requantize=dataclasses.replace(spec.requantize, input=accumulator))
        self._emit(node.name, spec, node.inputs, arrays)

    def _uniform(self, name: str) -> UniformGrid:
        grid = self.grids[self.graph.source(name).name]
        if not isinstance(grid, UniformGrid):
            return self.calibration.uniform_grid(name)
        return grid

    def _bits(self, name: str) -> int:
        return self.grids[self.graph.source(name).name].bits

    def _requantizer(
        self, name: str, ratios: np.ndarray, outgoing: UniformGrid, incoming: IntFormat | None = None
    ) -> tuple[RequantizeSpec, dict[str, Any]]:
        """Spec and constants that multiply sums by `ratios` [1 or channels] onto a uniform grid.

        Without the format of what comes in, the widest is taken, for `_emit_narrowed` to narrow.
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

    def _lower_image(self, node: FloatNode) -> None:
        grid = self._uniform(node.name)
        table = grid.codes(torch.from_numpy(normalised_pixels(self.graph))).numpy()
        spec = LookupSpec(input_bits=8, output_bits=grid.bits, channels=len(table))
        self._emit(node.name, spec, (INPUT,), {"table": table})

    def _lower_patches(self, node: FloatNode) -> None:
        self._emit(node.name, PatchesSpec(bits=self._bits(node.name), **node.attributes), node.inputs)

    def _lower_split_heads(self, node: FloatNode) -> None:
        self._emit(node.name, SplitHeadsSpec(bits=self._bits(node.name), **node.attributes), node.inputs)

    def _lower_transpose(self, node: FloatNode) -> None:
        self._emit(node.name, TransposeSpec(bits=self._bits(node.name)), node.inputs)

    def _lower_merge_heads(self, node: FloatNode) -> None:
        self._emit(node.name, MergeHeadsSpec(bits=self._bits(node.name)), node.inputs)

    def _lower_take_token(self, node: FloatNode) -> None:
        self._emit(node.name, TakeTokenSpec(bits=self._bits(node.name), **node.attributes), node.inputs)

    def _lower_linear(self, node: FloatNode) -> None:
        incoming, outgoing = self._uniform(node.inputs[0]), self._uniform(node.name)
        weight, weight_scale = self.calibration.quantized_weight(node)
        unit = incoming.scale * weight_scale
        bias = np.rint(node.parameters["bias"].astype(np.float64) / unit).astype(np.int64)
        bias -= incoming.zero_point * weight.sum(axis=1)
        outputs, inputs = weight.shape
        requantize, constants = self._requantizer(node.name, unit / outgoing.scale, outgoing)
        spec = LinearSpec(
            input_features=inputs,
            output_features=outputs,
            input_bits=incoming.bits,
            weight_bits=self.calibration.recipe.weight_bits,
            bias_bits=signed_bits(int(bias.min()), int(bias.max())),
            overflow=self.widths.overflow,
            requantize=requantize,
        )
        self._emit_narrowed(node, spec, {"weight": weight, "bias": bias, **constants}, self.widths.accumulator_bits)

    def _lower_constant(self, node: FloatNode) -> None:
        # The class token has no point of its own; its codes are those of the sequence it joins.
        owner = node.name
        if not node.role:
            owner = next(user.name for user in self.graph.nodes if node.name in user.inputs)
        grid = self._uniform(owner)
        codes = grid.codes(torch.from_numpy(node.parameters["value"])).numpy()
        rows, columns = codes.shape
        self._emit(node.name, ConstantSpec(rows=rows, columns=columns, bits=grid.bits), (), {"value": codes})

    def _lower_concat(self, node: FloatNode) -> None:
        token, sequence = node.inputs
        incoming, outgoing = self._uniform(sequence), self._uniform(node.name)
        values = incoming.values(torch.arange(incoming.highest + 1, dtype=torch.float32))
        regrid = f"{node.name}.{sequence.rpartition('.')[0] or sequence}"
        spec = LookupSpec(input_bits=incoming.bits, output_bits=outgoing.bits)
        self._emit(regrid, spec, (sequence,), {"table": outgoing.codes(values).numpy()[None]})
        self._emit(node.name, ConcatSpec(bits=outgoing.bits), (token, regrid))

    def _lower_add(self, node: FloatNode) -> None:
        outgoing = self.grids[node.name]
        operands = [self.grids[self.graph.source(name).name] for name in node.inputs]
        assert isinstance(outgoing, UniformGrid | PowerOfTwoGrid)
        channels = self._channels(node)
        multipliers, zero_points = [], []
        for grid in operands:
            assert isinstance(grid, UniformGrid | PowerOfTwoGrid)
            multipliers.append(grid.scales(channels) / outgoing.scales(channels))
            zero_points.append(grid.zero_point)
        integers, shift = self._common_shift(node.name, multipliers)
        errors = [
            np.abs(np.ldexp(integer.astype(float), -shift) - ratio)
            for integer, ratio in zip(integers, multipliers, strict=True)
        ]
        self.errors[node.name] = {
            "relative_error": max(
                float((error / ratio).max()) for error, ratio in zip(errors, multipliers, strict=True)
            ),
            "steps": float(
                sum(error.max() * ((1 << grid.bits) - 1) for error, grid in zip(errors, operands, strict=True))
            ),
        }
        offset = np.left_shift(outgoing.zero_point, shift)
        for integer, zero_point in zip(integers, zero_points, strict=True):
            offset = offset - integer * zero_point
        spec = AddSpec(
            channels=channels,
            a_bits=operands[0].bits,
            b_bits=operands[1].bits,
            output_bits=outgoing.bits,
            multiplier_bits=self.widths.multiplier_bits,
            shift_bits=SHIFT_BITS,
            offset_bits=signed_bits(int(offset.min()), int(offset.max())),
        )
        constants = {"multiplier_a": integers[0], "multiplier_b": integers[1], "offset": offset, "shift": shift}
        self._emit(node.name, spec, node.inputs, constants)

    def _common_shift(self, name: str, ratios: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Integer multipliers [channels] of two operands over one shift a channel; the larger takes the full width."""
        bits = self.widths.multiplier_bits
        shift = np.minimum(bits - np.frexp(np.maximum(*ratios))[1], (1 << SHIFT_BITS) - 1)
        integers = [np.rint(np.ldexp(ratio, shift)).astype(np.int64) for ratio in ratios]
        # Rounding up may have carried into one more bit.
        shift = shift - (np.maximum(*integers) >> bits > 0)
        if (shift < 0).any():
            raise HwsimError(f"{name}: an operand's scale is too far above that of the sum; widen multiplier_bits")
        return [np.rint(np.ldexp(ratio, shift)).astype(np.int64) for ratio in ratios], shift

    def _channels(self, node: FloatNode) -> int:
        """Channels of a residual sum: those of the linear or constant that joins it."""
        source = self.graph.source(node.inputs[1])
        parameter = source.parameters["bias"] if source.operation == "linear" else source.parameters["value"]
        return int(parameter.shape[-1])

    def _lower_layernorm(self, node: FloatNode) -> None:
        incoming = self.grids[self.graph.source(node.inputs[0]).name]
        outgoing = self._uniform(node.name)
        gamma = node.parameters["weight"].astype(np.float64) / outgoing.scale
        beta = node.parameters["bias"].astype(np.float64) / outgoing.scale + outgoing.zero_point
        channels = len(gamma)
        alpha = np.zeros(channels, np.int64)
        zero_in = incoming.zero_point if isinstance(incoming, UniformGrid | PowerOfTwoGrid) else 0
        if isinstance(incoming, PowerOfTwoGrid):
            alpha = incoming.alpha - incoming.alpha.min()
        fraction = self.widths.gamma_bits - 1 - math.frexp(float(np.abs(gamma).max()))[1]
        fraction = max(0, min(fraction, 16))
        gamma_codes = np.rint(np.ldexp(gamma, fraction)).astype(np.int64)
        limit = (1 << (self.widths.gamma_bits - 1)) - 1
        if np.abs(gamma_codes).max() > limit:
            if fraction == 0:
                raise HwsimError(
                    f"{node.name}: gamma over the output scale exceeds {self.widths.gamma_bits} bits; widen gamma_bits"
                )
            fraction -= 1
            gamma_codes = np.rint(np.ldexp(gamma, fraction)).astype(np.int64)
        beta_codes = np.rint(np.ldexp(beta, fraction)).astype(np.int64)
        spec = LayerNormSpec(
            channels=channels,
            input_bits=incoming.bits,
            output_bits=outgoing.bits,
            alpha_bits=2 if isinstance(incoming, PowerOfTwoGrid) else 0,
            mantissa_bits=self.widths.mantissa_bits,
            radicand_bits=self.widths.radicand_bits,
            gamma_bits=self.widths.gamma_bits,
            beta_bits=signed_bits(int(beta_codes.min()), int(beta_codes.max())),
        )
        constants = {
            "zero_in": zero_in,
            "alpha": alpha,
            "gamma": gamma_codes,
            "beta": beta_codes,
            "fraction_bits": fraction,
        }
        self._emit(node.name, spec, node.inputs, constants)

    def _lower_matmul(self, node: FloatNode) -> None:
        first = self.grids[self.graph.source(node.inputs[0]).name]
        second, outgoing = self._uniform(node.inputs[1]), self._uniform(node.name)
        scale = node.attributes["scale"] * second.scale / outgoing.scale
        inner = self._inner(node)
        spec: MatmulSpec | Log2MatmulSpec | AdaLogMatmulSpec
        if isinstance(first, UniformGrid):
            requantize, constants = self._requantizer(node.name, np.array([first.scale * scale]), outgoing)
            spec = MatmulSpec(a_bits=first.bits, b_bits=second.bits, inner=inner, requantize=requantize)
            constants |= {"zero_a": first.zero_point, "zero_b": second.zero_point}
        elif isinstance(first, Log2Grid):
            last = (1 << first.bits) - 1
            requantize, constants = self._requantizer(node.name, np.array([scale / 2**last]), outgoing)
            spec = Log2MatmulSpec(code_bits=first.bits, value_bits=second.bits, row_length=inner, requantize=requantize)
            constants |= {"zero_v": second.zero_point}
        elif isinstance(first, AdaLogGrid):
            shift, mantissa = adalog_tables(first.bits, first.q)
            product = first.bits + 3 + second.bits
            room = 62 - self.widths.multiplier_bits - product - inner.bit_length()
            guard = min(lossless_guard_bits(first.bits, first.q), room, 32)
            unit = scale / ((2 << first.bits) - 2) / 2**guard
            requantize, constants = self._requantizer(node.name, np.array([unit]), outgoing)
            spec = AdaLogMatmulSpec(
                code_bits=first.bits,
                value_bits=second.bits,
                row_length=inner,
                guard_bits=guard,
                largest_shift=min(63, product + guard),
                requantize=requantize,
            )
            constants |= {"zero_v": second.zero_point, "shift_table": shift, "mantissa_table": mantissa}
        else:
            raise HwsimError(f"{node.name}: a matrix product takes no {type(first).__name__}")
        self._emit_narrowed(node, spec, constants)

    def _inner(self, node: FloatNode) -> int:
        """Length of the contracted axis: tokens behind a softmax, head depth before it."""
        if self.graph.source(node.inputs[0]).operation == "softmax":
            return self._tokens()
        qkv = self.graph.source(node.inputs[0])
        split = self.graph[node.inputs[0]].attributes
        return len(qkv.parameters["bias"]) // (split["heads"] * split["parts"])

    def _tokens(self) -> int:
        return next(len(node.parameters["value"]) for node in self.graph.nodes if node.role == "position")

    def _lower_softmax(self, node: FloatNode) -> None:
        scores, outgoing = self._uniform(node.inputs[0]), self.grids[node.name]
        constants = exponential_constants(scores.scale)
        fraction = min(self.widths.exponential_fraction_bits, lossless_fraction_bits(int(constants["x0"]), scores.bits))
        shared: dict[str, Any] = {
            "score_bits": scores.bits,
            "fraction_bits": fraction,
            "row_length": self._tokens(),
            "polynomial_bits": int(constants["c"]).bit_length(),
        }
        if isinstance(outgoing, Log2Grid):
            self._emit(node.name, LogSoftmaxSpec(code_bits=outgoing.bits, **shared), node.inputs, dict(constants))
            return
        probability = SoftmaxSpec(probability_bits=self.widths.probability_bits, **shared)
        middle = f"{node.name}.probability"
        self._emit(middle, probability, node.inputs, dict(constants))
        if isinstance(outgoing, UniformGrid):
            ratio = np.array([1 / (outgoing.scale * 2**self.widths.probability_bits)])
            spec, requantize = self._requantizer(node.name, ratio, outgoing, probability.output)
            self._emit(node.name, spec, (middle,), requantize)
        elif isinstance(outgoing, AdaLogGrid):
            thresholds = adalog_thresholds(outgoing.bits, outgoing.q, probability_scale(self.widths.probability_bits))
            quantize = AdaLogQuantizeSpec(input_bits=probability.output.bits, code_bits=outgoing.bits)
            self._emit(node.name, quantize, (middle,), {"thresholds": thresholds})
        else:
            raise HwsimError(f"{node.name}: a softmax has no {type(outgoing).__name__}")

    def _lower_gelu(self, node: FloatNode) -> None:
        hidden, outgoing = self._uniform(node.inputs[0]), self._uniform(node.name)
        x = hidden.values(torch.arange(hidden.highest + 1, dtype=torch.float64))
        table = outgoing.codes(torch.tensor([_gelu(float(value)) for value in x], dtype=torch.float64)).numpy()
        spec = LookupSpec(input_bits=hidden.bits, output_bits=outgoing.bits)
        self._emit(node.name, spec, node.inputs, {"table": table[None]})


def _grid_record(grid: UniformGrid | PowerOfTwoGrid | Log2Grid | AdaLogGrid) -> dict[str, Any]:
    """A grid as JSON values for the program's header."""
    record: dict[str, Any] = {"grid": type(grid).__name__, "bits": grid.bits}
    if isinstance(grid, UniformGrid):
        record |= {"scale": grid.scale, "zero_point": grid.zero_point}
    elif isinstance(grid, PowerOfTwoGrid):
        record |= {"base": grid.base, "alpha": grid.alpha.tolist(), "zero_point": grid.zero_point}
    elif isinstance(grid, AdaLogGrid):
        record |= {"q": grid.q}
    return record
