"""What to measure next: every point, points at random, or those that a multi-objective search proposes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from golden.errors import HwsimError
from hwsim.explore.space import Point, Space

KINDS = ("grid", "random", "nsga2")
# Points of a generation; the next one needs the figures of all.
POPULATION = 12

# Values of the objectives of a point, all to be made small; None for a point without figures.
Scores = Sequence[tuple[float, ...] | None]
Proposals = Generator[Sequence[Point], Scores, None]


def proposals(kind: str, space: Space, count: int | None, seed: int, objectives: int) -> Proposals:
    """Batches of points; each wants the scores of its points sent back before the next comes.

    Parameters
    ----------
    kind : {"grid", "random", "nsga2"}
        "nsga2" is Optuna's non-dominated sorting genetic algorithm.
    space : Space
    count : int or None
        Points at most; None is the whole grid.
    seed : int
        Of all but the grid.
    objectives : int
        Numbers a point is judged by.

    Raises
    ------
    HwsimError
        An unknown kind, or a search without a number of points.
    """
    if kind not in KINDS:
        raise HwsimError(f"search must be one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "grid":
        return at_once(space.grid()[:count])
    if count is None or count < 1:
        raise HwsimError(f"--search {kind}: a {kind} search needs --points, at least 1")
    return at_once(space.sample(count, seed)) if kind == "random" else _genetic(space, count, seed, objectives)


def at_once(points: Sequence[Point]) -> Proposals:
    """All points as one batch."""
    yield points


def _genetic(space: Space, count: int, seed: int, objectives: int) -> Proposals:
    """NSGA-II over the indices of the values; the same scores lead to the same points."""
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=min(POPULATION, count), seed=seed)
    study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
    # Optuna's categories are plain values; a field's values are told apart by their place.
    kinds: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(range(len(values))) for name, values in space.values.items()
    }
    while count > 0:
        trials = [study.ask(kinds) for _ in range(min(count, POPULATION))]
        points = [{name: space.values[name][trial.params[name]] for name in kinds} for trial in trials]
        scores = yield points
        for trial, score in zip(trials, scores, strict=True):
            if score is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, score)
        count -= len(trials)
