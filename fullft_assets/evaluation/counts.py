"""Scores of what was found against what is true, from counts of each label: of a row's label or labels, or of exact spans.

Tables are [resamples, labels] (or [groups, labels] summed): `found` true positives, `true` how often the label stands, `predicted`
how often it was predicted. Macro-F1 averages over the labels that stand at all: one that does not cannot be measured, and its
absence is no success. A label that stands and is never predicted has an F1 of 0, as has a score without anything to score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fullft_assets.evaluation.figures import Figures


class LabelScore(Figures):
    """One row of the per-label table."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def macro_f1(found: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 [resamples] over the labels that stand in each resample; 0 where none does."""
    occurs = true > 0
    f1 = np.divide(2 * found, true + predicted, out=np.zeros_like(true, dtype=np.float64), where=occurs)
    return ratio(f1.sum(axis=1), occurs.sum(axis=1))


def micro_f1(found: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 [resamples] of all labels' counts together; what was predicted of labels that do not stand counts against it."""
    return ratio(2 * found.sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1))


def label_scores(found: np.ndarray, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[LabelScore]:
    """The per-label table from counts [labels], in label order; a ratio without a denominator is 0."""
    precision, recall, f1 = ratio(found, predicted), ratio(found, true), ratio(2 * found, true + predicted)
    return [
        LabelScore(label=name, precision=float(precision[i]), recall=float(recall[i]), f1=float(f1[i]), support=int(true[i]))
        for i, name in enumerate(names)
    ]


def by_group(values: np.ndarray, index: np.ndarray, num_groups: int) -> np.ndarray:
    """Sum rows [n] or [n, k] over the groups that `index` [n] numbers, as floats for the product with weights."""
    summed = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(summed, index, values)
    return summed


def weakest_label(scores: Sequence[LabelScore], unit: str) -> list[str]:
    """Return sentences on the weakest label, and on those that the test set lacks.

    Args:
        scores: of each label.
        unit: what is counted, such as `test rows`.
    """
    measured = [score for score in scores if score.support]
    sentences = []
    if measured:
        weakest = min(measured, key=lambda score: score.f1)
        sentences.append(f"It is weakest on `{weakest.label}` (F1 {weakest.f1:.3f} on {weakest.support:,} {unit}).")
    missing = [f"`{score.label}`" for score in scores if not score.support]
    if missing:
        sentences.append(f"The test set has no {', '.join(missing)}: quality there is unknown.")
    return sentences


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole), np.float64), where=np.asarray(whole) > 0)
