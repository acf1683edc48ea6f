"""FixOPs: multiplications of a network's matrix products in units of one of 8 by 8 bits.

Source: the measure that AdaLog (Wu et al., ECCV 2024, section 4.3) reports and takes from APoT (Li et al.,
ICLR 2020): one FixOP is one operation between an 8-bit weight and an 8-bit activation. A product of a and b bits
is a*b single-bit products, hence a*b/64 of one. As the authors of AdaLog say in their repository (issue 1),
matrix products alone are counted. A float multiplication is one of 32 by 32 bits: 16 FixOPs, with which
DeiT-Tiny has the 20.1 G that they print.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from hwsim.cost.operations import PRODUCTS, Operation

FLOAT_BITS = 32
_UNIT = 8 * 8


def fixops(operations: Iterable[Operation]) -> Fraction:
    """FixOPs of operations: the product of the code widths over 64 for each step of a matrix product.

    A logarithmic code counts with its bits too, although a shifter or a table replaces the multiplier.
    """
    return sum(
        (
            Fraction(operation.count * operation.widths[0] * operation.widths[1], _UNIT)
            for operation in operations
            if operation.kind in PRODUCTS
        ),
        Fraction(0),
    )
