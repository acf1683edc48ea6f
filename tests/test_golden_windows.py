"""Swin's units against timm's functions, exact rationals and explicit indices."""

from fractions import Fraction

import numpy as np
import pytest
from requantization import clipped, requantizer, scaling

from golden.errors import HwsimError
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.token_mean import TokenMeanSpec
from golden.windows import (
    JoinWindowsSpec,
    MergePatchesSpec,
    PartitionWindowsSpec,
    ShiftMaskSpec,
    WindowBiasSpec,
    relative_position_index,
    shift_mask,
)
from hwsim.execute.window_kernels import KERNELS

GEOMETRIES = [(8, 12, 4, 2), (8, 8, 4, 0), (14, 14, 7, 3), (7, 7, 7, 0), (6, 9, 3, 1)]


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def both(spec, constants, *inputs):
    """Result of the reference, which the compiled kernel must equal."""
    checked = spec.check_constants(constants)
    codes = [format.check(array, "input") for format, array in zip(spec.inputs, inputs, strict=True)]
    result = spec.compute(checked, *codes)
    fast = KERNELS[spec.kind](spec, checked)(*codes)
    assert fast.dtype == result.dtype == spec.output.dtype
    assert np.array_equal(fast, result)
    assert result.shape[1:] == spec.shape(*(array.shape[1:] for array in inputs))
    return result


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_windows_are_those_of_timm(geometry):
    torch = pytest.importorskip("torch")
    from timm.models.swin_transformer import window_partition

    height, width, window, shift = geometry
    tokens = numbered(2, height * width, 3)
    fields = dict(zip(("height", "width", "window", "shift"), geometry, strict=True))
    partition = PartitionWindowsSpec(bits=8, **fields)
    windows = partition.compute({}, tokens)
    assert windows.shape[1:] == partition.shape(tokens.shape[1:])
    rolled = torch.roll(torch.from_numpy(tokens).view(2, height, width, 3), (-shift, -shift), (1, 2))
    expected = window_partition(rolled, (window, window)).reshape(2, -1, window**2, 3)
    assert np.array_equal(windows, expected.numpy())
    join = JoinWindowsSpec(bits=8, **fields)
    assert join.shape(windows.shape[1:]) == tokens.shape[1:]
    assert np.array_equal(join.compute({}, windows), tokens)


@pytest.mark.parametrize("geometry", [case for case in GEOMETRIES if case[3]])
def test_mask_is_that_of_timm(geometry):
    pytest.importorskip("torch")
    from timm.models.swin_transformer import SwinTransformerBlock

    height, width, window, shift = geometry
    block = SwinTransformerBlock(8, (height, width), num_heads=2, window_size=window, shift_size=shift)
    assert np.array_equal(shift_mask(*geometry), block.attn_mask.numpy() == -100)


@pytest.mark.parametrize("window", [1, 2, 7, 12])
def test_relative_positions_are_those_of_timm(window):
    pytest.importorskip("torch")
    from timm.models.swin_transformer import get_relative_position_index

    assert np.array_equal(relative_position_index(window), get_relative_position_index(window, window).numpy())


def test_merged_patches_are_those_of_timm():
    torch = pytest.importorskip("torch")
    from timm.models.swin_transformer import PatchMerging

    tokens = numbered(2, 6 * 4, 3)
    spec = MergePatchesSpec(height=6, width=4, bits=8)
    merged = spec.compute({}, tokens)
    assert merged.shape[1:] == spec.shape(tokens.shape[1:]) == (6, 12)
    layer = PatchMerging(3)
    layer.norm = layer.reduction = torch.nn.Identity()
    expected = layer(torch.from_numpy(tokens).view(2, 6, 4, 3))
    assert np.array_equal(merged, expected.reshape(2, 6, 12).numpy())


@pytest.mark.parametrize("seed", range(4))
def test_biased_scores_are_rounded_once(seed):
    rng = np.random.default_rng(seed)
    heads, window = 2, 3
    spec = WindowBiasSpec(
        heads=heads, window=window, score_bits=8, table_bits=6, output_bits=7, multiplier_bits=12, shift_bits=5,
        offset_bits=20,
    )  # fmt: skip
    multiplier, by = (int(rng.integers(1, 1 << 12)) for _ in range(2))
    offset, shift = int(rng.integers(-(1 << 18), 1 << 18)), int(rng.integers(8, 14))
    scores = rng.integers(0, 256, (2, 4, heads, 9, 9))
    table = rng.integers(0, 64, (1, 25, heads))
    constants = {"multiplier_a": multiplier, "multiplier_b": by, "offset": offset, "shift": shift}
    codes = both(spec, {name: np.array(value) for name, value in constants.items()}, scores, table)
    for b, w, head, query, key in np.ndindex(1, 2, heads, 9, 9):
        down = query // 3 - key // 3 + 2
        right = query % 3 - key % 3 + 2
        total = multiplier * int(scores[b, w, head, query, key]) + by * int(table[0, down * 5 + right, head]) + offset
        assert codes[b, w, head, query, key] == clipped(Fraction(total, 1 << shift), 7)


def masked_rows(fraction_bits, code_bits):
    """Scores of one shifted window behind mask and softmax, and where they are masked."""
    rng = np.random.default_rng(0)
    constants = exponential_constants(0.05)
    offset = -fraction_bits * int(constants["x0"])
    bits = (255 + offset).bit_length()
    mask = ShiftMaskSpec(height=8, width=8, window=4, shift=2, bits=8, output_bits=bits)
    scores = rng.integers(0, 256, (3, 4, 2, 16, 16))
    moved = both(mask, {"offset": np.array(offset)}, scores)
    softmax = LogSoftmaxSpec(
        score_bits=bits, code_bits=code_bits, fraction_bits=fraction_bits, row_length=16,
        polynomial_bits=int(constants["c"]).bit_length(),
    )  # fmt: skip
    masked = np.broadcast_to(shift_mask(8, 8, 4, 2)[:, None], scores.shape)
    return scores, masked, softmax.compute(softmax.check_constants(constants), moved)


def test_a_masked_score_becomes_the_zero_symbol_and_no_other_does_through_the_mask():
    """As in the released code: -100 in float, i-exp clamps it, and the rest of the row does not notice."""
    scores, masked, codes = masked_rows(fraction_bits=30, code_bits=4)
    assert masked.any(axis=(1, 2, 3, 4)).all() and not masked.all(axis=-1).any()
    assert (codes[masked] == 16).all()
    constants = {name: int(value) for name, value in exponential_constants(0.05).items()}
    for index in np.ndindex(scores.shape[:-1]):
        # The procedure of the released code on Python integers, -100 / 0.05 added to what is masked.
        row = scores[index].astype(int) - 2000 * masked[index]
        x = [max(int(k) - int(row.max()), 30 * constants["x0"]) for k in row]
        parts = [(-k // -constants["x0"], k - constants["x0"] * (-k // -constants["x0"])) for k in x]
        e = [(r * (r + constants["b"]) + constants["c"]) << (30 - q) for q, r in parts]
        ratios = [round(Fraction(sum(e), part)) for part in e]
        expected = [n.bit_length() - 1 + (n >> (n.bit_length() - 2) & 1 if n > 1 else 0) for n in ratios]
        assert codes[index].tolist() == [min(code, 16) for code in expected]


def test_too_few_fraction_bits_let_a_masked_score_through():
    """The comparison above can fail: at n = 8 a masked score keeps a code."""
    _, masked, codes = masked_rows(fraction_bits=8, code_bits=4)
    assert (codes[masked] < 16).any()


def test_token_mean_is_rounded_once():
    rng = np.random.default_rng(0)
    spec = TokenMeanSpec(tokens=7, bits=8, requantize=requantizer(16, output_bits=6))
    codes = rng.integers(0, 256, (3, 7, 5))
    result = both(spec, scaling(1234, 15, 3) | {"zero_in": np.array(100)}, codes)
    for b, channel in np.ndindex(3, 5):
        total = sum(int(code) - 100 for code in codes[b, :, channel])
        assert result[b, 0, channel] == clipped(Fraction(1234 * total, 1 << 15) + 3, 6)


def test_kernels_notice_one_changed_constant():
    spec = ShiftMaskSpec(height=8, width=8, window=4, shift=2, bits=8, output_bits=10)
    scores = np.zeros((1, 4, 1, 16, 16), np.uint8)
    right, wrong = ({"offset": np.array(offset, np.uint16)} for offset in (256, 257))
    assert not np.array_equal(spec.compute(right, scores), KERNELS["shift_mask"](spec, wrong)(scores))


WINDOWS = {"height": 8, "width": 8, "window": 4, "shift": 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartitionWindowsSpec(bits=8, **(WINDOWS | {"width": 9})), "8x9 is no multiple of the window 4; padd"),
        (lambda: JoinWindowsSpec(bits=8, **(WINDOWS | {"shift": 4})), r"shift must be below the window \(4\), not 4"),
        (lambda: MergePatchesSpec(height=7, width=8, bits=8), "7x8 does not divide into 2x2 blocks"),
        (lambda: PartitionWindowsSpec(bits=8, **WINDOWS).shape((63, 5)), "63 tokens for a feature map of 8x8"),
        (lambda: JoinWindowsSpec(bits=8, **WINDOWS).shape((4, 9, 5)), "windows of 9 tokens for a unit of 4x4"),
        (lambda: JoinWindowsSpec(bits=8, **WINDOWS).shape((5, 16, 5)), "80 tokens for a feature map of 8x8"),
        (
            lambda: ShiftMaskSpec(bits=8, output_bits=9, **WINDOWS).shape((4, 2, 16, 15)),
            r"scores of shape \(4, 2, 16, 15\) for a feature map of 8x8 in windows of 4x4",
        ),
        (
            lambda: ShiftMaskSpec(bits=8, output_bits=9, **WINDOWS).check_constants({"offset": np.array(300)}),
            "scores reach 555, past 9 bits; widen output_bits or lower offset",
        ),
        (lambda: TokenMeanSpec(tokens=7, bits=8, requantize=requantizer()).shape((8, 5)), "8 tokens for a unit of 7"),
        (
            lambda: TokenMeanSpec(tokens=7, bits=8, requantize=requantizer(10)).check_constants(
                scaling(1, 1) | {"zero_in": np.array(0)}
            ),
            "the accumulator could overflow: sums reach 0..1785",
        ),
        (
            lambda: WindowBiasSpec(
                heads=2, window=3, score_bits=8, table_bits=8, output_bits=8, multiplier_bits=8, shift_bits=4,
                offset_bits=8,
            ).shape((4, 2, 9, 9), (24, 2)),
            r"a table of \(24, 2\) for 2 heads in windows of 3x3",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(HwsimError, match=message):
        make()
