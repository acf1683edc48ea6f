# amaranth: UnusedElaboratable=no
"""What is proven: for every kind of unit, small ones whose inputs can all be covered.

The expected outputs come from `Spec.compute` (or `accumulate`) in `golden`, for every row of inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from golden.adalog import (
    AdaLogDecodeSpec,
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.layernorm import LayerNormSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.log_sqrt2 import LogSqrt2SumsSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat, Spec
from rtl import catalog
from rtl.stream import StreamUnit
from sim_tests.formal.ranges import Limit
from sim_tests.formal.rows import Framing, Table


@dataclass(frozen=True)
class Variation:
    """What a comparison with the reference leaves free, where all of it at a time would take the solver hours.

    Attributes
    ----------
    rows : int
    depth : int
        Cycles.
    lengths : tuple of int, optional
        Of the rows; all that the table has by default.
    stalls : tuple of {"sender", "receiver"}
        Who may wait.
    resets : bool
        Resets may come at any time.
    """

    rows: int
    depth: int
    lengths: tuple[int, ...] | None = None
    stalls: tuple[str, ...] = ("sender", "receiver")
    resets: bool = False


@dataclass(frozen=True)
class Case:
    """A small unit.

    Attributes
    ----------
    spec : Spec
    constants : dict
    framing : callable
        From the lanes to the `Framing`.
    longest : int
        Elements of the longest row that is compared.
    table : callable
        The `Table` of a unit of one lane.
    depth : int
        Cycles in which two rows pass with stalls on both sides.
    variations : tuple of Variation
        Comparisons with the reference, instead of one of two rows with resets and stalls on both sides.
    overflow_depth : int, optional
        Cycles of the overflow proof, where `depth` takes the solver too long.
    """

    spec: Any
    constants: Constants
    framing: Callable[[int], Framing]
    longest: int
    table: Callable[[], Table]
    depth: int
    variations: tuple[Variation, ...] = ()
    overflow_depth: int | None = None

    @property
    def kind(self) -> str:
        return self.spec.kind

    def baked(self, lanes: int = 1) -> StreamUnit:
        """The unit with its constants built in."""
        return catalog.entry(self.kind).unit(self.spec, lanes=lanes, constants=self.constants)

    def loadable(self, lanes: int = 1) -> StreamUnit:
        """The unit that is loaded at run time."""
        return catalog.covering([(self.spec, self.constants)], lanes=lanes)


def cases() -> dict[str, Case]:
    """The case of every unit in `rtl.catalog`."""
    found = [_lookup(), _requantize(), _adalog_quantize(), _adalog_decode(), _log2_matmul(), _adalog_matmul()]
    found += [_log_sqrt2_sums(), _log_softmax(), _layernorm()]
    return {case.kind: case for case in found}


def _beat_for_beat(lanes: int) -> Framing:
    return Framing()


def _a_beat_a_row(lanes: int) -> Framing:
    return Framing(beats_out=1, last_lanes=lanes)


def _a_beat_of_two_sums_a_row(lanes: int) -> Framing:
    return Framing(beats_out=1, last_lanes=2 * lanes)


def _checked(spec: Spec, constants: dict[str, Any]) -> tuple[Any, Constants]:
    return spec, spec.check_constants({name: np.asarray(value) for name, value in constants.items()})


def _bits(value: int, width: int) -> int:
    return value & ((1 << width) - 1)


def _elementwise(spec: Any, constants: Constants, length: int, inputs: Sequence[int] = ()) -> Table:
    """Every element at every place of a row."""
    patterns = list(inputs) or list(range(1 << spec.input.bits))
    signed = spec.input.signed
    values = [p - (1 << spec.input.bits) if signed and p >> (spec.input.bits - 1) else p for p in patterns]
    rows = np.repeat(np.array(values)[:, None], length, axis=1)
    results = spec.compute(constants, rows)
    outputs = {
        (place, pattern): _bits(int(results[number, place]), spec.output.bits)
        for number, pattern in enumerate(patterns)
        for place in range(length)
    }
    lengths = (length,) if getattr(spec, "channels", 1) > 1 else tuple(range(1, length + 1))
    return Table(lengths, True, length, outputs, tuple(inputs))


def _joined(values: Sequence[int], width: int) -> int:
    return sum(_bits(value, width) << place * width for place, value in enumerate(values))


def _rows(spec: Any, constants: Constants, lengths: Sequence[int]) -> Table:
    """Every row of each length, computed row by row."""
    outputs = {}
    for length in lengths:
        rows = np.array(list(itertools.product(range(1 << spec.input.bits), repeat=length)))
        for row, result in zip(rows.tolist(), spec.compute(constants, rows).tolist(), strict=True):
            outputs[length, _joined(row, spec.input.bits)] = _joined(result, spec.output.bits)
    return Table(tuple(lengths), False, max(lengths), outputs)


def _products(spec: Any, constants: Constants, lengths: Sequence[int]) -> Table:
    """Every row of codes with every column of V; an element is the code and, above it, the value."""
    code, value = spec.inputs
    codes, width = spec.zero_symbol + 1, code.bits + value.bits
    elements = [(c, v) for c in range(codes) for v in range(1 << value.bits)]
    outputs = {}
    for length in lengths:
        for row in itertools.product(elements, repeat=length):
            c, v = np.array([[pair[0] for pair in row]]), np.array([[pair[1]] for pair in row])
            if isinstance(spec, LogSqrt2SumsSpec):
                totals, bits = spec.compute(constants, c, v)[0, 0].tolist(), spec.output.bits
            else:
                totals, bits = [int(spec.accumulate(constants, c, v)[0, 0])], spec.accumulator.bits
            packed = _joined([pair[1] << code.bits | pair[0] for pair in row], width)
            outputs[length, packed] = _joined(totals, bits)
    return Table(tuple(lengths), False, 1, outputs, tuple(v << code.bits | c for c, v in elements))


def _lookup() -> Case:
    table = np.random.default_rng(3).permutation(16).reshape(2, 8)
    spec, constants = _checked(LookupSpec(input_bits=3, output_bits=4, channels=2), {"table": table})
    return Case(spec, constants, _beat_for_beat, 2, lambda: _elementwise(spec, constants, 2), 12)


def _requantize() -> Case:
    fields = {"output_bits": 4, "multiplier_bits": 4, "shift_bits": 3}
    spec, constants = _checked(
        RequantizeSpec(input=IntFormat(6, signed=True), channels=2, **fields),
        {"multiplier": [11, 6], "shift": [4, 2], "zero_point": 5},
    )
    return Case(spec, constants, _beat_for_beat, 2, lambda: _elementwise(spec, constants, 2), 19)


def _adalog_quantize() -> Case:
    thresholds = adalog_thresholds(2, 29, probability_scale(5))
    spec, constants = _checked(AdaLogQuantizeSpec(input_bits=6, code_bits=2), {"thresholds": thresholds})
    return Case(spec, constants, _beat_for_beat, 2, lambda: _elementwise(spec, constants, 2), 13)


def _tables(code_bits: int, q: int) -> dict[str, np.ndarray]:
    shift, mantissa = adalog_tables(code_bits, q)
    return {"shift_table": shift, "mantissa_table": mantissa}


def _adalog_decode() -> Case:
    spec, constants = _checked(AdaLogDecodeSpec(code_bits=2, guard_bits=1, largest_shift=2), _tables(2, 29))
    codes = range(spec.zero_symbol + 1)
    return Case(spec, constants, _beat_for_beat, 2, lambda: _elementwise(spec, constants, 2, codes), 14)


def _requantizer(bits: int) -> RequantizeSpec:
    accumulator = IntFormat(bits, signed=True)
    return RequantizeSpec(input=accumulator, output_bits=4, multiplier_bits=4, shift_bits=3, channels=1)


def _log2_matmul() -> Case:
    spec, constants = _checked(
        Log2MatmulSpec(code_bits=2, value_bits=2, row_length=2, requantize=_requantizer(7)),
        {"zero_v": 1, "multiplier": [1], "shift": [0], "zero_point": 0},
    )
    return Case(spec, constants, _a_beat_a_row, 2, lambda: _products(spec, constants, (1, 2)), 14)


def _adalog_matmul() -> Case:
    guard_bits = lossless_guard_bits(2, 29) - 1
    spec, constants = _checked(
        AdaLogMatmulSpec(
            code_bits=2, value_bits=2, row_length=2, guard_bits=guard_bits, largest_shift=2, requantize=_requantizer(8)
        ),
        {"zero_v": 1, **_tables(2, 29), "multiplier": [1], "shift": [0], "zero_point": 0},
    )
    return Case(spec, constants, _a_beat_a_row, 2, lambda: _products(spec, constants, (1, 2)), 18)


def _log_sqrt2_sums() -> Case:
    """No guard bits: the last two codes are rounded down."""
    spec, constants = _checked(
        LogSqrt2SumsSpec(code_bits=2, value_bits=2, row_length=2, guard_bits=0, accumulator_bits=5), {"zero_v": 1}
    )
    return Case(spec, constants, _a_beat_of_two_sums_a_row, 2, lambda: _products(spec, constants, (1, 2)), 14)


def _log_softmax() -> Case:
    scores = exponential_constants(0.5)
    spec, constants = _checked(
        LogSoftmaxSpec(score_bits=2, code_bits=2, fraction_bits=3, row_length=3, polynomial_bits=4), scores
    )

    def framing(lanes: int) -> Framing:
        return Framing(beats_in=-(-spec.row_length // lanes))

    variations = (Variation(1, 28), Variation(2, 30, lengths=(1, 2)))
    # A row of one element has its code in 21 cycles; each cycle more takes the solver minutes.
    return Case(spec, constants, framing, 3, lambda: _rows(spec, constants, (1, 2, 3)), 30, variations, 21)


def _layernorm() -> Case:
    spec, constants = _checked(
        LayerNormSpec(
            channels=2,
            input_bits=2,
            output_bits=3,
            alpha_bits=1,
            mantissa_bits=4,
            radicand_bits=4,
            gamma_bits=4,
            beta_bits=5,
            fraction_bits_bits=2,
        ),
        {"zero_in": 1, "alpha": [0, 1], "gamma": [5, -3], "beta": [8, 13], "fraction_bits": 1},
    )

    def framing(lanes: int) -> Framing:
        beats = -(-spec.channels // lanes)
        return Framing(beats_in=beats, drops_surplus=True, beats_out=beats, last_lanes=spec.channels % lanes or lanes)

    variations = (Variation(2, 64, stalls=("receiver",)), Variation(1, 43, stalls=("sender",)))
    return Case(spec, constants, framing, 2, lambda: _rows(spec, constants, (2,)), 60, variations)


def full_size(kind: str) -> Iterator[tuple[str, Any, Constants, dict[str, Limit]]]:
    """Units of a kind at the widths that the networks use: the embedded one (rows of 50, 64 channels) and DeiT-Tiny.

    Yields
    ------
    name : str
    spec, constants
    limits : dict
        Accumulators by name, with the most terms a row gives them, or with the bounds that `golden` proves for them.
    """
    rng = np.random.default_rng(7)
    for length, channels in ((50, 64), (197, 192)):
        row = f"rows of {length}"
        if kind == "lookup":
            spec, constants = _checked(
                LookupSpec(input_bits=8, output_bits=8), {"table": rng.integers(0, 256, (1, 256))}
            )
            yield "8 to 8 bits", spec, constants, {}
            return
        if kind == "requantize":
            widths = RequantizeSpec(
                input=IntFormat(24, signed=True), output_bits=8, multiplier_bits=15, shift_bits=6, channels=channels
            )
            scale = {"multiplier": np.full(channels, 32767), "shift": np.full(channels, 22), "zero_point": 128}
            yield f"{channels} channels", *_checked(widths, scale), {}
        elif kind == "adalog_quantize":
            quantizer = AdaLogQuantizeSpec(input_bits=16, code_bits=4)
            thresholds = adalog_thresholds(4, 29, probability_scale(15))
            yield "16 to 4 bits", *_checked(quantizer, {"thresholds": thresholds}), {}
            return
        elif kind == "adalog_decode":
            decoder = AdaLogDecodeSpec(code_bits=4, guard_bits=lossless_guard_bits(4, 29), largest_shift=63)
            yield "4-bit codes", *_checked(decoder, _tables(4, 29)), {}
            return
        elif kind == "log2_matmul":
            product = Log2MatmulSpec(code_bits=4, value_bits=8, row_length=length, requantize=_requantizer(26))
            zero = {"zero_v": 128, "multiplier": [1], "shift": [0], "zero_point": 0}
            spec, constants = _checked(product, zero)
            yield row, spec, constants, {"accumulator_0": spec.bounds(constants)}
        elif kind == "adalog_matmul":
            guard_bits = lossless_guard_bits(4, 29)
            adalog = AdaLogMatmulSpec(
                code_bits=4,
                value_bits=8,
                row_length=length,
                guard_bits=guard_bits,
                largest_shift=guard_bits,
                requantize=_requantizer(34),
            )
            zero = {"zero_v": 128, **_tables(4, 29), "multiplier": [1], "shift": [0], "zero_point": 0}
            yield row, *_checked(adalog, zero), {"accumulator_0": length}
        elif kind == "log_sqrt2_sums":
            sums = LogSqrt2SumsSpec(code_bits=4, value_bits=8, row_length=length, guard_bits=7, accumulator_bits=30)
            spec, constants = _checked(sums, {"zero_v": 128})
            yield row, spec, constants, {f"accumulator_{bank}": length for bank in range(2)}
        elif kind == "log_softmax":
            softmax = LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=16, row_length=length, polynomial_bits=12)
            # With the first scale a base of -1 is in the table, see `rtl.log2_ratio`, with the second none.
            step = 0.06 if length == 50 else 0.05
            yield row, *_checked(softmax, exponential_constants(step)), {"running_sum": length}
        else:
            norm = LayerNormSpec(
                channels=channels,
                input_bits=8,
                output_bits=8,
                alpha_bits=2,
                mantissa_bits=14,
                radicand_bits=16,
                gamma_bits=12,
                beta_bits=20,
            )
            affine = {
                "zero_in": 128,
                "alpha": rng.integers(0, 4, channels),
                "gamma": rng.integers(-2000, 2000, channels),
                "beta": rng.integers(0, 1 << 18, channels),
                "fraction_bits": 9,
            }
            yield f"{channels} channels", *_checked(norm, affine), {"row_sum": channels}
