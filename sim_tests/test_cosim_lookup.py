"""Lookup in Verilator against the golden table, and what happens when the hardware is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pywellen

from golden.errors import HwsimError
from golden.lookup import LookupSpec
from golden.requantize import RequantizeSpec
from golden.spec import Constants, IntFormat
from golden.vectors import UnitVectors
from rtl import catalog, verilog
from rtl.lookup import Lookup
from sim_tests import build
from sim_tests.cosim import AFTER, BEFORE, cosimulate
from sim_tests.toolchain import find_toolchain
from sim_tests.waveform import CLOCK_PERIOD_PS, waveform_format


def lookup_vectors(
    layer: str,
    seed: int,
    *,
    input_bits: int = 8,
    output_bits: int = 8,
    channels: int = 1,
    shape: tuple[int, ...] = (2, 7, 11),
) -> UnitVectors:
    """A random table and random codes; the expected codes come from a plain list of lists."""
    dice = np.random.default_rng(seed)
    table = dice.integers(0, 1 << output_bits, (channels, 1 << input_bits))
    codes = dice.integers(0, 1 << input_bits, shape)
    rows = table.tolist()
    output = [rows[place % channels][code] for place, code in enumerate(codes.reshape(-1).tolist())]
    return UnitVectors(
        spec=LookupSpec(input_bits=input_bits, output_bits=output_bits, channels=channels),
        constants={"table": table},
        inputs=(codes,),
        output=np.array(output).reshape(shape),
        accumulator=None,
        network="random",
        recipe="random",
        layer=layer,
        images=(4, 9),
    )


LAYERS = [lookup_vectors(f"blocks.{seed}.mlp.act", seed, shape=(2, 7, 11 + seed)) for seed in range(3)]
PIXELS = lookup_vectors("pixels", 5, output_bits=5, channels=3, shape=(2, 4, 4, 3))


@pytest.mark.parametrize("stall_seed", [None, 1, 2])
def test_every_element_agrees(build_dir: Path, stall_seed: int | None) -> None:
    layers = [*LAYERS[:2], PIXELS, LAYERS[2]]
    results = cosimulate(layers, lanes=2, build_dir=build_dir, stall_seed=stall_seed)
    assert [result.layer for result in results] == [layer.layer for layer in layers]
    assert [result.mismatches for result in results] == [0] * 4
    assert [result.compared for result in results] == [layer.output.size for layer in layers]
    assert [result.rows for result in results] == [14, 14, 32, 14]
    assert all(result.first_mismatch is None and result.waveform is None for result in results)
    paces = [result.cycles_per_row for result in results]
    formula = [-(-layer.output.shape[-1] // 2) for layer in layers]
    if stall_seed is None:
        assert paces == formula
        assert [result.cycles for result in results] == [
            rows * pace + Lookup.latency for rows, pace in zip([14, 14, 32, 14], formula, strict=True)
        ]
    else:
        assert all(pace > ideal for pace, ideal in zip(paces, formula, strict=True))


@pytest.fixture
def one_wrong_word(monkeypatch: pytest.MonkeyPatch) -> Callable[[UnitVectors, int], None]:
    """The load of one layer's table flips a bit of the entry of a code."""

    def corrupt(layer: UnitVectors, code: int) -> None:
        true_writes = Lookup.writes

        def writes(self: Lookup, spec: LookupSpec, constants: Constants) -> list[tuple[int, int]]:
            words = true_writes(self, spec, constants)
            if constants is layer.constants:
                words[code] = (code, words[code][1] ^ 4)
            return words

        monkeypatch.setattr(Lookup, "writes", writes)

    return corrupt


@pytest.mark.parametrize(("stall_seed", "style"), [(None, None), (3, "vcd")])
def test_a_wrong_table_entry_is_found_and_shown(
    build_dir: Path,
    one_wrong_word: Callable[[UnitVectors, int], None],
    stall_seed: int | None,
    style: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In FST where this machine has the headers, and in VCD."""
    if style is not None:
        monkeypatch.setattr(build, "waveform_format", lambda compiler: style)
    layer = LAYERS[1]
    codes = layer.inputs[0]
    code = int(codes[1, 2, 3])  # not before image 9
    assert code not in codes[0]
    first = tuple(int(index) for index in np.argwhere(codes == code)[0])
    one_wrong_word(layer, code)
    before, wrong, after = cosimulate(LAYERS, lanes=2, build_dir=build_dir, stall_seed=stall_seed)
    assert (before.mismatches, after.mismatches) == (0, 0)
    assert wrong.mismatches == int((codes == code).sum())
    found = wrong.first_mismatch
    assert found is not None
    assert wrong.waveform is not None
    value = int(layer.output[first])
    assert (found.unit, found.layer, found.image, found.row, found.element) == ("lookup", layer.layer, 9, *first[1:])
    assert (found.expected, found.got) == (str(value), str(value ^ 4))
    assert f"image 9, row {first[1]}, element {first[2]}: expected {value}, got {value ^ 4}" in str(found)
    assert (before.waveform, after.waveform) == (None, None)
    assert wrong.waveform.suffix == f".{style or waveform_format(find_toolchain().compiler)}"
    check_waveform(wrong.waveform, found.cycle, lane=first[2] % 2, value=value ^ 4)
    for path in (wrong.waveform, wrong.waveform.with_suffix(".gtkw"), wrong.waveform.with_suffix(".sucl")):
        path.unlink()


def test_a_waveform_of_a_cycle_without_a_mismatch(build_dir: Path) -> None:
    first, second = cosimulate(LAYERS[:2], lanes=2, build_dir=build_dir, waveform_at=300)
    assert (first.mismatches, second.mismatches, second.waveform) == (0, 0, None)
    assert first.waveform is not None
    values = {variable.full_name: variable.tv for variable in pywellen.Waveform(str(first.waveform)).all_vars()}
    counted = [int(value) for _, value in values["bench.cycle"]]
    assert counted[0] <= 300 - BEFORE + 1 and counted[-1] >= 300 + AFTER - 1


def test_without_the_headers_waveforms_are_vcd(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    assert waveform_format(str(compiler)) == "vcd"


def check_waveform(path: Path, cycle: int, lane: int, value: int) -> None:
    """The waveform covers the neighbourhood and shows the wrong value in its cycle, beside the expected one."""
    waveform = pywellen.Waveform(str(path))
    changes = {variable.full_name: variable.tv for variable in waveform.all_vars()}

    def at(name: str, time: int) -> int:
        """What had settled at a time."""
        return int([found for when, found in changes[f"bench.{name}"] if when <= time][-1])

    begins = {int(number): time for time, number in changes["bench.cycle"]}
    settled = begins[cycle] + CLOCK_PERIOD_PS // 2
    assert [at(name, settled) for name in ("out_valid", "out_ready", "expecting", "differs")] == [1, 1, 1, 1]
    assert at("out_data", settled) >> 8 * lane & 255 == value
    assert at("expected_data", settled) >> 8 * lane & 255 == value ^ 4
    other = 8 * (1 - lane)
    assert at("expected_data", settled) >> other & 255 == at("out_data", settled) >> other & 255
    # Of what was taken before the mismatch nothing differs.
    before = [begins[cycle] - step * CLOCK_PERIOD_PS - 1 for step in range(60)]
    assert not any(at("differs", time) & at("out_ready", time) for time in before)
    assert any(at("out_valid", time) & at("out_ready", time) for time in before)
    cycles = sorted(begins)
    assert cycles == list(range(cycles[0], cycles[-1] + 1))
    assert cycle - BEFORE <= cycles[0] <= max(cycle - BEFORE, 0) + 2
    assert cycle < cycles[-1] <= cycle + AFTER + 2
    # The views name signals that are there, and put the cursor into the cycle.
    surfer = path.with_suffix(".sucl").read_text().splitlines()
    assert surfer[0] == f"load_file {path.name}"
    shown = [line.split()[1] for line in surfer if line.startswith("variable_add")]
    assert len(shown) == len(set(shown)) >= 15
    assert set(shown) <= set(changes)
    (cursor,) = [int(line.split()[1]) for line in surfer if line.startswith("cursor_set")]
    assert begins[cycle] <= cursor < begins[cycle + 1]
    gtkwave = path.with_suffix(".gtkw").read_text()
    assert [line.split("[")[0] for line in gtkwave.splitlines() if line.startswith("bench.")] == shown
    for caption in ("input stream", "output stream", "expected"):
        assert f"-{caption}" in gtkwave.splitlines()
        assert f"divider_add {caption}" in surfer


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # A beat is overwritten before it is taken.
        ("m_axis_tready | (!m_axis_tvalid)", "1'b1", ""),
        ("m_axis_tlast = ", "m_axis_tlast = !", "expected a beat before the last, got the last beat of a row"),
    ],
)
def test_hardware_that_breaks_the_stream_is_not_passed(
    build_dir: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    true_export = verilog.export
    assert old in true_export(Lookup(LookupSpec(input_bits=8, output_bits=8), lanes=2), "lookup")
    monkeypatch.setattr(verilog, "export", lambda unit, name: true_export(unit, name).replace(old, new))
    (result,) = cosimulate([LAYERS[0]], lanes=2, build_dir=build_dir, stall_seed=1, waveform=False)
    assert result.mismatches > 0
    assert message in str(result.first_mismatch)


def test_layers_after_a_dead_one_are_not_passed(build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_export = verilog.export
    dead = ("m_axis_tvalid <= lookup", "m_axis_tvalid <= 1'b0 & lookup")
    monkeypatch.setattr(verilog, "export", lambda unit, name: true_export(unit, name).replace(*dead))
    results = cosimulate(LAYERS[:2], lanes=2, build_dir=build_dir, waveform=False)
    assert [result.mismatches for result in results] == [layer.output.size for layer in LAYERS[:2]]


def test_a_build_is_done_once(build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [LAYERS[0]]
    (first,) = cosimulate(vectors, lanes=2, build_dir=build_dir)
    stamp = first.verilog.stat().st_mtime_ns
    monkeypatch.chdir(build_dir.parent)  # a relative folder is as good
    monkeypatch.setattr(build, "run_step", lambda command, *rest: pytest.fail(f"built again: {command}"))
    (second,) = cosimulate(vectors, lanes=2, build_dir=Path(build_dir.name))
    assert second.verilog == first.verilog
    assert second.verilog.stat().st_mtime_ns == stamp
    assert second == first


def test_a_build_leaves_its_simulator_and_nothing_else(tmp_path: Path) -> None:
    # A folder of its own: in the shared one, tests beside this one are building.
    (result,) = cosimulate([LAYERS[0]], lanes=1, build_dir=tmp_path, waveform=False)
    simulator = result.verilog.parent
    left = {path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()}
    assert left == {"lookup", "verilated", "verilated.lock"}
    assert sorted(path.name for path in simulator.iterdir()) == ["bench", "build.log", "lookup.v"]


def test_verilog_that_does_not_compile_leaves_no_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilog, "export", lambda unit, name: f"module {name} (; endmodule")
    with pytest.raises(HwsimError, match=r"building the simulation failed in verilator: .*see .*failed-build\.log"):
        cosimulate([LAYERS[0]], lanes=1, build_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["failed-build.log"]


def test_a_folder_that_make_cannot_build_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HwsimError, match="a folder/build holds a space"):
        cosimulate([LAYERS[0]], lanes=1, build_dir=tmp_path / "a folder" / "build")
    assert list(tmp_path.iterdir()) == []


def test_a_kind_without_hardware_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RequantizeSpec(input=IntFormat(8, signed=True), output_bits=8, multiplier_bits=8, shift_bits=4, channels=1)
    monkeypatch.delitem(catalog.UNITS, "requantize", raising=False)
    with pytest.raises(HwsimError, match=r"there is no hardware unit 'requantize'; there are .*lookup"):
        catalog.group_key(spec)
