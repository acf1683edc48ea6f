"""What commands write for people."""

from __future__ import annotations

import time

import pytest

from hwsim.cli import display


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
