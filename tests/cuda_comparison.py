"""The cuda executor against the reference on random units and programs; run with ``TRITON_INTERPRET=1`` without a GPU.

``python cuda_comparison.py units 0 4`` compares every kind of unit for the seeds 0 to 3 on the CPU, ``programs 0 4``
random programs. The exit status is 1 when anything differs; what was compared is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from random_programs import ATTENTIONS, HIDDEN, random_program
from unit_cases import MAKERS, Case

from golden.spec import Constants
from hwsim.execute import Executor
from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.engine import CudaMachine
from hwsim.execute.cuda.plan import UNITS
from hwsim.execute.cuda.product_units import Setting


def on_device(case: Case, device: torch.device, constants: Constants | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A unit by the reference, and by its GPU operation, which may be given other constants."""
    spec, given, inputs = case
    checked = spec.check_constants(given)
    codes = [form.check(array, "input") for form, array in zip(spec.inputs, inputs, strict=True)]
    operation = UNITS[spec.kind](spec, checked if constants is None else constants, Setting(device))
    kept = [carriers.encode(array, form.bits, device) for form, array in zip(spec.inputs, codes, strict=True)]
    return spec.compute(checked, *codes), carriers.decode(operation(*kept), spec.output)


def same(expected: np.ndarray, found: np.ndarray) -> bool:
    return expected.dtype == found.dtype and np.array_equal(expected, found)


def unit_differences(device: torch.device, seeds: Iterable[int], units: Iterable[str] = MAKERS) -> Iterator[str]:
    """Units whose operation gives other codes than the reference."""
    for unit in units:
        for seed in seeds:
            if not same(*on_device(MAKERS[unit](np.random.default_rng(seed)), device)):
                yield f"{unit}, seed {seed}"


def program_differences(device: torch.device, seeds: Iterable[int]) -> Iterator[str]:
    """Nodes of random programs that differ, with every unit alone, and with units joined in one kernel."""
    for seed in seeds:
        program = random_program(seed, ATTENTIONS[seed % len(ATTENTIONS)], HIDDEN[(seed + seed // 5) % len(HIDDEN)])
        images = np.random.default_rng(seed).integers(0, 256, (3, *program.image_size), dtype=np.uint8)
        logits, expected = Executor(program, "reference").run(images, keep=None)
        machine = CudaMachine(program, device)
        alone, found = machine.run(images, None)
        yield from (f"seed {seed}: {name}" for name in expected if not same(expected[name], found[name]))
        joined, some = machine.run(images, ["context"])
        if not (same(logits, alone) and same(logits, joined) and same(expected["context"], some["context"])):
            yield f"seed {seed}: logits"
        if not same(logits, machine.predict(images, 2, None)):
            yield f"seed {seed}: predict"


def main(what: str, first: str, last: str) -> int:
    seeds = range(int(first), int(last))
    device = torch.device("cpu")
    found = list({"units": unit_differences, "programs": program_differences}[what](device, seeds))
    if what == "units":
        # One bit of a constant: the comparison must see it.
        case = MAKERS["lookup"](np.random.default_rng(1))
        table = {"table": case[0].check_constants(case[1])["table"] ^ 1}
        if same(*on_device(case, device, table)):
            found.append("a changed table passes")
    print(f"{what}: {len(found)} differences {found}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
