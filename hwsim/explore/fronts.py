"""What came out of a sweep: a data frame, Pareto fronts, and what the differences are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwsim.explore.records import TOP1, WITHOUT_HARDWARE, Record, loss_of

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95


def wilson(right: int, images: int) -> tuple[float, float]:
    """Wilson's interval of an accuracy at 95 %, percent."""
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def same_accuracy(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that two programs of one accuracy differ as much as these do (exact McNemar test, two-sided).

    Parameters
    ----------
    a, b : ndarray of bool [images]
        Which of the same images each gets right.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def on_front(values: np.ndarray) -> np.ndarray:
    """Which rows are on the Pareto front: no other row is as good everywhere and better somewhere.

    Parameters
    ----------
    values : ndarray [points, objectives]
        All to be made small.

    Returns
    -------
    ndarray of bool [points]
        Of equal rows the first alone.
    """
    kept = np.zeros(len(values), bool)
    order = np.lexsort(values.T[::-1])
    for place in order:
        rivals = values[kept]
        kept[place] = not (rivals <= values[place]).all(axis=1).any()
    return kept


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row a point: its fields, accuracy with Wilson's interval, costs, error.

    The column ``equals_best`` is true where the accuracy does not differ significantly from the best one's
    (exact McNemar test on the same images, 5 %), and ``layers_without_hardware`` says which cells are not counted, such
    as "13 add, 6 softmax".
    """
    import pandas as pd

    measured = [record for record in records if not record.error]
    best = max(measured, key=lambda record: record.top1, default=None)
    rows = []
    for record in records:
        row: dict[str, object] = {"id": record.key, **record.point, "recipe_name": record.recipe}
        if not record.error:
            assert best is not None
            right = int(record.bits.sum())
            low, high = wilson(right, record.images)
            row |= {
                "top1": record.top1,
                "top1_low": low,
                "top1_high": high,
                "images": record.images,
                "fake_quant_top1": record.fake_quant_top1,
                "equals_best": same_accuracy(record.bits, best.bits) >= 1 - CONFIDENCE,
                **{name: cost for name, cost in record.costs.items() if not name.startswith(WITHOUT_HARDWARE)},
                WITHOUT_HARDWARE.rstrip("."): ", ".join(f"{n} {kind}" for kind, n in record.without_hardware.items()),
            }
        rows.append({**row, "seconds": record.seconds, "error": record.error})
    return pd.DataFrame(rows)


def missing_units(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Measured points by the kinds of layers that have no unit in hardware: cells of one group alone compare."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if not record.error:
            groups.setdefault(tuple(sorted(record.without_hardware)), []).append(record)
    return groups


def pareto(records: Sequence[Record], cost: str) -> list[tuple[Record, bool]]:
    """The front of accuracy against a cost, from the cheapest point on; the cheapest has the most frames a second.

    Returns
    -------
    list of (Record, bool)
        Is the point significantly better than the one before it that was (exact McNemar test, 5 %)?
        The first always is.
    """
    measured = [record for record in records if not record.error and cost in record.costs]
    if not measured:
        return []
    values = np.array([(loss_of(record, cost), loss_of(record, TOP1)) for record in measured])
    front = sorted(
        (record for record, on in zip(measured, on_front(values), strict=True) if on),
        key=lambda record: loss_of(record, cost),
    )
    steps: list[tuple[Record, bool]] = []
    last: Record | None = None
    for record in front:
        better = last is None or same_accuracy(last.bits, record.bits) < 1 - CONFIDENCE
        steps.append((record, better))
        if better:
            last = record
    return steps
