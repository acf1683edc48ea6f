# amaranth: UnusedElaboratable=no
"""The Verilog text: lint-clean, the same every time, and says what it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.lookup import LookupSpec
from rtl import netlist, verilog_writer
from rtl.lookup import Lookup
from rtl.verilog import export, facts
from sim_tests.toolchain import find_toolchain

ROOT = Path(__file__).parent.parent


def lookup(input_bits=8, output_bits=8, channels=1, lanes=1, baked=False):
    spec = LookupSpec(input_bits=input_bits, output_bits=output_bits, channels=channels)
    table = np.arange(channels << input_bits).reshape(channels, -1) % (1 << output_bits)
    return Lookup(spec, lanes=lanes, constants={"table": table} if baked else None)


def lint(folder, name, text):
    """Codes of the warnings that Verilator gives."""
    tools = find_toolchain()
    (folder / f"{name}.v").write_text(text)
    result = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", f"{name}.v"],
        cwd=folder,
        env=tools.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return set(re.findall(r"%(?:Warning|Error)-(\w+)", result.stderr)), result.stderr


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_bits": 5, "output_bits": 11, "lanes": 4},
        {"input_bits": 10, "output_bits": 3, "channels": 3, "lanes": 2},
        {"lanes": 3, "baked": True},
        {"input_bits": 1, "output_bits": 1, "channels": 2},
    ],
    ids=str,
)
def test_lint_has_nothing_to_say(tmp_path, options):
    text = export(lookup(**options), "gelu")
    codes, said = lint(tmp_path, "gelu", text)
    assert codes <= {"PROCASSINIT"}, said
    assert "verilator" not in text
    assert "lint_off" not in text


def test_lint_notices_a_width_that_does_not_fit(tmp_path):
    text = export(lookup(), "gelu").replace("reg [7:0] lookup_table_0", "reg [8:0] lookup_table_0")
    codes, _ = lint(tmp_path, "gelu", text)
    assert codes > {"PROCASSINIT"}


def test_ports_are_axi_streams():
    text = export(lookup(input_bits=6, output_bits=9, lanes=2), "gelu")
    head = text[text.index("module gelu") : text.index(");")]
    ports = re.findall(r"(input|output)\s+(?:wire|reg)\s+(?:\[(\d+):0\] )?(\w+)", head)
    assert [(direction, int(high or 0) + 1, name) for direction, high, name in ports] == [
        ("input", 1, "aclk"),
        ("input", 1, "aresetn"),
        ("input", 16, "s_axis_tdata"),
        ("input", 2, "s_axis_tkeep"),
        ("input", 1, "s_axis_tlast"),
        ("input", 1, "s_axis_tvalid"),
        ("output", 1, "s_axis_tready"),
        ("output", 32, "m_axis_tdata"),
        ("output", 4, "m_axis_tkeep"),
        ("output", 1, "m_axis_tlast"),
        ("output", 1, "m_axis_tvalid"),
        ("input", 1, "m_axis_tready"),
        ("input", 24, "s_axis_write_tdata"),
        ("input", 1, "s_axis_write_tvalid"),
        ("output", 1, "s_axis_write_tready"),
    ]


def test_the_head_says_what_the_unit_is():
    unit = lookup(input_bits=6, channels=3, lanes=2)
    comment = export(unit, "pixels").split("module pixels")[0]
    assert all(line.startswith("//") for line in comment.splitlines())
    lines = [" ".join(line.split()) for line in comment.splitlines()]
    assert "// spec input_bits 6" in lines
    assert "// spec channels 3" in lines
    assert "// lanes 2" in lines
    assert "// latency 2 cycles from the last beat of a row taken to its first result" in lines
    assert "// cycles a row ceil(length / lanes)" in lines
    assert "// cycles for 3 2" in lines
    assert "// channel << input_bits | code output code" in lines


def test_the_facts_tell_the_same():
    about = facts(lookup(input_bits=6, output_bits=9, lanes=2), "gelu")
    assert about.spec == {"input_bits": 6, "output_bits": 9, "channels": 1}
    assert {port.name: port.width for port in about.ports}["m_axis_tdata"] == 32
    page = about.markdown()
    assert "| `m_axis_tdata` | output | 32 | 2 x unsigned 9, each in 2 bytes |" in page
    assert "| latency | 2 cycles" in page
    assert r"| channel << input_bits \| code | output code |" in page


def test_baked_contents_are_in_the_text_and_need_no_port():
    text = export(lookup(input_bits=3, output_bits=3, baked=True), "gelu")
    assert "s_axis_write" not in text
    assert re.findall(r"lookup_table_0\[(\d)\] = 3'h(\d);", text) == [(str(n), str(n)) for n in range(8)]
    assert "constants         baked in" in text or "baked in" in text


def test_the_text_is_always_the_same():
    # A set that is walked through would show under another hash seed.
    program = (
        "from golden.lookup import LookupSpec; from rtl.lookup import Lookup; from rtl.verilog import export;"
        "spec = LookupSpec(input_bits=4, output_bits=5, channels=3);"
        "print(export(Lookup(spec, lanes=3), 'gelu'), end='')"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {export(lookup(input_bits=4, output_bits=5, channels=3, lanes=3), "gelu")}


@pytest.mark.parametrize("name", ["", "1st", "a-b", "gelu unit", "a.b"])
def test_a_name_that_is_no_identifier_is_refused(name):
    with pytest.raises(HwsimError, match="not a Verilog identifier"):
        export(lookup(), name)


def test_cells_without_verilog_are_refused():
    text = """
module \\top
  wire width 4 input 1 \\a
  wire width 4 output 2 \\y
  cell $div $1
    parameter \\A_SIGNED 0
    parameter \\B_SIGNED 0
    connect \\A \\a
    connect \\B 4'0011
    connect \\Y \\y
  end
end
"""
    with pytest.raises(NotImplementedError, match=r"\$div"):
        verilog_writer.write(netlist.read(text), {"a": "", "y": ""})


def test_rtlil_that_is_not_flat_is_refused():
    with pytest.raises(ValueError, match="second module"):
        netlist.read("module \\a\nend\nmodule \\b\nend\n")
    with pytest.raises(ValueError, match="not understood"):
        netlist.read("module \\a\n  process $1\n  end\nend\n")


def test_a_part_past_the_end_of_a_signed_value_is_refused():
    text = """
module \\top
  wire width 9 input 1 \\a
  wire width 3 input 2 \\place
  wire width 4 output 3 \\y
  cell $shift $1
    parameter \\A_SIGNED 1
    parameter \\B_SIGNED 0
    connect \\A \\a
    connect \\B \\place
    connect \\Y \\y
  end
end
"""
    with pytest.raises(NotImplementedError, match="past its end"):
        verilog_writer.write(netlist.read(text), {"a": "", "place": "", "y": ""})
