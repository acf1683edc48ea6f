"""What commands write for people."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import click
import pytest

from golden.errors import HwsimWarning
from hwsim.cli import cli, display, main


def test_a_piped_table_has_no_blanks_at_the_end_and_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 70
    display.table(("name", "value"), [("a", 1.5), (long, 20.25)], title="A [title]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A [title]"
    assert all(line == line.rstrip() for line in lines)
    assert any(line.split() == ["a", "1.500"] for line in lines)
    assert any(line.split() == [long, "20.250"] for line in lines)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_only_a_long_wait_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    monkeypatch.setattr(display, "PATIENCE", 0.1)
    with display.told_when_slow("compiling"):
        time.sleep(seconds)
    time.sleep(0.15)
    assert capsys.readouterr().err == ("hwsim: compiling\n" if seconds else "")


@pytest.mark.filterwarnings("always::golden.errors.HwsimWarning")
def test_warnings_are_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the package; others keep their place in the code."""

    @click.command("warn")
    def warn() -> None:
        warnings.warn("a batch is small", HwsimWarning, stacklevel=2)
        warnings.warn("an array is read-only", UserWarning, stacklevel=2)

    monkeypatch.setitem(cli.commands, "warn", warn)
    before = warnings.showwarning
    with pytest.warns(UserWarning, match="an array is read-only") as others:
        main(["warn"])
    assert len(others) == 1
    assert capsys.readouterr().err == "hwsim: a batch is small\n"
    assert warnings.showwarning is before


@pytest.mark.filterwarnings("always::golden.errors.HwsimWarning")
def test_a_small_batch_is_told_of_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "x.safetensors")
    main(["calibrate", "--range", "percentile", "--bits", "8/8/8", "--images", "2", "-o", output])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "percentile" in line)
    assert line.startswith("hwsim: embedded: at ")
    assert line.endswith("of 10000")
