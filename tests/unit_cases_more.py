"""Random units of the kinds that `unit_cases` leaves out: tables and data movement of Swin, of the class token, of IRM.

numba runs some of them by the reference itself, so that only the GPU's operations are compared on all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from unit_cases import Case, layernorm, requantizer

from golden.adalog import AdaLogDecodeSpec, adalog_tables
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.matmul import MatmulSpec
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
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from golden.token_mean import TokenMeanSpec
from golden.windows import JoinWindowsSpec, MergePatchesSpec, PartitionWindowsSpec, ShiftMaskSpec, WindowBiasSpec


def _codes(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape)


def _bits(rng: np.random.Generator) -> int:
    """Any width that codes are kept in differently."""
    return int(rng.choice([1, 4, 7, 8, 9, 12, 15, 16]))


def _windows(rng: np.random.Generator) -> dict[str, int]:
    window = int(rng.integers(2, 5))
    down, right = (int(count) for count in rng.integers(1, 4, 2))
    return {"height": down * window, "width": right * window, "window": window, "shift": int(rng.integers(1, window))}


def narrow_accumulator(rng: np.random.Generator, kind: str) -> Case:
    """A linear unit whose accumulator wraps at exactly 32 bits, the width of the kernel's sums.

    Sums lie about the edges of the accumulator, which the bias alone may pass several times.
    """
    inputs, outputs = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    bits, channels = int(rng.integers(4, 9)), outputs if rng.random() < 0.5 else 1
    requantize = RequantizeSpec(
        input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=channels
    )
    # A fraction of 2^-25 or so: the whole accumulator becomes the whole range of codes.
    shift = 31 if rng.random() < 0.5 else 24
    edge = rng.choice([-(1 << 32), -(1 << 31), 0, 1 << 31, 1 << 32, 3 << 32], outputs)
    constants = {
        "bias": edge + rng.integers(-(1 << 16), 1 << 16, outputs),
        "multiplier": rng.integers(64, 256, channels),
        "shift": np.full(channels, shift),
        "zero_point": np.array(rng.integers(60, 200)),
    }
    fields = {
        "input_features": inputs,
        "output_features": outputs,
        "input_bits": bits,
        "weight_bits": 8,
        "bias_bits": 40,
        "overflow": "wrap",
        "requantize": requantize,
    }
    codes = _codes(rng, bits, 2, 7, inputs)
    if kind == "linear":
        return LinearSpec(**fields), constants | {"weight": rng.integers(-128, 128, (outputs, inputs))}, (codes,)
    weights = {"weight": rng.integers(0, 128, (outputs, inputs)), "zero_weight": rng.integers(0, 128, outputs)}
    return AsymmetricLinearSpec(**fields), constants | weights, (codes,)


def long_row(rng: np.random.Generator, kind: str) -> Case:
    """A wrapping sum of so many products of bytes that a digit's sum alone passes 32 bits."""
    inner = (1 << 17) + 40
    requantize, constants = requantizer(rng, 32)
    # Products of one sign only.
    a = np.full((1, 2, inner), 0) + rng.integers(0, 2, (1, 2, inner))
    if kind == "linear":
        linear = LinearSpec(
            input_features=inner,
            output_features=2,
            input_bits=8,
            weight_bits=8,
            bias_bits=14,
            overflow="wrap",
            requantize=requantize,
        )
        return linear, constants | {"weight": np.full((2, inner), -128), "bias": np.array([1, 2])}, (a,)
    matmul = MatmulSpec(a_bits=8, b_bits=8, inner=inner, overflow="wrap", requantize=requantize)
    zeros = {"zero_a": np.array(0), "zero_b": np.array(0)}
    return matmul, constants | zeros, (a, rng.integers(0, 2, (1, inner, 2)))


def requantize(rng: np.random.Generator) -> Case:
    """Codes of another unit: unsigned and narrow (a table), a multiplier a channel, or wide."""
    channels, bits = int(rng.choice([1, 5])), int(rng.choice([6, 8, 16, 17, 18, 24, 30]))
    spec, constants = requantizer(rng, bits, channels)
    unsigned = RequantizeSpec(**{**_fields(spec), "input": IntFormat(bits)})
    return unsigned, constants, (_codes(rng, bits, 2, 3, 5),)


def _fields(spec: RequantizeSpec) -> dict[str, int | IntFormat]:
    return {
        "input": spec.input,
        "output_bits": spec.output_bits,
        "multiplier_bits": spec.multiplier_bits,
        "shift_bits": spec.shift_bits,
        "channels": spec.channels,
    }


def adalog_decode(rng: np.random.Generator) -> Case:
    code_bits = int(rng.integers(2, 8))
    shift, mantissa = adalog_tables(code_bits, int(rng.integers(10, 60)))
    spec = AdaLogDecodeSpec(
        code_bits=code_bits, guard_bits=int(rng.integers(0, 23)), largest_shift=int(rng.integers(0, 40))
    )
    codes = rng.integers(0, (1 << code_bits) + 1, (2, 3, 40))
    return spec, {"shift_table": shift, "mantissa_table": mantissa}, (codes,)


def layernorm_of_heads(rng: np.random.Generator) -> Case:
    """Q-ViT's IRM: rows are the channels of a head, codes have up to 16 bits."""
    spec, constants, _ = layernorm(rng)
    assert isinstance(spec, LayerNormSpec)
    bits = int(rng.integers(9, 17))
    wide = LayerNormSpec(
        channels=spec.channels,
        input_bits=bits,
        output_bits=spec.output_bits,
        alpha_bits=0,
        mantissa_bits=10,
        radicand_bits=16,
        gamma_bits=10,
        beta_bits=20,
    )
    constants |= {
        "zero_in": np.array(rng.integers(0, 1 << bits)),
        "alpha": np.zeros(spec.channels, np.int64),
        "gamma": rng.integers(-512, 512, spec.channels),
        "beta": rng.integers(-(1 << 15), 1 << 15, spec.channels),
        "fraction_bits": np.array(rng.integers(0, 8)),
    }
    return wide, constants, (_codes(rng, bits, 2, 3, 5, spec.channels),)


def token_mean(rng: np.random.Generator) -> Case:
    bits, tokens = _bits(rng), int(rng.integers(1, 70))
    wide = bits + 2 + tokens.bit_length()
    requantize, constants = requantizer(rng, wide)
    # Sums of the whole range onto all codes.
    down = bits + tokens.bit_length() + requantize.multiplier_bits - requantize.output_bits - 1
    constants |= {
        "multiplier": np.array([(1 << requantize.multiplier_bits) - 1]),
        "shift": np.array([max(0, down)]),
        "zero_point": np.array(0),
        "zero_in": np.array(rng.integers(-(1 << bits) // 8, (1 << bits) // 8 + 1)),
    }
    spec = TokenMeanSpec(tokens=tokens, bits=bits, requantize=requantize)
    return spec, constants, (_codes(rng, bits, 3, tokens, int(rng.integers(1, 20))),)


def window_bias(rng: np.random.Generator) -> Case:
    heads, window, bits, table_bits = int(rng.integers(1, 4)), int(rng.integers(1, 5)), _bits(rng), _bits(rng)
    spec = WindowBiasSpec(
        heads=heads,
        window=window,
        score_bits=bits,
        table_bits=table_bits,
        output_bits=_bits(rng),
        multiplier_bits=16,
        shift_bits=5,
        offset_bits=30,
    )
    # The larger of both terms onto all codes.
    shift = max(0, 16 + max(bits, table_bits) - spec.output_bits - int(rng.integers(0, 3)))
    constants = {
        "multiplier_a": np.array(rng.integers(1 << 12, 1 << 16)),
        "multiplier_b": np.array(rng.integers(1 << 12, 1 << 16)),
        "offset": np.array(rng.integers(-(1 << 14), 1 << 14)),
        "shift": np.array(min(shift, 31)),
    }
    length = window**2
    scores = _codes(rng, bits, 2, 3, heads, length, length)
    return spec, constants, (scores, _codes(rng, table_bits, 1, (2 * window - 1) ** 2, heads))


def mask_of_shift(rng: np.random.Generator) -> Case:
    place, bits = _windows(rng), int(rng.integers(1, 12))
    output_bits = bits + int(rng.integers(1, 5))
    offset = int(rng.integers(0, (1 << output_bits) - (1 << bits) + 1))
    spec = ShiftMaskSpec(bits=bits, output_bits=output_bits, **place)
    length = place["window"] ** 2
    windows = place["height"] * place["width"] // length
    return spec, {"offset": np.array(offset)}, (_codes(rng, bits, 2, windows, 2, length, length),)


def partition_windows(rng: np.random.Generator) -> Case:
    place, bits = _windows(rng), _bits(rng)
    spec = PartitionWindowsSpec(bits=bits, **place)
    return spec, {}, (_codes(rng, bits, 2, place["height"] * place["width"], 5),)


def join_windows(rng: np.random.Generator) -> Case:
    place, bits = _windows(rng), _bits(rng)
    length = place["window"] ** 2
    spec = JoinWindowsSpec(bits=bits, **place)
    return spec, {}, (_codes(rng, bits, 2, place["height"] * place["width"] // length, length, 5),)


def merge_patches(rng: np.random.Generator) -> Case:
    bits, height, width = _bits(rng), *(2 * int(side) for side in rng.integers(1, 5, 2))
    return MergePatchesSpec(height=height, width=width, bits=bits), {}, (_codes(rng, bits, 2, height * width, 3),)


def patches(rng: np.random.Generator) -> Case:
    bits, size = _bits(rng), int(rng.integers(1, 4))
    return PatchesSpec(size=size, bits=bits), {}, (_codes(rng, bits, 2, 2 * size, 3 * size, 3),)


def split_heads(rng: np.random.Generator) -> Case:
    bits, heads, parts = _bits(rng), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    spec = SplitHeadsSpec(heads=heads, part=int(rng.integers(parts)), parts=parts, bits=bits)
    return spec, {}, (_codes(rng, bits, 2, 3, 4, parts * heads * 5),)


def merge_heads(rng: np.random.Generator) -> Case:
    bits = _bits(rng)
    return MergeHeadsSpec(bits=bits), {}, (_codes(rng, bits, 2, 3, 4, 5, 6),)


def transpose(rng: np.random.Generator) -> Case:
    bits = _bits(rng)
    return TransposeSpec(bits=bits), {}, (_codes(rng, bits, 2, 3, 4, 5),)


def take_token(rng: np.random.Generator) -> Case:
    bits, index = _bits(rng), int(rng.integers(0, 5))
    spec = TakeTokenSpec(index=index, count=int(rng.integers(1, 7 - index)), bits=bits)
    return spec, {}, (_codes(rng, bits, 3, 6, 5),)


def join_tokens(rng: np.random.Generator) -> Case:
    bits = _bits(rng)
    return JoinTokensSpec(bits=bits), {}, (_codes(rng, bits, 3, int(rng.integers(1, 6)), 5),)


def constant(rng: np.random.Generator) -> Case:
    bits, rows, columns = _bits(rng), int(rng.integers(1, 6)), int(rng.integers(1, 20))
    return ConstantSpec(rows=rows, columns=columns, bits=bits), {"value": _codes(rng, bits, rows, columns)}, ()


def concat(rng: np.random.Generator) -> Case:
    """Tokens of every image behind those of one, or before."""
    bits, batch = _bits(rng), [1, 3]
    rng.shuffle(batch)
    parts = [_codes(rng, bits, images, int(rng.integers(1, 4)), 5) for images in batch]
    return ConcatSpec(bits=bits), {}, tuple(parts)


MORE_MAKERS: dict[str, Callable[[np.random.Generator], Case]] = {
    "linear wrapping at 32 bits": lambda rng: narrow_accumulator(rng, "linear"),
    "asymmetric_linear wrapping at 32 bits": lambda rng: narrow_accumulator(rng, "asymmetric_linear"),
    "requantize": requantize,
    "adalog_decode": adalog_decode,
    "layernorm of heads": layernorm_of_heads,
    "token_mean": token_mean,
    "window_bias": window_bias,
    "shift_mask": mask_of_shift,
    "partition_windows": partition_windows,
    "join_windows": join_windows,
    "merge_patches": merge_patches,
    "patches": patches,
    "split_heads": split_heads,
    "merge_heads": merge_heads,
    "transpose": transpose,
    "take_token": take_token,
    "join_tokens": join_tokens,
    "constant": constant,
    "concat": concat,
}
# Too long for the interpreter: minutes.
LONG_MAKERS: dict[str, Callable[[np.random.Generator], Case]] = {
    "linear over long rows": lambda rng: long_row(rng, "linear"),
    "matmul over long rows": lambda rng: long_row(rng, "matmul"),
}
