"""Metrics of label probabilities: how well they rank the rows, and how well they match what happens."""

from __future__ import annotations

from typing import Any

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric

#: A probability of 0 counts as this one, as in scikit-learn: one row must not make the mean infinite.
_SMALLEST = float(np.finfo(np.float64).eps)


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
    """The weighted mean of a number of each row's probabilities."""

    tasks = ("classification",)
    higher_is_better = False

    def measures(self, predictions: Predictions) -> bool:
        return _has_probabilities(predictions)

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return counts.ratio(*sums)


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


def _has_probabilities(predictions: Predictions) -> bool:
    predicted: Any = predictions.predicted
    return (
        predictions.truth is not None
        and isinstance(predicted, np.ndarray)
        and predicted.ndim == 2
        and predicted.dtype != bool
    )


def _shares(predictions: Predictions) -> np.ndarray:
    """Return the probabilities [n, k] divided by their sum, which in single precision is not exactly 1."""
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
