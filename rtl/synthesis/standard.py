# amaranth: UnusedElaboratable=no
"""The configurations of the published table: DeiT-Tiny's widths, lanes and row lengths as asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.accumulate import signed_bits
from golden.adalog import (
    AdaLogDecodeSpec,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    lossless_guard_bits,
)
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec
from golden.log_sqrt2 import LogSqrt2SumsSpec
from golden.log_sqrt2 import lossless_guard_bits as log_sqrt2_guard_bits
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from rtl import catalog
from rtl.adalog_decode import AdaLogDecode
from rtl.adalog_matmul import AdaLogMatmul
from rtl.adalog_quantize import AdaLogQuantize
from rtl.layernorm import LayerNorm
from rtl.log2_matmul import Log2Matmul
from rtl.log_softmax import LogSoftmax
from rtl.log_sqrt2_sums import LogSqrt2Sums
from rtl.lookup import Lookup
from rtl.requantize import Requantize
from rtl.stream import StreamUnit

LANES = (1, 2, 4, 8)
ROWS = (50, 197, 577, 1025)
# The token count of DeiT at 224 x 224 pixels; units whose area hardly depends on the row are listed at it only.
ROW = 197
CHANNELS = 192
# An AdaLog base that calibration of DeiT-Tiny at W4A4 chooses often, 2**(17/37).
ADALOG_Q = 17


@dataclass(frozen=True)
class Point:
    """One configuration of a unit.

    Attributes
    ----------
    unit : str
        Its kind.
    widths : str
        What is special about the configuration, for the table.
    row : int
        Elements of the row that the throughput is stated for.
    lanes : int
    build : callable
        Makes the unit.
    """

    unit: str
    widths: str
    row: int
    lanes: int
    build: Callable[[], StreamUnit]

    def elements_a_cycle(self, unit: StreamUnit) -> float:
        """Elements (products, of a matrix product) a cycle, sustained, rows back to back."""
        work = self.row * (self.lanes if catalog.is_product(self.unit) else 1)
        return work / unit.cycles_per_row(self.row)


def _requantize(accumulator_bits: int) -> RequantizeSpec:
    """Of one tensor, with the widths that lowering takes."""
    input_format = IntFormat(accumulator_bits, signed=True)
    return RequantizeSpec(input=input_format, output_bits=8, multiplier_bits=16, shift_bits=6, channels=1)


def _log_softmax(row: int, lanes: int) -> StreamUnit:
    spec = LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=20, row_length=row, polynomial_bits=10)
    # What `LogSoftmax.covering` finds for score scales about 0.06.
    return LogSoftmax(spec, lanes=lanes, exponential_bits=30, mantissa_bits=11)


def _layernorm(channels: int, lanes: int) -> StreamUnit:
    spec = LayerNormSpec(
        channels=channels, input_bits=8, output_bits=8, alpha_bits=2, mantissa_bits=12, radicand_bits=16,
        gamma_bits=12, beta_bits=15,
    )  # fmt: skip
    return LayerNorm(spec, lanes=lanes, fraction_range=(5, 6))


def _log2_matmul(row: int, lanes: int) -> StreamUnit:
    # A row of softmax codes weighs less than 1.5, so that its sums fit 25 bits at any length.
    spec = Log2MatmulSpec(code_bits=4, value_bits=8, row_length=row, requantize=_requantize(25))
    return Log2Matmul(spec, lanes=lanes)


def _adalog_matmul(row: int, lanes: int) -> StreamUnit:
    code_bits, value_bits = 4, 4
    guard_bits = lossless_guard_bits(code_bits, ADALOG_Q)
    wide = AdaLogMatmulSpec(
        code_bits=code_bits,
        value_bits=value_bits,
        row_length=row,
        guard_bits=guard_bits,
        largest_shift=guard_bits,
        requantize=_requantize(40),
    )
    shift, mantissa = adalog_tables(code_bits, ADALOG_Q)
    bounds = wide.bounds({"shift_table": shift, "mantissa_table": mantissa, "zero_v": np.array(0)})
    return AdaLogMatmul(dataclasses.replace(wide, requantize=_requantize(signed_bits(*bounds))), lanes=lanes)


def _log_sqrt2_sums(row: int, lanes: int) -> StreamUnit:
    wide = LogSqrt2SumsSpec(
        code_bits=4, value_bits=4, row_length=row, guard_bits=log_sqrt2_guard_bits(4), accumulator_bits=40
    )
    bounds = wide.bounds({"zero_v": np.array(0)})
    return LogSqrt2Sums(dataclasses.replace(wide, accumulator_bits=signed_bits(*bounds)), lanes=lanes)


def _adalog_decode(lanes: int) -> StreamUnit:
    guard_bits = lossless_guard_bits(4, ADALOG_Q)
    return AdaLogDecode(AdaLogDecodeSpec(code_bits=4, guard_bits=guard_bits, largest_shift=guard_bits), lanes=lanes)


# Kind: widths, whether the row length is a parameter, and how to build it from row (or channels) and lanes.
_UNITS: dict[str, tuple[str, bool, Callable[[int, int], StreamUnit]]] = {
    "adalog_quantize": (
        "17 -> 4 bit + zero", False,
        lambda row, lanes: AdaLogQuantize(AdaLogQuantizeSpec(input_bits=17, code_bits=4), lanes=lanes),
    ),
    "adalog_matmul": ("4-bit codes x 4-bit values", True, _adalog_matmul),
    "log_sqrt2_sums": ("4-bit codes x 4-bit values, two sums", True, _log_sqrt2_sums),
    "log2_matmul": ("4-bit codes x 8-bit values", True, _log2_matmul),
    "lookup": (
        "8 -> 8 bit (GELU)", False,
        lambda row, lanes: Lookup(LookupSpec(input_bits=8, output_bits=8), lanes=lanes),
    ),
    "requantize": ("24 x 16 -> 8 bit", False, lambda row, lanes: Requantize(_requantize(24), lanes=lanes)),
    "adalog_decode": ("4-bit codes + zero -> 11 bit", False, lambda row, lanes: _adalog_decode(lanes)),
    "log_softmax": ("8 -> 4 bit + zero", True, _log_softmax),
    "layernorm": ("8 -> 8 bit, PTS", True, _layernorm),
}  # fmt: skip
KINDS = tuple(_UNITS)


def points(
    units: Sequence[str] = (),
    *,
    lanes: Sequence[int] = LANES,
    rows: Sequence[int] | None = None,
    channels: Sequence[int] = (CHANNELS,),
) -> list[Point]:
    """Configurations to measure.

    Parameters
    ----------
    units : sequence of str
        Kinds; all by default.
    lanes : sequence of int
    rows : sequence of int, optional
        Row lengths of the units that are built for one. By default `ROWS` for Log-Int-Softmax and `ROW`
        for the others.
    channels : sequence of int
        Of the LayerNorm.

    Raises
    ------
    HwsimError
        There is no unit of a name.
    """
    unknown = [unit for unit in units if unit not in _UNITS]
    if unknown:
        raise HwsimError(f"there is no hardware unit {unknown[0]!r}; there are {', '.join(sorted(_UNITS))}")
    chosen = []
    for unit in units or KINDS:
        widths, has_row, build = _UNITS[unit]
        if unit == "layernorm":
            lengths: Sequence[int] = channels
        elif has_row:
            lengths = rows or (ROWS if unit == "log_softmax" else (ROW,))
        else:
            lengths = (ROW,)
        for length in lengths:
            chosen += [Point(unit, widths, length, each, _deferred(build, length, each)) for each in lanes]
    return chosen


def _deferred(build: Callable[[int, int], Any], row: int, lanes: int) -> Callable[[], StreamUnit]:
    return lambda: build(row, lanes)
