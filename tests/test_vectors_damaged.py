"""Golden vectors that were truncated, damaged or tampered with are refused by file and field."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from vector_examples import SOFTMAX, assert_same, assign, tamper

from golden.errors import HwsimError
from golden.vectors import read_vectors, write_vectors


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "softmax.safetensors"
    write_vectors(path, SOFTMAX)
    return path


# --- damaged files ---


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.25, 0.5, 0.75, 0.99, -1])
def test_a_truncated_file_is_refused(written, kept):
    content = written.read_bytes()
    length = int(kept * len(content)) if isinstance(kept, float) else kept
    written.write_bytes(content[:length])
    with pytest.raises(HwsimError, match=r"softmax\.safetensors: truncated, damaged .*; dump again with `hwsim dump`"):
        read_vectors(written)


def test_bytes_after_the_end_are_refused(written):
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(HwsimError, match="truncated, damaged"):
        read_vectors(written)


@settings(max_examples=400)
@given(st.data())
def test_a_flipped_bit_never_gives_other_data(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    intact, damaged = folder / "intact", folder / "damaged"
    if not intact.exists():
        write_vectors(intact, SOFTMAX)
    content = bytearray(intact.read_bytes())
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    content[position // 8] ^= 1 << position % 8
    damaged.write_bytes(content)
    try:
        vectors = read_vectors(damaged)
    except HwsimError:
        return
    # A few bits of the file's own syntax mean nothing; those of the arrays all count.
    (header,) = struct.unpack("<Q", intact.read_bytes()[:8])
    assert position // 8 < 8 + header
    assert_same(vectors, SOFTMAX)


def test_every_flipped_bit_of_the_arrays_is_seen(written):
    content = written.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    for position in range(8 + header, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        written.write_bytes(damaged)
        with pytest.raises(HwsimError, match="checksum of array"):
            read_vectors(written)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x89PNG\r\n", b"\0" * 64, b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(HwsimError, match="other: truncated, damaged or not a golden vectors file"):
        read_vectors(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(HwsimError, match="a safetensors file, but not a golden vectors file; dump again"):
        read_vectors(tmp_path / "weights.safetensors")


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(HwsimError, match="there is no such golden vectors file; dump again"):
            read_vectors(path)


# --- tampered files: the content changed, and some or all seals made anew ---


def test_tampering_itself_changes_nothing(written):
    tamper(written)
    assert_same(read_vectors(written, verify=True), SOFTMAX)


def test_a_manifest_changed_without_its_seal_is_refused(written):
    tamper(written, assign("header", "network", value="another"), seal_manifest=False)
    with pytest.raises(HwsimError, match="the checksum of the manifest does not match, the file was altered"):
        read_vectors(written)


def test_an_array_changed_without_its_seal_is_refused(written):
    def change(arrays):
        arrays["output"][0, 0, 0, 0] ^= 1

    tamper(written, change_arrays=change, seal_arrays=False)
    with pytest.raises(HwsimError, match="the checksum of array 'output' does not match"):
        read_vectors(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (assign("purpose", value="program"), "a program file, not a golden vectors file"),
        (assign("format_version", value=2), "format_version is 2, this package reads 1"),
        (assign("header", value=[]), "the header is not an object"),
        (assign("arrays", value=5), "malformed manifest"),
        (assign("arrays", "output", value=None), "malformed manifest"),
        (assign("arrays", "output", "shape", value=[3]), "array 'output' is uint8 .* the manifest says uint8"),
        (assign("arrays", "more", value={"dtype": "uint8", "shape": [], "sha256": ""}), "'more' is not in the file"),
        (assign("header", "images", value=[4, 0]), "must have 2 images on axis 0"),
        (assign("header", "images", value=[4, 0, -1]), "images must be one or more indices"),
        (assign("header", "images", value="400"), "images must be one or more indices"),
        (assign("header", "images", value=7), "malformed manifest"),
        (assign("header", "layer", value=""), "layer must be a name"),
        (assign("header", "unit", value="softmax"), "unit is 'softmax' in the manifest, but the spec gives"),
        (assign("header", "formats", "output", value=[8, False]), "formats is .* in the manifest"),
        (assign("header", "spec", value=None), "a spec must be an object"),
        (assign("header", "spec", "kind", value="hardmax"), "unknown unit kind 'hardmax'"),
        (assign("header", "spec", "score_bits", value=99), "score_bits must be an integer between 2 and 14, not 99"),
        (assign("header", "spec", "score_bits", value=7), r"inputs\.0 must be between 0 and 127"),
        (assign("header", "spec", "code_bits", value=3), "output must be between 0 and 15"),
        (assign("header", "spec", "row_length", value=6), "a row of 7 exceeds row_length 6"),
        (assign("header", "spec", "polynomial_bits", value=10), "constant 'c' must be between 0 and 1023"),
        (assign("header", "spec", "colour", value=1), "has no field 'colour'"),
        (lambda manifest: manifest["header"].pop("spec"), "malformed manifest"),
        (lambda manifest: manifest["header"].pop("recipe"), "malformed manifest"),
    ],
)
def test_a_consistent_manifest_that_does_not_fit_is_refused(written, change, message):
    tamper(written, change)
    with pytest.raises(HwsimError, match=message) as caught:
        read_vectors(written)
    assert str(caught.value).startswith(f"{written}: ")
    assert str(caught.value).endswith("; dump again with `hwsim dump`")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("output"), "malformed manifest .*'output'"),
        (lambda arrays: arrays.pop("inputs.0"), "takes 1 inputs, not 0"),
        (lambda arrays: arrays.pop("constants.b"), "constant 'b' is missing"),
        (assign("constants.d", value=np.array(1)), "unknown constant 'd'"),
        (assign("constants.x0", value=np.array(1)), "x0 must be negative"),
        (assign("constants.x0", value=np.array([-14])), "constant 'x0' must have shape"),
        (assign("more", value=np.array(1)), "unknown array 'more'"),
        (assign("accumulator", value=np.zeros((3, 2, 7, 7), int)), "log_softmax has no accumulator"),
        (assign("output", value=np.full((3, 2, 7, 7), 32)), "output must be between 0 and 31"),
        (assign("output", value=np.zeros((3, 2, 7, 6), int)), "output must have shape"),
        (assign("output", value=np.zeros((3, 2, 7, 7))), "output must be integers, not float64"),
        (assign("inputs.0", value=np.array(5)), "must have 3 images on axis 0"),
    ],
)
def test_consistent_arrays_that_do_not_fit_are_refused(written, change, message):
    tamper(written, change_arrays=change)
    with pytest.raises(HwsimError, match=message):
        read_vectors(written)
