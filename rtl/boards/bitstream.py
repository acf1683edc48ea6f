"""From the Verilog of a self-test to a bitstream: Yosys, nextpnr with several seeds, Project Trellis."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from golden.files import write_atomically
from rtl import fpga_tools
from rtl.boards import dfu
from rtl.boards.board import Board
from rtl.boards.pll import Pll
from rtl.boards.selftest import TOP

BITSTREAM_SEED = 1
"""Seed of the bitstream; the others show that the clock does not hang on luck."""


@dataclass(frozen=True)
class Placed:
    """One placement.

    Attributes
    ----------
    seed : int
    mhz : float
        The clock that the slowest path allows.
    needed_mhz : float
    path : str
        First and last cell of the slowest path.
    utilisation : dict of str to (int, int)
        Used and available cells of each kind.
    """

    seed: int
    mhz: float
    needed_mhz: float
    path: str
    utilisation: dict[str, tuple[int, int]]


class Flow:
    """The tools on one design, in a folder of its own; what is finished there is not done again.

    Parameters
    ----------
    board : Board
    clock : Pll
    verilog : str
        Of `rtl.boards.selftest.build_verilog`.
    folder : Path
        Of work folders; the design's is named by its content and the tools.
    """

    def __init__(self, board: Board, clock: Pll, verilog: str, folder: Path):
        self.board, self.clock = board, clock
        self.versions = {tool: fpga_tools.version(tool) for tool in ("yosys", "nextpnr-ecp5")}
        self._place_options = [
            *(f"--{board.device}", "--package", board.package, "--speed", board.speed),
            *("--json", f"{TOP}.json", "--lpf", f"{TOP}.lpf", "--freq", f"{float(clock.output_mhz):g}"),
            "--timing-allow-fail",
        ]
        # Every word of a memory is a cell of its own after reading; one cell a memory keeps the passes quick.
        self._script = (
            f"read_verilog {TOP}.v; hierarchy -top {TOP}; proc; memory_collect; "
            f"synth_ecp5 -abc9 -top {TOP}; check -assert; write_json {TOP}.json.part"
        )
        parts = [verilog, board.constraints, self._script, *self._place_options, json.dumps(self.versions)]
        self.folder = Path(folder) / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
        write_atomically(self.folder / f"{TOP}.v", verilog)
        write_atomically(self.folder / f"{TOP}.lpf", board.constraints)

    def synthesize(self) -> None:
        """Yosys.

        Raises
        ------
        HwsimError
            It failed; the message names its log.
        """
        self._once("yosys", ["-q", "-p", self._script], f"{TOP}.json", "yosys.log")

    def place(self, seed: int) -> Placed:
        """Nextpnr with a seed.

        Raises
        ------
        HwsimError
            The design does not fit, or it failed otherwise.
        """
        name = f"seed-{seed}"
        options = [*self._place_options, "--seed", str(seed), "--report", f"{name}.report.json"]
        self._once("nextpnr-ecp5", [*options, "--textcfg", f"{name}.config.part"], f"{name}.config", f"{name}.log")
        report = json.loads((self.folder / f"{name}.report.json").read_text())
        return _placed(seed, report)

    def pack(self) -> dict[str, bytes]:
        """The files to load, by name, from the placement of `BITSTREAM_SEED`.

        Raises
        ------
        HwsimError
            Project Trellis failed.
        """
        source = f"seed-{BITSTREAM_SEED}.config"
        options = [*self.board.pack_options, "--svf", f"{TOP}.svf", source, f"{TOP}.bit.part"]
        self._once("ecppack", options, f"{TOP}.bit", "ecppack.log")
        files = {name: (self.folder / name).read_bytes() for name in (f"{TOP}.bit", f"{TOP}.svf")}
        if self.board.usb is not None:
            vendor, product = self.board.usb
            files[f"{TOP}.dfu"] = dfu.with_suffix(files[f"{TOP}.bit"], vendor=vendor, product=product)
        return files

    def _once(self, tool: str, arguments: Sequence[str], result: str, log: str) -> None:
        """Run a tool that writes ``<result>.part``, unless the result is there."""
        if (self.folder / result).is_file():
            return
        if fpga_tools.run(tool, arguments, self.folder, log) or not (self.folder / f"{result}.part").is_file():
            text = (self.folder / log).read_text()
            raise HwsimError(_complaint(self.board, tool, text, self.folder / log))
        os.replace(self.folder / f"{result}.part", self.folder / result)


def make_bitstream(
    flow: Flow, *, seeds: Sequence[int], jobs: int, progress: Callable[[int], None]
) -> tuple[list[Placed], dict[str, bytes]]:
    """Synthesize, place with all seeds, check the clock, pack.

    Parameters
    ----------
    flow : Flow
    seeds : sequence of int
        With `BITSTREAM_SEED` among them.
    jobs : int
        Placements at the same time.
    progress : callable
        Gets 1 for each finished step, of which there are ``len(seeds) + 2``.

    Returns
    -------
    placed : list of Placed
        In the order of `seeds`.
    files : dict of str to bytes
        Of `Flow.pack`.

    Raises
    ------
    HwsimError
        A tool is missing or failed, the design does not fit, or the clock is missed with a seed.
    """
    flow.synthesize()
    progress(1)

    def place(seed: int) -> Placed:
        placed = flow.place(seed)
        progress(1)
        return placed

    # The first one alone: a design that does not fit should not fail five times.
    first = place(BITSTREAM_SEED)
    with ThreadPoolExecutor(jobs) as pool:
        others = list(pool.map(place, [seed for seed in seeds if seed != BITSTREAM_SEED]))
    by_seed = {placed.seed: placed for placed in [first, *others]}
    placements = [by_seed[seed] for seed in seeds]
    check_clock(flow.board, placements)
    files = flow.pack()
    progress(1)
    return placements, files


def check_clock(board: Board, placements: Sequence[Placed]) -> None:
    """Refuse a design that misses its clock with any seed.

    Raises
    ------
    HwsimError
        Names the seed, the path and the remedy.
    """
    slowest = min(placements, key=lambda placed: placed.mhz)
    if slowest.mhz < slowest.needed_mhz:
        raise HwsimError(
            f"{board.name} with seed {slowest.seed} runs at {slowest.mhz:.1f} MHz, not at {slowest.needed_mhz:g}: "
            f"the slowest path goes from {slowest.path}; lower --mhz, or leave that unit out with --unit"
        )


def _placed(seed: int, report: dict[str, Any]) -> Placed:
    # The clock with the least margin; the oscillator only drives the PLL.
    name, clock = min(report["fmax"].items(), key=lambda item: item[1]["achieved"] / item[1]["constraint"])
    path = next(path for path in report["critical_paths"] if _within(path, name))["path"]
    return Placed(
        seed=seed,
        mhz=clock["achieved"],
        needed_mhz=clock["constraint"],
        path=f"{path[0]['from']['cell']} to {path[-1]['to']['cell']}",
        utilisation={
            kind: (count["used"], count["available"])
            for kind, count in sorted(report["utilization"].items())
            if count["used"]
        },
    )


def _within(path: dict[str, Any], clock: str) -> bool:
    return all(path[end].split()[-1] == clock for end in ("from", "to"))


def _complaint(board: Board, tool: str, text: str, log: Path) -> str:
    """What a failed tool means for the user."""
    used = re.findall(r"Info:\s+([A-Z0-9_]+):\s+(\d+)/\s*(\d+)\s+\d+%", text)
    over = [f"{kind} {have} of {limit}" for kind, have, limit in used if int(have) > int(limit)]
    said = next((line for line in text.splitlines() if "ERROR" in line), "it says nothing").strip()
    if over or "no BELs remaining" in said or "Unable to place" in said:
        return (
            f"the self-test does not fit {board.name} ({', '.join(over) or said}); "
            "choose fewer units with --unit, fewer activations with --beats, or a larger board"
        )
    return f"{tool} failed on the self-test for {board.name}: {said}; see {log}"


def forget(folder: Path) -> None:
    """Remove all work folders."""
    shutil.rmtree(folder, ignore_errors=True)
