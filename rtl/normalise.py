"""Last machine of LayerNorm: the exact product, the shift with its sticky bit, and the one rounding."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Value

from rtl.arithmetic import round_half_even_shift, saturate, shift_right_sticky
from rtl.booth import add_with_carry, booth_product
from rtl.layernorm_widths import LayerNormWidths
from rtl.pipeline import Pipeline

MULTIPLIER_BITS = 18
"""Operand width of the multiplier blocks of the usual FPGAs (ECP5 MULT18X18D; wider ones split further)."""

BOOTH_BITS = 4
"""Bits past one multiplier block that Booth rows take, in logic, rather than another block."""

LEVELS_A_STAGE = 3
"""Multiplexers of the shift by `fraction_bits` between two registers."""


def fraction_stages(levels: int) -> int:
    """Pipeline stages of the shift by `levels` run-time bits of ``fraction_bits``."""
    return -(-levels // LEVELS_A_STAGE)


def stages(levels: int) -> int:
    """Stages from the address of the row buffer to the code."""
    return 15 + fraction_stages(levels)


def normalise(
    pipeline: Pipeline,
    widths: LayerNormWidths,
    lane: int,
    *,
    multiple: Value,
    row_sum: Value,
    gamma: Value,
    beta: Value,
    mantissa: Value,
    coarse: Value,
    fraction: Value,
) -> Value:
    """Code of an element, at stage ``stages(len(fraction))``; the arguments come at the stages below.

    Parameters
    ----------
    pipeline : Pipeline
        Holds the registers.
    widths : LayerNormWidths
    lane : int
        For the names.
    multiple, row_sum : Value
        Stage 2: ``odd * X`` and S1.
    gamma, beta : Value
        Stages 3 and 12.
    mantissa : Value
        Stage 7: m, shifted left by what the exponent lacks to a multiple of ``2**fine_bits``.
    coarse : Value
        Stage 11: the exponent in steps of ``2**fine_bits``, above the smallest.
    fraction : Value
        ``fraction_bits`` above the smallest; does not change while rows are in.
    """

    def stage(value: Value, name: str) -> Value:
        return pipeline.delay(value, 1, f"{name}_{lane}")

    def multiplied(a: Value, b: Value, name: str) -> Value:
        """``a * b``, three stages later: registers of its own beside a multiplier keep it off the critical path."""
        return stage(stage(stage(a, f"{name}_multiplicand") * b, f"{name}_unplaced"), name)

    # C*X - S1, from -(C - 1)*value_limit to +: the upper bits of the subtraction are copies of the sign.
    deviation = stage(((multiple << widths.zeros) - row_sum)[: widths.deviation_bits].as_signed(), "deviation")

    # gamma * (C*X - S1). The lower part is signed, too, so that the upper one is Booth digits.
    part = MULTIPLIER_BITS
    excess = widths.deviation_bits - part
    factor = stage(gamma, "gamma_factor")
    if excess <= 0:
        scaled = stage(multiplied(deviation, factor, "gamma_product"), "scaled")
    else:
        if excess <= BOOTH_BITS:
            lower = multiplied(deviation[:part].as_signed(), factor, "gamma_product")
            upper, carry = booth_product(deviation[part:].as_signed(), deviation[part - 1], gamma)
            upper = pipeline.delay(upper, 3, f"gamma_product_upper_{lane}")
            carry = pipeline.delay(carry, 3, f"gamma_product_carry_{lane}")
        else:
            part -= 1
            lower = multiplied(Cat(deviation[:part], Const(0, 1)).as_signed(), factor, "gamma_product")
            upper, carry = multiplied(deviation[part:].as_signed(), factor, "gamma_product_upper"), Const(0, 1)
        total = add_with_carry(lower[part:].as_signed(), upper, carry)
        scaled = stage(Cat(lower[:part], total), "scaled")
    scaled = scaled[: widths.scaled_bits].as_signed()

    # ... * m, and whether any bit below the smallest shift is set.
    factor = pipeline.copy(mantissa, f"product_factor_{lane}")  # not the register that the next lane reads
    cut = widths.smallest_shift
    if widths.scaled_bits <= MULTIPLIER_BITS:
        early = cut
        product = multiplied(scaled, factor, "product")
        summed = stage(Cat(product[:early].any(), product[early:]), "summed")
    else:
        early = min(cut, MULTIPLIER_BITS)
        lower = multiplied(scaled[:MULTIPLIER_BITS], factor, "product_lower")
        upper = multiplied(scaled[MULTIPLIER_BITS:].as_signed(), factor, "product_upper")
        total = upper + lower[MULTIPLIER_BITS:]
        summed = stage(Cat(lower[:early].any(), lower[early:MULTIPLIER_BITS], total), "summed")
    rest = cut - early
    value = Cat(summed[: rest + 1].any(), summed[rest + 1 :]).as_signed()

    # / 2**e: bit 0 stands for everything below it.
    for level in reversed(range(len(coarse))):
        value = shift_right_sticky(value, 1 << (widths.fine_bits + level), coarse[level])
    value = stage(value[: widths.normalised_bits + 1].as_signed(), "normalised")

    # + beta, / 2**fraction_bits.
    shifted = (value >> 1) + (beta << widths.half_bits)
    value = stage(Cat(value[0], shifted[: widths.shifted_bits]), "affine").as_signed()
    for first in range(0, len(fraction), LEVELS_A_STAGE):
        for level in range(first, min(first + LEVELS_A_STAGE, len(fraction))):
            value = shift_right_sticky(value, 1 << level, fraction[level])
        value = stage(value, f"fraction_shifted{first}")
    rounded = round_half_even_shift(value, widths.smallest_fraction_bits + widths.half_bits + 1)
    return stage(saturate(stage(rounded, "rounded"), widths.spec.output), "code")
