"""The map of somebody else's ports, ``ports.toml``: which of them is what, see docs/bring-your-own-rtl.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from golden.errors import HwsimError


@dataclass(frozen=True)
class Side:
    """A stream of their unit.

    Attributes
    ----------
    data : dict of str to str
        Port by member of the element; the only member of an integer, or the whole packed element, is "".
    valid : str
    ready, last, keep : str or None
        None where the unit has no such port.
    element_bits : dict of str to int
        Bits from one element of a member to the next, where they are more than its width.
    low_first : bool
        Whether lane 0 has the lowest bits.
    """

    data: Mapping[str, str]
    valid: str
    ready: str | None
    last: str | None
    keep: str | None
    element_bits: Mapping[str, int]
    low_first: bool


@dataclass(frozen=True)
class WritePort:
    """Their port for constants: `words` are (constant, first address), each entry one write."""

    address: str
    data: str
    valid: str
    ready: str | None
    words: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class PortMap:
    """What ``ports.toml`` says.

    Attributes
    ----------
    path : Path
    unit : str
        Kind of the unit that theirs implements.
    layers : tuple of str
        Layers that it serves; empty for all of the kind.
    lanes : int
        Elements a beat, or columns of V.
    clock : str
    reset : str or None
    reset_high : bool
        Whether a high level resets.
    parameters : dict
        A number, or ("spec", field), or ("constant", name, bits an entry).
    input, output : Side
    constants : WritePort or None
        None: built in, or passed as parameters.
    files : tuple of str
        Files that their Verilog reads or includes.
    """

    path: Path
    unit: str
    layers: tuple[str, ...]
    lanes: int
    clock: str
    reset: str | None
    reset_high: bool
    parameters: Mapping[str, int | tuple[str, ...] | tuple[str, str, int]]
    input: Side
    output: Side
    constants: WritePort | None
    files: tuple[str, ...]


def read_map(path: Path) -> PortMap:
    """Read a map of ports.

    Raises
    ------
    HwsimError
        The file cannot be read, is no TOML, or an entry is missing, unknown or of the wrong type; names it.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise HwsimError(f"{path}: cannot be read ({error.strerror}); name a map of ports with --map") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HwsimError(f"{path}: is no TOML: {error}") from None
    top = _Table(path, "", tree)
    clock = top.table("clock")
    reset = top.table("reset", optional=True)
    constants = top.table("constants", optional=True)
    result = PortMap(
        path=path,
        unit=top.text("unit"),
        layers=tuple(top.texts("layers")),
        lanes=top.number("lanes", 1, default=1),
        clock=clock.text("port"),
        reset=reset.text("port") if reset else None,
        reset_high=reset.choice("active", ("high", "low")) == "high" if reset else True,
        parameters={name: _parameter(top, name, value) for name, value in top.values("parameters").items()},
        input=_side(top.table("input")),
        output=_side(top.table("output")),
        constants=_write_port(constants) if constants else None,
        files=tuple(top.texts("files")),
    )
    if reset:
        reset.choice("kind", ("sync", "async"), default="sync")
    for table in (top, clock, reset, constants):
        if table:
            table.nothing_else()
    return result


def _side(table: _Table) -> Side:
    data = table.entries.get("data")
    ports = data if isinstance(data, dict) else {"": table.text("data")}
    table.used.add("data")
    bits = table.entries.get("element_bits", {})
    table.used.add("element_bits")
    widths = bits if isinstance(bits, dict) else {"": bits}
    for name, value in ports.items():
        if not isinstance(value, str):
            table.wrong(f"data.{name}", value, "the name of a port")
    for name, value in widths.items():
        if type(value) is not int or not 1 <= value <= 1 << 16:
            table.wrong("element_bits", value, "a number of bits")
        if name not in ports:
            table.wrong("element_bits", name, f"of a member of data: {', '.join(ports) or 'a number'}")
    side = Side(
        data=ports,
        valid=table.text("valid"),
        ready=table.optional_text("ready"),
        last=table.optional_text("last"),
        keep=table.optional_text("keep"),
        element_bits=widths,
        low_first=table.choice("first", ("low", "high"), default="low") == "low",
    )
    table.nothing_else()
    return side


def _write_port(table: _Table) -> WritePort:
    words = table.entries.get("words")
    table.used.add("words")
    if not isinstance(words, list) or not words:
        table.wrong("words", words, 'a list such as [{constant = "table", at = 0}]')
    pairs = []
    for word in words:
        if not isinstance(word, dict) or set(word) != {"constant", "at"} or type(word["at"]) is not int:
            table.wrong("words", word, '{constant = "NAME", at = ADDRESS}')
        pairs.append((str(word["constant"]), int(word["at"])))
    return WritePort(
        table.text("address"), table.text("data"), table.text("valid"), table.optional_text("ready"), tuple(pairs)
    )


def _parameter(top: _Table, name: str, value: Any) -> int | tuple[str, ...] | tuple[str, str, int]:
    if isinstance(value, dict) and set(value) == {"spec"}:
        return ("spec", str(value["spec"]))
    if isinstance(value, dict) and set(value) == {"constant", "bits"} and type(value["bits"]) is int:
        return ("constant", str(value["constant"]), value["bits"])
    if type(value) is int:
        return value
    return top.wrong(
        f"parameters.{name}", value, 'a number, {spec = "FIELD"} or {constant = "NAME", bits = BITS_AN_ENTRY}'
    )


class _Table:
    """A table of the file that remembers what was asked for, so that the rest can be refused."""

    def __init__(self, path: Path, name: str, entries: dict[str, Any]) -> None:
        self.path, self.name, self.entries, self.used = path, name, entries, set[str]()

    def wrong(self, key: str, value: Any, wanted: str) -> NoReturn:
        place = f"{self.name}.{key}" if self.name else key
        said = "is missing; it must be" if value is None else f"must be {wanted}, not {value!r}"
        raise HwsimError(f"{self.path}: {place} {said}{f' {wanted}' if value is None else ''}")

    def table(self, key: str, optional: bool = False) -> Any:
        self.used.add(key)
        entries = self.entries.get(key)
        if entries is None and optional:
            return None
        if not isinstance(entries, dict):
            self.wrong(key, entries, f"a table [{key}]")
        return _Table(self.path, key, entries)

    def values(self, key: str) -> dict[str, Any]:
        self.used.add(key)
        entries = self.entries.get(key, {})
        if not isinstance(entries, dict):
            self.wrong(key, entries, f"a table [{key}]")
        return entries

    def text(self, key: str) -> str:
        found = self.optional_text(key)
        if found is None:
            self.wrong(key, None, "a name")
        return found

    def optional_text(self, key: str) -> str | None:
        self.used.add(key)
        value = self.entries.get(key)
        if value is not None and not (isinstance(value, str) and value):
            self.wrong(key, value, "a name")
        return value

    def texts(self, key: str) -> list[str]:
        self.used.add(key)
        value = self.entries.get(key, [])
        if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            self.wrong(key, value, "a list of names")
        return value

    def number(self, key: str, least: int, default: int) -> int:
        self.used.add(key)
        value = self.entries.get(key, default)
        if type(value) is not int or value < least:
            self.wrong(key, value, f"a whole number of at least {least}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        self.used.add(key)
        value = self.entries.get(key, default)
        if value not in choices:
            self.wrong(key, value, " or ".join(f'"{choice}"' for choice in choices))
        return str(value)

    def nothing_else(self) -> None:
        for key in self.entries:
            if key not in self.used:
                place = f"{self.name}.{key}" if self.name else key
                known = ", ".join(sorted(self.used))
                raise HwsimError(f"{self.path}: {place} is not known; there are {known}")
