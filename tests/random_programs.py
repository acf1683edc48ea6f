"""Random programs of one attention block, with windows or not: every quantizer of softmax and hidden layer.

What a unit gives must depend on all of its bits. So a program runs by the reference while it is made, and every scale,
shift and zero point, and every accumulator that wraps or saturates, follows from the sums that a few images make.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from golden.accumulate import OVERFLOW, signed_bits
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
from golden.asymmetric_linear import AsymmetricLinearSpec, centred_weights
from golden.errors import HwsimError
from golden.heads import head_axis
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import WIDEST_SCORE, LogSoftmaxSpec, exponential_constants
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec, parity_sums
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
from hwsim.execute import Executor
from hwsim.program import INPUT, Node, Program

ATTENTIONS = ("log2", "adalog", "log_sqrt2", "twin", "uniform")
HIDDEN = ("linear", "asymmetric_linear", "twin_linear", "adalog_linear", "log_sqrt2_linear")
# Of any codes, and with any overflow.
_LINEAR: dict[str, type[LinearSpec]] = {
    "linear": LinearSpec,
    "asymmetric_linear": AsymmetricLinearSpec,
    "twin_linear": TwinLinearSpec,
}
# Their codes have a zero symbol past the last one.
_LOGARITHMIC = ("adalog_linear", "log_sqrt2_linear")

# Fixed, so that what the programs reach can be counted: see tests/test_execute_programs.py.
GLOBAL_SEEDS, WINDOW_SEEDS = range(12), range(6)
# One program of every attention, in Triton's interpreter; two on a GPU.
INTERPRETER_SEEDS, GPU_SEEDS = range(40, 45), range(10)

Arrays = dict[str, np.ndarray]


class _Builder:
    """Nodes of a program, each with random constants that suit the codes that come in.

    Parameters
    ----------
    seed : int or tuple of int
    image_size : tuple of int
    widest : int
        Bits that no code exceeds, but for those of probabilities and scores.
    """

    def __init__(self, rng: np.random.Generator, image_size: tuple[int, int, int], widest: int) -> None:
        self.rng, self.widest = rng, widest
        self.nodes: list[Node] = []
        self.codes: Arrays = {INPUT: rng.integers(0, 256, (2, *image_size), dtype=np.uint8)}

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def any(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def width(self, low: int, usual: int, widest: int) -> int:
        """Mostly one of the usual ones, now and then a wider one."""
        usual, widest = min(usual, self.widest), min(widest, self.widest)
        return self.any(usual + 1, widest) if self.rng.random() < 0.2 and usual < widest else self.any(low, usual)

    def add(self, name: str, spec: Spec, inputs: tuple[str, ...], constants: Arrays | None = None) -> str:
        node = Node(name, spec, inputs, spec.check_constants(constants or {}, name))
        self.nodes.append(node)
        self.codes[name] = spec.compute(node.constants, *(self.codes[name] for name in inputs))
        return name

    def scale(self, sums: np.ndarray, bits: int, widest: int, channels: int) -> tuple[int, Arrays]:
        """Width of a multiplier of at most `widest` bits, and constants that spread sums over the codes.

        The channels of the sums are on their last axis.
        """
        columns = sums.reshape(-1, channels).astype(float)
        low, high = np.quantile(columns, [0.05, 0.95], axis=0)
        middle = (low + high) / 2
        spread = np.maximum(high - low, max((high.max() - low.min()) / 64, 1))
        top = float(1 << bits)
        # A sum far from zero needs a zero point that has no more than one bit besides those of the codes.
        wanted = np.minimum(top * 2 ** self.rng.uniform(-1, 0.7, channels) / spread, 1.3 * top / (abs(middle) + 1))
        multiplier_bits = self.any(1, min(31, widest))
        multiplier = self.rng.integers((1 << multiplier_bits) >> 1, 1 << multiplier_bits, channels)
        shift = np.clip(np.round(np.log2(multiplier / wanted)), 0, 61 - bits).astype(int)
        zero = np.median(top / 2 - middle * np.ldexp(multiplier.astype(float), -shift))
        zero += top / 8 * self.rng.uniform(-1, 1)
        return multiplier_bits, {
            "multiplier": multiplier,
            "shift": shift,
            "zero_point": np.array(int(np.clip(zero, -top, top - 1))),
        }

    def product(
        self, name: str, kind: Any, fields: dict[str, Any], inputs: tuple[str, ...], constants: Arrays, bits: int,
        channels: int = 1, overflow: str = "prove",
    ) -> str:  # fmt: skip
        """A unit that requantizes sums to codes of `bits` bits, its bias chosen here if it has one."""
        loose = RequantizeSpec(
            input=IntFormat(60, signed=True), output_bits=bits, multiplier_bits=1, shift_bits=6, channels=channels
        )
        none = {"multiplier": np.ones(channels, int), "shift": np.zeros(channels, int), "zero_point": np.array(0)}
        codes = [self.codes[name] for name in inputs]
        biased, widest_bias = "output_features" in fields, 40 if issubclass(kind, LinearSpec) else 62
        if biased:
            fields, constants = (
                fields | {"bias_bits": widest_bias},
                constants | {"bias": np.zeros(fields["output_features"], int)},
            )
        spec = kind(**fields, requantize=loose)
        sums = sums_of(spec, none | constants, codes)
        if biased:
            low, high = np.quantile(sums, [0.05, 0.95], axis=tuple(range(sums.ndim - 1)))
            # What is left of the middle is for the zero point, which then often lies outside the codes.
            left = self.rng.uniform(-2, 2) + self.rng.uniform(-0.1, 0.1, len(low))
            constants["bias"] = (left * max(1, (high - low).mean()) - (low + high) / 2).astype(int)
            needed = signed_bits(int(constants["bias"].min()), int(constants["bias"].max()))
            spec = dataclasses.replace(spec, bias_bits=min(widest_bias, needed + self.any(0, 3)))
            sums = sums_of(spec, none | constants, codes)
        if overflow == "prove":
            width = signed_bits(*spec.bounds(none | constants)) + self.any(0, 2)
        else:
            width = max(2, signed_bits(int(sums.min()), int(sums.max())) - self.one_of(-1, 1, 1, 2, 3, 4))
            narrow = dataclasses.replace(loose, input=IntFormat(width, signed=True))
            spec = dataclasses.replace(spec, overflow=overflow, requantize=narrow)
            sums = sums_of(spec, none | constants, codes)
        if channels > 1 and not biased:
            sums = sums.swapaxes(-3, -1)
        multiplier_bits, more = self.scale(sums, bits, 60 - width, channels)
        if "multiplier_odd" in spec.constants:
            more["multiplier_odd"] = (more["multiplier"] * self.rng.uniform(0.4, 1, channels)).astype(int)
        requantize = dataclasses.replace(loose, input=IntFormat(width, signed=True), multiplier_bits=multiplier_bits)
        return self.add(name, dataclasses.replace(spec, requantize=requantize), inputs, constants | more)

    def linear(
        self, name: str, source: str, shape: tuple[int, int], bits: tuple[int, int], kind: str | None = None
    ) -> str:
        """A linear unit of `shape[0]` features of `bits[0]` bits to `shape[1]` of `bits[1]`, by default of any kind."""
        kind = kind or self.one_of(*_LINEAR)
        inputs, outputs = shape
        weight_bits = self.width(1, 8, 15)
        fields: dict[str, Any] = {
            "input_features": inputs,
            "output_features": outputs,
            "weight_bits": weight_bits,
        }
        channels = self.one_of(1, outputs)
        if kind in ("linear", "twin_linear"):
            reach = 1 << (weight_bits - 1)
            constants: Arrays = {"weight": self.rng.integers(-reach, reach, (outputs, inputs))}
        else:
            constants = {
                "weight": self.rng.integers(0, 1 << weight_bits, (outputs, inputs)),
                "zero_weight": self.rng.integers(0, 1 << weight_bits, outputs),
            }
        if kind in _LINEAR:
            fields |= {"input_bits": bits[0], "bias_fraction_bits": self.one_of(0, 0, self.any(1, 5))}
            if kind == "twin_linear":
                shifts = [0, self.any(0, 4)]
                self.rng.shuffle(shifts)
                constants |= dict(zip(("shift_negative", "shift_positive"), map(np.array, shifts), strict=True))
            overflow = self.one_of(*OVERFLOW)
            return self.product(name, _LINEAR[kind], fields, (source,), constants, bits[1], channels, overflow)
        code_bits = fields["code_bits"] = bits[0] - 1
        if kind == "adalog_linear":
            tables, guard = self.adalog_tables(code_bits, self.any(10, 60), 40 - weight_bits - inputs.bit_length())
            fields |= {"guard_bits": guard, "largest_shift": self.any(0, 63)}
            return self.product(name, AdaLogLinearSpec, fields, (source,), constants | tables, bits[1], channels)
        fields["guard_bits"] = self.any(0, 12)
        return self.product(name, LogSqrt2LinearSpec, fields, (source,), constants, bits[1], channels)

    def blend(self, a: np.ndarray, b: np.ndarray, bits: int, channels: int) -> tuple[dict[str, int], Arrays]:
        """Widths and constants of a sum of two codes, to codes of `bits` bits, both of weight."""
        multiplier_bits = self.any(4, 31)
        top = 1 << multiplier_bits
        shape = (channels,) if channels else ()
        reach = [max(1.0, float(np.quantile(codes, 0.95) - np.quantile(codes, 0.05))) for codes in (a, b)]
        share = 2 ** self.rng.uniform(-1, 1, (2, *shape)) / np.array(reach).reshape(2, *(1 for _ in shape))
        unit = top * self.rng.uniform(0.5, 0.99) / share.max()
        multipliers = (share * unit).astype(np.int64)
        # Both together reach 2 to 4 units.
        shift = np.clip(math.log2(unit) - bits + self.rng.integers(1, 3, shape), 0, 63).astype(int)
        middle = multipliers[0] * np.median(a) + multipliers[1] * np.median(b)
        offset = np.ldexp(self.rng.uniform(0.3, 0.7, shape), shift + bits) - middle
        offset = offset.astype(np.int64)
        widths = {
            "multiplier_bits": multiplier_bits,
            "shift_bits": 6,
            "offset_bits": signed_bits(int(offset.min()), int(offset.max())) + self.any(0, 3),
        }
        return widths, {
            "multiplier_a": multipliers[0],
            "multiplier_b": multipliers[1],
            "offset": offset,
            "shift": shift,
        }

    def sum(self, name: str, inputs: tuple[str, str], channels: int, bits: tuple[int, int], out: int) -> str:
        """A residual sum of codes of `bits` bits, to `out`."""
        widths, constants = self.blend(*(self.codes[name] for name in inputs), out, channels)
        spec = AddSpec(channels=channels, a_bits=bits[0], b_bits=bits[1], output_bits=out, **widths)
        return self.add(name, spec, inputs, constants)

    def constant(self, name: str, rows: int, columns: int, bits: int) -> str:
        value = self.rng.integers(0, 1 << bits, (rows, columns))
        return self.add(name, ConstantSpec(rows=rows, columns=columns, bits=bits), (), {"value": value})

    def adalog_tables(self, code_bits: int, q: int, most: int) -> tuple[Arrays, int]:
        """Tables of a base, and guard bits that cut nothing, or something, and are not more than `most`."""
        shift, mantissa = adalog_tables(code_bits, q)
        lossless = min(lossless_guard_bits(code_bits, q), 32, most)
        guard = self.one_of(lossless, self.any(0, lossless))
        return {"shift_table": shift, "mantissa_table": mantissa}, guard

    def layernorm(self, name: str, source: str, channels: int, bits: tuple[int, int]) -> str:
        while True:
            # The widths together have a limit, which long rows of wide codes pass.
            try:
                spec, constants = self.layernorm_of(self.codes[source], channels, bits)
                return self.add(name, spec, (source,), constants)
            except HwsimError:
                continue

    def layernorm_of(self, codes: np.ndarray, channels: int, bits: tuple[int, int]) -> tuple[LayerNormSpec, Arrays]:
        fraction, alpha_bits = self.any(0, 8), self.one_of(0, 1, 2, 2, 3)
        step = 1 << (bits[1] + fraction)
        constants = {
            "zero_in": np.array(int(np.median(codes)) + self.any(-(1 << bits[0]) // 4, (1 << bits[0]) // 8)),
            "alpha": self.rng.integers(0, min(1 << alpha_bits, 5), channels),
            "gamma": (self.rng.uniform(-0.4, 0.4, channels) * step).astype(int),
            "beta": (self.rng.uniform(0.2, 0.8, channels) * step).astype(int),
            "fraction_bits": np.array(fraction),
        }
        gamma_bits, beta_bits = (
            max(2, signed_bits(int(constants[name].min()), int(constants[name].max()))) for name in ("gamma", "beta")
        )
        spec = LayerNormSpec(
            channels=channels,
            input_bits=bits[0],
            output_bits=bits[1],
            alpha_bits=alpha_bits,
            mantissa_bits=self.any(6, 24),
            radicand_bits=2 * self.any(4, 12),
            gamma_bits=gamma_bits + self.any(0, 4),
            beta_bits=beta_bits + self.any(0, 6),
        )
        return spec, constants

    def zero_points(self, source: str, bits: int, heads: int) -> np.ndarray:
        """Near the middle of the codes of a node, or anywhere, outside the codes too; one for all heads or one each."""
        shape = None if heads == 1 else heads
        if self.rng.random() < 0.2:
            return np.array(self.rng.integers(-(1 << bits), 1 << bits, shape))
        middle = int(np.median(self.codes[source])) + self.rng.integers(-3, 4, shape)
        return np.array(np.clip(middle, -(1 << bits), (1 << bits) - 1))

    def softmax(self, scores: str, most: int) -> tuple[dict[str, int], Arrays, float]:
        """Widths and constants of i-exp whose exponentials have at most `most` bits, and the octaves between scores."""
        codes = self.codes[scores].astype(np.int64)
        below = (codes.max(axis=-1, keepdims=True) - codes)[codes > 0]
        distance = float(np.median(below[below > 0])) if (below > 0).any() else 1.0
        octaves = self.rng.uniform(0.7, 5)
        constants = exponential_constants(min(1.5, octaves * math.log(2) / distance))
        polynomial_bits = int(constants["c"]).bit_length()
        return (
            {"polynomial_bits": polynomial_bits, "fraction_bits": self.any(2, min(30, most - polynomial_bits))},
            constants,
            octaves,
        )

    def weigh(
        self, kind: str, scores: str, values: str, score_bits: int, value_bits: int, tokens: int, heads: int
    ) -> str:
        """Softmax of a kind and its product with the values."""
        more_bits = tokens.bit_length()
        probability_bits = self.any(8, 16) if self.rng.random() < 0.7 else self.any(17, 24)
        most = 61 - max(more_bits, 0 if kind == "log2" else probability_bits)
        widths, constants, octaves = self.softmax(scores, most)
        widths |= {"score_bits": score_bits, "row_length": tokens}
        fields: dict[str, Any] = {"value_bits": value_bits, "row_length": tokens, "heads": heads}
        zero = {"zero_v": self.zero_points(values, value_bits, heads)}
        inputs = ("codes", values)
        if kind == "log2":
            softmax = LogSoftmaxSpec(
                code_bits=self.one_of(1, 2, 3, 3, 4, 4, 5), beyond=self.one_of("zero", "saturate"), **widths
            )
            self.add("codes", softmax, (scores,), constants)
            fields |= {"code_bits": softmax.code_bits, "beyond": softmax.beyond}
            return self.product("context", Log2MatmulSpec, fields, inputs, zero, 8, heads)
        self.add("softmax", SoftmaxSpec(probability_bits=probability_bits, **widths), (scores,), constants)
        probabilities = self.codes["softmax"]
        usual = float(np.quantile(probabilities, 0.9))
        if kind == "uniform":
            bits = self.any(1, 8)
            multiplier_bits, more = self.scale(probabilities, bits, 61 - probability_bits, 1)
            requantize = RequantizeSpec(
                input=IntFormat(probability_bits + 1),
                output_bits=bits,
                multiplier_bits=multiplier_bits,
                shift_bits=6,
                channels=1,
            )
            self.add("codes", requantize, ("softmax",), more)
            fields = {"a_bits": bits, "b_bits": value_bits, "inner": tokens, "heads": heads}
            zeros = {"zero_a": self.zero_points("codes", bits, heads), "zero_b": zero["zero_v"]}
            return self.product("context", MatmulSpec, fields, inputs, zeros, 8, heads, self.one_of(*OVERFLOW))
        code_bits = fields["code_bits"] = self.any(3, 6) if self.rng.random() < 0.6 else self.one_of(2, 7, 8)
        # Octaves of a common probability and of a small one.
        common = probability_bits - math.log2(max(1.0, usual))
        if kind == "twin":
            shift = np.array(int(np.clip(common + self.any(-1, 2), 0, probability_bits)))
            spec: Spec = TwinQuantizeSpec(probability_bits=probability_bits, code_bits=code_bits)
            self.add("codes", spec, ("softmax",), {"shift": shift})
            return self.product("context", TwinMatmulSpec, fields, inputs, zero | {"range_shift": shift}, 8, heads)
        quantizer = AdaLogQuantizeSpec(input_bits=probability_bits + 1, code_bits=code_bits)
        one = probability_scale(probability_bits)
        if kind == "adalog":
            last = min(probability_bits, common + octaves) * 2 ** self.rng.uniform(-0.5, 1)
            q = int(np.clip(37 * last / (1 << code_bits), 1, 255))
            self.add("codes", quantizer, ("softmax",), {"thresholds": adalog_thresholds(code_bits, q, one)})
            tables, guard = self.adalog_tables(code_bits, q, 50 - code_bits - value_bits - more_bits)
            fields |= {"guard_bits": guard, "largest_shift": self.any(0, 63)}
            return self.product("context", AdaLogMatmulSpec, fields, inputs, zero | tables, 8, heads)
        self.add("codes", quantizer, ("softmax",), {"thresholds": log_thresholds(code_bits, Fraction(1, 2), one)})
        fields["guard_bits"] = self.any(0, 20)
        return self.product("context", LogSqrt2MatmulSpec, fields, inputs, zero, 8, heads)

    def scores(self, inputs: tuple[str, str], value_bits: int, depth: int, bits: int, heads: int) -> str:
        fields = {"a_bits": value_bits, "b_bits": value_bits, "inner": depth, "heads": heads}
        zeros = {
            name: self.zero_points(source, value_bits, heads)
            for name, source in zip(("zero_a", "zero_b"), inputs, strict=True)
        }
        return self.product("scores", MatmulSpec, fields, inputs, zeros, bits, heads, self.one_of(*OVERFLOW))


def sums_of(spec: Any, constants: Arrays, codes: list[np.ndarray]) -> np.ndarray:
    """Accumulators of a unit; of one with two, about what they make together."""
    if isinstance(spec, LogSqrt2LinearSpec):
        even, odd = parity_sums(codes[0], centred_weights(constants).T, spec.code_bits, spec.guard_bits)
        return even + constants["bias"] + odd * 3 // 4
    if isinstance(spec, LogSqrt2MatmulSpec):
        centred = codes[1].astype(np.int64) - head_axis(constants["zero_v"])
        even, odd = parity_sums(codes[0], centred, spec.code_bits, spec.guard_bits)
        return even + odd * 3 // 4
    sums: np.ndarray = spec.accumulate(constants, *codes)
    return sums


def _generator(seed: int, attention: str, hidden: str, *more: int) -> np.random.Generator:
    """Every kind of program has seeds of its own."""
    return np.random.default_rng((seed, ATTENTIONS.index(attention), HIDDEN.index(hidden), *more))


def random_program(seed: int, attention: str, hidden: str, widest: int = 16) -> Program:
    """A program of one block with random sizes, widths and constants.

    Parameters
    ----------
    seed : int
    attention : one of `ATTENTIONS`
    hidden : one of `HIDDEN`
        The unit behind the hidden layer's function.
    widest : int
        Bits that no code exceeds, but for those of probabilities and scores.
    """
    rng = _generator(seed, attention, hidden)
    side, heads, depth, colours = (
        int(rng.choice([4, 6, 8])),
        int(rng.integers(1, 4)),
        int(rng.integers(1, 12)),
        int(rng.choice([1, 3])),
    )
    build = _Builder(rng, (side, side, colours), widest)
    tokens, channels = (side // 2) ** 2, heads * depth
    pixel_bits, bits, value_bits = (build.width(low, 8, 15) for low in (2, 2, 3))
    score_bits, per_head = build.width(3, 9, WIDEST_SCORE), build.one_of(1, heads)
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
    build.scores(("q", "k_transposed"), value_bits, depth, score_bits, per_head)
    build.weigh(attention, "scores", "v", score_bits, value_bits, tokens, per_head)
    build.add("merge", MergeHeadsSpec(bits=8), ("context",))
    build.linear("proj", "merge", (channels, channels), (8, bits))
    sum_bits = build.width(3, 8, 15)
    build.sum("sum", ("embed", "proj"), channels, (bits, bits), sum_bits)
    build.layernorm("norm2", "sum", channels, (sum_bits, bits))
    wide = build.width(2, 9, 14)
    code_bits = build.any(2, 8) + 1 if hidden in _LOGARITHMIC else build.width(2, 9, 14)
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


def random_window_program(seed: int, attention: str, widest: int = 16) -> Program:
    """A program of one block of shifted windows with random sizes, widths and constants.

    What else only some networks have is there too: position embedding, IRM, patch merging, class token, token mean.

    Parameters
    ----------
    seed : int
    attention : one of `ATTENTIONS`
    widest : int
        As in `random_program`.
    """
    rng = _generator(seed, attention, HIDDEN[0], 1)
    window, heads, depth = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(2, 12))
    side, channels, length = 2 * window, heads * depth, window**2
    build = _Builder(rng, (2 * side, 2 * side, 3), widest)
    bits, value_bits, score_bits = build.width(3, 8, 15), build.width(3, 8, 15), build.width(3, 9, WIDEST_SCORE - 2)
    place = {"height": side, "width": side, "window": window, "shift": int(rng.integers(1, window))}
    build.add("patches", PatchesSpec(size=2, bits=8), (INPUT,))
    build.linear("embed", "patches", (12, channels), (8, bits))
    build.constant("position", side**2, channels, bits)
    build.sum("tokens", ("embed", "position"), channels, (bits, bits), 8)
    build.layernorm("norm1", "tokens", channels, (8, bits))
    build.add("windows", PartitionWindowsSpec(bits=bits, **place), ("norm1",))
    build.linear("qkv", "windows", (channels, 3 * channels), (bits, value_bits))
    for part, name in enumerate(("q", "k", "v")):
        build.add(name, SplitHeadsSpec(heads=heads, part=part, parts=3, bits=value_bits), ("qkv",))
    build.layernorm("irm", "q", depth, (value_bits, value_bits))
    build.add("k_transposed", TransposeSpec(bits=value_bits), ("k",))
    per_head = build.one_of(1, heads)
    build.scores(("irm", "k_transposed"), value_bits, depth, score_bits, per_head)
    build.constant("bias_table", (2 * window - 1) ** 2, heads, bits)
    widths, constants = build.blend(build.codes["scores"], build.codes["bias_table"], score_bits, 0)
    bias = WindowBiasSpec(
        heads=heads, window=window, score_bits=score_bits, table_bits=bits, output_bits=score_bits, **widths
    )
    build.add("biased", bias, ("scores", "bias_table"), constants)
    wider = score_bits + 2
    mask = ShiftMaskSpec(bits=score_bits, output_bits=wider, **place)
    build.add("masked", mask, ("biased",), {"offset": np.array(rng.integers(0, 3 << score_bits))})
    build.weigh(attention, "masked", "v", wider, value_bits, length, per_head)
    build.add("merge", MergeHeadsSpec(bits=8), ("context",))
    build.linear("proj", "merge", (channels, channels), (8, bits))
    build.add("joined", JoinWindowsSpec(bits=bits, **place), ("proj",))
    build.sum("sum", ("tokens", "joined"), channels, (8, bits), 8)
    build.add("merged", MergePatchesSpec(height=side, width=side, bits=8), ("sum",))
    build.linear("reduced", "merged", (4 * channels, channels), (8, 8))
    build.constant("class", 1, channels, 8)
    build.add("all", ConcatSpec(bits=8), ("class", "reduced"))
    zero = {"zero_in": np.array(rng.integers(-50, 250))}
    build.product("mean", TokenMeanSpec, {"tokens": length + 1, "bits": 8}, ("all",), zero, 8)
    build.add("pair", TakeTokenSpec(index=1, count=2, bits=8), ("all",))
    build.add("pair_joined", JoinTokensSpec(bits=8), ("pair",))
    build.linear("head_pair", "pair_joined", (2 * channels, 5), (8, 8))
    build.linear("head_mean", "mean", (channels, 5), (8, 8))
    build.sum("head", ("head_pair", "head_mean"), 5, (8, 8), 8)
    return Program(
        tuple(build.nodes), (2 * side, 2 * side, 3), {"network": "random", "recipe": f"windows, {attention}"}
    )


def hidden_of(seed: int, attention: str) -> str:
    """Every hidden layer comes with every attention."""
    return HIDDEN[(seed + ATTENTIONS.index(attention)) % len(HIDDEN)]


def global_program(seed: int) -> Program:
    """Of every attention, and of every hidden layer."""
    hidden = HIDDEN[(seed + seed // len(ATTENTIONS)) % len(HIDDEN)]
    return random_program(seed, ATTENTIONS[seed % len(ATTENTIONS)], hidden)


def window_program(seed: int) -> Program:
    """Of every attention."""
    return random_window_program(seed, ATTENTIONS[seed % len(ATTENTIONS)])


def images_of(program: Program, seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *program.image_size), dtype=np.uint8)


def reference_of(program: Program, seed: int) -> tuple[np.ndarray, Arrays]:
    """Images, and the codes of every node by the reference."""
    images = images_of(program, seed)
    return images, Executor(program, "reference").run(images, keep=None)[1]


def overflowing(program: Program, images: np.ndarray, kept: Arrays) -> Iterator[tuple[str, str, bool]]:
    """Units that may wrap or saturate: kind, which of both, and whether any sum really does."""
    kept = {INPUT: images, **kept}
    for node in program.nodes:
        spec: Any = node.spec
        if getattr(spec, "overflow", "prove") != "prove":
            codes = [kept[name] for name in node.inputs]
            exact = dataclasses.replace(spec, overflow="prove").accumulate(node.constants, *codes)
            yield spec.kind, spec.overflow, not np.array_equal(spec.accumulate(node.constants, *codes), exact)
