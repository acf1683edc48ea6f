"""timm's VisionTransformer (ViT and DeiT) as a float graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.networks.graph import FloatGraph, FloatNode


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().float().numpy().copy()


def _linear(module: Any, outputs: int) -> dict[str, np.ndarray]:
    weight = _array(module.weight).reshape(outputs, -1)
    bias = _array(module.bias) if module.bias is not None else np.zeros(outputs, np.float32)
    return {"weight": weight, "bias": bias}


def _norm(module: Any) -> dict[str, Any]:
    return {
        "parameters": {"weight": _array(module.weight), "bias": _array(module.bias)},
        "attributes": {"eps": float(module.eps)},
    }


def _require(condition: bool, network: str, block: str, what: str) -> None:
    if not condition:
        raise HwsimError(
            f"{network}: block {block} is {what}, which this package does not know; "
            "it takes plain ViT and DeiT blocks (LayerNorm, attention, GELU MLP)"
        )


def _check_structure(model: Any, name: str) -> None:
    from torch import nn

    identity = (nn.Identity, nn.Dropout)
    for attribute in ("norm_pre", "fc_norm", "patch_drop"):
        module = getattr(model, attribute, None)
        _require(module is None or isinstance(module, identity), name, attribute, f"a {type(module).__name__}")
    _require(isinstance(model.patch_embed.norm, identity), name, "patch_embed.norm", "a norm")
    _require(isinstance(model.norm, nn.LayerNorm), name, "norm", f"a {type(model.norm).__name__}")
    _require(model.global_pool == "token", name, "global_pool", f"pooling by {model.global_pool!r}")
    _require(getattr(model, "num_prefix_tokens", 1) == 1, name, "cls_token", "not the only prefix token")
    _require(isinstance(model.head, nn.Linear), name, "head", f"a {type(model.head).__name__}")
    _require(getattr(model, "head_dist", None) is None, name, "head_dist", "a second head")
    for index, block in enumerate(model.blocks):
        place = f"blocks.{index}"
        _require(type(block).__name__ == "Block", name, place, f"a {type(block).__name__}")
        _require(type(block.attn).__name__ == "Attention", name, f"{place}.attn", f"a {type(block.attn).__name__}")
        for norm in ("norm1", "norm2"):
            module = getattr(block, norm)
            _require(isinstance(module, nn.LayerNorm), name, f"{place}.{norm}", f"a {type(module).__name__}")
        _require(isinstance(block.mlp.act, nn.GELU), name, f"{place}.mlp.act", f"a {type(block.mlp.act).__name__}")
        _require(block.mlp.act.approximate == "none", name, f"{place}.mlp.act", "an approximate GELU")
        extras = {block: ("ls1", "ls2"), block.attn: ("norm", "q_norm", "k_norm"), block.mlp: ("norm",)}
        for owner, attribute in ((owner, attribute) for owner, names in extras.items() for attribute in names):
            module = getattr(owner, attribute, None)
            _require(
                module is None or isinstance(module, identity),
                name,
                f"{place}.{attribute}",
                f"a {type(module).__name__}",
            )


def vision_transformer_graph(
    model: Any,
    name: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_ratio: float = 1.0,
) -> FloatGraph:
    """Read a timm ``VisionTransformer`` with a class token into a float graph.

    Parameters
    ----------
    model : timm.models.vision_transformer.VisionTransformer
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
    if type(model).__name__ != "VisionTransformer":
        raise HwsimError(
            f"{name}: a {type(model).__name__} is not a network this package knows; use a timm ViT or DeiT"
        )
    _check_structure(model, name)
    height, width = model.patch_embed.img_size
    projection = model.patch_embed.proj
    size = projection.kernel_size[0]
    _require(
        projection.kernel_size == projection.stride == (size, size), name, "patch_embed.proj", "an overlapping one"
    )
    dim = model.embed_dim

    nodes: list[FloatNode] = []

    def node(name: str, operation: str, *inputs: str, role: str = "", **rest: Any) -> str:
        nodes.append(FloatNode(name, operation, role, inputs, **rest))
        return name

    image = node("image", "image", role="input")
    patches = node("patch_embed.patches", "patches", image, attributes={"size": size})
    patch = node("patch_embed.proj", "linear", patches, role="patch", parameters=_linear(projection, dim))
    token = node("cls_token", "constant", parameters={"value": _array(model.cls_token)[0]})
    embed = node("embed", "concat", token, patch, role="embed")
    position = node("pos_embed", "constant", role="position", parameters={"value": _array(model.pos_embed)[0]})
    _require(
        model.pos_embed.shape[1] == model.patch_embed.num_patches + 1, name, "pos_embed", "without a class position"
    )
    stream = node("pos_add", "add", embed, position, role="residual")
    for index, block in enumerate(model.blocks):
        place = f"blocks.{index}"
        attention = block.attn
        norm = node(f"{place}.norm1", "layernorm", stream, role="norm", **_norm(block.norm1))
        qkv = node(
            f"{place}.attn.qkv",
            "linear",
            norm,
            role="qkv",
            parameters=_linear(attention.qkv, attention.qkv.out_features),
        )
        heads = attention.num_heads
        query, key, value = (
            node(f"{place}.attn.{part}", "split_heads", qkv, attributes={"heads": heads, "part": i, "parts": 3})
            for i, part in enumerate("qkv")
        )
        key = node(f"{place}.attn.k_transposed", "transpose", key)
        scale = attention.head_dim**-0.5
        scores = node(f"{place}.attn.scores", "matmul", query, key, role="scores", attributes={"scale": scale})
        weights = node(f"{place}.attn.softmax", "softmax", scores, role="attention")
        context = node(f"{place}.attn.context", "matmul", weights, value, role="context", attributes={"scale": 1.0})
        merged = node(f"{place}.attn.merge", "merge_heads", context)
        projected = node(
            f"{place}.attn.proj", "linear", merged, role="projection", parameters=_linear(attention.proj, dim)
        )
        stream = node(f"{place}.add1", "add", stream, projected, role="residual")
        norm = node(f"{place}.norm2", "layernorm", stream, role="norm", **_norm(block.norm2))
        hidden = block.mlp.fc1.out_features
        fc1 = node(f"{place}.mlp.fc1", "linear", norm, role="hidden", parameters=_linear(block.mlp.fc1, hidden))
        gelu = node(f"{place}.mlp.gelu", "gelu", fc1, role="gelu")
        fc2 = node(f"{place}.mlp.fc2", "linear", gelu, role="mlp", parameters=_linear(block.mlp.fc2, dim))
        stream = node(f"{place}.add2", "add", stream, fc2, role="residual")
    # LayerNorm works on each token alone, so only the class token needs the last one.
    token = node("take_token", "take_token", stream, attributes={"index": 0})
    feature = node("norm", "layernorm", token, role="feature", **_norm(model.norm))
    node("head", "linear", feature, role="logits", parameters=_linear(model.head, model.head.out_features))

    graph = FloatGraph(
        name=name,
        nodes=tuple(nodes),
        image_size=(height, width, projection.in_channels),
        mean=tuple(mean),
        std=tuple(std),
        classes=model.head.out_features,
        crop_ratio=crop_ratio,
    )
    graph.check_finite()
    return graph
