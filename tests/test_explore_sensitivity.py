"""Which layer loses what: widths alone change, and mixed precision follows."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from golden.errors import HwsimError
from hwsim.cli import cli
from hwsim.execute import Executor
from hwsim.explore.records import Record
from hwsim.explore.sensitivity import Layer, Loss, layers_of, most_within, narrowed, narrowings
from hwsim.explore.space import parse_space, recipe_of
from hwsim.networks.embedded import load_test_set
from hwsim.networks.load import load_network
from hwsim.program import load_program
from hwsim.quantize.quantizers import parse_quantizer, quantizer_text
from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog
from hwsim.quantize.quantizers.twin import TwinGelu
from hwsim.quantize.quantizers.uniform import Uniform
from hwsim.quantize.recipes import RECIPES


def loss(layer: str, bits: int, lost: float, saved: float) -> Loss:
    return Loss(layer, bits, lost, True, saved, Record("", {}))


def test_narrowing_takes_what_saves_most_for_its_loss_first() -> None:
    found = [loss("a", 4, 0.5, 100.0), loss("a", 3, 3.0, 120.0), loss("b", 4, -0.2, 50.0), loss("c", 4, 2.0, 90.0)]
    steps = narrowings(found)
    assert [{name: one.bits for name, one in step.items()} for step in steps] == [
        {},
        {"b": 4},
        {"b": 4, "a": 4},
        {"b": 4, "a": 4, "c": 4},
        {"b": 4, "a": 3, "c": 4},
    ]
    measured = {0: 0.0, 1: 0.1, 2: 0.9, 3: 1.1, 4: 9.0}
    tried: list[int] = []

    def lost(step: Any) -> float:
        tried.append(steps.index(step))
        return measured[steps.index(step)]

    assert most_within(steps, 1.0, lost) == 2
    assert len(tried) <= 3
    assert most_within(steps, 0.0, lost) == 0
    assert most_within(steps, 10.0, lost) == 4


def test_layers_and_blocks_of_a_network() -> None:
    graph = load_network("embedded")
    base = recipe_of({})
    layers = {layer.name: layer for layer in layers_of(graph, base)}
    point = {"blocks.0.mlp.gelu": Uniform(8)}
    assert layers["blocks.0.mlp.fc2"] == Layer("blocks.0.mlp.fc2", ("blocks.0.mlp.fc2",), point)
    assert layers["patch_embed.proj"].points == {}  # the image keeps its width
    blocks = [block.name for block in layers_of(graph, base, "block")]
    assert blocks == ["patch_embed.proj", *(f"blocks.{i}" for i in range(6)), "head"]
    assert "layers.1.blocks.0" in [block.name for block in layers_of(load_network("embedded-swin"), base, "block")]
    with pytest.raises(HwsimError, match="--by must be layer, block or operand, not 'head'"):
        layers_of(graph, base, "head")
    recipe = recipe_of(narrowed({"weight_bits": 8}, layers["blocks.0.mlp.fc2"], 3))
    assert recipe.node_weights == {"blocks.0.mlp.fc2": 3}
    assert recipe.nodes == {"blocks.0.mlp.gelu": Uniform(3)}


def test_the_sensitivity_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench_options = ["--images", "8", "--on-images", "100"]
    options = [*bench_options, "--by", "block", "--widths", "4"]
    ran = CliRunner().invoke(cli, ["sensitivity", *options, "--budget", "2"])
    assert ran.exit_code == 0, ran.output
    folder = tmp_path / "build" / "explore"
    lines = pd.read_csv(folder / "embedded-sensitivity.csv")
    assert lines.layer.tolist() == ["patch_embed.proj", *(f"blocks.{i}" for i in range(6)), "head"]
    assert (lines.bits == 4).all() and (lines.saved_bytes > 0).all()
    assert lines.columns.tolist() == ["layer", "bits", "lost", "significant", "saved_bytes"]

    store = {path.stem: json.loads(path.read_text()) for path in (folder / "points").glob("*.json")}
    records = {key: Record(**content) for key, content in store.items()}
    layers = [node.name for node in load_network("embedded").nodes if node.operation == "linear"]
    (base,) = [one for one in records.values() if not any("." in field for field in one.point)]
    for line in lines.itertuples():
        (alone,) = [
            one
            for one in records.values()
            if {field.split(".", 1)[1] for field in one.point if field.startswith("node_weights")}
            == {layer for layer in layers if f"{layer}.".startswith(f"{line.layer}.")}
        ]
        assert line.lost == base.top1 - alone.top1
        assert line.saved_bytes == base.costs["constant_bytes"] - alone.costs["constant_bytes"]
    said = re.search(r"mixed precision within 2 points: (.*)\n(\S+) % \(.*; id (\w+)\n", ran.output)
    assert said is not None
    mixed = records[said[3]]
    assert base.top1 - mixed.top1 <= 2
    assert f"{mixed.top1:.2f}" == said[2]
    assert mixed.costs["constant_bytes"] < base.costs["constant_bytes"]
    narrowed_blocks = {part.split()[0] for part in said[1].split(", ")}
    assert narrowed_blocks == {
        line.layer
        for line in lines.itertuples()
        if any(f"{field}.".startswith(f"node_weights.{line.layer}.") for field in mixed.point)
    }
    picked = CliRunner().invoke(cli, ["explore", *bench_options, "--pick", mixed.key])
    assert picked.exit_code == 0, picked.output
    images, labels = load_test_set().head(100)
    program = load_program(folder / "picked" / mixed.key / "program.safetensors")
    assert mixed.top1 == 100 * (Executor(program).predict(images).argmax(axis=1) == labels).mean()


def test_operands_of_the_attention() -> None:
    def operands(network: str, recipe: str) -> list[str]:
        layers = layers_of(load_network(network), recipe_of({"recipe": recipe}), "operand")
        assert all(layer.weights == () for layer in layers)
        parts = [name.split(".attn.")[1] for name in layers[0].points]
        assert parts == (["q", "k", "v"] if recipe == "ptq4vit" else ["qkv"])
        return [
            layer.name.split(".attn.")[1] for layer in layers if ".0.attn" in layer.name and "s.1" not in layer.name
        ]

    assert operands("embedded", "fq-vit") == ["qkv", "scores", "softmax"]
    assert operands("embedded", "ptq4vit") == ["qkv", "softmax"]  # scores stay in float
    assert operands("embedded-swin", "fq-vit") == ["qkv", "biased", "softmax"]


@pytest.mark.parametrize("system", RECIPES)
@pytest.mark.parametrize("by", ["layer", "block", "operand"])
def test_narrowing_changes_widths_alone(system: str, by: str) -> None:
    base = {"recipe": system, "weight_bits": 8, "activation_bits": 8, "attention_bits": 8}
    graph, recipe = load_network("embedded"), recipe_of(base)
    for layer in layers_of(graph, recipe, by):
        point = narrowed(base, layer, 6)
        # As a user repeats it.
        (repeated,) = parse_space([f"{field}={value}" for field, value in point.items()]).grid()
        found = recipe_of(repeated)
        assert layer.weights or layer.points
        for node in graph.nodes:
            at = recipe.at(node)
            assert found.at(node) == (replace(at, bits=6) if node.name in layer.points else at)  # type: ignore[type-var]
            if node.operation == "linear":
                weights = recipe.weights_for(node)
                assert found.weights_for(node) == (replace(weights, bits=6) if node.name in layer.weights else weights)


def test_kinds_of_quantizers_are_kept() -> None:
    graph = load_network("embedded")
    kinds: dict[str, Any] = {"ptq4vit": TwinGelu, "adalog": ShiftAdaLog}
    for system, kind in kinds.items():
        layers = {layer.name: layer for layer in layers_of(graph, recipe_of({"recipe": system}))}
        found = recipe_of(narrowed({"recipe": system}, layers["blocks.0.mlp.fc2"], 4))
        assert found.nodes == {"blocks.0.mlp.gelu": kind(4)}


@pytest.mark.parametrize(
    "text",
    [
        "uniform:3",
        "uniform:4,range=omse",
        "uniform:6,symmetric=yes,heads=yes",
        "pts:5",
        "lis:3",
        "adalog:4,q=37",
        "shift-adalog:4",
        "log-sqrt2:4",
        "shift-log-sqrt2:4",
        "twin-softmax:6,as_released=yes",
        "twin-gelu:6,power_of_two=no",
    ],
)
def test_quantizers_as_text(text: str) -> None:
    quantizer = parse_quantizer(text)
    assert quantizer_text(quantizer) == text
    assert parse_quantizer(quantizer_text(quantizer, bits=5)) == replace(quantizer, bits=5)  # type: ignore[type-var]
