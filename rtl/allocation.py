# amaranth: UnusedElaboratable=no
"""The units that serve the layers of a program: which ones, how many cycles each layer takes, and what they cost.

A layer is a spec with its constants and the shapes of its operands. The formulas are those of the units
(`cycles_per_row`, `latency`); here they are put together for whole layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golden.adalog_linear import AdaLogLinearSpec
from golden.errors import HwsimError
from golden.heads import one_head
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.spec import Constants, Shape, Spec
from rtl import catalog
from rtl.stream import StreamUnit
from rtl.synthesis.families import Family
from rtl.synthesis.flow import count_cells

REQUANTIZE = "requantize"
# They give a row only once all of it is in: the beats of the last result come after their latency.
_WHOLE_ROWS = ("layernorm", "log_softmax")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes
    ----------
    name : str
    spec : Spec
    constants : mapping of str to integer array
    inputs : tuple of Shape
        Shapes of the operands without the batch axis.
    """

    name: str
    spec: Any
    constants: Constants
    inputs: tuple[Shape, ...]


@dataclass(frozen=True)
class Allocated:
    """A unit and the layers that it serves."""

    unit: StreamUnit
    layers: tuple[Layer, ...]

    @property
    def kind(self) -> str:
        return str(self.unit.spec.kind)

    def cycles(self, layer: Layer) -> int:
        """Cycles from the first beat of a layer taken to its last result, inclusive, rows back to back, no stalls."""
        rows, length = rows_of(layer, self.unit.lanes)
        return row_cycles(self.unit, rows, length)

    def latency(self, layer: Layer) -> int:
        """Cycles of a layer besides those in which its rows are taken."""
        rows, length = rows_of(layer, self.unit.lanes)
        return row_cycles(self.unit, rows, length) - rows * self.unit.cycles_per_row(length)


def row_cycles(unit: StreamUnit, rows: int, length: int) -> int:
    """Cycles of rows of a length, back to back: from the first beat taken to the last one given, inclusive.

    The rows follow each other after `cycles_per_row`. Of the last one its beats are taken, its result comes after the
    latency: at once (sums), beat by beat as it was taken (elements), or all its beats after that (whole rows).
    """
    products = catalog.is_product(unit.spec.kind)
    beats = length if products else -(-length // unit.lanes)
    latency = unit.row_latency(length) if hasattr(unit, "row_latency") else unit.latency
    behind = beats - 1 if unit.spec.kind in _WHOLE_ROWS else 0
    return (rows - 1) * unit.cycles_per_row(length) + beats + latency + behind


def rows_of(layer: Layer, lanes: int) -> tuple[int, int]:
    """Rows that a layer's activations make, and their length, as `rtl.catalog` cuts them."""
    shape = layer.inputs[0]
    if catalog.is_product(layer.spec.kind):
        columns = layer.inputs[1][-1]
        return math.prod(shape[:-1]) * -(-columns // lanes), shape[-1]
    return math.prod(shape[:-1]), shape[-1]


def allocate(layers: Sequence[Layer], lanes: Callable[[str], int]) -> list[Allocated]:
    """Units for all layers that hardware has units for; layers that one can serve share it.

    Parameters
    ----------
    layers : sequence of Layer
        Others are left out. Matrix products of several heads count as ones of one head, which is what a unit
        computes: constants are loaded head by head.
    lanes : callable
        Lanes of a kind of unit.

    Raises
    ------
    HwsimError
        One of the units cannot be built.
    """
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in map(served, layers):
        if layer.spec.kind in catalog.UNITS:
            groups.setdefault(catalog.group_key(layer.spec), []).append(layer)
    return [
        Allocated(
            catalog.covering([(each.spec, each.constants) for each in group], lanes=lanes(group[0].spec.kind)),
            tuple(group),
        )
        for group in groups.values()
    ]


def served(layer: Layer) -> Layer:
    """The layer as a unit sees it: products of one head, linear layers on logarithmic codes as matrix products."""
    if isinstance(layer.spec, AdaLogLinearSpec):
        return _of_weights(layer, *layer.spec.product(layer.constants))
    if isinstance(layer.spec, LogSqrt2LinearSpec):
        return _of_weights(layer, *layer.spec.sums(layer.constants))
    if not hasattr(layer.spec, "heads") or not hasattr(layer.spec, REQUANTIZE):  # the latter of products alone
        return layer
    spec, constants = one_head(layer.spec, layer.constants, 0)
    if isinstance(spec, LogSqrt2MatmulSpec):
        spec, constants = spec.sums, {"zero_v": constants["zero_v"]}
    return Layer(layer.name, spec, constants, layer.inputs)


def _of_weights(layer: Layer, spec: Any, constants: Constants, weights: np.ndarray) -> Layer:
    """A linear layer as the product of its codes with its weights."""
    rows = (math.prod(layer.inputs[0][:-1]), layer.inputs[0][-1])
    return Layer(layer.name, spec, constants, (rows, weights.shape))


def requantizer(layer: Layer, output: Shape) -> Layer | None:
    """The requantizer behind the sums of a layer, as a layer of its own, or None where there is none.

    Parameters
    ----------
    output : Shape
        Of the layer.
    """
    if getattr(layer.spec, REQUANTIZE, None) is None:
        return None
    spec: Spec = layer.spec.requantize
    if getattr(layer.spec, "heads", 1) > 1:
        layer = Layer(layer.name, *one_head(layer.spec, layer.constants, 0), layer.inputs)
        spec = layer.spec.requantize
    return Layer(layer.name, spec, {name: layer.constants[name] for name in spec.constants}, (output,))


def area(allocated: Sequence[Allocated], family: Family, *, folder: Path) -> list[dict[str, int]]:
    """Cells of each unit by resource, from Yosys; what was counted before is read from the folder.

    Raises
    ------
    HwsimError
        A tool is missing or fails, or a unit does not fit the family's device.
    """
    cells = []
    for each in allocated:
        try:
            cells.append(count_cells(each.unit, family, folder=folder))
        except HwsimError as error:
            raise HwsimError(f"{each.kind} for {each.layers[0].name}: {error}") from None
    return cells
