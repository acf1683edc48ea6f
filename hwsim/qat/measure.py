"""Accuracy of a trained network: float, fake-quantized and integer, on the same images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from golden.errors import HwsimError
from golden.files import write_atomically
from hwsim.data import ImageSet
from hwsim.execute import Executor, top1
from hwsim.networks.graph import FloatGraph
from hwsim.networks.interpret import Interpreter, predict
from hwsim.program import Program
from hwsim.qat.files import RESULT
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.fake_quant import FakeQuantNetwork


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent.

    Attributes
    ----------
    images : int
    float_top1, fake_quant_top1 : float
    integer_top1 : float or None
        None where it was not measured.
    """

    images: int
    float_top1: float
    fake_quant_top1: float
    integer_top1: float | None = None

    def save(self, folder: Path) -> None:
        """Write it beside the trained network."""
        write_atomically(folder / RESULT, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Accuracy | None:
        """What `save` wrote, None where nothing is.

        Raises
        ------
        HwsimError
            The file is damaged.
        """
        path = folder / RESULT
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise HwsimError(f"{path}: damaged ({error}); remove it, and it is measured again") from None


def float_top1(graph: FloatGraph, images: ImageSet, *, device: str = "cpu", batch: int = 250) -> float:
    """Top-1 of the float network in percent.

    Raises
    ------
    HwsimError
        Images without labels.
    """
    labels = _labels(images)
    return top1(predict(Interpreter(graph, device), images.images, batch=batch), labels)


def fake_quant_top1(calibration: Calibration, images: ImageSet, *, device: str = "cpu", batch: int = 250) -> float:
    """Top-1 of the fake-quantized network in percent; errors as of `float_top1`."""
    labels = _labels(images)
    return top1(FakeQuantNetwork(calibration, device).predict(images.images, batch=batch), labels)


def _labels(images: ImageSet) -> np.ndarray:
    if images.labels is None:
        raise HwsimError("accuracy needs labelled images; give class folders")
    return images.labels


def integer_top1(program: Program, images: ImageSet) -> float:
    """Top-1 of the integer program in percent; errors as of `float_top1`."""
    labels = _labels(images)
    return top1(Executor(program).predict(images.images), labels)
