"""Layers and their activations as hardware units see them.

A matrix product unit has one grid for all of V: a layer with a grid a head is one layer a head, named ``LAYER.headN``,
whose constants are loaded in turn. A linear layer on logarithmic codes is the product of its codes with its weights;
its bias is added behind. AdaLog codes have a decoder too. Products on log-sqrt2 codes are made of two sums, which are
what there is a unit for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from golden.adalog import AdaLogDecodeSpec, AdaLogMatmulSpec
from golden.adalog_linear import AdaLogLinearSpec
from golden.heads import one_head
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.spec import Constants
from golden.vectors import UnitVectors

# Kinds of units that do the work of a layer, where they are not its own kind alone.
_UNITS_OF = {
    "adalog_matmul": ("adalog_matmul", "adalog_decode"),
    "adalog_linear": ("adalog_matmul", "adalog_decode"),
    "log_sqrt2_matmul": ("log_sqrt2_sums",),
    "log_sqrt2_linear": ("log_sqrt2_sums",),
}


def unit_kinds(kind: str) -> tuple[str, ...]:
    """Kinds of units that a layer of a kind runs on; whether there is such hardware `rtl.catalog` knows."""
    return _UNITS_OF.get(kind, (kind,))


@dataclass(frozen=True)
class UnitLayer:
    """What is loaded into a unit for a layer, or for one head of it.

    Attributes
    ----------
    name : str
        ``LAYER``, or ``LAYER.headN``.
    layer : str
        Of the program.
    spec : Spec
    constants : Constants
    """

    name: str
    layer: str
    spec: Any
    constants: Constants


def unit_layers(layer: str, spec: Any, constants: Constants) -> list[UnitLayer]:
    """What units are built and loaded with for a layer of a program, of all kinds of `unit_kinds`."""
    if isinstance(spec, AdaLogLinearSpec):
        product, shared, _ = spec.product(constants)
        found = [UnitLayer(layer, layer, product, shared)]
    elif isinstance(spec, LogSqrt2LinearSpec):
        sums, shared, _ = spec.sums(constants)
        found = [UnitLayer(layer, layer, sums, shared)]
    else:
        found = []
        heads = _heads_of(spec)
        for head in range(heads):
            one, own = (spec, dict(constants)) if heads == 1 else one_head(spec, constants, head)
            if isinstance(one, LogSqrt2MatmulSpec):
                one, own = one.sums, {"zero_v": own["zero_v"]}
            found.append(UnitLayer(_name(layer, spec, head), layer, one, own))
    if isinstance(spec, AdaLogMatmulSpec | AdaLogLinearSpec):
        found.append(UnitLayer(layer, layer, *decoder_of(spec, constants)))
    return found


def requantizer_layers(layer: str, spec: Any, constants: Constants) -> list[UnitLayer]:
    """What the requantizer behind the sums of a layer is loaded with, head by head; empty where there is none."""
    if getattr(spec, "requantize", None) is None:
        return []
    found = []
    for head in range(_heads_of(spec)):
        one, own = one_head(spec, constants, head) if _heads_of(spec) > 1 else (spec, constants)
        loaded = {name: own[name] for name in one.requantize.constants}
        found.append(UnitLayer(_name(layer, spec, head), layer, one.requantize, loaded))
    return found


def _heads_of(spec: Any) -> int:
    """Heads with a grid of their own; of products alone, as other specs have heads too."""
    return int(spec.heads) if hasattr(spec, "heads") and hasattr(spec, "requantize") else 1


def _name(layer: str, spec: Any, head: int) -> str:
    return f"{layer}.head{head}" if _heads_of(spec) > 1 else layer


def decoder_of(
    spec: AdaLogMatmulSpec | AdaLogLinearSpec, constants: Constants
) -> tuple[AdaLogDecodeSpec, dict[str, np.ndarray]]:
    """Spec and constants of the decoder of the codes that an AdaLog product takes."""
    decoder = AdaLogDecodeSpec(code_bits=spec.code_bits, guard_bits=spec.guard_bits, largest_shift=spec.largest_shift)
    return decoder, {name: constants[name] for name in decoder.constants}


def unit_vectors(layers: Iterable[UnitVectors]) -> Iterator[UnitVectors]:
    """What the units see of dumped layers; a dumped AdaLog product comes with its decoder, a linear layer gets one."""
    for layer in layers:
        spec: Any = layer.spec
        if isinstance(spec, AdaLogLinearSpec):
            product, constants, weights = spec.product(layer.constants)
            yield _of_weights(layer, product, constants, weights)
            decoder, constants = decoder_of(spec, layer.constants)
            output = decoder.compute(constants, layer.inputs[0])
            yield replace(layer, spec=decoder, constants=constants, output=output, accumulator=None)
        elif isinstance(spec, LogSqrt2LinearSpec):
            yield _of_weights(layer, *spec.sums(layer.constants))
        elif isinstance(spec, LogSqrt2MatmulSpec) or _heads_of(spec) > 1:
            yield from _heads(layer)
        else:
            yield layer


def _heads(layer: UnitVectors) -> Iterator[UnitVectors]:
    spec: Any = layer.spec
    for head in range(spec.heads):

        def own(array: np.ndarray, head: int = head) -> np.ndarray:
            return array[..., head, :, :] if spec.heads > 1 else array

        one, constants = one_head(spec, layer.constants, head)
        changes: dict[str, Any] = {
            "inputs": tuple(own(array) for array in layer.inputs),
            "output": own(layer.output),
            "accumulator": None if layer.accumulator is None else own(layer.accumulator),
        }
        if isinstance(one, LogSqrt2MatmulSpec):
            one, constants = one.sums, {"zero_v": constants["zero_v"]}
            changes["output"] = one.compute(constants, *changes["inputs"])
        yield replace(layer, spec=one, constants=constants, layer=_name(layer.layer, spec, head), **changes)


def _of_weights(layer: UnitVectors, spec: Any, constants: Constants, weights: np.ndarray) -> UnitVectors:
    """A linear layer as the product of its codes with its weights."""
    (codes,) = layer.inputs
    codes = codes.reshape(len(codes), -1, codes.shape[-1])
    inputs = codes, np.broadcast_to(weights, (len(codes), *weights.shape))
    sums = spec.accumulate(constants, *inputs) if isinstance(spec, AdaLogMatmulSpec) else None
    output = spec.compute(constants, *inputs) if sums is None else spec.requantize.compute(constants, sums)
    return replace(layer, spec=spec, constants=constants, inputs=inputs, output=output, accumulator=sums)
