"""Amaranth units that compute the bits of `golden`, and their Verilog."""
