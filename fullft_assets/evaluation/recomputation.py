"""The numbers of a stored evaluation, computed a second time and otherwise than by the evaluation: see
`verification`.

What every kind of task has is here; `recomputed_labels` and `recomputed_tokens` have what only theirs has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.evaluation.recomputed_intervals import RankedScore, Sampling, SummedScore

FINETUNED = "finetuned"
_MAX_GROUP_WEIGHT = 10
#: Worst rows and groups that an evaluation names.
MOST_NAMED = 5

#: Columns of predictions.parquet.
Rows = Mapping[str, list[Any]]
#: (name, as stored, as recomputed).
Pair = tuple[str, Any, Any]
#: Fields of a stored JSON file as they should be; a field that is missing here cannot be recomputed.
Tree = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What an evaluation was asked for.

    Attributes:
        settings: the section `evaluation`.
        seed: of its draws.
        primary: the metric that decides.
    """

    settings: Mapping[str, Any]
    seed: int
    primary: str

    def sampling(self, groups: Sequence[str]) -> Sampling:
        """Return the draws of these rows' groups."""
        return Sampling(groups, self.settings["resamples"], self.settings["confidence"], self.seed)


class Recomputed(ABC):
    """The numbers of the rows that were evaluated.

    Attributes:
        groups: of each row [n].
        weights: how much each row counts [n].
    """

    groups: list[str]
    weights: np.ndarray

    @abstractmethod
    def score(self, metric: str, system: str) -> float | None:
        """Return a score; None: the stored predictions are not enough for it."""

    @abstractmethod
    def sums(self, metric: str, system: str) -> SummedScore | RankedScore:
        """Return how a score of draws of the rows is found, for a metric that has a score."""

    @abstractmethod
    def part(self, rows: np.ndarray) -> Recomputed:
        """Return the numbers of some of the rows, by position; each counts as much as it does among all."""

    @property
    def positions(self) -> np.ndarray:
        """Which rows of predictions.parquet these are."""
        return np.arange(len(self.groups))

    @abstractmethod
    def mass(self, metric: str) -> np.ndarray:
        """Return what a metric's denominator counts of each row [n]."""

    @abstractmethod
    def columns(self) -> Iterator[Pair]:
        """Yield columns of the predictions that repeat what the snapshot says."""

    @abstractmethod
    def fields(self, asked: Asked, best_baseline: str) -> Tree:
        """Return the fields that only this kind of task has."""

    def effective(self, metric: str) -> float:
        """Return the number of groups of equal weight that a metric rests on."""
        return effective_groups(self.mass(metric) * self.weights, self.groups)

    def measured(self, metric: str, systems: Sequence[str], asked: Asked) -> tuple[Tree, Tree] | None:
        """Return intervals of the systems' scores and of the gains over them; None: the stored predictions
        are not enough.
        """
        found: dict[str, tuple[float, SummedScore | RankedScore]] = {}
        for system in systems:
            score = self.score(metric, system)
            if score is None:
                return None
            found[system] = score, self.sums(metric, system)
        return asked.sampling(self.groups).measured(metric, found, FINETUNED, self.effective(metric))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return the first sum by the second [b] of [b, 2]; 0 where there is nothing to divide by."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def mean_of(values: Sequence[float] | np.ndarray, weights: np.ndarray) -> SummedScore:
    """Return the weighted mean of a value of each row [n]."""
    return SummedScore(np.stack([np.asarray(values, np.float64) * weights, weights], axis=1), ratio)


def effective_groups(mass: np.ndarray, groups: Sequence[str]) -> float:
    """Return the number of groups of equal mass that tell as much as these rows [n]: (sum m)^2 / sum m^2 over
    groups.
    """
    by_group = dict.fromkeys(groups, 0.0)
    for group, value in zip(groups, mass.tolist(), strict=True):
        by_group[group] += value
    squares = sum(value**2 for value in by_group.values())
    return sum(by_group.values()) ** 2 / squares if squares else 0.0


def group_weights(groups: Sequence[str]) -> np.ndarray:
    """Return 1 / min(rows of the group, 10) for each row."""
    sizes = Counter(groups)
    return np.array([1 / min(sizes[group], _MAX_GROUP_WEIGHT) for group in groups])


def drawn_rows(groups: Sequence[str], seed: int) -> list[int]:
    """Return the rows [n] as they are drawn: one of each group, then a second one of each, and so on."""
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    seen: Counter[str] = Counter()
    turns = []
    for place, row in enumerate(order):
        turns.append((seen[groups[row]], place, row))
        seen[groups[row]] += 1
    return [row for _, _, row in sorted(turns)]
