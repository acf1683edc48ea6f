"""The published fake-quantized network: floats that lie on the grids, as the released code computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hwsim.execute.parallel import map_batches
from hwsim.networks.graph import FloatNode
from hwsim.networks.interpret import Interpreter, Operation
from hwsim.quantize.calibrate import Calibration
from hwsim.quantize.quantizers.log2 import Log2Grid
from hwsim.quantize.quantizers.power_of_two import PowerOfTwoGrid
from hwsim.quantize.quantizers.uniform import UniformGrid
from hwsim.quantize.softmax import log_int_softmax


class FakeQuantNetwork:
    """A calibrated network in fake-quantized floats.

    Parameters
    ----------
    calibration : Calibration
    device : str
    noise : float
        Relative normal noise on every residual sum: shows how far any disturbance of that size moves the
        predictions, so that differences of the integer program can be told from it.
    seed : int
        Of the noise, which is the same in every batch.
    """

    def __init__(self, calibration: Calibration, device: str = "cpu", *, noise: float = 0.0, seed: int = 0) -> None:
        self.calibration = calibration
        self.noise, self.seed = noise, seed
        self.interpreter = Interpreter(calibration.graph, device)
        self._parameters: dict[str, dict[str, Tensor]] = {}
        self._operations: dict[str, Operation] = {}
        # With PTS the released code computes every LayerNorm in integers, also those whose input has one scale
        # (the first ones of Swin).
        power_of_two = any(isinstance(grid, PowerOfTwoGrid) for grid in calibration.grids.values())
        for node in calibration.graph.nodes:
            if node.operation == "linear":
                weight = torch.from_numpy(calibration.weights[node.name].values())
                self._parameters[node.name] = {"weight": weight.to(self.interpreter.device)}
            elif node.operation == "layernorm" and power_of_two:
                incoming = calibration.grid(node.inputs[0])
                outgoing = calibration.grids.get(node.name)
                if isinstance(incoming, PowerOfTwoGrid | UniformGrid) and isinstance(outgoing, UniformGrid):
                    self._operations[node.name] = partial(_integer_layernorm, incoming, outgoing)
            elif node.operation == "softmax":
                attention = calibration.grid(node.name)
                if isinstance(attention, Log2Grid):
                    scores = calibration.grid(node.inputs[0])
                    assert isinstance(scores, UniformGrid)
                    self._operations[node.name] = partial(_log_int_softmax, scores, attention)

    def run(
        self,
        images: np.ndarray,
        codes: dict[str, np.ndarray] | None = None,
        observe: Callable[[FloatNode, Tensor], None] | None = None,
    ) -> np.ndarray:
        """Logits, float32 [N, classes], of a batch of uint8 images.

        Parameters
        ----------
        images : ndarray of uint8 [N, H, W, C]
        codes : dict, optional
            Filled with the codes of every point, int64 arrays by node name.
        observe : callable, optional
            Called with every node and its value in front of the quantizer.
        """
        generator = torch.Generator(self.interpreter.device).manual_seed(self.seed)

        def quantize(node: FloatNode, value: Tensor) -> Tensor:
            if self.noise and node.operation == "add":
                value = value + self.noise * value * torch.randn(value.shape, generator=generator, device=value.device)
            if observe is not None:
                observe(node, value)
            grid = self.calibration.grids.get(node.name)
            if grid is None:
                return value
            code = grid.codes(value)
            if codes is not None:
                codes[node.name] = code.cpu().numpy().astype(np.int64)
            # A Log-Int-Softmax gives values that lie on the grid already.
            return value if isinstance(grid, Log2Grid) else grid.values(code)

        logits = self.interpreter.run(images, after=quantize, operations=self._operations, parameters=self._parameters)
        return logits.cpu().numpy()

    def predict(
        self, images: np.ndarray, *, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Logits, float32 [N, classes], batch by batch."""
        return np.concatenate(map_batches(lambda part: self.run(images[part]), len(images), batch, progress))


def _log_int_softmax(
    scores: UniformGrid, grid: Log2Grid, node: FloatNode, parameters: Mapping[str, Tensor], operands: Sequence[Tensor]
) -> Tensor:
    # Not clipped to the codes: a masked score lies far below them. A zero point would cancel.
    return grid.values(log_int_softmax((operands[0] / scores.scale).round(), scores.scale, grid.bits))


def _integer_layernorm(
    incoming: PowerOfTwoGrid | UniformGrid,
    outgoing: UniformGrid,
    node: FloatNode,
    parameters: Mapping[str, Tensor],
    operands: Sequence[Tensor],
) -> Tensor:
    """FQ-ViT's QIntLayerNorm in its integer mode (algorithms 1.4), sums in float64."""
    (x,) = operands
    channels = x.shape[-1]
    gamma, beta = (parameters[name].double() for name in ("weight", "bias"))
    scales = torch.from_numpy(incoming.scales(channels)).to(x.device)
    smallest = scales.min()
    integer = (x.double() / scales).round() * (scales / smallest).round()
    s1 = integer.sum(dim=-1, keepdim=True)
    variance = channels * integer.square().sum(dim=-1, keepdim=True) - s1.square()
    root = variance.clamp(min=1).sqrt()
    slope = channels * gamma / (root * outgoing.scale)
    # floor(log2(x)) is frexp's exponent less one; a gamma of 0 takes the largest shift, as log2(0) would.
    shift = torch.where(slope == 0, 31, (8 - torch.frexp(slope.abs()).exponent).clamp(0, 31))
    power = torch.exp2(shift.double())
    mantissa = torch.floor(slope.abs() * power).clamp(0, 255)
    offset = ((beta - s1 / root * gamma) / outgoing.scale * power).round()
    y = ((slope.sign() * mantissa * integer + offset) / power).round()
    # A constant row, undefined in the released code, gives beta.
    return (torch.where(variance > 0, y, (beta / outgoing.scale).round()) * outgoing.scale).float()
