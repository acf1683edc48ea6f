"""Linear layers whose weights have a zero point an output channel."""

from __future__ import annotations

import numpy as np

from golden.linear import LinearSpec
from golden.spec import Constant, Constants, IntFormat


def centred_weights(constants: Constants) -> np.ndarray:
    """``weight - zero_weight``, int64 ``[output_features, input_features]``."""
    centred: np.ndarray = constants["weight"].astype(np.int64) - constants["zero_weight"].astype(np.int64)[:, None]
    return centred


class AsymmetricLinearSpec(LinearSpec):
    """A linear layer whose weights are ``weight - zero_weight``; the rest is `LinearSpec`.

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

    def effective_weights(self, constants: Constants) -> np.ndarray:
        """Centred weights in units of the accumulator, int64 ``[output_features, input_features]``."""
        return centred_weights(constants) << self.bias_fraction_bits
