"""Bad input as users meet it on the command line: one clear line, status 2, nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import small_model
from golden.errors import HwsimError
from hwsim.cli import main
from hwsim.data import find_images, load_images
from hwsim.networks.graph import FloatGraph
from hwsim.networks.load import known_models
from hwsim.networks.vision_transformer import _check_structure, vision_transformer_graph
from hwsim.program import Program, save_program
from hwsim.quantize.calibrate import calibrate
from hwsim.quantize.recipe import fq_vit


@pytest.fixture(scope="module")
def deit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DeiT-Tiny checkpoint, for what is refused before anything runs."""
    import timm
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("checkpoint") / "deit_tiny_patch16_224.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), path)
    return path


def changed(source: Path, target: Path, **tensors: Any) -> Path:
    """A copy of a checkpoint with tensors replaced, or dropped for None."""
    from safetensors.torch import load_file, save_file

    state = {**load_file(source), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, target)
    return target


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """Run the command line; it must fail with one line and leave the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hwsim: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert sorted(folder.rglob("*")) == before
    return captured.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for wnid in ("n01440764", "n01443537"):
        (tmp_path / "photos" / wnid).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / wnid / f"{index}.png")
    return tmp_path / "photos"


def test_unknown_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["calibrate", "deit_huge", "-o", str(tmp_path / "x")], capsys, tmp_path)
    assert "'deit_huge' is neither a file, 'embedded' nor 'embedded-swin', nor a timm model" in message
    message = refused(["calibrate", "deit_tiny_patch16_224x"], capsys, tmp_path)
    assert re.search(r"did you mean deit_tiny_patch16_224 or (vit|deit)_\w+ or (vit|deit)_\w+\?", message)
    assert "did you mean embedded" in refused(["calibrate", "embeded"], capsys, tmp_path)
    assert "mean" not in refused(["calibrate", "yolo"], capsys, tmp_path)


def test_networks_that_are_suggested_are_taken() -> None:
    import timm
    import torch

    names = known_models()
    assert {"deit_tiny_patch16_224", "deit_base_distilled_patch16_384", "swin_tiny_patch4_window7_224"} < set(names)
    # One of each family; the others differ in their sizes.
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_384"):
        with torch.device("meta"):
            model = timm.create_model(name)
        _check_structure(model, name, "distilled" in name)
    assert not [name for name in names if timm.get_pretrained_cfg(name).num_classes == 0]


def test_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    message = refused(["calibrate", str(path), "--data", "."], capsys, tmp_path)
    assert message == f"hwsim: {path}: there is no such checkpoint\n"
    path.write_bytes(b"not a checkpoint")
    message = refused(["calibrate", str(path), "--data", "."], capsys, tmp_path)
    assert "does not begin with a timm model name; name it with --architecture" in message


def test_embedded_networks_take_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["calibrate", "--checkpoint", "README.md", "--images", "16"], capsys, tmp_path)
    assert "embedded has its own weights; leave --checkpoint out, or name the timm network" in message


def test_checkpoint_that_does_not_fit(
    deit_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def message(**tensors: Any) -> str:
        path = changed(deit_checkpoint, tmp_path / deit_checkpoint.name, **tensors)
        return refused(["calibrate", str(path), "--data", str(tmp_path), "-o", str(tmp_path / "x")], capsys, tmp_path)

    assert "blocks.3.mlp.fc1.bias has shape [7], deit_tiny_patch16_224 needs [768]" in message(
        **{"blocks.3.mlp.fc1.bias": torch.zeros(7)}
    )
    assert "lacks 1 keys such as blocks.2.norm1.weight" in message(**{"blocks.2.norm1.weight": None})
    assert "has 1 unknown keys such as head_dist.weight" in message(
        head_dist=None, **{"head_dist.weight": torch.ones(2)}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    deit_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    import torch

    bad = torch.zeros(768)
    bad[5] = value
    path = changed(deit_checkpoint, tmp_path / deit_checkpoint.name, **{"blocks.3.mlp.fc1.bias": bad})
    message = refused(["calibrate", str(path), "--data", str(tmp_path)], capsys, tmp_path)
    assert f"blocks.3.mlp.fc1.bias[5] is {value}" in message


def test_checkpoint_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"deit_tiny_patch16_224{suffix}"
        path.write_bytes(b"not a checkpoint")
        assert "not a readable checkpoint" in refused(["calibrate", str(path), "--data", "."], capsys, tmp_path)


def test_activations_that_are_not_finite(small_images: np.ndarray) -> None:
    """Finite weights whose products overflow: the first bad activation is named."""
    import torch

    model = small_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight.fill_(3e38)
    graph = vision_transformer_graph(model, "wild", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(HwsimError, match=r"wild: the activation blocks\.1\.mlp\.fc1\[0, \d+, \d+\] is not finite"):
        calibrate(graph, small_images, fq_vit())


def test_folders_of_images(
    deit_checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(folder: Path) -> str:
        return refused(["calibrate", str(deit_checkpoint), "--data", str(folder)], capsys, tmp_path)

    assert "there is no such image folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images in it" in message(tmp_path / "empty")
    (photos / "n01440764" / "broken.png").write_bytes(b"\x89PNG but no more")
    assert "broken.png: not a readable image" in message(photos)
    assert "give calibration images with --data" in refused(["calibrate", str(deit_checkpoint)], capsys, tmp_path)


def test_class_folders(photos: Path) -> None:
    found = load_images(find_images(photos), (224, 224, 3), crop_ratio=0.875, classes=1000)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1]  # tench and goldfish open ImageNet's list
    assert found.images.shape == (4, 224, 224, 3)
    (photos / "n99999999").mkdir()
    (photos / "n01440764" / "0.png").rename(photos / "n99999999" / "0.png")
    with pytest.raises(HwsimError, match="n99999999 is not an ImageNet-1k wnid"):
        load_images(find_images(photos), (224, 224, 3), classes=1000)
    (photos / "n99999999").rename(photos / "1234")
    for wnid in ("n01440764", "n01443537"):
        (photos / wnid).rename(photos / wnid[-2:])
    with pytest.raises(HwsimError, match="class 1234 is past the network's 1000 classes"):
        load_images(find_images(photos), (224, 224, 3), classes=1000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--bits", "8/8"], "bits must be one integer, or three integers such as 8/8/4"),
        (["--bits", "8/9/4"], "activations must have between 2 and 8 bits, not 9"),
        (["--bits", "8/8/8", "--attention", "lis"], "takes 1 to 5 attention bits"),
        (["--attention", "log3"], "attention quantizer must be one of auto, lis, uniform, adalog"),
        (["--recipe", "fq-vat"], "unknown recipe 'fq-vat'"),
        (["--set", "hidden=9"], "there is no field 'hidden'"),
        (["--set", "hidden_bits=wide"], "hidden_bits must be an integer, not 'wide'"),
        (["--set", "mantissa_bits=3"], "mantissa_bits must be an integer between 4 and 24, not 3"),
        (["--set", "accumulator_bits=12"], "the accumulator could overflow"),
        (["--set", "overflow=ignore"], "overflow must be one of prove, wrap, saturate"),
    ],
)
def test_recipe_out_of_range(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "--images", "4", *options, "-o", str(tmp_path / "x")]
    assert expected in refused(arguments, capsys, tmp_path)


def test_program_files(
    small_program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    path = tmp_path / "small.program"
    save_program(small_program, path)
    whole = path.read_bytes()

    def message(*arguments: str) -> str:
        return refused([*arguments, "--program", str(path)], capsys, tmp_path)

    assert "give images with --data" in message("evaluate")
    assert "the program has no layer 'blocks.7'" in message("dump", "--layer", "blocks.7", "--data", str(photos))
    assert "the program has no unit 'gelu'" in message("dump", "--unit", "gelu", "--data", str(photos))
    assert "there is no hardware unit 'conv'" in message("rtl", "conv")
    assert "2 class folders for a network of 7 classes" in message("evaluate", "--data", str(_renamed(photos)))
    path.write_bytes(whole[:-100])
    assert "small.program: truncated" in message("show")
    path.write_bytes(whole[:-100] + bytes(byte ^ 1 for byte in whole[-100:]))
    assert "was altered or damaged" in message("show")
    path.unlink()
    assert "there is no such program file" in message("show")


def test_folders_as_programs(
    small_program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for command in (["evaluate", "--program"], ["cost"]):
        message = refused([*command, str(run)], capsys, tmp_path)
        assert f"{run}: is a folder without program.safetensors; name a file" in message
    (run / "checkpoint.safetensors").write_bytes(b"of a run that was stopped")
    for command in (["evaluate", "--program"], ["audit", "--trained"], ["qat-figures"]):
        message = refused([*command, str(run)], capsys, tmp_path)
        assert f"{run}: the training is not finished" in message and "the same `hwsim train` command" in message
    save_program(small_program, run / "program.safetensors")
    main(["show", "--program", str(run)])
    assert "blocks.0.attn.scores" in capsys.readouterr().out


def test_fewer_images_and_no_labels_are_told(
    small_program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], photos: Path
) -> None:
    path = tmp_path / "small.program"
    save_program(small_program, path)
    evaluate = ["evaluate", "--program", str(path), "--backend", "reference", "--data"]
    main([*evaluate, str(photos / "n01440764"), "--images", "16"])
    told = capsys.readouterr()
    assert "top-1" not in told.out
    assert "hwsim: 2 images, not the 16 asked for" in told.err
    assert "n01440764 has no labels, so no top-1 is measured" in told.err
    for number, folder in enumerate(sorted(photos.iterdir())):
        folder.rename(photos / str(number))
    main([*evaluate, str(photos), "--images", "4"])
    told = capsys.readouterr()
    assert "top-1" in told.out and "hwsim:" not in told.err
    # Refused behind the images, so that nothing is calibrated here.
    for command in ("calibrate", "audit"):
        arguments = [command, "--data", str(photos), "--images", "5", "--set", "accumulator_bits=12"]
        with pytest.raises(SystemExit):
            main(arguments)
        assert "hwsim: 4 calibration images, not the 5 asked for" in capsys.readouterr().err


def test_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the calibration, which may take an hour."""
    monkeypatch.setattr("hwsim.cli.calibrate.calibrated", None)
    assert f"{tmp_path}: is a folder" in refused(["calibrate", "-o", str(tmp_path)], capsys, tmp_path)
    (tmp_path / "file").touch()
    message = refused(["calibrate", "-o", str(tmp_path / "file" / "x")], capsys, tmp_path)
    assert f"{tmp_path / 'file'} is no folder that can be written" in message
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").touch()
    assert f"{tmp_path / 'build'} is no folder" in refused(["calibrate"], capsys, tmp_path)


def _renamed(photos: Path) -> Path:
    for folder, name in zip(sorted(photos.iterdir()), ("cat", "dog"), strict=True):
        folder.rename(photos / name)
    return photos


def test_vector_files(
    small_program: Program, small_images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from golden.vectors import read_vectors, write_vectors
    from hwsim.dump import dump_vectors, select_nodes

    nodes = select_nodes(small_program, ["blocks.0.norm1"])
    with pytest.raises(HwsimError, match="image 24 is not in the data set of 24"):
        dump_vectors(small_program, small_images, [24], nodes)
    (vectors,) = dump_vectors(small_program, small_images, [3], nodes)
    path = tmp_path / "norm1.safetensors"
    write_vectors(path, vectors)
    assert np.array_equal(read_vectors(path, verify=True).output, vectors.output)
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    assert "norm1.safetensors" in refused(["cosim", "--vectors", str(path)], capsys, tmp_path)


def test_image_indices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_program: Program, photos: Path
) -> None:
    path = tmp_path / "small.program"
    save_program(small_program, path)
    arguments = ["dump", "--program", str(path), "--data", str(photos), "--images", "two"]
    assert "images must be indices such as 0,3,10-12" in refused(arguments, capsys, tmp_path)


@pytest.mark.parametrize(
    ("changes", "block"),
    [
        ({"init_values": 1e-5}, r"blocks\.0\.ls1 is a LayerScale"),
        ({"qk_norm": True}, r"blocks\.0\.attn\.q_norm is a"),
        ({"global_pool": "avg"}, "global_pool is pooling by 'avg'|fc_norm is a"),
        ({"reg_tokens": 2}, "cls_token is not the only prefix token"),
        ({"pre_norm": True}, "norm_pre is a"),
    ],
)
def test_unknown_blocks_are_named(changes: dict[str, Any], block: str) -> None:
    with pytest.raises(HwsimError, match=rf"odd: block ({block}).*does not know"):
        vision_transformer_graph(small_model(**changes), "odd", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_other_architectures_are_refused() -> None:
    import timm

    with pytest.raises(HwsimError, match="a ResNet is not a network this package knows"):
        vision_transformer_graph(timm.create_model("resnet18"), "resnet18", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_no_images(small_graph: FloatGraph) -> None:
    with pytest.raises(HwsimError, match="at least one image"):
        calibrate(small_graph, np.zeros((0, 16, 16, 3), np.uint8), fq_vit())
    with pytest.raises(HwsimError, match=r"small takes uint8 images of shape \[N, 16, 16, 3\]"):
        calibrate(small_graph, np.zeros((1, 28, 28, 1), np.uint8), fq_vit())
