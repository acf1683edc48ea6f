"""The self-test of the units on FPGA boards: its design, its pins and clocks, and the way to a bitstream."""
