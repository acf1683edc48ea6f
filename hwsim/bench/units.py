"""Softmax and LayerNorm alone, beside what users would write instead, on the same rows in one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.layernorm import LayerNormSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.softmax import SoftmaxSpec
from golden.spec import Spec
from hwsim.bench.measure import Table, alternate, median_and_spread
from hwsim.execute.processor import compiled_kernels, reference_kernel
from hwsim.program import Node

SCORE_SCALE, CHANNELS, TOKENS = 0.0625, 192, 197


def units(rounds: int) -> Table:
    """Elements a second of the compiled units, the references, NumPy, PyTorch and apytypes."""
    import torch
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    scores = np.clip(rng.normal(120, 25, (12 * TOKENS, TOKENS)), 0, 255).astype(np.uint8)
    tokens = np.clip(rng.normal(128, 30, (16 * TOKENS, CHANNELS)), 0, 255).astype(np.uint8)
    rows: list[tuple[Any, ...]] = []
    figures = {}
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        for unit, elements, candidates in (
            ("softmax", scores.size, _softmax_candidates(scores)),
            ("LayerNorm", tokens.size, _layernorm_candidates(tokens)),
        ):
            label = f"{unit}, {elements} elements"
            for name, times in alternate(candidates, rounds).items():
                rate, spread = median_and_spread([elements / second / 1e6 for second in times.processor])
                rows.append((label, name, f"{rate:.1f} ± {100 * spread:.0f} %"))
                figures[f"{unit}: {name}, million elements a second"] = rate
                label = ""
    return Table(
        "Units alone, one thread",
        ("unit", "what", "million elements/s"),
        tuple(rows),
        f"Rows of {TOKENS} scores and of {CHANNELS} channels, processor time, median of {rounds} rounds. apytypes "
        "has no exponential and no square root: these two are NumPy's.",
        figures,
    )


def _both(spec: Spec, constants: dict[str, np.ndarray], codes: np.ndarray) -> dict[str, Callable[[], object]]:
    node = Node(spec.kind, spec, ("input",), spec.check_constants(constants))
    kernels = {"numba": compiled_kernels()(node), "reference": reference_kernel(node)}
    return {
        f"hwsim {spec.kind}": lambda: kernels["numba"](codes),
        f"hwsim {spec.kind}, reference": lambda: kernels["reference"](codes),
    }


def _softmax_candidates(scores: np.ndarray) -> dict[str, Callable[[], object]]:
    import torch

    constants = exponential_constants(SCORE_SCALE)
    widths = {
        "score_bits": 8,
        "fraction_bits": 20,
        "row_length": scores.shape[1],
        "polynomial_bits": int(constants["c"]).bit_length(),
    }
    real = scores.astype(np.float32) * np.float32(SCORE_SCALE)
    tensor = torch.from_numpy(real)

    def with_numpy() -> np.ndarray:
        exponential = np.exp(real - real.max(axis=1, keepdims=True))
        return exponential / exponential.sum(axis=1, keepdims=True)

    candidates = _both(LogSoftmaxSpec(code_bits=4, **widths), constants, scores)
    candidates |= _both(SoftmaxSpec(probability_bits=16, **widths), constants, scores)
    candidates |= {"NumPy float32": with_numpy, "PyTorch float32": lambda: torch.softmax(tensor, dim=1)}
    fixed = _apytypes()
    if fixed is not None:

        def with_apytypes() -> object:
            exponential = np.exp(real - real.max(axis=1, keepdims=True))
            numerator = fixed.from_float(exponential, int_bits=2, frac_bits=16)
            total = numerator.sum(axis=1).reshape((len(real), 1))
            return (numerator / total).cast(int_bits=2, frac_bits=8)

        candidates["apytypes"] = with_apytypes
    return candidates


def _layernorm_candidates(tokens: np.ndarray) -> dict[str, Callable[[], object]]:
    import torch

    rng = np.random.default_rng(1)
    channels = tokens.shape[1]
    gamma, beta = (rng.normal(mean, 0.2, (channels,)).astype(np.float32) for mean in (1, 0))
    spec = LayerNormSpec(
        channels=channels,
        input_bits=8,
        output_bits=8,
        alpha_bits=2,
        mantissa_bits=12,
        radicand_bits=16,
        gamma_bits=12,
        beta_bits=16,
    )
    # An output step of 1/32 and 5 fraction bits: gamma and beta in units of 2^-10.
    constants = {
        "zero_in": np.array(128),
        "alpha": np.zeros(channels, np.int64),
        "gamma": np.rint(gamma * 1024).astype(np.int64),
        "beta": np.rint(beta * 1024).astype(np.int64) + (128 << 5),
        "fraction_bits": np.array(5),
    }
    real = tokens.astype(np.float32)
    tensor, weight, bias = (torch.from_numpy(array) for array in (real, gamma, beta))

    def with_numpy() -> np.ndarray:
        centred = real - real.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(1e-6))
        return centred / deviation * gamma + beta

    candidates = _both(spec, constants, tokens)
    candidates |= {
        "NumPy float32": with_numpy,
        "PyTorch float32": lambda: torch.nn.functional.layer_norm(tensor, (channels,), weight, bias, 1e-6),
    }
    fixed = _apytypes()
    if fixed is not None:
        codes = fixed.from_float(real, int_bits=9, frac_bits=0)
        share = fixed.from_float(np.full((1, 1), 1 / channels), int_bits=1, frac_bits=16)
        factor, offset = (fixed.from_float(part[None], int_bits=4, frac_bits=10) for part in (gamma, beta))

        def with_apytypes() -> object:
            shape = (len(real), 1)
            centred = (codes - codes.sum(axis=1).reshape(shape) * share).cast(int_bits=10, frac_bits=6)
            variance = ((centred * centred).sum(axis=1).reshape(shape) * share).to_numpy()
            inverse = fixed.from_float(1 / np.sqrt(variance + 1e-6), int_bits=2, frac_bits=14)
            return (centred * inverse * factor + offset).cast(int_bits=4, frac_bits=5)

        candidates["apytypes"] = with_apytypes
    return candidates


def _apytypes() -> Any:
    try:
        from apytypes import APyFixedArray
    except ImportError:
        return None
    return APyFixedArray
