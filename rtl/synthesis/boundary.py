"""Registers around a module, so that a device with few pins can time it from register to register."""

from __future__ import annotations

import re

_PORT = re.compile(r"^\s*(input|output)\s+(?:wire|reg)\s+(?:\[(\d+):0\] )?(\w+)", re.MULTILINE)
CLOCK = "aclk"
TOP = "boundary"


def ports_of(verilog: str) -> list[tuple[str, int, str]]:
    """Direction, width and name of the ports of a module that `rtl.verilog.export` wrote."""
    return [(direction, int(high or 0) + 1, name) for direction, high, name in _PORT.findall(verilog)]


def wrap(verilog: str, module: str) -> str:
    """A module `boundary` of three pins around another: a register at each of its inputs and outputs.

    The input registers are a shift register. What the output registers caught is folded into a second
    shift register a cycle later, so that no logic stands between the module and its boundary.

    Parameters
    ----------
    verilog : str
        From `rtl.verilog.export`.
    module : str

    Returns
    -------
    str
        The boundary only.
    """
    ports = ports_of(verilog)
    inputs = [(width, name) for direction, width, name in ports if direction == "input" and name != CLOCK]
    outputs = [(width, name) for direction, width, name in ports if direction == "output"]
    entering, leaving = sum(width for width, _ in inputs), sum(width for width, _ in outputs)
    connections = [f".{CLOCK}({CLOCK})"]
    for group, vector in ((inputs, "entering"), (outputs, "leaving")):
        low = 0
        for width, name in group:
            connections.append(f".{name}({vector}[{low + width - 1}:{low}])")
            low += width
    return f"""module {TOP} (input wire {CLOCK}, input wire scan_in, output wire scan_out);
    reg [{entering - 1}:0] entering;
    wire [{leaving - 1}:0] leaving;
    reg [{leaving - 1}:0] caught;
    reg [{leaving - 1}:0] signature;
    {module} inside ({", ".join(connections)});
    always @(posedge {CLOCK}) begin
        entering <= {{entering[{entering - 2}:0], scan_in}};
        caught <= leaving;
        signature <= {{signature[{leaving - 2}:0], scan_in}} ^ caught;
    end
    assign scan_out = signature[{leaving - 1}];
endmodule
"""
