"""Data movement of golden against explicit indices, and the shapes it announces."""

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.rearrange import (
    ConcatSpec,
    ConstantSpec,
    JoinTokensSpec,
    MergeHeadsSpec,
    PatchesSpec,
    SplitHeadsSpec,
    TakeTokenSpec,
    TransposeSpec,
)


def moved(spec, *inputs, constants=None):
    """The result, which must have the shape that the spec announces."""
    result = spec.compute(spec.check_constants(constants or {}), *inputs)
    assert result.shape[1:] == spec.shape(*(array.shape[1:] for array in inputs))
    return result


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


def test_patches_hold_channel_row_column_as_the_weights_of_a_convolution():
    image = numbered(2, 6, 4, 3)
    result = moved(PatchesSpec(size=2, bits=8), image)
    assert result.shape == (2, 6, 12)
    for b, row, column, c, i, j in np.ndindex(2, 3, 2, 3, 2, 2):
        assert result[b, row * 2 + column, c * 4 + i * 2 + j] == image[b, row * 2 + i, column * 2 + j, c]


def test_heads_split_and_merge():
    tokens = numbered(2, 5, 3 * 4 * 2)
    for part in range(3):
        heads = moved(SplitHeadsSpec(heads=4, part=part, parts=3, bits=8), tokens)
        for b, head, token, d in np.ndindex(2, 4, 5, 2):
            assert heads[b, head, token, d] == tokens[b, token, part * 8 + head * 2 + d]
        assert (moved(MergeHeadsSpec(bits=8), heads) == tokens[..., part * 8 : part * 8 + 8]).all()


def test_heads_of_windows_split_and_merge():
    tokens = numbered(2, 6, 5, 3 * 4 * 2)
    for part in range(3):
        heads = moved(SplitHeadsSpec(heads=4, part=part, parts=3, bits=8), tokens)
        for b, window, head, token, d in np.ndindex(2, 6, 4, 5, 2):
            assert heads[b, window, head, token, d] == tokens[b, window, token, part * 8 + head * 2 + d]
        assert (moved(MergeHeadsSpec(bits=8), heads) == tokens[..., part * 8 : part * 8 + 8]).all()


def test_tokens_side_by_side():
    tokens = numbered(2, 5, 3)
    pair = moved(TakeTokenSpec(index=1, count=2, bits=8), tokens)
    assert (pair == tokens[:, 1:3]).all()
    joined = moved(JoinTokensSpec(bits=8), pair)
    for b, token, channel in np.ndindex(2, 2, 3):
        assert joined[b, 0, token * 3 + channel] == tokens[b, 1 + token, channel]


def test_transpose_takes_a_token_and_joins():
    tokens = numbered(2, 3, 4, 5)
    turned = moved(TransposeSpec(bits=8), tokens)
    for index in np.ndindex(tokens.shape):
        assert turned[(*index[:2], index[3], index[2])] == tokens[index]
    sequence = numbered(2, 3, 4)
    assert (moved(TakeTokenSpec(index=1, bits=8), sequence) == sequence[:, [1], :]).all()
    first = moved(ConstantSpec(rows=1, columns=4, bits=8), constants={"value": np.array([[9, 8, 7, 6]])})
    joined = moved(ConcatSpec(bits=8), first, sequence)
    assert joined[:, 0].tolist() == [[9, 8, 7, 6]] * 2
    assert (joined[:, 1:] == sequence).all()


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (PatchesSpec(size=4, bits=8), [(28, 30, 1)], "28x30 is not a multiple of the patch size 4"),
        (SplitHeadsSpec(heads=4, part=0, parts=3, bits=8), [(5, 26)], "26 columns do not divide into 3 parts of 4"),
        (TakeTokenSpec(index=3, bits=8), [(3, 4)], "token 3 of 3"),
        (TakeTokenSpec(index=2, count=2, bits=8), [(3, 4)], "token 3 of 3"),
        (ConcatSpec(bits=8), [(1, 4), (3, 5)], "sequences of 4 and 5 channels"),
    ],
)
def test_operands_that_do_not_fit_are_refused(spec, shapes, message):
    with pytest.raises(HwsimError, match=message):
        spec.shape(*shapes)


def test_a_part_beyond_the_parts_is_refused():
    with pytest.raises(HwsimError, match=r"part must be below parts \(3\), not 3"):
        SplitHeadsSpec(heads=4, part=3, parts=3, bits=8)
