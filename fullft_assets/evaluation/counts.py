"""Scores of what was found against what is true, from counts of each label: of a row's label or labels, or of
exact spans.

Tables are [resamples, labels] (or [groups, labels] summed): `right` true positives, `true` how often the
label occurs, `predicted` how often it was predicted. Macro-F1 averages over the labels that occur: one that
does not cannot be measured, and its absence is no success. A label that occurs and is never predicted has an
F1 of 0, as has a score without anything to score.
"""

from __future__ import annotations

import numpy as np

#: A label that fewer groups of equal weight have is not measurable: no interval of its F1 holds what it
#: promises.
MIN_LABEL_GROUPS = 5
_ROUNDING = 1e-9


def is_measurable(total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return whether enough groups of equal weight have a label: bool, of the sum of what each group has of
    it and that of its square.
    """
    # Five groups of six rows add up to a little less than five.
    return ratio(total**2, squares) >= MIN_LABEL_GROUPS - _ROUNDING


def macro_f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 [resamples] over the labels that occur in each resample; 0 where none does."""
    occurs = true > 0
    return ratio(_f1(right, true, predicted).sum(axis=1), occurs.sum(axis=1))


def weighted_f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 [resamples] over the labels, weighted by how often each occurs; 0 where none does."""
    return ratio((_f1(right, true, predicted) * true).sum(axis=1), true.sum(axis=1))


def micro_f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 [resamples] of all labels' counts together; what was predicted of labels that do not occur counts
    against it.
    """
    return ratio(2 * right.sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1))


def by_group(values: np.ndarray, index: np.ndarray, num_groups: int) -> np.ndarray:
    """Sum rows [n] or [n, k] over the groups that `index` [n] numbers, as floats for the product with
    weights.
    """
    summed = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(summed, index, values)
    return summed


def ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return part / total, 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros(np.shape(total), np.float64), where=np.asarray(total) > 0)


def _f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.divide(2 * right, true + predicted, out=np.zeros_like(true, dtype=np.float64), where=true > 0)
