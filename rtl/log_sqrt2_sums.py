# amaranth: UnusedElaboratable=no
"""Matrix product on log-sqrt2 codes: two shift-accumulate sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Mux, Value

from golden.errors import HwsimError
from golden.log_sqrt2 import LogSqrt2SumsSpec, lossless_guard_bits
from golden.spec import Constants
from rtl.shift_accumulate import ShiftAccumulate
from rtl.shift_product import ShiftProduct
from rtl.stream import check_equal


class LogSqrt2Sums(ShiftProduct):
    """Sums of ``((v_k - zero_v) << guard_bits) >> code_k // 2`` over the even and over the odd codes of a row.

    The path: subtract ``zero_v`` and blank the zero symbol; shift left by what the code lacks to the farthest right
    shift, two bits of the distance a stage; cut off below the guard bits, rounding down; add to one of two sums, which
    the lowest bit of the code chooses. One shifter serves both sums; no multiplier. A value needs one bit more than
    ``zero_v``, the shifted one ``guard_bits`` and the cut bits more. What the factor sqrt(2) makes of the two sums is
    done behind them, once a sum and not once a code.

    * Throughput: one code and `lanes` values a cycle, from one row to the next without a gap;
      a row of K codes takes K cycles.
    * Latency: from the last element to the sums, 2 cycles and one for every two bits of the largest left shift.
      Only a row that ends before the sums of the one before were taken waits for them.
    * Rows of any length pass; past ``spec.row_length`` the sums may wrap around.

    Parameters
    ----------
    spec : LogSqrt2SumsSpec
    lanes : int
        Columns of V.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: address 0 is
        ``zero_v``. It may be written while no row is inside.

    Attributes
    ----------
    i : In(stream), rows of K elements, one a beat
        An element is ``code``, unsigned `code_bits` + 1, and ``values``: `lanes` columns of the row of V
        that the code weighs, unsigned `value_bits`.
    o : Out(stream), rows of twice `lanes` elements, one beat a row
        The signed sums of `accumulator_bits`: of the even codes for each lane, then of the odd codes.
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits", "value_bits", "guard_bits")

    def __init__(self, spec: LogSqrt2SumsSpec, *, lanes: int = 1, constants: Constants | None = None):
        value_bits = spec.value_bits + 2
        # A signed number shifted right by one bit less than it has is its sign, and stays it from there on.
        cut = min(max(lossless_guard_bits(spec.code_bits) - spec.guard_bits, 0), value_bits - 1)
        self._reach = spec.guard_bits + cut
        accumulate = ShiftAccumulate(
            value_bits=value_bits,
            largest_amount=max(self._reach, 1),
            dropped_bits=cut,
            accumulator_bits=spec.accumulator_bits,
            lanes=lanes,
            banks=2,
        )
        super().__init__(spec, accumulate, lanes=lanes, constants=constants)

    @classmethod
    def covering(cls, layers: Sequence[tuple[LogSqrt2SumsSpec, Constants]], *, lanes: int = 1) -> LogSqrt2Sums:
        """The loadable unit with the longest row and the widest sums of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_equal(specs, cls.equal_fields)
        longest = max(spec.row_length for spec in specs)
        widest = max(spec.accumulator_bits for spec in specs)
        return cls(dataclasses.replace(specs[0], row_length=longest, accumulator_bits=widest), lanes=lanes)

    def amount(self, code: Value) -> Value:
        """``guard_bits`` and the cut bits less half the code, at least 0."""
        half = code[1 : self.spec.code_bits]
        if self._reach >= lossless_guard_bits(self.spec.code_bits):
            return self._reach - half
        return Mux(half > self._reach, 0, self._reach - half)

    def weighs_nothing(self, code: Value) -> Value:
        """The zero symbol has the highest bit."""
        return code[-1]

    def bank(self, code: Value) -> Value:
        """0 for even codes, 1 for odd ones."""
        return code[0]

    def check_fits(self, spec: LogSqrt2SumsSpec) -> None:
        """Refuse wider sums, see `ShiftProduct.check_fits`."""
        if spec.accumulator_bits > self.spec.accumulator_bits:
            raise HwsimError(
                f"the layer's sums have {spec.accumulator_bits} bits, the unit was built with "
                f"{self.spec.accumulator_bits}; build it to cover this layer"
            )
