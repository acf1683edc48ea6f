"""Log2 codes by Log-Int-Softmax (FQ-ViT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from golden.errors import HwsimError
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec
from hwsim.quantize.quantizers.protocol import Observer

if TYPE_CHECKING:
    from hwsim.networks.graph import FloatNode
    from hwsim.quantize.lowering.builder import ProgramBuilder


@dataclass(frozen=True)
class Log2Grid:
    """``2**-code`` with a zero symbol past the last code, of a Log-Int-Softmax.

    Parameters
    ----------
    bits : int
    """

    bits: int

    @property
    def zero_symbol(self) -> int:
        return 1 << self.bits

    def codes(self, x: Tensor) -> Tensor:
        """Codes of values that lie on the grid already, as the softmax gives them."""
        return torch.where(x > 0, -torch.log2(x), self.zero_symbol)

    def values(self, codes: Tensor) -> Tensor:
        return torch.where(codes >= self.zero_symbol, 0.0, torch.exp2(-codes))

    def record(self) -> dict[str, Any]:
        return {}

    def emit_softmax(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Log-Int-Softmax of the scores."""
        fields, constants = builder.exponentials(node)
        builder.emit(node.name, LogSoftmaxSpec(code_bits=self.bits, **fields), node.inputs, constants)

    def emit_product(self, builder: ProgramBuilder, node: FloatNode) -> None:
        """Shift and accumulate."""
        values = builder.second_operand(node, "zero_v")
        last = (1 << self.bits) - 1
        requantize, constants = builder.requantizer(
            node.name, values.scale / 2**last / values.outgoing.scale, values.outgoing
        )
        spec = Log2MatmulSpec(
            code_bits=self.bits,
            value_bits=values.bits,
            row_length=values.inner,
            heads=values.heads,
            requantize=requantize,
        )
        builder.emit_narrowed(node, spec, constants | values.constants)


@dataclass(frozen=True)
class Log2:
    """Log2 codes by Log-Int-Softmax.

    Parameters
    ----------
    bits : int
        1 to 5.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 5:
            raise HwsimError(
                f"Log-Int-Softmax takes 1 to 5 attention bits (codes past 2**-32 are zero), not {self.bits}; "
                "use a uniform attention quantizer for more"
            )

    def observer(self) -> Observer:
        return _Fixed(Log2Grid(self.bits))


class _Fixed:
    def __init__(self, grid: Log2Grid) -> None:
        self._grid = grid

    def update(self, x: Tensor) -> None:
        pass

    def grid(self, last: Tensor) -> Log2Grid:
        return self._grid
