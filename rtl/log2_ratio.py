# amaranth: UnusedElaboratable=no
"""The Log2 code of exponentials in their sum: how words are scaled, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.errors import HwsimError
from rtl.delay import delay
from rtl.left_shifter import LeftShifter


@dataclass(frozen=True)
class ExponentialFormat:
    """Widths of exponentials E, of their sum S and of what the two are compared with.

    Parameters
    ----------
    exponential_bits : int
        X, width of the largest exponential, that of the row maximum; its top bit is set.
    mantissa_bits : int
        M, bits below the leading one of ``3*E``; at most X.
    count : int
        Exponentials summed at most.
    code_bits : int
        Codes from ``2**code_bits`` on are past the last one.
    """

    exponential_bits: int
    mantissa_bits: int
    count: int
    code_bits: int

    @classmethod
    def needed(cls, tables: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Smallest `exponential_bits` and `mantissa_bits` that hold tables of exponentials exactly."""
        exponential_bits = mantissa_bits = 1
        for table in tables:
            common = min((_trailing_zeros(value) for value in table if value), default=0)
            exponential_bits = max(exponential_bits, table[0].bit_length() - common)
            mantissa_bits = max([mantissa_bits] + [_odd_part(3 * value).bit_length() - 1 for value in table if value])
        return max(exponential_bits, mantissa_bits), mantissa_bits

    @property
    def sum_bits(self) -> int:
        """Width of S, which cannot overflow."""
        return (self.count * self._largest).bit_length()

    @property
    def compared_bits(self) -> int:
        """Width of ``2*S + E``."""
        return ((2 * self.count + 1) * self._largest).bit_length()

    @property
    def top_octave(self) -> int:
        """Largest position of the leading one of ``2*S + E``, counted from X; the smallest is 0."""
        return self.compared_bits - 1 - self.exponential_bits

    @property
    def base_bits(self) -> int:
        """Width of a code before it is limited to the last one or the zero symbol."""
        return ((1 << self.code_bits) + self.top_octave + 1).bit_length()

    @property
    def threshold(self) -> data.StructLayout:
        """``3*E``: ``mantissa`` below its leading one, ``base`` the code offset that its octave gives."""
        return data.StructLayout({"mantissa": self.mantissa_bits, "base": self.base_bits})

    @property
    def word_bits(self) -> int:
        """Width that holds any constant."""
        return max(self.exponential_bits, self.threshold.size, self.mantissa_bits + 2)

    @property
    def _largest(self) -> int:
        return (1 << self.exponential_bits) - 1

    def words(self, table: Sequence[int]) -> tuple[list[int], list[int], int]:
        """Constants of a table of exponentials, of a score 0, 1, ... steps below the maximum.

        Returns
        -------
        exponentials : list of int
            All scaled by the power of two that makes the first one X bits long, which leaves the
            ratio to their sum as it is.
        thresholds : list of int
            Words of the layout `threshold`. The base is limited to where every code is
            past the last one; there lies an exponential of 0 as well.
        peak_limit : int
            ``3*E / 2**(X-M)`` of the first exponential.

        Raises
        ------
        HwsimError
            The exponentials need more bits than the format has, or the first is not the largest.
        """
        first = table[0]
        if first == 0 or max(table) > first:
            raise HwsimError("log_softmax: the exponential of the row maximum must be the largest and above 0")
        exponential_bits, mantissa_bits = self.needed([table])
        if exponential_bits > self.exponential_bits or mantissa_bits > self.mantissa_bits:
            raise HwsimError(
                f"log_softmax: the exponentials need {exponential_bits} bits and a mantissa of {mantissa_bits}, "
                f"the unit has {self.exponential_bits} and {self.mantissa_bits}; build it to cover this layer"
            )
        grow = self.exponential_bits - first.bit_length()
        scaled = [value << grow if grow >= 0 else value >> -grow for value in table]
        return scaled, [self._threshold_word(value) for value in scaled], 3 * scaled[0] >> self.cut

    @property
    def cut(self) -> int:
        """Bits of ``2*S + E`` below those of any threshold in its octave."""
        return self.exponential_bits - self.mantissa_bits

    def _threshold_word(self, exponential: int) -> int:
        """``3*E`` as a word of the layout `threshold`, with ``base + octave(2*S + E)`` the octave of the ratio."""
        past = 1 << self.code_bits
        octaves_down = self.exponential_bits + 1 - (3 * exponential).bit_length()
        if exponential == 0 or octaves_down >= past:
            return past << self.mantissa_bits
        aligned = 3 * exponential << self.mantissa_bits >> (3 * exponential).bit_length() - 1
        mantissa = aligned & ((1 << self.mantissa_bits) - 1)
        # -1 where 3*E lies above 2**(X+1): the octave of 2*S + E is 1 at least there.
        return octaves_down % (1 << self.base_bits) << self.mantissa_bits | mantissa


class Log2Ratio(wiring.Component):
    r"""Log2 codes of exponentials E in their sum S, by one exact comparison each.

    With ``Q = 2*S + E``, `golden.log_softmax.ratio_threshold` says for ``c >= 2``: the code is c or
    more exactly when ``Q >= 3*E * 2**(c-1)``, for ``c = 2`` when ``Q > 6*E``.
    Let q and p be the positions of the leading ones of Q and ``3*E``. Then
    ``3*E * 2**(q-p-1) < 2**q <= Q < 2**(q+1) <= 3*E * 2**(q-p+1)``, so that only
    ``Q`` against ``3*E * 2**(q-p)`` is open: the code is ``q - p``, or one more if Q reaches it.
    As ``q >= X``, that limit is a multiple of ``2**(X-M)``; the bits of Q below meet in an OR.

    As ``Q >= 3*E``, this never gives 0. Code 0 means ``2*S < 3*E``, which can hold for the
    largest E of the row only; all others are then below ``S/3`` and have a code of 2 or more. So
    in such a row, a *peak*, the code 1 is replaced by 0.

    * Throughput: one sum with `lanes` exponentials a cycle.
    * Latency: `latency` cycles with `enable`: add; find the octave; shift the mantissa there
      (two levels a stage); compare; select.

    Parameters
    ----------
    format : ExponentialFormat
    lanes : int
    zero_symbol : bool
        Whether codes past the last one become ``2**code_bits``, not the last one.

    Attributes
    ----------
    enable : In(1)
        The registers move.
    total : In, S
    exponentials : In, array of E
    thresholds : In, array of ``format.threshold``
    peak_limit : In
        ``3*E / 2**(X-M)`` of the row maximum; constant while rows are inside.
    codes : Out, array of ``code_bits + zero_symbol`` bits
    """

    def __init__(self, format: ExponentialFormat, *, lanes: int, zero_symbol: bool) -> None:
        self.format, self.lanes, self.zero_symbol = format, lanes, zero_symbol
        mantissa = unsigned(format.mantissa_bits + 1)
        self._shifters = [LeftShifter(mantissa, lanes=1, largest=format.top_octave) for _ in range(lanes)]
        super().__init__(
            {
                "enable": In(1),
                "total": In(format.sum_bits),
                "exponentials": In(data.ArrayLayout(format.exponential_bits, lanes)),
                "thresholds": In(data.ArrayLayout(format.threshold, lanes)),
                "peak_limit": In(format.mantissa_bits + 2),
                "codes": Out(data.ArrayLayout(format.code_bits + zero_symbol, lanes)),
            }
        )

    @property
    def latency(self) -> int:
        """Enabled cycles from a sum and its exponentials to the codes."""
        return 4 + self._shifters[0].latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        later = partial(delay, m, enable=self.enable)
        twice = Cat(Const(0, 1), self.total)
        peak = later(twice[self.format.cut :] < self.peak_limit, "peak", self.latency - 1)
        for lane, (exponential, threshold) in enumerate(zip(self.exponentials, self.thresholds, strict=True)):
            base, reaches = self._compare(m, lane, later, twice + exponential, threshold.as_value())
            m.d.comb += self.codes[lane].eq(later(self._select(base, reaches, peak), f"code_{lane}"))
        return m

    def _compare(
        self, m: Module, lane: int, later: Callable[..., Value], twice_plus_one: Value, threshold: Value
    ) -> tuple[Value, Value]:
        """``q - p`` of a lane, and whether Q reaches the limit in its octave; all stages but the last."""
        compared = later(twice_plus_one[: self.format.compared_bits], f"compared_{lane}")  # Q
        threshold = later(threshold, f"threshold_{lane}", 2)
        mantissa, base = threshold[: self.format.mantissa_bits], threshold[self.format.mantissa_bits :]

        leading = Signal(range(self.format.top_octave + 1), name=f"leading_{lane}")
        for position in range(self.format.top_octave + 1):
            with m.If(compared[self.format.exponential_bits + position]):
                m.d.comb += leading.eq(position)
        octave = later(leading, f"octave_{lane}")
        head = later(compared[self.format.cut :], f"head_{lane}")
        rest = later(compared[: self.format.cut].any(), f"rest_{lane}")

        m.submodules[f"limit_{lane}"] = shifter = self._shifters[lane]
        m.d.comb += [
            shifter.enable.eq(self.enable),
            shifter.values[0].eq(Cat(mantissa, Const(1, 1))),
            shifter.amount.eq(octave),
        ]
        base = later((base + octave)[: self.format.base_bits], f"base_{lane}", shifter.latency)
        head = later(head, f"head_beside_limit_{lane}", shifter.latency)
        rest = later(rest, f"rest_beside_limit_{lane}", shifter.latency)

        # A last bit each makes the comparison strict where it has to be: only the odd
        # threshold of code 2 sends a tie (half-to-even) down.
        reaches = Cat(rest | (base != 1), head) >= Cat(Const(1, 1), shifter.shifted[0])
        return later(base, f"base_compared_{lane}"), later(reaches, f"reaches_{lane}")

    def _select(self, base: Value, reaches: Value, peak: Value) -> Value:
        """The code: the octave of the ratio, its peak rule and its limit."""
        code = (base + reaches)[: self.format.base_bits]
        kept, beyond = code[: self.format.code_bits], code[self.format.code_bits :].any()
        kept = Mux(peak & (code == 1), 0, kept)
        if self.zero_symbol:
            return Cat(Mux(beyond, 0, kept), beyond)
        return Mux(beyond, (1 << self.format.code_bits) - 1, kept)


def _trailing_zeros(value: int) -> int:
    return (value & -value).bit_length() - 1


def _odd_part(value: int) -> int:
    return value >> _trailing_zeros(value)
