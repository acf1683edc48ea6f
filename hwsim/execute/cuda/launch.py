"""The one way in which kernels are started."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a Triton kernel on a grid of programs.

    Parameters
    ----------
    kernel : Triton kernel
    grid : tuple of int
    arguments, options
        Of the kernel, and of its compilation.

    Notes
    -----
    Where kernels compute with floats, the argument that no bit is lost counts every rounding: a product and a sum must
    not become one fused operation. Triton would fuse them by default, and warns that this is about to change.
    """
    kernel[grid](*arguments, enable_fp_fusion=False, **options)
