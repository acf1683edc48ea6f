"""Brings a netlist into the shape in which Verilog can say it: operators of explicit width, one driver a vector.

Verilog widens operands by the context they stand in; an `Operator` leaves nothing
to the context. The steps of `shape` only rename and regroup bits, none computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rtl.netlist import Bit, Bits, Cell, Netlist, Wire

EQUAL_WIDTH = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "xnor": "~^"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
REDUCE = {"reduce_and": "&", "reduce_or": "|", "reduce_bool": "|", "reduce_xor": "^", "reduce_xnor": "~^"}
RESET: Bit = ("\\aresetn", 0)
# What the output of an operator is called when the source has no name for it.
_NAMES = {
    "add": "sum", "sub": "difference", "mul": "product", "neg": "negated", "not": "inverted", "and": "masked",
    "or": "merged", "xor": "differing", "mux": "choice", "eq": "equal", "ne": "unequal", "lt": "less",
    "le": "at_most", "gt": "greater", "ge": "at_least", "shl": "shifted", "shr": "shifted", "sshr": "shifted",
    "reduce_or": "any", "reduce_bool": "any", "reduce_and": "all",
}  # fmt: skip


@dataclass(eq=False)
class Operator:
    """A combinational cell. Its operands have the width of the output, but for shift amounts, choices and products.

    Attributes
    ----------
    type : str
        A key of the tables above, or ``pos`` (a copy), ``not``, ``neg``, ``mul``, ``shl``, ``shr``, ``sshr``, ``mux``
        (pairs of condition and value, then the value otherwise).
    operands : list of Bits
    output : Bits
    signed : bool
        Of comparisons and products.
    """

    type: str
    operands: list[Bits]
    output: Bits
    signed: bool = False


@dataclass
class Shaped:
    """A netlist as operators, registers and memories.

    Attributes
    ----------
    operators : list of Operator
        Each after those it reads.
    registers, memory_reads, memory_writes : list of Cell
    contents : dict
        Initial words by memory.
    """

    wires: dict[str, Wire]
    operators: list[Operator] = field(default_factory=list)
    registers: list[Cell] = field(default_factory=list)
    memory_reads: list[Cell] = field(default_factory=list)
    memory_writes: list[Cell] = field(default_factory=list)
    contents: dict[str, list[int]] = field(default_factory=dict)
    counter: Counter[str] = field(default_factory=Counter)

    @property
    def clocked(self) -> set[str]:
        """Wires that a clock edge writes."""
        edges = (cell.ports[name] for cell, name in self.cell_outputs() if cell.parameters.get("CLK_ENABLE", 1))
        return {wire for bits in edges for wire in wires_of(bits)}

    def cell_outputs(self) -> Iterator[tuple[Cell, str]]:
        """What registers and memories drive, as cell and the name of its port."""
        yield from ((cell, "Q") for cell in self.registers)
        yield from ((cell, "DATA") for cell in self.memory_reads)

    def cell_inputs(self) -> Iterator[tuple[Cell, str]]:
        """What registers and memories read."""
        for cell in (*self.registers, *self.memory_reads, *self.memory_writes):
            written = "Q" if "Q" in cell.ports else "DATA" if cell.type == "memrd_v2" else ""
            yield from ((cell, name) for name in cell.ports if name != written)

    def reads(self) -> Iterator[Bits]:
        """Everything that is read; an enable that repeats one bit counts once."""
        yield from (bits for operator in self.operators for bits in operator.operands)
        for cell, name in self.cell_inputs():
            bits = cell.ports[name]
            yield bits[:1] if name == "EN" and len(set(bits)) == 1 else bits
        yield from (wire.bits for wire in self.wires.values() if wire.direction == "output")

    def new_wire(self, name: str, width: int, initial: int | None = None) -> Bits:
        while True:
            self.counter[name] += 1
            unique = f"{name}_{self.counter[name]}"
            if unique not in self.wires:
                self.wires[unique] = Wire(unique, width, "", initial, public=False)
                return self.wires[unique].bits


def shape(netlist: Netlist) -> Shaped:
    """Shape a netlist, whose wires are used up.

    Raises
    ------
    NotImplementedError
        A kind of cell that no unit has needed so far (division, latch, asynchronous reset, ...).
    """
    shaped = Shaped(netlist.wires)
    for cell in netlist.cells:
        _sort_in(shaped, cell)
    _undo_needless_resets(shaped)
    _merge_registers(shaped)
    _name_private_wires(shaped)
    _cut_and_tie(shaped)
    _one_driver_a_vector(shaped)
    shaped.operators = list(_in_order_of_use(shaped.operators))
    for name in set(shaped.wires) - shaped.clocked:
        shaped.wires[name].initial = None
    return shaped


def _sort_in(shaped: Shaped, cell: Cell) -> None:
    ports = cell.ports
    if cell.type == "memrd_v2":
        if ports["ARST"] != [0] or ports["SRST"] != [0]:
            raise NotImplementedError("no Verilog for a memory port with reset")
        shaped.memory_reads.append(cell)
    elif cell.type == "memwr_v2":
        shaped.memory_writes.append(cell)
    elif cell.type == "meminit_v2":
        width, data = cell.number("WIDTH"), ports["DATA"]
        words = [value_of(data[start : start + width]) for start in range(0, len(data), width)]
        shaped.contents[str(cell.parameters["MEMID"])] = words
    elif cell.type in ("dff", "dffe", "sdff", "sdffe", "sdffce"):
        shaped.registers.append(cell)
    else:
        _add_operator(shaped, cell)


def _add_operator(shaped: Shaped, cell: Cell) -> None:
    kind, ports, output = cell.type, cell.ports, cell.ports["Y"]
    signed = bool(cell.parameters.get("A_SIGNED", 0)) and bool(cell.parameters.get("B_SIGNED", 1))

    def add(kind: str, *operands: Bits, signed: bool = False, output: Bits = output) -> None:
        shaped.operators.append(Operator(kind, list(operands), output, signed))

    def add_truth(kind: str, *operands: Bits, signed: bool = False) -> None:
        add(kind, *operands, signed=signed, output=output[:1])
        if output[1:]:
            add("pos", [0] * len(output[1:]), output=output[1:])

    def truth(bits: Bits) -> Bits:
        if len(bits) == 1:
            return bits
        any_bit = shaped.new_wire("any", 1)
        add("reduce_or", bits, output=any_bit)
        return any_bit

    if kind in EQUAL_WIDTH:
        add(kind, *(_resize(ports[name], len(output), signed) for name in "AB"))
    elif kind in ("not", "neg", "pos"):
        add(kind, _resize(ports["A"], len(output), signed))
    elif kind == "mul":  # as wide as both factors together: the one operator that Verilog may widen
        a, b = (ports[name][: len(output)] for name in "AB")
        add(kind, _resize(a, max(len(a), len(output) - len(b)), signed), b, signed=signed)
    elif kind in COMPARE:
        width = max(len(ports["A"]), len(ports["B"]))
        add_truth(kind, *(_resize(ports[name], width, signed) for name in "AB"), signed=signed)
    elif kind in REDUCE:
        add_truth(kind, ports["A"])
    elif kind == "logic_not":
        add_truth("eq", ports["A"], [0] * len(ports["A"]))
    elif kind in ("logic_and", "logic_or"):
        add_truth(kind.removeprefix("logic_"), truth(ports["A"]), truth(ports["B"]))
    elif kind in ("shl", "sshl"):
        add("shl", _resize(ports["A"], len(output), bool(cell.number("A_SIGNED"))), ports["B"])
    elif kind in ("shr", "sshr") or (kind in ("shift", "shiftx") and not cell.number("B_SIGNED")):
        extends = bool(cell.number("A_SIGNED"))
        if extends and kind.startswith("shift") and (1 << len(ports["B"])) - 1 + len(output) > len(ports["A"]):
            raise NotImplementedError(
                "a part of a signed value may lie past its end, where Amaranth's simulator and its RTLIL differ; use >>"
            )
        width = max(len(ports["A"]), len(output))
        shifted = output if width == len(output) else shaped.new_wire("shifted", width)
        operand = _resize(ports["A"], width, extends)
        add("sshr" if extends and kind == "sshr" else "shr", operand, ports["B"], output=shifted)
        if shifted is not output:
            add("pos", shifted[: len(output)])
    elif kind == "mux":
        add(kind, ports["S"], ports["B"], ports["A"])
    elif kind == "pmux":  # its selects exclude each other, so any order will do
        values = [ports["B"][start : start + len(output)] for start in range(0, len(ports["B"]), len(output))]
        pairs = [part for bit, value in zip(ports["S"], values, strict=True) for part in ([bit], value)]
        add("mux", *pairs, ports["A"])
    else:
        raise NotImplementedError(f"no Verilog for the cell ${kind}")


def _undo_needless_resets(shaped: Shaped) -> None:
    """Yosys calls any choice of a constant a reset, bit by bit; all but the module's reset become a choice again."""
    inverters = {operator.output[0]: operator.operands[0] for operator in shaped.operators if operator.type == "not"}
    for cell in shaped.registers:
        if cell.type not in ("sdff", "sdffce"):
            continue
        condition = cell.ports["SRST"]
        source = inverters.get(condition[0], condition)[0]
        if source == RESET:
            continue
        width = len(cell.ports["Q"])
        value = [cell.number("SRST_VALUE") >> place & 1 for place in range(width)]
        chosen = shaped.new_wire("choice", width)
        choices = (value, cell.ports["D"]) if cell.number("SRST_POLARITY") else (cell.ports["D"], value)
        shaped.operators.append(Operator("mux", [condition, *choices], chosen))
        cell.ports["D"] = chosen
        del cell.ports["SRST"]
        cell.type = "dff" if cell.type == "sdff" else "dffe"


def _merge_registers(shaped: Shaped) -> None:
    """Put slices of one vector that load under the same conditions together again."""
    merged: dict[tuple[object, ...], list[Cell]] = {}
    for cell in shaped.registers:
        control = [tuple(cell.ports.get(port, [])) for port in ("CLK", "EN", "SRST")]
        polarity = [cell.parameters.get(f"{port}_POLARITY") for port in ("CLK", "EN", "SRST")]
        names = wires_of(cell.ports["Q"])
        merged.setdefault((cell.type, *control, *polarity, *sorted(names)), []).append(cell)
    for cells in merged.values():
        bits: list[tuple[Bit, Bit, int]] = []
        for cell in cells:
            values = int(cell.parameters.get("SRST_VALUE", 0))
            pairs = zip(cell.ports["Q"], cell.ports["D"], strict=True)
            bits += [(target, source, values >> place & 1) for place, (target, source) in enumerate(pairs)]
        bits.sort(key=lambda bit: bit[0])
        first = cells[0]
        first.ports["Q"] = [target for target, _, _ in bits]
        first.ports["D"] = [source for _, source, _ in bits]
        first.parameters["SRST_VALUE"] = sum(value << place for place, (_, _, value) in enumerate(bits))
    shaped.registers = [cells[0] for cells in merged.values()]


def _name_private_wires(shaped: Shaped) -> None:
    """Of the wires that tools made, copies vanish and others get a name that says what drives them."""
    renamed: dict[Bit, Bit] = {}

    def private(bits: Bits) -> bool:
        return all(not isinstance(bit, int) and not shaped.wires[bit[0]].public for bit in bits)

    kept = []
    for operator in shaped.operators:
        if private(operator.output):
            copy = operator.type == "pos"
            new = (
                operator.operands[0]
                if copy
                else shaped.new_wire(_NAMES.get(operator.type, "value"), len(operator.output))
            )
            renamed.update(zip(operator.output, new, strict=True))
            operator.output = new
            if copy:
                continue
        kept.append(operator)
    shaped.operators = kept
    for cell, port in shaped.cell_outputs():
        bits = cell.ports[port]
        if private(bits):
            cell.ports[port] = shaped.new_wire("register", len(bits), _initial(shaped.wires, bits))
            renamed.update(zip(bits, cell.ports[port], strict=True))
    for operator in shaped.operators:
        operator.operands = [_renamed(bits, renamed) for bits in operator.operands]
    for cell, port in shaped.cell_inputs():
        cell.ports[port] = _renamed(cell.ports[port], renamed)


def _renamed(bits: Bits, names: Mapping[Bit, Bit]) -> Bits:
    result = []
    for bit in bits:
        while bit in names:
            bit = names[bit]
        result.append(bit)
    return result


def _one_driver_a_vector(shaped: Shaped) -> None:
    """A vector that several things drive in parts becomes one concatenation of their outputs; operators read those.

    Verilog has one kind of driver a variable, and a part that depends on another part of
    its vector would look like a loop to a simulator. Registers alone may share a vector.
    """
    split: set[str] = set()
    for operator in shaped.operators:
        names = wires_of(operator.output)
        if len(names) > 1 or len(operator.output) < shaped.wires[next(iter(names))].width:
            split |= names
    parts: dict[Bit, Bit] = {}
    for operator in list(shaped.operators):
        if wires_of(operator.output).isdisjoint(split):
            continue
        if operator.type == "pos":
            source = operator.operands[0]
            shaped.operators.remove(operator)
        else:
            source = shaped.new_wire(_NAMES.get(operator.type, "value"), len(operator.output))
        parts.update(zip(operator.output, source, strict=True))
        operator.output = source
    for cell, port in shaped.cell_outputs():
        bits = cell.ports[port]
        if not wires_of(bits).isdisjoint(split):
            name = min(wires_of(bits)) + "_register"
            cell.ports[port] = shaped.new_wire(name, len(bits), _initial(shaped.wires, bits))
            parts.update(zip(bits, cell.ports[port], strict=True))

    for operator in shaped.operators:
        operator.operands = [_renamed(bits, parts) for bits in operator.operands]
    names_of_parts: dict[tuple[Bit, ...], Bits] = {}
    for name in sorted(split):
        wire = shaped.wires[name]
        if wire.public:
            whole = _renamed(wire.bits, parts)
            shaped.operators.append(Operator("pos", [whole], wire.bits))
            names_of_parts.setdefault(tuple(whole), wire.bits)
    for cell, port in shaped.cell_inputs():
        whole = _renamed(cell.ports[port], parts)
        if any(not shaped.wires[name].public for name in wires_of(cell.ports[port]) & split):
            cell.ports[port] = whole
        cell.ports[port] = names_of_parts.get(tuple(whole), cell.ports[port])
    for name in split:
        if not shaped.wires[name].public:
            del shaped.wires[name]


def _cut_and_tie(shaped: Shaped) -> None:
    """Vectors keep the bits in use only, and bits among them that nothing drives are 0."""
    driven = {bit for operator in shaped.operators for bit in operator.output}
    driven |= {bit for cell, port in shaped.cell_outputs() for bit in cell.ports[port]}
    used = driven.union(*shaped.reads())
    width: Counter[str] = Counter()
    for bit in used:
        if not isinstance(bit, int):
            width[bit[0]] = max(width[bit[0]], bit[1] + 1)
    for name, wire in list(shaped.wires.items()):
        if wire.direction == "input":
            continue
        if not wire.direction:
            wire.width = width[name]
        missing = [bit for bit in wire.bits if bit not in driven]
        if wire.width == 0:
            del shaped.wires[name]
        elif missing:
            shaped.operators.append(Operator("pos", [[0] * len(missing)], missing))


def _in_order_of_use(operators: list[Operator]) -> Iterator[Operator]:
    """Operators such that each comes after those it reads."""
    driver = {bit: operator for operator in operators for bit in operator.output}
    done: set[int] = set()
    for root in operators:
        stack = [(root, iter([bit for bits in root.operands for bit in bits]))]
        while stack:
            operator, rest = stack[-1]
            source = next((driver[bit] for bit in rest if bit in driver and id(driver[bit]) not in done), None)
            if id(operator) in done or source is None:
                stack.pop()
                if id(operator) not in done:
                    done.add(id(operator))
                    yield operator
            else:
                assert all(source is not above for above, _ in stack), "combinational loop"
                stack.append((source, iter([bit for bits in source.operands for bit in bits])))


def wires_of(bits: Iterable[Bit]) -> set[str]:
    """Names of the wires that bits belong to."""
    return {bit[0] for bit in bits if not isinstance(bit, int)}


def value_of(bits: Bits) -> int:
    """Number that constant bits spell."""
    return int("".join("1" if bit == 1 else "0" for bit in reversed(bits)) or "0", 2)


def _resize(bits: Bits, width: int, signed: bool) -> Bits:
    fill: Bit = bits[-1] if signed and bits else 0
    return bits[:width] + [fill] * (width - len(bits))


def _initial(wires: dict[str, Wire], bits: Bits) -> int | None:
    """Power-up value of bits, from the wires they are on; None when it is not defined."""
    value = 0
    for place, bit in enumerate(bits):
        assert not isinstance(bit, int)
        whole = wires[bit[0]].initial
        if whole is None:
            return None
        value |= (whole >> bit[1] & 1) << place
    return value
