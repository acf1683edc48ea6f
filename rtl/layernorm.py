# amaranth: UnusedElaboratable=no
"""LayerNorm on power-of-two-scale codes, streaming, with one rounding: `golden.layernorm` in clock cycles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.spec import Constants
from rtl.layernorm_widths import LayerNormWidths
from rtl.normalise import normalise, stages
from rtl.pipeline import Pipeline
from rtl.reciprocal_sqrt import ReciprocalSqrt, root_steps
from rtl.row_buffer import block_ram
from rtl.row_sums import RowSums
from rtl.stream import check_equal, row_signature, shape_of, write_signature
from rtl.variance import Variance

HANDOVER = 3
"""Cycles of `ReciprocalSqrt` between two rows: to take one, and until the row before is read back."""


class LayerNorm(wiring.Component):
    """``saturate(round_half_even((gamma*m*(C*X - S1) + (beta << e)) / 2**(e + fraction_bits)))``, a beat a cycle.

    Three machines work on three rows at a time. `RowSums` takes a row in and leaves ``C*X`` in
    the row buffer; `Variance` and `ReciprocalSqrt` make m and e of the row before bit by bit; the
    output pipeline reads the row before that back from the buffer and normalises it. It
    multiplies exactly, first by gamma, then by m, in 18-bit parts, and shifts right by e with a
    sticky bit, so that nothing but the one rounding at the end loses a bit.

    * Throughput: ``max(beats, variance_digits + 3, reciprocal_sqrt_steps + 3)`` cycles a row, with
      ``beats = ceil(channels / lanes)``, the digits those of `Variance` (about ``log2(C) + input_bits +
      2**alpha_bits - 1``) and the steps those of `ReciprocalSqrt`; so a beat a cycle unless the row has fewer
      beats than its statistics need cycles. The quotient is made two bits a cycle where one is too slow.
    * Latency: `latency` cycles from the last beat of a row taken to the first beat of its result.
    * A row has exactly `channels` elements; whatever comes, each row in gives one row of
      `channels` elements out. Elements missing at the end of a row (or in a beat before it, by
      ``keep``) count as ``X = 0``; elements past the last channel are dropped, up to ``last``.
    * Writes take effect at once; they belong between layers, when all rows are out.

    Parameters
    ----------
    spec : LayerNormSpec
    lanes : int
        Elements a beat.
    fraction_range : (int, int), optional
        Smallest and largest ``fraction_bits`` that will be loaded; all the spec allows by default.
        Each doubling of the number of them costs a level of multiplexers; one value costs none.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``.

    Attributes
    ----------
    i : In(stream), elements of `input_bits`
    o : Out(stream), elements of `output_bits`
    w : In(stream), only without `constants`: see `writes`.
    """

    equal_fields = ("channels", "output_bits", "mantissa_bits", "radicand_bits")

    def __init__(
        self,
        spec: LayerNormSpec,
        *,
        lanes: int = 1,
        fraction_range: tuple[int, int] | None = None,
        constants: Constants | None = None,
    ) -> None:
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        self._constants = None if constants is None else spec.check_constants(constants)
        largest = (1 << spec.fraction_bits_bits) - 1
        if self._constants is not None:
            fraction_range = (int(self._constants["fraction_bits"]),) * 2
        self.fraction_range = fraction_range or (0, largest)
        if not 0 <= self.fraction_range[0] <= self.fraction_range[1] <= largest:
            raise HwsimError(
                f"layernorm unit: fraction_range must be two rising numbers from 0 to {largest}, not {fraction_range}"
            )
        self.widths = widths = LayerNormWidths(spec, lanes, self.fraction_range[0])

        self._affine = data.StructLayout({"gamma": signed(spec.gamma_bits), "beta": signed(spec.beta_bits)})
        self._scalars = data.StructLayout(
            {"zero_in": signed(spec.input_bits + 1), "fraction": unsigned(self._fraction_levels)}
        )
        self._lane_bits = (lanes - 1).bit_length()
        self._index_bits = self._lane_bits + (widths.beats - 1).bit_length()
        # The upper bits of an address choose what is written.
        self._regions = ("affine", "scalars", "alpha") if spec.alpha_bits else ("affine", "scalars")
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            address_bits = self._index_bits + (len(self._regions) - 1).bit_length()
            data_bits = max(self._affine.size, self._scalars.size, spec.alpha_bits * lanes)
            ports["w"] = In(write_signature(address_bits, data_bits))
        super().__init__(ports)

        self._sums = RowSums(widths)
        self._variance = Variance(
            sum_bits=widths.sum_bits,
            digits=widths.digits,
            zeros=2 * widths.digits - widths.squares_bits,
            radicand_bits=spec.radicand_bits,
        )
        # One bit of the quotient a cycle is smallest; two keep up with shorter rows.
        slow = root_steps(spec.mantissa_bits, widths.fine_bits, quotient_bits=1) + HANDOVER
        self._root = ReciprocalSqrt(
            sum_bits=widths.sum_bits,
            digits=widths.digits,
            mantissa_bits=spec.mantissa_bits,
            radicand_bits=spec.radicand_bits,
            fine_bits=widths.fine_bits,
            quotient_bits=1 if slow <= max(widths.beats, self._variance.interval) else 2,
        )

    @classmethod
    def covering(cls, layers: Sequence[tuple[LayerNormSpec, Constants]], *, lanes: int = 1) -> LayerNorm:
        """The smallest loadable unit that serves all the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        widest = {
            field: max(getattr(spec, field) for spec in specs)
            for field in ("input_bits", "alpha_bits", "gamma_bits", "beta_bits", "fraction_bits_bits")
        }
        fractions = [int(constants["fraction_bits"]) for _, constants in layers]
        return cls(
            dataclasses.replace(specs[0], **widest), lanes=lanes, fraction_range=(min(fractions), max(fractions))
        )

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        low, high = self.fraction_range
        return {
            "lanes": self.lanes,
            "smallest_fraction_bits": low,
            "largest_fraction_bits": high,
            "variance_digits": self.widths.digits,
            "reciprocal_sqrt_steps": self._root.steps,
        }

    @property
    def latency(self) -> int:
        """Cycles from the last beat of a row taken to the first beat of its result offered."""
        return self._sums.latency + self._variance.latency + self._root.latency + self._stages

    def cycles_per_row(self, length: int) -> int:
        """``max(ceil(max(length, channels) / lanes), variance_digits + 3, reciprocal_sqrt_steps + 3)``."""
        beats = -(-max(length, self.spec.channels) // self.lanes)
        return max(beats, self._variance.interval, self._root.steps + HANDOVER)

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there, for the documentation."""
        index = (
            f"channel // {self.lanes} << {self._lane_bits} | channel % {self.lanes}" if self._lane_bits else "channel"
        )
        low, high = self.fraction_range
        scalars = f"zero_in in the low {self.spec.input_bits + 1} bits"
        if high > low:
            scalars += f", fraction_bits {f'- {low} ' if low else ''}in those above"
        places = [
            (index, f"gamma of the channel in the low {self.spec.gamma_bits} bits, beta in those above"),
            (str(1 << self._index_bits), scalars),
        ]
        if self.spec.alpha_bits:
            following = f" and of the {self.lanes - 1} after it, lowest first" if self.lanes > 1 else ""
            places.append((f"{2 << self._index_bits} + ({index})", f"alpha of the channel{following}"))
        return places

    @property
    def _fraction_levels(self) -> int:
        """Bits of the run-time part of ``fraction_bits``."""
        return (self.fraction_range[1] - self.fraction_range[0]).bit_length()

    @property
    def _table_depth(self) -> int:
        """Words of a memory of constants: one a beat, but an address has a bit at least."""
        return max(self.widths.beats, 2)

    @property
    def _stages(self) -> int:
        """Of the output pipeline, in which every lane works a cycle after the one before it."""
        return stages(self._fraction_levels) + self.lanes - 1

    def writes(self, spec: LayerNormSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of every word that loads a layer.

        The low bits of an address are the beat and, below it, the lane of a channel; the bits above choose
        gamma and beta of a channel (0), the scalars (1; the rest of the address does not matter) or alpha
        of all lanes of a beat (2; lane 0).

        Raises
        ------
        HwsimError
            The unit was not built for this layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        for field in ("input_bits", "alpha_bits", "gamma_bits", "beta_bits"):
            if getattr(spec, field) > getattr(self.spec, field):
                raise HwsimError(
                    f"the layer has {field} {getattr(spec, field)}, the layernorm unit was built with "
                    f"{getattr(self.spec, field)}; build it to cover this layer"
                )
        constants = spec.check_constants(constants)
        low, high = self.fraction_range
        fraction_bits = int(constants["fraction_bits"])
        if not low <= fraction_bits <= high:
            raise HwsimError(
                f"the layer has fraction_bits {fraction_bits}, the layernorm unit was built for {low} to {high}; "
                "build it to cover this layer"
            )
        scalars = {"zero_in": int(constants["zero_in"]), "fraction": fraction_bits - low}
        words = [(self._address("scalars", 0), self._scalars.const(scalars).as_bits())]
        words += [
            (self._address("affine", channel), word) for channel, word in enumerate(self._affine_words(constants))
        ]
        if self.spec.alpha_bits:
            words += [
                (self._address("alpha", beat * self.lanes), word)
                for beat, word in enumerate(self._alpha_words(constants))
            ]
        return words

    def _address(self, region: str, channel: int) -> int:
        index = channel // self.lanes << self._lane_bits | channel % self.lanes
        return self._regions.index(region) << self._index_bits | index

    def _affine_words(self, constants: Constants) -> list[int]:
        pairs = zip(constants["gamma"].tolist(), constants["beta"].tolist(), strict=True)
        return [self._affine.const({"gamma": gamma, "beta": beta}).as_bits() for gamma, beta in pairs]

    def _alpha_words(self, constants: Constants) -> list[int]:
        alpha = constants["alpha"].tolist()
        beats = [alpha[start : start + self.lanes] for start in range(0, len(alpha), self.lanes)]
        return [sum(value << self.spec.alpha_bits * lane for lane, value in enumerate(beat)) for beat in beats]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sums = sums = self._sums
        m.submodules.variance = variance = self._variance
        m.submodules.root = root = self._root
        wiring.connect(m, sums.o, variance.i)
        wiring.connect(m, variance.o, root.i)
        wiring.connect(m, wiring.flipped(self.i), sums.i)

        # Enough for a row and what arrives while its statistics are made, and for a row in any case.
        slack = RowSums.in_flight + 2
        statistics = sums.latency + variance.latency + root.latency
        depth = 1 << (self.widths.beats + statistics + slack - 1).bit_length()
        beat_layout = data.ArrayLayout(signed(self.widths.multiple_bits), self.lanes)
        m.submodules.row_buffer = row_buffer = block_ram(beat_layout, depth)
        write_position = Signal(range(depth))
        read_position = Signal(range(depth))
        held = Signal(range(depth))
        writer = row_buffer.write_port()
        reader = row_buffer.read_port()
        m.d.comb += [writer.addr.eq(write_position), writer.en.eq(sums.write), writer.data.eq(sums.multiples)]
        m.d.sync += [write_position.eq(write_position + sums.write), held.eq(write_position - read_position)]
        # `held` is a cycle late, and `in_flight` beats are on their way to the buffer.
        m.d.comb += sums.full.eq(held >= depth - slack)

        # The first beat of a row waits for the statistics, which leave when it is at the output of the buffer.
        beat = Signal(range(self.widths.beats))
        first = Signal()
        final = Signal()
        first_read = Signal()
        reading = stream.Signature(0).create(path=("reading",))
        pipeline = Pipeline(m, reading, self.o, self._stages)
        m.d.comb += [
            first.eq(beat == 0),
            final.eq(beat == self.widths.beats - 1),
            reading.valid.eq(~first | (root.o.valid & ~first_read)),
            reader.addr.eq(read_position),
            reader.en.eq(pipeline.advance),
            root.o.ready.eq(pipeline.advance & first_read),
        ]
        with m.If(pipeline.advance):
            m.d.sync += first_read.eq(reading.valid & first)
            with m.If(reading.valid):
                m.d.sync += [read_position.eq(read_position + 1), beat.eq(Mux(final, 0, beat + 1))]

        # From stage 2 on they move along with the elements, so that the next row may follow at once.
        statistic = Signal.like(root.o.payload, name="statistic", reset_less=True)
        with m.If(root.o.valid & root.o.ready):
            m.d.sync += statistic.eq(root.o.payload)

        fraction = self._load_scalars(m)
        self._load_alpha(m)
        # Handed on from lane to lane: nothing drives the multipliers of all, which lie in a row of the chip.
        row_sum = statistic.sum
        mantissa = pipeline.delay(statistic.mantissa, 5, "mantissa")
        coarse = pipeline.delay(statistic.coarse, 9, "coarse")
        address = pipeline.delay(beat, 1, "beat_again")
        for lane in range(self.lanes):
            if lane:
                row_sum = pipeline.delay(row_sum, 1, f"row_sum_lane{lane}")
                mantissa = pipeline.delay(mantissa, 1, f"mantissa_lane{lane}")
                coarse = pipeline.delay(coarse, 1, f"coarse_lane{lane}")
                address = pipeline.delay(address, 1, f"beat_lane{lane}")
            affine = self._load_affine(m, lane, address, pipeline.advance)
            code = normalise(
                pipeline,
                self.widths,
                lane,
                multiple=pipeline.delay(reader.data[lane], 1 + lane, f"multiple_{lane}"),
                row_sum=row_sum,
                gamma=pipeline.delay(affine.gamma, 1, f"gamma_{lane}"),
                beta=pipeline.delay(affine.beta, 10, f"beta_{lane}"),
                mantissa=mantissa,
                coarse=coarse,
                fraction=fraction,
            )
            code = pipeline.delay(code, self.lanes - 1 - lane, f"code_{lane}_waiting")
            m.d.comb += self.o.payload.data[lane].eq(code)
        last = pipeline.delay(final, self._stages, "last")
        used = self.spec.channels % self.lanes or self.lanes
        m.d.comb += [
            self.o.payload.last.eq(last),
            self.o.payload.keep.eq(Cat(Const((1 << used) - 1, used), (~last).replicate(self.lanes - used))),
        ]
        return m

    def _chosen(self, region: str) -> Value:
        """Whether a word is written to a region."""
        return self.w.valid & (self.w.payload.address[self._index_bits :] == self._regions.index(region))

    def _load_scalars(self, m: Module) -> Value:
        """Connects the zero point, returns ``fraction_bits`` above the smallest."""
        if self._constants is not None:
            m.d.comb += self._sums.zero_in.eq(int(self._constants["zero_in"]))
            return Const(0, 0)
        scalars = Signal(self._scalars)
        with m.If(self._chosen("scalars")):
            m.d.sync += scalars.eq(self.w.payload.data[: self._scalars.size])
        m.d.comb += self._sums.zero_in.eq(scalars.zero_in)
        return scalars.fraction

    def _load_alpha(self, m: Module) -> None:
        """The memory of alpha, a word a beat, for the sums."""
        if not self.spec.alpha_bits:
            return
        word_bits = self.spec.alpha_bits * self.lanes
        init = [] if self._constants is None else self._alpha_words(self._constants)
        m.submodules.alpha = table = block_ram(word_bits, self._table_depth, init)
        reader = table.read_port()
        m.d.comb += [
            reader.addr.eq(self._sums.beat),
            reader.en.eq(self._sums.enable),
            self._sums.alpha.eq(reader.data),
        ]
        if self.loadable:
            writer = table.write_port()
            m.d.comb += [
                writer.addr.eq(self.w.payload.address[self._lane_bits : self._index_bits]),
                writer.data.eq(self.w.payload.data[:word_bits]),
                writer.en.eq(self._chosen("alpha")),
            ]

    def _load_affine(self, m: Module, lane: int, beat: Value, enable: Value) -> Any:
        """The memory of gamma and beta of a lane; returns what is at `beat`, one step of `enable` later."""
        init = [] if self._constants is None else self._affine_words(self._constants)[lane :: self.lanes]
        m.submodules[f"affine_{lane}"] = table = block_ram(self._affine.size, self._table_depth, init, always=True)
        reader = table.read_port()
        m.d.comb += [reader.addr.eq(beat), reader.en.eq(enable)]
        if self.loadable:
            writer = table.write_port()
            m.d.comb += [
                writer.addr.eq(self.w.payload.address[self._lane_bits : self._index_bits]),
                writer.data.eq(self.w.payload.data[: self._affine.size]),
                writer.en.eq(self._chosen("affine") & (self.w.payload.address[: self._lane_bits] == lane)),
            ]
        return self._affine(reader.data)
