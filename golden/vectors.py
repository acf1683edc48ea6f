"""Golden vectors: what a unit of a layer saw and produced, on disk.

One safetensors file a unit and layer, with a manifest that says where it comes
from (`golden.tensor_file` seals both), and the same integers as ``$readmemh``
files for a Verilog test bench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

import golden.units  # noqa: F401 (makes every kind of spec known)
from golden.errors import HwsimError
from golden.files import write_atomically
from golden.spec import Constants, IntFormat, Spec, spec_from_dict
from golden.tensor_file import load_tensors, save_tensors

PURPOSE = "golden vectors"
FORMAT_VERSION = 1
REMEDY = "dump again with `hwsim dump`"


@runtime_checkable
class Accumulating(Protocol):
    """What the specs of matrix products have besides the rest: the sums before requantization."""

    @property
    def accumulator(self) -> IntFormat: ...

    def accumulate(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class UnitVectors:
    """What one unit of one layer saw and produced; building one checks it, see Raises.

    Axis 0 of every input, of the output and of the accumulator is the image.

    Parameters
    ----------
    spec : Spec
        The unit.
    constants : mapping of str to integer array
    inputs : tuple of integer arrays [images, ...]
        In the order of ``spec.compute``.
    output : integer array [images, ...]
    accumulator : integer array of the output's shape, or None
        Sums before requantization, for units that have ``spec.accumulate``.
    network, recipe : str
        What was calibrated, and how.
    layer : str
        Name of the unit's node, such as "blocks.3.attn.softmax".
    images : tuple of int
        Index of each image in its data set.

    Raises
    ------
    HwsimError
        A constant, shape or value does not fit the spec. Arrays come out in the smallest
        dtype of their format, the accumulator in int64.
    """

    spec: Spec
    constants: Mapping[str, np.ndarray]
    inputs: tuple[np.ndarray, ...]
    output: np.ndarray
    accumulator: np.ndarray | None
    network: str
    recipe: str
    layer: str
    images: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("network", "recipe", "layer"):
            if not (isinstance(getattr(self, field), str) and getattr(self, field)):
                raise HwsimError(f"golden vectors: {field} must be a name, not {getattr(self, field)!r}")
        if not self.images or not all(type(image) is int and image >= 0 for image in self.images):
            raise HwsimError(f"{self.layer}: images must be one or more indices of 0 or more, not {self.images!r}")
        if len(self.inputs) != len(self.spec.inputs):
            raise HwsimError(
                f"{self.layer}: {self.spec.kind} takes {len(self.spec.inputs)} inputs, not {len(self.inputs)}"
            )
        if self.accumulator is not None and not isinstance(self.spec, Accumulating):
            raise HwsimError(f"{self.layer}: {self.spec.kind} has no accumulator")
        checked: dict[str, Any] = {"constants": self.spec.check_constants(self.constants, self.layer)}
        formats = self.formats
        streams = {
            name: formats[name].check(array, f"{self.layer}: {name}")
            for name, array in self.arrays().items()
            if name in formats and not name.startswith("constants.")
        }
        for name, array in streams.items():
            if array.ndim == 0 or len(array) != len(self.images):
                raise HwsimError(
                    f"{self.layer}: {name} of shape {list(array.shape)} must have {len(self.images)} images on axis 0"
                )
        inputs = tuple(streams[f"inputs.{index}"] for index in range(len(self.inputs)))
        expected = (len(self.images), *self.spec.shape(*(array.shape[1:] for array in inputs)))
        for name in ("output", "accumulator"):
            if name in streams and streams[name].shape != expected:
                raise HwsimError(
                    f"{self.layer}: {name} must have shape {list(expected)}, not {list(streams[name].shape)}"
                )
        checked |= {"inputs": inputs, "output": streams["output"]}
        if "accumulator" in streams:
            checked["accumulator"] = streams["accumulator"].astype(np.int64)
        for field, value in checked.items():
            object.__setattr__(self, field, value)

    @property
    def formats(self) -> dict[str, IntFormat]:
        """Width and signedness of every array, by its name in the file."""
        formats = {f"constants.{name}": constant.format for name, constant in self.spec.constants.items()}
        formats |= {f"inputs.{index}": format for index, format in enumerate(self.spec.inputs)}
        formats["output"] = self.spec.output
        if self.accumulator is not None:
            formats["accumulator"] = cast(Accumulating, self.spec).accumulator
        return formats

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name in the file: constants.NAME, inputs.INDEX, output, accumulator."""
        arrays = {f"constants.{name}": array for name, array in self.constants.items()}
        arrays |= {f"inputs.{index}": array for index, array in enumerate(self.inputs)}
        arrays["output"] = self.output
        if self.accumulator is not None:
            arrays["accumulator"] = self.accumulator
        return arrays

    def describe(self) -> dict[str, Any]:
        """Where the vectors come from and how wide they are, as JSON values."""
        return {
            "network": self.network,
            "recipe": self.recipe,
            "layer": self.layer,
            "unit": self.spec.kind,
            "spec": self.spec.to_dict(),
            "images": list(self.images),
            "formats": {name: [format.bits, format.signed] for name, format in self.formats.items()},
        }


def write_vectors(path: Path, vectors: UnitVectors) -> None:
    """Write one unit's vectors as a safetensors file, whole or not at all.

    Raises
    ------
    HwsimError
        The file cannot be written.
    """
    save_tensors(Path(path), PURPOSE, FORMAT_VERSION, vectors.describe(), vectors.arrays())


def read_vectors(path: Path, verify: bool = False) -> UnitVectors:
    """Read and check a file of `write_vectors`.

    Parameters
    ----------
    verify : bool
        Also recompute the unit and compare, see `verify_vectors`.

    Raises
    ------
    HwsimError
        The file is missing, truncated, altered, of another version, or its content does not
        fit its spec. The message names the file, the field and the remedy.
    """
    path = Path(path)
    header, arrays = load_tensors(path, PURPOSE, FORMAT_VERSION, REMEDY)
    try:
        inputs = sum(name.startswith("inputs.") for name in arrays)
        vectors = UnitVectors(
            spec=spec_from_dict(header["spec"]),
            constants={
                name.removeprefix("constants."): array
                for name, array in arrays.items()
                if name.startswith("constants.")
            },
            inputs=tuple(arrays[f"inputs.{index}"] for index in range(inputs)),
            output=arrays["output"],
            accumulator=arrays.get("accumulator"),
            network=header["network"],
            recipe=header["recipe"],
            layer=header["layer"],
            images=tuple(header["images"]),
        )
        for name in sorted(set(arrays) - set(vectors.arrays())):
            raise HwsimError(f"unknown array {name!r}")
        for field, value in vectors.describe().items():
            if header.get(field) != value:
                raise HwsimError(f"{field} is {header.get(field)!r} in the manifest, but the spec gives {value!r}")
        if verify:
            verify_vectors(vectors)
    except HwsimError as error:
        raise HwsimError(f"{path}: {error}; {REMEDY}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise HwsimError(f"{path}: malformed manifest ({error!r}); {REMEDY}") from None
    return vectors


def verify_vectors(vectors: UnitVectors) -> None:
    """Compute the unit again by its definition and compare every integer.

    Raises
    ------
    HwsimError
        Names unit, layer and the first image, row and element that differ, with the value
        that the spec defines and the one in the vectors.
    """
    spec = vectors.spec
    for position, image in enumerate(vectors.images):
        # One image at a time keeps the memory that of one image.
        inputs = [array[position : position + 1] for array in vectors.inputs]
        computed = {"output": (spec.compute(vectors.constants, *inputs), vectors.output)}
        if vectors.accumulator is not None:
            sums = cast(Accumulating, spec).accumulate(vectors.constants, *inputs)
            computed = {"accumulator": (sums, vectors.accumulator), **computed}
        for name, (expected, stored) in computed.items():
            differs = np.argwhere(expected[0] != stored[position])
            if len(differs):
                index = tuple(map(int, differs[0]))
                raise HwsimError(
                    f"{vectors.layer} ({spec.kind}): {name} of image {image}, row {list(index[:-1])}, "
                    f"element {index[-1]} is {int(stored[position][index])}, but the spec gives "
                    f"{int(expected[0][index])} ({len(differs)} of {expected[0].size} differ in this image)"
                )


def write_hex(folder: Path, vectors: UnitVectors) -> list[Path]:
    """Write every array as a ``$readmemh`` file: one word an element, row-major, two's complement.

    Returns
    -------
    list of Path
        One ``.hex`` file an array, and last ``manifest.json``, which is written last and so
        vouches for the others.

    Raises
    ------
    HwsimError
        A file cannot be written.
    """
    folder = Path(folder)
    manifest = folder / "manifest.json"
    try:
        # A manifest of earlier vectors must not vouch for new files.
        if manifest.exists():
            manifest.unlink()
    except OSError as error:
        raise HwsimError(f"{manifest}: cannot be replaced ({error.strerror}); choose another folder") from None
    formats = vectors.formats
    paths, files = [], {}
    for name, array in vectors.arrays().items():
        words = _hex_words(array, formats[name])
        paths.append(folder / f"{name}.hex")
        write_atomically(paths[-1], words)
        files[name] = {
            "file": paths[-1].name,
            "bits": formats[name].bits,
            "signed": formats[name].signed,
            "shape": list(array.shape),
            "sha256": hashlib.sha256(words).hexdigest(),
        }
    description = {"format_version": FORMAT_VERSION, **vectors.describe(), "files": files}
    del description["formats"]
    write_atomically(manifest, json.dumps(description, indent=2) + "\n")
    return [*paths, manifest]


def _hex_words(array: np.ndarray, format: IntFormat) -> bytes:
    digits = -(-format.bits // 4)
    words = array.reshape(-1).astype(np.int64) & ((1 << format.bits) - 1)
    alphabet = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.full((len(words), digits + 1), ord("\n"), dtype=np.uint8)
    for digit in range(digits):
        text[:, digit] = alphabet[(words >> 4 * (digits - 1 - digit)) & 15]
    return text.tobytes()
