"""The evaluation of classifiers: macro-F1, accuracy, calibration, weak labels and groups.

Labels and predictions are integer positions [n] in the label order, probabilities are floats [n, k].
Macro-F1 averages over the labels that occur in the test labels: a label that the test set lacks cannot
be measured. A label that occurs but is never predicted has precision, and so F1, of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.counts import LabelScore
from fullft_assets.evaluation.figures import FINETUNED, Evaluation, Figures, Interval, Terms, number_groups
from fullft_assets.evaluation.rows import Agreement, GroupScore, agreement, weakest_groups
from fullft_assets.settings import METRICS as METRICS_OF_TASKS

METRICS = METRICS_OF_TASKS["classification"]


class ReliabilityBin(Figures):
    """The rows whose highest probability lies in (low, high]."""

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class ClassificationEvaluation(Evaluation):
    """Every figure of a classifier's evaluation."""

    kind: ClassVar[str] = "classification"

    labels: list[str]
    calibration_error: float
    reliability: list[ReliabilityBin]
    per_label: list[LabelScore]
    #: Rows: true label, columns: predicted label.
    confusion: list[list[int]]
    weakest_groups: list[GroupScore]
    agreement: Agreement

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """Macro-F1 and accuracy."""
        return {metric: self.scores[metric] for metric in METRICS}

    @property
    def limits(self) -> list[str]:
        """The weakest label, labels without a test row, and how far off the probabilities are."""
        weakest = min((s for s in self.per_label if s.support), key=lambda s: s.f1)
        found = [f"It is weakest on `{weakest.label}` (F1 {weakest.f1:.3f} on {weakest.support:,} test rows)."]
        unmeasured = [s.label for s in self.per_label if not s.support]
        if unmeasured:
            found.append(f"The test set has no row of {', '.join(f'`{label}`' for label in unmeasured)}: quality there is unknown.")
        found.append(f"Its probabilities are off by {self.calibration_error:.3f} on average (expected calibration error).")
        return found


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of rows [n] whose prediction is the label."""
    labels, predicted = require_labels(labels, predicted)
    return float((labels == predicted).mean())


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the labels that occur in `labels` [n]."""
    labels, predicted = require_labels(labels, predicted)
    num_labels = int(max(labels.max(), predicted.max())) + 1
    tables = _count(labels, predicted, np.zeros(len(labels), np.int64), 1, num_labels)
    return float(counts.macro_f1(*tables)[0])


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts [k, k]: rows are true labels, columns predicted ones."""
    labels, predicted = require_labels(labels, predicted, num_labels)
    return np.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def label_scores(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[LabelScore]:
    """The per-class table, in label order; a ratio without a denominator is 0."""
    matrix = confusion_matrix(labels, predicted, len(names))
    return counts.label_scores(np.diag(matrix), matrix.sum(1), matrix.sum(0), names)


def reliability(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> list[ReliabilityBin]:
    """Confidence against accuracy in equal-width bins of the highest probability; empty bins are left out."""
    probabilities = require_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            low=b / num_bins,
            high=(b + 1) / num_bins,
            num_rows=int((bins == b).sum()),
            confidence=float(confidence[bins == b].mean()),
            accuracy=float(right[bins == b].mean()),
        )
        for b in np.unique(bins)
    ]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al. 2017, eq. 3)."""
    bins = reliability(labels, probabilities, num_bins)
    return sum(b.num_rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.num_rows for b in bins)


def count_by_group(
    labels: np.ndarray, predictions: Mapping[str, np.ndarray], groups: Sequence[str]
) -> tuple[dict[str, tuple[np.ndarray, ...]], int]:
    """Return each system's true positives, support and predicted counts, [groups, labels] each, and the number of groups.

    Args:
        labels: true labels [n].
        predictions: predicted labels [n] of each system.
        groups: the group of each row [n].

    Raises:
        ValueError: input is empty, misaligned or out of range, or there are fewer than two groups.
    """
    checked = {name: require_labels(labels, predicted, name=name)[1] for name, predicted in predictions.items()}
    labels = np.asarray(labels)
    index, num_groups = number_groups(groups, len(labels))
    num_labels = 1 + max(int(labels.max()), *(int(p.max()) for p in checked.values()))
    return {name: _count(labels, predicted, index, num_groups, num_labels) for name, predicted in checked.items()}, num_groups


def assess(
    labels: np.ndarray, probabilities: Mapping[str, np.ndarray], groups: Sequence[str], label_names: Sequence[str], terms: Terms
) -> ClassificationEvaluation:
    """Compute every figure of an evaluation.

    Args:
        labels: true labels [n].
        probabilities: label probabilities [n, k] of `finetuned`, of each baseline and, if there is one, of `champion`.
        groups: the group of each row [n].
        label_names: the k names in label order.
        terms: of the comparison.

    Raises:
        ValueError: input is empty, misaligned, not finite or out of range; the message names what.
    """
    predictions = {name: require_probabilities(p, labels, len(label_names), name).argmax(axis=1) for name, p in probabilities.items()}
    tables, num_groups = count_by_group(labels, predictions, groups)
    shared = terms.shared({metric: terms.resample(tables, SCORES[metric]) for metric in METRICS}, len(labels), num_groups)
    tuned, bins = predictions[FINETUNED], terms.settings.calibration_bins
    return ClassificationEvaluation(
        **shared,
        labels=list(label_names),
        calibration_error=expected_calibration_error(labels, probabilities[FINETUNED], bins),
        reliability=reliability(labels, probabilities[FINETUNED], bins),
        per_label=label_scores(labels, tuned, label_names),
        confusion=confusion_matrix(labels, tuned, len(label_names)).tolist(),
        weakest_groups=weakest_groups(tuned == labels, groups),
        agreement=agreement(tuned == labels, predictions[shared["justification"].best_baseline] == labels),
    )


def require_labels(
    labels: np.ndarray, predicted: np.ndarray, num_labels: int | None = None, name: str = "predictions"
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as integer arrays [n].

    Raises:
        ValueError: one is empty, not integer or out of range, or their lengths differ.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    for what, values in (("labels", labels), (name, predicted)):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{what}: expected a non-empty list of labels, got shape {values.shape}")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{what}: labels are whole numbers, got {values.dtype}")
        wrong = (values < 0) | (values >= num_labels if num_labels is not None else False)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{what}: row {row} has label {values[row]}, allowed are 0 to {num_labels - 1 if num_labels else 'k - 1'}")
    if len(labels) != len(predicted):
        raise ValueError(f"{name}: {len(predicted)} for {len(labels)} labels")
    return labels, predicted


def require_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, num_labels: int | None = None, name: str = "probabilities"
) -> np.ndarray:
    """Return them as floats [n, k] that fit the labels [n].

    Raises:
        ValueError: wrong shape, not finite, outside [0, 1], rows that do not add up to 1, or a label out of range.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"{name}: expected rows of label probabilities, got shape {probabilities.shape}")
    if num_labels is not None and probabilities.shape[1] != num_labels:
        raise ValueError(f"{name}: {probabilities.shape[1]} columns for {num_labels} labels")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {int(finite.argmin())} of {len(finite)} is not finite ({int((~finite).sum())} such rows)")
    wrong = (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: row {int(wrong.argmax())} is not a distribution over the labels")
    require_labels(labels, probabilities.argmax(axis=1), probabilities.shape[1], name)
    return probabilities


def _count(labels: np.ndarray, predicted: np.ndarray, index: np.ndarray, num_groups: int, num_labels: int) -> tuple[np.ndarray, ...]:
    """True positives, support and predicted counts [groups, k], as floats for the product with weights."""

    def table(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        flat = np.bincount(rows * num_labels + values, minlength=num_groups * num_labels)
        return flat.reshape(num_groups, num_labels).astype(np.float64)

    right = labels == predicted
    return table(labels[right], index[right]), table(labels, index), table(predicted, index)


#: Metric -> what makes it of counts that are summed over the drawn groups.
SCORES = {
    "macro_f1": counts.macro_f1,
    "accuracy": lambda found, true, predicted: counts.ratio(found.sum(axis=1), true.sum(axis=1)),
}
