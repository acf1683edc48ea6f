"""Constants of requantization on the GPU, and the table that may follow it in the same kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat
from hwsim.execute.cuda.carriers import constant, dtype_of, encode, offset_of

_WORD = IntFormat(32, signed=True)


@dataclass(frozen=True)
class Table:
    """A table behind a unit, for all its codes.

    Attributes
    ----------
    entries : ndarray of unsigned codes [2**bits]
    bits : int
        Width of the entries.
    """

    entries: np.ndarray
    bits: int


@dataclass(frozen=True)
class Ending:
    """How sums or codes leave a kernel.

    Attributes
    ----------
    table : tensor
        What is kept for each code where a table follows; else any tensor.
    has_table : bool
    offset : int
        What is subtracted from a code where no table follows.
    dtype : torch.dtype
        Of what is kept.
    """

    table: torch.Tensor
    has_table: bool
    offset: int
    dtype: torch.dtype


def ending(bits: int, table: Table | None, device: torch.device) -> Ending:
    """Of a unit whose codes have `bits` bits."""
    if table is None:
        return Ending(torch.zeros(1, dtype=torch.int8, device=device), False, offset_of(bits), dtype_of(bits))
    return Ending(encode(table.entries, table.bits, device), True, 0, dtype_of(table.bits))


@dataclass(frozen=True)
class Requantization:
    """``clip(round_half_even((x * multiplier + addend) / 2**shift))``, one constant or one a channel.

    Attributes
    ----------
    multiplier, addend, shift : tensors [channels]
    common_shift : int
        See `hwsim.execute.cuda.arithmetic.requantize`; above 0, x must have 32 bits.
    highest : int
        Largest code.
    channels : int
    end : Ending
    """

    multiplier: torch.Tensor
    addend: torch.Tensor
    shift: torch.Tensor
    common_shift: int
    highest: int
    channels: int
    end: Ending


def with_bias(constants: Requantization, bias: np.ndarray) -> Requantization:
    """Constants, one an output, whose addend holds the bias ``[outputs]`` of sums that are without it.

    Only for a common shift: the quotient of the whole is proven then, whatever the sum is on the way to it.
    """
    several = torch.ones(len(bias), dtype=torch.int64, device=constants.addend.device)
    addend = constants.addend * several + constants.multiplier * torch.from_numpy(bias.astype(np.int64)).to(several)
    return replace(
        constants,
        multiplier=(constants.multiplier * several).to(constants.multiplier.dtype),
        addend=addend,
        shift=constants.shift * several,
        channels=len(bias),
    )


def requantization(
    spec: RequantizeSpec, constants: Constants, device: torch.device, table: Table | None = None, *, words: bool = True
) -> Requantization:
    """Constants of a requantizer on a device.

    Parameters
    ----------
    spec, constants
    device : torch.device
    table : Table, optional
        What follows.
    words : bool
        The sums have 32 bits.
    """
    zero = int(constants["zero_point"])
    multiplier = constants["multiplier"].astype(np.int64)
    shift = constants["shift"].astype(np.int64)
    largest = min(spec.input.largest_magnitude, _WORD.largest_magnitude)
    common = common_shift([multiplier], shift, largest, abs(zero)) if words else 0
    if common:
        scaled, kind = multiples(multiplier, shift, common), torch.int32
        addend = np.full(len(shift), (zero << common) + (1 << common >> 1), np.int64)
    else:
        scaled, kind, addend = multiplier, torch.int64, np.int64(zero) << shift
    return Requantization(
        multiplier=constant(scaled, device, kind),
        addend=constant(addend, device),
        shift=constant(shift, device),
        common_shift=common,
        highest=spec.output.maximum,
        channels=len(shift),
        end=ending(spec.output_bits, table, device),
    )


def common_shift(multipliers: Sequence[np.ndarray], shift: np.ndarray, largest: int, addend: int) -> int:
    """A shift, 32 at most, at which all channels have the same fractions with multipliers of 31 bits.

    Parameters
    ----------
    multipliers : sequence of ndarray of int64 [channels]
    shift : ndarray of int64 [channels]
    largest : int
        Magnitude of what is multiplied.
    addend : int
        Magnitude of what is added to the quotient.

    Returns
    -------
    int
        0 where there is none, or where the quotient could pass 32 bits.
    """
    # Few different ones, because each is compiled.
    for common in (*range(32, 0, -4), *range(31, 0, -1)):
        exact = all(
            (up << common) % (1 << down) == 0 and (up << common) >> down <= _WORD.maximum
            for multiplier in multipliers
            for up, down in zip(multiplier.tolist(), shift.tolist(), strict=True)
        )
        if not exact:
            continue
        products = sum(int(multiples(multiplier, shift, common).max()) * largest for multiplier in multipliers)
        return common if (products >> common) + addend + 2 <= _WORD.maximum else 0
    return 0


def multiples(values: np.ndarray, shift: np.ndarray, common: int) -> np.ndarray:
    """Values for the common shift, in place of those for a shift a channel."""
    exact = [(value << common) >> down for value, down in zip(values.tolist(), shift.tolist(), strict=True)]
    return np.array(exact, dtype=np.int64)
