"""Tables of the test rows: the score of each label, and the groups with the most errors."""

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


class GroupScore(Record):
    """Errors on the test rows of one group."""

    group: str
    num_rows: int
    num_errors: int


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


def weakest_groups(
    right: np.ndarray, groups: Sequence[str], *, most: int = 5, min_rows: int = 3
) -> list[GroupScore]:
    """The groups of at least `min_rows` rows with the largest share of errors, worst first; `right` is bool
    [n].
    """
    rights: dict[str, list[bool]] = defaultdict(list)
    for group, row_is_right in zip(groups, right.tolist(), strict=True):
        rights[group].append(row_is_right)
    scores = [
        GroupScore(group=group, num_rows=len(is_right), num_errors=len(is_right) - sum(is_right))
        for group, is_right in rights.items()
        if len(is_right) >= min_rows and not all(is_right)
    ]
    return sorted(scores, key=lambda s: (-s.num_errors / s.num_rows, -s.num_errors, s.group))[:most]
