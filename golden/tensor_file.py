"""Integer arrays and a JSON header in one sealed file: safetensors, never pickle.

The header carries the checksum of what the arrays hold and is itself under a checksum,
so that a file which reads at all reads as it was written. Arrays whose widths are told
are packed bit by bit into one tensor; without widths, each is a tensor of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically
from golden.packing import pack, packed_size, unpack
from golden.spec import IntFormat

# Of the one metadata entry; its value is the manifest as JSON, with a SHA-256 of the rest.
METADATA_KEY = "vit_hwsim"
# The one tensor of a file of packed arrays: one after the other by name, each from a byte of its own on.
PACKED = "packed"


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def checksum(array: np.ndarray) -> str:
    """SHA-256 of the values of an array, row-major and little-endian, in hexadecimal."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()


def save_tensors(
    path: Path,
    purpose: str,
    version: int,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    formats: Mapping[str, IntFormat] | None = None,
) -> None:
    """Write arrays and their header as one file, whole or not at all.

    Parameters
    ----------
    purpose : str
        What the file is, such as "golden vectors"; `load_tensors` refuses another one.
    version : int
        Version of the header's layout.
    header : mapping
        JSON values.
    arrays : mapping of str to integer ndarray
    formats : mapping of str to IntFormat, optional
        Of every array; then they are packed, see `golden.packing`.

    Raises
    ------
    HwsimError
        The file cannot be written, or an integer does not fit its format.
    """
    from safetensors.numpy import save

    # Not ascontiguousarray, which gives an array without axes one.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    manifest: dict[str, Any] = {
        "purpose": purpose,
        "format_version": version,
        "header": json.loads(json.dumps(header)),  # as it will be read: keys are text, tuples are lists
    }
    if formats is None:
        manifest["arrays"] = {
            name: {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": checksum(array)}
            for name, array in arrays.items()
        }
    else:
        content = b"".join(pack(arrays[name], formats[name]) for name in sorted(arrays))
        manifest["arrays"] = {name: [_short(formats[name]), *array.shape] for name, array in arrays.items()}
        manifest[PACKED] = hashlib.sha256(content).hexdigest()
        arrays = {PACKED: np.frombuffer(content, np.uint8)}
    # safetensors writes several entries in random order; one keeps the file the same byte for byte.
    sealed = json.dumps({**manifest, "sha256": _seal(manifest)}, sort_keys=True, separators=(",", ":"))
    write_atomically(path, save(arrays, metadata={METADATA_KEY: sealed}))


def _short(format: IntFormat) -> str:
    """``s4`` or ``u12``."""
    return f"{'s' if format.signed else 'u'}{format.bits}"


def _unpacked(content: bytes, described: Mapping[str, Any], digest: str) -> dict[str, np.ndarray]:
    """Arrays of a packed tensor.

    Raises
    ------
    HwsimError
        It is not the one that the manifest describes.
    """
    if hashlib.sha256(content).hexdigest() != digest:
        raise HwsimError("the checksum of the packed arrays does not match, the file was altered or damaged")
    arrays = {}
    first = 0
    for name in sorted(described):
        letters, *shape = described[name]
        if letters[:1] not in ("s", "u") or not letters[1:].isdecimal():
            raise HwsimError(f"array {name!r} has the width {letters!r}, which is neither such as s4 nor such as u12")
        if any(type(length) is not int or length < 0 for length in shape):
            raise HwsimError(f"array {name!r} has the shape {shape}")
        format = IntFormat(int(letters[1:]), signed=letters[0] == "s")
        size = packed_size(math.prod(shape), format)
        try:
            arrays[name] = unpack(content[first : first + size], format, tuple(shape))
        except HwsimError as error:
            raise HwsimError(f"packed array {name!r}: {error}") from None
        first += size
    if first != len(content):
        raise HwsimError(f"the packed arrays have {len(content)} bytes, the manifest describes {first}")
    return arrays


def load_tensors(
    path: Path, purpose: str, versions: int | tuple[int, ...], remedy: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file of `save_tensors` and check its seals.

    Parameters
    ----------
    purpose : as in `save_tensors`
    versions : int or tuple of int
        Of the layouts that the caller reads.
    remedy : str
        What the user can do about a bad file, for the message.

    Returns
    -------
    header : dict
    arrays : dict of str to ndarray

    Raises
    ------
    HwsimError
        The file is missing, unreadable, truncated, of another purpose or version, or altered.
        The message names the file, the field and the remedy.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)

    def refuse(fault: str) -> HwsimError:
        return HwsimError(f"{path}: {fault}; {remedy}")

    if not path.is_file():
        raise refuse(f"there is no such {purpose} file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise refuse(f"truncated, damaged or not a {purpose} file ({error})") from None
    if METADATA_KEY not in metadata:
        raise refuse(f"a safetensors file, but not a {purpose} file")
    try:
        manifest = json.loads(metadata[METADATA_KEY])
        if manifest.pop("sha256", None) != _seal(manifest):
            raise refuse("the checksum of the manifest does not match, the file was altered or damaged")
        found, header, described = manifest["format_version"], manifest["header"], dict(manifest["arrays"])
        packed = manifest.get(PACKED)
        if packed is None:
            described = {name: (entry["dtype"], entry["shape"], entry["sha256"]) for name, entry in described.items()}
        if manifest["purpose"] != purpose:
            raise refuse(f"a {manifest['purpose']} file, not a {purpose} file")
    except HwsimError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refuse(f"malformed manifest ({error!r})") from None
    readable = versions if isinstance(versions, tuple) else (versions,)
    if found not in readable:
        raise refuse(f"format_version is {found!r}, this package reads {' and '.join(map(str, readable))}")
    if not isinstance(header, dict):
        raise refuse("malformed manifest (the header is not an object)")
    if packed is not None:
        if set(arrays) != {PACKED} or arrays[PACKED].dtype != np.uint8:
            raise refuse(f"the packed arrays must be one tensor of bytes called {PACKED!r}")
        try:
            return header, _unpacked(arrays[PACKED].tobytes(), described, packed)
        except HwsimError as error:
            raise refuse(str(error)) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise refuse(f"malformed manifest ({error!r})") from None
    for name in sorted(set(described) ^ set(arrays)):
        raise refuse(f"array {name!r} is {'not in the file' if name in described else 'unknown to the manifest'}")
    for name, array in arrays.items():
        dtype, shape, digest = described[name]
        if (str(array.dtype), list(array.shape)) != (dtype, shape):
            raise refuse(f"array {name!r} is {array.dtype} {list(array.shape)}, the manifest says {dtype} {shape}")
        if checksum(array) != digest:
            raise refuse(f"the checksum of array {name!r} does not match, the file was altered or damaged")
    return header, arrays
