"""A float graph as a torch module: the trainable fake-quantized network, and the frozen float one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from golden.errors import HwsimError
from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode
from hwsim.networks.interpret import FLOAT_OPERATIONS, evaluate
from hwsim.qat.operations import tensor_operations
from hwsim.qat.start import WIDEST_LSQ, Start, code_bits
from hwsim.quantize.lsq import SMALLEST_STEP, gradient_scale, lsq
from hwsim.quantize.q_vit import RECTIFIED
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.weights import SymmetricWeights

# What `check_trainable` lets pass, of the published systems.
TRAINS = "use --recipe q-vit, or --recipe fq-vit with --point residual=uniform:BITS and --point attention=uniform:BITS"


def check_trainable(graph: FloatGraph, recipe: Recipe) -> None:
    """Refuse a recipe with anything but uniform codes of one scale a tensor and signed weights a channel.

    Raises
    ------
    HwsimError
        Names the recipe and the point.
    """
    for node in graph.nodes:
        quantizer = recipe.at(node)
        uniform = quantizer is None or (isinstance(quantizer, Uniform) and not quantizer.heads)
        if node.operation == "linear" and uniform:
            weights = recipe.weights_for(node)
            if not isinstance(weights, SymmetricWeights) or weights.groups:
                raise HwsimError(
                    f"recipe {recipe.name}: training takes signed weights with a scale an output channel; {TRAINS}"
                )
        if not uniform:
            raise HwsimError(
                f"recipe {recipe.name}: training takes uniform codes of one scale a tensor, and {node.name} has a "
                f"{type(quantizer).__name__}; {TRAINS}"
            )
    if recipe.search is not None or recipe.reparameterize or recipe.reconstruct is not None:
        raise HwsimError(f"recipe {recipe.name}: its scales come from a search, not from training; {TRAINS}")


class GraphModule(nn.Module):
    """A float graph whose parameters are those of the module.

    Parameters
    ----------
    graph : FloatGraph
    device : torch.device

    Attributes
    ----------
    fused_quantizers, fused_norms : bool
        Use the kernels of `hwsim.quantize.lsq_kernels` and `hwsim.qat.norm_kernels` on a GPU; off at first.
    """

    def __init__(self, graph: FloatGraph, device: torch.device) -> None:
        super().__init__()
        self.graph = graph
        self.device = device
        self.fused_quantizers = self.fused_norms = False
        self.operations = tensor_operations(graph, device)
        for node in graph.nodes:
            if node.operation == "layernorm":
                self.operations[node.name] = self._layernorm
        self.rectified = frozenset(node.name for node in graph.nodes if node.role in RECTIFIED)
        # Keys of a file by the attribute's name; a name of torch has no dots.
        self.keys: dict[str, str] = {}
        self._names: dict[str, dict[str, str]] = {}
        for index, node in enumerate(graph.nodes):
            self._names[node.name] = {}
            for name, array in node.parameters.items():
                tensor = torch.from_numpy(array.astype(np.float32, copy=True)).to(device)
                self._names[node.name][name] = self.own(f"node{index}_{name}", f"{node.name}.{name}", tensor)

    def own(self, attribute: str, key: str, value: Tensor) -> str:
        """Make a tensor a parameter, under an attribute's name and the key of a file; gives the former."""
        self.register_parameter(attribute, nn.Parameter(value))
        self.keys[attribute] = key
        return attribute

    def parameters_of(self, node: FloatNode) -> Mapping[str, Tensor]:
        """Parameters of a node as its operation uses them."""
        return {name: getattr(self, attribute) for name, attribute in self._names[node.name].items()}

    def _layernorm(self, node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]) -> Tensor:
        (x,) = operands
        if not self.fused_norms or not x.is_cuda or torch.compiler.is_compiling():
            return FLOAT_OPERATIONS["layernorm"](node, parameters, operands)
        from hwsim.qat.norm_kernels import ShortRows

        result: Tensor = ShortRows.apply(x, parameters["weight"], parameters["bias"], node.attributes["eps"])
        return result

    def after(self, node: FloatNode, value: Tensor) -> Tensor:
        """What goes on from a node."""
        return value

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, classes], and queries and keys [..., heads, tokens, d] of every block in turn, in front of their
        quantizers; of normalised images float32 [B, H, W, C].
        """
        relations: list[Tensor] = []

        def after(node: FloatNode, value: Tensor) -> Tensor:
            if node.name in self.rectified:
                relations.append(value)
            return self.after(node, value)

        logits = evaluate(self.graph.nodes, {}, self.parameters_of, source=x, after=after, operations=self.operations)
        return logits.reshape(len(logits), -1), relations

    def named_tensors(self) -> dict[str, Tensor]:
        """Every parameter by the key of a file, in a fixed order."""
        return {key: getattr(self, attribute) for attribute, key in self.keys.items()}


def _operands(graph: FloatGraph) -> frozenset[str]:
    """Points that only linear layers and matrix products read, and weights."""
    products = {"linear", "matmul"}
    only: dict[str, bool] = {}
    for node in reversed(graph.nodes):
        users = [user for user in graph.nodes if node.name in user.inputs]
        only[node.name] = bool(users) and all(
            user.operation in products or (user.operation in MOVEMENTS and only[user.name]) for user in users
        )
    weights = {f"{node.name}.weight" for node in graph.nodes if node.operation == "linear"}
    return frozenset(weights | {name for name, so in only.items() if so})


class QuantizedNetwork(GraphModule):
    """A float graph under fake quantization, with learned weights, steps and zero points.

    Steps of quantizers up to `WIDEST_LSQ` bits are parameters, as published. A wider one is the product of its first
    value, which stays, and a parameter that begins at 1: the optimizer moves every parameter by about the learning rate
    a time, which is of the size of the whole step of 8-bit codes, and so a small share of it.

    In evaluation it computes what `hwsim.quantize.fake_quant.FakeQuantNetwork` computes of the calibration that
    `hwsim.qat.export.calibration_of` makes of it.

    Parameters
    ----------
    graph : FloatGraph
        With the IRM, where the recipe has one.
    recipe : Recipe
        Where codes stand, and their widths.
    start : Start
        First steps and zero points.
    batch : int
        Images of a training step, in all processes: the gradient scale of the steps of activations depends on it.
    device : torch.device

    Raises
    ------
    HwsimError
        A recipe that training does not know, see `check_trainable`.
    """

    def __init__(self, graph: FloatGraph, recipe: Recipe, start: Start, batch: int, device: torch.device) -> None:
        check_trainable(graph, recipe)
        super().__init__(graph, device)
        self.recipe = recipe
        self._operands = _operands(graph)
        self.bits: dict[str, int] = {}
        self._step: dict[str, str] = {}
        self._start: dict[str, str] = {}
        self._zero: dict[str, str] = {}
        self._fixed: dict[str, tuple[str, ...]] = {}
        self.register_buffer("nothing", torch.zeros((), device=device), persistent=False)
        for index, node in enumerate(graph.nodes):
            if node.operation == "linear":
                bits, weight = recipe.weights_for(node).bits, node.parameters["weight"]
                half = 1 << (bits - 1)
                step = torch.from_numpy(start.weights[node.name].astype(np.float32))[:, None].to(device)
                place = f"{node.name}.weight"
                self._own_step(place, f"weight_step{index}", bits, step)
                scale = gradient_scale(weight.shape[1], half - 1)
                self._codes(place, f"weight{index}", bits, -half, half - 1, scale)
            if (point := start.points.get(node.name)) is not None:
                bits = code_bits(recipe, node)
                step, zero = (torch.tensor(value, dtype=torch.float32, device=device) for value in point[:2])
                self._own_step(node.name, f"step{index}", bits, step)
                if not point.one_sided:
                    self._zero[node.name] = self.own(f"zero{index}", f"{node.name}.zero_point", zero)
                scale = gradient_scale(batch * int(np.prod(graph.shapes[node.name])), point.positive)
                self._codes(node.name, f"point{index}", bits, 0, (1 << bits) - 1, scale)

    def _own_step(self, place: str, attribute: str, bits: int, first: Tensor) -> None:
        if bits <= WIDEST_LSQ:
            self._step[place] = self.own(attribute, f"{place}.step", first)
            return
        self._start[place] = f"{attribute}_start"
        self.register_buffer(self._start[place], first, persistent=False)
        self._step[place] = self.own(attribute, f"{place}.step_ratio", torch.ones_like(first))

    def _codes(self, place: str, attribute: str, bits: int, low: int, high: int, scale: float) -> None:
        # Tensors, so that one compiled graph serves every width.
        self._fixed[place] = tuple(f"{attribute}_{name}" for name in ("low", "high", "scale"))
        for name, value in zip(self._fixed[place], (low, high, scale), strict=True):
            self.register_buffer(name, torch.tensor(float(value), device=self.device), persistent=False)
        self.bits[place] = bits

    def _quantized(self, place: str, value: Tensor) -> Tensor:
        low, high, scale = (getattr(self, name) for name in self._fixed[place])
        # What autocast would do in front of the product, without a copy in between.
        narrow = place in self._operands and torch.is_autocast_enabled(value.device.type)
        dtype = torch.get_autocast_dtype(value.device.type) if narrow else torch.float32
        zero = self.zero_point(place)
        return lsq(value, self.step(place), low, high, zero, scale, dtype=dtype, fused=self.fused_quantizers)

    def parameters_of(self, node: FloatNode) -> Mapping[str, Tensor]:
        """Parameters of a node, weights fake-quantized."""
        parameters = dict(super().parameters_of(node))
        if node.operation == "linear":
            parameters["weight"] = self._quantized(f"{node.name}.weight", parameters["weight"])
        return parameters

    def after(self, node: FloatNode, value: Tensor) -> Tensor:
        """The value on its grid, where it has one."""
        return self._quantized(node.name, value) if node.name in self._step else value

    def starts(self) -> dict[str, Tensor]:
        """First values of the steps that are learned relative to them, by place, in a fixed order."""
        return {place: getattr(self, attribute) for place, attribute in self._start.items()}

    def zero_point(self, name: str) -> Tensor:
        """Zero point at a point, as learned."""
        zero: Tensor = getattr(self, self._zero.get(name, "nothing"))
        return zero

    def step(self, place: str) -> Tensor:
        """Step at a point, or of the weights ``NODE.weight``, [outputs, 1]."""
        step: Tensor = getattr(self, self._step[place])
        return step * getattr(self, self._start[place]) if place in self._start else step

    @torch.no_grad()
    def keep_steps_positive(self) -> None:
        """Undo what an update took too much."""
        absolute = [getattr(self, name) for place, name in self._step.items() if place not in self._start]
        if absolute:
            torch._foreach_clamp_min_(absolute, SMALLEST_STEP)
        if self._start:
            floors = list(torch._foreach_reciprocal(list(self.starts().values())))
            torch._foreach_mul_(floors, SMALLEST_STEP)
            torch._foreach_clamp_min_([getattr(self, self._step[place]) for place in self._start], floors)

    def points(self) -> list[str]:
        """Names of the quantized points."""
        return [place for place in self._step if not place.endswith(".weight")]
