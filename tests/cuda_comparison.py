"""The cuda executor against the reference on random units and programs; run with ``TRITON_INTERPRET=1`` without a GPU.

``python cuda_comparison.py units 0 4`` compares every kind of unit for the seeds 0 to 3 on the CPU, ``programs 0 4``
random programs, ``windows 0 4`` those with windows, ``corners 0 1`` single cases that went wrong once. The exit status
is 1 when anything differs; what was compared is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from random_programs import global_program, reference_of, window_program
from unit_cases import MAKERS, Case
from unit_cases_more import MORE_MAKERS

from golden.adalog import adalog_tables, lossless_guard_bits
from golden.adalog_linear import AdaLogLinearSpec
from golden.linear import LinearSpec
from golden.lookup import LookupSpec
from golden.rearrange import PatchesSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat
from hwsim.execute import Executor
from hwsim.execute.cuda import carriers
from hwsim.execute.cuda.engine import CudaMachine
from hwsim.execute.cuda.plan import UNITS
from hwsim.execute.cuda.product_units import Setting
from hwsim.program import INPUT, Node, Program

UNIT_MAKERS = MAKERS | MORE_MAKERS


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


def unit_differences(device: torch.device, seeds: Iterable[int], units: Iterable[str] = UNIT_MAKERS) -> Iterator[str]:
    """Units whose operation gives other codes than the reference."""
    for unit in units:
        for seed in seeds:
            if not same(*on_device(UNIT_MAKERS[unit](np.random.default_rng(seed)), device)):
                yield f"{unit}, seed {seed}"


def program_differences(
    device: torch.device, seeds: Iterable[int], make: Callable[[int], Program] = global_program
) -> Iterator[str]:
    """Nodes of random programs that differ, with every unit alone, and with units joined in one kernel."""
    for seed in seeds:
        program = make(seed)
        seen = f"seed {seed}, {program.recipe}"
        images, expected = reference_of(program, seed)
        logits = expected[program.nodes[-1].name].reshape(len(images), -1)
        machine = CudaMachine(program, device)
        alone, found = machine.run(images, None)
        yield from (f"{seen}: {name}" for name in expected if not same(expected[name], found[name]))
        joined, some = machine.run(images, ["context"])
        if not (same(logits, alone) and same(logits, joined) and same(expected["context"], some["context"])):
            yield f"{seen}: logits"
        if not same(logits, machine.predict(images, 2, None)):
            yield f"{seen}: predict"


def _linear(inputs: int, outputs: int, rng: np.random.Generator) -> tuple[LinearSpec, dict[str, np.ndarray]]:
    """8-bit codes to 8-bit codes."""
    requantize = RequantizeSpec(
        input=IntFormat(24, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    spec = LinearSpec(
        input_features=inputs, output_features=outputs, input_bits=8, weight_bits=4, bias_bits=14, requantize=requantize
    )
    return spec, {
        "weight": rng.integers(-8, 8, (outputs, inputs)),
        "bias": rng.integers(-500, 500, outputs),
        "multiplier": np.array([200]),
        "shift": np.array([13]),
        "zero_point": np.array(100),
    }


def wrap_of_32_bits(device: torch.device) -> bool:
    """A bias that an accumulator of 32 bits loses by wrapping, whole."""
    requantize = RequantizeSpec(
        input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    spec = LinearSpec(
        input_features=4, output_features=2, input_bits=8, weight_bits=5, bias_bits=34, overflow="wrap",
        requantize=requantize,
    )  # fmt: skip
    constants = {
        "weight": np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "bias": np.array([1 << 32, -(1 << 32)]),
        "multiplier": np.array([128]),
        "shift": np.array([10]),
        "zero_point": np.array(0),
    }
    expected, found = on_device((spec, constants, (np.array([[0, 20, 40, 60]]),)), device)
    return expected.tolist() == [[50, 110]] and same(expected, found)


def codes_from_outside(device: torch.device) -> bool:
    """Kernels alone take every code of the format: the table in front gives 0 to 2 only, whose products lose no bit."""
    rng, code_bits, q = np.random.default_rng(5), 4, 37
    shift, mantissa = adalog_tables(code_bits, q)
    guard = int(shift[2])
    assert guard < lossless_guard_bits(code_bits, q)
    requantize = RequantizeSpec(
        input=IntFormat(30, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    spec = AdaLogLinearSpec(
        input_features=12, output_features=6, code_bits=code_bits, weight_bits=4, bias_bits=14, guard_bits=guard,
        largest_shift=40, requantize=requantize,
    )  # fmt: skip
    constants = {
        "weight": rng.integers(0, 16, (6, 12)),
        "zero_weight": rng.integers(4, 12, 6),
        "bias": rng.integers(-500, 500, 6),
        "shift_table": shift,
        "mantissa_table": mantissa,
        "multiplier": np.array([200]),
        "shift": np.array([8 + guard]),
        "zero_point": np.array(120),
    }
    table = LookupSpec(input_bits=8, output_bits=code_bits + 1, channels=1)
    nodes = (
        Node("patches", PatchesSpec(size=2, bits=8), (INPUT,)),
        Node("codes", table, ("patches",), {"table": np.arange(256)[None] % 3}),
        Node("out", spec, ("codes",), constants),
    )
    program = Program(nodes, (4, 4, 3), {})
    machine = CudaMachine(program, device)
    images = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    logits, kept = Executor(program, "reference").run(images, ("out",))
    # Before and after the kernel alone was made.
    inside = [same(logits, machine.run(images, ())[0])]
    codes = rng.integers(0, 17, (3, 5, 12), dtype=np.uint8)
    (alone,) = [kernel(codes) for node, kernel in machine.kernels if node.name == "out"]
    inside.append(same(kept["out"], machine.run(images, None)[1]["out"]))
    expected = spec.compute(program["out"].constants, codes)
    return len(np.unique(expected)) > 10 and all(inside) and same(expected, alone)


def logits_of_an_earlier_step(device: torch.device) -> bool:
    """The last node is a table inside the kernel of the first of two linear units."""
    rng = np.random.default_rng(6)
    nodes = (
        Node("patches", PatchesSpec(size=2, bits=8), (INPUT,)),
        Node("a", (first := _linear(12, 5, rng))[0], ("patches",), first[1]),
        Node("b", (second := _linear(12, 5, rng))[0], ("patches",), second[1]),
        Node("out", LookupSpec(input_bits=8, output_bits=7, channels=1), ("a",), {"table": np.arange(256)[None] // 2}),
    )
    program = Program(nodes, (4, 4, 3), {})
    machine = CudaMachine(program, device)
    images = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    logits, kept = Executor(program, "reference").run(images, None)
    found = [machine.run(images, keep) for keep in ((), ("b",), ("a", "out"), None)]
    return (
        len(np.unique(logits)) > 10
        and all(same(logits, own) for own, _ in found)
        and all(same(kept[name], array) for _, own in found for name, array in own.items())
        and same(logits, machine.predict(images, 2, None))
    )


CORNERS = (wrap_of_32_bits, codes_from_outside, logits_of_an_earlier_step)


def corner_differences(device: torch.device, seeds: Iterable[int]) -> Iterator[str]:
    """Single cases that went wrong once; they have no seed."""
    return (corner.__name__ for corner in CORNERS if not corner(device))


def main(what: str, first: str, last: str) -> int:
    seeds = range(int(first), int(last))
    device = torch.device("cpu")
    differences = {
        "units": unit_differences,
        "programs": program_differences,
        "windows": partial(program_differences, make=window_program),
        "corners": corner_differences,
    }
    found = list(differences[what](device, seeds))
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
