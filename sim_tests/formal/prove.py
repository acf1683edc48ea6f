# amaranth: UnusedElaboratable=no
"""The proofs of a unit, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from rtl import catalog
from rtl.stream import StreamUnit
from rtl.verilog import export
from sim_tests.formal import dependence, overflow
from sim_tests.formal.bench import BENCH, UNIT, Bench
from sim_tests.formal.cases import Case, Variation, cases, full_size
from sim_tests.formal.rows import Table
from sim_tests.formal.solver import Job, Verdict, solve

PROPERTIES = ("independent", "stable", "contract", "equal", "loaded", "overflow")
"""Groups of proofs, in the order in which they run."""


FAILED = ("refuted", "unknown")
"""Results that no proof may have."""


@dataclass(frozen=True)
class Proof:
    """A property and what came of it.

    Attributes
    ----------
    unit : str
        Kind, and what is special about this one.
    claim : str
    method : str
        "structure" and "ranges" hold at all times; "induction", too; "bmc" for `depth` cycles from power-up;
        "none" where nothing is proven.
    depth : int or None
    result : str
        "proven", "refuted" or "unknown"; "found" of a trace that was looked for; "conditional" on what the claim
        says; "argued" on paper; "intended wrap".
    seconds : float
    detail : str
        Of a failure: what failed.
    trace : Path or None
        Waveform of the counterexample.
    """

    unit: str
    claim: str
    method: str
    depth: int | None
    result: str
    seconds: float
    detail: str = ""
    trace: Path | None = None


@dataclass(frozen=True)
class Task:
    """A proof to be made: `run` does it."""

    unit: str
    claim: str
    run: Callable[[], Sequence[Proof]] = field(repr=False)


def tasks(
    kinds: Sequence[str], *, properties: Sequence[str] = PROPERTIES, depth: int | None = None, folder: Path
) -> Iterator[Task]:
    """The proofs of some kinds of units; none stands for all.

    Parameters
    ----------
    properties : sequence of str
        Some of `PROPERTIES`.
    depth : int, optional
        Cycles of the bounded proofs, instead of those of each `Case`.
    folder : Path
        For models, logs and traces.

    Raises
    ------
    HwsimError
        There is no such unit or property.
    """
    for kind in kinds:
        catalog.entry(kind)
    for name in properties:
        if name not in PROPERTIES:
            raise HwsimError(f"there is no property {name!r}; there are {', '.join(PROPERTIES)}")
    for kind, case in cases().items():
        if kinds and kind not in kinds:
            continue
        prover = Prover(case, folder, depth)
        for name in PROPERTIES:
            if name in properties:
                yield Task(kind, name, getattr(prover, name))


@dataclass(frozen=True)
class Prover:
    """The proofs of one kind.

    Parameters
    ----------
    case : Case
    folder : Path
    depth : int, optional
        Cycles of the bounded proofs, instead of those of the case.
    """

    case: Case
    folder: Path
    depth: int | None = None

    def independent(self) -> list[Proof]:
        """No output depends on ``m_axis_tready`` within a cycle, at full size."""
        proofs = []
        for name, unit in self._full_size():
            started = time.monotonic()
            found = dependence.ready_reaches(export(unit, UNIT))
            claim = "valid and payload do not wait for ready"
            result = "refuted" if found else "proven"
            detail = f"m_axis_tready reaches {', '.join(found)}" if found else ""
            proofs.append(Proof(name, claim, "structure", None, result, time.monotonic() - started, detail))
        return proofs

    def stable(self) -> list[Proof]:
        """An offer stays until it is taken: by induction, at full size, for any input and any writes."""
        proofs = []
        for name, unit in self._full_size():
            bench = Bench(unit, self.case.framing(1), 1, 1)
            files = {"unit.v": export(unit, UNIT), "bench.il": bench.rtlil(stability_only=True)}
            job = Job(self._name("stable", name), "prove", 3, files, BENCH)
            proofs.append(self._proof(name, "an offer stays, unchanged, until it is taken", job))
        return proofs

    def contract(self) -> list[Proof]:
        """Rows of two lanes through a loadable unit, with any constants."""
        unit = self.case.loadable(2)
        beats = -(-self.case.longest // 2)
        return self._bounded("contract", "2 lanes, any constants", unit, {"longest": beats + 1})

    def equal(self) -> list[Proof]:
        """Every input of the small unit, constants baked in."""
        keywords = {"longest": self.case.longest, "table": self.case.table()}
        return self._bounded("equal", "constants baked in", self.case.baked(), keywords)

    def loaded(self) -> list[Proof]:
        """Every input of the small unit, constants loaded."""
        unit = self.case.loadable()
        writes = unit.writes(self.case.spec, self.case.constants)
        keywords = {"longest": self.case.longest, "table": self.case.table(), "writes": writes, "resets": False}
        return self._bounded("loaded", "constants loaded", unit, keywords, more=len(writes))

    def overflow(self) -> list[Proof]:
        """No arithmetic result loses a bit that counts."""
        kind, proofs = self.case.kind, []
        for name, spec, constants, limits in full_size(kind):
            started = time.monotonic()
            unit = catalog.entry(kind).unit(spec, lanes=1, constants=constants)
            found = overflow.findings(unit, limits)
            seconds = time.monotonic() - started
            for claim, method, result in settled(found, spec):
                proofs.append(Proof(f"{kind} {name}", claim, method, None, result, seconds))
                seconds = 0.0
            wanted = {finding.name for finding in found if finding.method == "induction"}
            if wanted:
                model = overflow.instrumented(unit, BENCH, wanted)
                job = Job(self._name("overflow", name), "prove", 3, {"bench.il": model}, BENCH)
                claim = f"no overflow, with invariants: {_names(sorted(wanted))}"
                proofs.append(self._proof(f"{kind} {name}", claim, job))
            if not found:
                claim = "no arithmetic result is narrowed"
                proofs.append(Proof(f"{kind} {name}", claim, "structure", None, "proven", seconds))
        unit = self.case.baked()
        model = overflow.instrumented(unit, BENCH, None)
        depth = self.depth or self.case.overflow_depth or self.case.depth
        job = Job(f"{kind}-overflow-small", "bmc", depth, {"bench.il": model}, BENCH)
        claim = "no overflow, but for intended wraps"
        if kind in overflow.BY_ROW_LENGTH:
            claim += f" and {_names(overflow.BY_ROW_LENGTH[kind])}, whose rows are endless here"
        if kind in overflow.ARGUED:
            claim += f"; {_names(sorted(overflow.ARGUED[kind]))} of live data"
        proofs.append(self._proof(f"{kind} small", claim, job))
        return proofs

    def _full_size(self) -> Iterator[tuple[str, StreamUnit]]:
        for name, spec, constants, _ in full_size(self.case.kind):
            yield f"{self.case.kind} {name}", catalog.covering([(spec, constants)], lanes=1)

    def _bounded(self, name: str, what: str, unit: StreamUnit, keywords: dict[str, Any], more: int = 0) -> list[Proof]:
        """Bounded proofs of a bench, each with a trace that shows that it has something to prove."""
        variations = self.case.variations if "table" in keywords else ()
        if not variations:
            rows = Variation(2, self.case.depth, resets=keywords.get("resets", True))
            return self._variation(name, what, unit, keywords, rows, more)
        proofs = []
        for number, variation in enumerate(variations):
            proofs += self._variation(f"{name}-{number}", what, unit, keywords, variation, more)
        return proofs

    def _variation(
        self, name: str, what: str, unit: StreamUnit, keywords: dict[str, Any], variation: Variation, more: int
    ) -> list[Proof]:
        kind, depth = self.case.kind, (self.depth or variation.depth) + more
        keywords = {**keywords, "resets": variation.resets, "stalls": variation.stalls}
        table: Table | None = keywords.get("table")
        if table is not None and variation.lengths is not None:
            keywords["table"] = table = table.of_lengths(variation.lengths)
        bench = Bench(unit, self.case.framing(unit.lanes), variation.rows, **keywords)
        files = {"unit.v": export(unit, UNIT), "bench.il": bench.rtlil()}
        free = [f"{variation.rows} rows" if variation.rows > 1 else "1 row"]
        if table is not None:
            free[0] += f" of {_lengths(table.lengths)}"
        free += [f"{side} stalls" for side in variation.stalls]
        free += ["resets"] if variation.resets else []
        claim = "contract" + (" and equal to golden" if table is not None else "") + f": {', '.join(free)}"
        covered = self._proof(
            f"{kind}, {what}",
            "a trace: all rows pass, with these stalls",
            Job(f"{kind}-{name}-cover", "cover", depth, files, BENCH),
        )
        proven = self._proof(f"{kind}, {what}", claim, Job(f"{kind}-{name}", "bmc", depth, files, BENCH))
        return [proven, covered]

    def _name(self, what: str, unit: str) -> str:
        return f"{self.case.kind}-{what}-{unit.removeprefix(self.case.kind).strip().replace(' ', '-')}"

    def _proof(self, unit: str, claim: str, job: Job) -> Proof:
        verdict: Verdict = solve(job, self.folder)
        method = {"bmc": "bmc", "prove": "induction", "cover": "trace"}[job.method]
        result = "found" if job.method == "cover" and verdict.result == "proven" else verdict.result
        return Proof(unit, claim, method, job.depth, result, verdict.seconds, verdict.reason, verdict.trace)


def settled(found: Sequence[overflow.Finding], spec: Any) -> Iterator[tuple[str, str, str]]:
    """Claim, method and result of the narrowings that need no solver; those of one reason together."""
    by_ranges = [finding.name for finding in found if finding.method == "ranges"]
    if by_ranges:
        yield f"no overflow: {_names(by_ranges)}", "ranges", "proven"
    for method, result in (("precondition", "conditional"), ("argued", "argued"), ("intended", "intended wrap")):
        reasons: dict[str, list[str]] = {}
        for finding in found:
            if finding.method == method:
                reasons.setdefault(finding.reason, []).append(finding.name)
        for reason, names in reasons.items():
            if method == "precondition":
                reason = f"in {reason} if the weights 2**(last - code) of a row add up to at most "
                reason += f"{spec.largest_row_weight}, as a Log-Int-Softmax makes them"
                yield f"{_names(names)}: {reason}", "ranges", result
            else:
                yield f"{_names(names)}: {reason}", "none", result


def _names(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _lengths(lengths: Sequence[int]) -> str:
    return f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
