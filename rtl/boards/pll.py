"""The clock of a self-test: a PLL of the ECP5 behind the board's oscillator."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from amaranth.hdl import Const, Instance, Signal

from golden.errors import HwsimError

# Frequencies in MHz that the PLL allows: Lattice FPGA-DS-02012 (ECP5 family data sheet), sysCLOCK PLL timing.
PHASE_DETECTOR = (Fraction(25, 8), Fraction(400))
OSCILLATOR = (Fraction(400), Fraction(800))
LARGEST_DIVIDER = 128


@dataclass(frozen=True)
class Pll:
    """Dividers of an EHXPLLL whose output is its feedback.

    Attributes
    ----------
    input_mhz, output_mhz : Fraction
    input_divider, feedback_divider, output_divider : int
    """

    input_mhz: Fraction
    output_mhz: Fraction
    input_divider: int
    feedback_divider: int
    output_divider: int

    def instance(self, clock_in: Signal, clock_out: Signal, locked: Signal) -> Instance:
        """The primitive; the phase of the output does not matter here and is that of Project Trellis' ``ecppll``."""
        return Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=_decimal(self.input_mhz),
            a_FREQUENCY_PIN_CLKOP=_decimal(self.output_mhz),
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC",
            p_OUTDIVIDER_MUXD="DIVD",
            p_CLKI_DIV=self.input_divider,
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=self.output_divider,
            p_CLKOP_CPHASE=(self.output_divider - 1) // 2,
            p_CLKOP_FPHASE=0,
            p_FEEDBK_PATH="CLKOP",
            p_CLKFB_DIV=self.feedback_divider,
            i_RST=Const(0, 1),
            i_STDBY=Const(0, 1),
            i_CLKI=clock_in,
            i_CLKFB=clock_out,
            i_PHASESEL0=Const(0, 1),
            i_PHASESEL1=Const(0, 1),
            i_PHASEDIR=Const(1, 1),
            i_PHASESTEP=Const(1, 1),
            i_PHASELOADREG=Const(1, 1),
            i_PLLWAKESYNC=Const(0, 1),
            i_ENCLKOP=Const(0, 1),
            o_CLKOP=clock_out,
            o_LOCK=locked,
        )


def pll(input_mhz: Fraction, output_mhz: Fraction) -> Pll:
    """Dividers for exactly this frequency, the oscillator as near to 600 MHz as it goes.

    Raises
    ------
    HwsimError
        No dividers give it.
    """
    found = []
    for input_divider in range(1, LARGEST_DIVIDER + 1):
        detector = input_mhz / input_divider
        feedback = output_mhz / detector
        if feedback.denominator != 1 or not 1 <= feedback <= LARGEST_DIVIDER:
            continue
        if not PHASE_DETECTOR[0] <= detector <= PHASE_DETECTOR[1]:
            continue
        for output_divider in range(2, LARGEST_DIVIDER + 1):
            oscillator = output_mhz * output_divider
            if OSCILLATOR[0] <= oscillator <= OSCILLATOR[1]:
                found.append((abs(oscillator - 600), input_divider, int(feedback), output_divider))
    if not found:
        raise HwsimError(
            f"--mhz {_decimal(output_mhz)}: the PLL cannot make it from {_decimal(input_mhz)} MHz; "
            f"try a multiple of {_decimal(input_mhz / 4)}"
        )
    _, input_divider, feedback_divider, output_divider = min(found)
    return Pll(input_mhz, output_mhz, input_divider, feedback_divider, output_divider)


def _decimal(mhz: Fraction) -> str:
    return f"{float(mhz):g}"
