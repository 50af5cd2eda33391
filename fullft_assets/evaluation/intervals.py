"""Intervals by resampling groups with all their rows: rows of one group err together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from fullft_assets.evaluation.counts import by_group
from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric

#: Numbers in one chunk of resampling weights (float64: 32 MB).
_CHUNK_NUMBERS = 4_000_000


class Record(BaseModel):
    """Numbers of an evaluation: they cannot be changed, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Record):
    """An estimate with the ends of its percentile interval."""

    estimate: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_an_interval(self) -> Interval:
        if not all(math.isfinite(end) for end in (self.estimate, self.low, self.high)) or self.low > self.high:
            raise ValueError(f"not an interval: {self.estimate} [{self.low}, {self.high}]")
        return self

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


class Bootstrap(Record):
    """Each system's score, and the reference's gain over every other system."""

    scores: dict[str, Interval]
    gains: dict[str, Interval]


def number_groups(groups: Sequence[str], num_rows: int) -> tuple[np.ndarray, int]:
    """Return the number of each row's group [rows], and how many groups there are."""
    if len(groups) != num_rows:
        raise ValueError(f"groups: {len(groups)} for {num_rows} rows")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError("groups: all rows belong to one group, so no interval can be computed; deliver more groups")
    return index, len(names)


def bootstrap_over_groups(
    metric: Metric,
    predictions: Mapping[str, Predictions],
    index: np.ndarray,
    *,
    reference: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> Bootstrap:
    """Percentile intervals from resampling whole groups, the same resample for every system.

    Resampling rows would promise intervals that are far too narrow (Davison and Hinkley 1997, section 3.8). A metric that is a
    function of sums only needs each group's sums, so a resample is a product of group weights with those.

    Args:
        index: number of each row's group [n], from 0.
        reference: the system whose gain over each other one is estimated.
    """
    if reference not in predictions:
        raise ValueError(f"reference `{reference}` is not among the systems: {', '.join(predictions)}")
    weights = _group_weights(int(index.max()) + 1, resamples, seed)
    if isinstance(metric, SummedMetric):
        estimates, draws = _from_sums(metric, predictions, index, weights)
    else:
        estimates, draws = _from_rows(metric, predictions, index, weights)
    for estimate in estimates.values():
        metric.require_in_bounds(estimate)
    others = [name for name in predictions if name != reference]
    return Bootstrap(
        scores={name: _interval(estimates[name], draws[name], confidence) for name in predictions},
        gains={name: _interval(estimates[reference] - estimates[name], draws[reference] - draws[name], confidence) for name in others},
    )


def _from_sums(
    metric: SummedMetric, predictions: Mapping[str, Predictions], index: np.ndarray, weights: Iterator[np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return each system's score, and its scores [resamples]."""
    num_groups = int(index.max()) + 1
    sums = {name: tuple(by_group(table, index, num_groups) for table in metric.count(found)) for name, found in predictions.items()}
    estimates = {name: float(metric.score(*(table.sum(0, keepdims=True) for table in tables))[0]) for name, tables in sums.items()}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in predictions}
    for chunk in weights:
        for name, tables in sums.items():
            draws[name].append(metric.score(*(chunk @ table for table in tables)))
    return estimates, {name: np.concatenate(parts) for name, parts in draws.items()}


def _from_rows(
    metric: Metric, predictions: Mapping[str, Predictions], index: np.ndarray, weights: Iterator[np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Likewise, computed anew on the rows of each resample."""
    draws: dict[str, list[float]] = {name: [] for name in predictions}
    for chunk in weights:
        for drawn in chunk:
            rows = np.repeat(np.arange(len(index)), drawn[index].astype(np.int64))
            for name, found in predictions.items():
                draws[name].append(metric.compute(found.take(rows)))
    return {name: metric.compute(found) for name, found in predictions.items()}, {name: np.array(each) for name, each in draws.items()}


def _group_weights(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each group was drawn, [resamples in the chunk, groups]."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // num_groups)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, num_groups, (size, num_groups)) + num_groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups).astype(np.float64)


def _interval(estimate: float, drawn: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))
