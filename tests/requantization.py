"""Requantization for the tests of units that end in one, its expectation in Fractions."""

import numpy as np

from golden.requantize import RequantizeSpec
from golden.spec import IntFormat


def requantizer(bits=32, **changes):
    fields = {"output_bits": 8, "multiplier_bits": 15, "shift_bits": 6, "channels": 1}
    return RequantizeSpec(input=IntFormat(bits, signed=True), **(fields | changes))


def scaling(multiplier, shift, zero_point=0):
    return {
        "multiplier": np.atleast_1d(multiplier),
        "shift": np.atleast_1d(shift),
        "zero_point": np.array(zero_point),
    }


def clipped(value, bits=8):
    """A Fraction as an unsigned code: rounded half to even, then saturated."""
    return min(max(round(value), 0), 2**bits - 1)
