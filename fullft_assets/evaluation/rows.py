"""The table of the labels' scores on the test rows, and an order of rows by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fullft_assets.evaluation.intervals import Record
from fullft_assets.evaluation.metrics.base import ratio


class LabelScore(Record):
    """One row of the per-label table; `threshold` as it was chosen on the validation rows, if it was."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    threshold: float | None = None
    num_predicted: int | None = None


def label_scores(
    right: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    thresholds: np.ndarray | None = None,
) -> list[LabelScore]:
    """Return the per-label table from counts [labels], in label order; a ratio without a denominator is 0."""
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
            threshold=None if thresholds is None else float(thresholds[i]),
            num_predicted=int(predicted[i]),
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


def one_of_each_group_first(groups: Sequence[str], seed: int) -> list[int]:
    """Return the rows [n] in an order drawn by the seed: one of each group, then a second one, and so on.
    Rows of one group are alike.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    seen: dict[str, int] = defaultdict(int)
    turn = {}
    for row in order:
        turn[row] = seen[groups[row]]
        seen[groups[row]] += 1
    return sorted(order, key=turn.__getitem__)
