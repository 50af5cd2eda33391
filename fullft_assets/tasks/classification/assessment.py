"""The evaluation of classifiers: calibration, weak labels and groups beside the metrics.

Labels and predictions are integer positions [n] in the label order, probabilities are floats [n, k].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import Comparison
from fullft_assets.evaluation.intervals import Record
from fullft_assets.evaluation.label_scores import LabelScore, label_scores, weakest_label
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.evaluation.metrics.labels import ACCURACY, MACRO_F1
from fullft_assets.evaluation.rows import GroupScore, SystemAgreement, agreement, weakest_groups
from fullft_assets.evaluation.titles import FINETUNED
from fullft_assets.tasks.classification.temperature import fit_temperature, with_temperature

#: Bins of the reliability diagram.
NUM_BINS = 10


class ReliabilityBin(Record):
    """The rows whose highest probability is in (low, high]."""

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class ClassificationEvaluation(Evaluation):
    """Everything measured of a classifier.

    Attributes:
        temperature: fitted on the validation rows; reported, and not applied. None: there were none that the
            model had not learned from.
        error_at_temperature: expected calibration error of the test rows with it.
    """

    #: What a row of `agreement` is, as a verb.
    right: ClassVar[str] = "are right"

    labels: list[str]
    reliability: list[ReliabilityBin]
    per_label: list[LabelScore]
    #: Rows: true label, columns: predicted label.
    confusion: list[list[int]]
    weakest_groups: list[GroupScore]
    agreement: SystemAgreement
    temperature: float | None = None
    error_at_temperature: float | None = None

    @property
    def confusions(self) -> list[tuple[str, str, int, float]]:
        """True label, predicted label, rows, and their share of the true label's rows; the most frequent
        first.
        """
        counts = np.array(self.confusion)
        wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
        order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)].tolist()
        pairs = [divmod(place, len(counts)) for place in order]
        return [
            (
                self.labels[true],
                self.labels[predicted],
                int(wrong[true, predicted]),
                float(wrong[true, predicted] / counts[true].sum()),
            )
            for true, predicted in pairs
        ]

    @property
    def limits(self) -> list[str]:
        """The weakest label, labels without a test row, and how far off the probabilities are."""
        off = (
            f"Its probabilities are off by {self.calibration_error:.3f} on average (expected calibration"
            " error)."
        )
        return [*weakest_label(self.per_label, "test rows"), off]


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of rows [n] whose prediction is the label."""
    return ACCURACY.compute(of_labels(labels, predicted))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the labels that occur in `labels` [n]."""
    return MACRO_F1.compute(of_labels(labels, predicted))


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Confidence against accuracy in equal-width bins of the highest probability; empty bins are excluded."""
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


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS
) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al. 2017,
    eq. 3).
    """
    bins = reliability(labels, probabilities, num_bins)
    return sum(b.num_rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.num_rows for b in bins)


def predictions_of(
    labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str], name: str = "probabilities"
) -> Predictions:
    """Return what metrics take of a system's label probabilities [n, k] for rows with true labels [n]."""
    probabilities = require_probabilities(probabilities, labels, len(label_names), name)
    predictions = of_labels(labels, probabilities.argmax(axis=1), len(label_names))
    return replace(predictions, labels=label_names, predicted=probabilities)


def of_labels(
    labels: np.ndarray, predicted: np.ndarray, num_labels: int | None = None, name: str = "predictions"
) -> Predictions:
    """Return what metrics of labels take of predicted labels [n]."""
    labels, predicted = require_labels(labels, predicted, num_labels, name)
    one_hot = np.eye(num_labels or 1 + max(int(labels.max()), int(predicted.max())), dtype=bool)
    true, given = one_hot[labels], one_hot[predicted]
    return Predictions(truth=labels, found=true & given, true=true, given=given, is_right=labels == predicted)


def assess(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    comparison: Comparison,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    labels_alone: Collection[str] = (),
) -> ClassificationEvaluation:
    """Measure everything of an evaluation.

    Args:
        labels: true labels [n].
        probabilities: label probabilities [n, k] of `finetuned`, of each baseline and, if there is one, of
            `champion`.
        groups: the group of each row [n].
        validation: labels and the fine-tuned model's probabilities of rows to fit a temperature on.
        labels_alone: systems that gave labels without probabilities; metrics of probabilities do not measure
            them.

    Raises:
        ValueError: input is empty, misaligned, not finite or out of range; the message names what.
    """
    from sklearn.metrics import confusion_matrix

    labels = np.asarray(labels)
    temperature = None if validation is None else fit_temperature(*validation)
    predictions = {
        name: predictions_of(labels, each, label_names, name) for name, each in probabilities.items()
    }
    predictions |= {name: replace(predictions[name], predicted=None) for name in labels_alone}
    shared = comparison.run(predictions, groups, len(labels))
    tuned = np.asarray(probabilities[FINETUNED]).argmax(axis=1)
    is_right = {name: np.asarray(each).argmax(axis=1) == labels for name, each in probabilities.items()}
    confusion = confusion_matrix(*require_labels(labels, tuned), labels=range(len(label_names)))
    return ClassificationEvaluation(
        **shared,
        labels=list(label_names),
        calibration_error=expected_calibration_error(labels, probabilities[FINETUNED]),
        reliability=reliability(labels, probabilities[FINETUNED]),
        temperature=temperature,
        error_at_temperature=(
            None
            if temperature is None
            else expected_calibration_error(labels, with_temperature(probabilities[FINETUNED], temperature))
        ),
        per_label=label_scores(np.diag(confusion), confusion.sum(1), confusion.sum(0), label_names),
        confusion=confusion.tolist(),
        weakest_groups=weakest_groups(is_right[FINETUNED], groups),
        agreement=agreement(is_right[FINETUNED], is_right[shared["justification"].best_baseline]),
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
            raise ValueError(
                f"{what}: row {row} has label {values[row]}, allowed are 0 to"
                f" {num_labels - 1 if num_labels else 'k - 1'}"
            )
    if len(labels) != len(predicted):
        raise ValueError(f"{name}: {len(predicted)} for {len(labels)} labels")
    return labels, predicted


def require_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, num_labels: int | None = None, name: str = "probabilities"
) -> np.ndarray:
    """Return them as floats [n, k] that fit the labels [n].

    Raises:
        ValueError: wrong shape, not finite, outside [0, 1], rows that do not add up to 1, or a label out of
            range.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"{name}: expected rows of label probabilities, got shape {probabilities.shape}")
    if num_labels is not None and probabilities.shape[1] != num_labels:
        raise ValueError(f"{name}: {probabilities.shape[1]} columns for {num_labels} labels")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name}: row {int(finite.argmin())} of {len(probabilities)} is not finite"
            f" ({int((~finite).sum())} such rows)"
        )
    wrong = (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: row {int(wrong.argmax())} is not a distribution over the labels")
    require_labels(labels, probabilities.argmax(axis=1), probabilities.shape[1], name)
    return probabilities
