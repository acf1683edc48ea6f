"""The report of the demo: a page that holds every figure, stands alone, and data that says the same."""

import base64
import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from hwsim import plots
from hwsim.page import Figure, to_html
from hwsim.report import (
    Accuracy,
    AuditedPoint,
    AuditSummary,
    CodeCounts,
    DemoResult,
    ExecutorAgreement,
    LayerNormError,
    LayerNormErrors,
    RtlLayer,
    RtlRun,
    RtlUnit,
    as_values,
    to_json,
)

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FIGURES = [
    Figure(name, f"title of {name}", f"caption of {name}", PIXEL)
    for name in ("accuracy", "scores", "attention_codes", "layernorm_error")
]


def layer(name, cycles_per_row, rows, *, mismatches=0):
    first = "softmax a: image 3, row 1, element 2: expected 7, got 6, in cycle 99" if mismatches else None
    waveform = "cosim/softmax-cycle-99.vcd" if mismatches else None
    return RtlLayer(
        layer=name,
        rows_per_image=rows,
        cycles_per_row=cycles_per_row,
        full_rate=RtlRun(1111, mismatches, 2222, first, waveform),
        stalled=RtlRun(1111, 0, 3333),
    )


def demo_result(**changes):
    values = {
        "version": "9.8.7",
        "network": "tiny",
        "calibration_images": {"first recipe": 1234, "third recipe": 77},
        "accuracy": (
            Accuracy("first recipe", "8/8/4", 4321, 91.25, 90.5, 90.75, 98.5, 357.0),
            Accuracy("second recipe", "8/8/8", 4321, 91.25, 91.0, 91.5, 99.25, 246.0),
        ),
        "executors": (ExecutorAgreement("first recipe", 17, 113, 9267872, 0, None),),
        "audits": (
            AuditSummary("first recipe", 203, 73, (AuditedPoint("add", "pos_add", 5678, 99.88, 0.0125, 2, 0.375, 51),)),
        ),
        "rtl": (
            RtlUnit(
                unit="log_softmax",
                module="log_softmax",
                recipe="first recipe",
                lanes=2,
                images=1,
                latency=67,
                verilog="rtl/log_softmax.v",
                facts="rtl/log_softmax.md",
                layers=(layer("blocks.0.softmax", 25.0, 200), layer("blocks.1.softmax", 25.0, 200)),
            ),
        ),
        "histogram_images": 99,
        "scores": (CodeCounts("blocks.0.scores", (1, 5, 9, 0), 0.25, 2), CodeCounts("blocks.1.scores", (0, 3, 2, 1))),
        "attention": (CodeCounts("blocks.0.softmax", (3, 9, 4, 0, 1)), CodeCounts("blocks.1.softmax", (0, 1, 0, 0, 0))),
        "layernorm": LayerNormErrors(
            images=6,
            layers=(
                LayerNormError("norm1", 640, 0.291, 0.541, 0.301, 1.071),
                LayerNormError("norm2", 320, 0.1, 0.2, 0.3, 0.9),
            ),
            edges=(-1.0, 0.0, 1.0),
            counts=(320, 320),
            released_counts=(300, 340),
        ),
        "seconds": {"calibration": 12.5, "RTL": 99.75},
        "files": {"report": "report.html", "data": "demo.json"},
    }
    return DemoResult(**(values | changes))


class Page(HTMLParser):
    """Text, images, links and tables of a page; refuses tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self, source):
        super().__init__()
        self.open, self.attributes, self.words, self.rows = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open[-3:]):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def row(self, head):
        return next(row[1:] for row in self.rows if row and row[0] == head)

    def values_of(self, attribute):
        return [value for _, name, value in self.attributes if name == attribute]


def test_the_page_shows_every_figure():
    page = Page(to_html(demo_result(), FIGURES))
    assert page.row("first recipe")[:6] == ["91.25", "90.50", "90.75", "+0.25", "\N{MINUS SIGN}0.50", "98.50 %"]
    assert page.row("second recipe")[:6] == ["91.25", "91.00", "91.50", "+0.50", "+0.25", "99.25 %"]
    assert ["first recipe", "numba", "17", "113", "9,267,872", "0"] in page.rows
    assert page.row("add") == ["pos_add", "5,678", "99.88 %", "0.0125", "2", "0.375", "51"]
    # 25 cycles x 200 rows: 5 000 cycles a layer, 20 000 images/s at 100 MHz; half of it for both layers.
    assert page.row("log_softmax (facts)") == ["first recipe", "2", "67", "4,444", "0", "10,000", "10,000"]
    assert page.row("blocks.0.softmax") == ["2,222", "0", "2,222", "3,333", "25.0", "200", "20,000"]
    assert page.row("log_softmax") == ["4,444", "0", "4,444", "6,666", "25.0", "400", ""]
    assert page.row("norm1") == ["640", "0.291", "0.541", "0.301", "1.071"]
    # sqrt((640 * 0.291**2 + 320 * 0.1**2) / 960) and the same of 0.301 and 0.3.
    assert page.row("all") == ["", "0.245", "0.541", "0.301", "1.071"]
    for text in (
        "9.8.7",
        "“tiny”",
        "1,234 for first recipe, 77 for third recipe.",
        "4,321 images",
        "203 images",
        "6 images",
        "0.289",
        "100 MHz",
    ):
        assert text in page.text
    assert ["12.5", "99.8"] in page.rows


def test_the_page_stands_alone():
    page = Page(to_html(demo_result(), FIGURES))
    images = page.values_of("src")
    assert len(images) == len(FIGURES)
    for image in images:
        kind, _, content = image.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == PIXEL
    links = page.values_of("href")
    assert {"rtl/log_softmax.v", "rtl/log_softmax.md", "demo.json"} <= set(links)
    # Links lead to files beside the page only.
    assert not [link for link in links if ":" in link or link.startswith(("/", "\\", "."))]
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object"}
    source = to_html(demo_result(), FIGURES)
    assert "http:" not in source and "https:" not in source and "@import" not in source and "url(" not in source
    assert sorted(page.values_of("alt")) == sorted(f"title of {f.name}: caption of {f.name}" for f in FIGURES)


def test_mismatches_are_shown_and_counted():
    good = demo_result()
    assert good.mismatches == 0
    assert '"bad"' not in to_html(good, FIGURES)
    unit = dataclasses.replace(good.rtl[0], layers=(layer("blocks.0.softmax", 25.0, 200, mismatches=3),))
    executors = (ExecutorAgreement("first recipe", 17, 113, 9267872, 5, "add (add): image 0, element [1]: expected 2"),)
    bad = demo_result(rtl=(unit,), executors=executors)
    assert bad.mismatches == 8
    source = to_html(bad, FIGURES)
    page = Page(source)
    assert page.row("blocks.0.softmax")[1] == "3"
    assert "element 2: expected 7, got 6, in cycle 99" in page.text
    assert "element [1]: expected 2" in page.text
    assert "cosim/softmax-cycle-99.vcd" in page.values_of("href")
    assert '<td class="bad">3</td>' in source and '<td class="bad">5</td>' in source


def test_names_cannot_become_markup():
    accuracy = Accuracy("<script>alert(1)</script>", "8/8/4", 1, 50.0, 50.0, 50.0, 100.0, 1.0)
    page = Page(to_html(demo_result(accuracy=(accuracy,)), FIGURES))
    assert "<script>alert(1)</script>" in page.text


def test_data_says_what_the_page_says():
    values = json.loads(to_json(demo_result()))
    assert values["mismatches"] == 0 and values["activations_compared"] == 4444 and values["clock_hz"] == 100_000_000
    unit = values["rtl"][0]
    assert (unit["compared"], unit["cycles"], unit["stalled_cycles"]) == (4444, 4444, 6666)
    assert (unit["cycles_per_image"], unit["images_per_second"]) == (10_000, 10_000)
    assert unit["layers"][1]["images_per_second"] == 20_000
    assert values["accuracy"][0]["integer_minus_float"] == -0.5
    assert values["accuracy"][1]["integer_minus_fake_quant"] == 0.5
    assert values["scores"][0]["counts"] == [1, 5, 9, 0]
    # Every stored field is there, whatever the page shows.
    fields = {field.name for field in dataclasses.fields(DemoResult)}
    assert fields <= set(values)
    assert as_values(demo_result()) == values


def test_data_refuses_figures_that_are_not_numbers():
    broken = Accuracy("r", "8/8/4", 1, float("nan"), 50.0, 50.0, 100.0, 1.0)
    with pytest.raises(ValueError, match="JSON"):
        to_json(demo_result(accuracy=(broken,)))


def test_hardware_that_gives_nothing_has_no_rate():
    dead = RtlLayer("l", 50, 0.0, RtlRun(10, 10, 0), RtlRun(10, 10, 0))
    assert dead.images_per_second == 0
    assert dead.mismatches == 20


def ink(png):
    """Pixels of a PNG that are not white, as a share."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return (pixels != 255).any(axis=2).mean(), pixels.shape


@pytest.mark.parametrize("blocks", [1, 2, 6])
def test_plots_are_pictures_for_any_depth(blocks):
    dice = np.random.default_rng(blocks)
    counts = [tuple(dice.integers(0, 1000, 17).tolist()) for _ in range(blocks)]
    result = demo_result(
        scores=tuple(CodeCounts(f"blocks.{i}.scores", row, 0.1 + i, 7) for i, row in enumerate(counts)),
        attention=tuple(CodeCounts(f"blocks.{i}.softmax", row) for i, row in enumerate(counts)),
        layernorm=LayerNormErrors(
            1,
            tuple(LayerNormError(f"blocks.{i}.norm", 64, 0.29, 0.5, 0.3, 0.9) for i in range(blocks)),
            (-1.0, 0.0, 1.0),
            (1, 2),
            (2, 1),
        ),
    )
    figures = plots.demo_figures(result)
    assert [figure.name for figure in figures] == [figure.name for figure in FIGURES]
    for figure in figures:
        share, (height, width, _) = ink(figure.png)
        assert 0.01 < share < 0.9
        assert figure.width == width * 2 // 3 and height > 300
    page = Page(to_html(result, figures))
    assert [base64.b64decode(image.partition(",")[2]) for image in page.values_of("src")] == [f.png for f in figures]


def test_plots_follow_the_data():
    plain, moved = demo_result(), demo_result(attention=(CodeCounts("blocks.0.softmax", (9, 0, 0, 0, 1)),) * 2)
    pairs = zip(plots.demo_figures(plain), plots.demo_figures(moved), strict=True)
    assert {one.name for one, other in pairs if one.png != other.png} == {"attention_codes"}
