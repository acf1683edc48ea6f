"""The self-test of a board in Verilator: it passes, and it says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from golden.adalog import AdaLogQuantizeSpec, adalog_thresholds
from golden.errors import HwsimError
from golden.log2_matmul import Log2MatmulSpec
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat, Spec
from golden.vectors import UnitVectors, write_vectors
from hwsim.cli import cli
from rtl.boards import selftest
from rtl.boards.board import board
from rtl.boards.unit_check import Stimulus
from sim_tests.selftest import Selftest, flipped, requantizer_of, run_selftest, stimulus_of

# Few cycles a bit and between runs, so that the tests are quick; the command simulates at the real rate.
BIT_CYCLES = 12


def vectors_of(spec: Spec, constants: Constants, *inputs: np.ndarray) -> UnitVectors:
    checked = spec.check_constants(constants)
    accumulate = getattr(spec, "accumulate", None)
    return UnitVectors(
        spec=spec,
        constants=checked,
        inputs=inputs,
        output=spec.compute(checked, *inputs),
        accumulator=None if accumulate is None else accumulate(checked, *inputs),
        network="random",
        recipe="none",
        layer=f"layer of {spec.kind}",
        images=(0,),
    )


def some_vectors() -> dict[str, UnitVectors]:
    """Activations of four units, by kind."""
    random = np.random.default_rng(1)
    table = {"table": random.integers(0, 256, (1, 256))}
    requantize = RequantizeSpec(
        input=IntFormat(25, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=1
    )
    product = Log2MatmulSpec(code_bits=4, value_bits=8, row_length=9, requantize=requantize)
    scaling = {"multiplier": np.array([40001]), "shift": np.array([30]), "zero_point": np.array(117)}
    # Each row of codes is one 1/2 and eight of less, so that the sums keep to the proven width.
    codes = np.concatenate([np.full((1, 6, 1), 1), random.integers(4, 17, (1, 6, 8))], axis=2)
    log2 = vectors_of(product, {"zero_v": np.array(120), **scaling}, codes, random.integers(0, 256, (1, 9, 4)))
    adalog = AdaLogQuantizeSpec(input_bits=8, code_bits=4)
    thresholds = {"thresholds": adalog_thresholds(4, 20, Fraction(256))}
    return {
        "adalog_quantize": vectors_of(adalog, thresholds, random.integers(0, 256, (1, 5, 11))),
        "log2_matmul": log2,
        "lookup": vectors_of(
            LookupSpec(input_bits=8, output_bits=8, channels=1), table, random.integers(0, 256, (1, 7, 13))
        ),
        "requantize": requantizer_of(log2),
    }


def simulated(stimuli: list[Stimulus], build_dir: Path) -> Selftest:
    target = board("ulx3s-85f")
    clock = selftest.clock_of(target, None)
    text = selftest.build_verilog(target, clock, stimuli, pause=64, divisor=BIT_CYCLES)
    return run_selftest(text, bit_cycles=BIT_CYCLES, build_dir=build_dir)


def test_units_pass_and_take_the_cycles_that_their_documentation_says(build_dir: Path) -> None:
    vectors = some_vectors()
    stimuli = {kind: stimulus_of(item, lanes=2, most_beats=40) for kind, item in vectors.items()}
    result = simulated(list(stimuli.values()), build_dir)
    lines = result.text.splitlines()
    assert result.passed and lines[0] == "vit-hwsim self-test on ulx3s-85f at 100 MHz" and lines[-1] == "PASS"
    # Whole rows in 40 beats: 5 of 11 elements on 2 lanes, 4 of 9 codes, 5 of 13, 6 of 4.
    beats = {"adalog_quantize": 5 * 6, "log2_matmul": 4 * 9, "lookup": 5 * 7, "requantize": 6 * 2}
    elements = {"adalog_quantize": 5 * 11, "log2_matmul": 4 * 2, "lookup": 5 * 13, "requantize": 6 * 4}
    for line, (kind, stimulus) in zip(lines[1:-1], stimuli.items(), strict=True):
        # A beat a cycle, and the last result comes `latency` after the last beat.
        cycles = beats[kind] + stimulus.unit.latency
        assert line == f"{kind} {elements[kind]} elements 0 mismatches {cycles} cycles"


def test_every_kind_of_difference_is_told(build_dir: Path) -> None:
    stimuli = {kind: stimulus_of(item, lanes=1, most_beats=40) for kind, item in some_vectors().items()}
    shorter = replace(stimuli["adalog_quantize"], expected=stimuli["adalog_quantize"].expected[:-1])
    wrong = {
        # One bit of a code.
        "lookup": flipped(stimuli["lookup"], 11, 3),
        # `tlast` of a beat, and one result less than comes.
        "adalog_quantize": flipped(shorter, 4, 9),
        # One result more than comes.
        "log2_matmul": replace(stimuli["log2_matmul"], expected=[*stimuli["log2_matmul"].expected, 0x1F00000000]),
    }
    assert stimuli["adalog_quantize"].widths["m_axis_tdata"] == 8
    result = simulated(list(wrong.values()), build_dir)
    assert not result.passed and result.text.splitlines()[-1] == "FAIL"
    told = {line.split()[0]: line.split()[3:5] + line.split()[7:] for line in result.text.splitlines()[1:-1]}
    counts = {"lookup": "1", "adalog_quantize": "2", "log2_matmul": "1"}
    assert told == {kind: [count, "mismatches", "FAIL"] for kind, count in counts.items()}


def test_units_of_one_kind_and_too_many_units() -> None:
    target = board("ulx3s-85f")
    clock = selftest.clock_of(target, None)
    stimulus = stimulus_of(some_vectors()["lookup"], lanes=1, most_beats=40)
    with pytest.raises(HwsimError, match="one of a kind, not lookup, lookup"):
        selftest.build_verilog(target, clock, [stimulus, stimulus])
    with pytest.raises(HwsimError, match="not none"):
        selftest.build_verilog(target, clock, [])


def test_wrong_expectation_makes_no_bitstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command stops with the unit's name, and an older bitstream is gone."""
    lookup = some_vectors()["lookup"]
    output = lookup.output.copy()
    output[0, 2, 5] ^= 1
    write_vectors(tmp_path / "wrong.safetensors", replace(lookup, output=output))
    folder = tmp_path / "out" / "orangecrab-25f"
    folder.mkdir(parents=True)
    (folder / "selftest.bit").write_bytes(b"old")
    monkeypatch.setattr(selftest, "BAUD", 4_000_000)
    options = [
        "--board",
        "orangecrab-25f",
        "--vectors",
        str(tmp_path / "wrong.safetensors"),
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli, ["bitstream", *options])
    assert isinstance(result.exception, HwsimError)
    assert "the simulated self-test failed in lookup" in str(result.exception)
    assert "lookup 91 elements 1 mismatches" in result.output
    assert not (folder / "selftest.bit").exists() and not (folder / "report.json").exists()
    assert "FAIL" in (folder / "simulation.log").read_text()
