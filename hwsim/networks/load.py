"""Networks by name or checkpoint, as float graphs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from golden.errors import HwsimError
from hwsim.networks.embedded import MEAN, NETWORKS, STD, build_model
from hwsim.networks.graph import FloatGraph

# DeiT evaluates at 224/256 (its repository and FQ-ViT's); timm's configuration says 0.9 since its version 0.8.
DEIT_CROP_RATIO = 0.875

_KNOWN = re.compile(
    r"vit_(tiny|small|base|large)_patch\d+_\d+|deit_(tiny|small|base)(_distilled)?_patch16_\d+"
    r"|swin_(tiny|small|base|large)_patch4_window\d+_\d+"
)


def load_network(
    name: str,
    *,
    checkpoint: Path | None = None,
    architecture: str | None = None,
    random_weights: int | None = None,
) -> FloatGraph:
    """A float network.

    Parameters
    ----------
    name : str
        "embedded", "embedded-swin", a timm model name (its weights are downloaded by timm when there is no
        `checkpoint`), or the path of a checkpoint.
    checkpoint : Path, optional
        Local weights with timm's key names: safetensors, or a torch state dict.
    architecture : str, optional
        timm model name of a checkpoint whose file name does not tell.
    random_weights : int, optional
        Seed of timm's random initialisation, in place of trained weights: for structure, not for accuracy.

    Raises
    ------
    HwsimError
        Unknown network, no weights to be had, a checkpoint that cannot be read or whose keys or
        shapes do not fit, or a block that the package does not know.
    """
    if random_weights is not None and checkpoint is not None:
        raise HwsimError(f"{name}: a network has either random weights or those of {checkpoint}; drop one option")
    if name in NETWORKS and checkpoint is not None:
        raise HwsimError(
            f"{name} has its own weights; leave --checkpoint out, or name the timm network that {checkpoint} is of"
        )
    if name in NETWORKS:
        with _seeded(random_weights or 0):
            model = build_model(pretrained=random_weights is None, name=name)
        return float_graph(model, name, mean=MEAN, std=STD)
    import timm

    if Path(name).is_file() or Path(name).suffix in {".safetensors", ".pth", ".pt", ".bin"}:
        checkpoint = Path(name)
        if not checkpoint.is_file():
            raise HwsimError(f"{checkpoint}: there is no such checkpoint")
        name = architecture or _architecture_of(checkpoint)
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, [*NETWORKS, *known_models()], 3)
        raise HwsimError(
            f"{name!r} is neither a file, {' nor '.join(map(repr, NETWORKS))}, nor a timm model"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
        )
    if random_weights is not None:
        with _seeded(random_weights):
            model = timm.create_model(name, pretrained=False)
    elif checkpoint is None:
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm and its hub raise many kinds when there is no network
            raise HwsimError(
                f"{name}: timm could not download the weights ({type(error).__name__}); "
                "give a local file with --checkpoint, or --random-weights SEED"
            ) from None
    else:
        model = timm.create_model(name, pretrained=False)
        _load_state(model, checkpoint, read_checkpoint(checkpoint), name)
    config: Any = model.pretrained_cfg
    return float_graph(
        model.eval(),
        name,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_ratio=DEIT_CROP_RATIO if name.startswith("deit_") else float(config["crop_pct"]),
    )


def known_models() -> list[str]:
    """Names of timm's plain ViT, DeiT and Swin models, which the package takes; it takes others of their structure."""
    import timm

    # A few of timm's models have no head.
    return [
        name
        for name in timm.list_models()
        if _KNOWN.fullmatch(name) is not None and timm.get_pretrained_cfg_value(name, "num_classes") != 0
    ]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generator, seeded inside the block and as before after it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def float_graph(
    model: Any, name: str, *, mean: tuple[float, ...], std: tuple[float, ...], crop_ratio: float = 1.0
) -> FloatGraph:
    """The float graph of a timm model of a known family.

    Parameters
    ----------
    model : torch.nn.Module
    name, mean, std, crop_ratio
        As in `FloatGraph`.

    Raises
    ------
    HwsimError
        A network or a block that the package does not know (named).
    """
    from hwsim.networks.swin_transformer import swin_transformer_graph
    from hwsim.networks.vision_transformer import vision_transformer_graph

    read = swin_transformer_graph if type(model).__name__ == "SwinTransformer" else vision_transformer_graph
    return read(model, name, mean=mean, std=std, crop_ratio=crop_ratio)


def _architecture_of(checkpoint: Path) -> str:
    """The timm model whose name is the longest beginning of the file name."""
    import timm

    fits = [name for name in timm.list_models() if checkpoint.name.startswith(name)]
    if not fits:
        raise HwsimError(
            f"{checkpoint}: the file name does not begin with a timm model name; name it with --architecture"
        )
    return max(fits, key=len)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors of a checkpoint file by key.

    Raises
    ------
    HwsimError
        The file is missing or not a readable checkpoint.
    """
    if not path.is_file():
        raise HwsimError(f"{path}: there is no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        raise HwsimError(f"{path}: not a readable checkpoint ({type(error).__name__}); download it again") from None
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise HwsimError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def _load_state(model: Any, path: Path, state: dict[str, Any], name: str) -> None:
    """Load weights strictly, naming what does not fit."""
    expected = model.state_dict()
    for key, tensor in state.items():
        if key in expected and tuple(tensor.shape) != tuple(expected[key].shape):
            raise HwsimError(
                f"{path}: {key} has shape {list(tensor.shape)}, {name} needs {list(expected[key].shape)}; "
                "it is a checkpoint of another network"
            )
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    if missing or unknown:
        faults = [f"lacks {len(missing)} keys such as {missing[0]}"] if missing else []
        faults += [f"has {len(unknown)} unknown keys such as {unknown[0]}"] if unknown else []
        raise HwsimError(f"{path}: does not fit {name}: it {' and '.join(faults)}")
    model.load_state_dict(state, strict=True)
