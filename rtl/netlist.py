"""A flat netlist read from RTLIL, the exchange text of Amaranth and Yosys, with every connection resolved to bits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# A bit is a wire and an index into it, or a constant: 0 or 1 (a don't-care becomes 0).
Bit = tuple[str, int] | int
Bits = list[Bit]

# Attributes in which tools keep where a thing came from.
_BOOKKEEPING = {"hdlname", "src", "keep_hierarchy", "unused_bits"}
_TOKEN = re.compile(r"\{|\}|\[\d+(?::\d+)?\]|\d+'[01xzm-]*|-?\d+|[\\$]\S+")


@dataclass
class Wire:
    """A named vector; `direction` is "input", "output" or "" and `initial` the power-up value, if any.

    Attributes
    ----------
    public : bool
        The name comes from the source, not from a tool.
    """

    name: str
    width: int
    direction: str = ""
    initial: int | None = None
    public: bool = True

    @property
    def bits(self) -> Bits:
        return [(self.name, index) for index in range(self.width)]


@dataclass
class Memory:
    """`size` words of `width` bits.

    Attributes
    ----------
    attributes : dict
        What the source asks of synthesis, such as ``ram_style``: numbers and texts.
    """

    name: str
    width: int
    size: int
    attributes: dict[str, int | str] = field(default_factory=dict)


@dataclass
class Cell:
    """An RTLIL cell: its type without the dollar sign, integer or text parameters, and its connections."""

    type: str
    parameters: dict[str, int | str] = field(default_factory=dict)
    ports: dict[str, Bits] = field(default_factory=dict)

    def number(self, name: str) -> int:
        value = self.parameters[name]
        assert isinstance(value, int)
        return value


@dataclass
class Netlist:
    """One flat module. Plain connections are cells of type ``pos``."""

    name: str = ""
    wires: dict[str, Wire] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


def read(text: str) -> Netlist:
    """Parse the RTLIL text of one flat module without processes.

    Raises
    ------
    ValueError
        The text holds something else: several modules, or a process.
    """
    netlist = Netlist()
    cell: Cell | None = None
    initial: int | None = None
    attributes: dict[str, int | str] = {}  # of what the next line declares
    for line in text.splitlines():
        words = line.split()
        match words:
            case [] | ["autoidx", _]:
                pass
            case ["attribute", "\\init", value]:
                initial = _constant(value)[0]
            case ["attribute", name, *_]:
                attributes[name[1:]] = _value(line.strip().split(" ", 2)[2])
                continue
            case [first, *_] if first.startswith("#"):
                pass
            case ["module", name]:
                if netlist.name:
                    raise ValueError(f"RTLIL holds a second module, {name}; it must be flat")
                netlist.name = name[1:]
            case ["wire", *options, name]:
                width = int(options[options.index("width") + 1]) if "width" in options else 1
                direction = next((word for word in ("input", "output") if word in options), "")
                netlist.wires[name] = Wire(name, width, direction, initial, name.startswith("\\"))
                initial = None
            case ["memory", *options, name]:
                sizes = dict(zip(options[::2], options[1::2], strict=True))
                asked = {key: value for key, value in attributes.items() if key not in _BOOKKEEPING}
                netlist.memories[name] = Memory(name, int(sizes.get("width", 1)), int(sizes["size"]), asked)
            case ["cell", kind, _]:
                cell = Cell(kind[1:])
                netlist.cells.append(cell)
            case ["parameter", *_, name, value] if cell is not None:
                cell.parameters[name[1:]] = _value(value)
            case ["connect", *_]:
                tokens = _TOKEN.findall(line.strip()[len("connect ") :])
                if cell is not None:
                    cell.ports[tokens[0][1:]] = _signal(netlist, tokens[1:])
                else:
                    left, right = _two_signals(netlist, tokens)
                    netlist.cells.append(Cell("pos", {"A_SIGNED": 0}, {"A": right, "Y": left}))
            case ["end"]:
                cell = None
            case _:
                raise ValueError(f"RTLIL line not understood: {line.strip()}")
        attributes = {}
    return netlist


def _value(text: str) -> int | str:
    """A parameter or attribute: a text in quotes, or a constant."""
    if text.startswith('"'):
        return text.strip('"').replace("\\\\", "\\")
    return _constant(text)[0]


def _constant(text: str) -> tuple[int, int]:
    """Value and width of ``8'00001111`` or ``12``; undefined bits are 0, a short text repeats an undefined top bit."""
    if "'" not in text:
        return int(text), 32
    width, digits = text.split("'")
    return int("0" + re.sub("[^01]", "0", digits), 2), int(width)


def _signal(netlist: Netlist, tokens: list[str]) -> Bits:
    bits, rest = _take(netlist, tokens)
    assert not rest, f"RTLIL signal not understood: {tokens}"
    return bits


def _two_signals(netlist: Netlist, tokens: list[str]) -> tuple[Bits, Bits]:
    left, rest = _take(netlist, tokens)
    return left, _signal(netlist, rest)


def _take(netlist: Netlist, tokens: list[str]) -> tuple[Bits, list[str]]:
    """The bits of one signal, lowest first, and the tokens after it."""
    first, rest = tokens[0], tokens[1:]
    if first == "{":
        parts: list[Bits] = []
        while rest[0] != "}":
            bits, rest = _take(netlist, rest)
            parts.insert(0, bits)
        return [bit for part in parts for bit in part], rest[1:]
    if first[0] in "\\$":
        bits = netlist.wires[first].bits
        while rest and rest[0].startswith("["):
            bounds = [int(number) for number in rest[0][1:-1].split(":")]
            bits, rest = bits[bounds[-1] : bounds[0] + 1], rest[1:]
        return bits, rest
    value, width = _constant(first)
    return [value >> index & 1 for index in range(width)], rest
