"""Metrics of labels (of a row's label or labels, or of exact spans), and of their probabilities.

There is one macro-F1: the mean over the labels that occur in the truth. A label that does not occur cannot be
measured, so its absence is no success; what was predicted of it counts against micro-F1, and against the
recall of the rows' own labels. A label that occurs and is never predicted has an F1 of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric, ratio

_LABELLED = ("classification", "multi_label", "token_classification")
#: True positives, support and predicted counts.
_COUNTS = ("found", "true", "given")
#: A probability of 0 counts as this one, as in scikit-learn: one row must not make the mean infinite.
_SMALLEST = float(np.finfo(np.float64).eps)


class _MeanF1(SummedMetric):
    tasks = _LABELLED
    summed = _COUNTS

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        tables = super().count(predictions)
        return (
            tables
            if predictions.measurable is None
            else tuple(table[:, predictions.measurable] for table in tables)
        )

    def count_all_labels(self, predictions: Predictions) -> tuple[np.ndarray, ...] | None:
        return None if predictions.measurable is None else super().count(predictions)


class MacroF1(_MeanF1):
    """Unweighted mean of the F1 of each measurable label that occurs in the truth."""

    name, title = "macro_f1", "macro-F1"

    def score(self, *sums: np.ndarray) -> np.ndarray:
        right, true, predicted = sums
        return ratio(_f1(right, true, predicted).sum(axis=1), (true > 0).sum(axis=1))


class WeightedF1(_MeanF1):
    """Mean of the F1 of each measurable label, weighted by how often it occurs in the truth."""

    name, title = "weighted_f1", "weighted F1"

    def score(self, *sums: np.ndarray) -> np.ndarray:
        right, true, predicted = sums
        return ratio((_f1(right, true, predicted) * true).sum(axis=1), true.sum(axis=1))


class MicroF1(SummedMetric):
    """F1 of all labels' counts together."""

    name = "micro_f1"
    title = "micro-F1"
    tasks = ("multi_label", "token_classification")
    summed = _COUNTS

    def mass(self, predictions: Predictions) -> np.ndarray:
        assert predictions.true is not None, "only what has counts is measured"
        return predictions.true.sum(1)

    def score(self, *sums: np.ndarray) -> np.ndarray:
        right, true, predicted = sums
        return ratio(2 * right.sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1))


class LabelF1(SummedMetric):
    """F1 of one label over all rows, the score of the slice of a label. It is not registered, because each
    label has its own.
    """

    name = "label_f1"
    title = "F1"
    tasks = _LABELLED
    summed = _COUNTS

    def __init__(self, label: int):
        self.label = label

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        return tuple(table[:, self.label] for table in super().count(predictions))

    def mass(self, predictions: Predictions) -> np.ndarray:
        assert predictions.true is not None, "only what has labels is measured"
        return np.asarray(predictions.true, np.float64)[:, self.label]

    def score(self, *sums: np.ndarray) -> np.ndarray:
        right, true, predicted = sums
        return ratio(2 * right, true + predicted)


class Accuracy(SummedMetric):
    """Share of rows whose prediction is right."""

    name = "accuracy"
    title = "accuracy"
    tasks = ("classification",)
    summed = ("is_right",)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        (is_right,) = super().count(predictions)
        return is_right, np.ones(len(is_right))


class SubsetAccuracy(Accuracy):
    """Share of rows with exactly their labels."""

    name = "subset_accuracy"
    title = "subset accuracy"
    tasks = ("multi_label",)


class MatthewsCorrelation(SummedMetric):
    """Correlation of true and predicted label, 0 at chance; 0 as well where all rows have, or are given, one
    label.

    Of several labels: Gorodkin 2004, Comparing two K-category assignments by a K-category correlation
    coefficient.
    """

    name = "matthews_corrcoef"
    title = "Matthews correlation"
    tasks = ("classification",)
    bounds = (-1.0, 1.0)
    summed = _COUNTS

    def score(self, *sums: np.ndarray) -> np.ndarray:
        right, true, predicted = sums
        rows = true.sum(1)
        covariance = right.sum(1) * rows - (true * predicted).sum(1)
        spread = (rows**2 - (true**2).sum(1)) * (rows**2 - (predicted**2).sum(1))
        return np.divide(covariance, np.sqrt(spread), out=np.zeros(len(rows)), where=spread > 0)


MACRO_F1 = MacroF1()
WEIGHTED_F1 = WeightedF1()
MICRO_F1 = MicroF1()
MATTHEWS_CORRCOEF = MatthewsCorrelation()
ACCURACY, SUBSET_ACCURACY = Accuracy(), SubsetAccuracy()


class Auroc(Metric):
    """Mean over the measurable labels of the area under the ROC curve of each label against the others; a tie
    counts half.

    A label that all rows have, or none, has no curve and is excluded; 0.5 where no label has one.
    """

    name = "auroc"
    title = "AUROC"
    tasks = ("classification",)

    def measures(self, predictions: Predictions) -> bool:
        return _has_probabilities(predictions)

    def compute(self, predictions: Predictions) -> float:
        probabilities, weights = np.asarray(predictions.predicted), predictions.row_weights
        labels = (
            range(probabilities.shape[1])
            if predictions.measurable is None
            else np.flatnonzero(predictions.measurable)
        )
        areas = [_area(predictions.truth == label, probabilities[:, label], weights) for label in labels]
        known = [area for area in areas if area is not None]
        return float(np.mean(known)) if known else 0.5


class _ProbabilityMean(SummedMetric):
    tasks = ("classification",)
    higher_is_better = False

    def measures(self, predictions: Predictions) -> bool:
        return _has_probabilities(predictions)


class Brier(_ProbabilityMean):
    """Mean squared distance of the probabilities from 1 for the true label and 0 for the others, 0 to 2
    (Brier 1950).
    """

    name, title = "brier", "Brier score"
    bounds = (0.0, 2.0)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        probabilities = _shares(predictions)
        truth = np.eye(probabilities.shape[1])[predictions.truth]
        return ((probabilities - truth) ** 2).sum(1), np.ones(len(truth))


class LogLoss(_ProbabilityMean):
    """Mean negative logarithm of the probability that the true label was given, in nats."""

    name, title = "log_loss", "log loss"
    bounds = (0.0, None)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        of_true_label = _shares(predictions)[np.arange(len(predictions.truth)), predictions.truth]
        return -np.log(np.maximum(of_true_label, _SMALLEST)), np.ones(len(of_true_label))


def _f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.divide(2 * right, true + predicted, out=np.zeros_like(true, dtype=np.float64), where=true > 0)


def _has_probabilities(predictions: Predictions) -> bool:
    predicted: Any = predictions.predicted
    return (
        predictions.truth is not None
        and isinstance(predicted, np.ndarray)
        and predicted.ndim == 2
        and predicted.dtype != bool
    )


def _shares(predictions: Predictions) -> np.ndarray:
    probabilities = np.asarray(predictions.predicted, np.float64)
    return probabilities / probabilities.sum(1, keepdims=True)


def _area(is_true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the weighted share of the pairs of a true row and another [n] that the scores order rightly;
    None without a pair.
    """
    order = np.argsort(scores)
    mass, ranked = weights[order], scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    true, other = (np.add.reduceat(mass * chosen[order], starts) for chosen in (is_true, ~is_true))
    pairs = true.sum() * other.sum()
    below = other.cumsum() - other
    return float((true * (below + other / 2)).sum() / pairs) if pairs > 0 else None


AUROC = Auroc()
BRIER = Brier()
LOG_LOSS = LogLoss()
