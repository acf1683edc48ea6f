"""Integer arrays and a JSON header in one sealed file: safetensors, never pickle.

The header carries the checksum of every array and is itself under a checksum,
so that a file which reads at all reads as it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically


def checksum(array: np.ndarray) -> str:
    """SHA-256 of the values of an array, row-major and little-endian, in hexadecimal."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()


def save_tensors(
    path: Path, purpose: str, version: int, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
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

    Raises
    ------
    HwsimError
        The file cannot be written.
    """
    from safetensors.numpy import save

    # Not ascontiguousarray, which gives an array without axes one.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(
        {
            "format_version": version,
            "header": header,
            "arrays": {
                name: {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": checksum(array)}
                for name, array in arrays.items()
            },
        },
        sort_keys=True,
    )
    metadata = {"vit_hwsim": purpose, "manifest": text, "manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(path, save(arrays, metadata=metadata))


def load_tensors(path: Path, purpose: str, version: int, remedy: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file of `save_tensors` and check its seals.

    Parameters
    ----------
    purpose, version : as in `save_tensors`
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
    if metadata.get("vit_hwsim") != purpose:
        raise refuse(f"a safetensors file, but not a {purpose} file")
    text = metadata.get("manifest", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("manifest_sha256"):
        raise refuse("the checksum of the manifest does not match, the file was altered or damaged")
    try:
        manifest = json.loads(text)
        found, header, described = manifest["format_version"], manifest["header"], dict(manifest["arrays"])
        described = {name: (entry["dtype"], entry["shape"], entry["sha256"]) for name, entry in described.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise refuse(f"malformed manifest ({error!r})") from None
    if found != version:
        raise refuse(f"format_version is {found!r}, this package reads {version}")
    if not isinstance(header, dict):
        raise refuse("malformed manifest (the header is not an object)")
    for name in sorted(set(described) ^ set(arrays)):
        raise refuse(f"array {name!r} is {'not in the file' if name in described else 'unknown to the manifest'}")
    for name, array in arrays.items():
        dtype, shape, digest = described[name]
        if (str(array.dtype), list(array.shape)) != (dtype, shape):
            raise refuse(f"array {name!r} is {array.dtype} {list(array.shape)}, the manifest says {dtype} {shape}")
        if checksum(array) != digest:
            raise refuse(f"the checksum of array {name!r} does not match, the file was altered or damaged")
    return header, arrays
