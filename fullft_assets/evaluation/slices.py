"""Slices of the test rows (of one source, length, label, language or value of a field), and where the model
is worse than what it would replace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fullft_assets.evaluation.intervals import Gain, Interval, Record, effective_number, holm
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.evaluation.metrics.labels import LabelF1
from fullft_assets.evaluation.resampling import measure

LABEL = "label"
#: Rows of the test set that the champion was judged on; the rest came since.
OLD_TEST = "champion's test rows"
#: A slice of fewer groups of equal weight is counted and not measured: its interval would not hold, and it
#: could be a person.
MIN_GROUPS = 5
#: The largest slices of a kind are measured; a folder may have a source for each document.
_MOST = 50


class SliceScore(Record):
    """How the fine-tuned model and its rival fare on one slice.

    Attributes:
        effective_groups: how many groups of equal weight the slice rests on.
        gain: fine-tuned minus rival.
    """

    kind: str
    name: str
    num_rows: int
    num_groups: int
    effective_groups: float
    score: Interval
    rival: Interval
    gain: Gain


class Slices(Record):
    """The slices of an evaluation.

    Attributes:
        metric: of all slices but labels, which have their F1 over all rows: a label's recall alone rises with
            its false alarms.
        rival: the champion, else the best baseline.
        num_small: slices of each kind that have too few groups.
    """

    metric: str
    rival: str
    found: list[SliceScore]
    num_small: dict[str, int]

    def tested(self, min_groups: float) -> list[SliceScore]:
        """Return the slices with enough groups to decide on."""
        return [each for each in self.found if each.effective_groups >= min_groups]

    def worse(self, min_groups: float, confidence: float, allowed: float = 0.0) -> list[SliceScore]:
        """Return those on which the model is worse than its rival, by more than chance among all that are
        tested (Holm).

        Args:
            allowed: gain that is not worse yet; below 0 where the owner accepts a loss.
        """
        tested = self.tested(min_groups)
        p_values = {str(number): each.gain.p_value_against(allowed) for number, each in enumerate(tested)}
        corrected = holm(p_values)
        return [
            each
            for number, each in enumerate(tested)
            if each.gain.high < allowed and corrected[str(number)] < 1 - confidence
        ]


def measure_slices(
    predictions: Mapping[str, Predictions],
    index: np.ndarray,
    slicing: Mapping[str, Sequence[str | None]],
    metric: Metric,
    *,
    reference: str,
    rival: str,
    resamples: int,
    confidence: float,
    seed: int,
) -> Slices | None:
    """Measure the reference and its rival on each slice; None where the metric cannot measure both.

    Args:
        predictions: with the weights of rows.
        index: number of each row's group [n].
        slicing: kind -> the slice that each row is in; None: in none. The kind `label` only says that labels
            are slices, too.
    """
    pair = {name: predictions[name] for name in (reference, rival)}
    if not all(metric.measures(each) for each in pair.values()):
        return None
    sampling = {"reference": reference, "resamples": resamples, "confidence": confidence, "seed": seed}
    scores, num_small = [], {}
    for kind, values in slicing.items():
        slices = _labels(pair[reference]) if kind == LABEL else _rows_by_value(values, metric)
        # One slice of all rows is no slice.
        if kind != LABEL and len(slices) == 1 and len(slices[0][1]) == len(index):
            continue
        measurable = [
            (name, rows, by)
            for name, rows, by in slices
            if _effective(by, pair[reference], index, rows) >= MIN_GROUPS
        ]
        measurable.sort(key=lambda each: -_effective(each[2], pair[reference], index, each[1]))
        if len(slices) > len(measurable[:_MOST]):
            num_small[kind] = len(slices) - len(measurable[:_MOST])
        scores += [
            _measure(kind, name, rows, by, pair, index, sampling, rival)
            for name, rows, by in measurable[:_MOST]
        ]
    return Slices(metric=metric.name, rival=rival, found=scores, num_small=num_small)


def _labels(ours: Predictions) -> list[tuple[str, np.ndarray, Metric]]:
    """Return each label that occurs, the rows that have it, and its metric."""
    if ours.true is None or ours.found is None:
        return []
    occurs = np.asarray(ours.true) > 0
    names = ours.labels or [str(label) for label in range(occurs.shape[1])]
    return [
        (str(names[label]), np.flatnonzero(occurs[:, label]), LabelF1(label))
        for label in np.flatnonzero(occurs.any(0)).tolist()
    ]


def _rows_by_value(values: Sequence[str | None], metric: Metric) -> list[tuple[str, np.ndarray, Metric]]:
    column = np.array(values, object)
    names = sorted({value for value in values if value is not None})
    return [(name, np.flatnonzero(column == name), metric) for name in names]


def _effective(metric: Metric, ours: Predictions, index: np.ndarray, rows: np.ndarray) -> float:
    mass = (metric.mass(ours) * ours.row_weights)[rows]
    return effective_number(np.bincount(index[rows], weights=mass))


def _measure(
    kind: str,
    name: str,
    rows: np.ndarray,
    metric: Metric,
    pair: Mapping[str, Predictions],
    index: np.ndarray,
    sampling: Mapping[str, Any],
    rival: str,
) -> SliceScore:
    # A label's F1 counts what was given to other rows, too.
    counted = np.arange(len(index)) if isinstance(metric, LabelF1) else rows
    groups = np.unique(index[counted], return_inverse=True)[1]
    measured = measure(
        metric, {system: each.take(counted) for system, each in pair.items()}, groups, **sampling
    )
    reference = sampling["reference"]
    return SliceScore(
        kind=kind,
        name=name,
        num_rows=len(rows),
        num_groups=len(np.unique(index[rows])),
        effective_groups=measured.effective_groups,
        score=measured.scores[reference],
        rival=measured.scores[rival],
        gain=measured.gains[rival],
    )
