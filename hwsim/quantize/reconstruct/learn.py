"""Block reconstruction: the rounding of weights and the steps of activations by the error of a block's output.

Sources: BRECQ (Li et al., ICLR 2021) for the blocks and their order, AdaRound (Nagel et al., ICML 2020) for the
rounding, AdaLog (Wu et al., ECCV 2024) and its released code for the loss: the squared error of the output, summed
over the tokens, a tenth of it, and for the logits the Kullback-Leibler divergence from those of the float network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from golden.errors import HwsimError
from hwsim.execute.parallel import batches
from hwsim.networks.graph import FloatNode
from hwsim.networks.interpret import Interpreter, evaluate
from hwsim.quantize.lost_rows import warn_of_lost_rows
from hwsim.quantize.quantizers.protocol import Grid
from hwsim.quantize.reconstruct.activations import LEAST_SHARE, LearnedGrid, learned_grid
from hwsim.quantize.reconstruct.blocks import Block, blocks
from hwsim.quantize.reconstruct.rounding import LearnedRounding, undecided
from hwsim.quantize.reconstruct.settings import Reconstruction
from hwsim.quantize.reconstruct.steps import Group, falling, take_steps
from hwsim.quantize.weights import QuantizedWeight

if TYPE_CHECKING:
    from hwsim.quantize.calibrate import Calibration

# Of the squared error of a block, as released.
ERROR_SHARE = 0.1
# Images at once where nothing is learned.
BATCH = 64

Progress = Callable[[int], None]
After = Callable[[FloatNode, Tensor], Tensor]
Weights = Mapping[str, Tensor]


def reconstruct(
    calibration: Calibration,
    images: np.ndarray,
    settings: Reconstruction,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Calibration:
    """A calibrated network with learned rounding of its weights and, if so wanted, learned activation steps.

    Parameters
    ----------
    calibration : Calibration
        What a search has found.
    images : ndarray of uint8 [N, H, W, C]
    settings : Reconstruction
    device : str
        torch device.
    progress : callable, optional
        Called with the number of iterations after some of them; there are ``len(blocks(graph)) * iterations``.

    Returns
    -------
    Calibration
        ``reconstructed`` has the error of every block before and behind it. A block whose error on all images did not
        fall keeps what it had.

    Raises
    ------
    HwsimError
        No images, an activation whose step cannot be learned, a block that is tied to others, or an error that is not
        finite.

    Warns
    -----
    UserWarning
        Rows of attention of which nothing is left, if the scales of activations were learned.
    """
    if not len(images):
        raise HwsimError(f"{calibration.graph.name}: a reconstruction needs at least one image")
    interpreter = Interpreter(calibration.graph, device)
    wanted = torch.cat([interpreter.load(images[part]) for part in batches(len(images), BATCH)])
    given = wanted
    grids, weights = dict(calibration.grids), dict(calibration.weights)
    errors: dict[str, tuple[float, float]] = {}
    for index, block in enumerate(blocks(calibration.graph)):
        network = _BlockNetwork(block, interpreter, settings)
        target = network.run_all(wanted, None, {})
        if settings.inputs == "float":
            given = wanted
        hard = network.hard(grids, weights)
        before = network.error_of_all(given, target, *hard)
        learner = _Learner(network, grids, weights)
        learner.learn(given, target, np.random.default_rng([settings.seed, index]), progress)
        found = learner.settled()
        learned = network.hard(grids | found[0], weights | found[1])
        after = network.error_of_all(given, target, *learned)
        if not np.isfinite(after):
            raise HwsimError(
                f"{calibration.graph.name}: the error of {block.name} is {after} behind its reconstruction; "
                "take a smaller rate or more iterations"
            )
        if after < before:
            hard = learned
            grids |= found[0]
            weights |= found[1]
        errors[block.name] = before, min(before, after)
        if settings.inputs == "quantized":
            given = network.run_all(given, *hard)
        wanted = target
    result = replace(calibration, grids=grids, weights=weights, images=len(images), reconstructed=errors)
    if settings.activations:
        warn_of_lost_rows(result, images, device)
    return result


class _BlockNetwork:
    """A block that runs on its input, and its error.

    Parameters
    ----------
    block : Block
    interpreter : Interpreter
        Has the parameters.
    settings : Reconstruction
    """

    def __init__(self, block: Block, interpreter: Interpreter, settings: Reconstruction) -> None:
        self.block, self.settings = block, settings
        self.device = interpreter.device
        self._parameters = interpreter.parameters
        self._is_logits = block.output.role == "logits"

    def run(self, x: Tensor, after: After | None, weights: Weights) -> Tensor:
        """Output of the block for its input `x`; `weights` stand for those of the float network."""

        def parameters(node: FloatNode) -> Mapping[str, Tensor]:
            own = self._parameters[node.name]
            return {**own, "weight": weights[node.name]} if node.name in weights else own

        values = {self.block.source: x} if self.block.source else {}
        return evaluate(self.block.nodes, values, parameters, source=x, after=after)

    def error(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Error of outputs of a batch."""
        if self._is_logits:
            logits = found.flatten(1).log_softmax(dim=-1)
            return functional.kl_div(logits, wanted.flatten(1).softmax(dim=-1), reduction="batchmean")
        return ERROR_SHARE * (found - wanted).square().sum(dim=1).mean()

    def hard(self, grids: Mapping[str, Grid], weights: Mapping[str, QuantizedWeight]) -> tuple[After | None, Weights]:
        """What `run` needs to compute with settled codes."""

        def after(node: FloatNode, value: Tensor) -> Tensor:
            grid = grids.get(node.name)
            return value if grid is None else grid.values(grid.codes(value))

        values = {
            node.name: torch.from_numpy(weights[node.name].values()).to(self.device)
            for node in self.block.nodes
            if node.operation == "linear"
        }
        return after if self.settings.activations else None, values

    @torch.no_grad()
    def run_all(self, x: Tensor, after: After | None, weights: Weights) -> Tensor:
        """Outputs for all images."""
        return torch.cat([self.run(x[part], after, weights) for part in batches(len(x), BATCH)])

    @torch.no_grad()
    def error_of_all(self, x: Tensor, wanted: Tensor, after: After | None, weights: Weights) -> float:
        """Mean error over all images."""
        parts = batches(len(x), BATCH)
        errors = [
            self.error(self.run(x[part], after, weights), wanted[part]) * (part.stop - part.start) for part in parts
        ]
        return float(torch.stack(errors).sum()) / len(x)


class _Learner:
    """The variables of a block."""

    def __init__(
        self, network: _BlockNetwork, grids: Mapping[str, Grid], weights: Mapping[str, QuantizedWeight]
    ) -> None:
        self.network = network
        nodes, device = network.block.nodes, network.device
        self.rounding = {
            node.name: LearnedRounding(node.parameters["weight"], weights[node.name], device)
            for node in nodes
            if node.operation == "linear"
        }
        self.steps: dict[str, LearnedGrid] = {}
        if network.settings.activations:
            self.steps = {
                node.name: learned_grid(grids[node.name], node.name, device) for node in nodes if node.name in grids
            }

    def _after(self, node: FloatNode, value: Tensor) -> Tensor:
        step = self.steps.get(node.name)
        return value if step is None else step(value)

    def learn(self, x: Tensor, wanted: Tensor, dice: np.random.Generator, progress: Progress | None) -> None:
        """Settle on inputs and the outputs that the float network has for them."""
        settings, device = self.network.settings, self.network.device
        count, size = settings.iterations, min(settings.batch, len(x))
        drawn = np.stack([dice.permutation(len(x))[:size] for _ in range(count)])
        order = torch.from_numpy(drawn).to(device)
        betas = torch.tensor(settings.betas, device=device)

        def loss(place: Tensor) -> Tensor:
            images = order.index_select(0, place)[0]
            shares = {name: rounding.share() for name, rounding in self.rounding.items()}
            weights = {name: rounding.soft(shares[name]) for name, rounding in self.rounding.items()}
            error = self.network.error(
                self.network.run(x.index_select(0, images), self._after, weights), wanted.index_select(0, images)
            )
            beta = betas.index_select(0, place)
            for share in shares.values():
                error = error + settings.strength * undecided(share, beta)
            return error

        def settle() -> None:
            for step in self.steps.values():
                step.share.clamp_(min=LEAST_SHARE)

        of_weights, of_steps = settings.rates
        groups = [
            Group([rounding.variable for rounding in self.rounding.values()], [of_weights] * count),
            Group([step.share for step in self.steps.values()], falling(of_steps, count)),
        ]
        take_steps(groups, loss, device, settle=settle, progress=progress)

    def settled(self) -> tuple[dict[str, Grid], dict[str, QuantizedWeight]]:
        """Learned grids and weights."""
        grids = {name: step.settled() for name, step in self.steps.items()}
        return grids, {name: rounding.settled() for name, rounding in self.rounding.items()}
