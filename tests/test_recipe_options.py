"""Recipes put together on the command line."""

from typing import Any

import numpy as np
import pytest

from golden.errors import HwsimError
from hwsim.cli.source import make_recipe
from hwsim.explore.space import recipe_of
from hwsim.networks.embedded import load_calibration_set
from hwsim.networks.graph import ROLES, FloatNode
from hwsim.networks.load import load_network
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.parts import with_parts
from hwsim.quantize.quantizers.power_of_two import PowerOfTwo
from hwsim.quantize.quantizers.twin import TwinSoftmax
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipe import Recipe
from hwsim.quantize.recipes import RECIPES
from hwsim.quantize.search.settings import ScaleSearch
from hwsim.quantize.weights import SymmetricWeights

ONES = np.ones(1, np.float32)


def test_parts_of_several_systems() -> None:
    recipe = make_recipe(
        "fq-vit",
        bits="8/8/8",
        range="percentile",
        points_at=("attention=twin-softmax:6", "gelu=uniform:6,range=omse", "logits=float"),
        weights_at=("patch=4",),
        lowering=("hidden_bits=14",),
    )
    assert recipe.points["attention"] == TwinSoftmax(6)
    assert recipe.points["gelu"] == Uniform(6, "omse")
    assert recipe.points["qkv"] == Uniform(8, "percentile")
    assert recipe.points["residual"] == PowerOfTwo(8)
    assert "logits" not in recipe.points
    assert recipe.weights_of("patch") == SymmetricWeights(4)
    assert recipe.weights_of("qkv") == SymmetricWeights(8)
    assert recipe.lowering.hidden_bits == 14
    assert recipe.name.endswith(
        "point.attention=twin-softmax:6 point.gelu=uniform:6,range=omse point.logits=float weights.patch=4"
        " hidden_bits=14"
    )
    assert recipe.file_name == (
        "fq-vit-8-8-8-pts-uniform-percentile-point.attention-twin-softmax-6-point.gelu-uniform-6-range-omse"
        "-point.logits-float-weights.patch-4-hidden_bits-14"
    )


def test_parts_of_single_nodes() -> None:
    recipe = make_recipe(
        "fq-vit", points_at=("blocks.0.mlp.gelu=uniform:4", "blocks.1.norm1=float"), weights_at=("blocks.0.attn.qkv=3",)
    )
    gelu, other, norm = (
        FloatNode(name, operation, role, ("x",), {"weight": ONES, "bias": ONES} if role == "norm" else {}, attributes)
        for name, operation, role, attributes in (
            ("blocks.0.mlp.gelu", "gelu", "gelu", {}),
            ("blocks.1.mlp.gelu", "gelu", "gelu", {}),
            ("blocks.1.norm1", "layernorm", "norm", {"eps": 1e-6}),
        )
    )
    assert (recipe.at(gelu), recipe.at(other), recipe.at(norm)) == (Uniform(4), Uniform(8), None)
    qkv = FloatNode("blocks.0.attn.qkv", "linear", "qkv", ("x",), {"weight": ONES, "bias": ONES})
    assert recipe.weights_for(qkv) == SymmetricWeights(3)


def test_a_node_that_the_network_does_not_have() -> None:
    graph = load_network("embedded")
    recipe = make_recipe("fq-vit", points_at=("blocks.0.mlp.gleu=uniform:4",))
    with pytest.raises(HwsimError, match=r"embedded has no point 'blocks.0.mlp.gleu'; did you mean blocks.0.mlp.gelu"):
        calibrate(graph, load_calibration_set().images[:1], recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_width_is_that_of_all(recipe: str) -> None:
    assert make_recipe(recipe, bits="5") == make_recipe(recipe, bits="5/5/5")


def test_widths_that_differ_are_in_the_name() -> None:
    """The default file of `hwsim calibrate` is called by it: other widths must not take another program's place."""
    assert make_recipe("fq-vit", lowering=("hidden_bits=12", "gamma_bits=12")) == make_recipe("fq-vit")
    recipe = make_recipe("fq-vit", lowering=("hidden_bits=10", "accumulator_bits=18", "overflow=wrap"))
    assert recipe.name == "fq-vit 8/8/4 pts lis hidden_bits=10 accumulator_bits=18 overflow=wrap"
    assert recipe_of({"hidden_bits": 10, "gamma_bits": 12, "guard_bits": None}).name.endswith("lis hidden_bits=10")
    # As of a trained network, whose recipe has its own widths already.
    assert with_parts(recipe, {"hidden_bits": 11}).name.endswith("lis accumulator_bits=18 overflow=wrap hidden_bits=11")
    assert with_parts(recipe, {"hidden_bits": 12}).name.endswith("lis accumulator_bits=18 overflow=wrap")


def test_defaults_of_q_vit_are_not_in_its_name() -> None:
    recipe = make_recipe("q-vit", lowering=("irm_bits=10",))
    assert recipe.name == "q-vit 4/4/4 irm_bits=10"
    assert recipe.lowering.bias_fraction_bits == make_recipe("q-vit").lowering.bias_fraction_bits == 8


@pytest.mark.parametrize(
    ("recipe", "points_at", "has"),
    [
        ("fq-vit", (), False),
        ("q-vit", (), False),
        ("ptq4vit", (), False),
        ("adalog", (), True),
        ("repq-vit", (), True),
        ("fq-vit", ("attention=adalog:4",), True),
        ("q-vit", ("blocks.0.mlp.gelu=shift-log-sqrt2:4",), True),
    ],
)
def test_guard_bits_of_a_recipe_without_any(recipe: str, points_at: tuple[str, ...], has: bool) -> None:
    if has:
        assert make_recipe(recipe, ("guard_bits=2",), points_at).lowering.guard_bits == 2
        return
    with pytest.raises(HwsimError, match=r"--set guard_bits=2: no unit of .* has guard bits"):
        make_recipe(recipe, ("guard_bits=2",), points_at)


def test_weights_keep_their_groups() -> None:
    assert make_recipe("ptq4vit", weights_at=("qkv=6",)).weights_of("qkv") == SymmetricWeights(6, groups=3)


def test_seed_of_the_search() -> None:
    recipe = make_recipe("ptq4vit", seed_of_search=7)
    assert isinstance(recipe.search, ScaleSearch)
    assert recipe.search.seed == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"points_at": ("gleu=uniform:6",)}, "no point has the role 'gleu'; did you mean gelu"),
        ({"weights_at": ("pach=6",)}, "no point has the role 'pach'"),
        ({"points_at": ("gelu",)}, "--point gelu: write PLACE=VALUE"),
        ({"points_at": ("gelu=unifrm:6",)}, "there is no 'unifrm'; did you mean uniform"),
        ({"points_at": ("hidden=float",)}, "point.hidden=float: fq-vit 8/8/4 pts lis has quantizers at input"),
        ({"weights_at": ("patch=six",)}, "weights.patch=six: weights take a number of bits"),
        ({"weights_at": ("patch=17",)}, "weights take 2 to 16 bits, not 17"),
        ({"range": "median"}, "no range observer 'median'"),
        ({"seed_of_search": 1}, "recipe fq-vit has no seed"),
    ],
)
def test_what_no_recipe_can_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(HwsimError, match=said):
        make_recipe("fq-vit", **options)


def test_a_graph_has_known_roles_alone() -> None:
    with pytest.raises(TypeError, match="the role 'gleu' is not in ROLES"):
        FloatNode("mlp.gelu", "gelu", "gleu", ("mlp.fc1",))
    Recipe("all", SymmetricWeights(8), dict.fromkeys(ROLES, Uniform(8)))
