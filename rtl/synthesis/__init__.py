"""What the exported Verilog costs on an FPGA: cells and clock, from open tools, each point kept once it is done.

`rtl.synthesis.flow.implement` takes any Verilog, `count_cells` a unit, `rtl.synthesis.standard` knows
the configurations of the published table and `rtl.synthesis.table` prints it.
"""
