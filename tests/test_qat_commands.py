"""The commands `hwsim train` and `hwsim qat-ablation`: a kill, two processes, bad options, many runs."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from golden.errors import HwsimError
from hwsim.cli import cli
from hwsim.execute import Executor
from hwsim.networks.embedded import load_calibration_set
from hwsim.networks.fashion_mnist import IDX_NAMES
from hwsim.networks.load import load_network
from hwsim.program import load_program
from hwsim.qat.ablation import Ablation, Run, frame, markdown, runs
from hwsim.qat.export import load_trained
from hwsim.qat.measure import Accuracy
from hwsim.qat.settings import TrainingSettings
from hwsim.quantize.lowering import lower

SETTINGS = TrainingSettings(epochs=2, batch=8)
# Of the runs in two processes, and of those that they are compared with.
TWO = ("--epochs", "1", "--no-irm", "--on-images", "1")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the published one: 32 training and 8 test images."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    found = load_calibration_set()
    assert found.labels is not None
    images, labels = found.images[..., 0], found.labels
    for name, array in zip(IDX_NAMES, (images[:32], labels[:32], images[-8:], labels[-8:]), strict=True):
        head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def command(data: Path, output: Path, *more: str) -> list[str]:
    options = {"--data": data, "--bits": 2, "--batch": 8, "--epochs": 2, "--calibration-images": 16, "--on-images": 40}
    flat = [str(part) for pair in options.items() for part in pair]
    return ["train", "embedded", *flat, "--device", "cpu", "-o", str(output), *more]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_killed_command_goes_on_to_the_same_bits(fashion: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    output = invoke(*command(fashion, whole))
    assert [line.split(":")[0] for line in output.splitlines() if "loss" in line] == ["epoch 1/2", "epoch 2/2"]
    assert "top-1 on 40 images: float" in output and "fake-quantized" in output and "integer" in output
    result = json.loads((whole / "result.json").read_text())
    assert result["images"] == 40 and 0 <= result["integer_top1"] <= 100
    assert load_program(whole / "program.safetensors").recipe == "q-vit 2/2/2"

    arguments = [sys.executable, "-m", "hwsim", *command(fashion, cut, "--checkpoint-every", "1")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    while not (cut / "checkpoint.safetensors").exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "trained.safetensors").exists()
    invoke(*command(fashion, cut, "--resume"))
    for name in ("trained.safetensors", "program.safetensors", "result.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def start_both(data: Path, output: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """The command in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "hwsim", *command(data, output, *TWO, *more)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]


def finish(started: list[subprocess.Popen[bytes]]) -> list[tuple[str, str]]:
    """What each wrote to standard output and to standard error."""
    written = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], written
    return [(out.decode(), err.decode()) for out, err in written]


@pytest.fixture(scope="module")
def both(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """Folder of a run of two processes, and what they wrote."""
    folder = tmp_path_factory.mktemp("both")
    return folder, finish(start_both(fashion, folder))


def test_two_processes_train_as_one(fashion: Path, tmp_path: Path, both: tuple[Path, list[tuple[str, str]]]) -> None:
    """Shares of every batch, averaged gradients: but for the order of the sums the same as in one process."""
    folder, written = both
    assert "trained:" in written[0][0] and not written[1][0]  # the first one alone writes
    assert "epoch 1/1: loss" in written[0][1] and "epoch" not in written[1][1]
    alone = tmp_path / "alone"
    invoke(*command(fashion, alone, *TWO))
    other = tmp_path / "other"
    invoke(*command(fashion, other, *TWO, "--seed", "1"))
    start = {
        f"{node.name}:{name}": array
        for node in load_network("embedded").nodes
        for name, array in node.parameters.items()
    }
    found = {each: load_file(each / "trained.safetensors") for each in (folder, alone, other)}

    def distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
        return sum(float(np.abs(first[key] - second[key]).sum(dtype=np.float64)) for key in start)

    # As a share of the way from the float network. A seed of its own, and so other batches, goes another way.
    way = distance(found[alone], start)
    assert distance(found[folder], found[alone]) < 0.02 * way
    assert distance(found[other], found[alone]) > 0.4 * way
    rows = [(each / "log.csv").read_text().splitlines()[1].split(",")[1:5] for each in (folder, alone)]
    np.testing.assert_allclose(*[[float(value) for value in row] for row in rows], rtol=2e-3)


def test_two_killed_processes_go_on_to_the_same_bits(
    fashion: Path, tmp_path: Path, both: tuple[Path, list[tuple[str, str]]]
) -> None:
    started = start_both(fashion, tmp_path, "--checkpoint-every", "1")
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert all(process.poll() is None for process in started), [process.communicate() for process in started]
        time.sleep(0.002)
    for process in started:
        process.kill()
        process.communicate()
    assert not (tmp_path / "trained.safetensors").exists()
    finish(start_both(fashion, tmp_path, "--resume"))
    for name in ("trained.safetensors", "program.safetensors", "result.json"):
        assert (tmp_path / name).read_bytes() == (both[0] / name).read_bytes()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_folder_of_images_trains(fashion: Path, tmp_path: Path) -> None:
    """Class folders of pictures of another size, from the command to its program."""
    found = load_calibration_set()
    assert found.labels is not None
    for index, label in enumerate(found.labels[:24]):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(found.images[index, ..., 0]).resize((40, 36))
        picture.save(tmp_path / "pictures" / str(label) / f"{index}.png")
    folder = tmp_path / "out"
    more = ("--epochs", "1", "--no-dgd", "--workers", "1", "--on", str(tmp_path / "pictures"))
    output = invoke(*command(tmp_path / "pictures", folder, *more))
    assert "top-1 on 24 images: float" in output
    (loss,) = re.findall(r"^epoch 1/1: loss (\S+)$", output, re.MULTILINE)  # no terminal: a line an epoch
    row = (folder / "log.csv").read_text().splitlines()[1].split(",")
    assert float(loss) == pytest.approx(float(row[1]), abs=6e-5)
    _, training = load_trained(folder / "trained.safetensors")
    assert (training["training_images"], training["augmentation"]) == (24, "flip,crop=0.08")
    assert load_program(folder / "program.safetensors").recipe == "q-vit 2/2/2"


def test_swin_trains_to_a_program(fashion: Path, tmp_path: Path) -> None:
    """Windows, shifts and patch merging through training, the trained file and both executors."""
    arguments = command(fashion, tmp_path, "--epochs", "1", "--bits", "3", "--on-images", "2")
    arguments[1] = "embedded-swin"
    invoke(*arguments)
    calibration, training = load_trained(tmp_path / "trained.safetensors")
    assert (training["network"], training["recipe"]) == ("embedded-swin", "q-vit 3/3/3")
    start = load_network("embedded-swin")
    for name in ("layers.0.blocks.1.attn.qkv", "layers.1.downsample.reduction"):
        before, after = (graph[name].parameters["weight"] for graph in (start, calibration.graph))
        assert not np.array_equal(before, after)
    images = load_calibration_set().images[:2]
    program = load_program(tmp_path / "program.safetensors")
    logits = [
        Executor(each, backend).predict(images)
        for each, backend in ((program, "numba"), (program, "reference"), (lower(calibration), "numba"))
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch", "1"), "batch must be 2 or more"),
        (("--batch", "33"), "a batch of 33 is larger than the 32 training images; lower --batch"),
        (("--epochs", "0"), "epochs must be 1 or more"),
        (("--bits", "1"), "must have between 2 and 8 bits"),
        (
            ("--recipe", "adalog"),
            "training takes signed weights with a scale an output channel; use --recipe q-vit, or",
        ),
        (("--recipe", "fq-vit", "--irm"), "recipe fq-vit has no irm"),
        (("--augment", "rotate"), "'rotate' is not one of"),
        (("--device", "gpu"), "--device gpu: there is no such device here; choose cpu, cuda or cuda:N (GPU number N)"),
        (("--device", "cuda:99"), "--device cuda:99: torch cannot use it ("),
        (("--resume",), "there is no checkpoint to resume; leave --resume out"),
    ],
)
def test_bad_options(more: tuple[str, ...], message: str, fashion: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, command(fashion, tmp_path / "out", *more))
    assert isinstance(result.exception, HwsimError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


# --- many runs


def test_runs_of_an_ablation() -> None:
    chosen = runs("embedded,embedded-swin", "4, 2", "baseline,irm+dgd", "0,1,2")
    assert len(chosen) == len({run.label for run in chosen}) == 24
    assert Run("embedded-swin", "2", "irm+dgd", 1) in chosen
    for arguments in (
        ("tiny", "4", "irm", "0"),
        ("embedded", "9", "irm", "0"),
        ("embedded", "4", "drm", "0"),
        ("embedded", "4", "irm", "x"),
    ):
        with pytest.raises(HwsimError, match="ablation: the"):
            runs(*arguments)


def ablation_in(folder: Path, **changes: Any) -> Ablation:
    values: dict[str, Any] = {
        "settings": SETTINGS,
        "device": "cpu",
        "speed": "none",
        "data": None,
        "images": None,
        "calibration_images": 8,
        "on_images": None,
    }
    return Ablation(folder, **{**values, **changes})


def test_table_of_an_ablation(tmp_path: Path) -> None:
    chosen = runs("embedded", "4,2", "baseline,irm", "0,1,2")
    ablation = ablation_in(tmp_path)
    with pytest.raises(HwsimError, match="no run is done"):
        frame(ablation, chosen)
    for run, (fake, integer) in zip(
        [Run("embedded", "2", "irm", seed) for seed in (0, 1, 2)],
        ((90.0, 89.5), (91.0, 91.0), (92.0, None)),
        strict=True,
    ):
        Accuracy(100, 94.0, fake, integer).save(ablation.folder_of(run))
    Accuracy(100, 94.0, 80.0).save(ablation.folder_of(Run("embedded", "4", "baseline", 2)))
    results = frame(ablation, chosen)
    assert len(results.runs) == 4
    row = results.table.set_index(["bits", "parts"]).loc[(2, "irm")]
    assert (row["seeds"], row["fake-quantized"], row["spread"], row["below float"]) == (3, 91.0, 1.0, 3.0)
    assert (row["integer"], row["integer below fake-quantized"]) == (90.25, 0.25)
    text = markdown(results.table)
    assert "| embedded | 2 | irm | 3 | 94.00 | 91.00 | 1.00 | 90.25 |" in text
    assert "| embedded | 4 | baseline | 1 | 94.00 | 80.00 |  |  |  | 14.00 |  |" in text
    (ablation.folder_of(chosen[0]) / "result.json").parent.mkdir(exist_ok=True)
    (ablation.folder_of(chosen[0]) / "result.json").write_text("{")
    with pytest.raises(HwsimError, match=r"result\.json: damaged"):
        frame(ablation, chosen)


def test_runs_are_not_repeated_and_not_mixed(fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(fashion, data)
    options = [
        *("qat-ablation", "--widths", "2", "--seeds", "0", "--parts", "irm", "--epochs", "1", "--batch", "8"),
        *("--calibration-images", "8", "--on-images", "20", "--device", "cpu", "--data", str(data)),
        *("-o", str(out)),
    ]
    output = invoke(*options)
    assert "Ablation of Q-ViT" in output and "embedded-2bit-irm-seed0: done" in output
    folder = out / "embedded-2bit-irm-seed0"
    assert Accuracy.load(folder) is not None and (folder / "program.safetensors").exists()
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(
        "concurrent.futures.ProcessPoolExecutor.submit", lambda *arguments: pytest.fail("trained again")
    )
    assert "done" not in invoke(*options)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == written
    result = CliRunner().invoke(cli, [*options, "--lr", "1e-3"])
    assert "its runs have learning rate 0.0002, not 0.001; give another folder" in str(result.exception)
    settings = json.loads((out / "settings.json").read_text())
    for field, message in (
        ("weights_of_embedded", "its runs have weights of embedded other, not "),
        ("training_data_of_embedded", "its runs have training data of embedded other, not "),
    ):
        (out / "settings.json").write_text(json.dumps({**settings, field: "other"}))
        with pytest.raises(HwsimError, match=message):
            CliRunner().invoke(cli, options, catch_exceptions=False)
    # As written before there were these fields.
    old = {field: value for field, value in settings.items() if not field.endswith("_of_embedded")}
    (out / "settings.json").write_text(json.dumps(old))
    with pytest.raises(HwsimError, match="does not say which data its runs saw"):
        CliRunner().invoke(cli, options, catch_exceptions=False)
    (out / "settings.json").write_text(json.dumps(settings))
    # Another image in the same folder.
    place = data / f"{IDX_NAMES[0]}.gz"
    content = bytearray(gzip.decompress(place.read_bytes()))
    content[-400] ^= 1
    place.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(HwsimError, match=r"its runs have training data of embedded .*, not .*; give another folder"):
        CliRunner().invoke(cli, options, catch_exceptions=False)
    # Another network beside them is welcome.
    ablation_in(tmp_path / "two", data=fashion).claim(["embedded"])
    ablation_in(tmp_path / "two", data=fashion).claim(["embedded-swin"])
    names = {field for field in json.loads((tmp_path / "two" / "settings.json").read_text()) if "_of_" in field}
    kinds = ("weights_of", "training_data_of")
    assert names == {f"{kind}_{network}" for kind in kinds for network in ("embedded", "embedded-swin")}
