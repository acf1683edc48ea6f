"""Scale reparameterization of LayerNorm outputs (RepQ-ViT: Li et al., ICCV 2023).

Quantizers with a scale and a zero point a channel become one of the whole tensor: the rest goes into gamma and beta
of the LayerNorm and into the weights and bias of the linear layer behind it. The float network stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hwsim.networks.graph import MOVEMENTS, FloatGraph, FloatNode

# Movements that leave each channel in its place.
_KEEP_CHANNELS = MOVEMENTS - {"patches", "split_heads", "transpose", "merge_heads", "join_tokens", "merge_patches"}


@dataclass(frozen=True)
class ChannelScales:
    """Quantizers of the channels of one LayerNorm: ``code = round((x - centre) / scale) + zero_point``.

    Parameters
    ----------
    scale : ndarray of float64 [channels]
        Above 0.
    zero_point : ndarray of int64 [channels]
    centre : ndarray of float64 [channels]
        0 in the published form. It costs nothing, since it goes into beta and the bias, and a channel far from 0
        needs no zero point outside the codes.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    centre: np.ndarray

    def joint(self, live: np.ndarray) -> tuple[float, int]:
        """The one scale and zero point: the means over the channels that are alive, the zero point rounded.

        The released code leaves the zero point as it is, so that no integer codes exist.
        """
        if not live.any():
            live = np.ones_like(live)
        mean = float(np.float32(self.scale[live].astype(np.float64).mean()))
        return mean, int(np.rint(self.zero_point[live].astype(np.float64).mean()))


def reparameterizable(graph: FloatGraph, role: str = "norm") -> dict[str, str]:
    """Names of the LayerNorms of a role whose outputs one linear layer alone reads, with that layer's name."""
    users: dict[str, list[FloatNode]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            users[name].append(node)
    found = {}
    for node in graph.nodes:
        if node.operation != "layernorm" or node.role != role:
            continue
        readers = users[node.name]
        while len(readers) == 1 and readers[0].operation in _KEEP_CHANNELS:
            readers = users[readers[0].name]
        if len(readers) == 1 and readers[0].operation == "linear":
            found[node.name] = readers[0].name
    return found


def reparameterize(
    graph: FloatGraph, channels: dict[str, ChannelScales]
) -> tuple[FloatGraph, dict[str, tuple[float, int]]]:
    """The network with one scale and zero point at each LayerNorm, which computes what it did.

    Parameters
    ----------
    graph : FloatGraph
    channels : dict of str to ChannelScales
        By LayerNorm, of those that `reparameterizable` names.

    Returns
    -------
    graph : FloatGraph
    joint : dict of str to (float, int)
        Scale and zero point of each LayerNorm output.

    Notes
    -----
    With channel c at scale s_c, zero point z_c and centre m_c, and s and z of the whole: ``r = s_c / s``,
    ``b = (z_c - z) s``; gamma becomes ``gamma / r``, beta ``(beta - m) / r + b``, the weights ``W r`` and the bias
    ``bias + W m - (W r) b``. A channel whose gamma is 0 is its beta everywhere: this goes into the bias, and the
    channel becomes 0.
    """
    readers = reparameterizable(graph)
    changed: dict[str, dict[str, np.ndarray]] = {}
    joint = {}
    for name, found in channels.items():
        gamma, beta = (graph[name].parameters[key].astype(np.float64) for key in ("weight", "bias"))
        linear = graph[readers[name]]
        weight, bias = (linear.parameters[key].astype(np.float64) for key in ("weight", "bias"))
        live = gamma != 0
        scale, zero_point = found.joint(live)
        joint[name] = scale, zero_point
        ratio = np.where(live, found.scale / scale, 1.0)
        offset = np.where(live, (found.zero_point - zero_point) * scale, 0.0)
        centre = np.where(live, found.centre, beta)
        narrowed = np.where(live, weight * ratio, 0.0)
        changed[name] = {"weight": gamma / ratio, "bias": (beta - centre) / ratio + offset}
        changed[linear.name] = {"weight": narrowed, "bias": bias + weight @ centre - narrowed @ offset}
    nodes = tuple(
        replace(node, parameters={key: array.astype(np.float32) for key, array in changed[node.name].items()})
        if node.name in changed
        else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes), joint
