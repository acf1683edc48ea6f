"""FPGA families: how a module is synthesised for one, how its cells are counted, how it is placed and routed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from golden.errors import HwsimError


@dataclass(frozen=True)
class PlaceAndRoute:
    """How nextpnr is called.

    Attributes
    ----------
    tool : str
        A program of `rtl.fpga_tools`.
    arguments : tuple of str
        Device, package, speed.
    bels : dict
        Names of the resources in nextpnr's utilisation, by ours.
    blocks : dict
        Of the resources that a device may lack altogether, which its utilisation then leaves out: the primitive in
        the netlist.
    out_of_context : bool
        Whether nextpnr places a module without pins. Where it cannot, the module gets a boundary of registers
        (`rtl.synthesis.boundary`) for the clock; cells are always those of the module alone.
    """

    tool: str
    arguments: tuple[str, ...]
    bels: Mapping[str, str]
    blocks: Mapping[str, str]
    out_of_context: bool


@dataclass(frozen=True)
class Family:
    """An FPGA family.

    Attributes
    ----------
    name, part : str
    synthesis : str
        Yosys command.
    preparation : str
        Yosys commands before it.
    cells : dict
        By resource: how many of it a cell of a type is. For families without `place_and_route`.
    uncounted : frozenset of str
        Types that take nothing worth counting; any other type that is not in `cells` is an error.
    place_and_route : PlaceAndRoute or None
    """

    name: str
    part: str
    synthesis: str
    preparation: str = ""
    cells: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    uncounted: frozenset[str] = frozenset()
    place_and_route: PlaceAndRoute | None = None

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the counted resources."""
        return tuple(self.place_and_route.bels if self.place_and_route else self.cells)


# LUTs of a primitive, logic and memory alike (Xilinx UG953 and UG474); an inverter counts as one.
_XILINX_LUTS = {
    **{f"LUT{inputs}": 1 for inputs in range(1, 7)},
    **{"INV": 1, "SRL16E": 1, "SRLC32E": 1},
    **{"RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4},
    **{"RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM32M": 4, "RAM64M": 4},
}

_FAMILIES = {
    "ecp5": Family(
        name="ecp5",
        part="LFE5U-85F speed 6",
        synthesis="synth_ecp5 -abc9",
        place_and_route=PlaceAndRoute(
            tool="nextpnr-ecp5",
            arguments=("--85k", "--speed", "6", "--package", "CABGA381"),
            bels={
                "COMB": "TRELLIS_COMB",
                "FF": "TRELLIS_FF",
                "RAMW": "TRELLIS_RAMW",
                "MULT18": "MULT18X18D",
                "DP16KD": "DP16KD",
            },
            blocks={"MULT18": "MULT18X18D", "DP16KD": "DP16KD"},
            out_of_context=True,
        ),
    ),
    "xilinx": Family(
        name="xilinx",
        part="7 series",
        synthesis="synth_xilinx -family xc7 -abc9 -noiopad",
        cells={
            "LUT": _XILINX_LUTS,
            "FF": {"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1},
            "CARRY4": {"CARRY4": 1},
            "DSP48": {"DSP48E1": 1},
            "BRAM18": {"RAMB18E1": 1, "RAMB36E1": 2},
        },
        uncounted=frozenset({"BUFG", "MUXF7", "MUXF8"}),
    ),
    "ice40": Family(
        name="ice40",
        part="iCE40HX8K",
        synthesis="synth_ice40 -abc9 -device hx",
        # There is no distributed RAM to ask for.
        preparation="setattr -unset ram_style */m:*; ",
        place_and_route=PlaceAndRoute(
            tool="nextpnr-ice40",
            arguments=("--hx8k", "--package", "ct256", "--pcf-allow-unconstrained"),
            bels={"LC": "ICESTORM_LC", "RAM4K": "ICESTORM_RAM"},
            blocks={"RAM4K": "SB_RAM40_4K"},
            out_of_context=False,
        ),
    ),
}
NAMES = tuple(_FAMILIES)


def family(name: str) -> Family:
    """A family by its name.

    Raises
    ------
    HwsimError
        There is no such family.
    """
    if name not in _FAMILIES:
        raise HwsimError(f"there is no FPGA family {name!r}; there are {', '.join(NAMES)}")
    return _FAMILIES[name]
