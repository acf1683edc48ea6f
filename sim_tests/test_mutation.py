"""Mutation and coverage runs: a right unit passes, faults are noticed, and what is counted is there."""

from pathlib import Path

import numpy as np
import pytest

from golden.errors import HwsimError
from rtl import catalog, verilog
from sim_tests import mutation
from sim_tests.coverage import cover, read_counts
from sim_tests.mutants import mutants_of, sample
from sim_tests.test_bulk import layer_of


def test_a_sample_of_mutants_is_killed(build_dir: Path) -> None:
    """Includes the run of the unit without a mutant, which must pass."""
    layers = [layer_of("adalog_quantize", seed) for seed in (0, 1)]
    ticks: list[int] = []
    result = mutation.run_mutation(
        layers, name="adalog_quantize", lanes=2, count=14, seed=0, build_dir=build_dir, progress=ticks.append
    )
    assert len(result.verdicts) == len(ticks) == 14
    assert {verdict.mutant.family for verdict in result.verdicts} >= {"operator", "choice", "register", "memory"}
    corrupted = [verdict for verdict in result.verdicts if "of word" in verdict.mutant.what]
    assert corrupted
    assert all(verdict.killed_by for verdict in corrupted)
    # A threshold compared the wrong way round can be missed by nobody.
    assert all(verdict.killed_by for verdict in result.verdicts if "lt becomes ge" in verdict.mutant.what)
    assert result.killed >= 12


def test_a_unit_that_fails_without_a_mutant_is_refused(build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_writes = catalog.UNITS["lookup"].unit.writes

    def writes(self, spec, constants):  # type: ignore[no-untyped-def]
        return [(address, data ^ (address == 9)) for address, data in true_writes(self, spec, constants)]

    monkeypatch.setattr(catalog.UNITS["lookup"].unit, "writes", writes)
    with pytest.raises(HwsimError, match=r"lookup fails without a mutant \(.*element .*expected .*got .*mend it first"):
        mutation.run_mutation([layer_of("lookup")], name="lookup", lanes=1, count=3, seed=0, build_dir=build_dir)


def test_the_sample_is_the_same_for_a_seed_and_takes_each_family() -> None:
    layer = layer_of("log_softmax")
    unit = catalog.covering([(layer.spec, layer.constants)], lanes=1)
    possible = mutants_of(verilog.flat_netlist(unit, "log_softmax"))
    chosen = sample(possible, 70, 3)
    assert [str(mutant) for mutant in chosen] == [str(mutant) for mutant in sample(possible, 70, 3)]
    assert [str(mutant) for mutant in chosen] != [str(mutant) for mutant in sample(possible, 70, 4)]
    families = {"operator", "constant", "addend", "wiring", "choice", "register", "memory"}
    assert {mutant.family for mutant in chosen} == families
    assert len(sample(possible, 10**6, 0)) == len(possible)


def test_coverage_counts_lines_and_toggles(build_dir: Path) -> None:
    result = cover([layer_of("lookup"), layer_of("lookup", 1)], name="lookup", lanes=1, build_dir=build_dir)
    assert 0.9 * result.lines <= result.lines_hit <= result.lines
    assert 0.8 * result.toggles <= result.toggles_hit < result.toggles
    # The tables have 5-bit codes in a byte: the padding never changes.
    missing = result.missing_toggles["m_axis_tdata"]
    assert {change.split("]")[0] for change in missing} == {"[5", "[6", "[7"}
    assert "assign m_axis_tdata" in result.verilog.read_text()


def test_damaged_counts(tmp_path: Path) -> None:
    path = tmp_path / "coverage.dat"
    path.write_text("# SystemC::Coverage-3\nC 'half a line\n")
    with pytest.raises(HwsimError, match=r"coverage\.dat is no coverage file of Verilator"):
        read_counts(path)


def test_faults_are_found_one_by_one(build_dir: Path) -> None:
    """The step that notices a fault says where, in the words of the scoreboard."""
    layer = layer_of("lookup")
    result = mutation.run_mutation([layer], name="lookup", lanes=1, count=24, seed=1, build_dir=build_dir)
    reasons = [verdict.killed_by for verdict in result.verdicts if verdict.killed_by]
    assert any("expected" in reason and "got" in reason for reason in reasons)
    assert np.mean([bool(verdict.killed_by) for verdict in result.verdicts]) > 0.8
