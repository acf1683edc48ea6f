"""Failures of a GPU, or of what Triton needs beside it, as errors that say what to do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from golden.errors import HwsimError


@contextmanager
def explained(device: torch.device, images: int | None = None) -> Iterator[None]:
    """Turn failures inside into errors for users.

    Parameters
    ----------
    device : torch.device
    images : int, optional
        Of a batch; None where no batch runs.

    Raises
    ------
    HwsimError
        The GPU's memory is full, or there is no working C compiler.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if images is None:
            raise HwsimError(f"{device}: its memory does not hold the program; end what else uses it") from error
        raise HwsimError(
            f"{device}: its memory does not hold {images} images at a time; lower --batch, or end what else uses it"
        ) from error
    except RuntimeError as error:
        # Triton starts kernels through a C function that it compiles once.
        if "C compiler" not in str(error):
            raise
        raise _no_compiler(device, "there is none") from error
    except subprocess.CalledProcessError as error:
        raise _no_compiler(device, f"the one there is failed with status {error.returncode}") from error
    except FileNotFoundError as error:
        if error.filename is None or error.filename != os.environ.get("CC"):
            raise
        raise _no_compiler(device, f"there is no {error.filename}") from error


def _no_compiler(device: torch.device, found: str) -> HwsimError:
    return HwsimError(
        f"{device}: Triton needs a C compiler and the headers of Python, and {found}; install gcc and python3-dev, "
        "name another compiler in the variable CC, or take --device cpu"
    )
