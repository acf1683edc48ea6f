"""Every executor gives the codes of the reference at every node of random programs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import ATTENTIONS, HIDDEN, random_program, random_window_program

from hwsim.execute import BACKENDS, Executor
from hwsim.program import Program


def images_of(program: Program, seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *program.image_size), dtype=np.uint8)


@pytest.mark.parametrize(
    "backend",
    # The kernels of the GPU are compared in tests/test_execute_cuda.py and tests/test_cuda.py.
    [name for name in BACKENDS if name not in ("reference", "cuda")],
)
@pytest.mark.parametrize("attention", ATTENTIONS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), hidden=st.sampled_from(HIDDEN))
def test_every_node_equals_the_reference(attention: str, backend: str, seed: int, hidden: str) -> None:
    check_every_node(random_program(seed, attention, hidden), seed, backend)


@pytest.mark.parametrize("attention", ATTENTIONS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_node_of_windows_equals_the_reference(attention: str, seed: int) -> None:
    check_every_node(random_window_program(seed, attention), seed, "numba")


def check_every_node(program: Program, seed: int, backend: str) -> None:
    images = images_of(program, seed)
    _, expected = Executor(program, "reference").run(images, keep=None)
    logits, found = Executor(program, backend).run(images, keep=None)
    assert list(found) == list(expected)
    for name, codes in expected.items():
        assert found[name].dtype == codes.dtype, name
        assert np.array_equal(found[name], codes), name
    assert np.array_equal(logits, expected["head"].reshape(len(images), -1))


def test_the_programs_say_something() -> None:
    """A comparison of codes that are all the same would show nothing."""
    varied: dict[str, list[bool]] = {}
    for seed, attention in enumerate(ATTENTIONS * 2):
        for hidden in HIDDEN:
            program = random_program(seed, attention, hidden)
            _, kept = Executor(program, "reference").run(images_of(program, seed), keep=None)
            for name, codes in kept.items():
                varied.setdefault(name, []).append(len(np.unique(codes)) > 1)
        windows = random_window_program(seed, attention)
        _, kept = Executor(windows, "reference").run(images_of(windows, seed), keep=None)
        for name, codes in kept.items():
            varied.setdefault(f"{name} of windows", []).append(len(np.unique(codes)) > 1)
    assert min(np.mean(seen) for seen in varied.values()) > 0.1
    assert np.mean([np.mean(seen) for seen in varied.values()]) > 0.8


@pytest.mark.parametrize("node", ["qkv", "scores", "context", "fc2", "norm1", "sum"])
def test_one_changed_multiplier_shows(node: str) -> None:
    """A program with one constant changed must not pass for the other one."""
    name = {"norm1": "beta", "sum": "multiplier_a"}.get(node, "multiplier")
    seen = 0
    for seed in range(8):
        program = random_program(seed, "log2", "linear")
        images = images_of(program, seed)
        nodes = []
        for entry in program.nodes:
            constants = dict(entry.constants)
            if entry.name == node:
                constants[name] = constants[name].copy()
                constants[name][...] ^= 1 << (int(constants[name].max()).bit_length() - 2)
            nodes.append(dataclasses.replace(entry, constants=constants))
        broken = Program(tuple(nodes), program.image_size, program.header)
        _, expected = Executor(program, "reference").run(images, keep=None)
        _, found = Executor(broken, "numba").run(images, keep=None)
        seen += not np.array_equal(found[node], expected[node])
    assert seen > 0


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
