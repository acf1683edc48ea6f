"""Is there a GPU that the cuda executor runs on? Answers are sentences for users."""

from __future__ import annotations

import importlib.util

# Triton's own minimum, and bytes on the tensor cores.
_CAPABILITY = (8, 0)


def gpu_count() -> int:
    """CUDA GPUs that PyTorch sees; 0 without PyTorch or without CUDA."""
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
    return None
