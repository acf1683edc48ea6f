# amaranth: UnusedElaboratable=no
"""Prints a text with numbers that the chip fills in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.boards.rom import Rom

LITERAL, NUMBER, IF_PASSED, IF_FAILED = range(4)
"""Kinds of a symbol: a character; number n, in decimal; a character that is printed only when verdict n says so."""


@dataclass(frozen=True)
class Symbol:
    """One word of the text.

    Attributes
    ----------
    kind : int
    index : int
        Of the number or verdict.
    character : int
    """

    kind: int
    index: int = 0
    character: int = 0


def literal(text: str) -> list[Symbol]:
    """Symbols that always print `text`."""
    return [Symbol(LITERAL, 0, character) for character in text.encode("ascii")]


def number(index: int) -> list[Symbol]:
    """The symbol that prints a number."""
    return [Symbol(NUMBER, index)]


def verdict(index: int, passed: str, failed: str) -> list[Symbol]:
    """Symbols that print one of two texts."""
    return [
        Symbol(kind, index, character)
        for kind, text in ((IF_PASSED, passed), (IF_FAILED, failed))
        for character in text.encode("ascii")
    ]


class Printer(wiring.Component):
    """Sends a text as bytes.

    Parameters
    ----------
    symbols : sequence of Symbol
    numbers : sequence of Value
        All of one width; they stay while they are printed.
    verdicts : sequence of Value
        A bit each, 1 for passed.

    Attributes
    ----------
    start : In(1)
        Heard while nothing is printed.
    done : Out(1)
        For a cycle, after the last byte was taken.
    o : Out(stream of bytes)
    """

    def __init__(self, symbols: Sequence[Symbol], numbers: Sequence[Value], verdicts: Sequence[Value]):
        self.symbols, self.numbers, self.verdicts = symbols, numbers, verdicts
        super().__init__({"start": In(1), "done": Out(1), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = len(self.numbers[0])
        digits = len(str((1 << bits) - 1))
        index_bits = max(len(self.numbers), len(self.verdicts)).bit_length()
        words = [symbol.character | symbol.kind << 8 | symbol.index << 10 for symbol in self.symbols]
        m.submodules.text = text = Rom(words, 10 + index_bits)
        character, kind, index = text.data[:8], text.data[8:10], text.data[10:]
        address = Signal(range(len(words)))
        wait = Signal(range(Rom.latency + 2))
        m.d.comb += [text.address.eq(address), text.enable.eq(1)]

        value, decimal = Signal(bits), Signal(4 * digits)
        passed = Signal()
        step = Signal(range(max(bits, digits) + 1))
        printing = Signal()  # a digit other than 0 was printed
        # Decimal digits of twice a number: a digit of 5 or more becomes 3 more before it is doubled.
        corrected = Cat(
            Mux(digit >= 5, digit + 3, digit)[:4] for digit in (decimal[4 * n : 4 * n + 4] for n in range(digits))
        )
        top = decimal[-4:]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [address.eq(0), wait.eq(0)]
                with m.If(self.start):
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += [
                    wait.eq(wait + 1),
                    value.eq(Array(self.numbers)[index]),
                    passed.eq(Array(self.verdicts)[index]),
                    decimal.eq(0),
                    step.eq(0),
                    printing.eq(0),
                ]
                # The word is there, and what it chooses one cycle later.
                with m.If(wait == Rom.latency + 1), m.Switch(kind):
                    with m.Case(LITERAL):
                        m.next = "SEND"
                    with m.Case(NUMBER):
                        m.next = "CONVERT"
                    with m.Default():
                        m.next = "CHOOSE"
            with m.State("CHOOSE"):
                with m.If(passed == (kind == IF_PASSED)):
                    m.next = "SEND"
                with m.Else():
                    m.next = "NEXT"
            with m.State("SEND"):
                m.d.comb += [self.o.payload.eq(character), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "NEXT"
            with m.State("CONVERT"):
                m.d.sync += [Cat(value, decimal).eq(Cat(value, corrected) << 1), step.eq(step + 1)]
                with m.If(step == bits - 1):
                    m.d.sync += step.eq(0)
                    m.next = "DIGITS"
            with m.State("DIGITS"):
                m.d.comb += [
                    self.o.payload.eq(ord("0") | top),
                    self.o.valid.eq(printing | (top != 0) | (step == digits - 1)),
                ]
                with m.If(self.o.ready | ~self.o.valid):
                    m.d.sync += [printing.eq(self.o.valid), decimal.eq(decimal << 4), step.eq(step + 1)]
                    with m.If(step == digits - 1):
                        m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [address.eq(address + 1), wait.eq(0)]
                m.next = "FETCH"
                with m.If(address == len(words) - 1):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
