"""Plots of a demo result as PNG, in colours that colour-blind readers can tell apart (Okabe and Ito)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from hwsim.page import Figure
from hwsim.report import ROUNDING_RMS, Accuracy, CodeCounts, DemoResult, LayerNormErrors

BLUE, ORANGE, GREY, INK, LINE = "#0072B2", "#E69F00", "#8C8C8C", "#222222", "#E5E5E5"
DPI = 150
PERCENT = FuncFormatter(lambda share, _: f"{share:g}")


def demo_figures(result: DemoResult) -> list[Figure]:
    """All plots of the report, in its order."""
    return [
        Figure(
            "accuracy",
            "Accuracy",
            f"Top-1 on {result.accuracy[0].images:,} test images. Below each group, the integer program's "
            "difference in percentage points.",
            accuracy_bars(result.accuracy),
        ),
        Figure(
            "scores",
            "Attention scores",
            f"Scores at the input of the softmax, {result.histogram_images} images, all heads; one histogram a "
            "block, every 8-bit code at the value that it stands for.",
            score_histograms(result.scores),
        ),
        Figure(
            "attention_codes",
            "Attention codes",
            "Log2 codes of Log-Int-Softmax on the same images: code c stands for 2 to the power of "
            "\N{MINUS SIGN}c, "
            "“0” is the zero symbol past the last code.",
            code_histograms(result.attention),
        ),
        Figure(
            "layernorm_error",
            "LayerNorm error",
            f"Integer minus real-valued LayerNorm of the same inputs, {result.layernorm.images} images, in output "
            "steps. An error within half a step (grey) is rounding. FQ-ViT released: its 8-bit truncated form.",
            layernorm_errors(result.layernorm),
        ),
    ]


def png(canvas: Canvas) -> bytes:
    """A drawn canvas as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas).print_png(buffer)
    return buffer.getvalue()


def svg(canvas: Canvas) -> bytes:
    """A drawn canvas as an SVG file: the same bytes each time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vit-hwsim", "svg.fonttype": "none"}):
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


# How a canvas is written, by the ending of the file.
FORMATS: dict[str, Callable[[Canvas], bytes]] = {"png": png, "svg": svg}


def new_canvas(width: float, height: float) -> Canvas:
    """An empty canvas of a size in inches."""
    return Canvas(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def bare(axes: Any) -> None:
    """Axes without a frame, their grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    axes.set_axisbelow(True)


def accuracy_bars(accuracies: Sequence[Accuracy]) -> bytes:
    """Float, fake-quantized and integer top-1 of each recipe."""
    canvas = new_canvas(1.8 + 3.2 * len(accuracies), 3.7)
    axes = canvas.subplots()
    series = (
        ("float", GREY, "", [accuracy.float_top1 for accuracy in accuracies]),
        ("fake-quantized", ORANGE, "//", [accuracy.fake_quant_top1 for accuracy in accuracies]),
        ("integer", BLUE, "", [accuracy.integer_top1 for accuracy in accuracies]),
    )
    for place, (name, colour, hatch, heights) in enumerate(series):
        at = np.arange(len(accuracies)) + (place - 1) * 0.27
        bars = axes.bar(at, heights, 0.24, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
        texts = axes.bar_label(bars, [f"{height:.2f}" for height in heights], padding=3, fontsize=9, color=INK)
        for text in texts:
            # The label may lie on a grid line.
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    labels = [
        f"{accuracy.bits}\ninteger to float {_signed(accuracy.integer_minus_float)}, "
        f"to fake-quantized {_signed(accuracy.integer_minus_fake_quant)}"
        for accuracy in accuracies
    ]
    axes.set_xticks(range(len(accuracies)), labels)
    axes.set_xlim(-0.5, len(accuracies) - 0.5)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("bits of weights/activations/attention", fontsize=9)
    axes.set_ylabel("top-1 accuracy (%)", fontsize=9)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    bare(axes)
    canvas.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return png(canvas)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")


def _panels(count: int, height: float) -> tuple[Canvas, list[Any]]:
    """Panels of blocks, three a line, that share their axes."""
    columns = min(count, 3)
    lines = -(-count // columns)
    canvas = new_canvas(3.1 * columns + 0.4, height * lines + 0.4)
    grid = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    return canvas, list(grid.flat[:count])


def score_histograms(points: Sequence[CodeCounts]) -> bytes:
    """Share of every score, a panel a block."""
    canvas, panels = _panels(len(points), 1.9)
    for axes, point in zip(panels, points, strict=True):
        counts = np.array(point.counts)
        used = np.flatnonzero(counts)
        # Density over score values: the steps of the blocks differ.
        density = counts / counts.sum() / point.scale
        edges = (np.arange(len(counts) + 1) - 0.5 - point.zero_point) * point.scale
        keep = slice(used[0], used[-1] + 1)
        axes.stairs(density[keep], edges[used[0] : used[-1] + 2], fill=True, color=BLUE)
        axes.set_yscale("log")
        axes.set_title(point.layer, fontsize=9, color=INK, loc="left")
        axes.text(0.98, 0.95, f"step {point.scale:.3g}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.grid(color=LINE, linewidth=0.8)
        bare(axes)
    canvas.supxlabel("attention score", fontsize=9)
    canvas.supylabel("density (log scale)", fontsize=9)
    return png(canvas)


def code_histograms(points: Sequence[CodeCounts]) -> bytes:
    """Share of every attention code, a panel a block; the last code is the zero symbol."""
    canvas, panels = _panels(len(points), 1.9)
    for axes, point in zip(panels, points, strict=True):
        shares = np.array(point.counts) / sum(point.counts) * 100
        codes = np.arange(len(shares))
        axes.bar(codes[:-1], shares[:-1], 0.85, color=BLUE)
        axes.bar(codes[-1], shares[-1], 0.85, color=ORANGE, hatch="///", edgecolor="white", linewidth=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PERCENT)
        every = max(1, (len(codes) - 1) // 8)
        ticks = list(range(0, len(codes) - 1, every))
        axes.set_xticks([*ticks, len(codes) - 1], [*map(str, ticks), "“0”"])
        axes.set_title(point.layer, fontsize=9, color=INK, loc="left")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        bare(axes)
    canvas.supxlabel("attention code", fontsize=9)
    canvas.supylabel("share of attention (%, log scale)", fontsize=9)
    return png(canvas)


def layernorm_errors(errors: LayerNormErrors) -> bytes:
    """Distribution of the error, and its size at every layer, beside FQ-ViT's released form."""
    canvas = new_canvas(9.7, 3.9)
    left, right = canvas.subplots(1, 2, width_ratios=[1, 1.05])
    edges = np.array(errors.edges)
    both = (("FQ-ViT released", ORANGE, errors.released_counts), ("this integer unit", BLUE, errors.counts))
    left.axvspan(-0.5, 0.5, color="#F0F0F0", zorder=0)
    for _, colour, counts in both:
        density = np.array(counts) / sum(counts) / np.diff(edges)
        left.stairs(density, edges, color=colour, linewidth=1.6)
    left.set_xlim(-1.2, 1.2)
    left.set_ylim(0)
    left.set_xlabel("error (output steps)", fontsize=9)
    left.set_ylabel("density", fontsize=9)
    bare(left)

    rows = np.arange(len(errors.layers))
    released = [(layer.released_rms, layer.released_largest) for layer in errors.layers]
    unit = [(layer.rms, layer.largest) for layer in errors.layers]
    for colour, shift, sizes in ((ORANGE, 0.17, released), (BLUE, -0.17, unit)):
        rms, largest = np.array(sizes).T
        right.hlines(rows + shift, rms, largest, color=colour, linewidth=0.8, alpha=0.5)
        right.scatter(rms, rows + shift, s=20, color=colour)
        right.scatter(largest, rows + shift, s=20, facecolor="white", edgecolor=colour)
    right.axvline(ROUNDING_RMS, color=INK, linewidth=1, linestyle="--", zorder=0)
    right.set_yticks(rows, [layer.layer for layer in errors.layers])
    right.invert_yaxis()
    right.set_xlim(0)
    right.set_xlabel("size of the error (output steps)", fontsize=9)
    right.grid(axis="x", color=LINE, linewidth=0.8)
    bare(right)
    handles: list[Any] = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour, _ in both]
    for name, face in (("RMS", INK), ("largest", "white")):
        handles.append(Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor=face, label=name))
    handles.append(Line2D([], [], color=INK, linewidth=1, linestyle="--", label="RMS of rounding alone"))
    canvas.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    return png(canvas)
