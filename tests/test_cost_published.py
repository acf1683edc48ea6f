"""Structure sizes and FixOPs of networks against timm's own counts, and the published cost columns."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from golden.errors import HwsimError
from hwsim.cost.fixops import fixops
from hwsim.cost.network import FLOAT, Widths, network_products, network_size, swin_buffers
from hwsim.cost.published import Comparison, compare, networks_of
from hwsim.networks.graph import FloatGraph
from hwsim.networks.load import load_network


@pytest.fixture(scope="module")
def deit_tiny() -> FloatGraph:
    return load_network("deit_tiny_patch16_224", random_weights=0)


def test_a_network_by_hand(deit_tiny: FloatGraph) -> None:
    """DeiT-Tiny from its published dimensions: 12 blocks, 192 channels, 3 heads, 197 tokens."""
    channels, tokens, blocks = 192, 197, 12
    block = 12 * channels**2
    weights = blocks * block + 3 * 16 * 16 * channels + 1000 * channels
    multiplications = (
        blocks * (tokens * block + 2 * tokens * tokens * channels) + 196 * 768 * channels + 1000 * channels
    )
    assert sum(each.count for each in network_products(deit_tiny, FLOAT).values()) == multiplications
    assert fixops(network_products(deit_tiny, FLOAT).values()) == 16 * multiplications
    assert network_size(deit_tiny, FLOAT).bytes == 4 * 5_717_416
    widths = Widths(4, 4, 3, first_last=8, rest=16, channel=7)
    size = network_size(deit_tiny, widths)
    first_last = 3 * 16 * 16 * channels + 1000 * channels
    assert size.weights == 4 * (weights - first_last) + 8 * first_last
    assert size.rest == 16 * (5_717_416 - weights)
    assert size.channels == 7 * (blocks * 9 * channels + channels + 1000)
    products = network_products(deit_tiny, widths)
    assert products["patch_embed.proj"].widths == products["head"].widths == (8, 8)
    assert products["blocks.3.attn.context"].widths == (3, 4)
    assert products["blocks.3.mlp.fc2"].widths == (4, 4)


@pytest.mark.parametrize(("name", "added"), [("deit_tiny_patch16_224", 0), ("swin_tiny_patch4_window7_224", 1344)])
def test_parameters_are_those_of_timm(name: str, added: int) -> None:
    """The graph gives the patch merging of Swin a bias of zeros, which timm's has not."""
    import timm

    model: Any = timm.create_model(name)
    parameters = sum(each.numel() for each in model.parameters())
    graph = load_network(name, random_weights=0)
    assert network_size(graph, FLOAT).bytes == 4 * (parameters + added)
    buffers = dict(model.named_buffers())
    indices = sum(each.numel() for key, each in buffers.items() if key.endswith("relative_position_index"))
    masks = sum(each.numel() for key, each in buffers.items() if key.endswith("attn_mask"))
    assert (swin_buffers(graph).indices, swin_buffers(graph).masks) == (indices, masks)


def test_adalog_table(deit_tiny: FloatGraph) -> None:
    """Which printed figures the rules meet; docs/cost.md says why not the others."""
    met = {(each.row, each.column) for each in compare("adalog", deit_tiny) if each.meets}
    assert met == {
        ("float", "FixOPs (G)"),
        ("both 4/4", "size (MB)"),
        ("both 3/3", "size (MB)"),
    }
    with pytest.raises(HwsimError, match="the published table q-vit has no deit_tiny_patch16_224"):
        compare("q-vit", deit_tiny)
    with pytest.raises(HwsimError, match="there is no published cost table"):
        networks_of("fq-vit")


# Of Table 2 of Q-ViT, as the paper prints them and docs/cost.md has them in bold: MB at 32, 4, 3 and 2 bits, and GFLOPs
# with the rules that give them.
Q_VIT_MET = {
    "deit_small_patch16_224": (
        {"32-32": "88.2", "4-4": "11.4", "3-3": "8.7", "2-2": "6.0"},
        {("3-3", "b/32"): "0.4", ("2-2", "2^b/128"): "0.2"},
    ),
    "deit_base_patch16_224": (
        {"2-2": "22.7"},
        {
            ("32-32", "2^b/128, linear layers only"): "16.8",
            ("4-4", "b/32"): "2.2",
            ("4-4", "2^b/128"): "2.2",
        },
    ),
    "swin_tiny_patch4_window7_224": (
        {"32-32": "114.2", "2-2": "7.7"},
        {
            ("32-32", "b/32"): "4.5",
            ("32-32", "2^b/128"): "4.5",
            ("4-4", "b/32"): "0.6",
            ("4-4", "2^b/128"): "0.6",
            ("3-3", "2^b/128"): "0.3",
            ("3-3", "2^b/128, linear layers only"): "0.3",
        },
    ),
    "swin_small_patch4_window7_224": (
        {"32-32": "199.8"},
        {
            ("32-32", "b/32"): "8.7",
            ("32-32", "2^b/128"): "8.7",
            ("4-4", "b/32"): "1.1",
            ("4-4", "2^b/128"): "1.1",
            ("4-4", "2^b/128, linear layers only"): "1.1",
            ("2-2", "2^b/128"): "0.3",
            ("2-2", "2^b/128, linear layers only"): "0.3",
        },
    ),
}


@pytest.mark.parametrize("name", Q_VIT_MET)
def test_q_vit_table(name: str) -> None:
    found = compare("q-vit", load_network(name, random_weights=0))
    sizes, flops = Q_VIT_MET[name]
    # A Swin's file in float has shift masks, and indices of relative positions in 32 bits.
    rule = "and float masks, 32-bit indices"
    assert {each.row: each.ours for each in found if each.rule == rule and each.meets} == sizes
    shown = ("b/32", "2^b/128", "2^b/128, linear layers only")
    met = {(each.row, each.rule): each.ours for each in found if each.rule in shown and each.meets}
    assert met == flops


def test_one_wrong_digit_is_seen() -> None:
    right = Comparison("net", "row", "size (MB)", "rule", "11.4", Fraction(113648, 10000))
    assert right.ours == "11.4" and right.meets
    assert not Comparison("net", "row", "size (MB)", "rule", "11.3", right.value).meets
    assert Comparison("net", "row", "size (MB)", "rule", "11.36", right.value).meets
