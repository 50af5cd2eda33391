"""Metrics of labels (of a row's label or labels, or of exact spans), and of their probabilities.

There is one macro-F1: the mean over the labels that occur in the truth. A label that does not occur cannot be
measured, so its absence is no success; what was predicted of it counts against micro-F1, and against the
recall of the rows' own labels. A label that occurs and is never predicted has an F1 of 0.
"""

from typing import Any

import numpy as np

from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric, ratio

_LABELLED = ("classification", "multi_label", "token_classification")
#: True positives, support and predicted counts.
_COUNTS = ("true_positives", "true", "num_predicted")


def _f1(right: np.ndarray, true: np.ndarray, num_predicted: np.ndarray) -> np.ndarray:
    return ratio(2 * right, true + num_predicted)


class MacroF1(SummedMetric):
    """Unweighted mean of the F1 of each measurable label that occurs in the truth."""

    name = "macro_f1"
    title = "macro-F1"
    tasks = _LABELLED
    summed = _COUNTS

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        labels = slice(None) if predictions.measurable is None else predictions.measurable
        return tuple(table[:, labels] for table in super().count(predictions))

    def count_all_labels(self, predictions: Predictions) -> tuple[np.ndarray, ...] | None:
        return None if predictions.measurable is None else super().count(predictions)

    def score(self, *sums: np.ndarray) -> np.ndarray:
        occurs = sums[1] > 0
        return ratio((_f1(*sums) * occurs).sum(axis=1), occurs.sum(axis=1))


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
        return _f1(*(table.sum(axis=1) for table in sums))


class LabelF1(SummedMetric):
    """F1 of one label over all rows, the score of the slice of a label, or of several labels together. It is
    not registered, because each label has its own.
    """

    name = "label_f1"
    title = "F1"
    tasks = _LABELLED
    summed = _COUNTS

    def __init__(self, *labels: int):
        self.labels = list(labels)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        return tuple(table[:, self.labels].sum(axis=1) for table in super().count(predictions))

    def mass(self, predictions: Predictions) -> np.ndarray:
        assert predictions.true is not None, "only what has labels is measured"
        return np.asarray(predictions.true, np.float64)[:, self.labels].sum(axis=1)

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return _f1(*sums)


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


MACRO_F1 = MacroF1()
MICRO_F1 = MicroF1()
ACCURACY = Accuracy()
SUBSET_ACCURACY = SubsetAccuracy()


class Auroc(Metric):
    """Mean over the measurable labels of the area under the ROC curve of each label against the others; a tie
    counts half.

    A label that all rows have, or none, has no curve and is excluded; 0.5 where no label has one.
    """

    name = "auroc"
    title = "AUROC"
    tasks = ("classification",)

    def measures(self, predictions: Predictions) -> bool:
        predicted: Any = predictions.predicted
        return isinstance(predicted, np.ndarray) and predicted.ndim == 2 and predicted.dtype != bool

    def compute(self, predictions: Predictions) -> float:
        probabilities = np.asarray(predictions.predicted)
        measurable = predictions.measurable
        labels = range(probabilities.shape[1]) if measurable is None else np.flatnonzero(measurable)
        areas = (
            _area(predictions.truth == label, probabilities[:, label], predictions.row_weights)
            for label in labels
        )
        curves = [area for area in areas if area is not None]
        return float(np.mean(curves)) if curves else 0.5


def _area(is_true: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the weighted share of the pairs of a true row and another row [n] that the scores order
    rightly, or None if there is no such pair.
    """
    order = np.argsort(scores)
    ranked_scores = scores[order]
    starts = np.flatnonzero(np.append(True, ranked_scores[1:] != ranked_scores[:-1]))
    true, false = (np.add.reduceat((weights * rows)[order], starts) for rows in (is_true, ~is_true))
    pairs = true.sum() * false.sum()
    return float((true * (false.cumsum() - false / 2)).sum() / pairs) if pairs > 0 else None


AUROC = Auroc()
