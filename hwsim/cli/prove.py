"""``hwsim prove``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD

if TYPE_CHECKING:
    from sim_tests.formal.prove import Proof


@click.command("prove")
@click.argument("units", nargs=-1, metavar="[UNIT]...")
@click.option(
    "--property",
    "properties",
    multiple=True,
    help="Group of proofs: independent, stable, contract, equal, loaded or overflow.  [default: all]",
)
@click.option(
    "--depth", type=click.IntRange(1, 1000), help="Cycles of the bounded proofs.  [default: two rows with stalls]"
)
@click.option("--adders", is_flag=True, help="List every adder that could overflow, with its range or reason.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=BUILD / "formal", show_default=True, help="Folder."
)
def prove_command(
    units: tuple[str, ...], properties: tuple[str, ...], depth: int | None, adders: bool, output: Path
) -> None:
    """Prove that units keep the stream contract, compute the reference and do not overflow.

    UNIT is a kind such as log_softmax or layernorm; none stands for all. Proofs run with SymbiYosys and
    Yices on the exported Verilog. A failed proof names what failed and leaves a trace (VCD) of the
    counterexample, and the exit status is 1.
    """
    from sim_tests.formal.prove import FAILED, PROPERTIES, tasks
    from sim_tests.formal.solver import find_programs

    find_programs()
    if adders:
        _list_adders(units)
        return
    todo = list(tasks(units, properties=properties or PROPERTIES, depth=depth, folder=output))
    proofs: list[Proof] = []
    with progress("proving", len(todo)) as done:
        for task in todo:
            proofs += task.run()
            done(1)
    rows = [
        (
            proof.unit,
            proof.claim,
            proof.method,
            "" if proof.depth is None else str(proof.depth),
            proof.result,
            f"{proof.seconds:.1f}",
        )
        for proof in proofs
    ]
    table(("unit", "property", "method", "depth", "result", "seconds"), rows, title="Formal proofs")
    failed = [proof for proof in proofs if proof.result in FAILED]
    for proof in failed:
        click.echo(f"{proof.result}: {proof.unit}: {proof.claim}: {proof.detail}")
        if proof.trace is not None:
            click.echo(f"trace: {proof.trace}")
    results = Counter(proof.result for proof in proofs)
    click.echo(", ".join(f"{count} {result}" for result, count in results.items()))
    if failed:
        sys.exit(1)


def _list_adders(units: tuple[str, ...]) -> None:
    from rtl import catalog
    from sim_tests.formal.cases import cases, full_size
    from sim_tests.formal.overflow import findings

    for kind in units:
        catalog.entry(kind)
    rows = []
    kinds = [kind for kind in cases() if not units or kind in units]
    with progress("ranges", len(kinds)) as done:
        for kind in kinds:
            for name, spec, constants, limits in full_size(kind):
                unit = catalog.entry(kind).unit(spec, lanes=1, constants=constants)
                rows += [
                    (f"{kind} {name}", found.name, found.operator, found.bits, found.method, found.reason)
                    for found in findings(unit, limits)
                ]
            done(1)
    table(("unit", "result", "operator", "bits", "method", "range or reason"), rows, title="Narrowed results")
