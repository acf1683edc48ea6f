# amaranth: UnusedElaboratable=no
"""Requantize: accumulators to codes by a dyadic multiplier, per tensor or per channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from golden.errors import HwsimError
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat
from rtl.block_multiplier import BlockMultiplier
from rtl.digit_multiplier import DigitMultiplier
from rtl.pipeline import Pipeline
from rtl.rounding_shifter import RoundingShifter
from rtl.stream import check_equal, row_signature, shape_of, write_signature

# Of the scaling of a channel: a synchronous memory, and a register, so that no memory delay adds to the logic.
READ_LATENCY = 2


class Requantize(wiring.Component):
    """``saturate(round_half_even(x * multiplier / 2**shift + zero_point))``, as `RequantizeSpec.compute`.

    The path: read multiplier and shift of the channel; multiply, see `DigitMultiplier` and
    `BlockMultiplier`; shift, add the zero point, round and saturate, see `RoundingShifter`.

    * Throughput: 1 beat a cycle; a row of N elements takes ``ceil(N / lanes)`` cycles.
    * Latency: `latency` cycles, most of them for the product and the shift.
    * With several channels, element n of a row uses the constants of channel n. Elements past
      the last channel use those of the last beat that has constants, lane by lane, so that
      a layer with one multiplier takes rows of any length.

    Parameters
    ----------
    spec : RequantizeSpec
    lanes : int
        Elements a beat.
    multiplier_blocks : bool
        Multiply in the multiplier blocks of an FPGA instead of its carry chains: less logic, but
        a slower clock where the tools leave the registers of the blocks unused.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: the address of channel n is
        ``n // lanes << (width of a lane number) | n % lanes``, the data ``shift << multiplier_bits |
        multiplier``; the address with only its top bit set is the zero point. It may be
        written while no row is inside.

    Attributes
    ----------
    i : In(stream), elements of ``spec.input``
    o : Out(stream), elements of `output_bits`
    w : In(stream), only without `constants`
    """

    equal_fields = ("output_bits",)

    def __init__(
        self,
        spec: RequantizeSpec,
        *,
        lanes: int = 1,
        multiplier_blocks: bool = False,
        constants: Constants | None = None,
    ):
        self.spec, self.lanes, self.multiplier_blocks = spec, lanes, multiplier_blocks
        self.loadable = constants is None
        self._constants = None if constants is None else spec.check_constants(constants)
        # Beats with constants of their own; a memory has at least two words.
        self.depth = 1 if spec.channels == 1 else max(2, -(-spec.channels // lanes))
        self._lane_bits = 0 if spec.channels == 1 else (lanes - 1).bit_length()
        self._beat_bits = (self.depth - 1).bit_length()
        self._entry = data.StructLayout({"multiplier": spec.multiplier_bits, "shift": spec.shift_bits})
        value_bits = _value_bits(spec)
        multiplier = BlockMultiplier if multiplier_blocks else DigitMultiplier
        # One multiplier for all lanes, or one for each.
        groups = 1 if self.depth == 1 else lanes
        self._multipliers = [multiplier(value_bits, spec.multiplier_bits, lanes=lanes // groups) for _ in range(groups)]
        self._shifters = [
            RoundingShifter(value_bits + spec.multiplier_bits, spec.shift_bits, spec.output_bits) for _ in range(lanes)
        ]
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            data_bits = max(self._entry.size, spec.output_bits + 1)
            ports["w"] = In(write_signature(1 + self._beat_bits + self._lane_bits, data_bits))
        super().__init__(ports)

    @classmethod
    def covering(
        cls, layers: Sequence[tuple[RequantizeSpec, Constants]], *, lanes: int = 1, multiplier_blocks: bool = False
    ) -> Requantize:
        """The loadable unit with the most channels and the widest input, multiplier and shift of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`, or all together exceed the limits of the spec.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        widest = {
            field: max(getattr(spec, field) for spec in specs)
            for field in ("multiplier_bits", "shift_bits", "channels")
        }
        signed_bits = max(_value_bits(spec) for spec in specs)
        any_signed = any(spec.input.signed for spec in specs)
        widest_input = IntFormat(signed_bits, signed=True) if any_signed else IntFormat(signed_bits - 1)
        covering = dataclasses.replace(specs[0], input=widest_input, **widest)
        return cls(covering, lanes=lanes, multiplier_blocks=multiplier_blocks)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes, "multiplier_blocks": int(self.multiplier_blocks)}

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        channel = "0" if self.depth == 1 else f"(n // {self.lanes}) << {self._lane_bits} | n % {self.lanes}"
        return [
            (channel, f"shift << {self.spec.multiplier_bits} | multiplier" + (" of channel n" * (self.depth > 1))),
            (str(self._zero_point_address), "zero_point, signed"),
        ]

    @property
    def _value_delay(self) -> int:
        """Moves until the values meet their multiplier; those of one channel only wait to be registered."""
        return 1 if self.depth == 1 else READ_LATENCY + self._multipliers[0].factor_lead

    @property
    def latency(self) -> int:
        return self._value_delay + self._multipliers[0].latency + self._shifters[0].latency

    def cycles_per_row(self, length: int) -> int:
        """``ceil(length / lanes)``."""
        return -(-length // self.lanes)

    @property
    def _zero_point_address(self) -> int:
        return 1 << self._beat_bits + self._lane_bits

    def writes(self, spec: RequantizeSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's constants; those of a single channel go to every channel.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        for field in ("multiplier_bits", "shift_bits", "channels"):
            if getattr(spec, field) > getattr(self.spec, field):
                raise HwsimError(
                    f"the layer has {field} {getattr(spec, field)}, the unit was built with "
                    f"{getattr(self.spec, field)}; build it to cover this layer"
                )
        if _value_bits(spec) > _value_bits(self.spec) or (spec.input.signed and not self.spec.input.signed):
            raise HwsimError(
                f"the layer's input is {spec.input}, the unit was built for {self.spec.input}; "
                "build it to cover this layer"
            )
        entries = self._entries(constants)
        words = [(address, shift << self.spec.multiplier_bits | m) for address, (m, shift) in entries.items()]
        zero_point = int(constants["zero_point"]) & ((2 << spec.output_bits) - 1)
        return [*words, (self._zero_point_address, zero_point)]

    def _entries(self, constants: Constants) -> dict[int, tuple[int, int]]:
        """Multiplier and shift by address."""
        pairs = list(zip(constants["multiplier"].tolist(), constants["shift"].tolist(), strict=True))
        if len(pairs) == 1:
            pairs *= 1 if self.depth == 1 else self.depth * self.lanes
        return {n // self.lanes << self._lane_bits | n % self.lanes: pair for n, pair in enumerate(pairs)}

    def _scaling(self, m: Module, pipeline: Pipeline) -> list[tuple[Value, Value]]:
        """Multiplier and shift of every lane: of its channel, `READ_LATENCY` moves after the beat was taken."""
        entries = {} if self._constants is None else self._entries(self._constants)
        names = ("multiplier", "shift")
        written: data.View | None = None
        if self.loadable:
            written = data.View(self._entry, self.w.payload.data[: self._entry.size])
            to_channels = self.w.valid & ~self.w.payload.address[-1]
        if self.depth == 1:
            multiplier, shift = entries.get(0, (0, 0))
            scaling = Signal(self._entry, init={"multiplier": multiplier, "shift": shift})
            if written is not None:
                with m.If(to_channels):
                    m.d.sync += scaling.eq(written)
            return [(scaling.multiplier, scaling.shift)] * self.lanes

        beat = Signal(self._beat_bits, name="beat_of_row")
        with m.If(self.i.valid & self.i.ready):
            with m.If(self.i.payload.last):
                m.d.sync += beat.eq(0)
            with m.Elif(beat != self.depth - 1):
                m.d.sync += beat.eq(beat + 1)
        scalings = []
        for lane in range(self.lanes):
            words = [entries.get(at << self._lane_bits | lane, (0, 0)) for at in range(self.depth)]
            m.submodules[f"lane{lane}_scaling"] = table = memory.Memory(
                shape=self._entry, depth=self.depth, init=[dict(zip(names, word, strict=True)) for word in words]
            )
            if written is not None:
                writer = table.write_port()
                m.d.comb += [
                    writer.addr.eq(self.w.payload.address[self._lane_bits : -1]),
                    writer.data.eq(written),
                    writer.en.eq(to_channels & (self.w.payload.address[: self._lane_bits] == lane)),
                ]
            reader = table.read_port()
            m.d.comb += [reader.addr.eq(beat), reader.en.eq(pipeline.advance)]
            scaling = pipeline.delay(reader.data, 1, f"lane{lane}_scaling")
            scalings.append((scaling.multiplier, scaling.shift))
        return scalings

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipeline = Pipeline(m, self.i, self.o, self.latency)
        zero_point = Signal(
            signed(self.spec.output_bits + 1),
            init=0 if self._constants is None else int(self._constants["zero_point"]),
        )
        if self.loadable:
            with m.If(self.w.valid & (self.w.payload.address == self._zero_point_address)):
                m.d.sync += zero_point.eq(self.w.payload.data)

        scalings = self._scaling(m, pipeline)
        for number, multiplier in enumerate(self._multipliers):
            m.submodules[f"multiplier_{number}"] = multiplier
            factor, _ = scalings[number]
            m.d.comb += [multiplier.enable.eq(pipeline.advance), multiplier.factor.eq(factor)]
        for lane, ((_, shift), shifter) in enumerate(zip(scalings, self._shifters, strict=True)):
            m.submodules[f"shifter_{lane}"] = shifter
            multiplier = self._multipliers[0 if self.depth == 1 else lane]
            position = lane if self.depth == 1 else 0
            if self.depth > 1:
                shift = pipeline.delay(shift, multiplier.factor_lead + multiplier.latency, f"lane{lane}_shift")
            value = pipeline.delay(self.i.payload.data[lane], self._value_delay, f"lane{lane}_value")
            m.d.comb += [
                multiplier.values[position].eq(value),
                shifter.enable.eq(pipeline.advance),
                shifter.value.eq(multiplier.products[position]),
                shifter.amount.eq(shift),
                shifter.zero_point.eq(zero_point),
                self.o.payload.data[lane].eq(shifter.code),
            ]
        m.d.comb += [
            self.o.payload.keep.eq(pipeline.delay(self.i.payload.keep, self.latency, "keep")),
            self.o.payload.last.eq(pipeline.delay(self.i.payload.last, self.latency, "last")),
        ]
        return m


def _value_bits(spec: RequantizeSpec) -> int:
    """Width of the input as a signed number."""
    return spec.input.bits + (not spec.input.signed)
