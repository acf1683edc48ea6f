"""What recipes, calibration, fake quantization and lowering expect of a quantizer.

A *quantizer* is the declarative value in a recipe. Its *observer* sees the
calibration batches of one point and ends in a *grid*: where the codes of that
point lie. A grid quantizes in torch and, where its codes are not uniform, says
which integer units make and use them (``emit_softmax``, ``emit_product``,
``emit_linear``; see `hwsim.quantize.lowering`).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from golden.errors import HwsimError


class Grid(Protocol):
    """Where the codes of a point lie.

    Attributes
    ----------
    bits : int
        Width of the codes.
    """

    @property
    def bits(self) -> int: ...

    def codes(self, x: Tensor) -> Tensor:
        """Codes of real values, integers in float32."""
        ...

    def values(self, codes: Tensor) -> Tensor:
        """Real values of codes."""
        ...

    def record(self) -> dict[str, Any]:
        """JSON values for the program's header."""
        ...


class Observer(Protocol):
    """State of one point during calibration."""

    def update(self, x: Tensor) -> None:
        """See one batch of the activation."""
        ...

    def grid(self, last: Tensor) -> Grid:
        """The grid, given the last batch (already seen by `update`)."""
        ...


def update_at(point: str, observer: Observer, x: Tensor) -> None:
    """Let an observer see a batch of a point.

    Raises
    ------
    HwsimError
        Values that its quantizer does not take; names the point.
    """
    try:
        observer.update(x)
    except HwsimError as error:
        raise HwsimError(f"{point}: {error}") from None


class Quantizer(Protocol):
    """What a recipe puts at a point; calibrating it starts with an observer."""

    def observer(self) -> Observer: ...
