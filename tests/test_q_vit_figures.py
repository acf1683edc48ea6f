"""Distributions, entropies and attention distances of trained networks, and the commands that show them and audit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import small_swin
from hwsim.cli import main
from hwsim.networks.graph import FloatGraph
from hwsim.networks.load import float_graph
from hwsim.qat import attention
from hwsim.qat.attention import BEFORE_IRM, EDGES, QUANTIZED, float_attention, trained_attention
from hwsim.qat.export import save_trained
from hwsim.quantize.calibrate import Calibration, calibrate
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.q_vit import q_vit
from hwsim.quantize.quantizers.uniform import UniformGrid

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def calibration(small_graph: FloatGraph, small_images: np.ndarray) -> Calibration:
    return calibrate(small_graph, small_images, q_vit("2/2/2"))


def test_a_normal_sample_is_near_a_gaussian_and_a_uniform_one_is_not() -> None:
    random = np.random.default_rng(0)
    distances = []
    for sample in (random.normal(3, 2, 200_000), random.uniform(-1, 5, 200_000)):
        values = attention._Values(None)
        values.first(sample)
        values.second(sample)
        operand = values.operand("block", "query", QUANTIZED)
        assert operand.mean == pytest.approx(sample.mean())
        assert operand.std == pytest.approx(sample.std())
        assert float((operand.density * np.diff(EDGES)).sum()) == pytest.approx(1)
        distances.append(operand.gaussian_distance)
    assert distances[0] < 0.01
    # The normal density is above 1/(2 sqrt 3) by 0.1144 in all for |z| < 0.8066, and holds 0.0833 beyond sqrt 3.
    # The bins in which the uniform one ends, 1.7 to 1.8 on both sides, make 0.0116 less of it.
    assert distances[1] == pytest.approx(0.1144 + 0.0833 - 0.0116, abs=0.003)


def test_entropy_of_codes_by_hand() -> None:
    values = attention._Values(UniformGrid(1.0, 0, 2))
    sample = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 9.0], np.float32)  # codes 0, 0, 0, 0, 1, 1, 2, 3
    values.first(sample)
    values.second(sample)
    operand = values.operand("block", "key", QUANTIZED)
    assert operand.entropy == pytest.approx(1.75)
    assert operand.bits == 2
    mean, std = sample.mean(), sample.std()
    assert operand.thresholds == pytest.approx([(edge - mean) / std for edge in (0.5, 1.5, 2.5)], rel=1e-6)


def test_attention_distance_by_hand() -> None:
    # A class token and four places of a square; the first head looks at itself, the second at the place opposite,
    # the third at all places alike and mostly at the class token.
    weights = np.zeros((1, 3, 5, 5))
    weights[0, 0] = np.eye(5)
    weights[0, 1, range(1, 5), (4, 3, 2, 1)] = 0.5
    weights[0, 2] = [0.6, 0.1, 0.1, 0.1, 0.1]
    positions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    sums, rows = attention._distances(weights, positions)
    assert rows == 4
    assert sums / rows == pytest.approx([0, np.sqrt(2), (0 + 1 + 1 + np.sqrt(2)) / 4])
    assert attention._distances(np.zeros((1, 1, 5, 5)), positions)[0] == pytest.approx([0])


def test_places_of_windows_and_of_images(small_graph: FloatGraph) -> None:
    swin = float_graph(small_swin(), "swin", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert attention._positions(small_graph, 17).shape == (16, 2)  # a class token
    assert attention._positions(small_graph, 18)[-1].tolist() == [3, 3]
    assert attention._positions(swin, 16).tolist() == attention._positions(small_graph, 17).tolist()


def test_measured_values_are_those_of_the_network(
    calibration: Calibration, small_graph: FloatGraph, small_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BATCH", 10)
    found = trained_attention("trained", calibration, small_images)
    codes: dict[str, np.ndarray] = {}
    FakeQuantNetwork(calibration).run(small_images, codes)
    assert [(each.block, each.role, each.stage) for each in found.operands] == [
        (f"blocks.{block}.attn", role, stage)
        for block in range(2)
        for role in ("query", "key")
        for stage in (BEFORE_IRM, QUANTIZED)
    ]
    for each in found.operands:
        if each.stage == BEFORE_IRM:
            assert each.entropy is None
            continue
        shares = np.unique(codes[f"{each.block}.{each.role[0]}_norm"], return_counts=True)[1] / 24 / 2 / 17 / 12
        assert each.entropy == pytest.approx(float(-(shares * np.log2(shares)).sum()))
        assert each.bits == 2
    assert found.distances.keys() == {"blocks.0.attn", "blocks.1.attn"}
    assert all(distance.shape == (2,) for distance in found.distances.values())
    plain = float_attention("float", small_graph, small_images)
    assert [each.stage for each in plain.operands] == [QUANTIZED] * 4
    # In front of the first IRM nothing is quantized but weights, image and norm; the float network is not far.
    assert plain.operands[0].std == pytest.approx(found.operands[0].std, rel=0.5)


def test_command_draws_and_tabulates(
    calibration: Calibration, small_images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, class_number in (("a", 0), ("b", 1)):
        folder = tmp_path / "images" / str(class_number) / name
        folder.parent.mkdir(parents=True)
        from PIL import Image

        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder.with_suffix(".png"))
    renamed = replace(calibration, graph=replace(calibration.graph, classes=2))
    save_trained(tmp_path / "run" / "trained.safetensors", renamed, {})
    arguments = ["qat-figures", f"ours={tmp_path / 'run'}", "--float", "none", "--data", str(tmp_path / "images")]
    main([*arguments, "-o", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "ours" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "queries.png", "keys.png", "entropy.png", "attention_distance.png", "distributions.csv",
        "attention_distance.csv",
    }  # fmt: skip
    for path in (tmp_path / "out").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000
    for folder in ("svg", "again"):
        main([*arguments, "--format", "svg", "-o", str(tmp_path / folder)])
    drawn = sorted(path.name for path in (tmp_path / "svg").glob("*.svg"))
    assert drawn == ["attention_distance.svg", "entropy.svg", "keys.svg", "queries.svg"]
    for name in drawn:
        content = (tmp_path / "svg" / name).read_bytes()
        assert b"<svg" in content and content == (tmp_path / "again" / name).read_bytes()
    with (tmp_path / "out" / "distributions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {row["bits"] for row in rows if row["stage"] == QUANTIZED} == {"2.0"}
    with (tmp_path / "out" / "attention_distance.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/trained.safetensors: there is no such trained network file; train again"),
        (["a=run", "a=run"], "two networks are called 'a'; name them with LABEL=FOLDER"),
        (["run", "other=run2"], "networks of one kind are compared, these are another and small"),
    ],
)
def test_bad_input_is_said(
    arguments: list[str],
    said: str,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_trained(Path("run/trained.safetensors"), calibration, {})
    other = replace(calibration, graph=replace(calibration.graph, name="another"))
    save_trained(Path("run2/trained.safetensors"), other, {})
    with pytest.raises(SystemExit):
        main(["qat-figures", *arguments])
    error = capsys.readouterr().err
    assert error.startswith("hwsim: ")
    assert said in error
    assert error.count("\n") == 1
    assert not Path("build").exists()


def test_audit_of_a_trained_network(
    calibration: Calibration, small_images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "images.npz", images=small_images[:4], labels=np.zeros(4, np.int64))
    save_trained(tmp_path / "run" / "trained.safetensors", calibration, {})
    arguments = ["audit", "--trained", str(tmp_path / "run"), "--on", str(tmp_path / "images.npz")]
    main([*arguments, "--set", "irm_bits=9"])
    said = capsys.readouterr().out
    assert "small, q-vit 2/2/2 irm_bits=9: integer minus fake-quantized codes" in said
    assert said.count("q_norm") == 2
    assert "trained weights in float" in said
    with pytest.raises(SystemExit):
        main([*arguments, "--set", "irm_bits=20"])
    assert "hwsim: irm_bits must be an integer between 2 and 16, not 20" in capsys.readouterr().err
    (tmp_path / "run" / "trained.safetensors").write_bytes(b"no")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "trained.safetensors: truncated, damaged or not a trained network file" in capsys.readouterr().err
