"""Boards: device, clock and pins, read from the package `amaranth-boards`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from golden.errors import HwsimError

# What nextpnr calls Lattice's packages (the table of amaranth.vendor's ECP5 platform).
_PACKAGES = {"BG381": "CABGA381", "MG285": "CSFBGA285"}


@dataclass(frozen=True)
class Pin:
    """A pin: its port in the design, site, whether it is active low, and attributes such as IO_TYPE."""

    port: str
    site: str
    inverted: bool
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Board:
    """What the self-test must know of a board.

    Attributes
    ----------
    name : str
    device, package, speed : str
        For nextpnr, such as "85k", "CABGA381", "6".
    clock_mhz : Fraction
        Of the oscillator.
    clock, uart : Pin
    leds : tuple of Pin
        One lamp a unit; or with `traffic_light` red, green and blue.
    traffic_light : bool
    pack_options : tuple of str
        Of ecppack.
    usb : (int, int) or None
        Vendor and product of a boot loader that takes a DFU file.
    uart_place : str
        Where a terminal is connected.
    load : str
        The command that loads the bitstream.
    """

    name: str
    device: str
    package: str
    speed: str
    clock_mhz: Fraction
    clock: Pin
    uart: Pin
    leds: tuple[Pin, ...]
    traffic_light: bool
    pack_options: tuple[str, ...]
    usb: tuple[int, int] | None
    uart_place: str
    load: str

    @property
    def constraints(self) -> str:
        """The LPF file of nextpnr."""
        lines = ["BLOCK RESETPATHS;", "BLOCK ASYNCPATHS;"]
        for pin in (self.clock, self.uart, *self.leds):
            attributes = "".join(f" {name}={value}" for name, value in pin.attributes)
            lines += [f'LOCATE COMP "{pin.port}" SITE "{pin.site}";', f'IOBUF PORT "{pin.port}"{attributes};']
        lines.append(f'FREQUENCY PORT "{self.clock.port}" {float(self.clock_mhz):g} MHZ;')
        return "\n".join(lines) + "\n"


def _ulx3s(name: str, size: str) -> Board:
    platform = _platform("ulx3s", f"ULX3S_{size}_Platform")
    resources = platform.resources
    (transmit,) = (part for part in resources["uart", 0].ios if part.name == "tx")
    leds = [_pin(f"led[{index}]", resources["led", index].ios[0], resources["led", index].attrs) for index in range(8)]
    return _board(
        name,
        platform,
        uart=_pin("uart_tx", transmit.ios[0], resources["uart", 0].attrs),
        leds=tuple(leds),
        traffic_light=False,
        pack_options=("--compress",),
        usb=None,
        uart_place="the USB port US1, a serial port of the FTDI chip",
        load="openFPGALoader -b ulx3s selftest.bit",
    )


def _orangecrab(name: str, size: str) -> Board:
    platform = _platform("orangecrab_r0_2", f"OrangeCrabR0_2_{size}Platform")
    resources = platform.resources
    lamp = resources["rgb_led", 0]
    colours = {part.name: part.ios[0] for part in lamp.ios}
    site = platform.connectors["io", 0].mapping["1"]
    return _board(
        name,
        platform,
        uart=Pin("uart_tx", site, False, (("IO_TYPE", "LVCMOS33"),)),
        leds=tuple(_pin(f"led[{index}]", colours[colour], lamp.attrs) for index, colour in enumerate("rgb")),
        traffic_light=True,
        # The USB boot loader reads the flash at this rate; the package amaranth-boards has the same options.
        pack_options=("--compress", "--freq", "38.8"),
        usb=(0x1209, 0x5AF0),
        uart_place="pin 1 (TX) of the connector, 3.3 V: an adapter is needed",
        load="dfu-util -a 0 -D selftest.dfu",
    )


_BOARDS: dict[str, tuple[Callable[[str, str], Board], str]] = {
    **{f"ulx3s-{size.lower()}": (_ulx3s, size) for size in ("25F", "45F", "85F")},
    **{f"orangecrab-{size.lower()}": (_orangecrab, size) for size in ("25F", "85F")},
}
BOARDS = tuple(_BOARDS)


def board(name: str) -> Board:
    """A board by its name.

    Raises
    ------
    HwsimError
        There is none of that name, or the package with the pins is missing.
    """
    if name not in _BOARDS:
        raise HwsimError(f"unknown board {name!r}; choose one of {', '.join(BOARDS)}")
    make, size = _BOARDS[name]
    return make(name, size)


def _platform(module: str, platform: str) -> Any:
    try:
        found = importlib.import_module(f"amaranth_boards.{module}")
    except ImportError:
        raise HwsimError(
            "amaranth-boards, which has the pins, is missing; install the extra fpga (pip install 'vit-hwsim[fpga]')"
        ) from None
    return getattr(found, platform)()


def _board(name: str, platform: Any, **fields: Any) -> Board:
    clock = platform.resources[platform.default_clk, 0]
    return Board(
        name=name,
        device=platform.device.removeprefix("LFE5U-").removesuffix("F") + "k",
        package=_PACKAGES[platform.package],
        speed=platform.speed,
        clock_mhz=Fraction(int(clock.clock.frequency), 1_000_000),
        clock=_pin("clk", clock.ios[0], clock.attrs),
        **fields,
    )


def _pin(port: str, pins: Any, attributes: Any) -> Pin:
    (site,) = pins.names
    return Pin(port, site, pins.invert, tuple((name, str(value)) for name, value in attributes.items()))
