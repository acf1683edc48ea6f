"""Programs: checked when built, one file, whole or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from conftest import quantize_small
from golden.errors import HwsimError
from golden.spec import IntFormat
from hwsim.execute import Executor
from hwsim.networks.graph import FloatGraph
from hwsim.program import Node, Program, load_program, save_program
from hwsim.quantize.calibrate import Calibration


def replaced(program: Program, name: str, node: Node) -> Program:
    return Program(
        tuple(node if old.name == name else old for old in program.nodes), program.image_size, program.header
    )


def test_round_trip_keeps_every_integer(quantized: tuple[Calibration, Program], tmp_path: Path) -> None:
    _, program = quantized
    path = tmp_path / "new folder" / "a.program"
    save_program(program, path)
    again = load_program(path)
    assert [node.name for node in again.nodes] == [node.name for node in program.nodes]
    for ours, theirs in zip(program.nodes, again.nodes, strict=True):
        assert (ours.spec, ours.inputs) == (theirs.spec, theirs.inputs)
        assert ours.constants.keys() == theirs.constants.keys()
        for name, array in ours.constants.items():
            assert array.dtype == theirs.constants[name].dtype
            assert np.array_equal(array, theirs.constants[name])
    assert again.header == json.loads(json.dumps(program.header))
    assert list(path.parent.iterdir()) == [path]


def test_no_float_is_in_the_program(quantized: tuple[Calibration, Program], tmp_path: Path) -> None:
    path = tmp_path / "a.program"
    save_program(quantized[1], path)
    assert {array.dtype.kind for array in load(path.read_bytes()).values()} <= {"i", "u"}
    for node in quantized[1].nodes:
        assert "." not in json.dumps(node.spec.to_dict())


def test_calibration_is_deterministic(small_graph: FloatGraph, small_images: np.ndarray, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_program(quantize_small(small_graph, small_images, "8/8/4")[1], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_executors_agree_on_every_point(quantized: tuple[Calibration, Program], small_images: np.ndarray) -> None:
    _, program = quantized
    logits, fast = Executor(program, "numba").run(small_images, keep=None)
    expected, slow = Executor(program, "reference").run(small_images, keep=None)
    assert fast.keys() == slow.keys() == {node.name for node in program.nodes}
    for name, array in slow.items():
        assert array.shape[1:] == program.shape(name)
        assert np.array_equal(fast[name], array), name
    assert np.array_equal(logits, expected)
    assert len(np.unique(logits, axis=0)) > 10  # a network that answers


def test_batching_does_not_change_bits(small_program: Program, small_images: np.ndarray) -> None:
    executor = Executor(small_program)
    whole = executor.predict(small_images)
    assert np.array_equal(whole, executor.predict(small_images, batch=5))
    assert np.array_equal(whole, executor.run(small_images)[0])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(small_program: Program, tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.program"
    save_program(small_program, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(HwsimError, match=r"a\.program: .*calibrate again"):
        load_program(path)


def test_any_flipped_bit_is_refused(small_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.program"
    save_program(small_program, path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(HwsimError, match=r"a\.program: "):
            load_program(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"x": np.zeros(3, np.float32)}))
    with pytest.raises(HwsimError, match="not a program"):
        load_program(path)
    with pytest.raises(HwsimError, match="no such program file"):
        load_program(tmp_path / "missing")


def test_unwritable_folder_leaves_nothing(small_program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HwsimError, match="cannot be written"):
        save_program(small_program, tmp_path / "file" / "a.program")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_narrow_accumulator_is_refused(small_program: Program) -> None:
    node = small_program["blocks.0.mlp.fc1"]
    needed = node.spec.requantize.input.bits
    narrow = dataclasses.replace(node.spec.requantize, input=IntFormat(needed - 1, signed=True))
    with pytest.raises(HwsimError, match=rf"blocks\.0\.mlp\.fc1.*use at least {needed}"):
        replaced(
            small_program, node.name, dataclasses.replace(node, spec=dataclasses.replace(node.spec, requantize=narrow))
        )


def test_wrapping_accumulator_is_allowed_and_changes_results(small_program: Program, small_images: np.ndarray) -> None:
    node = small_program["blocks.0.mlp.fc1"]
    narrow = dataclasses.replace(node.spec.requantize, input=IntFormat(12, signed=True))
    spec = dataclasses.replace(node.spec, requantize=narrow, overflow="wrap")
    wrapped = replaced(small_program, node.name, dataclasses.replace(node, spec=spec))
    fast = Executor(wrapped).run(small_images, keep=None)[1]
    slow = Executor(wrapped, "reference").run(small_images, keep=None)[1]
    assert all(np.array_equal(fast[name], slow[name]) for name in slow)
    plain = Executor(small_program).run(small_images, keep=[node.name])[1]
    assert not np.array_equal(plain[node.name], fast[node.name])


def test_graph_faults_name_the_node(small_program: Program) -> None:
    node = small_program["blocks.1.norm1"]
    with pytest.raises(HwsimError, match=r"blocks\.1\.norm1: input 'nowhere'"):
        replaced(small_program, node.name, dataclasses.replace(node, inputs=("nowhere",)))
    constants = {name: array for name, array in node.constants.items() if name != "gamma"}
    with pytest.raises(HwsimError, match=r"blocks\.1\.norm1: .*'gamma' is missing"):
        replaced(small_program, node.name, dataclasses.replace(node, constants=constants))
    with pytest.raises(HwsimError, match=r"blocks\.1\.norm1: takes unsigned 8-bit codes, but .*mlp\.fc1 gives"):
        replaced(small_program, node.name, dataclasses.replace(node, inputs=("blocks.0.mlp.fc1",)))
    with pytest.raises(HwsimError, match=r"blocks\.1\.norm1: layernorm: rows of 48"):
        replaced(small_program, node.name, dataclasses.replace(node, inputs=("blocks.0.mlp.gelu",)))
    qkv = small_program["blocks.0.attn.qkv"]
    weight = qkv.constants["weight"].astype(np.int64) + 100
    with pytest.raises(HwsimError, match="must be between -128 and 127"):
        replaced(small_program, qkv.name, dataclasses.replace(qkv, constants={**qkv.constants, "weight": weight}))


def test_wrong_images_are_refused(small_program: Program) -> None:
    for images in (
        np.zeros((1, 16, 16, 1), np.uint8),
        np.zeros((1, 15, 16, 3), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((1, 16, 16, 3), np.float32),
    ):
        with pytest.raises(HwsimError, match=r"small takes uint8 images of shape \[N, 16, 16, 3\]"):
            Executor(small_program).predict(images)


def test_unknown_executor_is_refused(small_program: Program) -> None:
    for name in ("tpu", "numba:1"):
        with pytest.raises(HwsimError, match="choose one of numba, reference, cuda"):
            Executor(small_program, name)
