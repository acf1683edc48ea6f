"""Put a trained program among those that the package ships: python tools/ship_program.py NAME PROGRAM.

Checks that both executors give the same logits, prints the top-1 accuracy on the embedded test set, and writes
hwsim/assets/NAME.safetensors and its SHA-256 in hwsim/assets/programs.json.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import click

from golden.errors import HwsimError

# Images that the reference executor runs too; it takes about 30 ms for each.
COMPARED = 100


@click.command()
@click.argument("name")
@click.argument("program_path", metavar="PROGRAM", type=click.Path(path_type=Path))
def ship_command(name: str, program_path: Path) -> None:
    """Ship PROGRAM as NAME, such as embedded-q-vit-4."""
    import numpy as np

    from hwsim.execute import Executor, top1
    from hwsim.networks.embedded import load_test_set
    from hwsim.program import load_program
    from hwsim.shipped import load_shipped, ship

    program = load_program(program_path)
    test = load_test_set()
    assert test.labels is not None
    logits = Executor(program).predict(test.images)
    if not np.array_equal(logits[:COMPARED], Executor(program, "reference").predict(test.images[:COMPARED])):
        raise HwsimError(f"{program_path}: the executors disagree; it is not shipped")
    path = ship(program, name)
    if not np.array_equal(Executor(load_shipped(name)).predict(test.images), logits):
        raise HwsimError(f"{path}: the shipped file gives other logits than {program_path}")
    content = path.read_bytes()
    click.echo(f"{program.network}, {program.recipe}: top-1 {top1(logits, test.labels):.2f} % of {len(logits)} images")
    click.echo(f"wrote {path}, {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    try:
        ship_command(standalone_mode=False)
    except (HwsimError, click.ClickException) as error:
        click.echo(f"ship_program: {error}", err=True)
        sys.exit(2)
