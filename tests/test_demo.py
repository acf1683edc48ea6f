"""The demo: a small run from end to end, and that an integer that differs is seen, shown and fatal."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from golden.errors import HwsimError
from golden.vectors import read_vectors
from hwsim.cli import demo, main
from hwsim.cli.demo import hardware, software
from hwsim.execute import product_kernels
from hwsim.program import load_program
from rtl import catalog
from sim_tests.compare import Mismatch
from sim_tests.cosim import CosimResult

UNIT = "lookup"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch):
    for name, count in (
        ("CALIBRATION", 100),
        ("ADALOG_CALIBRATION", 20),
        ("AUDIT", 10),
        ("EXECUTOR", 2),
        ("HISTOGRAM", 10),
        ("LAYERNORM", 1),
    ):
        monkeypatch.setattr(demo, f"{name}_IMAGES", count)


def run(output):
    main(["demo", "-o", str(output), "--images", "64", "--unit", UNIT])


def test_small_demo(output, capsys):
    run(output)
    text = capsys.readouterr().out
    values = json.loads((output / "demo.json").read_text())
    assert values["network"] == "embedded" and set(values["calibration_images"].values()) == {100, 20}
    assert values["mismatches"] == 0

    assert [item["bits"] for item in values["accuracy"]] == ["8/8/4", "8/8/8"]
    for item in values["accuracy"]:
        assert item["images"] == 64
        # Whole images, and far above the tenth of guessing.
        for field in ("float_top1", "fake_quant_top1", "integer_top1"):
            assert (item[field] * 0.64).is_integer() and item[field] > 60
        assert f"{item['integer_top1']:.3f}" in text
    assert [item["mismatches"] for item in values["executors"]] == [0, 0, 0]

    program = load_program(next((output / "programs").glob("*lis.safetensors")))
    nodes = {node.name for node in program.nodes if node.spec.kind == UNIT}
    layers = {layer["layer"]: layer for unit in values["rtl"] for layer in unit["layers"]}
    assert set(layers) == nodes
    for name, layer in layers.items():
        outputs = int(np.prod(program.shape(name)))
        length = program.shape(name)[-1]
        assert layer["full_rate"]["compared"] == layer["stalled"]["compared"] == outputs
        assert layer["mismatches"] == 0
        assert layer["rows_per_image"] == outputs // length
        # An element a cycle; stalls take longer.
        assert layer["cycles_per_row"] == length
        assert layer["images_per_second"] == pytest.approx(1e8 / outputs)
        assert outputs <= layer["full_rate"]["cycles"] < layer["stalled"]["cycles"]
        assert name in text
        read_vectors(output / values["files"]["vectors"] / f"{name}.{UNIT}.safetensors", verify=True)

    for unit in values["rtl"]:
        assert f"module {unit['module']}" in (output / unit["verilog"]).read_text()
        assert unit["module"] in (output / unit["facts"]).read_text()
    assert len(values["scores"]) == len(values["attention"]) == 6
    for point in values["scores"] + values["attention"]:
        assert sum(point["counts"]) == 10 * 4 * 50 * 50
    plots = {path.name for path in (output / "plots").iterdir()}
    assert plots == {"accuracy.png", "scores.png", "attention_codes.png", "layernorm_error.png"}
    assert (output / "report.html").read_text().startswith("<!doctype html>")
    for path in values["files"].values():
        assert (output / path).exists()
        assert str(output / path) in text.replace("\n", "")
    # Nothing half-written: no temporary file stays.
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_a_wrong_integer_ends_the_demo_with_status_1(output, capsys, monkeypatch):
    whole = hardware.dump_vectors

    def corrupted(*arguments):
        return [one_bit_wrong(layer) if layer.layer == "blocks.2.mlp.gelu" else layer for layer in whole(*arguments)]

    def one_bit_wrong(layer):
        codes = layer.output.copy()
        codes[0, 7, 11] ^= 1
        return dataclasses.replace(layer, output=codes)

    monkeypatch.setattr(hardware, "dump_vectors", corrupted)
    monkeypatch.setattr(hardware, "cosimulate", functools.partial(hardware.cosimulate, waveform=False))
    with pytest.raises(SystemExit) as stopped:
        run(output)
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    values = json.loads((output / "demo.json").read_text())
    assert values["mismatches"] == 2  # the same activation in both runs
    wrong = [layer for unit in values["rtl"] for layer in unit["layers"] if layer["mismatches"]]
    assert [layer["layer"] for layer in wrong] == ["blocks.2.mlp.gelu"]
    assert "image 0, row 7, element 11" in wrong[0]["full_rate"]["first_mismatch"]
    assert "image 0, row 7, element 11" in " ".join(printed.out.split())
    assert "2 integers differ" in printed.err
    assert "image 0, row 7, element 11" in (output / "report.html").read_text()


def test_a_waveform_is_named_from_the_folder_of_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Mismatch("lookup", "gelu", 0, 7, 11, "5", "4", 99)
    # Cosimulation gives whole paths, the command line may have given a relative one.
    waveform = tmp_path / "out" / "cosim" / "lookup-cycle-99.vcd"
    result = CosimResult("lookup", "gelu", 100, 1, 10, 0, 110, 10.0, first, waveform, tmp_path / "lookup.v", 1)
    for output in (Path("out"), tmp_path / "out"):
        run = hardware._run(result, output)
        assert run.waveform == "cosim/lookup-cycle-99.vcd"
        assert (run.compared, run.mismatches, run.cycles) == (100, 1, 110)
        assert "row 7, element 11: expected 5, got 4, in cycle 99" in run.first_mismatch


def test_no_report_of_an_earlier_run_survives_a_failure(tmp_path, monkeypatch):
    for name in ("report.html", "demo.json"):
        (tmp_path / name).write_text("old")

    def fail(*arguments):
        raise HwsimError("no images today")

    monkeypatch.setattr(demo, "calibration_source", fail)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path)
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_unknown_unit_is_refused_before_the_long_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "-o", str(tmp_path), "--unit", "divider"])
    assert stopped.value.code == 2
    assert "divider" in capsys.readouterr().err


def test_every_unit_of_the_catalogue_has_its_part(small_graph, small_images, small_program):
    from conftest import quantize_small
    from hwsim.quantize.adalog import repq_vit
    from hwsim.quantize.calibrate import calibrate
    from hwsim.quantize.lowering import lower

    adalog = quantize_small(small_graph, small_images, "8/8/4", attention="adalog")[1]
    uniform = quantize_small(small_graph, small_images, "8/8/8")[1]
    log_sqrt2 = lower(calibrate(small_graph, small_images, repq_vit("4/4/4")))
    vectors = hardware.hardware_vectors([small_program, adalog, uniform, log_sqrt2], small_images, 1, ())
    assert set(vectors) == set(catalog.UNITS)
    assert vectors["lookup"][0].recipe == small_program.recipe


def test_executors_that_differ_are_counted(small_program, small_images, monkeypatch):
    good = software.compare_executors(small_program, small_images[:2])
    assert (good.mismatches, good.first_mismatch) == (0, None)
    assert good.points == len(small_program.nodes)
    assert good.values == 2 * sum(int(np.prod(small_program.shape(node.name))) for node in small_program.nodes)
    last = small_program.nodes[-1]
    build = product_kernels.KERNELS[last.spec.kind]

    def wrong(spec, constants):
        kernel = build(spec, constants)

        def flipped(*inputs):
            output = kernel(*inputs)
            if spec == last.spec:
                output[1, 0, 3] ^= 1
            return output

        return flipped

    monkeypatch.setitem(product_kernels.KERNELS, last.spec.kind, wrong)
    bad = software.compare_executors(small_program, small_images[:2])
    assert bad.mismatches == 1
    assert f"{last.name} ({last.spec.kind}): image 1, element [0, 3]" in bad.first_mismatch


def test_layernorm_error_is_the_distance_from_torch(small_graph, small_images):
    from conftest import quantize_small
    from hwsim.execute import Executor

    calibration, program = quantize_small(small_graph, small_images, "8/8/4")
    images = small_images[:3]
    errors = software.measure_layernorms(calibration, program, images, lambda count: None)
    name = "blocks.1.norm2"
    node, float_node = program[name], small_graph[name]
    grid_in, grid_out = program.header["scales"][float_node.inputs[0]], program.header["scales"][name]
    _, kept = Executor(program, "reference").run(images, keep=(name, *node.inputs))
    steps = grid_in["base"] * torch.tensor([2.0**alpha for alpha in grid_in["alpha"]], dtype=torch.float64)
    x = (torch.from_numpy(kept[node.inputs[0]].astype(float)) - grid_in["zero_point"]) * steps
    weight, bias = (torch.from_numpy(float_node.parameters[key]).double() for key in ("weight", "bias"))
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, float_node.attributes["eps"])
    wanted = (y / grid_out["scale"] + grid_out["zero_point"]).clamp(0, 255).numpy()
    error = kept[name] - wanted
    found = next(layer for layer in errors.layers if layer.layer == name)
    assert found.values == error.size
    assert found.largest == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert found.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
    assert sum(errors.counts) == sum(errors.released_counts) == sum(layer.values for layer in errors.layers)
    # Little more than rounding, and no worse than the released form (DESIGN rule 7).
    for layer in errors.layers:
        assert layer.largest < 0.75
        assert layer.rms <= layer.released_rms


def test_code_counts_are_those_of_the_program(small_graph, small_images):
    from conftest import quantize_small
    from hwsim.execute import Executor

    calibration, program = quantize_small(small_graph, small_images, "8/8/4")
    scores, attention = software.count_codes(calibration, program, small_images, lambda count: None)
    _, kept = Executor(program, "reference").run(small_images, keep=None)
    assert [point.layer for point in scores] == ["blocks.0.attn.scores", "blocks.1.attn.scores"]
    for point in (*scores, *attention):
        codes = kept[point.layer].reshape(-1).tolist()
        assert list(point.counts) == [codes.count(code) for code in range(len(point.counts))]
        assert sum(point.counts) == len(codes)
    assert all(len(point.counts) == 17 for point in attention)
    assert scores[0].scale == program.header["scales"]["blocks.0.attn.scores"]["scale"]
