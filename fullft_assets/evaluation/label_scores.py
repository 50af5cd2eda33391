"""The per-label table of an evaluation, and its weakest label in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fullft_assets.evaluation.counts import ratio
from fullft_assets.evaluation.intervals import Record


class LabelScore(Record):
    """One row of the per-label table."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def label_scores(
    right: np.ndarray, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> list[LabelScore]:
    """The per-label table from counts [labels], in label order; a ratio without a denominator is 0."""
    precision = ratio(right, predicted)
    recall = ratio(right, true)
    f1 = ratio(2 * right, true + predicted)
    return [
        LabelScore(
            label=name,
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            support=int(true[i]),
        )
        for i, name in enumerate(names)
    ]


def weakest_label(scores: Sequence[LabelScore], unit: str) -> list[str]:
    """Return sentences on the weakest label, and on those that the test set lacks.

    Args:
        unit: what is counted, such as `test rows`.
    """
    measured = [score for score in scores if score.support]
    sentences = []
    if measured:
        weakest = min(measured, key=lambda score: score.f1)
        sentences.append(
            f"It is weakest on `{weakest.label}` (F1 {weakest.f1:.3f} on {weakest.support:,} {unit})."
        )
    missing = [f"`{score.label}`" for score in scores if not score.support]
    if missing:
        sentences.append(f"The test set has no {', '.join(missing)}: quality there is unknown.")
    return sentences
