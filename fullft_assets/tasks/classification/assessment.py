"""The evaluation of classifiers: calibration or thresholds, weak labels and groups beside the metrics, and
rows whose label is probably wrong.

Of a row with one label, labels and predictions are integer positions [n] in the label order, probabilities
are floats [n, k]. Of a row with several, labels and decisions are bool [n, k], and probabilities are each
label's own: a label is given where its probability reaches the label's threshold. Thresholds are chosen on
the validation rows and saved with what they were chosen for.
"""

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fullft_assets.evaluation.base import LabelEvaluation, label_fields, weakest_label
from fullft_assets.evaluation.comparison import Comparison
from fullft_assets.evaluation.intervals import Record
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.report import DoubtfulRow

#: Bins of the reliability diagram.
_NUM_BINS = 10
#: Errors that the report names.
MOST_SHOWN = 20
#: Threshold of a label that no validation row has, or all have.
DEFAULT_THRESHOLD = 0.5


class ReliabilityBin(Record):
    """The rows whose highest probability is in (low, high]."""

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class ClassificationEvaluation(LabelEvaluation):
    """Everything measured of a classifier with one label a row."""

    reliability: list[ReliabilityBin]
    #: Rows: true label, columns: predicted label.
    confusion: list[list[int]]

    @property
    def limits(self) -> list[str]:
        off = (
            f"Its probabilities are off by {self.calibration_error:.3f} on average (expected calibration"
            " error)."
        )
        return [*weakest_label(self.per_label, "test rows"), off]


class MultiLabelEvaluation(LabelEvaluation):
    """Everything measured of a classifier with several labels a row; a row is right where all its labels are.

    Attributes:
        labels_a_row: labels that a test row has on average.
    """

    labels_a_row: float

    @property
    def limits(self) -> list[str]:
        return [
            *weakest_label(self.per_label, "test rows"),
            "Its thresholds fit the shares of labels in the validation rows; where these change, they no"
            " longer do.",
        ]


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[ReliabilityBin]:
    """Confidence against accuracy in equal-width bins of the highest probability; empty bins are excluded."""
    probabilities = require_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * _NUM_BINS).astype(int) - 1, 0, _NUM_BINS - 1)
    return [
        ReliabilityBin(
            low=b / _NUM_BINS,
            high=(b + 1) / _NUM_BINS,
            num_rows=int((bins == b).sum()),
            confidence=float(confidence[bins == b].mean()),
            accuracy=float(right[bins == b].mean()),
        )
        for b in np.unique(bins)
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al.
    2017, eq. 3).
    """
    return sum(b.num_rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.num_rows for b in bins)


def predictions_of(
    labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str], name: str = "probabilities"
) -> Predictions:
    """Return the input of metrics: a system's label probabilities [n, k] for rows with true labels [n].

    Raises:
        ValueError: shapes differ, or a row is no distribution over the labels; the message names what.
    """
    probabilities = require_probabilities(probabilities, labels, name)
    if probabilities.shape[1] != len(label_names):
        raise ValueError(f"{name}: {probabilities.shape[1]} columns for {len(label_names)} labels")
    answer = probabilities.argmax(axis=1)
    true = np.eye(len(label_names), dtype=bool)[labels]
    is_predicted = np.eye(len(label_names), dtype=bool)[answer]
    return Predictions(
        label_names,
        labels,
        probabilities,
        true_positives=true & is_predicted,
        true=true,
        num_predicted=is_predicted,
        is_right=labels == answer,
    )


def assess(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    comparison: Comparison,
    *,
    labels_alone: Collection[str] = (),
) -> ClassificationEvaluation:
    """Measure everything of an evaluation with one label a row.

    Args:
        labels: true labels [n].
        probabilities: label probabilities [n, k] of `finetuned`, of each baseline and, if there is one, of
            `champion`.
        groups: the group of each row [n].
        labels_alone: systems that gave labels without probabilities; metrics of probabilities do not measure
            them.

    Raises:
        ValueError: input is empty, misaligned, not finite or out of range; the message names what.
    """
    from sklearn.metrics import confusion_matrix

    predictions = {
        name: predictions_of(labels, system_probabilities, label_names, name)
        for name, system_probabilities in probabilities.items()
    }
    predictions |= {name: replace(predictions[name], predicted=None) for name in labels_alone}
    candidate_probabilities = np.asarray(probabilities[comparison.candidate])
    bins = reliability(labels, candidate_probabilities)
    return ClassificationEvaluation(
        **label_fields(predictions, groups, label_names, comparison),
        calibration_error=expected_calibration_error(bins),
        reliability=bins,
        confusion=confusion_matrix(
            labels, candidate_probabilities.argmax(axis=1), labels=range(len(label_names))
        ).tolist(),
    )


def require_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, name: str = "probabilities"
) -> np.ndarray:
    """Return them as floats [n, k] that fit the labels [n].

    Raises:
        ValueError: wrong shape, not finite, outside [0, 1], or rows that do not add up to 1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or not probabilities.size or len(probabilities) != len(labels):
        raise ValueError(f"{name}: shape {probabilities.shape} for {len(labels)} labels")
    # What is not finite adds up to no number.
    wrong = (probabilities < 0).any(axis=1) | ~(np.abs(probabilities.sum(axis=1) - 1) <= 1e-3)
    if wrong.any():
        raise ValueError(f"{name}: row {int(wrong.argmax())} is not a distribution over the labels")
    return probabilities


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return for each label the threshold with the highest F1 on validation rows: float [k].

    A threshold is midway between two probabilities that occur; of equally good ones it is the nearest to 0.5.
    A label that none of the rows has, or all have, keeps 0.5: no cut is better than another.

    Args:
        labels: bool [n, k].
        probabilities: float [n, k].
    """
    probabilities = require_aligned(labels, probabilities)
    return np.array([_threshold(labels[:, i], probabilities[:, i]) for i in range(labels.shape[1])])


def _threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    num_true = int(labels.sum())
    if num_true in (0, len(labels)):
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    num_right = np.cumsum(labels[order])
    # Rows with one probability are all given the label, or none is.
    num_given = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)) + 1
    f1 = 2 * num_right[num_given - 1] / (num_true + num_given)
    cuts = (ranked[num_given - 1] + np.append(ranked, 0.0)[num_given]) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - DEFAULT_THRESHOLD))]])


def require_aligned(labels: np.ndarray, answers: np.ndarray, name: str = "predictions") -> np.ndarray:
    """Return the answers as an array [n, k] that fits the labels [n, k].

    Raises:
        ValueError: the labels are no table of truth values, something is empty or not finite, or the shapes
            differ.
    """
    answers = np.asarray(answers)
    if labels.ndim != 2 or not labels.size or labels.dtype != bool:
        raise ValueError(f"labels: expected truth values [rows, labels], got {labels.dtype} {labels.shape}")
    if answers.shape != labels.shape:
        raise ValueError(
            f"{name}: shape {answers.shape}, the labels have {labels.shape}: as many rows, and an answer for"
            " each label"
        )
    if not np.isfinite(answers).all():
        raise ValueError(f"{name}: row {int((~np.isfinite(answers)).any(axis=1).argmax())} is not finite")
    return answers


def decisions_of(
    labels: np.ndarray, decisions: np.ndarray, label_names: Sequence[str] = (), name: str = "predictions"
) -> Predictions:
    """Return the input of metrics: the labels bool [n, k] that a system gave to rows with true labels, bool
    [n, k].
    """
    decisions = require_aligned(labels, decisions, name)
    return Predictions(
        label_names,
        labels,
        decisions,
        true_positives=labels & decisions,
        true=labels,
        num_predicted=decisions,
        is_right=(labels == decisions).all(axis=1),
    )


def assess_decisions(
    labels: np.ndarray,
    decisions: Mapping[str, np.ndarray],
    groups: Sequence[str],
    label_names: Sequence[str],
    thresholds: np.ndarray,
    comparison: Comparison,
) -> MultiLabelEvaluation:
    """Measure everything of an evaluation with several labels a row.

    Args:
        labels: true labels, bool [n, k].
        decisions: labels given, bool [n, k], by `finetuned`, each baseline and, if there is one, `champion`.
        groups: the group of each row [n].
        thresholds: of the fine-tuned model [k].

    Raises:
        ValueError: input is empty, misaligned or not finite; the message names what.
    """
    predictions = {
        name: decisions_of(labels, system_decisions, label_names, name)
        for name, system_decisions in decisions.items()
    }
    return MultiLabelEvaluation(
        **label_fields(predictions, groups, label_names, comparison, thresholds),
        labels_a_row=float(labels.sum(1).mean()),
    )


def likely_label_errors(
    ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[DoubtfulRow] | None:
    """Return the rows whose labels are probably wrong, the surest first; None where cleanlab is not
    installed.

    By confident learning (Northcutt et al. 2021, arXiv:1911.00068): a row counts where the model is surer of
    another label than it usually is of that one. The model must not have learned from these rows.

    Args:
        labels: positions in the label order [n].
        probabilities: of each label [n, k].
    """
    if importlib.util.find_spec("cleanlab") is None:
        return None
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]  # an extra

    shares = np.asarray(probabilities, np.float64)
    shares = shares / shares.sum(1, keepdims=True)
    rows = find_label_issues(labels, shares, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [_doubtful(row, ids, labels, shares, names) for row in np.asarray(rows, np.int64).tolist()]


def worst_errors(
    ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[DoubtfulRow]:
    """Return the wrong rows with the highest loss: the model gave their own label the lowest probability."""
    of_label = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    order = wrong[np.argsort(of_label[wrong], kind="stable")][:MOST_SHOWN]
    return [_doubtful(row, ids, labels, probabilities, names) for row in order.tolist()]


def _doubtful(
    row: int, ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> DoubtfulRow:
    label = int(labels[row])
    best = int(probabilities[row].argmax())
    return DoubtfulRow(
        ids[row], names[label], names[best], float(probabilities[row, best]), float(probabilities[row, label])
    )
