"""Writes a flat netlist as Verilog that reads well and that `verilator --lint-only -Wall` accepts.

Yosys' own writer leaves implicit width changes, functions for multiplexers and a
numbered wire for every operator. Here every operand has the width of its operator,
an operator that is used once stands where it is used, registers of one reset and
enable share an ``always`` block, and bits that nothing reads meet in one wire, ``unused``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rtl.netlist import Bit, Bits, Cell, Memory, Netlist, Wire
from rtl.operators import COMPARE, EQUAL_WIDTH, REDUCE, Operator, Shaped, shape, value_of, wires_of

# Verilog words that a signal could be called, and the wire for what is left over.
_RESERVED = set(
    re.findall(
        r"\w+",
        "always and assign begin buf case default disable edge else end event for force if initial input integer join "
        "large medium module nand nor not or output parameter real reg release repeat scalared signed small strong "
        "table task time tri use wait wand weak while wire wor xnor xor unused",
    )
)
_LONGEST_EXPRESSION = 80
_SHORTEST_LOOP = 5


def write(netlist: Netlist, ports: Mapping[str, str], header: Sequence[str] = ()) -> str:
    """Verilog of a flat netlist.

    Parameters
    ----------
    netlist : Netlist
        After Yosys has resolved processes into multiplexers and registers; is used up.
    ports : mapping
        Port names in the order of the module header, each with its comment.
    header : sequence of str
        Comment lines above the module.

    Raises
    ------
    NotImplementedError
        A kind of cell that no unit has needed so far (division, latch, asynchronous reset, ...).
    """
    return _Writer(netlist.name, shape(netlist), netlist.memories).module(ports, header)


class _Writer:
    def __init__(self, name: str, shaped: Shaped, memories: Mapping[str, Memory]):
        self.module_name, self.shaped, self.memories = name, shaped, memories
        self.wires = shaped.wires
        self.names = _identifiers(shaped.wires, memories)
        self.driver = {bit: operator for operator in shaped.operators for bit in operator.output}
        self.readers = Counter(bit for bits in shaped.reads() for bit in bits)
        self.read_in: dict[Bit, Bits] = {bit: bits for bits in shaped.reads() for bit in bits}
        self.texts: dict[int, str] = {}  # of operators that stand inside another expression, by id

    def module(self, ports: Mapping[str, str], header: Sequence[str]) -> str:
        clocked = self.shaped.clocked
        assigned: set[str] = set()
        logic = list(self._logic(assigned))
        inside = {name for key in self.shaped.operators if id(key) in self.texts for name in wires_of(key.output)}
        declarations = []
        for name, wire in sorted(self.wires.items(), key=lambda item: self.names[item[0]]):
            if not (wire.direction or name in inside or name in assigned):
                kind = "reg" if name in clocked else "wire"
                declarations.append(f"{kind} {_range(wire.width)}{self.names[name]}{_start(wire)};")
        declarations += [
            f"{_asked(memory)}reg {_range(memory.width)}{self.names[memory.name]} [0:{memory.size - 1}];"
            for memory in self.memories.values()
        ]
        blocks = [declarations, logic, *self._contents(), *self._registers(), *self._memories()]
        unused = ", ".join(self._unused(inside))
        if unused:
            comment = "// Bits that nothing reads: padding of bytes, fractions cut off after rounding."
            blocks.append([comment, f"wire unused = &{{1'b0, {unused}}};"])
        lines = [f"// {line}".rstrip() for line in header]
        lines += [f"module {self.module_name} (", *self._ports(ports, clocked), ");", ""]
        for block in blocks:
            lines += [*_indent(block), ""] if block else []
        return "\n".join([*lines[:-1], "endmodule", ""])

    def _ports(self, ports: Mapping[str, str], clocked: set[str]) -> Iterator[str]:
        """Port lines with their comments in one column."""
        declared = {self.names[wire.name]: wire for wire in self.wires.values() if wire.direction}
        if set(declared) != set(ports):
            raise ValueError(f"ports {sorted(declared)} of the netlist are not those described, {sorted(ports)}")
        listed = []
        for number, name in enumerate(ports):
            wire = declared[name]
            kind = "reg" if wire.name in clocked else "wire"
            comma = "," if number < len(ports) - 1 else ""
            listed.append(f"{wire.direction:<6} {kind:<4} {_range(wire.width)}{name}{_start(wire)}{comma}")
        width = max(map(len, listed))
        for line, comment in zip(listed, ports.values(), strict=True):
            yield f"    {line:<{width}}  // {comment}" if comment else f"    {line}"

    # Expressions.

    def text(self, bits: Bits, nested: bool = False) -> str:
        """An expression for bits; in parentheses when `nested` and not a single name."""
        parts = list(self._parts(bits))
        if len(parts) > 1:
            return "{" + ", ".join(parts) + "}"
        operator = self.driver.get(bits[0])
        simple = operator is None or id(operator) not in self.texts
        return parts[0] if simple or not nested else f"({parts[0]})"

    def _parts(self, bits: Bits) -> list[str]:
        """Text of each longest run of bits that is one constant, vector, repetition or operator, highest first."""
        parts: list[str] = []
        start = 0
        while start < len(bits):
            part, length = self._part(bits[start:])
            parts.insert(0, part)
            start += length
        return parts

    def _part(self, bits: Bits) -> tuple[str, int]:
        """Text and length of the first of `_parts`."""
        first = bits[0]
        if isinstance(first, int):
            length = next((place for place, bit in enumerate(bits) if not isinstance(bit, int)), len(bits))
            return literal(value_of(bits[:length]), length), length
        operator = self.driver.get(first)
        if operator is not None and id(operator) in self.texts:
            return self.texts[id(operator)], len(operator.output)
        length = next((place for place, bit in enumerate(bits) if bit != first), len(bits))
        if length > 1:
            return f"{{{length}{{{self._slice(*first, 1)}}}}}", length
        name, low = first
        length = next((place for place, bit in enumerate(bits) if bit != (name, low + place)), len(bits))
        return self._slice(name, low, length), length

    def _slice(self, name: str, low: int, length: int) -> str:
        if length == self.wires[name].width:
            return self.names[name]
        return f"{self.names[name]}[{low}]" if length == 1 else f"{self.names[name]}[{low + length - 1}:{low}]"

    def _expression(self, operator: Operator) -> str:
        kind, operands = operator.type, operator.operands

        def operand(place: int) -> str:
            return (
                f"$signed({self.text(operands[place])})" if operator.signed else self.text(operands[place], nested=True)
            )

        if kind == "pos":
            return self.text(operands[0])
        if kind in REDUCE:
            single = self._parts(operands[0])
            if kind != "reduce_xor" and 1 < len(single) == len(operands[0]):
                return f" {REDUCE[kind]} ".join(self.text([bit], nested=True) for bit in reversed(operands[0]))
            return REDUCE[kind] + operand(0)
        if kind in ("not", "neg"):
            return ("-" if kind == "neg" else "!" if len(operator.output) == 1 else "~") + operand(0)
        if kind == "sshr":  # $unsigned, so that no unsigned neighbour turns it into a logical shift
            return f"$unsigned($signed({self.text(operands[0])}) >>> {operand(1)})"
        if kind == "mux":
            choices = [f"{operand(place)} ? {operand(place + 1)} : " for place in range(0, len(operands) - 1, 2)]
            return "".join(choices) + operand(len(operands) - 1)
        symbol = {**EQUAL_WIDTH, **COMPARE, "mul": "*", "shl": "<<", "shr": ">>"}[kind]
        return f"{operand(0)} {symbol} {operand(1)}"

    def _stands_inside(self, operator: Operator) -> bool:
        """Whether an operator is read once, as a whole, and its wire is no name of the source."""
        first = operator.output[0]
        if isinstance(first, int) or self.wires[first[0]].public or operator.type in ("mul", "pos"):
            return False
        if any(self.readers[bit] != 1 for bit in operator.output):
            return False
        bits = self.read_in[first]
        start = bits.index(first)
        return bits[start : start + len(operator.output)] == operator.output

    def _logic(self, assigned: set[str]) -> Iterator[str]:
        """Wires with their expressions; adds those that need no declaration of their own to `assigned`."""
        for operator in self.shaped.operators:
            text = self._expression(operator)
            if len(text) <= _LONGEST_EXPRESSION and self._stands_inside(operator):
                self.texts[id(operator)] = text
                continue
            (name,) = wires_of(operator.output)
            if self.wires[name].direction:
                yield f"assign {self.text(operator.output)} = {text};"
            else:
                assigned.add(name)
                yield f"wire {_range(self.wires[name].width)}{self.text(operator.output)} = {text};"

    # State.

    def _contents(self) -> Iterator[list[str]]:
        """Initial words of memories, runs of equal ones in a loop."""
        for memory_id, words in self.shaped.contents.items():
            name, width = self.names[memory_id], self.memories[memory_id].width
            block: list[str] = []
            start = 0
            while start < len(words):
                end = next((place for place in range(start, len(words)) if words[place] != words[start]), len(words))
                value = literal(words[start], width)
                if end - start >= _SHORTEST_LOOP:
                    block.append(f"    for (word = {start}; word < {end}; word = word + 1)")
                    block.append(f"        {name}[word] = {value};")
                else:
                    block += [f"    {name}[{place}] = {value};" for place in range(start, end)]
                start = end
            if any("for" in line for line in block):
                block.insert(0, "    integer word;")
            yield [f"initial begin : {name}_contents", *block, "end"]

    def _registers(self) -> Iterator[list[str]]:
        groups: dict[tuple[str, str, str, bool], list[Cell]] = defaultdict(list)
        for cell in self.shaped.registers:
            key = (self._edge(cell), self._when(cell, "SRST"), self._when(cell, "EN"), cell.type == "sdffce")
            groups[key].append(cell)
        for (edge, reset, enable, enable_first), cells in groups.items():
            targets = [self.text(cell.ports["Q"]) for cell in cells]
            body = [f"{to} <= {self.text(cell.ports['D'])};" for to, cell in zip(targets, cells, strict=True)]
            if enable and not enable_first:
                body = [f"if ({enable}) begin", *_indent(body), "end"]
            if reset:
                values = [literal(cell.number("SRST_VALUE"), len(cell.ports["Q"])) for cell in cells]
                clear = [f"{to} <= {value};" for to, value in zip(targets, values, strict=True)]
                loads = (
                    [f"end else {body[0]}", *body[1:]]
                    if body[0].startswith("if")
                    else ["end else begin", *_indent(body), "end"]
                )
                body = [f"if ({reset}) begin", *_indent(clear), *loads]
            if enable and enable_first:
                body = [f"if ({enable}) begin", *_indent(body), "end"]
            yield [f"always @({edge}) begin", *_indent(body), "end"]

    def _memories(self) -> Iterator[list[str]]:
        for cell in sorted(self.shaped.memory_writes, key=lambda cell: cell.number("PORTID")):
            enables, data, word = cell.ports["EN"], cell.ports["DATA"], self._word(cell)
            block = [f"always @({self._edge(cell)}) begin"]
            start = 0
            while start < len(data):
                length = next((n for n, bit in enumerate(enables[start:]) if bit != enables[start]), len(data) - start)
                part = "" if length == len(data) else f"[{start + length - 1}:{start}]"
                store = f"{word}{part} <= {self.text(data[start : start + length])};"
                if enables[start] == 1:
                    block.append(f"    {store}")
                elif enables[start] != 0:
                    block += [f"    if ({self.text([enables[start]])})", f"        {store}"]
                start += length
            yield [*block, "end"]
        for cell in self.shaped.memory_reads:
            target, word = self.text(cell.ports["DATA"]), self._word(cell)
            if not cell.number("CLK_ENABLE"):
                yield [f"assign {target} = {word};"]
                continue
            for write in self.shaped.memory_writes:
                if write.parameters["MEMID"] == cell.parameters["MEMID"]:
                    word = self._passed_through(cell, write, word)
            enable = self._when(cell, "EN")
            load = [f"if ({enable})", f"    {target} <= {word};"] if enable else [f"{target} <= {word};"]
            yield [f"always @({self._edge(cell)}) begin", *_indent(load), "end"]

    def _passed_through(self, read: Cell, write: Cell, word: str) -> str:
        """What a read port returns when it is transparent for a write port."""
        if not read.number("TRANSPARENCY_MASK") >> write.number("PORTID") & 1:
            return word
        if len(set(write.ports["EN"])) != 1:
            raise NotImplementedError("no Verilog for a transparent memory port with several write enables")
        same = f"{self.text(write.ports['ADDR'], True)} == {self.text(read.ports['ADDR'], True)}"
        enable = self.text(write.ports["EN"][:1], True)
        return f"({enable} && {same}) ? {self.text(write.ports['DATA'], True)} : {word}"

    def _word(self, cell: Cell) -> str:
        return f"{self.names[str(cell.parameters['MEMID'])]}[{self.text(cell.ports['ADDR'])}]"

    def _edge(self, cell: Cell) -> str:
        return f"{'posedge' if cell.number('CLK_POLARITY') else 'negedge'} {self.text(cell.ports['CLK'])}"

    def _when(self, cell: Cell, port: str) -> str:
        """Condition under which a control port acts; empty when it always does or the cell has none."""
        if port not in cell.ports or cell.ports[port] == [1]:
            return ""
        bits = cell.ports[port][:1]
        return self.text(bits) if cell.parameters.get(f"{port}_POLARITY", 1) else "!" + self.text(bits, nested=True)

    def _unused(self, inside: set[str]) -> Iterator[str]:
        """Slices of vectors that nothing reads."""
        for name, wire in sorted(self.wires.items(), key=lambda item: self.names[item[0]]):
            bits = [bit for bit in wire.bits if not self.readers[bit]]
            if bits and name not in inside:
                yield from self._parts(bits)


def _identifiers(wires: Mapping[str, Wire], memories: Mapping[str, Memory]) -> dict[str, str]:
    """A Verilog identifier for every wire and memory, without escapes; ports keep their name."""
    names: dict[str, str] = {}
    taken = set(_RESERVED)
    for name in sorted([*wires, *memories], key=lambda name: (name not in wires or not wires[name].direction, name)):
        plain = re.sub("_+", "_", re.sub(r"\W", "_", name.lstrip("\\$"))).strip("_")
        unique, copies = plain, 1
        while unique in taken:
            copies += 1
            unique = f"{plain}_{copies}"
        taken.add(unique)
        names[name] = unique
    return names


def literal(number: int, width: int) -> str:
    """A sized Verilog constant."""
    return f"1'b{number}" if width == 1 else f"{width}'h{number:x}"


def _start(wire: Wire) -> str:
    """Power-up value, as it follows the name in a declaration."""
    return "" if wire.initial is None else f" = {literal(wire.initial & (1 << wire.width) - 1, wire.width)}"


def _asked(memory: Memory) -> str:
    """Attributes for synthesis, as they stand before a declaration."""
    pairs = [
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
        for name, value in sorted(memory.attributes.items())
    ]
    return f"(* {', '.join(pairs)} *) " if pairs else ""


def _range(width: int) -> str:
    return "" if width == 1 else f"[{width - 1}:0] "


def _indent(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]
