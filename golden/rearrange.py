"""Data movement between units: no arithmetic, codes keep their width.

The functions work on any array type with ``reshape``, ``swapaxes`` and indexing
(NumPy and torch), so that the float network and the integer program share them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


def patches(image: Any, size: int) -> Any:
    """Non-overlapping square patches, row by row: [B, H, W, C] to [B, H*W/size**2, C*size*size]."""
    batch, height, width, channels = image.shape
    blocks = image.reshape(batch, height // size, size, width // size, size, channels)
    # Axes (b, h, i, w, j, c) become (b, h, w, c, i, j), the order of a convolution's weights.
    blocks = blocks.swapaxes(2, 3).swapaxes(3, 5).swapaxes(4, 5)
    return blocks.reshape(batch, (height // size) * (width // size), channels * size * size)


def split_heads(tokens: Any, heads: int, part: int, parts: int) -> Any:
    """One of `parts` equal column groups as heads: [..., T, parts*C] to [..., heads, T, C/heads]."""
    *lead, columns = tokens.shape
    return tokens.reshape(*lead, parts, heads, columns // (parts * heads))[..., part, :, :].swapaxes(-2, -3)


def merge_heads(tokens: Any) -> Any:
    """[..., heads, T, d] to [..., T, heads*d]."""
    *lead, heads, length, depth = tokens.shape
    return tokens.swapaxes(-2, -3).reshape(*lead, length, heads * depth)


class PatchesSpec(Spec):
    """`patches` of the image codes.

    Attributes
    ----------
    size : int
        Side of a patch in pixels.
    bits : int
        Width of the unsigned codes.
    """

    kind = "patches"
    size: int = ranged(1, 256)
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        height, width, channels = inputs[0]
        if height % self.size or width % self.size:
            raise HwsimError(f"patches: an image of {height}x{width} is not a multiple of the patch size {self.size}")
        return ((height // self.size) * (width // self.size), channels * self.size**2)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return patches(inputs[0], self.size)


class SplitHeadsSpec(Spec):
    """`split_heads`: queries, keys or values of a joint projection.

    Attributes
    ----------
    heads, part, parts : int
        Heads; which column group of how many (0, 1, 2 of 3 for q, k, v).
    bits : int
        Width of the unsigned codes.
    """

    kind = "split_heads"
    heads: int = ranged(1, 1024)
    part: int = ranged(0, 7)
    parts: int = ranged(1, 8)
    bits: int = ranged(1, 16)

    def validate(self) -> None:
        if self.part >= self.parts:
            raise HwsimError(f"split_heads spec: part must be below parts ({self.parts}), not {self.part}")

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        *lead, length, columns = inputs[0]
        if columns % (self.parts * self.heads):
            raise HwsimError(
                f"split_heads: {columns} columns do not divide into {self.parts} parts of {self.heads} heads"
            )
        return (*lead, self.heads, length, columns // (self.parts * self.heads))

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return split_heads(inputs[0], self.heads, self.part, self.parts)


class MergeHeadsSpec(Spec):
    """`merge_heads`.

    Attributes
    ----------
    bits : int
        Width of the unsigned codes.
    """

    kind = "merge_heads"
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        *lead, heads, length, depth = inputs[0]
        return (*lead, length, heads * depth)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return merge_heads(inputs[0])


class TransposeSpec(Spec):
    """Swap the last two axes.

    Attributes
    ----------
    bits : int
        Width of the unsigned codes.
    """

    kind = "transpose"
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        *rest, rows, columns = inputs[0]
        return (*rest, columns, rows)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return inputs[0].swapaxes(-1, -2)


class TakeTokenSpec(Spec):
    """Consecutive tokens of a sequence: [B, T, C] to [B, count, C].

    Attributes
    ----------
    index : int
        First token.
    count : int
        How many.
    bits : int
        Width of the unsigned codes.
    """

    kind = "take_token"
    index: int = ranged(0, 1 << 16)
    count: int = ranged(1, 1 << 16, default=1)
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        length, channels = inputs[0]
        if self.index + self.count > length:
            raise HwsimError(f"take_token: token {self.index + self.count - 1} of {length}")
        return (self.count, channels)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return inputs[0][:, self.index : self.index + self.count]


class JoinTokensSpec(Spec):
    """The channels of all tokens side by side: [B, T, C] to [B, 1, T*C].

    Attributes
    ----------
    bits : int
        Width of the unsigned codes.
    """

    kind = "join_tokens"
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        length, channels = inputs[0]
        return (1, length * channels)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        return inputs[0].reshape(len(inputs[0]), 1, -1)


class ConstantSpec(Spec):
    """Constant codes, such as the class token and the position embedding; no inputs.

    Attributes
    ----------
    rows, columns : int
    bits : int
        Width of the unsigned codes.

    Constants
    ---------
    value : [rows, columns]
    """

    kind = "constant"
    rows: int = ranged(1, 1 << 16)
    columns: int = ranged(1, 1 << 16)
    bits: int = ranged(1, 16)

    @property
    def constants(self) -> dict[str, Constant]:
        return {"value": Constant((self.rows, self.columns), self.output)}

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return ()

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    def shape(self, *inputs: Shape) -> Shape:
        return (self.rows, self.columns)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """The codes with a leading axis of 1 for the batch."""
        return constants["value"][None]


class ConcatSpec(Spec):
    """Two sequences one after the other: [B or 1, S, C] and [B, T, C] to [B, S+T, C].

    Attributes
    ----------
    bits : int
        Width of the unsigned codes.
    """

    kind = "concat"
    bits: int = ranged(1, 16)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output, self.output)

    def shape(self, *inputs: Shape) -> Shape:
        (first, columns), (second, other) = inputs
        if columns != other:
            raise HwsimError(f"concat: sequences of {columns} and {other} channels")
        return (first + second, columns)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        batch = max(part.shape[0] for part in inputs)
        return np.concatenate([np.broadcast_to(part, (batch, *part.shape[1:])) for part in inputs], axis=1)
