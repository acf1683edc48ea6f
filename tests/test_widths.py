"""The shipped accuracies by width: the page shows them, intervals are Wilson's, and a damaged table is refused."""

import importlib.util
import math
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from golden.errors import HwsimError
from hwsim.shipped import shipped_programs
from hwsim.widths import SYSTEMS, arranged, draw, markdown, measured_widths, read_widths

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- widths: begin -->\n", "<!-- widths: end -->\n"


def shown_on_the_page():
    return (ROOT / "docs" / "accuracy.md").read_text().split(BEGIN)[1].split(END)[0]


def test_the_page_shows_the_shipped_table():
    assert shown_on_the_page() == markdown(measured_widths())


def test_another_figure_would_be_seen():
    data = measured_widths()
    data.loc[0, "integer"] += 0.01
    assert shown_on_the_page() != markdown(data)


def test_intervals_are_wilsons():
    row = measured_widths().iloc[0]
    n, z = row["images"], 1.959963984540054
    p = round(row["integer"] / 100 * n) / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    bounds = [100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert [row["integer_low"], row["integer_high"]] == pytest.approx(bounds, abs=1e-9)


def test_rows_are_told_apart_and_possible():
    data = read_widths()
    assert not data.duplicated(["network", "system", "width"]).any()
    assert set(data["system"]) == set(SYSTEMS)
    top1 = data[["fake", "integer"]].to_numpy()
    assert ((top1 >= 0) & (top1 <= 100) | (top1 != top1)).all()
    # Whole images only, and a reason where there is no program.
    programs = data[data["integer"].notna()]
    right = programs["integer"] / 100 * programs["images"]
    assert (abs(right - right.round()) <= 0.005 * programs["images"] / 100 + 1e-9).all()
    assert (data.loc[data["integer"].isna(), "note"] != "").all()


def test_shipped_programs_have_a_row():
    data = read_widths()
    trained = data[(data["network"] == "embedded") & (data["system"] == "Q-ViT")]
    assert {int(name.rsplit("-", 1)[1]) for name in shipped_programs()} <= set(trained["width"])


def test_rows_are_sorted():
    rows = [("a", "Q-ViT", 2), ("b", "FQ-ViT", 8), ("a", "FQ-ViT", 2), ("a", "FQ-ViT", 8)]
    data = pd.DataFrame(rows, columns=["network", "system", "width"])
    data = arranged(pd.concat([data[:1], data[1:].reset_index(drop=True)]))
    assert list(data.itertuples(index=False, name=None)) == [rows[3], rows[2], rows[0], rows[1]]


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "widths.csv"
    with pytest.raises(HwsimError, match=r"widths.csv: cannot be read .*reinstall"):
        read_widths(path)
    path.write_text("network,system\nembedded,FQ-ViT\n")
    with pytest.raises(HwsimError, match="has the columns network, system, not network, system, bits"):
        read_widths(path)


def test_a_refused_row_and_one_without_a_program():
    data = measured_widths()
    refused = data[data["fake"].isna()].iloc[[0]]
    assert f"| {refused['width'].item()} | refused |" in markdown(refused)
    alone = data.iloc[[0]].assign(integer=float("nan"))
    assert f"{alone['fake'].item():.2f} / -" in markdown(alone)


def test_the_picture_has_a_line_for_each_system():
    data = measured_widths()
    axes = Figure().subplots()
    draw(axes, data[data["network"] == "embedded"])
    found = {line.get_label(): mpl.colors.to_hex(line.get_color()).upper() for line in axes.lines}
    assert {system: found[system] for system in SYSTEMS} == SYSTEMS


def test_tables_are_recorded(tmp_path):
    spec = importlib.util.spec_from_file_location("record_widths", ROOT / "tools" / "record_widths.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / "widths-small.csv"
    path.write_text(
        "label,images,float_top1,fake_quant_top1,integer_top1,note,measured\n"
        "AdaLog 5/5/5,1200,81.75,80.08333333333333,79.91666666666667,,2026-01-02\n"
        '"Q-ViT, untrained 3/3/3",1200,81.75,,,too coarse,2026-01-02\n'
    )
    first, second = tool.rows_of_table(path, "CPU")
    assert first == {
        "network": "small",
        "system": "AdaLog",
        "bits": "5/5/5",
        "width": 5,
        "images": 1200,
        "float": 81.75,
        "fake": 80.08,
        "integer": 79.92,
        "note": "",
        "on": "CPU",
        "measured": "2026-01-02",
    }
    assert second["system"] == "Q-ViT, untrained"
    assert second["note"] == "too coarse" and math.isnan(second["fake"]) and math.isnan(second["integer"])
