"""Golden vectors from a program: what a unit of a layer sees and makes on real images."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np

from golden.adalog import AdaLogMatmulSpec
from golden.errors import HwsimError
from golden.vectors import UnitVectors
from hwsim.execute import Executor
from hwsim.program import INPUT, Node, Program
from hwsim.unit_vectors import decoder_of


def select_nodes(program: Program, layers: Sequence[str] = (), units: Sequence[str] = ()) -> list[Node]:
    """Nodes of the given layers and units, in program order.

    Parameters
    ----------
    program : Program
    layers : sequence of str
        Node names, beginnings of them up to a dot ("blocks.3"), or patterns ("blocks.*.norm1");
        none selects all.
    units : sequence of str
        Unit kinds; none selects all.

    Raises
    ------
    HwsimError
        A layer or unit that selects nothing.
    """
    kinds = {node.spec.kind for node in program.nodes}
    for unit in units:
        if unit not in kinds:
            raise HwsimError(f"the program has no unit {unit!r}; it has {', '.join(sorted(kinds))}")

    def fits(node: Node, layer: str) -> bool:
        return node.name == layer or node.name.startswith(f"{layer}.") or fnmatch.fnmatchcase(node.name, layer)

    for layer in layers:
        if not any(fits(node, layer) for node in program.nodes):
            raise HwsimError(f"the program has no layer {layer!r}; `hwsim show` lists them")
    chosen = [
        node
        for node in program.nodes
        if (not layers or any(fits(node, layer) for layer in layers)) and (not units or node.spec.kind in units)
    ]
    if not chosen:
        raise HwsimError(f"no unit {', '.join(units)} in layer {', '.join(layers)}; `hwsim show` lists them")
    return chosen


def dump_vectors(
    program: Program, images: np.ndarray, indices: Sequence[int], nodes: Sequence[Node], *, backend: str = "numba"
) -> list[UnitVectors]:
    """Inputs and outputs of nodes on chosen images.

    Parameters
    ----------
    program : Program
    images : ndarray of uint8 [N, H, W, C]
        The data set.
    indices : sequence of int
        Images to run, as indices into it.
    nodes : sequence of Node
        From `select_nodes`. A node of AdaLog products also gives vectors of the decoder of its codes.
    backend : str
        Executor.

    Raises
    ------
    HwsimError
        An index past the data set.
    """
    for index in indices:
        if not 0 <= index < len(images):
            raise HwsimError(f"image {index} is not in the data set of {len(images)}")
    if not indices:
        raise HwsimError("choose at least one image")
    wanted = {name for node in nodes for name in (node.name, *node.inputs)}
    batch = images[list(indices)]
    _, kept = Executor(program, backend).run(batch, keep=wanted)
    kept[INPUT] = batch
    vectors = []
    for node in nodes:
        inputs = tuple(np.ascontiguousarray(kept[name]) for name in node.inputs)
        accumulate = getattr(node.spec, "accumulate", None)
        shared: dict[str, Any] = {
            "network": program.network,
            "recipe": program.recipe,
            "layer": node.name,
            "images": tuple(int(index) for index in indices),
        }
        vectors.append(
            UnitVectors(
                spec=node.spec,
                constants=dict(node.constants),
                inputs=inputs,
                output=np.ascontiguousarray(kept[node.name]),
                accumulator=None if accumulate is None else accumulate(node.constants, *inputs),
                **shared,
            )
        )
        if isinstance(node.spec, AdaLogMatmulSpec):
            decode, constants = decoder_of(node.spec, node.constants)
            output = decode.compute(constants, inputs[0])
            vectors.append(UnitVectors(decode, constants, inputs[:1], output, None, **shared))
    return vectors
