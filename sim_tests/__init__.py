"""Cosimulation: the exported Verilog against dumped activations, in Verilator under cocotb."""
