"""The input spaces and corners that are made for a layer's constants."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from golden.log_softmax import LogSoftmaxSpec
from rtl import catalog
from sim_tests.inputs import boundaries, corners, exhaustive, scaling_of, some_rows
from sim_tests.scaling_inputs import hard_scalings
from sim_tests.test_bulk import layer_of


def test_every_code_and_every_value() -> None:
    for kind, count in (("lookup", 64), ("adalog_quantize", 1 << 11), ("adalog_decode", 17)):
        space = exhaustive(layer_of(kind))
        assert space is not None
        assert space.inputs[0].reshape(-1).tolist() == list(range(count))


def test_every_score_pair() -> None:
    space = exhaustive(layer_of("log_softmax"))
    assert space is not None
    assert set(map(tuple, space.inputs[0].reshape(-1, 2).tolist())) == set(product(range(64), repeat=2))


@pytest.mark.parametrize("kind", ["log2_matmul", "adalog_matmul"])
def test_every_product(kind: str) -> None:
    space = exhaustive(layer_of(kind))
    assert space is not None
    codes, values = space.inputs
    assert codes.reshape(-1).tolist() == list(range(17))
    assert values.reshape(-1).tolist() == list(range(64))
    assert space.output.shape == (1, 17, 64)


def test_layernorm_is_never_small() -> None:
    assert exhaustive(layer_of("layernorm")) is None


def test_both_sides_of_each_rounding_boundary() -> None:
    """Where the exact quotient passes a half, the input before and the input after are there."""
    scaling = scaling_of(some_rows(layer_of("log2_matmul")))
    assert scaling is not None
    space = exhaustive(scaling)
    assert space is not None
    inputs = set(space.inputs[0].reshape(-1).tolist())
    ratio = Fraction(int(scaling.constants["multiplier"][0]), 1 << int(scaling.constants["shift"][0]))
    zero = int(scaling.constants["zero_point"])
    low, high = scaling.spec.inputs[0].minimum, scaling.spec.inputs[0].maximum
    for code in range(255):
        boundary = (Fraction(2 * code + 1, 2) - zero) / ratio
        below = boundary.numerator // boundary.denominator
        for value in (below, below + 1):
            assert value in inputs or not low <= value <= high


def test_sums_at_the_thresholds_of_codes() -> None:
    """Some sums lie within a unit of a threshold for one of their elements, and no random row does."""
    layer = layer_of("log_softmax")
    assert isinstance(layer.spec, LogSoftmaxSpec)
    table = layer.spec.exponentials(layer.constants)
    distances: list[int] = []
    for vectors in boundaries(layer):
        scores = vectors.inputs[0].reshape(-1, vectors.inputs[0].shape[-1]).astype(int)
        exponentials = table[scores.max(axis=1, keepdims=True) - scores]
        sums = 2 * exponentials.sum(axis=1)
        thresholds = [(2 * t - 1) * exponentials[:, 1] for t in (2, 3, 6, 12, 24, 48, 96, 192)]
        distances += np.min([abs(sums - threshold) for threshold in thresholds], axis=0).tolist()
    assert len(distances) > 100
    assert sum(distance <= 2 for distance in distances) > 20


@pytest.mark.parametrize("kind", sorted(catalog.UNITS))
def test_corners_keep_the_spec(kind: str) -> None:
    layer = layer_of(kind)
    lengths = set()
    for vectors in corners(layer):
        lengths.add(vectors.inputs[0].shape[-1])
        assert (vectors.spec.compute(vectors.constants, *vectors.inputs) == vectors.output).all()
    assert lengths == {21} if kind == "layernorm" else {1, 2, 3, 7} < lengths


def test_products_on_ties_beside_them_and_far_outside() -> None:
    """Exact quotients, as fractions, of the inputs that are made for other constants."""
    layer = layer_of("requantize")
    ties, beside, outside = set(), 0, 0
    for vectors in hard_scalings(layer):
        codes = vectors.inputs[0].reshape(-1, vectors.inputs[0].shape[-1])
        zero = int(vectors.constants["zero_point"])
        for column, (multiplier, shift) in enumerate(
            zip(vectors.constants["multiplier"].tolist(), vectors.constants["shift"].tolist(), strict=True)
        ):
            for value in codes[::2, column % codes.shape[1]].tolist():
                quotient = Fraction(value * multiplier, 1 << shift) + zero
                above = quotient % 1 - Fraction(1, 2)
                if above == 0:
                    ties.add(int(quotient // 1) % 2)
                beside += 0 < abs(above) < Fraction(1, 256)
                outside += abs(quotient) > 1000
    assert ties == {0, 1}
    assert beside > 100
    assert outside > 100
