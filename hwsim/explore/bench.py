"""What a point is measured on: a network, its calibration images, and images with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from golden.errors import HwsimError
from hwsim.data import ImageSet
from hwsim.identity import digest_of
from hwsim.networks.graph import FloatGraph
from hwsim.program import Program
from hwsim.quantize.recipe import Recipe

# From a program to its costs by name.
Costs = Callable[[Program], Mapping[str, float]]


def no_costs(program: Program) -> Mapping[str, float]:
    """Of benches that measure accuracy alone."""
    return {}


@dataclass(frozen=True)
class Bench:
    """Everything that measuring a recipe takes; it can be sent to other processes.

    Parameters
    ----------
    graph : FloatGraph
    calibration : ndarray of uint8 [N, H, W, C]
    evaluation : ImageSet
        With labels.
    code : str
        Digest of the code that the figures depend on.
    costs : callable
    cost_setting : str
        What the costs depend on besides the program.
    fake_quant : bool
        Measure the fake-quantized network too.

    Raises
    ------
    HwsimError
        The evaluation set has no labels.
    """

    graph: FloatGraph
    calibration: np.ndarray
    evaluation: ImageSet
    code: str
    costs: Costs = no_costs
    cost_setting: str = ""
    fake_quant: bool = False

    def __post_init__(self) -> None:
        if self.evaluation.labels is None:
            raise HwsimError("exploring needs labelled images to evaluate on; give class folders")

    @property
    def setting(self) -> str:
        """Digest of all that the figures depend on besides the recipe."""
        labels = self.evaluation.labels
        assert labels is not None
        text = digest_of(self.code, self.graph, (self.calibration, self.evaluation.images, labels))
        return hashlib.sha256(f"{text} {self.cost_setting} {self.fake_quant}".encode()).hexdigest()

    def prepare(self, recipe: Recipe) -> tuple[Program, Mapping[str, float], float | None]:
        """Calibrate and lower a recipe.

        Returns
        -------
        program : Program
        costs : mapping of str to number
        fake_quant_top1 : float or None
            Percent.

        Raises
        ------
        HwsimError
            The recipe has no integer program on this network.
        """
        from hwsim.execute import top1
        from hwsim.quantize.calibrate import calibrate
        from hwsim.quantize.fake_quant import FakeQuantNetwork
        from hwsim.quantize.lowering import lower

        calibration = calibrate(self.graph, self.calibration, recipe)
        program = lower(calibration)
        fake = None
        if self.fake_quant:
            labels = self.evaluation.labels
            assert labels is not None
            fake = top1(FakeQuantNetwork(calibration).predict(self.evaluation.images), labels)
        return program, self.costs(program), fake

    def correct(self, program: Program, part: slice, device: str = "cpu") -> np.ndarray:
        """Is the integer program right? bool, an element an image of the part.

        Every device gives the same, see `hwsim.execute.devices`.
        """
        from hwsim.execute.devices import choose, open_predictor

        labels = self.evaluation.labels
        assert labels is not None
        predictor = open_predictor(program, choose(device).backends)
        try:
            logits = predictor.predict(self.evaluation.images[part])
        finally:
            predictor.close()
        right: np.ndarray = logits.argmax(axis=1) == labels[part]
        return right
