"""Golden vectors on disk: they read as written, verify, and come out as `$readmemh` files."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from vector_examples import EXAMPLES, GELU, IMAGES, NORM, PRODUCT, SOFTMAX, assert_same, assign, tamper

from golden.errors import HwsimError
from golden.vectors import read_vectors, verify_vectors, write_hex, write_vectors


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "softmax.safetensors"
    write_vectors(path, SOFTMAX)
    return path


# --- round trip ---


@pytest.mark.parametrize("vectors", EXAMPLES, ids=lambda vectors: vectors.spec.kind)
def test_round_trip(tmp_path, vectors):
    path = tmp_path / "new" / "vectors.safetensors"
    write_vectors(path, vectors)
    assert_same(read_vectors(path, verify=True), vectors)
    assert list(path.parent.iterdir()) == [path]


def test_two_writes_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_vectors(tmp_path / name, NORM)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_stranger_reads_the_manifest_and_the_arrays(tmp_path):
    """With safetensors alone: what the manifest says and that its checksums are plain SHA-256."""
    path = tmp_path / "vectors.safetensors"
    write_vectors(path, PRODUCT)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    manifest = json.loads(metadata["vit_hwsim"])
    seal = manifest.pop("sha256")
    assert seal == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert (manifest["purpose"], manifest["format_version"]) == ("golden vectors", 1)
    header = manifest["header"]
    assert {name: header[name] for name in ("network", "recipe", "layer", "unit", "images")} == {
        "network": "embedded",
        "recipe": "fq-vit 8/8/4",
        "layer": "blocks.1.attn.apply",
        "unit": "log2_matmul",
        "images": [4, 0, 17],
    }
    assert header["spec"]["code_bits"] == 4
    assert header["formats"]["inputs.0"] == [5, False]
    assert header["formats"]["accumulator"] == [27, True]
    assert set(arrays) == set(manifest["arrays"]) == {
        "constants.zero_v", "constants.multiplier", "constants.shift", "constants.zero_point",
        "inputs.0", "inputs.1", "output", "accumulator",
    }  # fmt: skip
    for name, array in arrays.items():
        assert manifest["arrays"][name] == {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        }
    assert arrays["accumulator"].dtype == np.int64
    assert arrays["constants.zero_v"].shape == ()


# --- verification ---


@pytest.mark.parametrize("vectors", EXAMPLES, ids=lambda vectors: vectors.spec.kind)
def test_verification_names_the_first_element_that_differs(vectors):
    verify_vectors(vectors)
    output = vectors.output.copy()
    index = (1, *(1 for _ in output.shape[2:]), 2)
    right = int(output[index])
    output[index] ^= 1
    row = ", ".join(str(i) for i in index[1:-1])
    message = (
        rf"{vectors.layer} \({vectors.spec.kind}\): output of image 0, row \[{row}\], element 2 is {right ^ 1}, "
        rf"but the spec gives {right} \(1 of {output[0].size} differ in this image\)"
    )
    with pytest.raises(HwsimError, match=message):
        verify_vectors(replace(vectors, output=output))


def test_verification_compares_the_accumulator_first():
    accumulator = PRODUCT.accumulator.copy()
    accumulator[2, 1, 6, 3] += 1
    with pytest.raises(HwsimError, match=r"accumulator of image 17, row \[1, 6\], element 3 is"):
        verify_vectors(replace(PRODUCT, accumulator=accumulator))


def test_verification_sees_a_changed_constant(written):
    tamper(written, change_arrays=assign("constants.c", value=np.array(1000)))
    read_vectors(written)
    with pytest.raises(HwsimError, match=r"softmax\.safetensors: blocks\.3\.attn\.softmax .* but the spec gives"):
        read_vectors(written, verify=True)


# --- bad values before anything is written ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ()}, "images must be one or more indices"),
        ({"images": (1, 2, True)}, "images must be one or more indices"),
        ({"network": ""}, "network must be a name"),
        ({"recipe": None}, "recipe must be a name"),
        ({"inputs": ()}, "takes 2 inputs, not 0"),
        ({"accumulator": np.zeros((3, 2, 7, 5), int)}, "accumulator must have shape"),
        ({"accumulator": np.full((3, 2, 7, 4), 2**26)}, "accumulator must be between -67108864 and 67108863"),
    ],
)
def test_vectors_that_do_not_fit_their_spec_are_refused(change, message):
    with pytest.raises(HwsimError, match=message):
        replace(PRODUCT, **change)


def test_arrays_come_out_in_their_smallest_dtypes():
    wide = replace(PRODUCT, inputs=tuple(array.astype(np.int64) for array in PRODUCT.inputs))
    assert [array.dtype for array in wide.inputs] == [np.uint8, np.uint8]
    assert_same(wide, PRODUCT)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "vectors.safetensors"
    write_vectors(path, GELU)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    for write in (lambda: write_vectors(path, NORM), lambda: write_hex(tmp_path, NORM)):
        with pytest.raises(HwsimError, match=r"cannot be written \(No space left on device\); choose another place"):
            write()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for write in (lambda: write_vectors(tmp_path / "file" / "x", GELU), lambda: write_hex(tmp_path / "file", GELU)):
        with pytest.raises(HwsimError, match=r"file.* cannot be written"):
            write()


# --- $readmemh files ---


@pytest.mark.parametrize("vectors", EXAMPLES, ids=lambda vectors: vectors.spec.kind)
def test_hex_files_hold_every_word(tmp_path, vectors):
    paths = write_hex(tmp_path / "hex", vectors)
    assert sorted(paths) == sorted((tmp_path / "hex").iterdir())
    assert paths[-1].name == "manifest.json"
    manifest = json.loads(paths[-1].read_text())
    assert (manifest["unit"], manifest["images"]) == (vectors.spec.kind, list(IMAGES))
    assert manifest["spec"] == vectors.spec.to_dict()
    arrays = vectors.arrays()
    assert set(manifest["files"]) == set(arrays)
    for name, entry in manifest["files"].items():
        content = (tmp_path / "hex" / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        words = content.decode().splitlines()
        assert {len(word) for word in words} == {-(-entry["bits"] // 4)}
        values = [int(word, 16) for word in words]
        assert max(values) < 2 ** entry["bits"]
        if entry["signed"]:
            values = [value - 2 ** entry["bits"] if value >= 2 ** (entry["bits"] - 1) else value for value in values]
        assert values == arrays[name].reshape(-1).tolist()
        assert entry["shape"] == list(arrays[name].shape)


def test_hex_of_negative_numbers_is_twos_complement(tmp_path):
    write_hex(tmp_path, NORM)
    # -3 in nine bits
    assert (tmp_path / "constants.zero_in.hex").read_text() == "1fd\n"


def test_hex_again_in_the_same_folder_and_half_of_it(tmp_path, monkeypatch):
    write_hex(tmp_path, NORM)
    shutil.copytree(tmp_path, tmp_path / "copy")
    write_hex(tmp_path, NORM)
    for path in (tmp_path / "copy").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    # a write that stops half-way leaves no manifest that vouches for the mixture
    replaced = []

    def fail_third(source, target, keep=os.replace):
        replaced.append(Path(target).name)
        if len(replaced) == 3:
            raise OSError(28, "No space left on device")
        keep(source, target)

    monkeypatch.setattr(os, "replace", fail_third)
    with pytest.raises(HwsimError, match="cannot be written"):
        write_hex(tmp_path, NORM)
    assert not (tmp_path / "manifest.json").exists()
