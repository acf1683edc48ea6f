"""The report as one HTML page, from the template in ``templates``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from hwsim.report import ROUNDING_RMS, DemoResult


@dataclass(frozen=True)
class Figure:
    """A plot with its text.

    Attributes
    ----------
    name, title, caption : str
        The name is that of the file, without its ending.
    png : bytes
    """

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """In CSS pixels: two thirds of the width in the PNG header, as it is drawn for dense screens."""
        return int.from_bytes(self.png[16:20], "big") * 2 // 3

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def to_html(result: DemoResult, figures: Sequence[Figure]) -> str:
    """The report: one HTML page with everything in it, readable offline.

    Parameters
    ----------
    result : DemoResult
    figures : sequence of Figure
        Of `hwsim.plots.demo_figures`; embedded as base64.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hwsim", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    environment.filters["fixed"] = lambda value, digits=2: f"{value:.{digits}f}"
    environment.filters["signed"] = lambda value, digits=2: f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return environment.get_template("report.html").render(
        result=result, figures={figure.name: figure for figure in figures}, rounding_rms=ROUNDING_RMS
    )
