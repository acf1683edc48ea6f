"""Every executor gives the codes of the reference at every node of random programs."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import (
    ATTENTIONS,
    GLOBAL_SEEDS,
    GPU_SEEDS,
    INTERPRETER_SEEDS,
    WINDOW_SEEDS,
    global_program,
    hidden_of,
    images_of,
    overflowing,
    random_program,
    random_window_program,
    reference_of,
    window_program,
)

from hwsim.execute import BACKENDS, Executor
from hwsim.program import Program

# The kernels of the GPU are compared in tests/test_execute_cuda.py and tests/test_cuda.py.
OTHERS = [name for name in BACKENDS if name not in ("reference", "cuda")]
OVERFLOWING = ("linear", "asymmetric_linear", "twin_linear", "matmul")

Run = tuple[Program, np.ndarray, dict[str, np.ndarray]]


@cache
def global_runs(attention: str) -> list[Run]:
    """Programs with their images and the codes of the reference, which several tests need."""
    programs = [(random_program(seed, attention, hidden_of(seed, attention)), seed) for seed in GLOBAL_SEEDS]
    return [(program, *reference_of(program, seed)) for program, seed in programs]


@cache
def window_runs(attention: str) -> list[Run]:
    programs = [(random_window_program(seed, attention), seed) for seed in WINDOW_SEEDS]
    return [(program, *reference_of(program, seed)) for program, seed in programs]


@cache
def device_runs(make: Callable[[int], Program], seeds: range) -> list[Run]:
    """As tests/cuda_comparison.py makes them."""
    programs = [(make(seed), seed) for seed in seeds]
    return [(program, *reference_of(program, seed)) for program, seed in programs]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_node_equals_the_reference(attention: str, backend: str) -> None:
    for run in global_runs(attention):
        check_every_node(run, backend)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_node_of_windows_equals_the_reference(attention: str, backend: str) -> None:
    for run in window_runs(attention):
        check_every_node(run, backend)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(1000, 2**32 - 1), attention=st.sampled_from(ATTENTIONS), windows=st.booleans())
def test_programs_beside_the_fixed_ones_equal_the_reference(seed: int, attention: str, windows: bool) -> None:
    """Of the fixed seeds the guard below knows what they reach."""
    make = random_window_program if windows else lambda s, a: random_program(s, a, hidden_of(s, a))
    program = make(seed, attention)
    for backend in OTHERS:
        check_every_node((program, *reference_of(program, seed)), backend)


def check_every_node(run: Run, backend: str) -> None:
    program, images, expected = run
    logits, found = Executor(program, backend).run(images, keep=None)
    assert list(found) == list(expected)
    for name, codes in expected.items():
        assert found[name].dtype == codes.dtype, (program.recipe, name)
        assert np.array_equal(found[name], codes), (program.recipe, name)
    assert np.array_equal(logits, expected["head"].reshape(len(images), -1))


def distinct(runs: Iterable[Run]) -> dict[str, list[int]]:
    """How many different codes every node of each program gives."""
    counts: dict[str, list[int]] = defaultdict(list)
    for _, _, expected in runs:
        for name, codes in expected.items():
            counts[name].append(len(np.unique(codes)))
    return counts


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("runs", [global_runs, window_runs])
def test_every_node_gives_different_codes(runs: Callable[[str], list[Run]], attention: str) -> None:
    """A comparison of codes that are all the same would show nothing; each attention is looked at alone."""
    counts = distinct(runs(attention))
    for name, seen in counts.items():
        assert np.mean(np.array(seen) > 1) >= 0.7, name
    # Log2 codes of 1 bit have three symbols at most.
    assert np.mean(np.array(counts["codes"]) > 3) >= (0.5 if attention == "log2" else 0.6)
    assert np.mean(np.array(counts["context"]) > 3) >= 0.7
    assert max(counts["codes"]) > 8


@pytest.mark.parametrize("seeds", [INTERPRETER_SEEDS, GPU_SEEDS], ids=["interpreter", "gpu"])
def test_the_programs_for_the_gpu_give_different_codes(seeds: range) -> None:
    for make in (global_program, window_program):
        runs = device_runs(make, seeds)
        assert len({program.recipe.removeprefix("windows, ").split(",")[0] for program, _, _ in runs}) == 5
        counts = distinct(runs)
        for name, seen in counts.items():
            assert np.mean(np.array(seen) > 1) >= 0.6, name
        assert np.mean(np.array(counts["codes"]) > 3) >= 0.6


def really(runs: Iterable[Run]) -> Counter[tuple[str, str]]:
    """How many units of every kind have sums that wrap or saturate."""
    return Counter((kind, overflow) for run in runs for kind, overflow, seen in overflowing(*run) if seen)


def test_accumulators_really_wrap_and_saturate() -> None:
    """Units of every kind that can."""
    found = {
        "global": (really(run for attention in ATTENTIONS for run in global_runs(attention)), 10),
        "windows": (really(run for attention in ATTENTIONS for run in window_runs(attention)), 5),
    }
    for what, seeds, least in (("interpreter", INTERPRETER_SEEDS, 1), ("gpu", GPU_SEEDS, 3)):
        both = (run for make in (global_program, window_program) for run in device_runs(make, seeds))
        found[what] = really(both), least
    for what, (counts, least) in found.items():
        for kind in OVERFLOWING:
            for overflow in ("wrap", "saturate"):
                assert counts[kind, overflow] >= least, (what, kind, overflow)


def test_programs_reach_what_the_specs_allow() -> None:
    """Wide codes and weights, zero points outside the codes, shifts a channel, both ranges of twin codes."""
    runs = [run for attention in ATTENTIONS for run in (*global_runs(attention), *window_runs(attention))]
    nodes = [node for program, _, _ in runs for node in program.nodes]
    for kind in (*OVERFLOWING, "adalog_linear", "log_sqrt2_linear"):
        units = [node for node in nodes if node.spec.kind == kind]
        outside = [not 0 <= int(node.constants["zero_point"]) <= node.spec.output.maximum for node in units]
        assert 0.1 < np.mean(outside) < 0.9, kind
        assert any(len(set(node.constants["shift"].tolist())) > 1 for node in units), kind
    linear = [node.spec for node in nodes if node.spec.kind in OVERFLOWING[:3]]
    assert max(spec.input_bits for spec in linear) > 10 and max(spec.weight_bits for spec in linear) > 8
    assert len({spec.bias_bits for spec in linear}) > 10
    for name in ("shift_negative", "shift_positive"):
        assert any(node.constants[name] for node in nodes if node.spec.kind == "twin_linear"), name
    for kind in ("adalog_matmul", "log_sqrt2_matmul", "twin_matmul"):
        # Of 8 bits, a zero symbol has no room in a byte.
        assert {3, 8} <= {node.spec.code_bits for node in nodes if node.spec.kind == kind}, kind
    for name in ("zero_a", "zero_b"):
        zeros = [node.constants[name] for node in nodes if node.spec.kind == "matmul"]
        assert min(zero.min() for zero in zeros) < 0, name


@cache
def linear_runs() -> list[Run]:
    programs = [(random_program(seed, "log2", "linear"), seed) for seed in range(8)]
    return [(program, *reference_of(program, seed)) for program, seed in programs]


@pytest.mark.parametrize("node", ["qkv", "scores", "context", "fc2", "norm1", "sum"])
def test_one_changed_multiplier_shows(node: str) -> None:
    """A program with one constant changed must not pass for the other one."""
    name = {"norm1": "beta", "sum": "multiplier_a"}.get(node, "multiplier")
    seen = 0
    for program, images, expected in linear_runs():
        nodes = []
        for entry in program.nodes:
            constants = dict(entry.constants)
            if entry.name == node:
                constants[name] = constants[name].copy()
                constants[name][...] ^= 1 << max(0, int(constants[name].max()).bit_length() - 2)
            nodes.append(dataclasses.replace(entry, constants=constants))
        broken = Program(tuple(nodes), program.image_size, program.header)
        _, found = Executor(broken, "numba").run(images, keep=None)
        seen += not np.array_equal(found[node], expected[node])
    assert seen >= 4


def test_any_number_of_images_in_any_batches() -> None:
    """Batches of all sizes, on all cores, give the codes of one batch; progress counts every image."""
    program = random_program(3, "adalog", "twin_linear")
    images = images_of(program, 3, 23)
    whole, _ = Executor(program, "reference").run(images)
    executor = Executor(program)
    for batch in (1, 2, 7, 64):
        done: list[int] = []
        assert np.array_equal(executor.predict(images, batch=batch, progress=done.append), whole)
        assert sum(done) == 23
        assert max(done) <= batch
