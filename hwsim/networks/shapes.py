"""Shapes of a float graph's values, without running it.

The units of `golden` announce their shapes; the float operations of the same name have the same ones.
"""

from __future__ import annotations

from golden.errors import HwsimError
from golden.matmul import matmul_shape
from golden.rearrange import (
    ConcatSpec,
    JoinTokensSpec,
    MergeHeadsSpec,
    PatchesSpec,
    SplitHeadsSpec,
    TakeTokenSpec,
    TransposeSpec,
)
from golden.spec import Shape, Spec
from golden.windows import JoinWindowsSpec, MergePatchesSpec, PartitionWindowsSpec
from hwsim.networks.graph import FloatNode

# Their attributes are those of the float operation, and the width of the codes does not touch the shape.
_AS_SPEC: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        PatchesSpec,
        SplitHeadsSpec,
        MergeHeadsSpec,
        TransposeSpec,
        TakeTokenSpec,
        JoinTokensSpec,
        ConcatSpec,
        PartitionWindowsSpec,
        JoinWindowsSpec,
        MergePatchesSpec,
    )
}
# Values keep the shape of the first operand.
_ELEMENTWISE = frozenset({"image", "add", "layernorm", "softmax", "gelu", "window_bias", "shift_mask"})


def node_shape(node: FloatNode, *operands: Shape) -> Shape:
    """Shape of a node's value without the batch axis.

    Parameters
    ----------
    node : FloatNode
    operands : tuple of int
        Shapes of its operands, that of the image for a node without inputs.

    Raises
    ------
    HwsimError
        The operands do not fit.
    """
    if node.operation in _AS_SPEC:
        arguments = {**node.attributes, "bits": 8}
        return _AS_SPEC[node.operation](**arguments).shape(*operands)
    if node.operation == "layernorm" and operands[0][-1] != len(node.parameters["weight"]):
        raise HwsimError(f"{operands[0][-1]} channels for a norm of {len(node.parameters['weight'])}")
    if node.operation == "add" and operands[0] != operands[1]:
        raise HwsimError(f"a sum of values of shapes {operands[0]} and {operands[1]}")
    if node.operation == "window_bias":
        (*_, heads, rows, columns), window = operands[0], node.attributes["window"]
        if rows != columns or rows != window**2 or operands[1] != ((2 * window - 1) ** 2, heads):
            raise HwsimError(f"scores of shape {operands[0]} and a table of {operands[1]} in windows of {window}")
    if node.operation in _ELEMENTWISE:
        return operands[0]
    if node.operation == "constant":
        return tuple(node.parameters["value"].shape)
    if node.operation == "linear":
        outputs, inputs = node.parameters["weight"].shape
        if operands[0][-1] != inputs:
            raise HwsimError(f"{operands[0][-1]} features for a linear layer of {inputs}")
        return (*operands[0][:-1], outputs)
    if node.operation == "matmul":
        return matmul_shape(operands[0], operands[1], node.operation)
    if node.operation == "token_mean":
        return (1, operands[0][-1])
    raise TypeError(f"{node.operation} has no shape rule")
