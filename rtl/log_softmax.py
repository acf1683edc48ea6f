# amaranth: UnusedElaboratable=no
"""Log-Int-Softmax in three overlapped passes over a row: maximum, sum, codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from golden.errors import HwsimError
from golden.log_softmax import LogSoftmaxSpec
from golden.spec import Constants
from rtl.delay import delay
from rtl.log2_ratio import ExponentialFormat, Log2Ratio
from rtl.row_buffer import RowBuffer, RowQueue, block_ram
from rtl.stream import check_equal, row_layout, row_signature, shape_of, write_signature

# What the write address says above its low `score_bits`.
EXPONENTIALS, THRESHOLDS, PEAK_LIMIT = range(3)
# Beats that a row buffer holds beyond the longest row, to cover the pipeline around it.
BUFFER_SLACK = 16


class LogSoftmax(wiring.Component):
    """Scores to Log2 codes, a beat a cycle, without a divider and without a multiplier.

    Three passes work on three rows at a time, a beat a cycle each:

    1. *maximum*: the scores go into a row buffer while their maximum is found;
    2. *sum*: read back, subtracted from the maximum and looked up in a table of
       exponentials, which are summed; the differences go into a second row buffer;
    3. *codes*: the differences are read back and looked up again, and `Log2Ratio`
       compares the sum with each exponential.

    All tables depend on the difference from the maximum only. `writes` scales them so that the
    exponential of the maximum fills its word; the ratio to the sum is not changed by that.

    * Throughput: 1 beat a cycle in and out, rows back to back; a row of N elements takes
      ``ceil(N / lanes)`` cycles. Rows of different lengths may be mixed; the input then
      only pauses when more than eleven rows wait between two passes, behind a longer one.
    * Latency: see `latency`; nothing depends on the data.
    * A row longer than ``spec.row_length`` is ended after ``ceil(row_length / lanes)`` beats: that
      beat leaves with ``last``, and what follows is a row of its own.
    * Back-pressure: the output stops pass 3 only; the other passes run until the row buffers
      or the queues of maxima and sums are full.
    * Constants may be written while no row is inside.

    Parameters
    ----------
    spec : LogSoftmaxSpec
    lanes : int
        Elements a beat.
    exponential_bits, mantissa_bits : int, optional
        Width of the exponentials, and of the mantissa (without its leading one) of three times an
        exponential. By default what `spec` allows at most; `covering` takes what the layers need.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: address d is the
        exponential d steps below the maximum, address ``2**score_bits + d`` its threshold,
        ``2 * 2**score_bits`` the limit of a peak (`Log2Ratio`).

    Attributes
    ----------
    i : In(stream), elements of `score_bits`
    o : Out(stream), elements of `code_bits`, one more with a zero symbol
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits", "beyond")

    def __init__(
        self,
        spec: LogSoftmaxSpec,
        *,
        lanes: int = 1,
        exponential_bits: int | None = None,
        mantissa_bits: int | None = None,
        constants: Constants | None = None,
    ):
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        self.beats = -(-spec.row_length // lanes)
        self._levels = (lanes - 1).bit_length()  # of the trees over the lanes of a beat
        mantissa_bits = spec.polynomial_bits + 1 if mantissa_bits is None else mantissa_bits
        self.format = ExponentialFormat(
            exponential_bits=max(
                mantissa_bits, spec.exponential_bits if exponential_bits is None else exponential_bits
            ),
            mantissa_bits=mantissa_bits,
            count=self.beats * lanes,
            code_bits=spec.code_bits,
        )
        self._ratio = Log2Ratio(self.format, lanes=lanes, zero_symbol=spec.beyond == "zero")
        self._baked = {} if constants is None else dict(self.writes(spec, spec.check_constants(constants)))
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            ports["w"] = In(write_signature(spec.score_bits + 2, self.format.word_bits))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[LogSoftmaxSpec, Constants]], *, lanes: int = 1) -> LogSoftmax:
        """The smallest loadable unit that serves all the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        widest = max(specs, key=lambda spec: spec.exponential_bits)
        spec = dataclasses.replace(
            widest,
            score_bits=max(spec.score_bits for spec in specs),
            row_length=max(spec.row_length for spec in specs),
        )
        exponential_bits, mantissa_bits = ExponentialFormat.needed(
            [layer.exponentials(constants).tolist() for layer, constants in layers]
        )
        return cls(spec, lanes=lanes, exponential_bits=exponential_bits, mantissa_bits=mantissa_bits)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {
            "lanes": self.lanes,
            "exponential_bits": self.format.exponential_bits,
            "mantissa_bits": self.format.mantissa_bits,
            "sum_bits": self.format.sum_bits,
        }

    def cycles_per_row(self, length: int) -> int:
        """``ceil(length / lanes)``."""
        return -(-length // self.lanes)

    def writes(self, spec: LogSoftmaxSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's tables.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        for field in ("score_bits", "row_length"):
            if getattr(spec, field) > getattr(self.spec, field):
                raise HwsimError(
                    f"log_softmax: the unit has {field} {getattr(self.spec, field)}, the layer {getattr(spec, field)}; "
                    "build it to cover this layer"
                )
        exponentials, thresholds, peak_limit = self.format.words(spec.exponentials(constants).tolist())
        bits = self.spec.score_bits
        return [
            *enumerate(exponentials, EXPONENTIALS << bits),
            *enumerate(thresholds, THRESHOLDS << bits),
            (PEAK_LIMIT << bits, peak_limit),
        ]

    @property
    def latency(self) -> int:
        """Cycles from the last beat of the longest row taken to its first result; see `row_latency`."""
        return self.row_latency(self.spec.row_length)

    def row_latency(self, length: int) -> int:
        """Cycles from the last beat of a row taken to its first result: pass 2 reads all of it in between."""
        return self.cycles_per_row(length) + 14 + self._score_wait + self._difference_wait + self._ratio.latency

    @property
    def _score_wait(self) -> int:
        """Cycles by which the maximum of a row, known `_levels` + 2 after its last score, is later than that one."""
        return max(self._levels - 3, 0)

    @property
    def _difference_wait(self) -> int:
        """The same of the sum of a row, known `_levels` + 5 after its last difference."""
        return max(self._levels - 2, 0)

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """What lies where behind the write port."""
        bits = self.spec.score_bits
        mantissa, word = self.format.mantissa_bits, self.format.threshold.size
        return [
            (
                f"{EXPONENTIALS << bits:#x} + d",
                f"exponential E of a score d steps below the maximum, {self.format.exponential_bits} bits",
            ),
            (
                f"{THRESHOLDS << bits:#x} + d",
                f"3*E: [{mantissa - 1}:0] below its leading one, [{word - 1}:{mantissa}] code offset",
            ),
            (
                f"{PEAK_LIMIT << bits:#x}",
                f"3*E at d = 0, its top {mantissa + 2} bits: a row sum below half of it is a peak",
            ),
        ]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = row_layout(unsigned(self.spec.score_bits), self.lanes)
        depth = 1 << (self.beats + BUFFER_SLACK - 1).bit_length()
        # A row may be fetched a few cycles before its maximum (its sum) enters the queue.
        m.submodules.scores = scores = RowBuffer(beat, depth=depth, wait=self._score_wait)
        m.submodules.differences = differences = RowBuffer(beat, depth=depth, wait=self._difference_wait)
        m.submodules.maxima = maxima = RowQueue(unsigned(self.spec.score_bits))
        m.submodules.sums = sums = RowQueue(unsigned(self.format.sum_bits))
        self._find_maximum(m, scores, maxima)
        self._sum_exponentials(m, scores, maxima, differences, sums)
        self._emit_codes(m, differences, sums)
        return m

    def _find_maximum(self, m: Module, scores: RowBuffer, maxima: RowQueue) -> None:
        """Pass 1: take beats, buffer them, put the maximum of each row into the queue."""
        room = Signal()
        m.d.sync += room.eq(~(scores.nearly_full | maxima.nearly_full))
        taken = self.i.valid & room
        m.d.comb += self.i.ready.eq(room)

        # End a row that is longer than the unit was built for.
        beats_left = Signal(range(self.beats), init=self.beats - 1)
        last = self.i.payload.last | (beats_left == 0)
        with m.If(taken):
            m.d.sync += beats_left.eq(Mux(last, self.beats - 1, beats_left - 1))

        score_taken = delay(m, taken, "score_taken", reset_less=False)
        score = Signal(scores.write_beat.shape(), reset_less=True)
        m.d.sync += [score.keep.eq(self.i.payload.keep), score.last.eq(last)]
        for lane in range(self.lanes):
            m.d.sync += score.data[lane].eq(Mux(self.i.payload.keep[lane], self.i.payload.data[lane], 0))
        m.d.comb += [
            scores.write.eq(score_taken),
            scores.write_beat.eq(score),
            maxima.reserve.eq(score_taken & score.last),
        ]

        candidate = _tree(m, list(score.data), lambda a, b: Mux(a > b, a, b), "larger")
        candidate_valid = delay(m, score_taken, "candidate_valid", self._levels, reset_less=False)
        candidate_last = delay(m, score_taken & score.last, "candidate_last", self._levels, reset_less=False)
        first_of_row = Signal(init=1)
        maximum = Signal(self.spec.score_bits, reset_less=True)
        with m.If(candidate_valid):
            m.d.sync += first_of_row.eq(candidate_last)
            with m.If(first_of_row | (candidate > maximum)):
                m.d.sync += maximum.eq(candidate)
        maximum_known = delay(m, candidate_last, "maximum_known", reset_less=False)
        m.d.comb += [maxima.push.eq(maximum_known), maxima.value.eq(maximum)]

    def _sum_exponentials(
        self, m: Module, scores: RowBuffer, maxima: RowQueue, differences: RowBuffer, sums: RowQueue
    ) -> None:
        """Pass 2: buffer the differences from the maximum, put the sum of exponentials into the queue."""
        hold = Signal()
        m.d.sync += hold.eq(differences.nearly_full | sums.nearly_full)
        m.d.comb += [scores.enable.eq(1), scores.fetch.eq(~hold)]

        # Two registers behind every block RAM: one beside it, for its output is slow, one where it is needed.
        score_read = delay(m, scores.read_valid, "score_read", reset_less=False)
        score = delay(m, scores.read_beat, "score_unplaced")
        m.d.comb += sums.reserve.eq(score_read & score.last)
        score_read = delay(m, score_read, "score_placed", reset_less=False)
        score = delay(m, score, "score_again")
        m.d.comb += maxima.pop.eq(score_read & score.last)
        difference_valid = delay(m, score_read, "difference_valid", reset_less=False)
        difference = Signal(differences.write_beat.shape(), reset_less=True)
        m.d.sync += [difference.keep.eq(score.keep), difference.last.eq(score.last)]
        for lane in range(self.lanes):
            m.d.sync += difference.data[lane].eq(maxima.oldest - score.data[lane])
        m.d.comb += [differences.write.eq(difference_valid), differences.write_beat.eq(difference)]

        # What is no element of a row adds 0, so that the sum needs no enable; nor may anything that was
        # on its way before a reset: these registers have one.
        adds = delay(m, difference.keep & difference_valid.replicate(self.lanes), "adds", 2, reset_less=False)
        exponentials = []
        for lane, table in enumerate(self._tables(m, "sum_exponentials", self.format.exponential_bits, EXPONENTIALS)):
            m.d.comb += [table.addr.eq(difference.data[lane]), table.en.eq(1)]
            exponential = Signal(self.format.exponential_bits, name=f"exponential_{lane}")
            word = delay(m, table.data, f"exponential_{lane}_unplaced")
            m.d.sync += exponential.eq(Mux(adds[lane], word, 0))
            exponentials.append(exponential)
        beat_sum = _tree(m, exponentials, lambda a, b: a + b, "exponential_sum", reset_less=False)
        beat_last = delay(m, difference_valid & difference.last, "sum_last", 3 + self._levels, reset_less=False)

        running_sum = Signal(self.format.sum_bits)
        total = (running_sum + beat_sum)[: self.format.sum_bits]
        m.d.sync += running_sum.eq(Mux(beat_last, 0, total))
        m.d.comb += [
            sums.value.eq(delay(m, total, "row_sum")),
            sums.push.eq(delay(m, beat_last, "row_sum_known", reset_less=False)),
        ]

    def _emit_codes(self, m: Module, differences: RowBuffer, sums: RowQueue) -> None:
        """Pass 3: look the differences up again and compare with the sum; moves while the output does."""
        m.submodules.ratio = ratio = self._ratio
        advance = Signal()
        m.d.comb += [
            advance.eq(self.o.ready | ~self.o.valid),
            differences.enable.eq(advance),
            differences.fetch.eq(1),
            ratio.enable.eq(advance),
            ratio.peak_limit.eq(self._peak_limit(m)),
        ]
        later = partial(delay, m, enable=advance)
        difference_read = later(differences.read_valid, "difference_read", 2, reset_less=False)
        difference = later(differences.read_beat, "difference_again", 2)
        looked_up = later(difference_read, "looked_up", 2, reset_less=False)
        marks = later(Cat(difference.keep, difference.last), "looked_up_marks", 2)
        m.d.comb += [
            sums.pop.eq(advance & looked_up & marks[-1]),
            ratio.total.eq(later(sums.oldest, "coded_sum")),
        ]
        for name, bits, region, inputs in (
            ("code_exponentials", self.format.exponential_bits, EXPONENTIALS, ratio.exponentials),
            ("code_thresholds", self.format.threshold.size, THRESHOLDS, ratio.thresholds),
        ):
            for lane, table in enumerate(self._tables(m, name, bits, region)):
                m.d.comb += [
                    table.addr.eq(difference.data[lane]),
                    table.en.eq(advance),
                    Value.cast(inputs[lane]).eq(later(table.data, f"{name}_{lane}_word", 2)),
                ]

        stages = 1 + ratio.latency
        output = self.o.payload
        m.d.comb += [
            output.data.eq(ratio.codes),
            Cat(output.keep, output.last).eq(later(marks, "coded_marks", stages)),
            self.o.valid.eq(later(looked_up, "coded", stages, reset_less=False)),
        ]

    def _tables(self, m: Module, name: str, bits: int, region: int) -> list[memory.ReadPort]:
        """A table a lane, all of one content; writes go to those of their region."""
        depth = 1 << self.spec.score_bits
        baked = [self._baked.get(address, 0) for address in range(region * depth, (region + 1) * depth)]
        readers = []
        for lane in range(self.lanes):
            m.submodules[f"{name}_{lane}"] = table = block_ram(unsigned(bits), depth, baked)
            reader = table.read_port()
            readers.append(reader)
            if self.loadable:
                writer = table.write_port()
                m.d.comb += [
                    writer.addr.eq(self.w.payload.address[: self.spec.score_bits]),
                    writer.data.eq(self.w.payload.data[:bits]),
                    writer.en.eq(self._writing(region)),
                ]
        return readers

    def _peak_limit(self, m: Module) -> Value:
        """The register of the limit of a peak."""
        peak_limit = Signal(self.format.mantissa_bits + 2, init=self._baked.get(PEAK_LIMIT << self.spec.score_bits, 0))
        if self.loadable:
            with m.If(self._writing(PEAK_LIMIT)):
                m.d.sync += peak_limit.eq(self.w.payload.data[: len(peak_limit)])
        return peak_limit

    def _writing(self, region: int) -> Value:
        return self.w.valid & (self.w.payload.address[self.spec.score_bits :] == region)


def _tree(
    m: Module, values: list[Value], combine: Callable[[Value, Value], Value], name: str, *, reset_less: bool = True
) -> Value:
    """Values combined in pairs, a register after each of the ``log2(len(values))`` levels."""
    level = 0
    while len(values) > 1:
        combined = [combine(*values[first : first + 2]) for first in range(0, len(values) - 1, 2)]
        odd = values[len(combined) * 2 :]
        values = [
            delay(m, value, f"{name}_{level}_{at}", reset_less=reset_less) for at, value in enumerate(combined + odd)
        ]
        level += 1
    return values[0]
