"""Windowed attention of Swin: cyclic shift, window partition, relative position bias, shift mask, patch merging.

Feature maps are token sequences, row by row: token ``r * width + c`` is row r, column c. The window is an axis of
its own in front of the tokens, ``[B, windows, tokens, C]``, so that every other unit works on it unchanged.

Source: Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
sections 3.1 and 3.2; token and channel order are those of timm's ``swin_transformer``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from golden.add import scaled_sum
from golden.arithmetic import saturate
from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


def _check_map(unit: str, shape: Shape, height: int, width: int) -> None:
    if shape[0] != height * width:
        raise HwsimError(f"{unit}: {shape[0]} tokens for a feature map of {height}x{width}")


@lru_cache
def window_order(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Token of each place in each window after the cyclic shift, int64 [windows, window * window].

    The shift moves the feature map up and left by `shift`: place (0, 0) of the first window holds
    token (shift, shift).
    """
    tokens = np.arange(height * width).reshape(height, width)
    shifted = np.roll(tokens, (-shift, -shift), axis=(0, 1))
    blocks = shifted.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(-1, window * window))


@lru_cache
def place_order(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Place, counted through all windows, of each token: the inverse of `window_order`."""
    return np.argsort(window_order(height, width, window, shift).ravel())


@lru_cache
def merge_order(height: int, width: int) -> np.ndarray:
    """Tokens of each 2 x 2 block, int64 [height * width / 4, 4]: upper left, lower left, upper right, lower right."""
    tokens = np.arange(height * width).reshape(height // 2, 2, width // 2, 2)
    return np.ascontiguousarray(tokens.transpose(0, 2, 3, 1).reshape(-1, 4))


@lru_cache
def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for each pair of places in a window, int64 [window**2, window**2].

    Query at (r, c) and key at (s, d) take row ``(r - s + window - 1) * (2 * window - 1) + c - d + window - 1``.
    """
    row, column = np.divmod(np.arange(window * window), window)
    down, right = (place[:, None] - place[None, :] + window - 1 for place in (row, column))
    return np.ascontiguousarray(down * (2 * window - 1) + right)


@lru_cache
def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Pairs that must not attend to each other, bool [windows, window**2, window**2].

    After the cyclic shift the last row and column of windows hold tokens from opposite borders of the feature
    map. Three bands an axis tell them apart; tokens of different bands are no neighbours.
    """

    def band(size: int) -> np.ndarray:
        place = np.arange(size)
        return (place >= size - window).astype(np.int64) + (place >= size - shift)

    region = band(height)[:, None] * 3 + band(width)[None, :]
    blocks = region.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    blocks = blocks.reshape(-1, window * window)
    return np.ascontiguousarray(blocks[:, :, None] != blocks[:, None, :])


def partition_windows(tokens: Any, height: int, width: int, window: int, shift: int) -> Any:
    """Cyclic shift and partition: [B, height * width, C] to [B, windows, window**2, C]."""
    return tokens[:, window_order(height, width, window, shift)]


def join_windows(windows: Any, height: int, width: int, window: int, shift: int) -> Any:
    """The inverse of `partition_windows`."""
    batch, count, length, channels = windows.shape
    return windows.reshape(batch, count * length, channels)[:, place_order(height, width, window, shift)]


def merge_patches(tokens: Any, height: int, width: int) -> Any:
    """Channels of each 2 x 2 block side by side: [B, height * width, C] to [B, height * width / 4, 4 * C]."""
    blocks = tokens[:, merge_order(height, width)]
    return blocks.reshape(blocks.shape[0], blocks.shape[1], 4 * blocks.shape[3])


def position_bias(table: Any, window: int) -> Any:
    """Bias of every pair of places: table [..., (2 * window - 1)**2, heads] to [..., heads, window**2, window**2]."""
    return table[..., relative_position_index(window), :].swapaxes(-1, -2).swapaxes(-2, -3)


def _check_geometry(spec: PartitionWindowsSpec | JoinWindowsSpec | ShiftMaskSpec) -> None:
    if spec.height % spec.window or spec.width % spec.window:
        raise HwsimError(
            f"{spec.kind} spec: a feature map of {spec.height}x{spec.width} is no multiple of the window "
            f"{spec.window}; padding is not supported"
        )
    if spec.shift >= spec.window:
        raise HwsimError(f"{spec.kind} spec: shift must be below the window ({spec.window}), not {spec.shift}")


class PartitionWindowsSpec(Spec):
    """`partition_windows`: cyclic shift, then windows.

    Attributes
    ----------
    height, width : int
        Of the feature map in tokens, multiples of the window.
    window : int
        Side of a window in tokens.
    shift : int
        Of the cyclic shift, below the window; 0 for none.
    bits : int
        Width of the unsigned codes.
    """

    kind = "partition_windows"
    height: int = ranged(1, 1 << 12)
    width: int = ranged(1, 1 << 12)
    window: int = ranged(1, 64)
    shift: int = ranged(0, 63)
    bits: int = ranged(1, 16)

    def validate(self) -> None:
        _check_geometry(self)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        _check_map(self.kind, inputs[0], self.height, self.width)
        length = self.window**2
        return (inputs[0][0] // length, length, inputs[0][1])

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = partition_windows(inputs[0], self.height, self.width, self.window, self.shift)
        return result


class JoinWindowsSpec(Spec):
    """`join_windows`: back to the feature map, shift undone.

    Attributes
    ----------
    height, width, window, shift, bits : int
        As in `PartitionWindowsSpec`.
    """

    kind = "join_windows"
    height: int = ranged(1, 1 << 12)
    width: int = ranged(1, 1 << 12)
    window: int = ranged(1, 64)
    shift: int = ranged(0, 63)
    bits: int = ranged(1, 16)

    def validate(self) -> None:
        _check_geometry(self)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        count, length, channels = inputs[0]
        if length != self.window**2:
            raise HwsimError(f"{self.kind}: windows of {length} tokens for a unit of {self.window}x{self.window}")
        _check_map(self.kind, (count * length,), self.height, self.width)
        return (count * length, channels)

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = join_windows(inputs[0], self.height, self.width, self.window, self.shift)
        return result


class MergePatchesSpec(Spec):
    """`merge_patches`: four neighbours become one token of four times the channels.

    Attributes
    ----------
    height, width : int
        Of the feature map in tokens, even.
    bits : int
        Width of the unsigned codes.
    """

    kind = "merge_patches"
    height: int = ranged(2, 1 << 12)
    width: int = ranged(2, 1 << 12)
    bits: int = ranged(1, 16)

    def validate(self) -> None:
        if self.height % 2 or self.width % 2:
            raise HwsimError(
                f"{self.kind} spec: a feature map of {self.height}x{self.width} does not divide into 2x2 blocks; "
                "padding is not supported"
            )

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return (self.output,)

    def shape(self, *inputs: Shape) -> Shape:
        _check_map(self.kind, inputs[0], self.height, self.width)
        return (inputs[0][0] // 4, 4 * inputs[0][1])

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = merge_patches(inputs[0], self.height, self.width)
        return result


class WindowBiasSpec(Spec):
    """Scores plus relative position bias on a new grid.

    ``saturate(round_half_even((multiplier_a * score + multiplier_b * bias + offset) / 2**shift))`` as in
    `golden.add.AddSpec`, with one multiplier a tensor; the bias code comes from the table by head and
    relative position.

    Attributes
    ----------
    heads : int
    window : int
        Side of a window in tokens.
    score_bits, table_bits, output_bits : int
        Widths of the unsigned codes.
    multiplier_bits, shift_bits, offset_bits : int
        As in `golden.add.AddSpec`.

    Constants
    ---------
    multiplier_a, multiplier_b, offset, shift : []
    """

    kind = "window_bias"
    heads: int = ranged(1, 1024)
    window: int = ranged(1, 64)
    score_bits: int = ranged(1, 16)
    table_bits: int = ranged(1, 16)
    output_bits: int = ranged(1, 16)
    multiplier_bits: int = ranged(1, 31)
    shift_bits: int = ranged(1, 6)
    offset_bits: int = ranged(1, 61)

    @property
    def constants(self) -> dict[str, Constant]:
        return {
            "multiplier_a": Constant((), IntFormat(self.multiplier_bits)),
            "multiplier_b": Constant((), IntFormat(self.multiplier_bits)),
            "offset": Constant((), IntFormat(self.offset_bits, signed=True)),
            "shift": Constant((), IntFormat(self.shift_bits)),
        }

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    @property
    def inputs(self) -> tuple[IntFormat, ...]:
        return IntFormat(self.score_bits), IntFormat(self.table_bits)

    def shape(self, *inputs: Shape) -> Shape:
        scores, table = inputs
        length, rows = self.window**2, (2 * self.window - 1) ** 2
        if scores[-3:] != (self.heads, length, length) or table != (rows, self.heads):
            raise HwsimError(
                f"{self.kind}: scores of shape {scores} and a table of {table} for {self.heads} heads in windows of "
                f"{self.window}x{self.window}"
            )
        return scores

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Codes ``[..., heads, window**2, window**2]`` of scores of that shape and a table ``[1, rows, heads]``."""
        scores, table = inputs
        total = scaled_sum(constants, scores, position_bias(table[0], self.window))
        return saturate(total, self.output)


class ShiftMaskSpec(Spec):
    """Scores made ready for a softmax that must not see across the border of the cyclic shift.

    A score that counts moves up by `offset`, a masked one becomes 0. With an offset of n times |x0| of the
    i-exp behind (see `golden.log_softmax`), a masked score then lies at least n octaves below the maximum
    of its row, where i-exp clamps: its exponential is the smallest there is, and past the last code when n
    is large enough. That is what the published networks reach by adding -100 in float. Every row has a
    score that counts, that of a token with itself.

    Attributes
    ----------
    height, width, window, shift : int
        As in `PartitionWindowsSpec`.
    bits : int
        Width of the unsigned scores that come in.
    output_bits : int
        Width of the unsigned scores that go out.

    Constants
    ---------
    offset : []
    """

    kind = "shift_mask"
    height: int = ranged(1, 1 << 12)
    width: int = ranged(1, 1 << 12)
    window: int = ranged(1, 64)
    shift: int = ranged(1, 63)
    bits: int = ranged(1, 16)
    output_bits: int = ranged(1, 16)

    def validate(self) -> None:
        _check_geometry(self)

    @property
    def constants(self) -> dict[str, Constant]:
        return {"offset": Constant((), self.output)}

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.bits)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    def shape(self, *inputs: Shape) -> Shape:
        windows, _, rows, columns = inputs[0]
        length = self.window**2
        if windows * length != self.height * self.width or rows != length or columns != length:
            raise HwsimError(
                f"{self.kind}: scores of shape {inputs[0]} for a feature map of {self.height}x{self.width} in "
                f"windows of {self.window}x{self.window}"
            )
        return inputs[0]

    def prove(self, constants: Constants) -> None:
        highest = int(constants["offset"]) + self.input.maximum
        if highest > self.output.maximum:
            raise HwsimError(
                f"{self.kind}: scores reach {highest}, past {self.output_bits} bits; widen output_bits or lower offset"
            )

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Scores ``[B, windows, heads, window**2, window**2]`` of that shape."""
        masked = shift_mask(self.height, self.width, self.window, self.shift)[:, None]
        moved = inputs[0].astype(np.int64) + int(constants["offset"])
        return np.where(masked, 0, moved).astype(self.output.dtype)
