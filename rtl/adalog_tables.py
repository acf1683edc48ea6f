"""The two tables of AdaLog codes, as the decode and the matrix product unit hold them."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from golden.adalog import AdaLogDecodeSpec, AdaLogMatmulSpec
from golden.errors import HwsimError
from golden.spec import Constants
from rtl.stream import write_signature

AdaLogSpec = AdaLogDecodeSpec | AdaLogMatmulSpec


class AdaLogTables(wiring.Component):
    """Codes to mantissa and left shift: a code stands for ``mantissa * 2**(left_shift - cut_bits - guard_bits)``.

    A right shift by the published table, ``floor(mantissa * value * 2**guard_bits / 2**shift)``,
    is held as the left shift ``guard_bits + cut_bits - shift``, never below 0, after which `cut_bits`
    are cut off: a value that is shifted to the left loses no bit before its rounding.
    `cut_bits` is 0 where the guard bits make the shift lossless. A code whose shift exceeds
    `largest_shift` has mantissa 0, which is settled when the table is written; the zero
    symbol has mantissa 0 too.

    Parameters
    ----------
    code_bits : int
    guard_bits, cut_bits : int
        The largest that will be loaded.
    ports : int
        Codes looked up side by side.
    entries : sequence of (left shift, mantissa), optional
        Baked-in tables, from `table_entries`. Without them there is a write port.

    Attributes
    ----------
    enable : In(1)
        The registers move.
    codes : In, array of `ports` of `code_bits` + 1
    entries : Out, array of `ports` of ``left_shift`` and ``mantissa``, `latency` moves later
    w : In(stream), only without `entries`
        The address is the code, the data ``mantissa << (width of left_shift) | left_shift``.
    """

    latency = 2

    def __init__(
        self,
        code_bits: int,
        *,
        guard_bits: int,
        cut_bits: int,
        ports: int,
        entries: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.code_bits = code_bits
        self.cut_bits = cut_bits
        self.largest_left_shift = max(guard_bits + cut_bits, 1)
        self._entries = entries
        self.entry = data.StructLayout(
            {"left_shift": unsigned(self.largest_left_shift.bit_length()), "mantissa": unsigned(code_bits + 1)}
        )
        members = {
            "enable": In(1),
            "codes": In(data.ArrayLayout(unsigned(code_bits + 1), ports)),
            "entries": Out(data.ArrayLayout(self.entry, ports)),
        }
        if entries is None:
            members["w"] = In(write_signature(code_bits, self.entry.size))
        super().__init__(members)

    @property
    def word(self) -> str:
        """A written word, for the documentation."""
        return f"mantissa << {self.entry['left_shift'].width} | left shift"

    def writes(self, spec: AdaLogSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's tables."""
        shift_bits = self.entry["left_shift"].width
        return [
            (code, mantissa << shift_bits | left_shift)
            for code, (left_shift, mantissa) in enumerate(table_entries(spec, constants, self.cut_bits))
        ]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for position, field in enumerate(("left_shift", "mantissa")):
            m.submodules[f"{field}_table"] = table = memory.Memory(
                shape=self.entry[field].shape,
                depth=1 << self.code_bits,
                init=[] if self._entries is None else [entry[position] for entry in self._entries],
                # A block RAM alone takes most of a 150 MHz cycle, and would hardly be filled.
                attrs={"ram_style": "distributed"},
            )
            if self._entries is None:
                writer = table.write_port()
                m.d.comb += [
                    writer.addr.eq(self.w.payload.address),
                    writer.data.eq(data.View(self.entry, self.w.payload.data)[field]),
                    writer.en.eq(self.w.valid),
                ]
            for port, (code, entry) in enumerate(zip(self.codes, self.entries, strict=True)):
                reader = table.read_port()
                register = Signal(self.entry[field].shape, name=f"{field}_{port}", reset_less=True)
                m.d.comb += [reader.addr.eq(code), reader.en.eq(self.enable), entry[field].eq(register)]
                with m.If(self.enable):
                    m.d.sync += register.eq(reader.data)
                if field == "mantissa":
                    is_zero_symbol = Signal(name=f"is_zero_symbol_{port}", reset_less=True)
                    with m.If(self.enable):
                        m.d.sync += is_zero_symbol.eq(code[-1])
                        with m.If(is_zero_symbol):
                            m.d.sync += register.eq(0)
        return m


def cut_bits(spec: AdaLogSpec, limit: int) -> int:
    """Bits below the result that right shifts up to `largest_shift` reach; `limit` where more change nothing."""
    return min(max(spec.largest_shift - spec.guard_bits, 0), limit)


def table_entries(spec: AdaLogSpec, constants: Constants, cut_bits: int) -> list[tuple[int, int]]:
    """(left shift, mantissa) of every code, for a unit that cuts off `cut_bits`; see `AdaLogTables`."""
    room = spec.guard_bits + cut_bits
    return [
        (room - min(shift, room), 0 if shift > spec.largest_shift else mantissa)
        for shift, mantissa in zip(constants["shift_table"].tolist(), constants["mantissa_table"].tolist(), strict=True)
    ]


def check_covered(layer: AdaLogSpec, unit: AdaLogSpec, limit: int) -> None:
    """Refuse a layer whose fraction does not fit into the unit.

    Raises
    ------
    HwsimError
        Names the field.
    """
    if layer.guard_bits > unit.guard_bits:
        raise HwsimError(
            f"the layer has {layer.guard_bits} guard_bits, the unit was built with {unit.guard_bits}; "
            "build it to cover this layer"
        )
    if cut_bits(layer, limit) > cut_bits(unit, limit):
        raise HwsimError(
            f"the layer's largest_shift {layer.largest_shift} is {layer.largest_shift - layer.guard_bits} past its "
            f"guard_bits, the unit was built for {cut_bits(unit, limit)}; build it to cover this layer"
        )
