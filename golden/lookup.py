"""Lookup: any one-input function as a table from input code to output code."""

from __future__ import annotations

import numpy as np

from golden.errors import HwsimError
from golden.spec import Constant, Constants, IntFormat, Shape, Spec, ranged


class LookupSpec(Spec):
    """A table from unsigned input codes to unsigned output codes.

    Serves GELU, and any quantizer fused behind it (DESIGN rule 8); with several
    channels, each channel of the last axis has its own table (input pixels).

    Attributes
    ----------
    input_bits, output_bits : int
        Widths of the codes.
    channels : int
        1, or the size of the last axis.

    Constants
    ---------
    table : [channels, 2**input_bits], unsigned `output_bits`
    """

    kind = "lookup"
    input_bits: int = ranged(1, 16)
    output_bits: int = ranged(1, 16)
    channels: int = ranged(1, 4096, default=1)

    @property
    def constants(self) -> dict[str, Constant]:
        return {"table": Constant((self.channels, 1 << self.input_bits), self.output)}

    @property
    def input(self) -> IntFormat:
        return IntFormat(self.input_bits)

    @property
    def output(self) -> IntFormat:
        return IntFormat(self.output_bits)

    def shape(self, *inputs: Shape) -> Shape:
        if self.channels not in (1, inputs[0][-1]):
            raise HwsimError(f"lookup: {self.channels} tables for {inputs[0][-1]} channels")
        return inputs[0]

    def compute(self, constants: Constants, *inputs: np.ndarray) -> np.ndarray:
        """Table entry of every code; any shape (last axis `channels` when above 1)."""
        (codes,) = inputs
        channel = np.arange(self.channels) if self.channels > 1 else 0
        return constants["table"].astype(self.output.dtype, copy=False)[channel, codes]
