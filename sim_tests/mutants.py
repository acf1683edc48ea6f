"""Mutants of a netlist: small faults as a designer makes them, all in one model and chosen by a port.

Every mutant adds to the netlist what it would compute and a choice between that and the original, made by
the port ``mutant``: 0 is the unit as it is, n its nth mutant. So a unit is compiled once for all mutants.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rtl.netlist import Bit, Bits, Cell, Memory, Netlist, Wire

PORT = "mutant"
PORT_BITS = 16

_SWAPS = {
    "add": ("sub",),
    "sub": ("add",),
    "lt": ("le", "ge"),
    "le": ("lt", "gt"),
    "gt": ("ge", "lt"),
    "ge": ("gt", "le"),
    "eq": ("ne",),
    "ne": ("eq",),
    "and": ("or",),
    "or": ("and",),
    "xor": ("or", "xnor"),
    "xnor": ("xor",),
    "reduce_and": ("reduce_or",),
    "reduce_or": ("reduce_and",),
    "reduce_bool": ("reduce_and",),
    "logic_and": ("logic_or",),
    "logic_or": ("logic_and",),
    "not": ("pos",),
    "neg": ("pos",),
    "logic_not": ("reduce_bool",),
}
_REGISTERS = ("dff", "dffe", "sdff", "sdffe", "sdffce")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes
    ----------
    family : str
        "operator", "constant", "addend", "wiring", "choice", "register" or "memory".
    where : str
        The signal that it changes, or leads to.
    what : str
        The change in words.
    cell : int
        Place of the changed cell in the netlist.
    apply : callable
        Takes the netlist under change, the cell and the bit that selects the mutant.
    """

    family: str
    where: str
    what: str
    cell: int
    apply: Callable[[Mutated, Cell, Bit], None]

    def __str__(self) -> str:
        return f"{self.family} at {self.where}: {self.what}"


class Mutated:
    """A netlist that mutants are built into."""

    def __init__(self, netlist: Netlist):
        self.netlist = netlist
        self.cells = list(netlist.cells)  # places stay while cells are added
        self._made = 0
        netlist.wires[f"\\{PORT}"] = Wire(f"\\{PORT}", PORT_BITS, "input")

    def add(self, mutant: Mutant, number: int) -> None:
        """Build in a mutant that the port's value `number` selects."""
        selected = self.make("eq", 1, A=self.netlist.wires[f"\\{PORT}"].bits, B=constant(number, PORT_BITS))[0]
        mutant.apply(self, self.cells[mutant.cell], selected)

    def make(self, kind: str, width: int, **ports: Bits) -> Bits:
        """Output of a new unsigned cell."""
        output = self.wire(width)
        self.netlist.cells.append(Cell(kind, {"A_SIGNED": 0, "B_SIGNED": 0}, {**ports, "Y": output}))
        return output

    def wire(self, width: int) -> Bits:
        self._made += 1
        name = f"$mutant${self._made}"
        self.netlist.wires[name] = Wire(name, width, public=False)
        return self.netlist.wires[name].bits

    def flip(self, bit: Bit, when: Bit) -> Bit:
        return self.make("xor", 1, A=[bit], B=[when])[0]

    def replace_output(self, cell: Cell, changed: Cell, when: Bit) -> None:
        """Let `changed` take the place of `cell` when selected."""
        output = cell.ports["Y"]
        cell.ports["Y"], changed.ports["Y"] = self.wire(len(output)), self.wire(len(output))
        self.netlist.cells.append(changed)
        choice = {"A": cell.ports["Y"], "B": changed.ports["Y"], "S": [when], "Y": output}
        self.netlist.cells.append(Cell("mux", {}, choice))


def constant(value: int, width: int) -> Bits:
    """Bits of a number, lowest first."""
    return [value >> place & 1 for place in range(width)]


def mutants_of(netlist: Netlist) -> list[Mutant]:
    """Every mutant of a netlist, in the order of its cells."""
    where = _Names(netlist)
    live = _live(netlist)
    found: list[Mutant] = []
    for place, cell in enumerate(netlist.cells):
        if id(cell) not in live:
            continue
        name = where.of(cell)
        found += [
            Mutant(family, name, what, place, apply)
            for family, what, apply in (
                *_operators(cell),
                *_constants(cell),
                *_addends(cell),
                *_wiring(netlist, cell),
                *_choices(cell),
                *_registers(cell),
                *_memories(netlist.memories, cell),
            )
        ]
    return found


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """As many of each family as there are, in turn, chosen at random."""
    dice = np.random.default_rng(seed)
    families: dict[str, list[Mutant]] = defaultdict(list)
    for place in dice.permutation(len(mutants)):
        families[mutants[place].family].append(mutants[place])
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(mutants)):
        for family in sorted(families):
            if families[family] and len(chosen) < count:
                chosen.append(families[family].pop())
    return chosen


def build_in(netlist: Netlist, mutants: Sequence[Mutant]) -> Netlist:
    """A copy of the netlist with mutants 1, 2, ... and the port that selects one."""
    mutated = Mutated(copy.deepcopy(netlist))
    for number, mutant in enumerate(mutants, 1):
        mutated.add(mutant, number)
    return mutated.netlist


Change = tuple[str, str, Callable[[Mutated, Cell, Bit], None]]


def _operators(cell: Cell) -> Iterator[Change]:
    for kind in _SWAPS.get(cell.type, ()):

        def swap(mutated: Mutated, cell: Cell, when: Bit, kind: str = kind) -> None:
            changed = Cell(kind, dict(cell.parameters), {name: list(bits) for name, bits in cell.ports.items()})
            mutated.replace_output(cell, changed, when)

        yield "operator", f"{cell.type} becomes {kind}", swap


def _constants(cell: Cell) -> Iterator[Change]:
    names = ["D"] if cell.type in _REGISTERS else ["A", "B"] if "Y" in cell.ports else []
    for name in names:
        for place, bit in enumerate(cell.ports.get(name, [])):
            if isinstance(bit, int):

                def flip(mutated: Mutated, cell: Cell, when: Bit, name: str = name, place: int = place) -> None:
                    cell.ports[name] = list(cell.ports[name])
                    cell.ports[name][place] = mutated.flip(cell.ports[name][place], when)

                yield "constant", f"bit {place} of the constant in {cell.type} {name} is {1 - bit}", flip


def _addends(cell: Cell) -> Iterator[Change]:
    if cell.type not in ("add", "sub"):
        return
    for name in "AB":

        def drop(mutated: Mutated, cell: Cell, when: Bit, name: str = name) -> None:
            ports = {port: list(bits) for port, bits in cell.ports.items()}
            ports[name] = [0] * len(ports[name])
            mutated.replace_output(cell, Cell(cell.type, dict(cell.parameters), ports), when)

        yield "addend", f"{cell.type} without {name}", drop


def _wiring(netlist: Netlist, cell: Cell) -> Iterator[Change]:
    """A slice of a vector taken one bit off: a shift by one more or less."""
    if "Y" not in cell.ports:
        return
    for name in ("A", "B"):
        bits = cell.ports.get(name, [])
        if len(bits) < 2 or any(isinstance(bit, int) for bit in bits):
            continue
        (wire, low), width = bits[0], len(bits)  # type: ignore[misc]
        if bits != [(wire, low + place) for place in range(width)]:
            continue
        for offset in (-1, 1):
            if low + offset >= 0 and low + offset + width <= netlist.wires[wire].width:

                def move(mutated: Mutated, cell: Cell, when: Bit, name: str = name, offset: int = offset) -> None:
                    ports = {port: list(bits) for port, bits in cell.ports.items()}
                    ports[name] = [bit if isinstance(bit, int) else (bit[0], bit[1] + offset) for bit in ports[name]]
                    mutated.replace_output(cell, Cell(cell.type, dict(cell.parameters), ports), when)

                yield "wiring", f"{cell.type} {name} is taken {abs(offset)} bit {'up' if offset > 0 else 'down'}", move


def _choices(cell: Cell) -> Iterator[Change]:
    if cell.type not in ("mux", "pmux"):
        return
    for place in range(len(cell.ports["S"])):

        def turn(mutated: Mutated, cell: Cell, when: Bit, place: int = place) -> None:
            cell.ports["S"] = list(cell.ports["S"])
            cell.ports["S"][place] = mutated.flip(cell.ports["S"][place], when)

        yield "choice", f"condition {place} of the {cell.type} is turned round", turn


def _registers(cell: Cell) -> Iterator[Change]:
    if cell.type not in _REGISTERS:
        return
    if "EN" in cell.ports:
        yield "register", "always enabled", _force("EN", active=True)
    if "SRST" in cell.ports:
        yield "register", "not reset", _force("SRST", active=False)


def _force(port: str, *, active: bool) -> Callable[[Mutated, Cell, Bit], None]:
    """Hold a control of a cell active or inactive when selected."""

    def force(mutated: Mutated, cell: Cell, when: Bit) -> None:
        high = bool(cell.parameters.get(f"{port}_POLARITY", 1)) == active
        released = mutated.make("not", 1, A=[when])
        (old, *more) = cell.ports[port]
        new = mutated.make("or", 1, A=[old], B=[when]) if high else mutated.make("and", 1, A=[old], B=released)
        cell.ports[port] = new * (1 + len(more))

    return force


def _memories(memories: dict[str, Memory], cell: Cell) -> Iterator[Change]:
    if cell.type == "memrd_v2" and cell.parameters.get("CLK_ENABLE", 1):
        yield "memory", "always read", _force("EN", active=True)
    if cell.type != "memwr_v2":
        return
    memory = memories[str(cell.parameters["MEMID"])]
    # One word in each quarter, one bit each, from the lowest to the highest.
    for quarter in range(4):
        word = (2 * quarter + 1) * memory.size // 8
        place = quarter * (memory.width - 1) // 3

        def corrupt(mutated: Mutated, cell: Cell, when: Bit, word: int = word, place: int = place) -> None:
            address = cell.ports["ADDR"]
            here = mutated.make("eq", 1, A=address, B=constant(word, len(address)))
            cell.ports["DATA"] = list(cell.ports["DATA"])
            hit = mutated.make("and", 1, A=here, B=[when])[0]
            cell.ports["DATA"][place] = mutated.flip(cell.ports["DATA"][place], hit)

        yield "memory", f"bit {place} of word {word} is wrong", corrupt


class _Names:
    """For each cell the named signal that it drives, or the nearest one that it leads to."""

    def __init__(self, netlist: Netlist):
        self._wires = netlist.wires
        self._readers: dict[Bit, list[Cell]] = defaultdict(list)
        for cell in netlist.cells:
            for name, bits in cell.ports.items():
                if name not in ("Y", "Q") and not (cell.type == "memrd_v2" and name == "DATA"):
                    for bit in bits:
                        self._readers[bit].append(cell)

    def of(self, cell: Cell) -> str:
        if "MEMID" in cell.parameters:
            return str(cell.parameters["MEMID"]).lstrip("\\")
        front, seen = [cell], set()
        while front:
            names = Counter(name for reached in front for name in self._public(reached))
            if names:
                return min(names).lstrip("\\")
            seen |= {id(reached) for reached in front}
            front = [
                reader
                for reached in front
                for bit in _output(reached)
                for reader in self._readers[bit]
                if id(reader) not in seen
            ]
        return "nothing"

    def _public(self, cell: Cell) -> Iterator[str]:
        if "MEMID" in cell.parameters:
            yield str(cell.parameters["MEMID"])
        for bit in _output(cell):
            if not isinstance(bit, int) and self._wires[bit[0]].public:
                yield bit[0]


def _live(netlist: Netlist) -> set[int]:
    """Cells from which an output can be reached, by id; a mutant anywhere else changes nothing."""
    drivers: dict[Bit, list[Cell]] = defaultdict(list)
    writers: dict[object, list[Cell]] = defaultdict(list)
    for cell in netlist.cells:
        for bit in _output(cell) if cell.type != "memwr_v2" else []:
            drivers[bit].append(cell)
        if cell.type == "memwr_v2":
            writers[cell.parameters["MEMID"]].append(cell)
    live: set[int] = set()
    front = [bit for wire in netlist.wires.values() if wire.direction == "output" for bit in wire.bits]
    while front:
        for cell in drivers.pop(front.pop(), []):
            reached = [cell, *(writers[cell.parameters["MEMID"]] if cell.type == "memrd_v2" else [])]
            for each in reached:
                if id(each) not in live:
                    live.add(id(each))
                    driven = {*_output(each)} if each.type != "memwr_v2" else set()
                    front += [bit for bits in each.ports.values() for bit in bits if bit not in driven]
    return live


def _output(cell: Cell) -> Bits:
    return cell.ports.get("Y", cell.ports.get("Q", cell.ports.get("DATA", [])))
