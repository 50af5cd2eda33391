"""Metrics of labels: of a row's label or labels, or of exact spans.

There is one macro-F1: the mean over the labels that occur in the truth. A label that does not occur cannot be measured, so its
absence is no success; what was predicted of it counts against micro-F1, and against the recall of the rows' own labels.
A label that occurs and is never predicted has an F1 of 0.
"""

from __future__ import annotations

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric

_LABELLED = ("classification", "multi_label", "token_classification")


class _OfLabelCounts(SummedMetric):
    def measures(self, predictions: Predictions) -> bool:
        """See `Metric`."""
        return predictions.found is not None

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return true positives, support and predicted counts [n, labels]."""
        assert predictions.found is not None and predictions.true is not None and predictions.given is not None
        return predictions.found, predictions.true, predictions.given


class MacroF1(_OfLabelCounts):
    """Unweighted mean of the F1 of each label that occurs in the truth."""

    name, title, tasks = "macro_f1", "macro-F1", _LABELLED

    def score(self, *sums: np.ndarray) -> np.ndarray:
        """See `SummedMetric`."""
        return counts.macro_f1(*sums)


class MicroF1(_OfLabelCounts):
    """F1 of all labels' counts together."""

    name, title, tasks = "micro_f1", "micro-F1", ("multi_label", "token_classification")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        """See `SummedMetric`."""
        return counts.micro_f1(*sums)


class Accuracy(SummedMetric):
    """Share of rows whose prediction is right."""

    name, title, tasks = "accuracy", "accuracy", ("classification",)

    def measures(self, predictions: Predictions) -> bool:
        """See `Metric`."""
        return predictions.is_right is not None

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return whether each row is right, and 1 [n] each."""
        assert predictions.is_right is not None
        return predictions.is_right, np.ones(len(predictions.is_right))

    def score(self, *sums: np.ndarray) -> np.ndarray:
        """See `SummedMetric`."""
        return counts.ratio(*sums)


class SubsetAccuracy(Accuracy):
    """Share of rows with exactly their labels."""

    name, title, tasks = "subset_accuracy", "subset accuracy", ("multi_label",)


MACRO_F1, MICRO_F1, ACCURACY, SUBSET_ACCURACY = MacroF1(), MicroF1(), Accuracy(), SubsetAccuracy()
