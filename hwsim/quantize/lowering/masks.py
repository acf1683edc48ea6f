"""Room for a shift mask: how far below the scores a masked one can be put in the width that softmax units take."""

from __future__ import annotations

from golden.log_softmax import WIDEST_SCORE, exponential_constants


def octave_and_room(scale: float, bits: int) -> tuple[int, int]:
    """|x0| of i-exp in score steps, and how many of them fit below scores of a width.

    Parameters
    ----------
    scale : float
        Of the scores.
    bits : int
        Their width.
    """
    octave = -int(exponential_constants(scale)["x0"])
    return octave, ((1 << WIDEST_SCORE) - (1 << bits)) // octave
