"""Scores and gains with intervals by resampling groups with all their rows: rows of one group err
together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fullft_assets.evaluation.intervals import Gain, Interval, Record, bounded_interval, effective_number
from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric, by_group, is_measurable

#: Bootstrap resamples: the ends of an interval are stable to a few hundredths of its width.
RESAMPLES = 1_000
#: Numbers in one chunk of resampling weights (float64: 32 MB).
_CHUNK_NUMBERS = 4_000_000
#: Fewer degrees of freedom than this give intervals as wide as the scale.
_MIN_DEGREES_OF_FREEDOM = 1.0


class SystemScores(Record):
    """What a metric gives the systems.

    Attributes:
        gains: the reference's over every other system.
        effective_groups: number of groups of equal weight that they rest on.
        influences: of each group on the reference's score, in the order of the groups' numbers: what the
            score would lose without it. Empty for a metric that is no function of sums.
    """

    scores: dict[str, Interval]
    gains: dict[str, Gain]
    effective_groups: float
    influences: list[float]


@dataclass(frozen=True)
class _Samples:
    """What a metric gives a system.

    Attributes:
        draws: scores on resamples [resamples].
        left_out: scores without each group [groups], and
        sums: of each group, tables [groups] or [groups, k]; None and empty for a metric that is no function
            of sums.
        choice_bias: how much higher than in all groups the labels score, on average, in those resamples that
            make them measurable. None: the rows did not choose the labels.
    """

    estimate: float
    draws: np.ndarray
    left_out: np.ndarray | None = None
    sums: tuple[np.ndarray, ...] = ()
    choice_bias: float | None = None

    def moved_from(self, other_samples: "_Samples") -> np.ndarray | None:
        """Return by how much each group on which two systems differ moves the difference; None where that is
        not known.
        """
        if self.left_out is None or other_samples.left_out is None:
            return None if (self.draws != other_samples.draws).any() else np.array([])
        pairs = zip(self.sums, other_samples.sums, strict=True)
        differs = np.any(
            [
                (own_table != other_table).reshape(len(own_table), -1).any(axis=1)
                for own_table, other_table in pairs
            ],
            axis=0,
        )
        return ((self.estimate - self.left_out) - (other_samples.estimate - other_samples.left_out))[differs]


def number_groups(groups: Sequence[str], num_rows: int) -> tuple[np.ndarray, int]:
    """Return the number of each row's group [rows], and how many groups there are."""
    if len(groups) != num_rows:
        raise ValueError(f"groups: {len(groups)} for {num_rows} rows")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            "groups: all rows belong to one group, so no interval can be computed; deliver more groups"
        )
    return index, len(names)


def measure(
    metric: Metric,
    predictions: Mapping[str, Predictions],
    index: np.ndarray,
    *,
    reference: str,
    confidence: float,
    seed: int,
    resamples: int = RESAMPLES,
    rows_chose_labels: bool = False,
) -> SystemScores:
    """Return every system's score and the reference's gains, each with its interval.

    Whole groups are resampled, the same for every system: resampling rows would promise intervals that are
    far too narrow (Davison and Hinkley 1997, section 3.8). A score's standard error is the larger of those of
    the bootstrap and of the jackknife over groups, widened by the bootstrap's bias, which is not corrected;
    its t interval is taken on the logit scale, with the degrees of freedom that the groups' influences leave.
    A gain's is the bootstrap's alone. docs/decisions/0020 has their coverage.

    A label is measurable that enough groups have. One which has them by chance has more than its share of
    true rows and no more false ones, so its F1 is too high. Each resample chooses labels in the same way; the
    score's lower end is lower by how much these score higher in it than in all groups.

    Args:
        index: number of each row's group [n], from 0.
        reference: the system whose gain over each other one is estimated.
        rows_chose_labels: whether these rows decided which labels are measurable, see above.
    """
    if reference not in predictions:
        raise ValueError(f"reference `{reference}` is not among the systems: {', '.join(predictions)}")
    num_groups = int(index.max()) + 1
    weights = _group_weights(num_groups, resamples, seed)
    samples_of = (
        _from_sums(metric, predictions, index, weights, rows_chose_labels)
        if isinstance(metric, SummedMetric)
        else _from_rows(metric, predictions, index, weights)
    )
    for samples in samples_of.values():
        metric.require_in_bounds(samples.estimate)
    reference_samples = samples_of[reference]
    left_out = reference_samples.left_out
    mass = metric.mass(predictions[reference]) * predictions[reference].row_weights
    effective = effective_number(by_group(mass, index, num_groups))
    return SystemScores(
        scores={name: _score(metric, samples, effective, confidence) for name, samples in samples_of.items()},
        gains={
            name: _gain(reference_samples, samples_of[name], effective, confidence)
            for name in predictions
            if name != reference
        },
        effective_groups=effective,
        influences=[] if left_out is None else (reference_samples.estimate - left_out).tolist(),
    )


def _score(metric: Metric, samples: _Samples, effective_groups: float, confidence: float) -> Interval:
    error = samples.draws.std(ddof=1)
    freedom = effective_groups - 1
    if samples.left_out is not None:
        num_groups = len(samples.left_out)
        influence = samples.left_out.mean() - samples.left_out
        squares = float((influence**2).sum())
        error = max(error, np.sqrt((num_groups - 1) / num_groups * squares))
        # How sure a variance is that comes from influences of unequal size.
        spread = float((influence**4).sum()) - squares**2 / num_groups
        # Equal influences leave only rounding.
        if spread > 1e-9 * squares**2:
            freedom = min(freedom, 2 * squares**2 / spread)
    choice_bias = samples.choice_bias
    bias = samples.draws.mean() - samples.estimate if choice_bias is None else min(choice_bias, 0.0)
    interval = bounded_interval(
        samples.estimate,
        float(np.hypot(error, bias)),
        max(freedom, _MIN_DEGREES_OF_FREEDOM),
        confidence,
        metric.bounds,
    )
    # Labels that the rows chose score too high.
    low = interval.low - max(choice_bias or 0.0, 0.0)
    lowest = metric.bounds[0]
    return interval.model_copy(update={"low": low if lowest is None else max(low, lowest)})


def _gain(reference: _Samples, other_samples: _Samples, effective_groups: float, confidence: float) -> Gain:
    return Gain.of(
        reference.estimate - other_samples.estimate,
        float((reference.draws - other_samples.draws).std(ddof=1)),
        max(effective_groups - 1, _MIN_DEGREES_OF_FREEDOM),
        confidence,
        reference.moved_from(other_samples),
    )


def _from_sums(
    metric: SummedMetric,
    predictions: Mapping[str, Predictions],
    index: np.ndarray,
    weights: Iterator[np.ndarray],
    rows_chose_labels: bool,
) -> dict[str, _Samples]:
    """Return what a metric gives each system: a function of sums only needs each group's, so a resample is a
    product of matrices.
    """
    num_groups = int(index.max()) + 1
    sums = {
        name: tuple(by_group(table, index, num_groups) for table in metric.weighted(system))
        for name, system in predictions.items()
    }
    totals = {name: tuple(table.sum(0, keepdims=True) for table in tables) for name, tables in sums.items()}
    all_labels = {}
    for name, system in predictions.items():
        tables = metric.count_all_labels(system) if rows_chose_labels else None
        if tables is not None:
            all_labels[name] = tuple(by_group(table, index, num_groups) for table in system.weigh(tables))
    draws: dict[str, list[np.ndarray]] = {name: [] for name in predictions}
    rises_by_choice: dict[str, list[np.ndarray]] = {name: [] for name in all_labels}
    for chunk in weights:
        for name, tables in sums.items():
            draws[name].append(metric.score(*(chunk @ table for table in tables)))
        for name, tables in all_labels.items():
            rises_by_choice[name].append(_rise_by_choice(metric, tables, chunk))
    return {
        name: _Samples(
            float(metric.score(*totals[name])[0]),
            np.concatenate(draws[name]),
            metric.score(*(total - table for total, table in zip(totals[name], tables, strict=True))),
            tables,
            float(np.concatenate(rises_by_choice[name]).mean()) if name in rises_by_choice else None,
        )
        for name, tables in sums.items()
    }


def _rise_by_choice(metric: SummedMetric, tables: tuple[np.ndarray, ...], weights: np.ndarray) -> np.ndarray:
    """Return how much higher than in all groups the labels score that a resample makes measurable
    [resamples].

    Args:
        tables: `true_positives`, `true` and `num_predicted` of each group [groups, labels].
    """
    sums = [weights @ table for table in tables]
    measurable = is_measurable(sums[1], weights @ tables[1] ** 2)
    # A label that does not occur is left out of the score.
    return metric.score(*(table * measurable for table in sums)) - metric.score(
        *(table.sum(0) * measurable for table in tables)
    )


def _from_rows(
    metric: Metric, predictions: Mapping[str, Predictions], index: np.ndarray, weights: Iterator[np.ndarray]
) -> dict[str, _Samples]:
    draws: dict[str, list[float]] = {name: [] for name in predictions}
    for chunk in weights:
        for group_weights in chunk:
            rows = np.repeat(np.arange(len(index)), group_weights[index].astype(np.int64))
            for name, system in predictions.items():
                draws[name].append(metric.compute(system.take(rows)))
    return {
        name: _Samples(metric.compute(system), np.array(draws[name])) for name, system in predictions.items()
    }


def _group_weights(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // num_groups)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(0, num_groups, (size, num_groups)) + num_groups * np.arange(size)[:, None]
        yield (
            np.bincount(draws.ravel(), minlength=size * num_groups)
            .reshape(size, num_groups)
            .astype(np.float64)
        )
