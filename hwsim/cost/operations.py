"""Integer operations of a program, by kind and operand widths, counted from specs and shapes.

An operation is one of the definition in `golden`, not of a circuit: a product of a lookup and a shift counts as
that, whatever a unit shares or folds. Operations that act on constants alone, once a program, are not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from golden.spec import Shape, Spec
from golden.windows import JoinWindowsSpec, MergePatchesSpec, PartitionWindowsSpec
from hwsim.program import INPUT, Node, Program

# What is multiplied in a matrix product: each is one step of a sum. Widths: the codes of both operands.
PRODUCTS = ("multiply-accumulate", "shift-accumulate", "multiply-shift-accumulate")
KINDS = (
    *PRODUCTS,
    "multiply",
    "add",
    "shift",
    "compare",
    "lookup",
    "exponential",
    "log2 ratio",
    "divide",
    "reciprocal square root",
)
# No arithmetic; codes move, or are constant.
MOVEMENTS: frozenset[str] = frozenset(
    spec.kind
    for spec in (
        PatchesSpec,
        SplitHeadsSpec,
        MergeHeadsSpec,
        TransposeSpec,
        TakeTokenSpec,
        JoinTokensSpec,
        PartitionWindowsSpec,
        JoinWindowsSpec,
        MergePatchesSpec,
        ConcatSpec,
        ConstantSpec,
    )
)


@dataclass(frozen=True)
class Operation:
    """Operations of one kind on operands of the same widths.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    widths : tuple of int
        Bits of the operands: the codes of both factors of a product, the wider operand of anything else. A
        logarithmic code has a zero symbol besides; its bit is not counted.
    count : int
        A picture.
    """

    kind: str
    widths: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Product:
    """The matrix product of a node: `matrices` times ``[rows, inner] x [inner, columns]``."""

    matrices: int
    rows: int
    inner: int
    columns: int

    @property
    def steps(self) -> int:
        """Multiplications, one for each step of a sum."""
        return self.matrices * self.rows * self.inner * self.columns


def matrix_product(inputs: Sequence[Shape], output: Shape) -> Product:
    """The product of a linear layer (one operand) or of two activations, from their shapes.

    A linear layer is one matrix, whatever axes are in front of its features.
    """
    if len(inputs) == 1:
        return Product(1, math.prod(output[:-1]), inputs[0][-1], output[-1])
    return Product(math.prod(output[:-2]), output[-2], inputs[0][-1], output[-1])


def is_product(spec: Spec) -> bool:
    """Whether a unit is a matrix product: a linear layer, or a product of two activations."""
    return "weight" in spec.constants or spec.kind.endswith("matmul")


Counts = list[Operation]
Count = Callable[[Any, Sequence[Shape], Shape], Counts]


def _rounding(count: int, bits: int) -> Counts:
    """One rounding shift and saturation of sums of a width."""
    return [Operation("shift", (bits,), count), Operation("compare", (bits,), 2 * count)]


def _requantize(spec: Any, count: int) -> Counts:
    bits = spec.input.bits + spec.multiplier_bits
    return [
        Operation("multiply", (spec.input.bits, spec.multiplier_bits), count),
        Operation("add", (bits,), count),
        *_rounding(count, bits),
    ]


def _linear(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    product = matrix_product(inputs, output)
    return [
        Operation("multiply-accumulate", (spec.input_bits, spec.weight_bits), product.steps),
        *_requantize(spec.requantize, math.prod(output)),
    ]


def _twin_linear(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    return [*_linear(spec, inputs, output), Operation("shift", (spec.input_bits,), math.prod(inputs[0]))]


def _asymmetric_linear(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    """The zero points of the weights cost the sum of a row once, and its product with each of them."""
    bits = spec.requantize.input.bits
    return [
        *_linear(spec, inputs, output),
        Operation("add", (bits,), math.prod(inputs[0]) + math.prod(output)),
        Operation("multiply", (bits, spec.weight_bits), math.prod(output)),
    ]


def _matmul(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    return [
        Operation("add", (spec.a_bits + 1,), math.prod(inputs[0])),
        Operation("add", (spec.b_bits + 1,), math.prod(inputs[1])),
        Operation("multiply-accumulate", (spec.a_bits, spec.b_bits), matrix_product(inputs, output).steps),
        *_requantize(spec.requantize, math.prod(output)),
    ]


def _codes_times_values(kind: str, *, lookups: int = 0, shifts: int = 0, sums: int = 1) -> Count:
    """A product of codes with V or with weights.

    `lookups` and `shifts` are those of a code; of several sums of an output each has a multiplier of its own.
    """

    def count(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
        codes, results, requantize = math.prod(inputs[0]), math.prod(output), spec.requantize
        values = spec.weight_bits if len(inputs) == 1 else spec.value_bits
        # Weights are constant, so that their zero points are taken off once and for all.
        centred = 0 if len(inputs) == 1 else math.prod(inputs[1])
        joined = (sums - 1) * results
        return [
            Operation("lookup", (spec.code_bits,), lookups * codes),
            Operation("shift", (spec.code_bits,), shifts * codes),
            Operation("add", (values + 1,), centred),
            Operation(kind, (spec.code_bits, values), matrix_product(inputs, output).steps),
            Operation("multiply", (requantize.input.bits, requantize.multiplier_bits), joined),
            Operation("add", (requantize.input.bits + requantize.multiplier_bits,), joined),
            *_requantize(requantize, results),
        ]

    return count


def _log_sqrt2_sums(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    """The sums alone: each code adds to one of both."""
    return [
        Operation("add", (spec.value_bits + 1,), math.prod(inputs[1])),
        Operation("shift-accumulate", (spec.code_bits, spec.value_bits), matrix_product(inputs, output[:-1]).steps),
    ]


def _softmax_front(spec: Any, elements: int, rows: int) -> Counts:
    """Row maximum, difference from it, exponential, and the row sum."""
    return [
        Operation("compare", (spec.score_bits,), elements - rows),
        Operation("add", (spec.score_bits,), elements),
        Operation("exponential", (spec.score_bits,), elements),
        Operation("add", (spec.sum_bits,), elements - rows),
    ]


def _log_softmax(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    elements = math.prod(output)
    front = _softmax_front(spec, elements, elements // output[-1])
    return [*front, Operation("log2 ratio", (spec.sum_bits,), elements)]


def _softmax(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    elements = math.prod(output)
    front = _softmax_front(spec, elements, elements // output[-1])
    return [*front, Operation("divide", (spec.sum_bits,), elements)]


def _layernorm(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    elements = math.prod(output)
    rows = elements // spec.channels
    root = (spec.mantissa_bits, spec.gamma_bits + spec.deviation_bits)
    return [
        Operation("add", (spec.input_bits + 1,), elements),  # - zero_in
        *([Operation("shift", (spec.value_bits,), elements)] if spec.alpha_bits else []),
        Operation("add", (spec.sum_bits,), elements),  # S1
        Operation("multiply", (spec.value_bits, spec.value_bits), elements),
        Operation("add", (spec.variance_bits,), elements),  # S2
        Operation("multiply", (spec.variance_bits, spec.channels.bit_length()), rows),
        Operation("multiply", (spec.sum_bits, spec.sum_bits), rows),
        Operation("add", (spec.variance_bits,), rows),  # D
        Operation("reciprocal square root", (spec.variance_bits,), rows),
        Operation("multiply", (spec.value_bits, spec.channels.bit_length()), elements),  # C * X
        Operation("add", (spec.deviation_bits,), elements),  # - S1
        Operation("multiply", (spec.gamma_bits, spec.deviation_bits), elements),
        Operation("multiply", root, elements),
        Operation("shift", (spec.numerator_bits,), elements),  # beta << e
        Operation("add", (spec.numerator_bits,), elements),
        *_rounding(elements, spec.numerator_bits),
    ]


def _scaled_sum(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    count, (first, second) = math.prod(output), spec.inputs
    return [
        Operation("multiply", (first.bits, spec.multiplier_bits), count),
        Operation("multiply", (second.bits, spec.multiplier_bits), count),
        Operation("add", (spec.offset_bits,), 2 * count),
        *_rounding(count, spec.offset_bits),
    ]


def _token_mean(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    adds = Operation("add", (spec.requantize.input.bits,), math.prod(inputs[0]))
    return [adds, *_requantize(spec.requantize, math.prod(output))]


def _each(kind: str, count: Callable[[Any], int] = lambda spec: 1) -> Count:
    """So many operations of a kind for each element."""
    return lambda spec, inputs, output: [
        Operation(kind, (spec.input.bits,), count(spec) * math.prod(output)),
    ]


def _adalog_decode(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    count = math.prod(output)
    return [
        Operation("lookup", (spec.code_bits,), 2 * count),
        Operation("shift", (spec.output.bits,), count),
    ]


def _twin_quantize(spec: Any, inputs: Sequence[Shape], output: Shape) -> Counts:
    """Both ranges are rounded and clipped, one is taken."""
    count, bits = math.prod(output), spec.input.bits
    return [Operation("shift", (bits,), 2 * count), Operation("compare", (bits,), 3 * count)]


_COUNTS: dict[str, Count] = {
    "linear": _linear,
    "twin_linear": _twin_linear,
    "asymmetric_linear": _asymmetric_linear,
    "matmul": _matmul,
    "log2_matmul": _codes_times_values("shift-accumulate"),
    "log_sqrt2_matmul": _codes_times_values("shift-accumulate", sums=2),
    "log_sqrt2_linear": _codes_times_values("shift-accumulate", sums=2),
    "log_sqrt2_sums": _log_sqrt2_sums,
    "adalog_matmul": _codes_times_values("multiply-shift-accumulate", lookups=2),
    "adalog_linear": _codes_times_values("multiply-shift-accumulate", lookups=2),
    "twin_matmul": _codes_times_values("multiply-accumulate", shifts=1),
    "requantize": lambda spec, inputs, output: _requantize(spec, math.prod(output)),
    "log_softmax": _log_softmax,
    "softmax": _softmax,
    "layernorm": _layernorm,
    "add": _scaled_sum,
    "window_bias": _scaled_sum,
    "shift_mask": _each("add"),
    "lookup": _each("lookup"),
    # The code by bisection of its thresholds, and whether it is the zero symbol.
    "adalog_quantize": _each("compare", lambda spec: spec.code_bits + 1),
    "adalog_decode": _adalog_decode,
    "twin_quantize": _twin_quantize,
    "token_mean": _token_mean,
}


def operations_of(spec: Spec, inputs: Sequence[Shape], output: Shape) -> tuple[Operation, ...]:
    """Operations of one unit on one picture, equal ones together, in order of kind and width.

    Parameters
    ----------
    spec : Spec
    inputs, output : Shape
        Without the batch axis.

    Raises
    ------
    HwsimError
        A kind of unit whose operations are not known.
    """
    if spec.kind in MOVEMENTS:
        return ()
    if spec.kind not in _COUNTS:
        raise HwsimError(f"the operations of a {spec.kind} unit are not known; count them in hwsim/cost/operations.py")
    return _merged(_COUNTS[spec.kind](spec, inputs, output))


def input_shapes(program: Program, node: Node) -> list[Shape]:
    """Shapes of a node's operands, without the batch axis."""
    return [tuple(program.image_size) if name == INPUT else program.shape(name) for name in node.inputs]


def node_operations(program: Program) -> dict[str, tuple[Operation, ...]]:
    """Operations of every node of a program on one picture, by its name."""
    return {
        node.name: operations_of(node.spec, input_shapes(program, node), program.shape(node.name))
        for node in program.nodes
    }


def total(operations: Sequence[Sequence[Operation]]) -> tuple[Operation, ...]:
    """Operations of several nodes together."""
    return _merged([each for node in operations for each in node])


def _merged(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for operation in operations:
        counts[operation.kind, operation.widths] += operation.count
    order = sorted(counts, key=lambda key: (KINDS.index(key[0]), key[1]))
    return tuple(Operation(kind, widths, counts[kind, widths]) for kind, widths in order if counts[kind, widths])
