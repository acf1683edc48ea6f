"""The cuda executor on a GPU: compiled kernels, recorded batches and several processes give the bits of the reference.

Without a GPU all of this is skipped; `tests/test_execute_cuda.py` compares the same kernels in Triton's interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hwsim.cli.source import evaluation_images, open_program
from hwsim.execute import Executor
from hwsim.execute.cuda.availability import survey, why_not
from hwsim.execute.devices import choose, open_predictor
from hwsim.execute.sharding import ShardedExecutor
from hwsim.program import INPUT, Program

if TYPE_CHECKING:
    from hwsim.execute.cuda.engine import CudaMachine

REASON = why_not()
# The first call of a kernel compiles it: many kernels take minutes.
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"compiled kernels are not compared: {REASON}"),
    pytest.mark.timeout(1200),
]


@pytest.fixture
def device() -> Any:
    import torch

    return torch.device("cuda", 0)


@pytest.fixture
def machine(small_program: Program, device: Any) -> CudaMachine:
    from hwsim.execute.cuda.engine import CudaMachine

    return CudaMachine(small_program, device)


@pytest.fixture
def expected(small_program: Program, small_images: np.ndarray) -> np.ndarray:
    return Executor(small_program, "reference").predict(small_images)


def test_compiled_kernels_give_the_codes_of_the_reference(device: Any) -> None:
    from cuda_comparison import UNIT_MAKERS, corner_differences, unit_differences

    assert len(UNIT_MAKERS) > 40
    assert list(unit_differences(device, range(4))) == []
    assert list(corner_differences(device, ())) == []


def test_rows_past_the_reach_of_a_tensor_core_give_the_codes_of_the_reference(device: Any) -> None:
    from cuda_comparison import on_device, same
    from unit_cases_more import LONG_MAKERS

    for name, make in LONG_MAKERS.items():
        for seed in range(3):
            assert same(*on_device(make(np.random.default_rng(seed)), device)), (name, seed)


def test_one_changed_constant_shows(device: Any) -> None:
    """The comparison must see it."""
    from cuda_comparison import MAKERS, on_device, same

    case = MAKERS["lookup"](np.random.default_rng(1))
    checked = case[0].check_constants(case[1])
    assert same(*on_device(case, device, checked))
    assert not same(*on_device(case, device, {"table": checked["table"] ^ 1}))


def test_random_programs_give_the_codes_of_the_reference(device: Any) -> None:
    from cuda_comparison import program_differences
    from random_programs import GPU_SEEDS, window_program

    assert list(program_differences(device, GPU_SEEDS)) == []
    assert list(program_differences(device, GPU_SEEDS, window_program)) == []


def test_kernels_alone_give_the_codes_of_the_reference(
    machine: CudaMachine, small_program: Program, small_images: np.ndarray
) -> None:
    """As an audit calls them."""
    _, codes = Executor(small_program, "reference").run(small_images[:3], None)
    codes[INPUT] = small_images[:3]
    for node, kernel in machine.kernels:
        # Constants have one batch for all images.
        found = kernel(*(codes[name] for name in node.inputs))
        assert np.array_equal(np.broadcast_to(found, codes[node.name].shape), codes[node.name]), node.name


@pytest.mark.parametrize("batch", [1, 7, 24, None])
def test_a_partial_last_batch(
    machine: CudaMachine, small_images: np.ndarray, expected: np.ndarray, batch: int | None
) -> None:
    """7 leaves 3 images for the last batch, and has more batches than are under way at a time."""
    done: list[int] = []
    assert np.array_equal(machine.predict(small_images, batch, done.append), expected)
    assert sum(done) == len(small_images)
    assert max(done) <= (batch or len(small_images))


def test_recorded_batches_are_replayed_and_the_oldest_go(
    machine: CudaMachine, small_images: np.ndarray, expected: np.ndarray
) -> None:
    replay = machine.recorded(5)
    for start in range(0, 20, 3):
        # Images of the last batch stay in the memory behind fewer ones.
        part = slice(start, start + 3)
        assert np.array_equal(machine.predict(small_images[part], 5, None), expected[part])
    assert np.array_equal(machine.predict(small_images, 5, None), expected)
    assert machine.recorded(5) is replay
    for size in (1, 2, 3, 6, 8):
        assert np.array_equal(machine.predict(small_images, size, None), expected)
    assert machine.recorded(5) is not replay
    assert np.array_equal(machine.predict(small_images, 5, None), expected)


def test_a_failing_callback_leaves_recorded_batches_right(
    machine: CudaMachine, small_images: np.ndarray, expected: np.ndarray
) -> None:
    def failing(count: int) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        machine.predict(small_images, 4, failing)
    assert np.array_equal(machine.predict(small_images, 4, None), expected)


def test_two_processes_on_one_gpu(small_program: Program, small_images: np.ndarray, expected: np.ndarray) -> None:
    with ShardedExecutor(small_program, ("cuda:0", "cuda:0"), shard=5) as executor:
        executor.prepare(len(small_images))
        done: list[int] = []
        assert np.array_equal(executor.predict(small_images, progress=done.append), expected)
        assert sum(done) == len(small_images)
        assert np.array_equal(executor.predict(small_images, batch=2), expected)


@pytest.mark.skipif(
    sum(reason is None for reason in survey().values()) < 2, reason="images are not spread: fewer than 2 usable GPUs"
)
def test_every_gpu_at_once(small_program: Program, small_images: np.ndarray, expected: np.ndarray) -> None:
    backends = choose("cuda:all").backends
    assert len(backends) > 1
    executor = open_predictor(small_program, backends)
    try:
        assert np.array_equal(executor.predict(small_images, batch=2), expected)
    finally:
        executor.close()


def test_the_embedded_network_gives_the_codes_of_numba() -> None:
    program = open_program(None)
    images = evaluation_images(program, None, 64).images
    logits, codes = Executor(program, "cuda").run(images, None)
    on_cpu, expected = Executor(program).run(images, None)
    for name, array in expected.items():
        assert np.array_equal(codes[name], array), name
    assert np.array_equal(logits, on_cpu)
    assert np.array_equal(Executor(program, "cuda:0").predict(images), on_cpu)
    assert len(np.unique(on_cpu.argmax(axis=1))) > 5


def test_the_benchmark_measures() -> None:
    from hwsim.bench.gpu import gpu

    table = gpu([open_program(None)], 2)
    usable = sum(reason is None for reason in survey().values())
    assert len(table.rows) == 3 + (usable > 1)
    assert all(len(row) == len(table.columns) for row in table.rows)
