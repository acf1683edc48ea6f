"""What a program costs: integer operations, bytes, FixOPs, and the cycles of an accelerator built from the units.

All of it follows from the specs, the constants and the shapes of a program; no figure of a paper is in it but in
`hwsim.cost.published`, which compares.
"""
