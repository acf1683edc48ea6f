"""Is there a GPU that the cuda executor runs on? Answers are sentences for users."""

from __future__ import annotations

import importlib
import importlib.util

# Triton's own minimum, and bytes on the tensor cores.
_CAPABILITY = (8, 0)
# What PyTorch raises where a library of its is missing, or the driver fails.
_BROKEN = (ImportError, OSError, RuntimeError)


def gpu_count() -> int:
    """CUDA GPUs that PyTorch sees; 0 without PyTorch or without CUDA. A broken PyTorch or driver raises."""
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() and torch.version.hip is None else 0


def why_not(index: int = 0) -> str | None:
    """Why the GPU of an index cannot run programs, None where it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (uv pip install 'vit-hwsim[calibrate]')"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with PyTorch's CUDA build for Linux"
    try:
        return _unusable(index)
    except _BROKEN as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"PyTorch cannot use the GPU ({said[0]}); see that PyTorch and the driver fit each other"


def survey() -> dict[int, str | None]:
    """Every GPU that PyTorch sees, with `why_not`; none where PyTorch or the driver is broken."""
    try:
        count = gpu_count()
    except _BROKEN:
        return {}
    return {index: why_not(index) for index in range(count)}


def _unusable(index: int) -> str | None:
    """See `why_not`; a broken PyTorch or driver raises."""
    import torch

    count = gpu_count()
    if count == 0:
        built = torch.version.cuda is not None
        return "PyTorch sees no CUDA GPU" if built else "PyTorch was built without CUDA"
    if index >= count:
        return f"there is no GPU {index}; PyTorch sees {count}, counted from 0"
    capability = torch.cuda.get_device_capability(index)
    if capability < _CAPABILITY:
        return (
            f"GPU {index} ({torch.cuda.get_device_name(index)}) has compute capability "
            f"{capability[0]}.{capability[1]}; 8.0 or later is needed"
        )
    # Last, because it takes time: its own libraries may not load.
    importlib.import_module("triton")
    return None
