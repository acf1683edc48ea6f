"""What the demo found, as data.

`DemoResult` holds everything that the command line prints and the page of
`hwsim.page` shows; `to_json` writes it, derived figures included.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLOCK_HZ = 100_000_000
# Standard deviation of an error that is nothing but rounding to the nearest step: uniform over one step.
ROUNDING_RMS = 12**-0.5


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of one recipe on the same images, in percent.

    Attributes
    ----------
    recipe, bits : str
        The recipe's name, and its widths of weights/activations/attention.
    images : int
    float_top1, fake_quant_top1, integer_top1 : float
        Of the float network, the published fake-quantized one, and the integer program.
    same_prediction : float
        Images on which the integer program and the fake-quantized network agree, in percent.
    images_per_second : float
        Integer program, bit-accurate, on this machine.
    """

    recipe: str
    bits: str
    images: int
    float_top1: float
    fake_quant_top1: float
    integer_top1: float
    same_prediction: float
    images_per_second: float

    @property
    def integer_minus_float(self) -> float:
        """Percentage points."""
        return self.integer_top1 - self.float_top1

    @property
    def integer_minus_fake_quant(self) -> float:
        """Percentage points."""
        return self.integer_top1 - self.fake_quant_top1


@dataclass(frozen=True)
class ExecutorAgreement:
    """An executor against the reference, on every point of the graph.

    Attributes
    ----------
    recipe : str
    images, points, values, mismatches : int
        What was compared; values and mismatches are integers of all points and images together.
    first_mismatch : str or None
    executor : str
    """

    recipe: str
    images: int
    points: int
    values: int
    mismatches: int
    first_mismatch: str | None
    executor: str = "numba"


@dataclass(frozen=True)
class AuditedPoint:
    """Integer minus fake-quantized codes at one point, in output steps (LSB); see `hwsim.audit`.

    Attributes
    ----------
    unit, point : str
    codes : int
        Codes compared.
    local_equal : float
        Percent of equal codes when the unit gets the fake-quantized network's own inputs.
    local_mean, end_to_end_mean : float
        Mean absolute difference.
    local_largest, end_to_end_largest : int
    """

    unit: str
    point: str
    codes: int
    local_equal: float
    local_mean: float
    local_largest: int
    end_to_end_mean: float
    end_to_end_largest: int


@dataclass(frozen=True)
class AuditSummary:
    """The worst point of every kind of unit, by local mean difference.

    Attributes
    ----------
    recipe : str
    images, points : int
        What was audited.
    worst : tuple of AuditedPoint
    """

    recipe: str
    images: int
    points: int
    worst: tuple[AuditedPoint, ...]


@dataclass(frozen=True)
class RtlRun:
    """One cosimulation of one layer.

    Attributes
    ----------
    compared, mismatches : int
        Activations.
    cycles : int
        Clock cycles from the first beat taken to the last one given.
    first_mismatch, waveform : str or None
    """

    compared: int
    mismatches: int
    cycles: int
    first_mismatch: str | None = None
    waveform: str | None = None


def _rate(cycles: float) -> float:
    return CLOCK_HZ / cycles if cycles else 0.0


@dataclass(frozen=True)
class RtlLayer:
    """One layer in one hardware unit.

    Attributes
    ----------
    layer : str
    rows_per_image : int
    cycles_per_row : float
        Sustained, measured at full rate.
    full_rate, stalled : RtlRun
        Without stalls, and with random stalls on both sides.
    """

    layer: str
    rows_per_image: int
    cycles_per_row: float
    full_rate: RtlRun
    stalled: RtlRun

    @property
    def compared(self) -> int:
        """Activations compared in both runs together."""
        return self.full_rate.compared + self.stalled.compared

    @property
    def mismatches(self) -> int:
        return self.full_rate.mismatches + self.stalled.mismatches

    @property
    def cycles_per_image(self) -> float:
        """Cycles that this layer of one image keeps the unit busy."""
        return self.cycles_per_row * self.rows_per_image

    @property
    def images_per_second(self) -> float:
        """At `CLOCK_HZ`, of a unit that works on this layer only; 0 if nothing came out."""
        return _rate(self.cycles_per_image)


@dataclass(frozen=True)
class RtlUnit:
    """One hardware unit that serves several layers, their constants loaded one after the other.

    Attributes
    ----------
    unit, module, recipe : str
        Kind of the spec, name of the Verilog module, recipe of the program.
    lanes, images, latency : int
        Elements a beat, images whose activations went through, and cycles from the last beat of a
        row taken to its first result.
    verilog, facts : str
        Files, relative to the folder of the report.
    layers : tuple of RtlLayer
    """

    unit: str
    module: str
    recipe: str
    lanes: int
    images: int
    latency: int
    verilog: str
    facts: str
    layers: tuple[RtlLayer, ...]

    @property
    def compared(self) -> int:
        return sum(layer.compared for layer in self.layers)

    @property
    def mismatches(self) -> int:
        return sum(layer.mismatches for layer in self.layers)

    @property
    def cycles(self) -> int:
        """Of all layers at full rate."""
        return sum(layer.full_rate.cycles for layer in self.layers)

    @property
    def stalled_cycles(self) -> int:
        return sum(layer.stalled.cycles for layer in self.layers)

    @property
    def rows_per_image(self) -> int:
        return sum(layer.rows_per_image for layer in self.layers)

    @property
    def cycles_per_image(self) -> float:
        """Cycles that all layers of one image keep the unit busy."""
        return sum(layer.cycles_per_image for layer in self.layers)

    @property
    def cycles_per_row(self) -> float:
        """Mean over all rows of an image."""
        return self.cycles_per_image / self.rows_per_image

    @property
    def images_per_second(self) -> float:
        """At `CLOCK_HZ`, of one unit that serves all its layers in turn; 0 if nothing came out."""
        return _rate(self.cycles_per_image)


@dataclass(frozen=True)
class CodeCounts:
    """How often each code occurs at one point.

    Attributes
    ----------
    layer : str
    counts : tuple of int
        By code.
    scale : float
        Value of one step; of Log2 codes, which have none, 1.
    zero_point : int
    """

    layer: str
    counts: tuple[int, ...]
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class LayerNormError:
    """Error of integer LayerNorms of one layer against real arithmetic, in output steps.

    Attributes
    ----------
    layer : str
    values : int
    rms, largest : float
        Of the integer unit.
    released_rms, released_largest : float
        Of FQ-ViT's released integer form (`golden.published.int_layernorm`) on the same inputs.
    """

    layer: str
    values: int
    rms: float
    largest: float
    released_rms: float
    released_largest: float


@dataclass(frozen=True)
class LayerNormErrors:
    """All LayerNorms.

    Attributes
    ----------
    images : int
    layers : tuple of LayerNormError
    edges : tuple of float
        Of the bins of the error, in output steps; the outer bins take in what lies beyond.
    counts, released_counts : tuple of int
        Values in each bin, of the integer unit and of FQ-ViT's released form.
    """

    images: int
    layers: tuple[LayerNormError, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    released_counts: tuple[int, ...]

    @property
    def rms(self) -> float:
        """Of the integer unit, over all layers."""
        return self._pooled([layer.rms for layer in self.layers])

    @property
    def released_rms(self) -> float:
        """Of FQ-ViT's released form, over all layers."""
        return self._pooled([layer.released_rms for layer in self.layers])

    def _pooled(self, sizes: list[float]) -> float:
        squares = sum(layer.values * size**2 for layer, size in zip(self.layers, sizes, strict=True))
        return math.sqrt(squares / sum(layer.values for layer in self.layers))

    @property
    def largest(self) -> float:
        return max(layer.largest for layer in self.layers)

    @property
    def released_largest(self) -> float:
        return max(layer.released_largest for layer in self.layers)


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows.

    Attributes
    ----------
    version, network : str
    calibration_images : dict of str to int
        By recipe.
    accuracy : tuple of Accuracy
    executors : tuple of ExecutorAgreement
    audits : tuple of AuditSummary
    rtl : tuple of RtlUnit
    histogram_images : int
        Images that `scores` and `attention` count.
    scores, attention : tuple of CodeCounts
        Attention scores and Log2 attention codes of every block, the zero symbol last.
    layernorm : LayerNormErrors
    seconds : dict of str to float
        Time of each step.
    files : dict of str to str
        What lies where, relative to the folder of the report.
    """

    version: str
    network: str
    calibration_images: Mapping[str, int]
    accuracy: tuple[Accuracy, ...]
    executors: tuple[ExecutorAgreement, ...]
    audits: tuple[AuditSummary, ...]
    rtl: tuple[RtlUnit, ...]
    histogram_images: int
    scores: tuple[CodeCounts, ...]
    attention: tuple[CodeCounts, ...]
    layernorm: LayerNormErrors
    seconds: Mapping[str, float]
    files: Mapping[str, str]

    @property
    def mismatches(self) -> int:
        """Integers on which reference, numba executor and Verilog do not agree; the demo's verdict."""
        return sum(agreement.mismatches for agreement in self.executors) + sum(unit.mismatches for unit in self.rtl)

    @property
    def activations_compared(self) -> int:
        """In Verilog, over all units and both runs."""
        return sum(unit.compared for unit in self.rtl)

    @property
    def clock_hz(self) -> int:
        """Clock of the estimated rates."""
        return CLOCK_HZ


def as_values(value: Any) -> Any:
    """A result as JSON values: fields and properties of dataclasses, tuples as lists."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: as_values(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {name: as_values(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_values(item) for item in value]
    return value


def to_json(result: DemoResult) -> str:
    """The result as a JSON text.

    Raises
    ------
    ValueError
        A figure is not finite.
    """
    return json.dumps(as_values(result), indent=1, allow_nan=False) + "\n"
