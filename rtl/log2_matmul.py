# amaranth: UnusedElaboratable=no
"""Attention times V on Log2 codes: the shift-accumulate unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Const, Value

from golden.log2_matmul import Log2MatmulSpec
from golden.spec import Constants
from rtl.shift_accumulate import ShiftAccumulate, check_accumulator, widest_accumulator
from rtl.shift_product import ShiftProduct
from rtl.stream import check_equal, check_one_head


class Log2Matmul(ShiftProduct):
    """``sum_k (v_k - zero_v) << (last - code_k)`` for `lanes` columns of V; `Log2MatmulSpec.accumulate`.

    The path: subtract ``zero_v`` and blank the zero symbol; shift, two bits of the distance
    a stage; add. A value needs one bit more than ``zero_v``, the shifted one ``last`` more, the
    sum is as wide as the spec proves it. Nothing is truncated, no multiplier.

    * Throughput: one code and `lanes` values a cycle, from one row to the next without a gap;
      a row of K codes takes K cycles.
    * Latency: from the last element to the sums, 2 cycles and one for every two code bits.
      Only a row that ends before the sums of the one before were taken waits for them.
    * Rows of any length pass; past ``spec.row_length`` the sums may wrap around.

    Parameters
    ----------
    spec : Log2MatmulSpec
    lanes : int
        Columns of V.
    constants : dict, optional
        Baked-in constants. Without them the unit has a write port ``w``: address 0 is
        ``zero_v``. It may be written while no row is inside.

    Attributes
    ----------
    i : In(stream), rows of K elements, one a beat
        An element is ``code``, of the format ``spec.inputs[0]``, and ``values``: `lanes` columns of
        the row of V that the code weighs, unsigned `value_bits`.
    o : Out(stream), rows of `lanes` elements, one beat a row
        The signed sums, as wide as ``spec.accumulator``.
    w : In(stream), only without `constants`
    """

    equal_fields = ("code_bits", "value_bits", "beyond")

    def __init__(self, spec: Log2MatmulSpec, *, lanes: int = 1, constants: Constants | None = None):
        check_one_head([spec])
        accumulate = ShiftAccumulate(
            value_bits=spec.value_bits + 2,
            largest_amount=spec.last_code,
            dropped_bits=0,
            accumulator_bits=spec.accumulator.bits,
            lanes=lanes,
        )
        super().__init__(spec, accumulate, lanes=lanes, constants=constants)

    @classmethod
    def covering(cls, layers: Sequence[tuple[Log2MatmulSpec, Constants]], *, lanes: int = 1) -> Log2Matmul:
        """The loadable unit with the longest row and the widest accumulator of the layers.

        Raises
        ------
        HwsimError
            The layers differ in a field of `equal_fields`.
        """
        specs = [spec for spec, _ in layers]
        check_one_head(specs)
        check_equal(specs, cls.equal_fields)
        widest = widest_accumulator([spec.requantize for spec in specs])
        longest = max(spec.row_length for spec in specs)
        return cls(dataclasses.replace(specs[0], row_length=longest, requantize=widest), lanes=lanes)

    def amount(self, code: Value) -> Value:
        """``last - code``, as last is all ones."""
        return ~code[: self.spec.code_bits]

    def weighs_nothing(self, code: Value) -> Value:
        """A saturating softmax has no zero symbol."""
        return code[-1] if self.spec.beyond == "zero" else Const(0, 1)

    def check_fits(self, spec: Log2MatmulSpec) -> None:
        """Refuse a wider accumulator, see `ShiftProduct.check_fits`."""
        check_accumulator(spec.requantize, self.spec.requantize)
