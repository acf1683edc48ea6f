"""Cycles of a program on an accelerator: a roofline for every layer.

Layers run one after the other. A layer takes as long as the slower of its computation and its traffic with the
outside memory, which overlap. Computation is

* of a unit that `rtl` has: its own cycles, exactly, as `rtl.allocation` gives them;
* of a matrix product on plain codes: those of the MAC array, for each matrix and tile as many steps as the product
  is deep; the requantizer behind runs beside it, and adds its latency;
* of what has no hardware yet: an element a lane and cycle.

Moving codes costs no cycles: the unit that reads them reads them in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from golden.errors import HwsimError
from hwsim.cost.accelerator import Accelerator
from hwsim.cost.memory import activations, constant_bytes, packed_bytes, stored_at
from hwsim.cost.operations import MOVEMENTS, input_shapes, is_product, matrix_product, operations_of
from hwsim.program import INPUT, Node, Program

# Whence the compute cycles of a layer: counted exactly, of the array model, of an element a lane and cycle.
EXACT, ARRAY, ELEMENTWISE = "unit", "array", "elementwise"


@dataclass(frozen=True)
class UnitCycles:
    """Cycles of what a layer has in hardware.

    Attributes
    ----------
    rows : int
        From the first beat taken to the last result, rows back to back.
    latency : int
        Of that, what is not the rows themselves.
    """

    rows: int
    latency: int


@dataclass(frozen=True)
class LayerCycles:
    """One layer.

    Attributes
    ----------
    name, unit : str
        Of the node, and its kind.
    compute, memory : int
        Cycles of the computation and of the traffic.
    basis : str
        Of the compute cycles: `EXACT`, `ARRAY` or `ELEMENTWISE`.
    read, written : int
        Bytes from and to the outside memory.
    """

    name: str
    unit: str
    compute: int
    memory: int
    basis: str
    read: int
    written: int

    @property
    def cycles(self) -> int:
        return max(self.compute, self.memory)

    @property
    def bound(self) -> str:
        """What the layer waits for: "compute" or "memory"."""
        return "memory" if self.memory > self.compute else "compute"


@dataclass(frozen=True)
class Cycles:
    """A program on an accelerator.

    Attributes
    ----------
    accelerator : Accelerator
    layers : tuple of LayerCycles
        In the order of the program, without nodes that only move codes.
    resident : bool
        Whether all constants stay on the chip from picture to picture.
    """

    accelerator: Accelerator
    layers: tuple[LayerCycles, ...]
    resident: bool

    @property
    def cycles(self) -> int:
        """A picture."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def frames_a_second(self) -> float:
        return self.accelerator.clock_mhz * 1e6 / self.cycles

    @property
    def traffic(self) -> int:
        """Bytes a picture, from and to the outside memory."""
        return sum(layer.read + layer.written for layer in self.layers)

    @property
    def bound(self) -> str:
        """What most of the cycles are spent on."""
        spent = {
            bound: sum(each.cycles for each in self.layers if each.bound == bound) for bound in ("compute", "memory")
        }
        return max(spent, key=lambda bound: spent[bound])


def array_cycles(accelerator: Accelerator, node: Node, program: Program) -> int:
    """Cycles of a matrix product in the MAC array.

    For each matrix and tile of the array's size as many steps as the product is deep, for each pair of digits
    of operands wider than a MAC. Tiles follow each other without a gap; the last one takes its way through the array.
    """
    product = matrix_product(input_shapes(program, node), program.shape(node.name))
    (operation,) = [
        each
        for each in operations_of(node.spec, input_shapes(program, node), program.shape(node.name))
        if each.kind.endswith("accumulate")
    ]
    digits = math.prod(-(-width // accelerator.mac_bits) for width in operation.widths)
    tiles = -(-product.rows // accelerator.array_rows) * -(-product.columns // accelerator.array_columns)
    steps = product.matrices * tiles * product.inner * digits
    return steps + accelerator.array_rows + accelerator.array_columns - 2


def cycles(
    program: Program,
    accelerator: Accelerator,
    units: Mapping[str, UnitCycles],
    requantizers: Mapping[str, UnitCycles],
) -> Cycles:
    """Cycles of one picture.

    Parameters
    ----------
    program : Program
    accelerator : Accelerator
    units : mapping of str to UnitCycles
        By node, those that have a unit in hardware, with the accelerator's lanes; `rtl.allocation` knows them.
    requantizers : mapping of str to UnitCycles
        By node, the requantizers behind sums.

    Raises
    ------
    HwsimError
        The memory on the chip does not hold what the smallest step of a layer needs.
    """
    traffic = _Traffic(program, accelerator)
    layers = []
    for node in program.nodes:
        if node.spec.kind in MOVEMENTS:
            continue
        compute, basis = _compute(program, accelerator, node, units, requantizers)
        read, written = traffic.of(node)
        memory = math.ceil((read + written) / accelerator.bytes_a_cycle)
        layers.append(LayerCycles(node.name, node.spec.kind, compute, memory, basis, read, written))
    return Cycles(accelerator, tuple(layers), traffic.resident)


def _compute(
    program: Program,
    accelerator: Accelerator,
    node: Node,
    units: Mapping[str, UnitCycles],
    requantizers: Mapping[str, UnitCycles],
) -> tuple[int, str]:
    behind = requantizers.get(node.name)
    if node.name in units:
        own, basis = units[node.name].rows, EXACT
    elif is_product(node.spec):
        own, basis = array_cycles(accelerator, node, program), ARRAY
    else:
        elements = math.prod(input_shapes(program, node)[0])
        own, basis = -(-elements // accelerator.lanes_for(node.spec.kind)), ELEMENTWISE
    if behind is None:
        return own, basis
    # It takes sums as they come; where it is the slower one, the layer takes as long as it does.
    return max(own, behind.rows - behind.latency) + behind.latency, basis


class _Traffic:
    """Bytes that a node reads from and writes to the outside memory.

    When all constants fit on the chip beside the most activations that are live at once, only the image comes in and
    the logits go out. Else constants and activations have half of the memory each: a layer reads its constants anew,
    and where the live activations exceed their half, the operands and the result of that layer lie outside; operands
    are then read once for each half of the memory that the constants fill.
    """

    def __init__(self, program: Program, accelerator: Accelerator) -> None:
        live = activations(program)
        self._outputs, self._place = live.outputs, stored_at(program)
        self._half, self._columns = accelerator.memory_bytes // 2, accelerator.array_columns
        self._last = program.nodes[-1].name
        constants = sum(constant_bytes(node).total for node in program.nodes)
        self.resident = constants + live.peak[1] <= accelerator.memory_bytes
        crowded = [node for node in program.nodes if not self.resident and live.live[node.name] > self._half]
        self._outside = {self._place[name] for node in crowded for name in (*node.inputs, node.name)}

    def of(self, node: Node) -> tuple[int, int]:
        """Bytes read and written.

        Raises
        ------
        HwsimError
            Half of the memory does not hold the weights of one tile of the array.
        """
        constants, passes = 0, 1
        if not self.resident:
            self._check_tile(node)
            constants = constant_bytes(node).total
            passes = max(1, -(-constants // self._half))
        read = constants
        for place in dict.fromkeys(self._place[name] for name in node.inputs):
            if place == INPUT:
                read += self._outputs[INPUT]
            elif place is not None and place in self._outside:
                read += self._outputs[place] * passes
        written = self._outputs[node.name] if node.name in self._outside or node.name == self._last else 0
        return read, written

    def _check_tile(self, node: Node) -> None:
        if "weight" not in node.spec.constants:
            return
        weight = node.spec.constants["weight"]
        tile = packed_bytes((weight.shape[1], self._columns), weight.format.bits)
        if tile > self._half:
            raise HwsimError(
                f"{node.name}: {self._columns} columns of its weights take {tile:,} bytes, more than half of the "
                f"{2 * self._half:,} bytes on the chip; give more memory or fewer array columns"
            )
