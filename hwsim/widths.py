"""Measured accuracy against bit-width: the table that the package ships, as data, as text and as a picture.

The figures of ``hwsim/assets/widths.csv`` were measured by ``hwsim table widths`` and ``hwsim train``;
``tools/record_widths.py`` puts results there and into ``docs/accuracy.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from golden.errors import HwsimError
from hwsim.explore.fronts import wilson
from hwsim.networks.embedded import assets_folder

if TYPE_CHECKING:
    import pandas as pd

ASSET = "widths.csv"
# What a row is told apart by, and what it says.
KEY = ("network", "system", "width")
COLUMNS = ("network", "system", "bits", "width", "images", "float", "fake", "integer", "note", "on", "measured")
# In this order, with colours that colour-blind readers can tell apart (Okabe and Ito).
SYSTEMS = {
    "FQ-ViT": "#0072B2",
    "PTQ4ViT": "#E69F00",
    "RepQ-ViT": "#CC79A7",
    "AdaLog": "#009E73",
    "Q-ViT": "#D55E00",
    "Q-ViT, untrained": "#8C8C8C",
}


def read_widths(path: Path | None = None) -> pd.DataFrame:
    """The file as it is, sorted by network, system and width: the columns of `COLUMNS`.

    Parameters
    ----------
    path : Path, optional
        The package's own by default.

    Raises
    ------
    HwsimError
        The file is missing or has other columns.
    """
    import pandas as pd

    path = path or assets_folder() / ASSET
    try:
        data = pd.read_csv(path, keep_default_na=False, na_values={"fake": [""], "integer": [""]})
    except (OSError, ValueError) as error:
        raise HwsimError(f"{path}: cannot be read ({error}); reinstall vit-hwsim") from None
    if tuple(data.columns) != COLUMNS:
        raise HwsimError(f"{path}: has the columns {', '.join(data.columns)}, not {', '.join(COLUMNS)}")
    return arranged(data)


def measured_widths(path: Path | None = None) -> pd.DataFrame:
    """The table with intervals.

    Parameters
    ----------
    path : Path, optional
        See `read_widths`.

    Returns
    -------
    DataFrame
        A row a network, system and width, widest first. ``float``, ``fake`` and ``integer`` are top-1 in percent of
        ``images`` images, empty where there is no such network, and ``note`` says why. ``fake_low``, ``fake_high``,
        ``integer_low``, ``integer_high`` are Wilson's intervals at 95 %.

    Raises
    ------
    HwsimError
        See `read_widths`.
    """
    data = read_widths(path)
    for kind in ("fake", "integer"):
        bounds = [_interval(value, images) for value, images in zip(data[kind], data["images"], strict=True)]
        data[f"{kind}_low"], data[f"{kind}_high"] = zip(*bounds, strict=True)
    return data


def arranged(data: pd.DataFrame) -> pd.DataFrame:
    """Rows by network (as they come), system (in the order of `SYSTEMS`) and width (widest first)."""
    data = data.reset_index(drop=True)  # tables that were joined have the same index twice
    networks, systems = list(dict.fromkeys(data["network"])), list(SYSTEMS)
    places = {"network": networks.index, "system": systems.index, "width": lambda width: -width}
    order = data.assign(**{name: data[name].map(place) for name, place in places.items()}).sort_values(list(KEY)).index
    return data.loc[order].reset_index(drop=True)


def _interval(top1: float, images: int) -> tuple[float, float]:
    if top1 != top1:
        return float("nan"), float("nan")
    return wilson(round(top1 / 100 * images), images)


def markdown(data: pd.DataFrame) -> str:
    """A table a network: a line a width, a column a system, fake-quantized / integer and the integer's interval.

    Parameters
    ----------
    data : DataFrame
        Of `measured_widths`.
    """
    lines: list[str] = []
    for network, rows in data.groupby("network", sort=False):
        first = rows.iloc[0]
        systems = [system for system in SYSTEMS if (rows["system"] == system).any()]
        low, high = wilson(round(first["float"] / 100 * first["images"]), int(first["images"]))
        lines += [
            f"**{network}**, {first['images']:,} images, float {first['float']:.2f} ({low:.2f} - {high:.2f})",
            "",
            "| bits | " + " | ".join(systems) + " |",
            "|--:|" + "--:|" * len(systems),
        ]
        for width in sorted(set(rows["width"]), reverse=True):
            cells = [_cell(rows[(rows["system"] == system) & (rows["width"] == width)]) for system in systems]
            lines.append(f"| {width} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    if row["fake"] != row["fake"]:
        return "refused"
    if row["integer"] != row["integer"]:
        return f"{row['fake']:.2f} / -"
    return f"{row['fake']:.2f} / **{row['integer']:.2f}** ({row['integer_low']:.1f} - {row['integer_high']:.1f})"


def draw(axes: Any, rows: pd.DataFrame) -> None:
    """Accuracy of one network against width: integer top-1 with its interval as a band, fake-quantized dashed.

    Parameters
    ----------
    axes : matplotlib Axes
    rows : DataFrame
        Of one network, from `measured_widths`.
    """
    for system, colour in SYSTEMS.items():
        line = rows[(rows["system"] == system) & rows["integer"].notna()].sort_values("width")
        if line.empty:
            continue
        axes.plot(line["width"], line["integer"], "o-", ms=4, lw=1.4, color=colour, label=system)
        axes.plot(line["width"], line["fake"], "--", lw=0.9, color=colour)
        axes.fill_between(line["width"], line["integer_low"], line["integer_high"], color=colour, alpha=0.25, lw=0)
    axes.axhline(rows["float"].iloc[0], color="#222222", lw=0.9, ls=":")
    axes.annotate(
        "float", (8, rows["float"].iloc[0]), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    axes.set(xlabel="bits of weights, activations and attention", xticks=sorted(set(rows["width"])))
    axes.set_title(f"{rows['network'].iloc[0]}, {rows['images'].iloc[0]:,} images", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E5E5E5", lw=0.8)
    axes.set_axisbelow(True)
