"""LAMB on the parameters of a network, all at once where it treats them alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hwsim.qat.network import QuantizedNetwork
from hwsim.qat.settings import TrainingSettings

# Places of a parameter begin at multiples of so many values: 256 bytes, as torch's own allocations.
ALIGNMENT = 64


class ParameterUpdate:
    """Timm's LAMB.

    Without weight decay timm's LAMB has one rate for all layers: Adam on gradients of limited norm, value by value. The
    parameters then are views of one tensor, which takes a dozen kernels a step in place of a dozen a parameter.

    Parameters
    ----------
    network : QuantizedNetwork
    settings : TrainingSettings

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
    """

    def __init__(self, network: QuantizedNetwork, settings: TrainingSettings) -> None:
        from timm.optim.lamb import Lamb

        self.parameters = list(network.named_tensors().values())
        self._gradients: list[Tensor] = []
        options: dict[str, Any] = {"lr": settings.learning_rate, "max_grad_norm": settings.clip or None}
        if settings.weight_decay:
            self.optimizer: torch.optim.Optimizer = Lamb(_groups(network, settings.weight_decay), **options)
        else:
            self.optimizer = Lamb([self._joined()], weight_decay=0.0, **options)

    def _joined(self) -> nn.Parameter:
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        whole = nn.Parameter(torch.zeros(sum(sizes), device=self.parameters[0].device))
        whole.grad = torch.zeros_like(whole)
        begin = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            part = slice(begin, begin + parameter.numel())
            place = whole.data[part].view(parameter.shape)
            place.copy_(parameter.data)
            parameter.data = place
            self._gradients.append(whole.grad[part].view(parameter.shape))
            begin += size
        return whole

    def clear(self) -> None:
        """Forget the gradients, so that the next backward makes new ones."""
        for parameter in self.parameters:
            parameter.grad = None

    def gather(self) -> None:
        """Take the gradients over; behind every backward."""
        if self._gradients:
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            torch._foreach_copy_(self._gradients, found)

    def step(self, rate: float) -> None:
        """Change the parameters by the gradients, at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def _groups(network: QuantizedNetwork, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of linear layers, which decay, and the rest."""
    linear = {f"{node.name}.weight" for node in network.graph.nodes if node.operation == "linear"}
    tensors = network.named_tensors()
    return [
        {"params": [tensors[key] for key in tensors if key in linear], "weight_decay": weight_decay},
        {"params": [tensors[key] for key in tensors if key not in linear], "weight_decay": 0.0},
    ]
