"""timm's SwinTransformer as a float graph."""

from __future__ import annotations

from typing import Any

from hwsim.networks.build import (
    GraphBuilder,
    array,
    check_block,
    check_patch_embed,
    refuse_class,
    require,
    require_layernorm,
)
from hwsim.networks.graph import FloatGraph


def _check_structure(model: Any, name: str) -> None:
    from torch import nn

    check_patch_embed(name, model.patch_embed)
    require_layernorm(name, model.patch_embed.norm, "patch_embed.norm")
    require_layernorm(name, model.norm, "norm")
    require(model.global_pool == "avg", name, "head.global_pool", f"pooling by {model.global_pool!r}")
    head = getattr(model.head, "fc", None)
    require(isinstance(head, nn.Linear), name, "head.fc", f"a {type(head).__name__}")
    for index, stage in enumerate(model.layers):
        merging = stage.downsample
        place = f"layers.{index}.downsample"
        if not isinstance(merging, nn.Identity):
            require(type(merging).__name__ == "PatchMerging", name, place, f"a {type(merging).__name__}")
            require_layernorm(name, merging.norm, f"{place}.norm")
        for number, block in enumerate(stage.blocks):
            check_block(name, block, f"layers.{index}.blocks.{number}", ("SwinTransformerBlock", "WindowAttention"))


def swin_transformer_graph(
    model: Any,
    name: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_ratio: float = 1.0,
) -> FloatGraph:
    """Read a timm ``SwinTransformer`` into a float graph.

    Parameters
    ----------
    model : timm.models.swin_transformer.SwinTransformer
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
        A block that the package does not know (named), a feature map that is no multiple of its window, or a
        parameter that is not finite.
    """
    if type(model).__name__ != "SwinTransformer":
        refuse_class(name, model)
    _check_structure(model, name)
    build = GraphBuilder(name)
    patch = build.patches(model.patch_embed)
    stream = build.layernorm("patch_embed.norm", model.patch_embed.norm, patch, "embed")
    height, width = model.patch_embed.grid_size
    for index, stage in enumerate(model.layers):
        if type(stage.downsample).__name__ == "PatchMerging":
            stream = _merge(build, f"layers.{index}.downsample", stage.downsample, stream, height, width)
            height, width = height // 2, width // 2
        for number, block in enumerate(stage.blocks):
            stream = _block(build, f"layers.{index}.blocks.{number}", block, stream, height, width)
    norm = build.layernorm("norm", model.norm, stream, "pooled")
    feature = build.node("head.pool", "token_mean", norm, role="feature")
    build.linear("head.fc", model.head.fc, feature, "logits")

    rows, columns = model.patch_embed.img_size
    graph = FloatGraph(
        name=name,
        nodes=tuple(build.nodes),
        image_size=(rows, columns, model.patch_embed.proj.in_channels),
        mean=tuple(mean),
        std=tuple(std),
        classes=model.head.fc.out_features,
        crop_ratio=crop_ratio,
    )
    graph.check()
    return graph


def _merge(build: GraphBuilder, place: str, merging: Any, stream: str, height: int, width: int) -> str:
    even = height % 2 == width % 2 == 0
    require(even, build.network, place, f"merging of an odd feature map of {height}x{width}")
    merged = build.node(f"{place}.merge", "merge_patches", stream, attributes={"height": height, "width": width})
    norm = build.layernorm(f"{place}.norm", merging.norm, merged)
    return build.linear(f"{place}.reduction", merging.reduction, norm, "residual")


def _block(build: GraphBuilder, place: str, block: Any, stream: str, height: int, width: int) -> str:
    (window, other), shift = block.window_size, max(block.shift_size)
    network, attention = build.network, f"{place}.attn"
    require(window == other and min(block.shift_size) == shift, network, attention, "attention in windows not square")
    padded = height % window or width % window
    require(not padded, network, attention, f"a padded one ({height}x{width} in windows of {window})")
    geometry = {"height": height, "width": width, "window": window, "shift": shift}

    norm = build.layernorm(f"{place}.norm1", block.norm1, stream)
    windows = build.node(f"{attention}.windows", "partition_windows", norm, attributes=geometry)
    scores, value = build.scores(attention, block.attn, windows)
    table = build.node(
        f"{attention}.table",
        "constant",
        role="table",
        parameters={"value": array(block.attn.relative_position_bias_table)},
    )
    scores = build.node(
        f"{attention}.biased", "window_bias", scores, table, role="biased scores", attributes={"window": window}
    )
    if shift:
        scores = build.node(f"{attention}.masked", "shift_mask", scores, attributes=geometry)
    projected = build.context(attention, block.attn, scores, value)
    joined = build.node(f"{attention}.join", "join_windows", projected, attributes=geometry)
    stream = build.node(f"{place}.add1", "add", stream, joined, role="residual")
    norm = build.layernorm(f"{place}.norm2", block.norm2, stream)
    return build.node(f"{place}.add2", "add", stream, build.mlp(f"{place}.mlp", block.mlp, norm), role="residual")
