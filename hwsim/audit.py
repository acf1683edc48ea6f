"""Lowering audit: how far the integer program is from the fake-quantized network.

For each point of the graph, in output steps (LSB): end to end (both networks run
from the same images, so differences add up) and locally (each integer unit gets
the fake-quantized network's own codes, so that only its own error shows).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from golden.errors import HwsimError
from hwsim.execute import Executor, top1
from hwsim.execute.devices import beside_torch
from hwsim.execute.parallel import batches
from hwsim.networks.interpret import Interpreter
from hwsim.program import INPUT, Program
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork


@dataclass
class Agreement:
    """Differences of codes, integer minus fake-quantized, in steps.

    Attributes
    ----------
    compared, equal : int
        Codes compared, and those that are the same.
    absolute : int
        Sum of the absolute differences.
    largest : int
        Largest absolute difference.
    """

    compared: int = 0
    equal: int = 0
    absolute: int = 0
    largest: int = 0

    def add(self, integer: np.ndarray, fake: np.ndarray) -> None:
        """Count one pair of arrays."""
        difference = np.abs(integer.astype(np.int64) - fake)
        self.compared += difference.size
        self.equal += int((difference == 0).sum())
        self.absolute += int(difference.sum())
        self.largest = max(self.largest, int(difference.max(initial=0)))

    @property
    def mean(self) -> float:
        """Mean absolute difference in steps."""
        return self.absolute / max(self.compared, 1)

    @property
    def share_equal(self) -> float:
        """Share of equal codes, 0 to 1."""
        return self.equal / max(self.compared, 1)


@dataclass(frozen=True)
class PointAudit:
    """Agreement at one point.

    Attributes
    ----------
    point : str
        Node name.
    unit : str
        Kind of the integer unit.
    local, end_to_end : Agreement
    """

    point: str
    unit: str
    local: Agreement
    end_to_end: Agreement


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes
    ----------
    points : list of PointAudit
        In graph order.
    images : int
    float_top1, fake_quant_top1, integer_top1 : float or None
        Percent on the audited images, None without labels.
    same_prediction : float
        Share of images on which integer and fake-quantized network agree, 0 to 1.
    """

    points: list[PointAudit]
    images: int
    float_top1: float | None
    fake_quant_top1: float | None
    integer_top1: float | None
    same_prediction: float


def audit(
    calibration: Calibration,
    program: Program,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> Audit:
    """Compare a program with the fake-quantized network that it was lowered from.

    Parameters
    ----------
    calibration : Calibration
    program : Program
        ``lower(calibration)``.
    images : ndarray of uint8 [N, H, W, C]
    labels : ndarray of int [N], optional
    batch : int
    progress : callable, optional
        Called with the number of images after each batch.
    device : str
        torch device of the fake-quantized network; the program runs there too, where it is a GPU that can.

    Raises
    ------
    HwsimError
        No images, or images of the wrong size.
    """
    if not len(images):
        raise HwsimError("an audit needs at least one image")
    executor = Executor(program, beside_torch(device))
    network = FakeQuantNetwork(calibration, device)
    interpreter = Interpreter(calibration.graph, device)
    points = {
        node.name: PointAudit(node.name, node.spec.kind, Agreement(), Agreement())
        for node in program.nodes
        if node.name in calibration.grids
    }
    logits: dict[str, list[np.ndarray]] = {"float": [], "fake": [], "integer": []}
    for part in batches(len(images), batch):
        fake: dict[str, np.ndarray] = {}
        logits["fake"].append(network.run(images[part], fake))
        logits["float"].append(interpreter.run(images[part]).cpu().numpy())
        integer_logits, codes = executor.run(images[part], keep=points.keys())
        logits["integer"].append(integer_logits)
        # What each unit makes of the fake-quantized network's codes; units between two points work on local ones.
        local: dict[str, np.ndarray] = {INPUT: images[part]}
        for node, kernel in executor.kernels:
            operands = [fake[name].astype(local[name].dtype) if name in fake else local[name] for name in node.inputs]
            local[node.name] = kernel(*operands)
            if node.name in points:
                expected = fake[node.name].reshape(-1, *local[node.name].shape[1:])
                points[node.name].local.add(local[node.name], expected)
                points[node.name].end_to_end.add(codes[node.name], expected)
        if progress is not None:
            progress(part.stop - part.start)
    merged = {name: np.concatenate(parts) for name, parts in logits.items()}
    accuracy = {name: None if labels is None else top1(merged[name], labels) for name in merged}
    return Audit(
        points=list(points.values()),
        images=len(images),
        float_top1=accuracy["float"],
        fake_quant_top1=accuracy["fake"],
        integer_top1=accuracy["integer"],
        same_prediction=float((merged["integer"].argmax(axis=1) == merged["fake"].argmax(axis=1)).mean()),
    )
