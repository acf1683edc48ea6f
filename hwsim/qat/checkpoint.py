"""Checkpoints: a run's parameters, optimizer and place, from which it goes on as if it had never stopped.

There is no state of random numbers in it: the batches of a step follow from the seed, see `hwsim.qat.data`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden.errors import HwsimError
from golden.tensor_file import load_tensors, save_tensors
from hwsim.networks.graph import FloatGraph
from hwsim.qat.network import QuantizedNetwork

PURPOSE = "training checkpoint"
FORMAT_VERSION = 1
REMEDY = "start over with --fresh"


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Parameters
    ----------
    epoch : int
        Epochs that are complete.
    step : int
        Steps of the next one that are.
    sums : tuple of float
        Losses of these steps, see `hwsim.qat.step.PARTS`.
    """

    epoch: int = 0
    step: int = 0
    sums: tuple[float, ...] = ()


def graph_digest(graph: FloatGraph) -> str:
    """Tells two float networks apart: their operations and parameters."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        attributes = sorted(node.attributes.items())
        digest.update(repr((node.name, node.operation, node.role, node.inputs, attributes)).encode())
        for name in sorted(node.parameters):
            digest.update(np.ascontiguousarray(node.parameters[name]).data)
    return digest.hexdigest()[:16]


def _tensors(network: QuantizedNetwork) -> dict[str, torch.Tensor]:
    """Parameters, and the first steps that some are relative to: another machine may observe them a bit off."""
    return network.named_tensors() | {f"{place}.step_start": start for place, start in network.starts().items()}


def save_checkpoint(
    path: Path,
    network: QuantizedNetwork,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    place: Place,
) -> None:
    """Write a checkpoint, whole or not at all: the one before stays until the new one is complete.

    Parameters
    ----------
    identity : mapping
        JSON values that a run must share to go on from here.

    Raises
    ------
    HwsimError
        The file cannot be written.
    """
    state = optimizer.state_dict()
    arrays = {f"network:{key}": tensor.detach().cpu().numpy() for key, tensor in _tensors(network).items()}
    counts: list[Any] = []
    for index, tensors in state["state"].items():
        arrays |= {f"optimizer:{index}:{name}": tensor.cpu().numpy() for name, tensor in tensors.items()}
    for index, group in enumerate(state["param_groups"]):
        count = group.get("step", 0)
        counts.append(None if isinstance(count, torch.Tensor) else count)
        if isinstance(count, torch.Tensor):
            arrays[f"step:{index}"] = count.cpu().numpy()
    header = {
        "identity": dict(identity),
        "epoch": place.epoch,
        "step": place.step,
        "sums": list(place.sums),
        "counts": counts,
    }
    save_tensors(path, PURPOSE, FORMAT_VERSION, header, arrays)


def load_checkpoint(
    path: Path, network: QuantizedNetwork, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> Place:
    """Put a checkpoint's values into a network and an optimizer of the same kind.

    Raises
    ------
    HwsimError
        The file is damaged, or of another network, other data or settings; names what differs. Nothing is loaded
        then.
    """
    header, arrays = load_tensors(path, PURPOSE, FORMAT_VERSION, REMEDY)
    stored: dict[str, Any] = header.get("identity", {})
    for field, value in identity.items():
        if stored.get(field) != value:
            raise HwsimError(
                f"{path}: this run has {field.replace('_', ' ')} {value}, the checkpoint {stored.get(field)}; give "
                "another folder with -o, the same options, or --fresh to start over"
            )
    tensors = _tensors(network)
    found = {key.partition(":")[2]: array for key, array in arrays.items() if key.startswith("network:")}
    if set(found) != set(tensors) or any(found[key].shape != tuple(tensors[key].shape) for key in tensors):
        raise HwsimError(f"{path}: its parameters are not those of {network.graph.name}; {REMEDY}")
    state = optimizer.state_dict()
    try:
        state["state"] = {}
        for key, array in arrays.items():
            if key.startswith("optimizer:"):
                _, index, name = key.split(":")
                state["state"].setdefault(int(index), {})[name] = torch.from_numpy(array)
        for number, group in enumerate(state["param_groups"]):
            count = header["counts"][number]
            group["step"] = torch.from_numpy(arrays[f"step:{number}"]) if count is None else count
        place = Place(int(header["epoch"]), int(header["step"]), tuple(header["sums"]))
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise HwsimError(f"{path}: malformed checkpoint ({error!r}); {REMEDY}") from None
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(found[key]))
    optimizer.load_state_dict(state)
    return place
