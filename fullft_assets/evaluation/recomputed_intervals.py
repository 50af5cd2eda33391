"""The intervals of a stored evaluation, computed a second time from its groups, its seed and its scores: see
`verification`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

#: Smallest and largest value of the scores that are not shares.
_BOUNDS: Mapping[str, tuple[float | None, float | None]] = {
    "matthews_corrcoef": (-1.0, 1.0),
    "brier": (0.0, 2.0),
    "log_loss": (0.0, None),
    "perplexity": (1.0, None),
    "bits_per_byte": (0.0, None),
}
#: Draws whose rows are weighed at once.
_CHUNK = 64
_MAX_LOG_REACH = 50.0


@dataclass(frozen=True)
class Choosable:
    """The items of each label, of which a draw of groups chooses the labels that enough groups have.

    Attributes:
        items: right, true and given of each row, by its weight [n, labels, 3].
        of_counts: returns the scores [b] of items [b, labels, 3]; a label without true ones has no part in
            them.
        min_groups: number of groups of equal weight that a label must have.
    """

    items: np.ndarray
    of_counts: Callable[[np.ndarray], np.ndarray]
    min_groups: float


@dataclass(frozen=True)
class SummedScore:
    """A score of sums over the rows.

    Attributes:
        table: what is summed of each row, by its weight [n, k].
        of_sums: returns the scores [b] of sums [b, k].
        choosable: the items of all labels where these rows chose those which are scored; None: they did not.
    """

    table: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]
    choosable: Choosable | None = None

    @property
    def score(self) -> float:
        """The score of all rows."""
        return float(self.of_sums(self.table.sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class RankedScore:
    """A score of the order of all rows: it is not a function of sums.

    Attributes:
        of_counts: returns the scores [b] where each row is there so often [b, n].
    """

    of_counts: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """Draws of whole groups, the same for every score.

    Attributes:
        groups: of each row [n]; they are numbered in the order of their names.
    """

    groups: Sequence[str]
    resamples: int
    confidence: float
    seed: int

    @cached_property
    def names(self) -> list[str]:
        """The groups in order."""
        return sorted(set(self.groups))

    @cached_property
    def _number(self) -> np.ndarray:
        place = {name: number for number, name in enumerate(self.names)}
        return np.array([place[group] for group in self.groups])

    def measured(
        self,
        metric: str,
        of_system: Mapping[str, tuple[float, SummedScore | RankedScore]],
        reference: str,
        effective: float,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the interval of each system's score, and that of the reference's gain over each other one.

        Args:
            of_system: its score, and how the score of a draw is found.
            effective: number of groups of equal weight that the scores rest on.
        """
        draws = {name: self._drawn(how) for name, (_, how) in of_system.items()}
        scores = {
            name: self._interval(estimate, draws[name], how, effective, _BOUNDS.get(metric, (0.0, 1.0)))
            for name, (estimate, how) in of_system.items()
        }
        ours, how = of_system[reference]
        gains = {
            name: self.gain(ours - theirs, draws[reference] - draws[name], effective, self._moved(how, other))
            for name, (theirs, other) in of_system.items()
            if name != reference
        }
        return scores, gains

    def influences(self, estimate: float, how: SummedScore | RankedScore) -> list[float]:
        """Return what a score would lose without each group; empty for one that is no function of sums."""
        return (estimate - self._without(how)).tolist() if isinstance(how, SummedScore) else []

    def gain(
        self, estimate: float, drawn: np.ndarray, effective: float, moved: np.ndarray | None
    ) -> dict[str, float]:
        """Return a difference with its t interval, wide enough for what few groups leave unseen.

        Args:
            drawn: the differences of the draws.
            moved: what the difference would lose without each group that the systems differ on; None: not
                known.
        """
        from scipy import stats

        error, freedom = float(np.std(drawn, ddof=1)), max(effective - 1, 1.0)
        half, step = float(stats.t.ppf((1 + self.confidence) / 2, freedom)) * error, 0.0
        if moved is not None:
            step = float(np.average(np.abs(moved), weights=np.abs(moved))) if moved.any() else 0.0
            if 2.0 ** (1 - len(moved)) > 1 - self.confidence:
                half = max(half, self._unseen(freedom), abs(estimate))
                step = max(step, 1 / (1 + freedom))
        ends = {"estimate": estimate, "low": estimate - half, "high": estimate + half}
        power = sum(float(stats.t.ppf(share, freedom)) for share in ((1 + self.confidence) / 2, 0.8))
        return {
            **ends,
            "standard_error": error,
            "degrees_of_freedom": freedom,
            "least_detectable": power**2 * step,
        }

    def _interval(
        self,
        estimate: float,
        drawn: np.ndarray,
        how: SummedScore | RankedScore,
        effective: float,
        bounds: tuple[float | None, float | None],
    ) -> dict[str, float]:
        from scipy import special, stats

        error, freedom = float(np.std(drawn, ddof=1)), effective - 1
        if isinstance(how, SummedScore):
            without = self._without(how)
            squares = (without - without.mean()) ** 2
            error = max(error, math.sqrt(squares.mean() * (len(squares) - 1)))
            spread = float(((squares - squares.mean()) ** 2).sum())
            if spread > 1e-9 * squares.sum() ** 2:
                freedom = min(freedom, 2 * float(squares.sum()) ** 2 / spread)
        freedom = max(freedom, 1.0)
        bias, raised = float(drawn.mean()) - estimate, 0.0
        if isinstance(how, SummedScore) and how.choosable is not None:
            choice = self._choice_bias(how.choosable)
            bias, raised = (choice, 0.0) if choice < 0 else (0.0, choice)
        reach = float(stats.t.ppf((1 + self.confidence) / 2, freedom)) * math.hypot(error, bias)
        low, high = bounds
        if low is None:
            ends = estimate - reach, estimate + reach
        elif high is None:
            factor = math.exp(min(reach / (estimate - low), _MAX_LOG_REACH)) if estimate > low else 1.0
            ends = low + (estimate - low) / factor, low + (estimate - low) * factor
        else:
            share, width = (estimate - low) / (high - low), high - low
            if share * (1 - share) < 1e-12:
                shares = (0.0, self._unseen(freedom)) if share < 0.5 else (1 - self._unseen(freedom), 1.0)
            else:
                slope = reach / (width * share * (1 - share))
                shares = tuple(special.expit(special.logit(share) + side * slope) for side in (-1, 1))
            ends = low + width * float(shares[0]), low + width * float(shares[1])
        lowest = ends[0] - raised
        return {"estimate": estimate, "low": lowest if low is None else max(low, lowest), "high": ends[1]}

    def _choice_bias(self, choosable: Choosable) -> float:
        """Return the mean over draws of what the labels that a draw chooses score in it, less what they score
        in all groups.
        """
        num_groups = len(self.names)
        of_groups = np.zeros((num_groups, *choosable.items.shape[1:]))
        for group in range(num_groups):
            of_groups[group] = choosable.items[self._number == group].sum(0)
        whole, differences = of_groups.sum(0), []
        for counts in self._counts():
            drawn = np.tensordot(counts, of_groups, 1)
            squares = counts @ of_groups[:, :, 1] ** 2
            effective = np.divide(drawn[:, :, 1] ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
            kept = (effective > choosable.min_groups - 1e-9)[:, :, None]
            differences += (choosable.of_counts(drawn * kept) - choosable.of_counts(whole * kept)).tolist()
        return float(np.mean(differences))

    def _unseen(self, freedom: float) -> float:
        """Return the upper limit of a share of which no case was seen in so many groups."""
        from scipy import stats

        return float(stats.beta.ppf((1 + self.confidence) / 2, 1, max(freedom + 1, 1.0)))

    def _counts(self) -> Iterator[np.ndarray]:
        """Yield how often each group is drawn [draws, groups]."""
        random, num_groups = np.random.default_rng(self.seed), len(self.names)
        for start in range(0, self.resamples, _CHUNK):
            drawn = [
                random.integers(0, num_groups, num_groups) for _ in range(min(_CHUNK, self.resamples - start))
            ]
            yield np.array([np.bincount(each, minlength=num_groups) for each in drawn], np.float64)

    def _drawn(self, how: SummedScore | RankedScore) -> np.ndarray:
        if isinstance(how, RankedScore):
            return np.concatenate([how.of_counts(counts[:, self._number]) for counts in self._counts()])
        sums = self._sums(how)
        return np.concatenate([how.of_sums(counts @ sums) for counts in self._counts()])

    def _without(self, how: SummedScore) -> np.ndarray:
        sums = self._sums(how)
        return how.of_sums(sums.sum(0) - sums)

    def _sums(self, how: SummedScore) -> np.ndarray:
        columns = [np.bincount(self._number, column, minlength=len(self.names)) for column in how.table.T]
        return np.stack(columns, axis=1)

    def _moved(self, one: SummedScore | RankedScore, other: SummedScore | RankedScore) -> np.ndarray | None:
        if isinstance(one, SummedScore) and isinstance(other, SummedScore):
            differs = (self._sums(one) != self._sums(other)).any(1)
            return (one.score - other.score - self._without(one) + self._without(other))[differs]
        # Of a metric that is no function of sums it is not known which groups differ.
        return np.array([]) if (self._drawn(one) == self._drawn(other)).all() else None
