"""Fronts as a picture, and as one HTML page that needs no network."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from hwsim.explore.fronts import pareto, wilson
from hwsim.explore.records import Record

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#B0B0B0"


def front_picture(records: Sequence[Record], costs: Sequence[str], title: str) -> bytes:
    """Accuracy against each cost, side by side, as PNG.

    Grey: all points. Blue: the front, with Wilson intervals; a hollow point is not significantly better than the
    cheaper one before it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    canvas = Figure(figsize=(4.6 * len(costs), 3.9), layout="constrained", dpi=150)
    canvas.suptitle(title, fontsize=10)
    for axis, cost in zip(canvas.subplots(1, len(costs), squeeze=False, sharey=True)[0], costs, strict=True):
        points = [record for record in records if not record.error and cost in record.costs]
        axis.scatter([r.costs[cost] for r in points], [r.top1 for r in points], s=12, color=GREY, label="all points")
        steps = pareto(records, cost)
        x, y = [r.costs[cost] for r, _ in steps], [r.top1 for r, _ in steps]
        ends = [wilson(int(r.bits.sum()), r.images) for r, _ in steps]
        axis.errorbar(
            x,
            y,
            yerr=([t - low for t, (low, _) in zip(y, ends, strict=True)],
                  [high - t for t, (_, high) in zip(y, ends, strict=True)]),
            color=BLUE, lw=1, elinewidth=0.8, capsize=2, drawstyle="steps-post", zorder=2,
        )  # fmt: skip
        for r, better in steps:
            axis.plot(r.costs[cost], r.top1, "o", ms=5, mec=BLUE, mfc=BLUE if better else "white", zorder=3)
        axis.plot([], [], "o-", color=BLUE, label="front, 95 % intervals")
        axis.plot([], [], "o", mec=BLUE, mfc="white", label="not significantly better")
        axis.set_xlabel(cost.replace("_", " "))
        if x and min(x) > 0 and max(x) / min(x) > 30:
            axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(color="#E5E5E5", lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    first = canvas.axes[0]
    first.set_ylabel("top-1 (%)")
    first.legend(frameon=False, fontsize=7, loc="lower right")
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas).print_png(buffer)
    return buffer.getvalue()


def front_page(
    records: Sequence[Record],
    costs: Sequence[str],
    title: str,
    command: str,
    recipes: Callable[[Record], str | None] = lambda record: None,
) -> str:
    """All points in an interactive page: hover for the recipe, choose the cost, copy from the table.

    Parameters
    ----------
    records : sequence of Record
    costs : sequence of str
    title : str
    command : str
        That made the page.
    recipes : callable
        The command that makes the program of a point, to be copied; None where there is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("hwsim", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fronts = {cost: pareto(records, cost) for cost in costs}
    rows = [
        {
            "id": record.key,
            "recipe": record.recipe,
            "command": recipes(record),
            "point": " ".join(f"{name}={value}" for name, value in record.point.items()),
            "top1": record.top1,
            "interval": wilson(int(record.bits.sum()), record.images),
            "costs": [record.costs.get(cost) for cost in costs],
            "fronts": [cost for cost, steps in fronts.items() if any(r.key == record.key for r, _ in steps)],
        }
        for record in sorted(records, key=lambda record: record.error == "" and -record.top1)
        if not record.error
    ]
    return environment.get_template("explore.html").render(
        title=title,
        command=command,
        costs=costs,
        images=max((record.images for record in records), default=0),
        rows=rows,
        errors=[record for record in records if record.error],
        plots={cost: _plot(records, cost, steps) for cost, steps in fronts.items()},
        plotly=get_plotlyjs(),
    )


def _plot(records: Sequence[Record], cost: str, steps: Sequence[tuple[Record, bool]]) -> str:
    """Data and layout of a plot for plotly, as JSON."""
    import plotly.graph_objects as go

    def hover(record: Record) -> str:
        low, high = wilson(int(record.bits.sum()), record.images)
        fields = "<br>".join(f"{name} = {value}" for name, value in record.point.items())
        return (
            f"<b>{record.recipe}</b><br>{fields}<br>top-1 {record.top1:.2f} % ({low:.2f} to {high:.2f})<br>{record.key}"
        )

    def dots(chosen: Sequence[Record], **style: Any) -> Any:
        return go.Scatter(
            x=[record.costs[cost] for record in chosen],
            y=[record.top1 for record in chosen],
            text=[hover(record) for record in chosen],
            hoverinfo="text+x",
            **style,
        )

    points = [record for record in records if not record.error and cost in record.costs]
    front = [record for record, _ in steps]
    intervals = [wilson(int(record.bits.sum()), record.images) for record in front]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [high - record.top1 for record, (_, high) in zip(front, intervals, strict=True)],
        "arrayminus": [record.top1 - low for record, (low, _) in zip(front, intervals, strict=True)],
        "thickness": 1,
    }
    colours = [BLUE if better else "white" for _, better in steps]
    figure = go.Figure(
        [
            dots(points, mode="markers", name="all points", marker={"color": GREY, "size": 7}),
            dots(
                front,
                mode="lines+markers",
                name="front (hollow: not significantly better)",
                line={"shape": "hv", "color": BLUE, "width": 1},
                marker={"color": colours, "size": 10, "line": {"color": BLUE, "width": 2}},
                error_y=bars,
            ),
        ]
    )
    figure.update_layout(
        template="plotly_white",
        height=460,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title=cost.replace("_", " "),
        yaxis_title="top-1 (%)",
        legend={"orientation": "h", "y": 1.08},
    )
    return str(figure.to_json())
