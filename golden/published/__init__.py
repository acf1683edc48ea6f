"""The released procedures exactly as their authors' code means them, for conformance.

Each function is written from the procedure of the released code, with every
integer step in integers of unlimited width, every comparison of reals exact and
no rounding besides those that the procedure itself asks for. On inputs whose
scales are float32 values they give what the released code gives when it is run
in float64; where float64 noise could still tip the released code across a
rounding boundary, these functions stay on the exact side.

The units that become hardware (`golden.log_softmax`, `golden.layernorm`,
`golden.adalog`) are specified apart; this package says what they are measured
against.

Sources: FQ-ViT (Lin et al., IJCAI 2022) and AdaLog (Wu et al., ECCV 2024), with
their released code.
"""

from golden.published.adalog import adalog_dequantize, adalog_quantize, adalog_tables
from golden.published.layernorm import int_layernorm
from golden.published.observers import observe, pts_factors
from golden.published.softmax import log_int_softmax

__all__ = [
    "adalog_dequantize",
    "adalog_quantize",
    "adalog_tables",
    "int_layernorm",
    "log_int_softmax",
    "observe",
    "pts_factors",
]
