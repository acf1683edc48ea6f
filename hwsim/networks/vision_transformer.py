"""timm's VisionTransformer (ViT and DeiT, distilled too) as a float graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim.networks.build import (
    GraphBuilder,
    array,
    check_block,
    check_patch_embed,
    refuse_class,
    require,
    require_absent,
    require_layernorm,
)
from hwsim.networks.graph import FloatGraph


def _check_structure(model: Any, name: str, distilled: bool) -> None:
    from torch import nn

    check_patch_embed(name, model.patch_embed)
    require_absent(name, model, "", ("norm_pre", "fc_norm", "patch_drop"))
    norm = type(model.patch_embed.norm).__name__
    require(isinstance(model.patch_embed.norm, nn.Identity), name, "patch_embed.norm", f"a {norm}")
    require_layernorm(name, model.norm, "norm")
    require(model.global_pool == "token", name, "global_pool", f"pooling by {model.global_pool!r}")
    prefix = 1 + distilled
    require(getattr(model, "num_prefix_tokens", 1) == prefix, name, "cls_token", "not the only prefix token")
    for head in ("head", "head_dist")[:prefix]:
        module = getattr(model, head)
        require(isinstance(module, nn.Linear), name, head, f"a {type(module).__name__}")
    require(model.pos_embed is not None, name, "pos_embed", "missing")
    positions = model.pos_embed.shape[1]
    require(positions == model.patch_embed.num_patches + prefix, name, "pos_embed", "without positions of the tokens")
    for index, block in enumerate(model.blocks):
        check_block(name, block, f"blocks.{index}", ("Block", "Attention"))


def vision_transformer_graph(
    model: Any,
    name: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_ratio: float = 1.0,
) -> FloatGraph:
    """Read a timm ``VisionTransformer`` with a class token, or a distilled DeiT, into a float graph.

    A distilled DeiT averages the logits of two heads, one on each prefix token. In the graph that is one linear
    layer on both features side by side with half the weights of each head: the same value, and one rounding.

    Parameters
    ----------
    model : timm VisionTransformer or VisionTransformerDistilled
        In evaluation mode, with its weights loaded.
    name : str
        Name for messages and reports.
    mean, std : tuple of float
        Normalisation a channel.
    crop_ratio : float
        See `FloatGraph`.

    Raises
    ------
    HwsimError
        A block that the package does not know (named), or a parameter that is not finite.
    """
    distilled = type(model).__name__ == "VisionTransformerDistilled"
    if type(model).__name__ != "VisionTransformer" and not distilled:
        refuse_class(name, model)
    _check_structure(model, name, distilled)
    build = GraphBuilder(name)
    patch = build.patches(model.patch_embed)
    prefix = array(model.cls_token)[0]
    if distilled:
        prefix = np.concatenate([prefix, array(model.dist_token)[0]])
    token = build.node("prefix_tokens" if distilled else "cls_token", "constant", parameters={"value": prefix})
    embed = build.node("embed", "concat", token, patch, role="embed")
    position = build.node("pos_embed", "constant", role="position", parameters={"value": array(model.pos_embed)[0]})
    stream = build.node("pos_add", "add", embed, position, role="residual")
    for index, block in enumerate(model.blocks):
        place = f"blocks.{index}"
        norm = build.layernorm(f"{place}.norm1", block.norm1, stream)
        scores, value = build.scores(f"{place}.attn", block.attn, norm)
        projected = build.context(f"{place}.attn", block.attn, scores, value)
        stream = build.node(f"{place}.add1", "add", stream, projected, role="residual")
        norm = build.layernorm(f"{place}.norm2", block.norm2, stream)
        stream = build.node(f"{place}.add2", "add", stream, build.mlp(f"{place}.mlp", block.mlp, norm), role="residual")
    # LayerNorm works on each token alone, so only the prefix tokens need the last one.
    token = build.node("take_token", "take_token", stream, attributes={"index": 0, "count": len(prefix)})
    feature = build.layernorm("norm", model.norm, token, "feature")
    if distilled:
        feature = build.node("join_tokens", "join_tokens", feature)
        heads = model.head, model.head_dist
        weight = np.concatenate([array(head.weight) for head in heads], axis=1) / 2
        bias = sum(array(head.bias) for head in heads) / 2
        build.node("head", "linear", feature, role="logits", parameters={"weight": weight, "bias": bias})
    else:
        build.linear("head", model.head, feature, "logits")

    height, width = model.patch_embed.img_size
    graph = FloatGraph(
        name=name,
        nodes=tuple(build.nodes),
        image_size=(height, width, model.patch_embed.proj.in_channels),
        mean=tuple(mean),
        std=tuple(std),
        classes=model.head.out_features,
        crop_ratio=crop_ratio,
    )
    graph.check()
    return graph
