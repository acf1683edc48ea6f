"""The page about a bitstream: what is in it, how full the device is, and the clock with every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from statistics import median

from rtl.boards.bitstream import BITSTREAM_SEED, Flow, Placed
from rtl.boards.unit_check import Stimulus


def report(
    flow: Flow, stimuli: Sequence[Stimulus], text: str, placements: Sequence[Placed], files: Mapping[str, bytes]
) -> dict[str, str]:
    """``report.json`` and ``report.md``, by name; nothing in them changes from run to run.

    Parameters
    ----------
    text : str
        What the serial line must say.
    files : mapping of str to bytes
        Of `Flow.pack`.
    """
    board = flow.board
    chosen = next(placed for placed in placements if placed.seed == BITSTREAM_SEED)
    clocks = [placed.mhz for placed in placements]
    facts = {
        "board": board.name,
        "device": f"LFE5U-{board.device[:-1].upper()}F-{board.speed}{board.package}",
        "tools": flow.versions,
        "clock_mhz": chosen.needed_mhz,
        "units": [
            {"unit": stimulus.kind, "layer": stimulus.layer, "lanes": stimulus.lanes, "elements": stimulus.elements}
            for stimulus in stimuli
        ],
        "seeds": [{"seed": placed.seed, "mhz": placed.mhz, "slowest_path": placed.path} for placed in placements],
        "bitstream_seed": BITSTREAM_SEED,
        "utilisation": {
            kind: {"used": used, "available": available} for kind, (used, available) in chosen.utilisation.items()
        },
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
        "uart": text,
    }
    versions = ", ".join(f"{tool} {version}" for tool, version in flow.versions.items())
    lines = [
        f"# Self-test for {board.name}",
        "",
        f"{facts['device']}, {chosen.needed_mhz:g} MHz; {versions}.",
        "",
        f"Load it: `{board.load}`. It says, on {board.uart_place}, at 115200 baud:",
        "",
        "```",
        *text.splitlines(),
        "```",
        "",
        "| unit | layer | lanes | elements |",
        "|---|---|---:|---:|",
        *(f"| {item.kind} | {item.layer} | {item.lanes} | {item.elements} |" for item in stimuli),
        "",
        "## Clock",
        "",
        f"Needed: {chosen.needed_mhz:g} MHz. Median {median(clocks):.1f}, lowest {min(clocks):.1f}, "
        f"highest {max(clocks):.1f} MHz. The bitstream is from seed {BITSTREAM_SEED}.",
        "",
        "| seed | MHz | slowest path |",
        "|---:|---:|---|",
        *(f"| {placed.seed} | {placed.mhz:.1f} | `{placed.path}` |" for placed in placements),
        "",
        "## Utilisation",
        "",
        "| cells | used | available | |",
        "|---|---:|---:|---:|",
        *(
            f"| {kind} | {used} | {available} | {100 * used / available:.1f} % |"
            for kind, (used, available) in chosen.utilisation.items()
        ),
        "",
        "## Files",
        "",
        *(f"* `{name}` sha256 {digest}" for name, digest in sorted(facts["sha256"].items())),  # type: ignore[attr-defined]
        "",
    ]
    return {"report.json": json.dumps(facts, indent=2) + "\n", "report.md": "\n".join(lines)}
