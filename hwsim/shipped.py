"""Programs that the package ships: trained networks for which no GPU is needed, opened by name.

``hwsim/assets/programs.json`` holds the SHA-256 of each file, ``NAME.safetensors`` beside it. ``tools/ship_program.py``
puts a program there.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.networks.embedded import assets_folder, read_asset
from hwsim.program import Program, load_program, save_program

SUMS = "programs.json"
# A shipped program costs every user this much at most.
LARGEST_BYTES = 300_000


def shipped_programs(folder: Path | None = None) -> dict[str, str]:
    """SHA-256 of the shipped program files by program name.

    Parameters
    ----------
    folder : Path, optional
        Where they are; the package's own assets by default.

    Raises
    ------
    HwsimError
        The list is missing or damaged.
    """
    path = (folder or assets_folder()) / SUMS
    try:
        sums = json.loads(path.read_text())
        if not all(isinstance(digest, str) for digest in sums.values()):
            raise ValueError("a sum is not a text")
    except (OSError, ValueError, AttributeError) as error:
        raise HwsimError(f"{path}: cannot be read ({error}); reinstall vit-hwsim") from None
    return dict(sums)


def load_shipped(name: str, folder: Path | None = None) -> Program:
    """A shipped program, its file's checksum verified.

    Parameters
    ----------
    name : str
        Such as "embedded-q-vit-4".
    folder : Path, optional
        As in `shipped_programs`.

    Raises
    ------
    HwsimError
        There is none of the name, or its file is missing or damaged.
    """
    folder = folder or assets_folder()
    sums = shipped_programs(folder)
    if name not in sums:
        known = ", ".join(sums) or "none"
        raise HwsimError(
            f"{name}: there is no such program file, and no shipped program of this name; shipped: {known}"
        )
    file = f"{name}.safetensors"
    read_asset(file, folder, sums[name])
    return load_program(folder / file)


def ship(program: Program, name: str, folder: Path | None = None) -> Path:
    """Put a program among the shipped ones, in place of one of the same name.

    Parameters
    ----------
    program : Program
    name : str
    folder : Path, optional
        As in `shipped_programs`.

    Returns
    -------
    Path
        Of its file.

    Raises
    ------
    HwsimError
        Its file is larger than `LARGEST_BYTES` or cannot be written; then everything is as before.
    """
    folder = folder or assets_folder()
    sums = shipped_programs(folder) if (folder / SUMS).exists() else {}
    path = folder / f"{name}.safetensors"
    draft, new_sums, previous = (folder / f".{name}.{part}" for part in ("draft", "sums", "previous"))
    try:
        save_program(program, draft)
        content = draft.read_bytes()
        if len(content) > LARGEST_BYTES:
            raise HwsimError(f"{name}: the program takes {len(content)} bytes, a shipped one {LARGEST_BYTES} at most")
        sums[name] = hashlib.sha256(content).hexdigest()
        write_atomically(new_sums, json.dumps(dict(sorted(sums.items())), indent=2) + "\n")
        _replace_both(draft, path, new_sums, folder / SUMS, previous)
    finally:
        for left in (draft, new_sums):
            left.unlink(missing_ok=True)
    return path


def _replace_both(draft: Path, path: Path, new_sums: Path, sums: Path, previous: Path) -> None:
    """Rename both or neither; everything is written by then, so that no full disk can come between."""
    existed = path.exists()
    try:
        if existed:
            os.replace(path, previous)
        os.replace(draft, path)
        os.replace(new_sums, sums)
    except BaseException as error:
        if previous.exists():
            os.replace(previous, path)
        elif not existed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise HwsimError(f"{path}: cannot be put there ({error.strerror}); everything is as before") from None
        raise
    previous.unlink(missing_ok=True)
