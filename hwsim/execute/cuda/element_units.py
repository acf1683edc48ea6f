"""The units of `golden` without a matrix product as operations on stored codes.

Softmax, LayerNorm, tables and residual sums are kernels. What runs once a network, or in Swin only, is written with
torch's integers; so are softmax rows whose exponentials a double does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton

from golden.adalog import AdaLogDecodeSpec, AdaLogQuantizeSpec
from golden.add import AddSpec
from golden.layernorm import LayerNormSpec
from golden.log_softmax import LogSoftmaxSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.softmax import SoftmaxSpec
from golden.spec import Constants, IntFormat, Spec
from golden.token_mean import TokenMeanSpec
from golden.twin import TwinQuantizeSpec
from golden.windows import ShiftMaskSpec, WindowBiasSpec, relative_position_index, shift_mask
from hwsim.execute.cuda import carriers, element_kernels, row_kernels
from hwsim.execute.cuda.launch import launch
from hwsim.execute.cuda.product_units import Operation, Setting
from hwsim.execute.cuda.products import requantized
from hwsim.execute.cuda.requantization import Table, common_shift, ending, multiples, requantization

# Units of one input that a table of all its codes replaces, up to this width.
TABULATED = ("lookup", "requantize", "adalog_quantize", "twin_quantize")
LARGEST_TABLE_BITS = 17
_BLOCK = 1024
# Elements that a program of a row kernel has at least, so that short rows share one.
_ELEMENTS = 1024
_NORM_ELEMENTS = 2048


def table_of(spec: Spec, constants: Constants) -> Table | None:
    """A unit as one table, None where it has one a channel, two inputs, or too many codes."""
    if spec.kind not in TABULATED or getattr(spec, "channels", 1) > 1:
        return None
    (form,) = spec.inputs
    if form.signed or form.bits > LARGEST_TABLE_BITS:
        return None
    codes = np.arange(1 << form.bits).astype(form.dtype)
    return Table(spec.compute(constants, codes), spec.output.bits)


def _by_table(spec: Spec, constants: Constants, setting: Setting) -> Operation | None:
    table = table_of(spec, constants)
    if table is None:
        return None
    return _LookUp(table.entries[None], spec.inputs[0].bits, table.bits, setting.device)


def adalog_decode(spec: AdaLogDecodeSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.adalog.AdaLogDecodeSpec`."""
    entries = spec.compute(constants, np.arange(spec.zero_symbol + 1))
    # Codes past the zero symbol do not occur; the format holds them.
    padded = np.pad(entries, (0, (1 << spec.input.bits) - len(entries)))
    return _LookUp(padded[None], spec.input.bits, spec.output.bits, setting.device)


class _LookUp:
    """Tables ``[channels or 1, 2**bits]``."""

    def __init__(self, entries: np.ndarray, bits: int, output_bits: int, device: torch.device) -> None:
        self.entries = carriers.encode(entries, output_bits, device)
        self.offset = carriers.offset_of(bits)

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        codes = codes.contiguous()
        out = carriers.contiguous(codes.shape, self.entries.dtype, codes.device)
        channels, size = self.entries.shape
        launch(
            element_kernels.look_up, (triton.cdiv(codes.numel(), _BLOCK),),
            codes, self.entries, out, codes.numel(), self.offset, channels, size,
            CHANNELS=channels > 1, BLOCK=_BLOCK,
        )  # fmt: skip
        return out


def lookup(spec: LookupSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.lookup`."""
    return _LookUp(constants["table"], spec.input_bits, spec.output_bits, setting.device)


def adalog_quantize(spec: AdaLogQuantizeSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.adalog.AdaLogQuantizeSpec`: wide inputs by a search among the thresholds."""
    by_table = _by_table(spec, constants, setting)
    if by_table is not None:
        return by_table
    rising = carriers.constant(constants["thresholds"][::-1], setting.device)

    def operation(values: torch.Tensor) -> torch.Tensor:
        below = torch.searchsorted(rising, carriers.codes_of(values, spec.input_bits).contiguous())
        return carriers.kept_of(len(rising) - below, spec.output.bits)

    return operation


def twin_quantize(spec: TwinQuantizeSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.twin.TwinQuantizeSpec`."""
    by_table = _by_table(spec, constants, setting)
    if by_table is not None:
        return by_table
    shift, half = int(constants["shift"]), 1 << (spec.code_bits - 1)

    def rounded(p: torch.Tensor, fraction_bits: int) -> torch.Tensor:
        excess = spec.probability_bits - fraction_bits
        scaled = round_half_even_shift(p, excess) if excess >= 0 else p << -excess
        return scaled.clamp(max=half - 1)

    def operation(values: torch.Tensor) -> torch.Tensor:
        p = carriers.codes_of(values, spec.input.bits)
        fine, coarse = rounded(p, spec.code_bits - 1 + shift), rounded(p, spec.code_bits - 1)
        return carriers.kept_of(
            torch.where(p < 1 << (spec.probability_bits - shift), fine, half + coarse), spec.output.bits
        )

    return operation


def requantize(spec: RequantizeSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.requantize` of codes of another unit."""
    by_table = _by_table(spec, constants, setting)
    if by_table is not None:
        return by_table
    prepared = requantization(spec, constants, setting.device, setting.table, words=False)
    return lambda codes: requantized(carriers.codes_of(codes, spec.input.bits).contiguous(), prepared, 1)


def round_half_even_shift(x: torch.Tensor, shift: int) -> torch.Tensor:
    """`golden.arithmetic.round_half_even_shift` for torch's int64."""
    return x if shift == 0 else (x + ((1 << (shift - 1)) - 1) + ((x >> shift) & 1)) >> shift


def add(spec: AddSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.add`."""
    by_a, by_b, offset, shift = (
        constants[name].astype(np.int64) for name in ("multiplier_a", "multiplier_b", "offset", "shift")
    )
    # What lies lower than its code is made up for in the constant.
    offset = offset + carriers.offset_of(spec.a_bits) * by_a + carriers.offset_of(spec.b_bits) * by_b
    largest = IntFormat(max(spec.a_bits, spec.b_bits)).maximum
    common = common_shift([by_a, by_b], shift, largest, int((np.abs(offset) >> shift).max()))
    if any((up << common) % (1 << down) for up, down in zip(offset.tolist(), shift.tolist(), strict=True)):
        common = 0
    if common:
        by_a, by_b, offset = (multiples(array, shift, common) for array in (by_a, by_b, offset))
        offset = offset + (1 << common >> 1)
    kind = torch.int32 if common else torch.int64
    arrays = [carriers.constant(array, setting.device, kind) for array in (by_a, by_b)]
    arrays += [carriers.constant(array, setting.device) for array in (offset, shift)]
    block = min(128, triton.next_power_of_2(spec.channels))
    rows = max(1, _ELEMENTS // block)

    def operation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if len(a) < len(b):
            a = a.expand(b.shape).contiguous()
        left, right = carriers.as_rows(a), carriers.as_rows(b)
        out = carriers.empty(a.shape, carriers.dtype_of(spec.output_bits), setting.device)
        kept = out.flatten(0, -2)
        launch(
            element_kernels.add, (triton.cdiv(len(left), rows), triton.cdiv(spec.channels, block)),
            left, right, *arrays, kept, len(left), len(right), spec.channels, left.stride(0), right.stride(0),
            kept.stride(0), spec.output.maximum, carriers.offset_of(spec.output_bits),
            SHIFT=common, ROWS=rows, CHANNELS=block,
        )  # fmt: skip
        return out

    return operation


def _rows_a_program(length: int, elements: int = _ELEMENTS) -> tuple[int, int]:
    """Rows of a program, and the power of two that holds one."""
    padded = max(16, triton.next_power_of_2(length))
    return max(1, elements // padded), padded


def layernorm(spec: LayerNormSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.layernorm`."""
    arrays = [carriers.constant(constants[name], setting.device) for name in ("alpha", "gamma", "beta")]
    zero = int(constants["zero_in"]) - carriers.offset_of(spec.input_bits)
    rows, padded = _rows_a_program(spec.channels, _NORM_ELEMENTS)

    def operation(codes: torch.Tensor) -> torch.Tensor:
        found = carriers.as_rows(codes)
        out = carriers.empty(codes.shape, carriers.dtype_of(spec.output_bits), setting.device)
        kept = out.flatten(0, -2)
        launch(
            row_kernels.layernorm, (triton.cdiv(len(found), rows),),
            found, *arrays, kept, len(found), spec.channels, found.stride(0), kept.stride(0), zero,
            int(constants["fraction_bits"]), spec.output.maximum, carriers.offset_of(spec.output_bits),
            MANTISSA=spec.mantissa_bits, RADICAND=spec.radicand_bits, ROWS=rows, CHANNELS=padded,
            num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
        return out

    return operation


def reduced(exponentials: np.ndarray) -> np.ndarray:
    """Without the power of two that all share: results depend on ratios only."""
    bits = int(np.bitwise_or.reduce(exponentials))
    return exponentials >> ((bits & -bits).bit_length() - 1)


def log_softmax(spec: LogSoftmaxSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.log_softmax`."""
    exponentials = reduced(spec.exponentials(constants))
    past = spec.zero_symbol if spec.beyond == "zero" else spec.zero_symbol - 1
    # The largest number is 2S + E, or 5E.
    if max(2 * spec.row_length + 1, 5) * int(exponentials.max()) >= 1 << 53:
        return _wide_log_softmax(spec, exponentials, past, setting)
    table = torch.from_numpy(exponentials.astype(np.float64)).to(setting.device)
    end = ending(spec.output.bits, setting.table, setting.device)

    def operation(scores: torch.Tensor) -> torch.Tensor:
        found = carriers.as_rows(scores)
        rows, padded = _rows_a_program(found.shape[1])
        out = carriers.empty(scores.shape, end.dtype, setting.device)
        kept = out.flatten(0, -2)
        launch(
            row_kernels.log_softmax, (triton.cdiv(len(found), rows),),
            found, table, end.table, kept, len(found), found.shape[1], carriers.readable(found), found.stride(0),
            kept.stride(0), spec.zero_symbol - 1, past, end.offset,
            TABLE=end.has_table, ROWS=rows, LENGTH=padded, num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
        return out

    return operation


def _wide_log_softmax(spec: LogSoftmaxSpec, exponentials: np.ndarray, past: int, setting: Setting) -> Operation:
    """Codes from int64 divisions, for sums that a double does not hold."""
    table = carriers.constant(exponentials, setting.device)
    end = ending(spec.output.bits, setting.table, setting.device)

    def operation(scores: torch.Tensor) -> torch.Tensor:
        codes = scores.to(torch.int64)
        value = table[codes.amax(-1, keepdim=True) - codes]
        total = value.sum(-1, keepdim=True)
        divisor = value.clamp(min=1)
        ratio = torch.div(total, divisor, rounding_mode="floor")
        twice = 2 * (total - ratio * divisor)
        ratio += ((twice > divisor) | ((twice == divisor) & (ratio % 2 == 1))).to(torch.int64)
        # A code is c or more when the ratio reaches 1, 2, 3, 6, 12, ...: `golden.log_softmax.ratio_threshold`.
        code = torch.zeros_like(ratio)
        for bound in [2, *(3 << place for place in range(spec.zero_symbol))]:
            code += (ratio >= bound).to(torch.int64)
        code = torch.where((code >= spec.zero_symbol) | (value == 0), past, code)
        return end.table[code] if end.has_table else (code - end.offset).to(end.dtype)

    return operation


def softmax(spec: SoftmaxSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.softmax`."""
    table = carriers.constant(reduced(spec.exponentials(constants)), setting.device)
    end = ending(spec.output.bits, setting.table, setting.device)

    def operation(scores: torch.Tensor) -> torch.Tensor:
        found = carriers.as_rows(scores)
        rows, padded = _rows_a_program(found.shape[1])
        out = carriers.empty(scores.shape, end.dtype, setting.device)
        kept = out.flatten(0, -2)
        launch(
            row_kernels.softmax, (triton.cdiv(len(found), rows),),
            found, table, end.table, kept, len(found), found.shape[1], carriers.readable(found), found.stride(0),
            kept.stride(0), spec.probability_bits, end.offset,
            TABLE=end.has_table, ROWS=rows, LENGTH=padded, num_warps=4 if padded <= 2048 else 8,
        )  # fmt: skip
        return out

    return operation


def token_mean(spec: TokenMeanSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.token_mean`."""
    prepared = requantization(spec.requantize, constants, setting.device, setting.table, words=False)
    missing = spec.tokens * (carriers.offset_of(spec.bits) - int(constants["zero_in"]))

    def operation(codes: torch.Tensor) -> torch.Tensor:
        sums = codes.sum(dim=1, keepdim=True, dtype=torch.int64) + missing
        return requantized(sums.contiguous(), prepared, 1)

    return operation


def window_bias(spec: WindowBiasSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.windows.WindowBiasSpec`."""
    by_a, by_b, offset, shift = (int(constants[name]) for name in ("multiplier_a", "multiplier_b", "offset", "shift"))
    index = carriers.constant(relative_position_index(spec.window), setting.device).flatten()
    length = spec.window**2

    def operation(scores: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        bias = carriers.codes_of(table[0], spec.table_bits).index_select(0, index).view(length, length, -1)
        total = carriers.codes_of(scores, spec.score_bits) * by_a + (bias.permute(2, 0, 1) * by_b + offset)
        return carriers.kept_of(round_half_even_shift(total, shift).clamp(0, spec.output.maximum), spec.output_bits)

    return operation


def mask_shift(spec: ShiftMaskSpec, constants: Constants, setting: Setting) -> Operation:
    """`golden.windows.ShiftMaskSpec`."""
    masked = torch.from_numpy(shift_mask(spec.height, spec.width, spec.window, spec.shift)[:, None].copy())
    masked, offset = masked.to(setting.device), int(constants["offset"])

    def operation(scores: torch.Tensor) -> torch.Tensor:
        moved = carriers.codes_of(scores, spec.bits) + offset
        return carriers.kept_of(moved.masked_fill(masked, 0), spec.output_bits)

    return operation


UNITS: dict[str, Callable[[Any, Constants, Setting], Operation]] = {
    "lookup": lookup,
    "adalog_decode": adalog_decode,
    "adalog_quantize": adalog_quantize,
    "twin_quantize": twin_quantize,
    "requantize": requantize,
    "add": add,
    "layernorm": layernorm,
    "log_softmax": log_softmax,
    "softmax": softmax,
    "token_mean": token_mean,
    "window_bias": window_bias,
    "shift_mask": mask_shift,
}
