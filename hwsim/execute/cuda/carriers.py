"""How codes lie in GPU memory.

Codes of up to 8 bits are signed bytes, because the tensor cores multiply those: unsigned 8-bit codes are kept
128 lower. Codes of up to 16 bits are 16-bit words (32768 lower when they have all 16), wider ones 32 or 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from golden.spec import IntFormat

# Elements a row is padded to, so that rows begin at addresses that vector loads take.
ALIGNMENT = 16

_NUMPY = {torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64}


def offset_of(bits: int) -> int:
    """What is subtracted from codes of a width to keep them."""
    return 1 << (bits - 1) if bits in (8, 16) else 0


def dtype_of(bits: int) -> torch.dtype:
    """Type that codes of a width are kept in."""
    for limit, dtype in ((8, torch.int8), (16, torch.int16), (31, torch.int32)):
        if bits <= limit:
            return dtype
    return torch.int64


def encode(codes: np.ndarray, bits: int, device: torch.device) -> torch.Tensor:
    """Codes of `bits` bits as they are kept, contiguous on a device."""
    kept = (codes.astype(np.int64) - offset_of(bits)).astype(_NUMPY[dtype_of(bits)])
    return torch.from_numpy(np.ascontiguousarray(kept)).to(device)


def encode_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Codes of uint8 pixels as they are kept: 128 lower is the highest bit flipped."""
    return torch.bitwise_xor(pixels, 128).view(torch.int8)


def decode(kept: torch.Tensor, form: IntFormat) -> np.ndarray:
    """Codes in their NumPy type."""
    codes: np.ndarray = kept.contiguous().cpu().numpy().astype(np.int64) + offset_of(form.bits)
    return codes.astype(form.dtype)


def codes_of(kept: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes as int64, for units that compute with torch's integers."""
    return kept.to(torch.int64) + offset_of(bits)


def kept_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `codes_of`."""
    return (codes - offset_of(bits)).to(dtype_of(bits))


def constant(array: np.ndarray, device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """An integer constant on a device."""
    return torch.from_numpy(np.ascontiguousarray(array.astype(_NUMPY[dtype]))).to(device)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Room for codes, rows (the last axis) padded to `ALIGNMENT` elements; padding may be read and has any value."""
    *lead, columns = shape
    padded = -(-columns // ALIGNMENT) * ALIGNMENT
    # One row's padding behind the last, because a view may begin inside a row.
    room = torch.empty(math.prod(lead) * padded + ALIGNMENT, dtype=dtype, device=device)
    return room[: math.prod(lead) * padded].view(*lead, padded)[..., :columns]


def contiguous(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Room for codes without padding; what `readable` allows may be read behind it too."""
    count = math.prod(shape)
    return torch.empty(count + ALIGNMENT, dtype=dtype, device=device)[:count].view(*shape)


def as_rows(kept: torch.Tensor) -> torch.Tensor:
    """Rows [rows, columns] with elements side by side; a view wherever that is possible."""
    if kept.stride(-1) != 1 and kept.shape[-1] > 1:
        kept = kept.contiguous()
    return kept.flatten(0, -2)


def readable(rows: torch.Tensor, axis: int = -2) -> int:
    """Elements of a row that may be read: its padding too, where it is that of `empty`."""
    columns = rows.shape[-1]
    padded = -(-columns // ALIGNMENT) * ALIGNMENT
    return padded if rows.stride(axis) == padded else columns
