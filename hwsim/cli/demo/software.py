"""The part of the demo without hardware: accuracy, agreement of executors, audit, histograms, LayerNorm error."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from golden import published
from golden.errors import HwsimError
from hwsim.audit import audit
from hwsim.cli.device import predictor
from hwsim.data import ImageSet
from hwsim.execute import Executor, top1
from hwsim.execute.parallel import map_batches
from hwsim.networks.graph import FloatNode
from hwsim.program import Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork
from hwsim.quantize.quantizers.log2 import Log2Grid
from hwsim.quantize.quantizers.power_of_two import PowerOfTwoGrid
from hwsim.report import (
    Accuracy,
    AuditedPoint,
    AuditSummary,
    CodeCounts,
    ExecutorAgreement,
    LayerNormError,
    LayerNormErrors,
)

Advance = Callable[[int], None]
# Small, so that what the many small operations hand on stays in the cache.
FAKE_QUANT_BATCH = 20
ERROR_EDGES = np.linspace(-2, 2, 201)


def measure_accuracy(
    bits: str,
    calibration: Calibration,
    program: Program,
    reference: np.ndarray,
    chosen: ImageSet,
    progress: Advance,
    backends: tuple[str, ...] = ("numba",),
) -> Accuracy:
    """Top-1 of the fake-quantized network and of the integer program, beside that of the float logits `reference`."""
    if chosen.labels is None:
        raise HwsimError("accuracy needs labelled images")
    with predictor(program, backends) as executor:
        executor.prepare(len(chosen.images))
        start = time.perf_counter()
        integer = executor.predict(chosen.images, progress=progress)
        seconds = time.perf_counter() - start
    fake = FakeQuantNetwork(calibration).predict(chosen.images, batch=FAKE_QUANT_BATCH, progress=progress)
    return Accuracy(
        recipe=program.recipe,
        bits=bits,
        images=len(chosen.images),
        float_top1=top1(reference, chosen.labels),
        fake_quant_top1=top1(fake, chosen.labels),
        integer_top1=top1(integer, chosen.labels),
        same_prediction=top1(integer, fake.argmax(axis=1)),
        images_per_second=len(chosen.images) / seconds,
    )


def compare_executors(program: Program, images: np.ndarray, backend: str = "numba") -> ExecutorAgreement:
    """Every value of every point by the reference and by another executor."""
    _, expected = Executor(program, "reference").run(images, keep=None)
    _, got = Executor(program, backend).run(images, keep=None)
    mismatches, first = 0, None
    for node in program.nodes:
        differs = np.argwhere(expected[node.name] != got[node.name])
        mismatches += len(differs)
        if len(differs) and first is None:
            image, *index = (int(place) for place in differs[0])
            first = (
                f"{node.name} ({node.spec.kind}): image {image}, element {index}: "
                f"expected {expected[node.name][image, *index]}, got {got[node.name][image, *index]}"
            )
    values = sum(array.size for array in expected.values())
    return ExecutorAgreement(program.recipe, len(images), len(program.nodes), values, mismatches, first, backend)


def summarize_audit(calibration: Calibration, program: Program, images: np.ndarray, progress: Advance) -> AuditSummary:
    """The worst point of every kind of unit."""
    found = audit(calibration, program, images, progress=progress)
    worst: dict[str, AuditedPoint] = {}
    for point in sorted(found.points, key=lambda point: -point.local.mean):
        worst.setdefault(
            point.unit,
            AuditedPoint(
                unit=point.unit,
                point=point.point,
                codes=point.local.compared,
                local_equal=100 * point.local.share_equal,
                local_mean=point.local.mean,
                local_largest=point.local.largest,
                end_to_end_mean=point.end_to_end.mean,
                end_to_end_largest=point.end_to_end.largest,
            ),
        )
    return AuditSummary(program.recipe, found.images, len(found.points), tuple(worst.values()))


def count_codes(
    calibration: Calibration, program: Program, images: np.ndarray, progress: Advance
) -> tuple[tuple[CodeCounts, ...], tuple[CodeCounts, ...]]:
    """Histograms of the scores and of the Log2 codes of every Log-Int-Softmax."""
    nodes = [node for node in program.nodes if node.spec.kind == "log_softmax"]
    points = {node.inputs[0]: node.spec.inputs[0].maximum + 1 for node in nodes}
    points |= {node.name: node.spec.output.maximum + 1 for node in nodes}
    counts = {name: np.zeros(length, np.int64) for name, length in points.items()}
    executor = Executor(program)
    for kept in map_batches(lambda part: executor.run(images[part], points.keys())[1], len(images), 10, progress):
        for name, codes in kept.items():
            counts[name] += np.bincount(codes.reshape(-1), minlength=points[name])
    scores, attention = [], []
    for node in nodes:
        grid = calibration.uniform_grid(node.inputs[0])
        scores.append(CodeCounts(node.inputs[0], tuple(counts[node.inputs[0]].tolist()), grid.scale, grid.zero_point))
        # The format is one bit wider than the codes and their zero symbol need.
        outgoing = calibration.grid(node.name)
        assert isinstance(outgoing, Log2Grid)  # the nodes are those of Log-Int-Softmax
        symbols = outgoing.zero_symbol + 1
        attention.append(CodeCounts(node.name, tuple(counts[node.name][:symbols].tolist())))
    return tuple(scores), tuple(attention)


def measure_layernorms(
    calibration: Calibration, program: Program, images: np.ndarray, progress: Advance
) -> LayerNormErrors:
    """Error of every LayerNorm against real arithmetic on the same input codes, beside FQ-ViT's released form.

    All saturate to the range of the output codes, so that only the arithmetic differs.
    """
    nodes = [node for node in program.nodes if node.spec.kind == "layernorm"]
    _, kept = Executor(program).run(images, keep={name for node in nodes for name in (node.name, *node.inputs)})
    layers, pooled = [], []
    for node in nodes:
        float_node = calibration.graph[node.name]
        incoming, outgoing = calibration.grid(float_node.inputs[0]), calibration.uniform_grid(node.name)
        if not isinstance(incoming, PowerOfTwoGrid):
            raise HwsimError(f"{node.name}: its input has no power-of-two scales; calibrate with --pts")
        codes = kept[node.inputs[0]].astype(np.int64) - incoming.zero_point
        real = _real_layernorm(codes * incoming.scales(codes.shape[-1]), float_node) / outgoing.scale
        released = published.int_layernorm(
            codes,
            incoming.alpha,
            float(incoming.scales(codes.shape[-1]).min()),
            float_node.parameters["weight"],
            float_node.parameters["bias"],
            outgoing.scale,
        )
        wanted = np.clip(real + outgoing.zero_point, 0, outgoing.highest)
        unit = kept[node.name] - wanted
        other = np.clip(released + outgoing.zero_point, 0, outgoing.highest) - wanted
        layers.append(LayerNormError(node.name, unit.size, *_size_of(unit), *_size_of(other)))
        pooled.append((_bins(unit), _bins(other)))
        progress(1)
    counts, released_counts = np.sum(pooled, axis=0)
    return LayerNormErrors(
        images=len(images),
        layers=tuple(layers),
        edges=tuple(ERROR_EDGES.tolist()),
        counts=tuple(counts.tolist()),
        released_counts=tuple(released_counts.tolist()),
    )


def _real_layernorm(x: np.ndarray, node: FloatNode) -> np.ndarray:
    """LayerNorm of the last axis in float64."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + node.attributes["eps"])
    return centred / deviation * node.parameters["weight"].astype(float) + node.parameters["bias"].astype(float)


def _size_of(error: np.ndarray) -> Sequence[float]:
    """Root mean square and largest magnitude."""
    return float(np.sqrt(np.square(error).mean())), float(np.abs(error).max())


def _bins(error: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(error, ERROR_EDGES[0], ERROR_EDGES[-1]), ERROR_EDGES)[0]
