"""Whole networks: the integer program against the same network in float PyTorch and in onnxruntime's int8."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from golden.errors import HwsimError
from hwsim.bench import WAITING
from hwsim.bench.measure import Table, alternate, median_and_spread, ratios
from hwsim.execute import Executor
from hwsim.networks import embedded
from hwsim.program import Program

INTEGER, FLOAT, INT8 = "integer program", "PyTorch float32, eager", "onnxruntime int8, dynamic"
# Seconds: OpenMP's threads spin for some milliseconds behind PyTorch's work, 200 with LLVM's library.
PAUSE = 0.25


def networks(programs: list[Program], batch: int, rounds: int) -> Table:
    """Images a second of programs and of what they were made from, on all cores, measured in turns.

    Parameters
    ----------
    programs : list of Program
    batch, rounds : int

    Raises
    ------
    HwsimError
        A program of a network that has no float one to measure beside.
    """
    rows: list[tuple[Any, ...]] = []
    figures = {}
    # All of them first: what cannot be measured is said before anything is.
    models = [float_model(program.network) for program in programs]
    for program, model in zip(programs, models, strict=True):
        label = full_label = f"{program.network}, {program.recipe}"
        candidates = _candidates(program, model, batch)
        times = alternate(candidates, rounds, PAUSE)
        for name, own in times.items():
            rate, spread = median_and_spread([batch / second for second in own.clock])
            ratio, ratio_spread = ratios(own.clock, times[FLOAT].clock)
            busy = 1e3 * min(own.processor) / batch
            relative = "1" if name == FLOAT else f"{ratio:.2f} ± {100 * ratio_spread:.0f} %"
            less = min(times[FLOAT].processor) / min(own.processor)
            rows.append((label, name, f"{rate:.1f} ± {100 * spread:.0f} %", relative, f"{busy:.2f}", f"{less:.2f}"))
            figures[f"{full_label}, batch {batch}: {name}, times float"] = ratio
            label = ""
    cores = os.cpu_count()
    policy = os.environ.get(WAITING[0])
    waiting = "as its users have it" if policy is None else f"with {WAITING[0]}={policy}"
    return Table(
        f"Whole networks, batch {batch}, {cores} threads",
        ("network", "executor", "images/s", "times float", "processor, ms/image", "times float"),
        tuple(rows),
        f"Median of {rounds} rounds, all candidates in turns in each; ± is half the distance of the quartiles. "
        "Processor time is that of all threads, in the fastest round: it tells more than the clock on a machine that "
        f"others use too. PyTorch's threads wait {waiting}, and {PAUSE} s pass "
        "before every measurement, so that none of them spins in another candidate's time.",
        figures,
    )


def _candidates(program: Program, model: Any, batch: int) -> dict[str, Callable[[], object]]:
    import torch

    height, width, channels = program.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    pixels = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(os.cpu_count() or 1)
    executor = Executor(program)

    def run_float() -> None:
        with torch.inference_mode():
            model(pixels)

    candidates: dict[str, Callable[[], object]] = {
        INTEGER: lambda: executor.predict(images, batch=batch),
        FLOAT: run_float,
    }
    session = _int8_session(model, pixels)
    if session is not None:
        feed = {session.get_inputs()[0].name: pixels.numpy()}
        candidates[INT8] = lambda: session.run(None, feed)
    return candidates


def float_model(name: str) -> Any:
    """The float network of a program: the time does not depend on its weights, so these are random.

    Parameters
    ----------
    name : str
        As in `Program.network`.

    Raises
    ------
    HwsimError
        Neither we nor timm have a network of the name.
    """
    if name in embedded.NETWORKS:
        return embedded.build_model(pretrained=False, name=name).eval()
    import timm

    try:
        return timm.create_model(name, pretrained=False).eval()
    except RuntimeError:
        raise HwsimError(
            f"the program's network {name!r} is neither one of ours ({', '.join(embedded.NETWORKS)}) nor one of timm, "
            "so there is no float network to measure beside it; give --program others"
        ) from None


def _int8_session(model: Any, pixels: Any) -> Any:
    """An onnxruntime session of the dynamically quantized network, weights a channel; None without onnxruntime."""
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return None
    import torch

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(model, (pixels,), str(path), dynamo=False, opset_version=17)
        quantize_dynamic(path, quantized, per_channel=True, weight_type=QuantType.QInt8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(quantized.read_bytes(), options, providers=["CPUExecutionProvider"])
