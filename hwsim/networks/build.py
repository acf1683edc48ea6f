"""Building blocks of float graphs: what ViT, DeiT and Swin share, read from timm's modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.networks.graph import FloatNode


def array(tensor: Any) -> np.ndarray:
    """A parameter as a float32 array of its own."""
    result: np.ndarray = tensor.detach().cpu().float().numpy().copy()
    return result


def require(condition: bool, network: str, block: str, what: str) -> None:
    """Refuse a block that the package does not know.

    Raises
    ------
    HwsimError
        Names the network and the block.
    """
    if not condition:
        raise HwsimError(
            f"{network}: block {block} is {what}, which this package does not know; "
            "it takes plain ViT, DeiT and Swin blocks (LayerNorm, attention, GELU MLP)"
        )


def require_absent(network: str, owner: Any, place: str, names: tuple[str, ...]) -> None:
    """Refuse parts that timm's configurable classes may have and the known networks do not."""
    from torch import nn

    for name in names:
        module = getattr(owner, name, None)
        absent = module is None or isinstance(module, nn.Identity | nn.Dropout)
        require(absent, network, f"{place}.{name}".lstrip("."), f"a {type(module).__name__}")


def require_layernorm(network: str, module: Any, place: str) -> None:
    """Refuse any norm but a LayerNorm with gamma and beta."""
    from torch import nn

    require(
        isinstance(module, nn.LayerNorm) and module.elementwise_affine and module.bias is not None,
        network,
        place,
        f"a {type(module).__name__}",
    )


def check_block(network: str, block: Any, place: str, kinds: tuple[str, str]) -> None:
    """Refuse a transformer block that is more than norms, attention and a GELU MLP.

    Parameters
    ----------
    network, place : str
        For the message.
    block : timm block
    kinds : tuple of str
        Class names of the block and of its attention.
    """
    from torch import nn

    require(type(block).__name__ == kinds[0], network, place, f"a {type(block).__name__}")
    require(type(block.attn).__name__ == kinds[1], network, f"{place}.attn", f"a {type(block.attn).__name__}")
    for norm in ("norm1", "norm2"):
        require_layernorm(network, getattr(block, norm), f"{place}.{norm}")
    # A gated MLP has layers of the same names and computes something else with them.
    require(type(block.mlp).__name__ == "Mlp", network, f"{place}.mlp", f"a {type(block.mlp).__name__}")
    activation = block.mlp.act
    require(isinstance(activation, nn.GELU), network, f"{place}.mlp.act", f"a {type(activation).__name__}")
    require(activation.approximate == "none", network, f"{place}.mlp.act", "an approximate GELU")
    require_absent(network, block, place, ("ls1", "ls2"))
    require_absent(network, block.attn, f"{place}.attn", ("norm", "q_norm", "k_norm", "gate"))
    require_absent(network, block.mlp, f"{place}.mlp", ("norm",))


def check_patch_embed(network: str, patch_embed: Any) -> None:
    """Refuse anything but a projection of whole patches, such as a convolutional network in front."""
    require(type(patch_embed).__name__ == "PatchEmbed", network, "patch_embed", f"a {type(patch_embed).__name__}")
    whole = all(side % patch == 0 for side, patch in zip(patch_embed.img_size, patch_embed.patch_size, strict=True))
    sizes = ["x".join(map(str, size)) for size in (patch_embed.img_size, patch_embed.patch_size)]
    require(whole, network, "patch_embed", f"one of images of {sizes[0]} that patches of {sizes[1]} do not fill")


def refuse_class(network: str, model: Any) -> None:
    """Refuse a model of an unknown class.

    Raises
    ------
    HwsimError
        Names the class and its first block.
    """
    named = ((name, type(module).__name__) for name, module in model.named_modules())
    block = next(((name, kind) for name, kind in named if kind.endswith(("Block", "Bottleneck", "Layer"))), None)
    detail = f", its block {block[0]} is a {block[1]}" if block else ""
    raise HwsimError(
        f"{network}: a {type(model).__name__} is not a network this package knows{detail}; use a timm ViT, DeiT or Swin"
    )


class GraphBuilder:
    """Collects the nodes of a float graph; every method returns the name of its last node.

    Parameters
    ----------
    network : str
        For messages.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self.nodes: list[FloatNode] = []

    def node(self, name: str, operation: str, *inputs: str, role: str = "", **rest: Any) -> str:
        self.nodes.append(FloatNode(name, operation, role, inputs, **rest))
        return name

    def linear(self, name: str, module: Any, source: str, role: str) -> str:
        """A linear layer, or a convolution whose kernel is its stride."""
        outputs = len(module.weight)
        bias = array(module.bias) if module.bias is not None else np.zeros(outputs, np.float32)
        parameters = {"weight": array(module.weight).reshape(outputs, -1), "bias": bias}
        return self.node(name, "linear", source, role=role, parameters=parameters)

    def layernorm(self, name: str, module: Any, source: str, role: str = "norm") -> str:
        parameters = {"weight": array(module.weight), "bias": array(module.bias)}
        return self.node(
            name, "layernorm", source, role=role, parameters=parameters, attributes={"eps": float(module.eps)}
        )

    def patches(self, patch_embed: Any) -> str:
        """Image, patches and their projection.

        Raises
        ------
        HwsimError
            The patches overlap.
        """
        projection = patch_embed.proj
        size = projection.kernel_size[0]
        plain = projection.kernel_size == projection.stride == (size, size) and projection.padding == (0, 0)
        require(plain, self.network, "patch_embed.proj", "an overlapping one")
        image = self.node("image", "image", role="input")
        patches = self.node("patch_embed.patches", "patches", image, attributes={"size": size})
        return self.linear("patch_embed.proj", projection, patches, "patch")

    def scores(self, place: str, attention: Any, source: str) -> tuple[str, str]:
        """Joint projection, heads, and scaled products of queries and keys.

        Returns
        -------
        scores, value : str
        """
        qkv = self.linear(f"{place}.qkv", attention.qkv, source, "qkv")
        heads = attention.num_heads
        query, key, value = (
            self.node(
                f"{place}.{name}",
                "split_heads",
                qkv,
                role=role,
                attributes={"heads": heads, "part": part, "parts": 3},
            )
            for part, (name, role) in enumerate((("q", "query"), ("k", "key"), ("v", "value")))
        )
        key = self.node(f"{place}.k_transposed", "transpose", key)
        scale = float(attention.scale)
        return self.node(f"{place}.scores", "matmul", query, key, role="scores", attributes={"scale": scale}), value

    def context(self, place: str, attention: Any, scores: str, value: str) -> str:
        """Softmax, attention times values, and the output projection."""
        weights = self.node(f"{place}.softmax", "softmax", scores, role="attention")
        context = self.node(f"{place}.context", "matmul", weights, value, role="context", attributes={"scale": 1.0})
        merged = self.node(f"{place}.merge", "merge_heads", context)
        return self.linear(f"{place}.proj", attention.proj, merged, "projection")

    def mlp(self, place: str, mlp: Any, source: str) -> str:
        hidden = self.linear(f"{place}.fc1", mlp.fc1, source, "hidden")
        gelu = self.node(f"{place}.gelu", "gelu", hidden, role="gelu")
        return self.linear(f"{place}.fc2", mlp.fc2, gelu, "mlp")
