"""The cuda executor without a GPU: its kernels in Triton's interpreter, its choices, and images on several processes.

On a GPU `tests/test_cuda.py` compares the compiled kernels.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from random_programs import INTERPRETER_SEEDS
from unit_cases import MAKERS
from unit_cases_more import MORE_MAKERS

from golden.errors import HwsimError
from golden.linear import LinearSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from hwsim.cli import cli
from hwsim.execute import Executor
from hwsim.execute.cuda import availability
from hwsim.execute.devices import Choice, beside_torch, choose, open_predictor
from hwsim.program import Program

TESTS = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it comes with PyTorch for Linux)"
)


@needs_triton
@pytest.mark.parametrize(
    ("what", "seeds"),
    [
        ("units", range(2)),
        ("programs", INTERPRETER_SEEDS),
        ("windows", INTERPRETER_SEEDS),
        ("corners", range(1)),
    ],
    ids=["units", "programs", "windows", "corners"],
)
def test_kernels_in_the_interpreter_give_the_codes_of_the_reference(what: str, seeds: range) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    result = subprocess.run(
        [sys.executable, str(TESTS / "cuda_comparison.py"), what, str(seeds.start), str(seeds.stop)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert f"{what}: 0 differences" in result.stdout


@needs_triton
def test_every_kind_of_unit_has_an_operation() -> None:
    from golden.spec import spec_kinds
    from hwsim.execute.cuda.plan import UNITS

    # Sums alone are a unit of hardware; no program has them.
    assert set(spec_kinds()) - {"log_sqrt2_sums"} <= set(UNITS)
    # The comparison of units knows them all.
    rng = np.random.default_rng(0)
    made = {make(rng)[0].kind for make in (MAKERS | MORE_MAKERS).values()}
    assert made == set(spec_kinds()) - {"log_sqrt2_sums"}


@needs_triton
@pytest.mark.parametrize("inner", [1 << 17, (1 << 17) - 1])
def test_sums_that_a_tensor_core_may_saturate_are_computed_in_64_bits(inner: int) -> None:
    """One digit's sum has 32 bits for 2^17 - 1 products at most, also where the unit wraps at 32 bits."""
    torch = pytest.importorskip("torch")
    from hwsim.execute.cuda.product_units import Setting, linear, matmul

    setting = Setting(torch.device("cpu"))
    requantize = RequantizeSpec(
        input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    constants = {
        "multiplier": np.array([1]),
        "shift": np.array([8]),
        "zero_point": np.array(0),
        "zero_a": np.array(0),
        "zero_b": np.array(0),
        "weight": np.full((1, inner), -128),
        "bias": np.zeros(1, np.int64),
    }
    for overflow in ("wrap", "prove"):
        # No more bits than the accumulator has, where that has to be proven.
        common = {"overflow": overflow, "requantize": requantize}
        spec = LinearSpec(
            input_features=inner, output_features=1, input_bits=8 if overflow == "wrap" else 1, weight_bits=8,
            bias_bits=14, **common,
        )  # fmt: skip
        own = {name: constants[name] for name in spec.constants}
        assert (linear(spec, spec.check_constants(own), setting).product is None) == (inner >= 1 << 17)
        product = MatmulSpec(a_bits=8 if overflow == "wrap" else 1, b_bits=6, inner=inner, **common)
        own = {name: constants[name] for name in product.constants}
        assert (matmul(product, product.check_constants(own), setting).product is None) == (inner >= 1 << 17)


@needs_triton
def test_tables_are_computed_once(monkeypatch: pytest.MonkeyPatch, small_program: Program) -> None:
    torch = pytest.importorskip("torch")
    from hwsim.execute.cuda import plan

    asked: list[int] = []
    compute = plan.table_of
    monkeypatch.setattr(plan, "table_of", lambda spec, constants: asked.append(id(spec)) or compute(spec, constants))
    planner = plan.Planner(small_program, torch.device("cpu"))
    names = [node.name for node in small_program.nodes]
    plans = [planner.plan(keep) for keep in ((), names[:9], names[9:], ())]
    assert [step.name for step in plans[0]] == [step.name for step in plans[3]]
    assert {node.spec.kind for node in small_program.nodes if id(node.spec) in asked} >= {"lookup"}
    assert len(asked) == len(set(asked))


@needs_triton
def test_kernels_never_fuse_a_product_and_a_sum() -> None:
    """All are started in one place, which says so to Triton."""
    from hwsim.execute.cuda.launch import launch

    started: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: started.append((grid, arguments, options))

    launch(Kernel(), (3, 2), 7, BLOCK=16)
    assert started == [((3, 2), (7,), {"BLOCK": 16, "enable_fp_fusion": False})]
    folder = TESTS.parent / "hwsim" / "execute" / "cuda"
    sources = {path.name: path.read_text() for path in folder.glob("*.py")}
    kernels = {name for text in sources.values() for name in re.findall(r"@triton\.jit.*\ndef (\w+)\(", text)}
    assert {"product", "add", "layernorm"} <= kernels
    assert [name for name, text in sources.items() if re.search(rf"\b({'|'.join(kernels)})\[", text)] == []


def test_codes_are_kept_in_the_smallest_signed_type() -> None:
    torch = pytest.importorskip("torch")
    from hwsim.execute.cuda import carriers

    cpu = torch.device("cpu")
    for bits in (1, 7, 8, 9, 15, 16, 17, 24, 31, 32):
        form = IntFormat(bits)
        codes = np.array([[0, 1, form.maximum // 2, form.maximum]], form.dtype)
        kept = carriers.encode(codes, bits, cpu)
        assert kept.dtype == carriers.dtype_of(bits)
        assert carriers.codes_of(kept, bits).tolist() == codes.astype(np.int64).tolist()
        assert torch.equal(carriers.kept_of(carriers.codes_of(kept, bits), bits), kept)
        back = carriers.decode(kept, form)
        assert back.dtype == codes.dtype and np.array_equal(back, codes)
    pixels = np.arange(256, dtype=np.uint8)
    assert torch.equal(carriers.encode_pixels(torch.from_numpy(pixels)), carriers.encode(pixels, 8, cpu))
    rows = carriers.empty((3, 5, 21), torch.int8, cpu)
    assert rows.shape == (3, 5, 21) and rows.stride() == (160, 32, 1)
    assert carriers.readable(rows) == 32 and carriers.readable(rows.contiguous()) == 21


@needs_triton
def test_digits_hold_their_numbers_and_no_more_than_needed() -> None:
    from hwsim.execute.cuda.products import Left, digit_offset, digits_of

    zero = np.zeros(1, np.int64)
    for values, count, negated in (
        ([0, 127], 1, False),
        ([0, 128], 1, True),
        ([0, 1 << 15], 2, True),
        ([-(1 << 15), 32639], 2, False),
        ([0, 32640], 2, True),
        ([-40000, 40000], 3, False),
        # Four digits of 127 hold less than 31 bits, four of -128 more.
        ([0, 127 * 0x01010101], 4, False),
        ([0, (1 << 31) - 1], 4, True),
    ):
        digits = digits_of(Left(5, np.array(values, np.int64), zero))
        assert digits is not None and (digits.count, digits.negated) == (count, negated), values
        assert digits.values is not None
        kept = digits.values.tolist()
        for value, shown in zip(values, kept, strict=True):
            assert shown == (-value if negated else value)
            moved = (shown + digit_offset(count)) % (1 << 32)
            # The highest digit of a negative number borrows from bits that are not there.
            found = [((moved >> (8 * place)) & 255) - 128 for place in range(count)]
            assert sum(digit << (8 * place) for place, digit in enumerate(found)) == shown
            assert all(-128 <= digit <= 127 for digit in found)
    assert digits_of(Left(5, np.array([0, 1 << 40]), zero)) is None


@needs_triton
def test_a_common_shift_keeps_every_fraction() -> None:
    from hwsim.execute.cuda.requantization import common_shift, multiples

    multiplier, shift = np.array([65535, 40000, 0]), np.array([25, 27, 27])
    common = common_shift([multiplier], shift, 1 << 24, 200)
    assert common == 32
    for up, down, scaled in zip(multiplier, shift, multiples(multiplier, shift, common), strict=True):
        assert int(scaled) << int(down) == int(up) << common
    # A fraction of 1/2 or more takes a smaller shift, and an odd multiplier with a large one none at all.
    assert common_shift([np.array([65535])], np.array([16]), 1 << 8, 0) == 28
    assert common_shift([np.array([65535])], np.array([33]), 1 << 8, 0) == 0
    # The quotient would not fit 32 bits.
    assert common_shift([np.array([65535])], np.array([0]), 1 << 20, 0) == 0


def test_without_a_gpu_the_reason_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, small_program: Program, small_images: np.ndarray
) -> None:
    monkeypatch.setattr(availability, "gpu_count", lambda: 0)
    with pytest.raises(HwsimError, match=r"the cuda executor cannot run: .*numba \(--device cpu\)"):
        Executor(small_program, "cuda")
    with pytest.raises(HwsimError, match="write cuda, or cuda:1"):
        Executor(small_program, "cuda:first")
    choice = choose("cuda")
    assert choice.backends == ("numba",)
    assert choice.note is not None and choice.note.startswith("--device cuda: PyTorch ")
    assert choice.note.endswith("; running on the CPU with numba instead")
    every = choose("cuda:all")
    assert every.backends == ("numba",)
    assert every.note == choice.note.replace("--device cuda", "--device cuda:all")
    assert choose("auto").backends == ("numba",) and choose("auto").note is None
    assert beside_torch("cuda:0") == beside_torch("cpu") == beside_torch("mps") == "numba"
    for name in ("gpu", "cuda:x", "cpu:1", "cuda:-1", "cuda:", "auto:", "auto:1"):
        with pytest.raises(HwsimError, match=f"unknown device '{name}'; choose cpu, cuda, cuda:1"):
            choose(name)
    for name in ("cuda:", "numba:", "numba:1"):
        with pytest.raises(HwsimError, match=f"unknown executor '{name}'"):
            Executor(small_program, name)
    found = open_predictor(small_program, choice.backends).predict(small_images[:4])
    assert np.array_equal(found, Executor(small_program, "reference").predict(small_images[:4]))


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there(name))
    reason = availability.why_not()
    assert reason is not None and {"torch": "PyTorch", "triton": "Triton"}[missing] + " is not installed" in reason


def gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Let PyTorch see GPUs of these compute capabilities."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.setattr(availability, "gpu_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Type {index}")


def test_gpus_are_counted_and_too_old_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, (9, 0), (7, 5))
    old = "GPU 1 (Type 1) has compute capability 7.5; 8.0 or later is needed"
    assert availability.why_not(0) is None
    assert availability.why_not(1) == old
    assert availability.why_not(2) == "there is no GPU 2; PyTorch sees 2, counted from 0"
    assert choose("cuda") == Choice(("cuda:0",))
    assert choose("cuda:1") == Choice(("numba",), f"--device cuda:1: {old}; running on the CPU with numba instead")
    assert choose("cuda:all") == Choice(("cuda:0",), f"--device cuda:all: {old}; running on cuda:0")


@pytest.mark.parametrize("device", ["cuda:all", "auto"])
def test_every_usable_gpu_is_taken_and_the_others_are_named(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    gpus(monkeypatch, (9, 0), (8, 0))
    assert choose(device) == Choice(("cuda:0", "cuda:1"))
    gpus(monkeypatch, (7, 5), (9, 0), (7, 0), (8, 6))
    choice = choose(device)
    assert choice.backends == ("cuda:1", "cuda:3")
    assert choice.note is not None and choice.note.endswith("; running on cuda:1, cuda:3")
    assert "GPU 0 (Type 0) has compute capability 7.5" in choice.note and "GPU 2 (Type 2)" in choice.note
    gpus(monkeypatch, (7, 5))
    choice = choose(device)
    assert choice.backends == ("numba",)
    assert choice.note is not None and "GPU 0 (Type 0)" in choice.note and "with numba instead" in choice.note


@pytest.mark.parametrize("error", [OSError("libcudart.so.13: no such file"), RuntimeError("driver failed\nat line 3")])
def test_a_broken_pytorch_or_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pytest.importorskip("triton")

    def broken() -> int:
        raise error

    monkeypatch.setattr(availability, "gpu_count", broken)
    said = str(error).splitlines()[0]
    reason = availability.why_not()
    assert reason is not None and f"PyTorch cannot use the GPU ({said});" in reason
    assert choose("auto") == Choice(("numba",))
    for device in ("cuda", "cuda:0", "cuda:all"):
        choice = choose(device)
        assert choice.backends == ("numba",)
        assert choice.note == f"--device {device}: {reason}; running on the CPU with numba instead"


def test_a_pytorch_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries are looked for when it is imported."""
    pytest.importorskip("triton")
    load = builtins.__import__

    def failing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "torch":
            raise OSError("libcublas.so.13: cannot open shared object file")
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", failing)
    assert choose("auto") == Choice(("numba",))
    note = choose("cuda").note
    assert note is not None and "libcublas.so.13" in note


@needs_triton
def test_failures_of_the_gpu_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, small_program: Program, small_images: np.ndarray
) -> None:
    torch = pytest.importorskip("torch")
    from hwsim.execute.cuda.engine import CudaMachine

    machine = CudaMachine(small_program, torch.device("cpu"))
    monkeypatch.setenv("CC", "no-such-cc")
    missing = FileNotFoundError(2, "No such file or directory", "no-such-cc")
    for error, said in (
        (torch.OutOfMemoryError("CUDA out of memory"), "does not hold 16 images at a time; lower --batch"),
        (
            RuntimeError("Failed to find C compiler. Please specify via CC"),
            "Triton needs a C compiler.*there is none.*gcc",
        ),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "Triton needs a C compiler and the headers of Python"),
        (missing, "there is no no-such-cc; install gcc"),
    ):

        def failing(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(machine, "_forward", failing)
        with pytest.raises(HwsimError, match=said):
            machine.predict(small_images, 16, None)
        with pytest.raises(HwsimError, match=said):
            machine.run(small_images[:16], None)
    for error in (RuntimeError("another"), FileNotFoundError(2, "No such file or directory", "another")):

        def other(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(machine, "_forward", other)
        with pytest.raises(type(error), match="another"):
            machine.predict(small_images, 16, None)


def test_evaluate_without_a_gpu_says_so_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "gpu_count", lambda: 0)
    run: Any = CliRunner().invoke
    on_gpu = run(cli, ["evaluate", "--images", "40", "--device", "cuda"])
    assert on_gpu.exit_code == 0, on_gpu.output
    assert "hwsim: --device cuda: PyTorch " in on_gpu.stderr and "with numba instead" in on_gpu.stderr
    plain = run(cli, ["evaluate", "--images", "40"])
    assert on_gpu.stdout.splitlines()[:2] == plain.stdout.splitlines()[:2]
    both = run(cli, ["evaluate", "--images", "4", "--backend", "numba", "--device", "cuda"])
    assert isinstance(both.exception, HwsimError)
    assert "leave it or --device cuda out" in str(both.exception)
    # The default is the CPU too, which contradicts nothing; and numba runs there.
    apart = run(cli, ["evaluate", "--images", "4", "--backend", "cuda", "--device", "cpu"])
    assert "leave it or --device cpu out" in str(apart.exception)
    alone = run(cli, ["evaluate", "--images", "4", "--backend", "cuda"])
    assert "the cuda executor cannot run" in str(alone.exception)
    assert run(cli, ["evaluate", "--images", "4", "--backend", "numba", "--device", "cpu"]).exit_code == 0
