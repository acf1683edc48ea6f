"""Rounding and saturation in RTL, exhaustively at small widths, against Python's own rounding and comparison."""

from fractions import Fraction

import pytest
from amaranth.hdl import Cat, Const, Shape, Signal, signed, unsigned
from stream_bench import evaluate

from golden.spec import IntFormat
from rtl.arithmetic import round_half_even_shift, saturate, shift_right_sticky

SHAPES = [Shape(width, signed=is_signed) for width in range(1, 7) for is_signed in (False, True)]


def values_of(shape):
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    return list(range(low, low + (1 << shape.width)))


def rounded(value, shift):
    # Python rounds fractions half to even.
    return round(Fraction(value, 1 << shift))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constant_shift(shape):
    x = Signal(shape)
    shifts = range(shape.width + 3)
    results = evaluate([round_half_even_shift(x, shift) for shift in shifts], [(x, values_of(shape))])
    assert results == [[rounded(value, shift) for shift in shifts] for value in values_of(shape)]


@pytest.mark.parametrize("shape", SHAPES[:8], ids=str)
def test_run_time_shift_in_sticky_steps(shape):
    x, amount = Signal(shape), Signal(3)
    wide = Cat(Const(0, 2), x).as_signed() if shape.signed else Cat(Const(0, 2), x)
    for bit in range(len(amount)):
        wide = shift_right_sticky(wide, 1 << bit, amount[bit])
    cases = [(value, shift) for value in values_of(shape) for shift in range(8)]
    inputs = [(x, [value for value, _ in cases]), (amount, [shift for _, shift in cases])]
    results = evaluate([round_half_even_shift(wide, 2)], inputs)
    assert results == [[rounded(value, shift)] for value, shift in cases]


@pytest.mark.parametrize("to_signed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_saturate(shape, to_signed):
    x = Signal(shape)
    formats = [IntFormat(bits, signed=to_signed) for bits in range(1, 9)]
    expressions = [saturate(x, to) for to in formats]
    results = evaluate(expressions, [(x, values_of(shape))])
    assert [expression.shape() for expression in expressions] == [
        signed(to.bits) if to_signed else unsigned(to.bits) for to in formats
    ]
    bounds = [
        (-(1 << (to.bits - 1)), (1 << (to.bits - 1)) - 1) if to_signed else (0, (1 << to.bits) - 1) for to in formats
    ]
    assert results == [[min(max(value, low), high) for low, high in bounds] for value in values_of(shape)]


def test_the_carry_chain_is_as_long_as_the_result():
    assert len(round_half_even_shift(Signal(32), 24)) == 9
