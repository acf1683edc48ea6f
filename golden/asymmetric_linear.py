"""Linear layers whose weights have a zero point an output channel."""

from __future__ import annotations

import numpy as np

from golden.accumulate import dot_bounds
from golden.linear import LinearSpec
from golden.spec import Constant, Constants, IntFormat


def centred_weights(constants: Constants) -> np.ndarray:
    """``weight - zero_weight``, int64 ``[output_features, input_features]``."""
    centred: np.ndarray = constants["weight"].astype(np.int64) - constants["zero_weight"].astype(np.int64)[:, None]
    return centred


class AsymmetricLinearSpec(LinearSpec):
    """``requantize((weight - zero_weight) @ q + bias)`` over the last axis; the rest is `LinearSpec`.

    Hardware may take the sum of the codes of a row once, and subtract it times the zero point of
    each output: the result is the same.

    Constants
    ---------
    weight : [output_features, input_features], unsigned `weight_bits`
    zero_weight : [output_features], unsigned `weight_bits`
    bias, multiplier, shift, zero_point : as in `LinearSpec`
    """

    kind = "asymmetric_linear"

    @property
    def constants(self) -> dict[str, Constant]:
        unsigned = IntFormat(self.weight_bits)
        return {
            **super().constants,
            "weight": Constant((self.output_features, self.input_features), unsigned),
            "zero_weight": Constant((self.output_features,), unsigned),
        }

    def bounds(self, constants: Constants) -> tuple[int, int]:
        """Proven range of every partial sum of centred weights."""
        return dot_bounds(centred_weights(constants), constants["bias"].astype(np.int64), 0, self.input.maximum)

    def accumulate(self, constants: Constants, codes: np.ndarray) -> np.ndarray:
        """Accumulators ``[..., output_features]``, int64."""
        return super().accumulate({**constants, "weight": centred_weights(constants)}, codes)
