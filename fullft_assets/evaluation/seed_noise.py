"""How much the seed alone moves a score: from trainings of one recipe on one snapshot, scored on the same
test groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.intervals import Record

#: A variance from fewer trainings than this is too unsure to claim anything about a recipe.
MIN_RUNS = 9


class SeedNoise(Record):
    """The noise of seeds in the primary metric.

    Attributes:
        variance: of the metric between seeds, beyond what the test rows explain.
        degrees_of_freedom: how sure that variance is.
        num_runs: trainings that it was measured on.
    """

    variance: float
    degrees_of_freedom: int
    num_runs: int


class Run(Record):
    """A training's score on the test groups, with each group's influence on it."""

    score: float
    influences: list[float]


def seed_noise(evaluations: Mapping[str, Iterable[Evaluation]]) -> SeedNoise | None:
    """Return the noise of seeds among evaluations by recipe, or None where fewer than `MIN_RUNS` trainings
    show it.

    Evaluations of one recipe are compared where they were scored on the same test groups by the same metric.
    """
    runs: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for recipe, of_recipe in evaluations.items():
        for each in of_recipe:
            if each.influences:
                run = Run(score=each.score.estimate, influences=each.influences)
                runs[recipe, each.primary_metric, each.groups_digest].append(run)
    return pooled(runs.values())


def pooled(recipes: Iterable[list[Run]]) -> SeedNoise | None:
    """Return the variance between the runs of each recipe, pooled, without what the rows alone explain.

    Two runs on the same rows differ by chance in which rows they get right, and a further seed would have
    other luck: half the squared standard error of their difference is subtracted, or the rows would count
    twice.
    """
    repeated = [runs for runs in recipes if len(runs) > 1]
    num_runs = sum(len(runs) for runs in repeated)
    if num_runs < MIN_RUNS:
        return None
    freedom = num_runs - len(repeated)
    squares = sum(
        (len(runs) - 1) * (float(np.var([run.score for run in runs], ddof=1)) - _row_noise(runs))
        for runs in repeated
    )
    return SeedNoise(variance=max(0.0, squares / freedom), degrees_of_freedom=freedom, num_runs=num_runs)


def _row_noise(runs: list[Run]) -> float:
    """Return half the mean squared standard error (jackknife over groups) of the difference between
    two runs.
    """
    influences = np.array([run.influences for run in runs])
    num_groups = influences.shape[1]
    factor = (num_groups - 1) / num_groups
    squared = [
        factor * num_groups * float(np.var(influences[i] - influences[j]))
        for i, j in combinations(range(len(runs)), 2)
    ]
    return float(np.mean(squared)) / 2
