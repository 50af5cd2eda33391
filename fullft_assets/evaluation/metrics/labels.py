"""Metrics of labels: of a row's label or labels, or of exact spans.

There is one macro-F1: the mean over the labels that occur in the truth. A label that does not occur cannot be
measured, so its absence is no success; what was predicted of it counts against micro-F1, and against the
recall of the rows' own labels. A label that occurs and is never predicted has an F1 of 0.
"""

from __future__ import annotations

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric

_LABELLED = ("classification", "multi_label", "token_classification")
#: True positives, support and predicted counts.
_COUNTS = ("found", "true", "given")


class _MeanF1(SummedMetric):
    """A mean of the F1 of each label, of the measurable ones where predictions say which these are."""

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
        return counts.macro_f1(*sums)


class WeightedF1(_MeanF1):
    """Mean of the F1 of each measurable label, weighted by how often it occurs in the truth."""

    name, title = "weighted_f1", "weighted F1"

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return counts.weighted_f1(*sums)


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
        return counts.micro_f1(*sums)


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
        return counts.ratio(2 * right, true + predicted)


class Accuracy(SummedMetric):
    """Share of rows whose prediction is right."""

    name = "accuracy"
    title = "accuracy"
    tasks = ("classification",)
    summed = ("is_right",)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return whether each row is right, and 1 [n] each."""
        (is_right,) = super().count(predictions)
        return is_right, np.ones(len(is_right))

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return counts.ratio(*sums)


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
