"""Rows of attention of which a logarithmic quantizer leaves nothing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from golden.errors import HwsimWarning
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatNode
from hwsim.networks.interpret import Interpreter
from hwsim.quantize.quantizers.adalog import AdaLogGrid
from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2Grid

if TYPE_CHECKING:
    from hwsim.quantize.calibrate import Calibration

# Share of the rows that is worth a warning.
LOST_ROWS = 0.01
# Images at once.
BATCH = 32


def warn_of_lost_rows(calibration: Calibration, images: np.ndarray, device: str) -> None:
    """Warn where whole rows of attention become zero symbols: what they attend to is lost.

    Parameters
    ----------
    calibration : Calibration
        Its grids are judged by the attention of the float network.
    images : ndarray of uint8 [N, H, W, C]
    device : str
        torch device.
    """
    grids = {name: grid for name, grid in calibration.grids.items() if isinstance(grid, AdaLogGrid | LogSqrt2Grid)}
    if not grids:
        return
    lost = dict.fromkeys(grids, 0)
    rows = dict.fromkeys(grids, 0)

    def count(node: FloatNode, value: Tensor) -> Tensor:
        if (grid := grids.get(node.name)) is not None:
            # The largest value of a row has its smallest code.
            largest = grid.codes(value.amax(dim=-1))
            lost[node.name] += int((largest >= grid.zero_symbol).sum())
            rows[node.name] += largest.numel()
        return value

    interpreter = Interpreter(calibration.graph, device)
    for part in batches(len(images), BATCH):
        interpreter.run(images[part], after=count)
    for name in grids:
        share = lost[name] / rows[name]
        if share > LOST_ROWS:
            warnings.warn(
                f"{name}: {100 * share:.1f} % of the rows of attention have zero symbols alone; "
                "use more attention bits",
                HwsimWarning,
                stacklevel=2,
            )
