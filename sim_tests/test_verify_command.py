"""What ``hwsim bulk``, ``hwsim mutate`` and ``hwsim coverage`` print, and how they end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from golden.vectors import UnitVectors
from hwsim.cli import main, verify
from sim_tests.test_bulk import layer_of


@pytest.fixture
def activations(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the commands find these layers in place of a program's."""

    def stand_in(*layers: UnitVectors) -> None:
        monkeypatch.setattr(verify, "open_program", lambda path: None)
        monkeypatch.setattr(verify, "_batches", lambda *arguments: iter([list(layers)]))

    return stand_in


def test_bulk(activations: Callable[..., None], build_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    activations(layer_of("lookup"), layer_of("lookup", 1))
    main(["bulk", "--images", "0-3", "--stalls", "both", "--lanes", "2", "-o", str(build_dir)])
    text = capsys.readouterr().out
    assert "336 activations compared" in text
    assert "0 mismatches" in text


def test_bulk_with_a_wrong_bit(
    activations: Callable[..., None], build_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = layer_of("lookup")
    wrong = layer.output.copy()
    wrong[1, 0, 4] ^= 1
    activations(replace(layer, output=wrong), layer_of("lookup", 1))
    with pytest.raises(SystemExit) as end:
        main(["bulk", "--images", "0-3", "--lanes", "2", "-o", str(build_dir)])
    assert end.value.code == 1
    text = capsys.readouterr().out
    assert "first mismatch: lookup lookup of seed 0: image 5, row 0, element 4: expected" in text


def test_exhaustive_where_it_never_is(
    activations: Callable[..., None], build_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    activations(layer_of("layernorm"))
    with pytest.raises(SystemExit) as end:
        main(["bulk", "--exhaustive", "-o", str(build_dir)])
    assert end.value.code == 2
    assert "layernorm: the input space is never small; choose another --unit" in capsys.readouterr().err


def test_an_unknown_unit(build_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "open_program", lambda path: None)
    with pytest.raises(SystemExit) as end:
        main(["mutate", "softmacks", "-o", str(build_dir)])
    assert end.value.code == 2
    assert "there is no hardware unit 'softmacks'" in capsys.readouterr().err


def test_mutate_lists_survivors_and_coverage_what_is_missing(
    activations: Callable[..., None], build_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    activations(layer_of("lookup"), layer_of("lookup", 1))
    main(["mutate", "lookup", "--count", "6", "--all", "-o", str(build_dir)])
    text = capsys.readouterr().out
    assert text.count("\nlookup ") == 6
    activations(layer_of("lookup"), layer_of("lookup", 1))
    main(["coverage", "lookup", "--missing", "-o", str(build_dir)])
    assert "m_axis_tdata [5]" in capsys.readouterr().out
