"""The evaluation of classifiers that give a row several labels: thresholds, macro-F1, micro-F1, subset accuracy, weak labels.

Labels and decisions are bool [n, k] in the label order, probabilities floats [n, k], each label's own. A label is given where its
probability reaches the label's threshold; thresholds are fixed on the validation rows and saved with what they were fixed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.counts import LabelScore
from fullft_assets.evaluation.figures import FINETUNED, Evaluation, Interval, Terms, number_groups
from fullft_assets.evaluation.rows import Agreement, GroupScore, agreement, weakest_groups
from fullft_assets.settings import MULTI_LABEL_METRICS as METRICS

#: Of a label without a validation row that could say more.
DEFAULT_THRESHOLD = 0.5


class ThresholdScore(LabelScore):
    """One row of the per-label table; `threshold` as it was fixed on the validation rows."""

    threshold: float
    num_predicted: int


class MultiLabelEvaluation(Evaluation):
    """Every figure of a multi-label classifier's evaluation.

    Attributes:
        labels_a_row: labels that a test row has on average.
        unmeasured: labels that no test row has.
        agreement: a row is right where all its labels are.
    """

    kind: ClassVar[str] = "multi_label"

    labels: list[str]
    labels_a_row: float
    per_label: list[ThresholdScore]
    unmeasured: list[str]
    weakest_groups: list[GroupScore]
    agreement: Agreement

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """Macro-F1, micro-F1 and subset accuracy."""
        return {metric: self.scores[metric] for metric in METRICS}

    @property
    def limits(self) -> list[str]:
        """The weakest label, labels without a test row, and what a label's absence means."""
        found = counts.weakest_label(self.per_label, "test rows")
        return [*found, "Its thresholds fit the shares of labels in the validation rows; where these change, they no longer do."]


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return for each label the threshold with the highest F1 on validation rows: float [k].

    A threshold lies midway between two probabilities that occur; of equally good ones it is the nearest to 0.5. A label that none
    of the rows has, or all have, keeps 0.5: they tell nothing of where to cut.

    Args:
        labels: bool [n, k].
        probabilities: float [n, k].

    Raises:
        ValueError: they are empty, not aligned or not finite.
    """
    labels, probabilities = require_aligned(labels, probabilities)
    return np.array([_threshold(labels[:, i], probabilities[:, i]) for i in range(labels.shape[1])])


def _threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    num_true = int(labels.sum())
    if num_true in (0, len(labels)):
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked, found = probabilities[order], np.cumsum(labels[order])
    # Rows with one probability are all given the label, or none is.
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    given = np.flatnonzero(is_last) + 1
    f1 = 2 * found[given - 1] / (num_true + given)
    below = np.append(ranked, 0.0)[given]
    cuts = (ranked[given - 1] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - DEFAULT_THRESHOLD))]])


def scores(labels: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """Return macro-F1, micro-F1 and subset accuracy of decisions bool [n, k]."""
    labels, decided = require_aligned(labels, decided)
    tables = _tables(labels, decided, np.zeros(len(labels), np.int64), 1)
    return {metric: float(score(*tables)[0]) for metric, score in _SCORES.items()}


def require_aligned(labels: np.ndarray, answers: np.ndarray, name: str = "predictions") -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays [n, k].

    Raises:
        ValueError: the labels are no table of truth values, something is empty or not finite, or the shapes differ.
    """
    labels, answers = np.asarray(labels), np.asarray(answers)
    if labels.ndim != 2 or not labels.size or labels.dtype != bool:
        raise ValueError(f"labels: expected truth values [rows, labels], got {labels.dtype} {labels.shape}")
    if answers.shape != labels.shape:
        raise ValueError(f"{name}: shape {answers.shape}, the labels have {labels.shape}: as many rows, and an answer for each label")
    if not np.isfinite(answers).all():
        raise ValueError(f"{name}: row {int((~np.isfinite(answers)).any(axis=1).argmax())} is not finite")
    return labels, answers


def assess(
    labels: np.ndarray,
    decisions: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    thresholds: np.ndarray,
    terms: Terms,
) -> MultiLabelEvaluation:
    """Compute every figure of an evaluation.

    Args:
        labels: true labels, bool [n, k].
        decisions: labels given, bool [n, k], by `finetuned`, each baseline and, if there is one, `champion`.
        groups: the group of each row [n].
        label_names: the k names in label order.
        thresholds: of the fine-tuned model [k].
        terms: of the comparison.

    Raises:
        ValueError: input is empty, misaligned or not finite; the message names what.
    """
    if np.asarray(labels).shape[1:] != (len(label_names),) or len(thresholds) != len(label_names):
        raise ValueError(f"labels: {len(label_names)} names and {len(thresholds)} thresholds for shape {np.shape(labels)}")
    checked = {name: require_aligned(labels, decided, name)[1].astype(bool) for name, decided in decisions.items()}
    index, num_groups = number_groups(groups, len(labels))
    tables = {name: _tables(labels, decided, index, num_groups) for name, decided in checked.items()}
    shared = terms.shared({metric: terms.resample(tables, score) for metric, score in _SCORES.items()}, len(labels), num_groups)
    right = {name: (decided == labels).all(axis=1) for name, decided in checked.items()}
    per_label = _threshold_scores(labels, checked[FINETUNED], label_names, thresholds)
    return MultiLabelEvaluation(
        **shared,
        labels=list(label_names),
        labels_a_row=float(labels.sum(1).mean()),
        per_label=per_label,
        unmeasured=[score.label for score in per_label if not score.support],
        weakest_groups=weakest_groups(right[FINETUNED], groups),
        agreement=agreement(right[FINETUNED], right[shared["justification"].best_baseline]),
    )


def _threshold_scores(labels: np.ndarray, tuned: np.ndarray, names: Sequence[str], thresholds: np.ndarray) -> list[ThresholdScore]:
    num_predicted = tuned.sum(0)
    scores = counts.label_scores((tuned & labels).sum(0), labels.sum(0), num_predicted, names)
    return [
        ThresholdScore(**score.model_dump(), threshold=float(thresholds[i]), num_predicted=int(num_predicted[i]))
        for i, score in enumerate(scores)
    ]


def _tables(labels: np.ndarray, decided: np.ndarray, index: np.ndarray, num_groups: int) -> tuple[np.ndarray, ...]:
    """True positives, support and given labels [groups, k], rows that are all right and rows [groups]."""
    values = (labels & decided, labels, decided, (labels == decided).all(axis=1), np.ones(len(labels), bool))
    return tuple(counts.by_group(value, index, num_groups) for value in values)


_SCORES = {
    "macro_f1": lambda found, true, predicted, right, rows: counts.macro_f1(found, true, predicted),
    "micro_f1": lambda found, true, predicted, right, rows: counts.micro_f1(found, true, predicted),
    "subset_accuracy": lambda found, true, predicted, right, rows: right / rows,
}
