"""Packed integers and the files that hold them: every width, old files, and damage of every kind."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from golden import packing
from golden.errors import HwsimError
from golden.linear import LinearSpec
from golden.packing import pack, packed_size, unpack
from golden.spec import IntFormat
from golden.tensor_file import METADATA_KEY, load_tensors, save_tensors
from hwsim.cli import main
from hwsim.execute import Executor
from hwsim.networks.embedded import assets_folder, load_test_set
from hwsim.program import PURPOSE, Program, load_program, save_program
from hwsim.shipped import LARGEST_BYTES, SUMS, load_shipped, ship, shipped_programs

FORMATS = [
    IntFormat(bits, signed) for bits in (1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 31, 32, 33, 63) for signed in (False, True)
]


def values(format: IntFormat, count: int) -> np.ndarray:
    random = np.random.default_rng(format.bits)
    drawn = random.integers(format.minimum, format.maximum, count, endpoint=True)
    drawn[: min(count, 2)] = [format.minimum, format.maximum][: min(count, 2)]
    return drawn


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 7), (2, 3, 11)])
def test_every_width_comes_back(format: IntFormat, shape: tuple[int, ...]) -> None:
    array = values(format, int(np.prod(shape))).reshape(shape)
    content = pack(array, format)
    again = unpack(content, format, shape)
    assert len(content) == packed_size(array.size, format)
    assert again.dtype == format.dtype
    assert again.shape == shape
    assert np.array_equal(again, array)
    # What the bytes are, said with one large integer.
    number = sum((int(value) % (1 << format.bits)) << (place * format.bits) for place, value in enumerate(array.flat))
    assert int.from_bytes(content, "little") == number


@given(st.integers(1, 20), st.integers(0, 300), st.booleans(), st.integers(0, 2**32 - 1))
def test_parts_join_without_a_gap(bits: int, count: int, signed: bool, seed: int) -> None:
    format = IntFormat(bits, signed)
    array = np.random.default_rng(seed).integers(format.minimum, format.maximum, count, endpoint=True)
    with pytest.MonkeyPatch.context() as patch:
        whole = pack(array, format)
        patch.setattr(packing, "_AT_ONCE", 16)
        assert pack(array, format) == whole
        assert np.array_equal(unpack(whole, format, (count,)), array)


def test_two_codes_of_four_bits_and_four_of_two_share_a_byte() -> None:
    assert pack(np.array([1, 15]), IntFormat(4)) == bytes([0xF1])
    assert pack(np.array([-2, -1, 0, 1]), IntFormat(2, signed=True)) == bytes([0b01_00_11_10])


def test_wrong_bytes_are_refused() -> None:
    format = IntFormat(3)
    content = pack(np.array([1, 2, 3]), format)
    with pytest.raises(HwsimError, match="3 bytes for 3 integers of 3 bits, which take 2"):
        unpack(content + b"\0", format, (3,))
    with pytest.raises(HwsimError, match="the 7 unused bits of the last byte are not 0"):
        unpack(bytes([content[0], content[1] | 0x80]), format, (3,))
    with pytest.raises(HwsimError, match="must be between 0 and 7"):
        pack(np.array([8]), format)


# --- files ---

ARRAYS = {"b": np.arange(-4, 4, dtype=np.int8), "a": np.arange(12, dtype=np.uint16).reshape(3, 4)}
WIDTHS = {"b": IntFormat(4, signed=True), "a": IntFormat(12)}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    save_tensors(path, "numbers", 2, {"x": 1}, ARRAYS, WIDTHS)
    return path


def altered(
    path: Path, change: Callable[[dict[str, Any]], None], content: Callable[[bytes], bytes] | None = None
) -> None:
    """Write the file again with a changed manifest and a right seal."""
    with safe_open(path, framework="np") as file:
        manifest = json.loads(file.metadata()[METADATA_KEY])
        stream = file.get_tensor("packed").tobytes()
    del manifest["sha256"]
    if content is not None:
        stream = content(stream)
        manifest["packed"] = hashlib.sha256(stream).hexdigest()
    change(manifest)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    metadata = {METADATA_KEY: json.dumps(manifest)}
    path.write_bytes(save({"packed": np.frombuffer(stream, np.uint8)}, metadata=metadata))


def read(path: Path) -> dict[str, np.ndarray]:
    return load_tensors(path, "numbers", (1, 2), "write it again")[1]


def test_packed_arrays_come_back_in_their_smallest_type(packed: Path) -> None:
    arrays = read(packed)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    altered(packed, lambda manifest: None)
    assert np.array_equal(read(packed)["b"], ARRAYS["b"])  # what the tests below change is read otherwise


@pytest.mark.parametrize(
    ("change", "content", "said"),
    [
        (lambda m: m["arrays"].update(b=["s4", 9]), None, "packed array 'b': 4 bytes for 9 integers"),
        (lambda m: m["arrays"].update(b=["s4", 6]), None, "have 22 bytes, the manifest describes 21"),
        (lambda m: m["arrays"].update(b=["x4", 8]), None, "array 'b' has the width 'x4'"),
        (lambda m: m["arrays"].update(b=["s64", 8]), None, "between 1 and 63 bits, not 64"),
        (lambda m: m["arrays"].update(b=["s4", -8]), None, r"array 'b' has the shape \[-8\]"),
        (lambda m: m["arrays"].update(b=[4, 8]), None, "malformed manifest"),
        (lambda m: m["arrays"].update(b=None), None, "malformed manifest"),
        (lambda m: m["arrays"].update(b=["s3", 8]), None, "have 22 bytes, the manifest describes 21"),
        (lambda m: m["arrays"].pop("b"), None, "have 22 bytes, the manifest describes 18"),
        (lambda m: None, lambda stream: stream + b"\0", "have 23 bytes, the manifest describes 22"),
        (lambda m: m.update(packed="0"), None, "checksum of the packed arrays"),
        (lambda m: m.update(packed=7), None, "checksum of the packed arrays"),
        (lambda m: m.update(format_version=3), None, "format_version is 3, this package reads 1 and 2"),
        (lambda m: m.pop("packed"), None, "malformed manifest"),
    ],
)  # fmt: skip
def test_files_packed_wrong_are_refused(
    packed: Path, change: Callable[[dict[str, Any]], None], content: Callable[[bytes], bytes] | None, said: str
) -> None:
    altered(packed, change, content)
    with pytest.raises(HwsimError, match=rf"file\.safetensors: .*({said}).*; write it again"):
        read(packed)


def test_every_flipped_bit_of_the_packed_arrays_is_seen(packed: Path) -> None:
    content = packed.read_bytes()
    for place in range(8 * (len(content) - 22), 8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        packed.write_bytes(bytes(damaged))
        with pytest.raises(HwsimError, match="checksum of the packed arrays does not match"):
            read(packed)


# --- programs ---


def test_a_program_of_version_1_is_read(small_program: Program, tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    save_program(small_program, new)
    header, arrays = load_tensors(new, PURPOSE, 2, "")
    save_tensors(old, PURPOSE, 1, header, arrays)
    assert new.stat().st_size < old.stat().st_size
    for ours, theirs in zip(load_program(old).nodes, small_program.nodes, strict=True):
        assert ours.spec == theirs.spec
        assert all(np.array_equal(ours.constants[name], array) for name, array in theirs.constants.items())


def test_a_constant_wider_than_its_spec_is_refused(small_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.program"
    save_program(small_program, path)
    header, arrays = load_tensors(path, PURPOSE, 2, "")
    wide = dict.fromkeys(arrays, IntFormat(40, signed=True))
    arrays["blocks.0.attn.qkv:weight"] = arrays["blocks.0.attn.qkv:weight"].astype(np.int64) + 100
    save_tensors(path, PURPOSE, 2, header, arrays, wide)
    with pytest.raises(HwsimError, match=r"a\.program: blocks\.0\.attn\.qkv: constant 'weight' must be between -128"):
        load_program(path)


def test_shipped_programs_are_those_of_their_sums() -> None:
    readme = (assets_folder() / "README.md").read_text()
    assert set(shipped_programs()) == {"embedded-q-vit-4", "embedded-q-vit-2"}
    for name, digest in shipped_programs().items():
        program = load_shipped(name)
        bits = int(name[-1])
        assert (program.network, program.recipe) == ("embedded", f"q-vit {bits}/{bits}/{bits}")
        assert {node.spec.weight_bits for node in program.nodes if isinstance(node.spec, LinearSpec)} == {bits, 8}
        path = assets_folder() / f"{name}.safetensors"
        assert path.stat().st_size <= 300_000
        assert f"| `{path.name}` | {path.stat().st_size} | `{digest}` |" in readme


def test_shipped_programs_are_as_accurate_as_the_docs_say() -> None:
    """Right answers on the first 1 000 test images, counted when they were shipped."""
    test = load_test_set().head(1000)
    assert test.labels is not None
    correct = {}
    for name in shipped_programs():
        logits = Executor(load_shipped(name)).predict(test.images)
        correct[name] = int((logits.argmax(axis=1) == test.labels).sum())
    assert correct == {"embedded-q-vit-2": 923, "embedded-q-vit-4": 947}


def test_ship_and_load(small_program: Program, tmp_path: Path) -> None:
    path = ship(small_program, "small-4", tmp_path)
    assert path.read_bytes() == ship(small_program, "small-4", tmp_path).read_bytes()
    assert {each.name for each in tmp_path.iterdir()} == {SUMS, "small-4.safetensors"}
    loaded = load_shipped("small-4", tmp_path)
    assert [node.spec for node in loaded.nodes] == [node.spec for node in small_program.nodes]
    with pytest.raises(HwsimError, match="no shipped program of this name; shipped: small-4"):
        load_shipped("small-2", tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(HwsimError, match=r"small-4\.safetensors: SHA-256 is .*reinstall"):
        load_shipped("small-4", tmp_path)
    path.unlink()
    with pytest.raises(HwsimError, match=r"small-4\.safetensors: cannot be read"):
        load_shipped("small-4", tmp_path)
    (tmp_path / SUMS).write_text("[]")
    with pytest.raises(HwsimError, match=r"programs\.json: cannot be read"):
        shipped_programs(tmp_path)


def test_a_program_too_large_is_not_shipped(
    small_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LARGEST_BYTES == 300_000
    monkeypatch.setattr("hwsim.shipped.LARGEST_BYTES", 1000)
    with pytest.raises(HwsimError, match=r"small-4: the program takes \d+ bytes, a shipped one 1000 at most"):
        ship(small_program, "small-4", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_ships_nothing(
    earlier: bool, small_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a program without its sum nor a sum without its program, wherever a write or a rename fails."""
    ship(small_program, "other", tmp_path)
    if earlier:
        ship(small_program, "small-4", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = Program(small_program.nodes, small_program.image_size, {**small_program.header, "classes": 6})
    plain, left = os.replace, 0

    def fail(old: Path, new: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0 and not failed:
            failed.append(new)
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(old, new)

    monkeypatch.setattr(os, "replace", fail)
    # Two drafts are written; then the program takes its place, of an earlier one maybe, and at last the sums.
    for good in range(5 if earlier else 4):
        left, failed = good, list[Path]()
        with pytest.raises(HwsimError, match="No space left on device"):
            ship(changed, "small-4", tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert failed == [tmp_path / SUMS]
    ship(changed, "small-4", tmp_path)
    assert set(shipped_programs(tmp_path)) == {"other", "small-4"}
    assert load_shipped("small-4", tmp_path).header["classes"] == 6
    assert {path.name for path in tmp_path.iterdir()} == {SUMS, "other.safetensors", "small-4.safetensors"}


def shipping_tool(arguments: list[str], images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Run tools/ship_program.py on a folder that stands for the assets, with a few test images."""
    place = Path(__file__).parents[1] / "tools" / "ship_program.py"
    spec = importlib.util.spec_from_file_location("ship_program", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = load_test_set().head(images)
    monkeypatch.setattr("hwsim.shipped.assets_folder", lambda: tmp_path / "assets")
    monkeypatch.setattr("hwsim.networks.embedded.load_test_set", lambda: test)
    return CliRunner().invoke(module.ship_command, arguments)


def test_tool_ships_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = assets_folder() / "embedded-q-vit-2.safetensors"
    ran = shipping_tool(["mine", str(path)], 4, tmp_path, monkeypatch)
    assert ran.exit_code == 0, ran.output
    assert "embedded, q-vit 2/2/2: top-1 100.00 % of 4 images" in ran.output
    digest = hashlib.sha256((tmp_path / "assets" / "mine.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "assets" / SUMS).read_text()) == {"mine": digest}
    assert f"SHA-256 {digest}" in ran.output


def test_tool_ships_nothing_that_the_executors_disagree_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Executor.predict

    def off_by_one(self: Executor, images: np.ndarray, **options: Any) -> np.ndarray:
        return plain(self, images, **options) + (self.backend == "reference")

    monkeypatch.setattr(Executor, "predict", off_by_one)
    path = assets_folder() / "embedded-q-vit-2.safetensors"
    ran = shipping_tool(["mine", str(path)], 2, tmp_path, monkeypatch)
    assert isinstance(ran.exception, HwsimError)
    assert "the executors disagree; it is not shipped" in str(ran.exception)
    assert not (tmp_path / "assets").exists()


def test_commands_take_the_name_of_a_shipped_program(
    small_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ship(small_program, "small-4", tmp_path / "assets")
    monkeypatch.setattr("hwsim.shipped.assets_folder", lambda: tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    main(["show", "--program", "small-4"])
    assert "blocks.1.mlp.fc2" in capsys.readouterr().out
    main(["cost", "small-4", "--layers"])
    assert "blocks.1.mlp.fc2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "--program", "small-5"])
    said = capsys.readouterr().err
    assert (
        said == "hwsim: small-5: there is no such program file, and no shipped program of this name; shipped: small-4\n"
    )
