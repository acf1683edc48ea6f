"""What is proven the same, and what is not: mutants of a unit, by their words."""

from pathlib import Path

from sim_tests import mutation
from sim_tests.equivalence import Equivalence
from sim_tests.test_bulk import layer_of


def test_survivors_are_proven_and_faults_are_not(build_dir: Path) -> None:
    result = mutation.run_mutation(
        [layer_of("lookup")], name="lookup", lanes=2, count=24, seed=1, build_dir=build_dir, prove=True
    )
    assert 0 < result.same <= len(result.survivors)
    # Without its valid, nobody reads the register.
    assert all(verdict.same for verdict in result.survivors if "not reset" in verdict.mutant.what)
    # Whatever the stimulus notices cannot be proven the same.
    proof = Equivalence(result.verilog, build_dir / "proof")
    killed = [verdict.number for verdict in result.verdicts if verdict.killed_by]
    assert len(killed) > 10
    assert not any(proof.same(number) for number in killed[::4])
