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

Sources: FQ-ViT (Lin et al., IJCAI 2022), PTQ4ViT (Yuan et al., ECCV 2022), RepQ-ViT (Li et
al., ICCV 2023), AdaLog (Wu et al., ECCV 2024) and Q-ViT (Li et al., NeurIPS 2022), with their
released code.
"""

from golden.published.adalog import (
    GELU_SHIFT,
    adalog_dequantize,
    adalog_quantize,
    adalog_tables,
    shifted_adalog_dequantize,
    shifted_adalog_quantize,
    shifted_bias,
)
from golden.published.layernorm import int_layernorm
from golden.published.observers import observe, pts_factors
from golden.published.ptq4vit import symmetric_quantize, twin_gelu, twin_softmax
from golden.published.q_vit import lsq_dequantize, lsq_quantize, lsq_range, rectify
from golden.published.repq import (
    Reparameterized,
    asymmetric_dequantize,
    asymmetric_quantize,
    log_sqrt2_dequantize,
    log_sqrt2_quantize,
    reparameterize,
)
from golden.published.softmax import log_int_softmax

__all__ = [
    "GELU_SHIFT",
    "Reparameterized",
    "adalog_dequantize",
    "adalog_quantize",
    "adalog_tables",
    "asymmetric_dequantize",
    "asymmetric_quantize",
    "int_layernorm",
    "log_int_softmax",
    "log_sqrt2_dequantize",
    "log_sqrt2_quantize",
    "lsq_dequantize",
    "lsq_quantize",
    "lsq_range",
    "observe",
    "pts_factors",
    "rectify",
    "reparameterize",
    "shifted_adalog_dequantize",
    "shifted_adalog_quantize",
    "shifted_bias",
    "symmetric_quantize",
    "twin_gelu",
    "twin_softmax",
]
