# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, check-untyped-defs=False
"""The softmax units of `golden` as compiled kernels, equal to the last bit: see `hwsim.execute.numba_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from golden.log_softmax import LogSoftmaxSpec
from golden.softmax import SoftmaxSpec
from golden.spec import Constants
from hwsim.execute.numba_kernels import Kernel, _inline, _kernel, as_rows


@_inline
def _row_maximum(scores, row):
    # In the type of the scores, and without a branch: so it becomes vector instructions.
    highest = scores[row, 0]
    for column in range(scores.shape[1]):
        highest = max(highest, scores[row, column])
    return np.uintp(highest)


# Sums of integers below 2^53 have no rounding, in whatever order: so they may be taken in vectors.
@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _exact_sum(values):
    total = 0.0
    for index in range(values.size):
        total += values[index]
    return total


@_kernel
def _log_softmax(scores, exponentials, last, past, out):
    """Codes without a division: for the exponential E, the sum S and v = floor(log2((2S + E) / 3E)), the code is v + 1.

    A code is c > 1 or more when the rounded ratio S/E reaches 3 * 2^(c-2) (`golden.log_softmax.ratio_threshold`), thus
    when S/E + 1/2 does; only 2 is not reached at equality, where the half is rounded to even. A code is 1 or more when
    2S >= 3E. The logarithm of the quotient is that of the exponents, less 1 where the mantissa is the smaller one: the
    difference of the bits of both doubles.
    """
    rows, columns = scores.shape
    # Zeros behind the row, which change no sum, fill whole vectors: what is left of a loop would run one by one.
    length = (columns + 31) // 32 * 32
    values, above, thrice = np.zeros(length), np.empty(length), np.empty(length)
    codes = np.empty(length, out.dtype)
    above_bits, thrice_bits = above.view(np.int64), thrice.view(np.int64)
    for row in range(rows):
        highest = _row_maximum(scores, row)
        for column in range(columns):
            values[column] = exponentials[highest - np.uintp(scores[row, column])]
        twice = 2 * _exact_sum(values)
        for column in range(length):
            above[column] = twice + values[column]
            thrice[column] = 3 * values[column]
        for column in range(length):
            # Of E = 0 the exponent is so small that the code is past the last.
            code = ((above_bits[column] - thrice_bits[column]) >> 52) + 1
            code -= np.int64(thrice[column] > twice) + np.int64(5 * values[column] == twice)
            codes[column] = code if code <= last else past
        for column in range(columns):
            out[row, column] = codes[column]


@_inline
def _bit_length(x):
    length = 0
    while x > 0:
        x >>= 1
        length += 1
    return length


@_kernel
def _wide_log_softmax(scores, exponentials, last, past, out):
    """As `_log_softmax`, for sums that a double does not hold."""
    rows, columns = scores.shape
    for row in range(rows):
        highest = _row_maximum(scores, row)
        total = np.int64(0)
        for column in range(columns):
            total += exponentials[highest - np.uintp(scores[row, column])]
        for column in range(columns):
            exponential = exponentials[highest - np.uintp(scores[row, column])]
            code = last + 1
            if exponential > 0:
                ratio = total // exponential
                twice = 2 * (total - ratio * exponential)
                if twice > exponential or (twice == exponential and ratio & 1):
                    ratio += 1
                code = _bit_length(ratio) - 1
                if code > 0:
                    code += (ratio >> (code - 1)) & 1
            out[row, column] = code if code <= last else past


@_kernel
def _softmax(scores, exponentials, one, out):
    """``round_half_even(one * E / S)`` in doubles, exact while ``one * E`` is below 2^52.

    A quotient that is no tie lies 1 / 2S or more from one, and its rounding to a double moves it by less.
    """
    rows, columns = scores.shape
    length = (columns + 31) // 32 * 32
    values, probabilities = np.zeros(length), np.empty(length, out.dtype)
    for row in range(rows):
        highest = _row_maximum(scores, row)
        for column in range(columns):
            values[column] = exponentials[highest - np.uintp(scores[row, column])]
        total = _exact_sum(values)
        for column in range(length):
            probabilities[column] = np.int64(np.rint(one * values[column] / total))
        for column in range(columns):
            out[row, column] = probabilities[column]


@_kernel
def _wide_softmax(scores, exponentials, probability_bits, out):
    """As `_softmax`, for exponentials that a double does not hold."""
    rows, columns = scores.shape
    for row in range(rows):
        highest = _row_maximum(scores, row)
        total = np.int64(0)
        for column in range(columns):
            total += exponentials[highest - np.uintp(scores[row, column])]
        for column in range(columns):
            numerator = exponentials[highest - np.uintp(scores[row, column])] << probability_bits
            quotient = numerator // total
            twice = 2 * (numerator - quotient * total)
            if twice > total or (twice == total and quotient & 1):
                quotient += 1
            out[row, column] = quotient


def _reduced(exponentials: np.ndarray) -> np.ndarray:
    """Without the power of two that all share: results depend on ratios only."""
    bits = int(np.bitwise_or.reduce(exponentials))
    return exponentials >> ((bits & -bits).bit_length() - 1)


def _log_softmax_kernel(spec: LogSoftmaxSpec, constants: Constants) -> Kernel:
    exponentials = _reduced(spec.exponentials(constants))
    last = spec.zero_symbol - 1
    past = spec.zero_symbol if spec.beyond == "zero" else last
    # The largest number is 2S + E.
    narrow = (2 * spec.row_length + 1) * int(exponentials.max()) < 1 << 53
    table = exponentials.astype(np.float64) if narrow else exponentials
    compiled = _log_softmax if narrow else _wide_log_softmax

    def kernel(scores: np.ndarray) -> np.ndarray:
        rows = as_rows(scores)
        out = np.empty(rows.shape, spec.output.dtype)
        compiled(rows, table, last, past, out)
        return out.reshape(scores.shape)

    return kernel


def _softmax_kernel(spec: SoftmaxSpec, constants: Constants) -> Kernel:
    exponentials = _reduced(spec.exponentials(constants))
    largest = int(exponentials.max())
    narrow = largest << spec.probability_bits < 1 << 52 and largest * spec.row_length < 1 << 53
    table = exponentials.astype(np.float64) if narrow else exponentials
    one = float(1 << spec.probability_bits)

    def kernel(scores: np.ndarray) -> np.ndarray:
        rows = as_rows(scores)
        out = np.empty(rows.shape, spec.output.dtype)
        if narrow:
            _softmax(rows, table, one, out)
        else:
            _wide_softmax(rows, table, spec.probability_bits, out)
        return out.reshape(scores.shape)

    return kernel


KERNELS: dict[str, Callable[[Any, Constants], Kernel]] = {
    "log_softmax": _log_softmax_kernel,
    "softmax": _softmax_kernel,
}
