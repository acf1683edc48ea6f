"""Q-ViT (Li et al., NeurIPS 2022) as a recipe, and the Information Rectification Module in a float graph.

The recipe says where codes stand and how wide they are; the steps come from training (`hwsim train`), and from
`hwsim calibrate` only a start without it. Activations have one scale a tensor, as in the paper's Eq. 1; the released
code has one an input feature, by which no integer product can be factored (DESIGN rule 10).

The IRM (Eq. 8) is a LayerNorm over the channels of a head on queries and on keys, before their quantizers, whose
gamma and beta all heads of a block share. Its form is the released code's, ``gamma * (q - mean) / sigma + beta``, which
the integer LayerNorm computes. Eq. 8 as printed has its beta before the division by ``gamma * sigma``: an offset of its
own for each token, so that the two are the same function only where beta is 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatGraph, FloatNode
from hwsim.networks.interpret import Interpreter, check_activation
from hwsim.quantize.quantizers.protocol import Quantizer
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Lowering, Recipe, full_bits, parse_bits
from hwsim.quantize.weights import SymmetricWeights

# Of the first and the last layer, weights and inputs.
EDGE_BITS = 8
# torch's default, which the released code has. The integer LayerNorm has none: see docs/q-vit.md.
IRM_EPS = 1e-5
RECTIFIED = ("query", "key")
# A normalised channel whose variance is a smaller share of its mean square is constant but for float32's rounding.
LEAST_SPREAD = 1e-10
CALIBRATION_IMAGES = 32


def q_vit(
    bits: str = "4/4/4",
    *,
    irm: bool = True,
    range: str = "omse",
    calibration_batch: int = CALIBRATION_IMAGES,
    lowering: Lowering | None = None,
) -> Recipe:
    """The Q-ViT recipe: uniform codes at every operand of a product, 8 bits in the first and the last layer.

    Parameters
    ----------
    bits : str
        "W/A/Attn" of all other layers.
    irm : bool
        Queries and keys pass an Information Rectification Module; without, the paper's baseline.
    range : {"omse", "minmax", "ema", "percentile"}
        Observer of the activations when the network is calibrated and not trained.
    calibration_batch : int
    lowering : Lowering, optional

    Raises
    ------
    HwsimError
        Bits or observer out of range.
    """
    bits = full_bits(bits)
    weight, activation, attention = parse_bits(bits)
    operands = ("norm", "query", "key", "value", "context", "gelu")
    points: dict[str, Quantizer] = dict.fromkeys(operands, Uniform(activation, range))
    points["attention"] = Uniform(attention, range)
    points |= dict.fromkeys(("input", "feature"), Uniform(EDGE_BITS, range))
    edge = SymmetricWeights(EDGE_BITS)
    lowering = lowering or Lowering()
    if lowering.bias_fraction_bits is None:
        lowering = replace(lowering, bias_fraction_bits=EDGE_BITS)
    label = f"q-vit {bits}" + ("" if irm else " no irm") + (f" {range}" if range != "omse" else "")
    return Recipe(
        label,
        SymmetricWeights(weight),
        points,
        weights_at={"patch": edge, "logits": edge},
        calibration_batch=calibration_batch,
        lowering=lowering,
        irm=irm,
    )


def insert_irm(graph: FloatGraph) -> FloatGraph:
    """A graph whose queries and keys pass an IRM, with gamma 1 and beta 0.

    Behind ``NAME.q`` and ``NAME.k`` stand the layernorm nodes ``NAME.q_norm`` and ``NAME.k_norm``; they have the roles
    "query" and "key" from then on. A graph that has them already comes back as it is.

    Parameters
    ----------
    graph : FloatGraph
        A ViT, DeiT, distilled DeiT or Swin.
    """
    nodes: list[FloatNode] = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if node.operation != "split_heads" or node.role not in RECTIFIED:
            nodes.append(node)
            continue
        channels = graph.shapes[node.name][-1]
        renamed[node.name] = f"{node.name}_norm"
        nodes.append(replace(node, role=""))
        nodes.append(
            FloatNode(
                renamed[node.name],
                "layernorm",
                node.role,
                (node.name,),
                {"weight": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)},
                {"eps": IRM_EPS},
            )
        )
    return replace(graph, nodes=tuple(nodes)) if renamed else graph


def irm_nodes(graph: FloatGraph) -> tuple[str, ...]:
    """Names of the IRM nodes of a graph, in its order."""
    return tuple(node.name for node in graph.nodes if node.operation == "layernorm" and node.role in RECTIFIED)


def rectified_parts(graph: FloatGraph) -> frozenset[str]:
    """Names of the nodes that split queries and keys off in front of an IRM; each has codes of its own."""
    parts = {graph[name].inputs[0] for name in irm_nodes(graph)}
    return frozenset(name for name in parts if graph[name].operation == "split_heads")


def fit_irm(graph: FloatGraph, images: np.ndarray, *, batch: int = 100, device: str = "cpu") -> FloatGraph:
    """`insert_irm` with the gamma and beta that change the float network least.

    In each block, gamma and beta of a channel are those with the least squared error between the IRM's output and the
    float network's own queries (or keys), over images, heads and tokens. Of a channel that is constant behind the
    normalisation, which says nothing about gamma, gamma is 1.

    Parameters
    ----------
    graph : FloatGraph
        Without IRM; one that has it comes back as it is.
    images : ndarray of uint8 [N, H, W, C]
    batch : int
        Images at once.
    device : str
        torch device.

    Raises
    ------
    HwsimError
        Images of the wrong size, or an activation that is not finite.
    """
    rectified = insert_irm(graph)
    before = {rectified[name].inputs[0]: name for name in irm_nodes(rectified)}
    if rectified is graph:
        return graph
    sums: dict[str, Tensor] = {}

    def observe(node: FloatNode, value: Tensor) -> Tensor:
        if node.name in before:
            check_activation(graph.name, node, value)
            channels = value.shape[-1]
            normal = functional.layer_norm(value, (channels,), eps=IRM_EPS).double().reshape(-1, channels)
            real = value.double().reshape(-1, channels)
            found = torch.stack([torch.ones_like(real), normal, real, normal.square(), normal * real]).sum(dim=1)
            sums[node.name] = sums[node.name] + found if node.name in sums else found
        return value

    interpreter = Interpreter(graph, device)
    for part in batches(len(images), batch):
        interpreter.run(images[part], after=observe)
    fitted = {}
    for source, name in before.items():
        count, x, y, xx, xy = sums[source].cpu().numpy()
        spread = xx - x * x / count
        gamma = np.divide(xy - x * y / count, spread, out=np.ones_like(spread), where=spread > LEAST_SPREAD * xx)
        beta = (y - gamma * x) / count
        fitted[name] = {"weight": gamma.astype(np.float32), "bias": beta.astype(np.float32)}
    nodes = (replace(node, parameters=fitted.get(node.name, node.parameters)) for node in rectified.nodes)
    return replace(rectified, nodes=tuple(nodes))
