"""Figures 1, 4 and 5 of the Q-ViT paper, of networks that were trained here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hwsim.plots import BLUE, GREY, INK, LINE, ORANGE, bare, new_canvas, png
from hwsim.qat.attention import BEFORE_IRM, EDGES, QUANTIZED, Attention, Operand

RED, GREEN, PURPLE = "#D55E00", "#009E73", "#CC79A7"
COLOURS = (INK, BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
MARKERS = "osD^vPX"
SHOWN_BLOCKS = 3


Format = Callable[[Any], bytes]


def distributions(found: Sequence[Attention], role: str, form: Format = png) -> bytes:
    """Histograms of queries or keys of the first, middle and last block, a line a network, beside a Gaussian.

    Parameters
    ----------
    found : sequence of Attention
        Of one network structure.
    role : {"query", "key"}
    form : callable
        One of `hwsim.plots.FORMATS`.
    """
    blocks = list(found[0].distances)
    middle = len(blocks) // 2
    shown = list(dict.fromkeys(blocks[place] for place in (0, middle, len(blocks) - 1)))[:SHOWN_BLOCKS]
    canvas = new_canvas(3.1 * len(shown) + 0.6, 1.75 * len(found) + 0.7)
    grid = canvas.subplots(len(found), len(shown), sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for line, attention in zip(grid, found, strict=True):
        line[0].set_ylabel(attention.label, fontsize=9)
        for axes, block in zip(line, shown, strict=True):
            handles |= _histogram(axes, _of(attention, block, role))
    for axes, block in zip(grid[0], shown, strict=True):
        axes.set_title(block.removesuffix(".attn"), fontsize=9, color=INK, loc="left")
    name = {"query": "queries", "key": "keys"}[role]
    canvas.supxlabel(f"{name}, standard deviations from the mean", fontsize=9)
    canvas.legend(
        handles=list(handles.values()), labels=list(handles), loc="outside upper center", ncols=4, fontsize=9,
        frameon=False,
    )  # fmt: skip
    return form(canvas)


def _of(attention: Attention, block: str, role: str) -> dict[str, Operand]:
    return {each.stage: each for each in attention.operands if (each.block, each.role) == (block, role)}


def _histogram(axes: Any, stages: dict[str, Operand]) -> dict[str, Any]:
    """One panel; gives its legend."""
    operand = stages[QUANTIZED]
    handles = {"in front of the quantizer": axes.stairs(operand.density, EDGES, fill=True, color=BLUE, alpha=0.75)}
    if BEFORE_IRM in stages:
        handles["before the IRM"] = axes.stairs(stages[BEFORE_IRM].density, EDGES, color=ORANGE, linewidth=1.3)
    z = np.linspace(EDGES[0], EDGES[-1], 200)
    pdf = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    (handles["Gaussian"],) = axes.plot(z, pdf, color=RED, linewidth=1.2)
    for threshold in operand.thresholds:
        if EDGES[0] < threshold < EDGES[-1]:
            line = axes.axvline(threshold, color=GREY, linewidth=0.7, linestyle=":")
            handles["between two codes"] = line
    said = [f"distance {operand.gaussian_distance:.3f}"]
    if operand.entropy is not None:
        said.append(f"entropy {operand.entropy:.2f} of {operand.bits} bit")
    axes.text(0.98, 0.95, "\n".join(said), transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=INK)
    bare(axes)
    return handles


def entropies(found: Sequence[Attention], form: Format = png) -> bytes:
    """Entropy of the codes of queries and keys of every block."""
    canvas = new_canvas(9.7, 3.5)
    both = canvas.subplots(1, 2, sharey=True)
    coded = [attention for attention in found if any(each.entropy is not None for each in attention.operands)]
    for axes, role, name in zip(both, ("query", "key"), ("queries", "keys"), strict=True):
        for place, attention in enumerate(coded):
            own = [each for each in attention.operands if each.role == role and each.entropy is not None]
            blocks = np.arange(len(own))
            colour, marker = COLOURS[1 + place % (len(COLOURS) - 1)], MARKERS[place % len(MARKERS)]
            heights = [each.entropy for each in own]
            axes.plot(blocks, heights, marker + "-", color=colour, label=attention.label, markersize=5)
        for bits in {each.bits for attention in coded for each in attention.operands if each.bits}:
            axes.axhline(bits, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_title(name, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("block, from 0", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=LINE, linewidth=0.8)
        bare(axes)
    both[0].set_ylabel("entropy of the codes (bit); dashed: largest", fontsize=9)
    _legend(canvas, both[0])
    return form(canvas)


def attention_distances(found: Sequence[Attention], form: Format = png) -> bytes:
    """Attention distance of every head, and the mean of each block."""
    canvas = new_canvas(9.7, 3.9)
    axes = canvas.subplots()
    width = 0.6 / max(len(found), 1)
    for place, attention in enumerate(found):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        heads = list(attention.distances.values())
        blocks = np.arange(len(heads)) + (place - (len(found) - 1) / 2) * width
        for block, own in zip(blocks, heads, strict=True):
            axes.scatter(np.full(len(own), block), own, s=10, marker=marker, color=colour, alpha=0.45, linewidths=0)
        means = [own.mean() for own in heads]
        axes.plot(blocks, means, marker + "-", color=colour, label=attention.label, markersize=6, linewidth=1.3)
    even = list(found[0].even.values())
    axes.plot(np.arange(len(even)), even, "--", color=GREY, linewidth=1, label="attending to all alike")
    axes.set_xlabel("block, from 0; pale: its heads", fontsize=9)
    axes.set_ylabel("attention distance (tokens)", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    bare(axes)
    _legend(canvas, axes)
    return form(canvas)


def _legend(canvas: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(
        handles=handles, labels=labels, loc="outside upper center", ncols=min(len(labels), 4), fontsize=9, frameon=False
    )
