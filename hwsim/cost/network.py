"""Products and parameter sizes of a float network at given widths, before any calibration.

Papers state FixOPs, FLOPs and sizes of a network from its structure and a width for each kind of layer. For what a
calibrated program really holds, see `hwsim.cost.operations` and `hwsim.cost.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from golden.errors import HwsimError
from hwsim.cost.fixops import FLOAT_BITS
from hwsim.cost.operations import Operation, matrix_product
from hwsim.networks.graph import FloatGraph, FloatNode

_FIRST_LAST = ("patch", "logits")
_CONTEXT = "context"


@dataclass(frozen=True)
class Widths:
    """Bits of the parts of a network; 32 stands for float.

    Attributes
    ----------
    weights, activations : int
        Of the layers between the first and the last one, and of attention's products.
    attention : int
        Of the softmax's output.
    first_last : int, optional
        Of weights and activations of the first and the last layer; by default those of the others.
    image : int, optional
        Of what the first layer reads; by default as `first_last` says.
    rest : int
        Of every other parameter: biases, norms, embeddings, relative positions.
    channel : int
        For each output channel of a quantized layer besides, as for its scale and zero point.

    Raises
    ------
    HwsimError
        A width below 1 (`channel`: below 0) or above 64.
    """

    weights: int
    activations: int
    attention: int
    first_last: int | None = None
    image: int | None = None
    rest: int = FLOAT_BITS
    channel: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "channel" else 1
            if value is not None and not least <= value <= 64:
                raise HwsimError(f"widths: {field.name} must be between {least} and 64 bits, not {value}")

    def of_weights(self, node: FloatNode) -> int:
        """Bits of a linear layer's weights."""
        return self.first_last if self.first_last is not None and node.role in _FIRST_LAST else self.weights

    def of_inputs(self, node: FloatNode) -> int:
        """Bits of what a linear layer reads."""
        if node.role == "patch" and self.image is not None:
            return self.image
        return self.first_last if self.first_last is not None and node.role in _FIRST_LAST else self.activations


FLOAT = Widths(weights=FLOAT_BITS, activations=FLOAT_BITS, attention=FLOAT_BITS)


def network_products(graph: FloatGraph, widths: Widths) -> dict[str, Operation]:
    """The matrix product of every linear layer and attention product, by the name of its node."""
    found = {}
    for node in graph.nodes:
        if node.operation not in ("linear", "matmul"):
            continue
        inputs = [graph.shapes[name] for name in node.inputs]
        if node.operation == "linear":
            operands = (widths.of_inputs(node), widths.of_weights(node))
        else:
            operands = (widths.attention if node.role == _CONTEXT else widths.activations, widths.activations)
        steps = matrix_product(inputs, graph.shapes[node.name]).steps
        found[node.name] = Operation("multiply-accumulate", operands, steps)
    return found


@dataclass(frozen=True)
class NetworkSize:
    """Bits of a network's parameters.

    Attributes
    ----------
    weights : int
        Of linear layers.
    rest : int
        Of all other parameters.
    channels : int
        Scales and zero points of quantized layers.
    """

    weights: int
    rest: int
    channels: int

    @property
    def bytes(self) -> int:
        return -(-(self.weights + self.rest + self.channels) // 8)


def network_size(graph: FloatGraph, widths: Widths) -> NetworkSize:
    """Bits of all parameters at their widths."""
    weights = rest = channels = 0
    for node in graph.nodes:
        for name, parameter in node.parameters.items():
            if node.operation == "linear" and name == "weight":
                bits = widths.of_weights(node)
                weights += parameter.size * bits
                channels += parameter.shape[0] * widths.channel if bits < FLOAT_BITS else 0
            else:
                rest += parameter.size * widths.rest
    return NetworkSize(weights, rest, channels)


@dataclass(frozen=True)
class SwinBuffers:
    """What a Swin keeps besides its parameters, in elements.

    Attributes
    ----------
    indices : int
        Relative position of each pair of places in a window, a block.
    masks : int
        Shift masks, a value for each pair in each window, a shifted block.
    """

    indices: int
    masks: int


def swin_buffers(graph: FloatGraph) -> SwinBuffers:
    """Buffers of a Swin's checkpoint, which count in the size of its file."""
    pairs = [node.attributes["window"] ** 4 for node in graph.nodes if node.operation == "window_bias"]
    masks = [
        node.attributes["height"] * node.attributes["width"] * node.attributes["window"] ** 2
        for node in graph.nodes
        if node.operation == "shift_mask"
    ]
    return SwinBuffers(sum(pairs), sum(masks))
