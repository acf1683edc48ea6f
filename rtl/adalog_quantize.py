"""AdaLog quantizer: values to codes by a pipelined search over thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from golden.adalog import AdaLogQuantizeSpec
from golden.errors import HwsimError
from golden.spec import Constants
from rtl.pipeline import Pipeline
from rtl.stream import check_equal, row_signature, shape_of, write_signature


class AdaLogQuantize(wiring.Component):
    """``code = count of thresholds at or above the value``, as `AdaLogQuantizeSpec.compute`.

    The thresholds never increase, so that the count is found by bisection, a bit of the
    code a stage: with a prefix p of the code known, threshold ``(2p + 1) * 2**(n-1) - 1`` (n bits
    to go) settles the next bit. The stage before reads that threshold for both
    values of p's last bit, so that a stage is one multiplexer and one comparison and
    no memory delay adds to it. The last threshold alone makes the zero symbol.

    * Throughput: 1 beat a cycle; a row of N elements takes ``ceil(N / lanes)`` cycles.
    * Latency: `code_bits` cycles.
    * Rows of any length pass; rows do not matter to this unit.

    Parameters
    ----------
    spec : AdaLogQuantizeSpec
    lanes : int
        Elements a beat.
    constants : dict, optional
        Baked-in thresholds. Without them the unit has a write port ``w``: the address is the
        index of the threshold. It may be written while no row is inside.

    Attributes
    ----------
    i : In(stream), elements of `input_bits`
    o : Out(stream), elements of `code_bits` + 1
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits",)

    def __init__(self, spec: AdaLogQuantizeSpec, *, lanes: int = 1, constants: Constants | None = None):
        self.spec, self.lanes = spec, lanes
        self.loadable = constants is None
        checked = {} if constants is None else spec.check_constants(constants)
        self._thresholds = [0] * spec.zero_symbol if constants is None else checked["thresholds"].tolist()
        ports = {
            "i": In(row_signature(shape_of(spec.input), lanes)),
            "o": Out(row_signature(shape_of(spec.output), lanes)),
        }
        if self.loadable:
            ports["w"] = In(write_signature(spec.code_bits, spec.input_bits))
        super().__init__(ports)

    @classmethod
    def covering(cls, layers: Sequence[tuple[AdaLogQuantizeSpec, Constants]], *, lanes: int = 1) -> AdaLogQuantize:
        """The loadable unit with the widest input of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        return cls(dataclasses.replace(specs[0], input_bits=max(spec.input_bits for spec in specs)), lanes=lanes)

    @property
    def parameters(self) -> dict[str, int]:
        """Hardware parameters beyond the spec."""
        return {"lanes": self.lanes}

    @property
    def latency(self) -> int:
        return self.spec.code_bits

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Write addresses and what lies there."""
        return [("c", "threshold c: the largest value whose code is above c")]

    def cycles_per_row(self, length: int) -> int:
        """``ceil(length / lanes)``."""
        return -(-length // self.lanes)

    def writes(self, spec: AdaLogQuantizeSpec, constants: Constants) -> list[tuple[int, int]]:
        """Address and data of a layer's thresholds.

        Raises
        ------
        HwsimError
            The unit does not cover the layer.
        """
        check_equal([self.spec, spec], self.equal_fields)
        if spec.input_bits > self.spec.input_bits:
            raise HwsimError(
                f"the layer's input has {spec.input_bits} bits, the unit was built with {self.spec.input_bits}; "
                "build it to cover this layer"
            )
        return list(enumerate(constants["thresholds"].tolist()))

    def _threshold(self, m: Module, name: str, index: int) -> Signal:
        """A threshold in a register of its own."""
        threshold = Signal(self.spec.input_bits, name=name, init=self._thresholds[index])
        if self.loadable:
            with m.If(self.w.valid & (self.w.payload.address == index)):
                m.d.sync += threshold.eq(self.w.payload.data)
        return threshold

    def _pairs(self, m: Module, level: int, addresses: Sequence[Value], enable: Value) -> list[data.View]:
        """Both thresholds of a level that may follow each address, a cycle later."""
        to_go = self.spec.code_bits - level  # bits of the code not yet known at this level
        stride = 1 << to_go
        thresholds = self._thresholds[stride // 2 - 1 :: stride]
        table = memory.Memory(
            shape=data.ArrayLayout(self.spec.input_bits, 2),
            depth=len(thresholds) // 2,
            init=[thresholds[node : node + 2] for node in range(0, len(thresholds), 2)],
            # A block RAM answers too late for the comparison behind it, and would hardly be filled; registers with a
            # multiplexer for every lane are larger and slower from four lanes on.
            attrs={"ram_style": "distributed"},
        )
        m.submodules[f"thresholds_{level}"] = table
        if self.loadable:
            # The index of a threshold of this level ends in a zero and to_go - 1 ones.
            index = self.w.payload.address
            belongs = index[:to_go] == (1 << to_go - 1) - 1
            writer = table.write_port(granularity=1)
            m.d.comb += [
                writer.addr.eq(index[to_go + 1 :]),
                writer.data.eq(Cat(self.w.payload.data, self.w.payload.data)),
                writer.en.eq(Mux(self.w.valid & belongs, Cat(~index[to_go], index[to_go]), 0)),
            ]
        pairs = []
        for address in addresses:
            reader = table.read_port()
            m.d.comb += [reader.addr.eq(address), reader.en.eq(enable)]
            pairs.append(reader.data)
        return pairs

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = self.spec.code_bits
        pipeline = Pipeline(m, self.i, self.o, self.latency)
        advance = pipeline.advance

        root = self._threshold(m, "threshold_root", (1 << bits - 1) - 1)
        below_root = self._threshold(m, "threshold_below_root", (1 << bits - 2) - 1)
        above_root = self._threshold(m, "threshold_above_root", (3 << bits - 2) - 1)
        zero_threshold = self._threshold(m, "threshold_of_zero_symbol", (1 << bits) - 1)

        values = [Value.cast(value) for value in self.i.payload.data]
        prefixes: list[Value] = [Cat() for _ in values]
        candidates: list[tuple[Value, ...]] = [(root,) for _ in values]
        zeros: list[Value] = []
        for lane, value in enumerate(values):
            zero = Signal(name=f"lane{lane}_at_most_zero_threshold", reset_less=True)
            with m.If(advance):
                m.d.sync += zero.eq(~(zero_threshold < value))
            zeros.append(pipeline.delay(zero, bits - 2, f"lane{lane}_zero"))

        for level in range(bits):
            final = level == bits - 1
            pairs = self._pairs(m, level + 1, prefixes, advance) if 1 <= level < bits - 1 else None
            for lane, value in enumerate(values):
                prefix, candidate = prefixes[lane], candidates[lane]
                # Compared with both candidates, so that no multiplexer stands before the carry chain.
                at_most = [~(threshold < value) for threshold in candidate]
                known = Cat(at_most[0] if level == 0 else Mux(prefix[0], at_most[1], at_most[0]), prefix)
                if final:
                    code = Signal(bits + 1, name=f"lane{lane}_code", reset_less=True)
                    with m.If(advance):
                        # Masked, not chosen, so that no synchronous reset of all lanes hangs on the end of a path.
                        m.d.sync += code.eq(Cat(known & (~zeros[lane]).replicate(bits), zeros[lane]))
                    m.d.comb += self.o.payload.data[lane].eq(code)
                    continue
                register = Signal(level + 1, name=f"lane{lane}_prefix_{level + 1}", reset_less=True)
                with m.If(advance):
                    m.d.sync += register.eq(known)
                prefixes[lane] = register
                values[lane] = pipeline.delay(value, 1, f"lane{lane}_value_{level + 1}")
                candidates[lane] = (below_root, above_root) if pairs is None else (pairs[lane][0], pairs[lane][1])
        m.d.comb += [
            self.o.payload.keep.eq(pipeline.delay(self.i.payload.keep, self.latency, "keep")),
            self.o.payload.last.eq(pipeline.delay(self.i.payload.last, self.latency, "last")),
        ]
        return m
