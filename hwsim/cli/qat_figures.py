"""``hwsim qat-figures``: what training did to attention, as pictures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from golden.errors import HwsimError
from hwsim.cli.display import progress, table
from hwsim.cli.source import BUILD, evaluation_images, trained_file

if TYPE_CHECKING:
    from hwsim.qat.attention import Attention
    from hwsim.quantize.calibrate import Calibration


@click.command("qat-figures")
@click.argument("trained", nargs=-1, required=True, metavar="[LABEL=]FOLDER...")
@click.option(
    "--float",
    "float_network",
    metavar="NETWORK|CHECKPOINT",
    help='Float network beside them, or "none".  [default: of the name of the trained ones]',
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Local weights of the float network.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [default: the embedded test set]")
@click.option("--images", default=128, show_default=True, type=click.IntRange(1), help="Images to measure on.")
@click.option(
    "--format", "form", type=click.Choice(("png", "svg")), default="png", show_default=True, help="Of the figures."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=BUILD / "qat-figures",
    show_default=True,
    help="Folder of the figures and CSV files.",
)
def qat_figures_command(
    trained: tuple[str, ...],
    float_network: str | None,
    checkpoint: Path | None,
    data: Path | None,
    images: int,
    form: str,
    output: Path,
) -> None:
    """Figures 1, 4 and 5 of the Q-ViT paper, of networks that `hwsim train` or `hwsim qat-ablation` trained.

    FOLDER is the folder of a run (or its trained.safetensors), LABEL what the figures call it. Written are histograms
    of queries and keys beside a Gaussian, before and behind the IRM, entropies of their codes, and the attention
    distance of every head, as PNG or SVG; and all numbers as CSV.
    """
    import pandas as pd

    from golden.files import write_atomically
    from hwsim.networks.load import load_network
    from hwsim.plots import FORMATS
    from hwsim.qat.attention import float_attention, trained_attention
    from hwsim.qat.attention_plots import attention_distances, distributions, entropies

    runs = _read(trained)
    first = next(iter(runs.values()))
    chosen = evaluation_images(first.graph, data, images).images[:images]
    found: list[Attention] = []
    with progress("measuring", len(runs) + 1) as done:
        if float_network != "none":
            graph = load_network(float_network or first.graph.name, checkpoint=checkpoint)
            found.append(float_attention("float", graph, chosen))
            _check_same(found[0], trained_attention("trained", first, chosen[:1]), "the float network")
        done(1)
        for label, calibration in runs.items():
            found.append(trained_attention(label, calibration, chosen))
            done(1)
    operands, distances = _frames(found)
    written: dict[str, bytes | str] = {
        f"queries.{form}": distributions(found, "query", FORMATS[form]),
        f"keys.{form}": distributions(found, "key", FORMATS[form]),
        f"entropy.{form}": entropies(found, FORMATS[form]),
        f"attention_distance.{form}": attention_distances(found, FORMATS[form]),
        "distributions.csv": pd.DataFrame(operands).to_csv(index=False),
        "attention_distance.csv": pd.DataFrame(distances).to_csv(index=False),
    }
    for name, content in written.items():
        write_atomically(output / name, content)
    columns = ("network", "distance to a Gaussian", "of it before IRM", "entropy (bit)", "attention distance",
               "differs from float by")  # fmt: skip
    table(columns, _summary(found), title=f"{first.graph.name}, means over blocks, {len(chosen)} images")
    click.echo(f"wrote {output}: {', '.join(written)}")


def _read(trained: tuple[str, ...]) -> dict[str, Calibration]:
    """Trained networks by label.

    Raises
    ------
    HwsimError
        A file that cannot be read, a label given twice, or networks of different structures.
    """
    from hwsim.qat.export import load_trained

    runs: dict[str, Calibration] = {}
    for argument in trained:
        label, given, place = argument.partition("=")
        path = Path(place if given else argument)
        file = trained_file(path)
        label = label if given else file.resolve().parent.name
        if label in runs:
            raise HwsimError(f"two networks are called {label!r}; name them with LABEL=FOLDER")
        runs[label] = load_trained(file)[0]
        names = {calibration.graph.name for calibration in runs.values()}
        if len(names) > 1:
            raise HwsimError(f"{argument}: networks of one kind are compared, these are {' and '.join(sorted(names))}")
    return runs


def _check_same(one: Attention, other: Attention, what: str) -> None:
    if one.distances.keys() != other.distances.keys():
        raise HwsimError(f"{what} has other blocks than the trained ones; name theirs with --float")


def _frames(found: list[Attention]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables."""
    operands = [
        {
            "network": attention.label,
            "block": each.block,
            "role": each.role,
            "stage": each.stage,
            "mean": each.mean,
            "std": each.std,
            "gaussian_distance": each.gaussian_distance,
            "bits": each.bits,
            "entropy": each.entropy,
        }
        for attention in found
        for each in attention.operands
    ]
    distances = [
        {"network": attention.label, "block": block, "head": head, "attention_distance": float(distance)}
        for attention in found
        for block, heads in attention.distances.items()
        for head, distance in enumerate(heads)
    ]
    return operands, distances


def _summary(found: list[Attention]) -> list[tuple[Any, ...]]:
    import numpy as np

    from hwsim.qat.attention import BEFORE_IRM, QUANTIZED

    def mean(values: list[float]) -> float | str:
        return float(np.mean(values)) if values else "-"

    rows = []
    for attention in found:
        own = attention.operands
        heads = np.concatenate(list(attention.distances.values()))
        apart: float | str = "-"
        if found[0].label == "float" and attention is not found[0]:
            apart = float(np.abs(heads - np.concatenate(list(found[0].distances.values()))).mean())
        rows.append(
            (
                attention.label,
                mean([each.gaussian_distance for each in own if each.stage == QUANTIZED]),
                mean([each.gaussian_distance for each in own if each.stage == BEFORE_IRM]),
                mean([each.entropy for each in own if each.entropy is not None]),
                float(heads.mean()),
                apart,
            )
        )
    return rows
