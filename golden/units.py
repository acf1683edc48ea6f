"""Every unit of the package: importing this module makes all kinds known to `golden.spec.spec_from_dict`."""

from golden import (
    adalog,
    add,
    layernorm,
    linear,
    log2_matmul,
    log_softmax,
    lookup,
    matmul,
    rearrange,
    requantize,
    softmax,
    token_mean,
    twin,
    windows,
)

__all__ = [
    "adalog",
    "add",
    "layernorm",
    "linear",
    "log2_matmul",
    "log_softmax",
    "lookup",
    "matmul",
    "rearrange",
    "requantize",
    "softmax",
    "token_mean",
    "twin",
    "windows",
]
