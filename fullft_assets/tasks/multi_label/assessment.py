"""The evaluation of classifiers that give a row several labels: thresholds and weak labels beside the
metrics.

Labels and decisions are bool [n, k] in the label order, probabilities floats [n, k], each label's own. A
label is given where its probability reaches the label's threshold; thresholds are fixed on the validation
rows and saved with what they were fixed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import Comparison
from fullft_assets.evaluation.label_scores import LabelScore, label_scores, weakest_label
from fullft_assets.evaluation.metrics.base import Predictions, compute
from fullft_assets.evaluation.rows import GroupScore, SystemAgreement, agreement, weakest_groups
from fullft_assets.evaluation.titles import FINETUNED

METRICS = ("macro_f1", "micro_f1", "subset_accuracy")

#: Threshold of a label that no validation row has, or all have.
DEFAULT_THRESHOLD = 0.5


class ThresholdScore(LabelScore):
    """One row of the per-label table; `threshold` as it was fixed on the validation rows."""

    threshold: float
    num_predicted: int


class MultiLabelEvaluation(Evaluation):
    """Everything measured of a classifier with several labels a row.

    Attributes:
        labels_a_row: labels that a test row has on average.
        unmeasured: labels that no test row has.
        agreement: a row is right where all its labels are.
    """

    right: ClassVar[str] = "give exactly the labels"

    labels: list[str]
    labels_a_row: float
    per_label: list[ThresholdScore]
    unmeasured: list[str]
    weakest_groups: list[GroupScore]
    agreement: SystemAgreement

    @property
    def limits(self) -> list[str]:
        """The weakest label, labels without a test row, and what a label's absence means."""
        sentences = weakest_label(self.per_label, "test rows")
        return [
            *sentences,
            (
                "Its thresholds fit the shares of labels in the validation rows; where these change, they no"
                " longer do."
            ),
        ]


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return for each label the threshold with the highest F1 on validation rows: float [k].

    A threshold is midway between two probabilities that occur; of equally good ones it is the nearest to 0.5.
    A label that none of the rows has, or all have, keeps 0.5: no cut is better than another.

    Args:
        labels: bool [n, k].
        probabilities: float [n, k].
    """
    labels, probabilities = require_aligned(labels, probabilities)
    return np.array([_threshold(labels[:, i], probabilities[:, i]) for i in range(labels.shape[1])])


def _threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    num_true = int(labels.sum())
    if num_true in (0, len(labels)):
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked, num_right = probabilities[order], np.cumsum(labels[order])
    # Rows with one probability are all given the label, or none is.
    is_last = np.append(ranked[1:] < ranked[:-1], True)
    num_given = np.flatnonzero(is_last) + 1
    f1 = 2 * num_right[num_given - 1] / (num_true + num_given)
    below = np.append(ranked, 0.0)[num_given]
    cuts = (ranked[num_given - 1] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - DEFAULT_THRESHOLD))]])


def scores(labels: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """Return macro-F1, micro-F1 and subset accuracy of decisions bool [n, k]."""
    labels, decided = require_aligned(labels, decided)
    return compute(METRICS, predictions_of(labels, decided))


def require_aligned(
    labels: np.ndarray, answers: np.ndarray, name: str = "predictions"
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays [n, k].

    Raises:
        ValueError: the labels are no table of truth values, something is empty or not finite, or the shapes
            differ.
    """
    labels, answers = np.asarray(labels), np.asarray(answers)
    if labels.ndim != 2 or not labels.size or labels.dtype != bool:
        raise ValueError(f"labels: expected truth values [rows, labels], got {labels.dtype} {labels.shape}")
    if answers.shape != labels.shape:
        raise ValueError(
            f"{name}: shape {answers.shape}, the labels have {labels.shape}: as many rows, and an answer for"
            " each label"
        )
    if not np.isfinite(answers).all():
        raise ValueError(f"{name}: row {int((~np.isfinite(answers)).any(axis=1).argmax())} is not finite")
    return labels, answers


def assess(
    labels: np.ndarray,
    decisions: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    thresholds: np.ndarray,
    comparison: Comparison,
) -> MultiLabelEvaluation:
    """Measure everything of an evaluation.

    Args:
        labels: true labels, bool [n, k].
        decisions: labels given, bool [n, k], by `finetuned`, each baseline and, if there is one, `champion`.
        groups: the group of each row [n].
        thresholds: of the fine-tuned model [k].

    Raises:
        ValueError: input is empty, misaligned or not finite; the message names what.
    """
    if np.asarray(labels).shape[1:] != (len(label_names),) or len(thresholds) != len(label_names):
        raise ValueError(
            f"labels: {len(label_names)} names and {len(thresholds)} thresholds for shape {np.shape(labels)}"
        )
    checked = {
        name: require_aligned(labels, decided, name)[1].astype(bool) for name, decided in decisions.items()
    }
    predictions = {name: predictions_of(labels, decided, label_names) for name, decided in checked.items()}
    shared = comparison.run(predictions, groups, len(labels))
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


def _threshold_scores(
    labels: np.ndarray, tuned: np.ndarray, names: Sequence[str], thresholds: np.ndarray
) -> list[ThresholdScore]:
    num_predicted = tuned.sum(0)
    scores = label_scores((tuned & labels).sum(0), labels.sum(0), num_predicted, names)
    return [
        ThresholdScore(
            **score.model_dump(), threshold=float(thresholds[i]), num_predicted=int(num_predicted[i])
        )
        for i, score in enumerate(scores)
    ]


def predictions_of(labels: np.ndarray, decided: np.ndarray, label_names: Sequence[str] = ()) -> Predictions:
    """Return what metrics take of labels given, bool [n, k], to rows with true labels, bool [n, k]."""
    is_right = (labels == decided).all(axis=1)
    return Predictions(
        label_names, labels, decided, found=labels & decided, true=labels, given=decided, is_right=is_right
    )
