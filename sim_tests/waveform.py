"""Waveforms of a mismatch: their format, and files that show them ready grouped in GTKWave and Surfer.

FST is compressed, VCD is text. Verilator compiles its writer with every simulator, which
needs the headers of lz4 and zlib.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from golden.files import write_atomically

CLOCK_PERIOD_PS = 10_000
SCOPE = "bench"
_PROBE = (
    "#include <lz4.h>\n#include <zlib.h>\nint main() { return LZ4_versionNumber() == 0 || zlibVersion() == nullptr; }\n"
)


@lru_cache
def waveform_format(compiler: str) -> str:
    """``fst`` where a test program with lz4 and zlib compiles and links, else ``vcd``."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe.cpp").write_text(_PROBE)
        command = [compiler, "probe.cpp", "-o", "probe", "-llz4", "-lz"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return "vcd" if done.returncode else "fst"


def groups(in_bytes: int, out_bytes: int, loadable: bool) -> dict[str, list[str]]:
    """Signals of the bench to look at, by group; vectors with their range.

    Parameters
    ----------
    in_bytes, out_bytes : int
        Of ``tdata``.
    loadable : bool
        Whether constants are loaded at run time.
    """
    found = {
        "clock": ["aclk", "aresetn", f"cycle{_range(32)}"],
        "input stream": ["in_valid", "in_ready", "in_last", *_payload("in", in_bytes)],
        "output stream": ["out_valid", "out_ready", "out_last", *_payload("out", out_bytes)],
        "expected": ["expecting", "differs", "expected_last", *_payload("expected", out_bytes)],
    }
    return found | ({"constants": ["write_valid", "write_ready"]} if loadable else {})


def write_views(waveform: Path, signals: dict[str, list[str]], cursor_ps: int) -> list[Path]:
    """Write a GTKWave save file and a Surfer command file beside a waveform.

    Parameters
    ----------
    waveform : Path
    signals : dict of str to list of str
        As `groups` gives them.
    cursor_ps : int
        A time in the cycle of the mismatch, in which everything has settled.

    Returns
    -------
    list of Path
        ``.gtkw`` and ``.sucl``.
    """
    # GTKWave's save format: a line of flags before signals of a kind (28: a bit, 22: hexadecimal, 200: a caption).
    gtkwave = [f'[dumpfile] "{waveform.name}"', f"[timestart] {max(cursor_ps - 20 * CLOCK_PERIOD_PS, 0)}"]
    gtkwave += [f"*-15.0 {cursor_ps} {' '.join(['-1'] * 26)}"]
    surfer = [f"load_file {waveform.name}"]
    for caption, names in signals.items():
        gtkwave += ["@200", f"-{caption}"]
        surfer += [f"divider_add {caption}"]
        for name in names:
            gtkwave += ["@22" if "[" in name else "@28", f"{SCOPE}.{name}"]
            surfer += [f"variable_add {SCOPE}.{name.split('[')[0]}"]
    surfer += ["zoom_fit", f"cursor_set {cursor_ps}", "goto_cursor"]
    views = [waveform.with_suffix(".gtkw"), waveform.with_suffix(".sucl")]
    for path, lines in zip(views, (gtkwave, surfer), strict=True):
        write_atomically(path, "\n".join(lines) + "\n")
    return views


def _payload(side: str, size: int) -> list[str]:
    """Data, and ``keep`` where it says something."""
    return [f"{side}_data{_range(8 * size)}", *([f"{side}_keep{_range(size)}"] if size > 1 else [])]


def _range(bits: int) -> str:
    return f"[{bits - 1}:0]"
