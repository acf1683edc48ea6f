"""Random programs of one attention block, with windows or not: every quantizer of softmax and hidden layer."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from golden.accumulate import signed_bits
from golden.adalog import (
    AdaLogMatmulSpec,
    AdaLogQuantizeSpec,
    adalog_tables,
    adalog_thresholds,
    log_thresholds,
    lossless_guard_bits,
    probability_scale,
)
from golden.adalog_linear import AdaLogLinearSpec
from golden.add import AddSpec
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec
from golden.lookup import LookupSpec
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
from golden.softmax import SoftmaxSpec
from golden.spec import IntFormat, Spec
from golden.token_mean import TokenMeanSpec
from golden.twin import TwinLinearSpec, TwinMatmulSpec, TwinQuantizeSpec
from golden.windows import JoinWindowsSpec, MergePatchesSpec, PartitionWindowsSpec, ShiftMaskSpec, WindowBiasSpec
from hwsim.program import INPUT, Node, Program

ATTENTIONS = ("log2", "adalog", "log_sqrt2", "twin", "uniform")
HIDDEN = ("linear", "asymmetric_linear", "twin_linear", "adalog_linear", "log_sqrt2_linear")
# Their codes have a zero symbol past the last one.
_LOGARITHMIC = ("adalog_linear", "log_sqrt2_linear")
OVERFLOWS = ("prove", "wrap", "saturate")

Arrays = dict[str, np.ndarray]


class _Builder:
    """Nodes of a program, each with random constants."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[Node] = []

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def add(self, name: str, spec: Spec, inputs: tuple[str, ...], constants: Arrays | None = None) -> str:
        self.nodes.append(Node(name, spec, inputs, constants or {}))
        return name

    def requantizer(
        self, largest: int, bits: int, channels: int = 1, overflow: str = "prove", small: int = 0
    ) -> tuple[RequantizeSpec, Arrays]:
        """To codes of `bits` bits, for sums of at most `largest` that mostly are smaller, by `small` bits or more."""
        width = max(2, signed_bits(-largest, largest) - (0 if overflow == "prove" else int(self.rng.integers(0, 6))))
        multiplier_bits = int(self.rng.integers(4, 13))
        shift = min(max(0, width + multiplier_bits - bits - small - int(self.rng.integers(2, 6))), 45)
        spec = RequantizeSpec(
            input=IntFormat(width, signed=True),
            output_bits=bits,
            multiplier_bits=multiplier_bits,
            shift_bits=6,
            channels=channels,
        )
        top = 1 << multiplier_bits
        return spec, {
            "multiplier": self.rng.integers(top // 2, top, channels),
            "shift": np.full(channels, shift),
            "zero_point": np.array(self.rng.integers(0, 1 << bits)),
        }

    def linear(
        self, name: str, source: str, shape: tuple[int, int], bits: tuple[int, int], kind: str = "linear"
    ) -> str:
        """A linear unit of a kind from `shape[0]` features of `bits[0]` bits to `shape[1]` of `bits[1]`."""
        inputs, outputs = shape
        weight_bits, overflow = int(self.rng.integers(2, 9)), self.one_of(*OVERFLOWS)
        reach = 1 << (weight_bits - 1)
        fields = {
            "input_features": inputs,
            "output_features": outputs,
            "weight_bits": weight_bits,
            "bias_bits": 14,
        }
        constants: Arrays = {"bias": self.rng.integers(-500, 500, outputs)}
        channels = self.one_of(1, outputs)
        if kind in ("asymmetric_linear", *_LOGARITHMIC):
            constants |= {
                "weight": self.rng.integers(0, 2 * reach, (outputs, inputs)),
                "zero_weight": self.rng.integers(0, 2 * reach, outputs),
            }
            reach *= 2
        else:
            constants["weight"] = self.rng.integers(-reach, reach, (outputs, inputs))
        if kind == "adalog_linear":
            code_bits = bits[0] - 1
            tables, guard = self.adalog_tables(code_bits)
            spec_of: Any = AdaLogLinearSpec
            largest = inputs * reach * (2 << code_bits + guard) + inputs + 500
            fields |= {"code_bits": code_bits, "guard_bits": guard, "largest_shift": int(self.rng.integers(0, 40))}
            constants |= tables
            overflow = "prove"
        elif kind == "log_sqrt2_linear":
            spec_of, overflow, guard = LogSqrt2LinearSpec, "prove", int(self.rng.integers(0, 8))
            largest = (inputs * reach << guard) + inputs + 500
            fields |= {"code_bits": bits[0] - 1, "guard_bits": guard}
        else:
            shifts = {"shift_negative": np.array(0), "shift_positive": np.array(self.rng.integers(0, 4))}
            spec_of = {"linear": LinearSpec, "twin_linear": TwinLinearSpec}.get(kind, AsymmetricLinearSpec)
            constants |= shifts if kind == "twin_linear" else {}
            largest = inputs * reach * (8 << bits[0]) + 500
            fraction = int(self.one_of(0, 0, 2, 5))
            largest = (largest << fraction) + 500
            fields |= {"input_bits": bits[0], "overflow": overflow, "bias_fraction_bits": fraction}
        requantize, more = self.requantizer(largest, bits[1], channels, overflow)
        if kind == "log_sqrt2_linear":
            more["multiplier_odd"] = self.rng.integers(0, 1 << requantize.multiplier_bits, channels)
        return self.add(name, spec_of(**fields, requantize=requantize), (source,), constants | more)

    def sum(self, name: str, inputs: tuple[str, str], channels: int, bits: int) -> str:
        """A residual sum of codes of `bits` bits, to 8."""
        spec = AddSpec(
            channels=channels, a_bits=bits, b_bits=bits, output_bits=8, multiplier_bits=12, shift_bits=5, offset_bits=24
        )
        constants = {
            "multiplier_a": self.rng.integers(0, 1 << 12, channels),
            "multiplier_b": self.rng.integers(0, 1 << 12, channels),
            "offset": self.rng.integers(-(1 << 12), 1 << 14, channels),
            "shift": np.full(channels, max(0, 12 + bits - 8)),
        }
        return self.add(name, spec, inputs, constants)

    def constant(self, name: str, rows: int, columns: int, bits: int) -> str:
        value = self.rng.integers(0, 1 << bits, (rows, columns))
        return self.add(name, ConstantSpec(rows=rows, columns=columns, bits=bits), (), {"value": value})

    def adalog_tables(self, code_bits: int) -> tuple[Arrays, int]:
        """Tables of a random base, and guard bits that cut nothing, or something."""
        q = int(self.rng.integers(10, 60))
        shift, mantissa = adalog_tables(code_bits, q)
        lossless = lossless_guard_bits(code_bits, q)
        guard = int(self.one_of(lossless, int(self.rng.integers(0, lossless + 1))))
        return {"shift_table": shift, "mantissa_table": mantissa}, guard

    def layernorm(self, name: str, source: str, channels: int, bits: tuple[int, int]) -> str:
        spec = LayerNormSpec(
            channels=channels,
            input_bits=bits[0],
            output_bits=bits[1],
            alpha_bits=2,
            mantissa_bits=12,
            radicand_bits=16,
            gamma_bits=12,
            beta_bits=20,
        )
        constants = {
            "zero_in": np.array(self.rng.integers(0, 1 << bits[0])),
            "alpha": self.rng.integers(0, 4, channels),
            "gamma": self.rng.integers(-(2 << bits[1]), 2 << bits[1], channels),
            "beta": self.rng.integers(0, 1 << bits[1] + 3, channels),
            "fraction_bits": np.array(3),
        }
        return self.add(name, spec, (source,), constants)

    def zero_points(self, source: str, bits: int, heads: int) -> np.ndarray:
        """Near that of the codes of a node, or anywhere where it has none, one for all heads or one each."""
        shape = None if heads == 1 else heads
        given = [int(node.constants["zero_point"]) for node in self.nodes if node.name == source]
        if not given or self.rng.random() < 0.2:
            return np.array(self.rng.integers(0, 1 << bits, shape))
        return np.array(np.clip(given[0] + self.rng.integers(-3, 4, shape), 0, (1 << bits) - 1))

    def weigh(
        self, kind: str, scores: str, values: str, score_bits: int, value_bits: int, tokens: int, heads: int
    ) -> str:
        """Softmax of a kind and its product with the values."""
        rng = self.rng
        constants = exponential_constants(float(rng.choice([0.01, 0.0625, 0.25, 0.9])))
        widths: dict[str, int] = {
            "score_bits": score_bits,
            "fraction_bits": int(rng.integers(2, 16)),
            "row_length": tokens,
            "polynomial_bits": int(constants["c"]).bit_length(),
        }
        common = {"value_bits": value_bits, "row_length": tokens, "heads": heads}
        zero = {"zero_v": self.zero_points("qkv", value_bits, heads)}
        code_bits, largest = int(rng.integers(2, 6)), tokens << value_bits + 2
        if kind == "log2":
            beyond = self.one_of("zero", "saturate")
            self.add("codes", LogSoftmaxSpec(code_bits=code_bits, beyond=beyond, **widths), (scores,), constants)
            largest = ((3 << (1 << code_bits)) + tokens) << value_bits
            requantize, more = self.requantizer(largest, 8, heads, small=3)
            spec: Spec = Log2MatmulSpec(code_bits=code_bits, beyond=beyond, requantize=requantize, **common)
            return self.add("context", spec, ("codes", values), zero | more)
        probability_bits = int(rng.integers(8, 17))
        self.add("softmax", SoftmaxSpec(probability_bits=probability_bits, **widths), (scores,), constants)
        if kind == "uniform":
            bits = int(rng.integers(2, 9))
            requantize, more = self.requantizer(1 << probability_bits, bits, small=2)
            requantize = RequantizeSpec(
                input=IntFormat(probability_bits + 1),
                output_bits=bits,
                multiplier_bits=requantize.multiplier_bits,
                shift_bits=6,
                channels=1,
            )
            self.add("codes", requantize, ("softmax",), more)
            overflow = self.one_of(*OVERFLOWS)
            requantize, more = self.requantizer(tokens << bits + value_bits + 2, 8, heads, overflow, small=4)
            spec = MatmulSpec(
                a_bits=bits, b_bits=value_bits, inner=tokens, overflow=overflow, heads=heads, requantize=requantize
            )
            more |= {"zero_a": self.zero_points("codes", bits, heads), "zero_b": zero["zero_v"]}
            return self.add("context", spec, ("codes", values), more)
        if kind == "twin":
            shift = int(rng.integers(0, 8))
            self.add(
                "codes",
                TwinQuantizeSpec(probability_bits=probability_bits, code_bits=code_bits),
                ("softmax",),
                {"shift": np.array(shift)},
            )
            requantize, more = self.requantizer(largest << code_bits + shift, 8, heads, small=4)
            spec = TwinMatmulSpec(code_bits=code_bits, requantize=requantize, **common)
            return self.add("context", spec, ("codes", values), zero | more | {"range_shift": np.array(shift)})
        code_bits = min(code_bits, 4)
        quantizer = AdaLogQuantizeSpec(input_bits=probability_bits + 1, code_bits=code_bits)
        scale = probability_scale(probability_bits)
        if kind == "adalog":
            tables, guard = self.adalog_tables(code_bits)
            thresholds = adalog_thresholds(code_bits, int(rng.integers(10, 60)), scale)
            requantize, more = self.requantizer(largest << code_bits + 1 + guard, 8, heads, small=4)
            spec = AdaLogMatmulSpec(
                code_bits=code_bits,
                guard_bits=guard,
                largest_shift=int(rng.integers(0, 40)),
                requantize=requantize,
                **common,
            )
            more |= tables
        else:
            guard = int(rng.integers(0, 8))
            thresholds = log_thresholds(code_bits, Fraction(1, 2), scale)
            requantize, more = self.requantizer(largest << guard, 8, heads, small=4)
            spec = LogSqrt2MatmulSpec(code_bits=code_bits, guard_bits=guard, requantize=requantize, **common)
            more["multiplier_odd"] = rng.integers(0, 1 << requantize.multiplier_bits, heads)
        self.add("codes", quantizer, ("softmax",), {"thresholds": thresholds})
        return self.add("context", spec, ("codes", values), zero | more)


def random_program(seed: int, attention: str, hidden: str) -> Program:
    """A program of one block with random sizes, widths and constants.

    Parameters
    ----------
    seed : int
    attention : one of `ATTENTIONS`
    hidden : one of `HIDDEN`
        The unit behind the hidden layer's function.
    """
    build = _Builder(np.random.default_rng(seed))
    rng = build.rng
    side, heads, depth, colours = (
        build.one_of(4, 6, 8),
        build.one_of(1, 2, 3),
        int(rng.integers(1, 12)),
        build.one_of(1, 3),
    )
    tokens, channels = (side // 2) ** 2, heads * depth
    pixel_bits, bits, value_bits = (int(rng.integers(2, 10)) for _ in range(3))
    score_bits, per_head = int(rng.integers(2, 10)), build.one_of(1, heads)
    build.add(
        "image",
        LookupSpec(input_bits=8, output_bits=pixel_bits, channels=colours),
        (INPUT,),
        {"table": rng.integers(0, 1 << pixel_bits, (colours, 256))},
    )
    build.add("patches", PatchesSpec(size=2, bits=pixel_bits), ("image",))
    build.linear("embed", "patches", (4 * colours, channels), (pixel_bits, bits))
    build.layernorm("norm1", "embed", channels, (bits, bits))
    build.linear("qkv", "norm1", (channels, 3 * channels), (bits, value_bits))
    for part, name in enumerate(("q", "k", "v")):
        build.add(name, SplitHeadsSpec(heads=heads, part=part, parts=3, bits=value_bits), ("qkv",))
    build.add("k_transposed", TransposeSpec(bits=value_bits), ("k",))
    overflow = build.one_of(*OVERFLOWS)
    requantize, more = build.requantizer(depth << 2 * value_bits + 2, score_bits, per_head, overflow, small=4)
    spec = MatmulSpec(
        a_bits=value_bits, b_bits=value_bits, inner=depth, overflow=overflow, heads=per_head, requantize=requantize
    )
    more |= {name: build.zero_points("qkv", value_bits, per_head) for name in ("zero_a", "zero_b")}
    build.add("scores", spec, ("q", "k_transposed"), more)
    build.weigh(attention, "scores", "v", score_bits, value_bits, tokens, per_head)
    build.add("merge", MergeHeadsSpec(bits=8), ("context",))
    build.linear("proj", "merge", (channels, channels), (8, bits))
    build.sum("sum", ("embed", "proj"), channels, bits)
    build.layernorm("norm2", "sum", channels, (8, bits))
    wide = int(rng.integers(2, 13))
    code_bits = int(rng.integers(3, 6)) if hidden in _LOGARITHMIC else int(rng.integers(2, 10))
    build.linear("hidden", "norm2", (channels, 2 * channels), (bits, wide))
    top = (1 << (code_bits - 1)) + 1 if hidden in _LOGARITHMIC else 1 << code_bits
    build.add(
        "function",
        LookupSpec(input_bits=wide, output_bits=code_bits, channels=1),
        ("hidden",),
        {"table": rng.integers(0, top, (1, 1 << wide))},
    )
    build.linear("fc2", "function", (2 * channels, channels), (code_bits, 8), hidden)
    build.add("token", TakeTokenSpec(index=0, count=1, bits=8), ("fc2",))
    build.linear("head", "token", (channels, 5), (8, 8))
    return Program(tuple(build.nodes), (side, side, colours), {"network": "random", "recipe": f"{attention}, {hidden}"})


def random_window_program(seed: int, attention: str) -> Program:
    """A program of one block of shifted windows with random sizes, widths and constants.

    What else only some networks have is there too: position embedding, IRM, patch merging, class token, token mean.

    Parameters
    ----------
    seed : int
    attention : one of `ATTENTIONS`
    """
    build = _Builder(np.random.default_rng(seed))
    rng = build.rng
    window, heads, depth = build.one_of(2, 3), build.one_of(1, 2, 3), int(rng.integers(2, 12))
    side, channels, length = 2 * window, heads * depth, window**2
    bits, value_bits, score_bits = (int(rng.integers(3, 10)) for _ in range(3))
    place = {"height": side, "width": side, "window": window, "shift": int(rng.integers(1, window))}
    build.add("patches", PatchesSpec(size=2, bits=8), (INPUT,))
    build.linear("embed", "patches", (12, channels), (8, bits))
    build.constant("position", side**2, channels, bits)
    build.sum("tokens", ("embed", "position"), channels, bits)
    build.layernorm("norm1", "tokens", channels, (8, bits))
    build.add("windows", PartitionWindowsSpec(bits=bits, **place), ("norm1",))
    build.linear("qkv", "windows", (channels, 3 * channels), (bits, value_bits))
    for part, name in enumerate(("q", "k", "v")):
        build.add(name, SplitHeadsSpec(heads=heads, part=part, parts=3, bits=value_bits), ("qkv",))
    build.layernorm("irm", "q", depth, (value_bits, value_bits))
    build.add("k_transposed", TransposeSpec(bits=value_bits), ("k",))
    per_head = build.one_of(1, heads)
    requantize, more = build.requantizer(depth << 2 * value_bits + 2, score_bits, per_head, small=4)
    matmul = MatmulSpec(a_bits=value_bits, b_bits=value_bits, inner=depth, heads=per_head, requantize=requantize)
    more |= {name: build.zero_points("qkv", value_bits, per_head) for name in ("zero_a", "zero_b")}
    build.add("scores", matmul, ("irm", "k_transposed"), more)
    build.constant("bias_table", (2 * window - 1) ** 2, heads, bits)
    bias = WindowBiasSpec(
        heads=heads,
        window=window,
        score_bits=score_bits,
        table_bits=bits,
        output_bits=score_bits,
        multiplier_bits=12,
        shift_bits=5,
        offset_bits=24,
    )
    constants = {
        "multiplier_a": np.array(rng.integers(1 << 11, 1 << 12)),
        "multiplier_b": np.array(rng.integers(0, 1 << max(2, 12 + score_bits - bits - 1))) % (1 << 12),
        "offset": np.array(rng.integers(-(1 << 10), 1 << 12)),
        "shift": np.array(12),
    }
    build.add("biased", bias, ("scores", "bias_table"), constants)
    wider = score_bits + 2
    mask = ShiftMaskSpec(bits=score_bits, output_bits=wider, **place)
    build.add("masked", mask, ("biased",), {"offset": np.array(rng.integers(0, 3 << score_bits))})
    build.weigh(attention, "masked", "v", wider, value_bits, length, per_head)
    build.add("merge", MergeHeadsSpec(bits=8), ("context",))
    build.linear("proj", "merge", (channels, channels), (8, 8))
    build.add("joined", JoinWindowsSpec(bits=8, **place), ("proj",))
    build.sum("sum", ("tokens", "joined"), channels, 8)
    build.add("merged", MergePatchesSpec(height=side, width=side, bits=8), ("sum",))
    build.linear("reduced", "merged", (4 * channels, channels), (8, 8))
    build.constant("class", 1, channels, 8)
    build.add("all", ConcatSpec(bits=8), ("class", "reduced"))
    count = length + 1
    requantize, more = build.requantizer(count << 9, 8)
    mean = TokenMeanSpec(tokens=count, bits=8, requantize=requantize)
    build.add("mean", mean, ("all",), more | {"zero_in": np.array(rng.integers(0, 100))})
    build.add("pair", TakeTokenSpec(index=1, count=2, bits=8), ("all",))
    build.add("pair_joined", JoinTokensSpec(bits=8), ("pair",))
    build.linear("head_pair", "pair_joined", (2 * channels, 5), (8, 8))
    build.linear("head_mean", "mean", (channels, 5), (8, 8))
    build.sum("head", ("head_pair", "head_mean"), 5, 8)
    return Program(
        tuple(build.nodes), (2 * side, 2 * side, 3), {"network": "random", "recipe": f"windows, {attention}"}
    )
