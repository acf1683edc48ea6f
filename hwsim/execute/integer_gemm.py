# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""Integer matrix products that end in codes, for the instructions that the processor has.

The right operand is packed so that a vector holds `lanes` columns, and in every 32-bit lane the next
4 bytes (or 2 words) of the inner axis; `hwsim.execute.product_tile` runs along it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

from hwsim.execute import byte_tables
from hwsim.execute import product_tile as product_tile_module
from hwsim.execute.byte_tables import decode, sum_bytes
from hwsim.execute.product_tile import product_tile

# Rows of a tile: with the vectors below, its sums take 24 of 32 registers, or 12 of 16.
ROWS = 6
# Behind constants of a column and behind codes, so that tiles may run over the end.
SPARE_COLUMNS = 64


@dataclass(frozen=True)
class Instructions:
    """A dot-product instruction.

    Attributes
    ----------
    name : str
    lanes : int
        32-bit sums a vector.
    accumulates : bool
        Words are multiplied and added to the sum in one instruction.
    bytes : bool
        There is a product of unsigned with signed bytes.
    features : frozenset of str
        What LLVM calls the processor's abilities that it needs.
    """

    name: str
    lanes: int
    accumulates: bool
    bytes: bool
    features: frozenset[str]

    @property
    def vectors(self) -> int:
        """Vectors of columns a tile."""
        return 4 if self.lanes == 16 else 2


INSTRUCTIONS = (
    Instructions("avx512-vnni", 16, True, True, frozenset({"avx512f", "avx512bw", "avx512vnni"})),
    Instructions("avx512vl-vnni", 8, True, True, frozenset({"avx512vl", "avx512bw", "avx512vnni", "fma"})),
    Instructions("avx-vnni", 8, True, True, frozenset({"avx2", "avxvnni", "fma"})),
    Instructions("avx512", 16, False, False, frozenset({"avx512f", "avx512bw"})),
    Instructions("avx2", 8, False, False, frozenset({"avx2", "fma"})),
)


def available() -> list[Instructions]:
    """The instructions of this processor, best first."""
    return [entry for entry in INSTRUCTIONS if entry.features <= _processor_features()]


@cache
def _processor_features() -> frozenset[str]:
    import numba
    from numba.core.registry import cpu_target

    chosen = getattr(numba.config, "CPU_FEATURES", None)
    names = (cpu_target.target_context.codegen()._get_host_cpu_features() if chosen is None else chosen).split(",")
    return frozenset(name[1:] for name in names if name.startswith("+"))


@dataclass(frozen=True)
class Gemm:
    """The compiled products of one set of instructions.

    ``multiply`` is for constant right operands, ``multiply_heads`` for two activations, ``decode`` makes the planes
    of a left operand whose codes stand for something else.
    """

    instructions: Instructions
    multiply: Any
    multiply_heads: Any
    decode: Any


@cache
def gemm(instructions: Instructions) -> Gemm:
    """The products in the given instructions."""
    # The plain integers that the kernels close over become part of their key in numba's cache on disk,
    # next to the name and features of the processor.
    shape = instructions.lanes, int(instructions.accumulates), instructions.vectors, _tile_source()
    permutes = int(instructions.lanes == 16 and "avx512vbmi" in _processor_features())
    return Gemm(instructions, _make_multiply(*shape), _make_multiply_heads(*shape, permutes), _make_decode(permutes))


def _tile_source() -> int:
    """Changes with the instructions that are built: numba looks at the files of compiled functions only."""
    return zlib.crc32(
        b"".join(Path(str(module.__file__)).read_bytes() for module in (product_tile_module, byte_tables))
    )


def pack_weights(weight: np.ndarray, lanes: int, kind: Any) -> np.ndarray:
    """Weights ``[outputs, inputs]`` as int8 or int16 ``[panels, groups, lanes, 4 or 2]``, zeros past both ends."""
    step = 4 // np.dtype(kind).itemsize
    outputs, inputs = weight.shape
    panels, groups, _, _ = packed_shape(outputs, inputs, lanes, step)
    padded = np.zeros((panels * lanes, groups * step), kind)
    padded[:outputs, :inputs] = weight
    return np.ascontiguousarray(padded.reshape(panels, lanes, groups, step).swapaxes(1, 2))


def packed_shape(columns: int, inner: int, lanes: int, step: int) -> tuple[int, int, int, int]:
    """Shape of a packed right operand, as many columns as whole tiles read."""
    return -(-columns // SPARE_COLUMNS) * (SPARE_COLUMNS // lanes), -(-inner // step), lanes, step


def empty_codes(shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """A result for `product_tile`, whose last vector may lie half behind the end."""
    count = math.prod(shape)
    return np.empty(count + SPARE_COLUMNS, kind)[:count].reshape(shape)


def pad_columns(values: np.ndarray, kind: Any) -> np.ndarray:
    """A constant of each column with spare entries behind the last."""
    return np.concatenate([values, np.zeros(SPARE_COLUMNS, values.dtype)]).astype(kind)


def _multiply(
    lanes, accumulates, vectors, a, a_at, a_stride, a_plane, planes, rows, b, groups, columns, start, row_start, spare,
    scale, addend, highest, out, out_at, out_stride,
):  # fmt: skip
    """``out[r, c] = code(start[c] + row_start[r] + sum_k a[r, k] * b[k, c])`` for `rows` and `columns`.

    The first three are integers known when it is compiled; the rest is as in `product_tile`.
    """
    raise NotImplementedError("for compiled kernels only")


# Compiled into its callers: a compiled function of their own that they close over would change their key in numba's
# cache on disk with every process.
@overload(_multiply, prefer_literal=True)
def _compiled_multiply(
    lanes, accumulates, vectors, a, a_at, a_stride, a_plane, planes, rows, b, groups, columns, start, row_start, spare,
    scale, addend, highest, out, out_at, out_stride,
):  # fmt: skip
    def multiply(
        lanes, accumulates, vectors, a, a_at, a_stride, a_plane, planes, rows, b, groups, columns, start, row_start,
        spare, scale, addend, highest, out, out_at, out_stride,
    ):  # fmt: skip
        wide, panel = lanes * vectors, groups * 4 * lanes
        column = 0
        while column < columns:
            rest = columns - column
            b_at = column // lanes * panel
            into = out_at + column * out.itemsize
            # A whole tile is as fast as two narrow ones.
            is_wide = rest > 2 * lanes and rows >= ROWS
            row = 0
            while row < rows:
                # The last tile may overlap the one before: the same codes twice.
                row = max(0, min(row, rows - ROWS))
                a_row, out_row = a_at + row * a_stride, into + row * out_stride
                if is_wide and rest >= wide:
                    product_tile(
                        lanes, accumulates, ROWS, vectors, 0, a, a_row, a_stride, a_plane, planes, b, b_at, panel,
                        groups, start, column, row_start, row, spare, scale, column, addend, highest,
                        out, out_row, out_stride, rest,
                    )  # fmt: skip
                elif is_wide:
                    product_tile(
                        lanes, accumulates, ROWS, vectors, 1, a, a_row, a_stride, a_plane, planes, b, b_at, panel,
                        groups, start, column, row_start, row, spare, scale, column, addend, highest,
                        out, out_row, out_stride, rest,
                    )  # fmt: skip
                elif rows >= ROWS:
                    product_tile(
                        lanes, accumulates, ROWS, 1, 1, a, a_row, a_stride, a_plane, planes, b, b_at, panel, groups,
                        start, column, row_start, row, spare, scale, column, addend, highest,
                        out, out_row, out_stride, rest,
                    )  # fmt: skip
                else:
                    for single in range(rows):
                        product_tile(
                            lanes, accumulates, 1, 1, 1, a, a_row + single * a_stride, a_stride, a_plane, planes,
                            b, b_at, panel, groups, start, column, row_start, row + single, spare, scale, column,
                            addend, highest, out, out_row + single * out_stride, out_stride, rest,
                        )  # fmt: skip
                row += ROWS
            column += wide if is_wide else lanes

    return multiply


def _make_multiply(lanes: int, accumulates: int, vectors: int, source: int) -> Any:
    @njit(cache=True, nogil=True)
    def multiply(
        a, a_at, a_stride, a_plane, planes, rows, b, groups, columns, start, row_start, spare, scale, addend, highest,
        out, out_at, out_stride,
    ):  # fmt: skip
        assert source >= 0  # used, so that it is part of the key
        _multiply(
            lanes, accumulates, vectors, a, a_at, a_stride, a_plane, planes, rows, b, groups, columns, start, row_start,
            spare, scale, addend, highest, out, out_at, out_stride,
        )  # fmt: skip

    return multiply


@njit(cache=True, nogil=True)
def _pack_rows(right, flip, step, words):
    """Pack ``right[k, n]``: `step` codes of a column in a word, zeros past the last code."""
    inner, columns = right.shape
    mask = np.uint32((1 << (32 // step)) - 1)
    panels, groups, lanes = words.shape
    for group in range(groups):
        k = group * step
        for panel in range(panels):
            first = panel * lanes
            width = max(0, min(lanes, columns - first))
            if step == 4 and k + 4 <= inner:
                for lane in range(width):
                    words[panel, group, lane] = flip ^ (
                        np.uint32(right[k, first + lane])
                        | np.uint32(right[k + 1, first + lane]) << np.uint32(8)
                        | np.uint32(right[k + 2, first + lane]) << np.uint32(16)
                        | np.uint32(right[k + 3, first + lane]) << np.uint32(24)
                    )
            else:
                for lane in range(width):
                    word = np.uint32(0)
                    for i in range(min(step, inner - k)):
                        shift = np.uint32(32 // step * i)
                        word |= (np.uint32(right[k + i, first + lane]) ^ (flip & mask)) << shift
                    words[panel, group, lane] = word


@njit(cache=True, nogil=True)
def _pack_columns(right, flip, step, words):
    """As `_pack_rows`, of the transpose ``right[n, k]``."""
    columns, inner = right.shape
    lanes = words.shape[2]
    bits, mask = np.uint32(32 // step), np.uint32((1 << (32 // step)) - 1)
    for column in range(columns):
        panel, lane = column // lanes, column % lanes
        for group in range(words.shape[1]):
            k = group * step
            word = np.uint32(0)
            if k + step <= inner and step == 4:
                word = flip ^ (
                    np.uint32(right[column, k])
                    | np.uint32(right[column, k + 1]) << np.uint32(8)
                    | np.uint32(right[column, k + 2]) << np.uint32(16)
                    | np.uint32(right[column, k + 3]) << np.uint32(24)
                )
            else:
                for i in range(min(step, inner - k)):
                    word |= (np.uint32(right[column, k + i]) ^ (flip & mask)) << (bits * np.uint32(i))
            words[panel, group, lane] = word


@njit(cache=True, nogil=True)
def _inner_sums(right, transposed, sums):
    """Sum of the codes of every column of the right operand."""
    sums[:] = 0
    rows, columns = right.shape
    for row in range(rows):
        if transposed:
            total = np.int64(0)
            for column in range(columns):
                total += right[row, column]
            sums[row] = total
        else:
            for column in range(columns):
                sums[column] += right[row, column]


def _make_decode(permutes: int) -> Any:
    @njit(cache=True, nogil=True)
    def decode_codes(codes, digits, planes, stride):
        decode(permutes, codes, digits, planes, stride)

    return decode_codes


def _make_multiply_heads(lanes: int, accumulates: int, vectors: int, source: int, permutes: int) -> Any:
    @njit(cache=True, nogil=True)
    def multiply_heads(
        a, digits, zero_a, b, transposed, flip, zero_b, planes, packed, spare, scale, addend, highest, out
    ):  # fmt: skip
        """``out[l, h] = code((decode(a[l, h]) - zero_a[h]) @ (b[l, h] - zero_b[h]))``.

        What the codes of `a` stand for has base-256 `digits`, which go to the planes, one after the other; without
        digits they stand for themselves. `b` is ``[l, h, N, K]`` when `transposed`. `flip` turns its codes into signed
        ones, lower by half their range; what this and the zero points leave is added to the sums of a row and of a
        column. Rows of the left operand may lie side by side: what a group reads of the next row meets zeros.
        """
        assert source >= 0  # used, so that it is part of the key
        lead, heads, rows, inner = a.shape
        columns = out.shape[3]
        panels, groups, _, step = packed.shape
        words = packed.view(np.uint32).reshape(panels, groups, lanes)
        offset = np.int64(flip & np.uint32((1 << (32 // step)) - 1))
        codes, size = a.reshape(-1), rows * inner
        start = np.zeros(panels * lanes, np.int32)
        scales = np.zeros(start.size, np.float64)
        column_sums = np.zeros(columns, np.int64)
        row_start = np.zeros(rows, np.int32)
        for index in range(lead):
            for head in range(heads):
                right, first = b[index, head], (index * heads + head) * size
                if transposed:
                    _pack_columns(right, flip, step, words)
                else:
                    _pack_rows(right, flip, step, words)
                excess = offset - zero_b[head]
                if zero_a[head]:
                    _inner_sums(right, transposed, column_sums)
                    for column in range(columns):
                        start[column] = np.int32(zero_a[head] * (inner * zero_b[head] - column_sums[column]))
                else:
                    start[:] = 0
                scales[:] = scale[head]
                out_at = (index * heads + head) * rows * columns * out.itemsize
                if digits is None:
                    for row in range(rows):
                        total = np.uint32(0)
                        for k in range(inner):
                            total = np.uint32(total + np.uint32(codes[first + row * inner + k]))
                        row_start[row] = np.int32(np.int64(total) * excess)
                    _multiply(
                        lanes, accumulates, vectors, a, first * a.itemsize, inner * a.itemsize, 0, 1, rows, packed,
                        groups, columns, start, row_start, spare, scales, addend, highest, out, out_at,
                        columns * out.itemsize,
                    )  # fmt: skip
                else:
                    decode(permutes, codes[first : first + size], digits, planes, size)
                    for row in range(rows):
                        total = np.int64(0)
                        for plane in range(digits.shape[0]):
                            total = (total << 8) + sum_bytes(permutes, planes, plane * size + row * inner, inner)
                        row_start[row] = np.int32(total * excess)
                    _multiply(
                        lanes, accumulates, vectors, planes, 0, inner * planes.itemsize, size * planes.itemsize,
                        digits.shape[0], rows, packed, groups, columns, start, row_start, spare, scales, addend,
                        highest, out, out_at, columns * out.itemsize,
                    )  # fmt: skip

    return multiply_heads
