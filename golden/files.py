"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from golden.errors import HwsimError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: to a temporary name in the same folder, then rename.

    Parameters
    ----------
    path : Path
        Its folder is made if needed.
    content : bytes or str
        Text is written as UTF-8.

    Raises
    ------
    HwsimError
        The folder or file cannot be written; nothing is left behind.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The name must not get there before the bytes, or a power cut leaves an empty file in place of the old one.
            os.fsync(descriptor)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt leaves nothing behind either
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise HwsimError(
                f"{path}: cannot be written ({error.strerror}); choose another place or free space"
            ) from None
        raise
