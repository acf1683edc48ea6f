"""Dumped activations as hardware sees them: a head at a time, and linear layers on AdaLog codes as products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from golden.adalog import AdaLogDecodeSpec
from golden.adalog_linear import AdaLogLinearSpec
from golden.vectors import UnitVectors


def unit_vectors(layers: Iterable[UnitVectors]) -> Iterator[UnitVectors]:
    """What the units see of dumped layers.

    The matrix product units have one grid for all of V: layers with a grid a head become one layer a head,
    named ``LAYER.headN``, whose constants are loaded in turn. A linear layer on AdaLog codes becomes the product of its
    codes with its weights, and the decoder of its codes; its bias is added behind. All others stay as they are.
    """
    for layer in layers:
        if isinstance(layer.spec, AdaLogLinearSpec):
            yield _product(layer)
            yield _decoder(layer)
        elif getattr(layer.spec, "heads", 1) > 1:
            yield from _heads(layer)
        else:
            yield layer


def _heads(layer: UnitVectors) -> Iterator[UnitVectors]:
    spec: Any = layer.spec
    one = replace(spec, heads=1, requantize=replace(spec.requantize, channels=1))
    for head in range(spec.heads):
        constants = {}
        for name, constant in one.constants.items():
            array = layer.constants[name]
            if array.shape != constant.shape:
                array = array[head] if constant.shape == () else array[head : head + 1]
            constants[name] = array
        yield replace(
            layer,
            spec=one,
            constants=constants,
            inputs=tuple(x[..., head, :, :] for x in layer.inputs),
            output=layer.output[..., head, :, :],
            accumulator=None if layer.accumulator is None else layer.accumulator[..., head, :, :],
            layer=f"{layer.layer}.head{head}",
        )


def _product(layer: UnitVectors) -> UnitVectors:
    assert isinstance(layer.spec, AdaLogLinearSpec)
    spec, constants, weights = layer.spec.product(layer.constants)
    (codes,) = layer.inputs
    codes = codes.reshape(len(codes), -1, codes.shape[-1])
    values = np.broadcast_to(weights, (len(codes), *weights.shape))
    sums = spec.accumulate(constants, codes, values)
    output = spec.requantize.compute(constants, sums)
    return replace(layer, spec=spec, constants=constants, inputs=(codes, values), output=output, accumulator=sums)


def _decoder(layer: UnitVectors) -> UnitVectors:
    assert isinstance(layer.spec, AdaLogLinearSpec)
    spec = AdaLogDecodeSpec(
        code_bits=layer.spec.code_bits, guard_bits=layer.spec.guard_bits, largest_shift=layer.spec.largest_shift
    )
    constants = {name: layer.constants[name] for name in spec.constants}
    output = spec.compute(constants, layer.inputs[0])
    return replace(layer, spec=spec, constants=constants, output=output, accumulator=None)
