"""Matthews correlation coefficient of several labels (Gorodkin 2004, Comparing two K-category assignments by a K-category correlation)."""

from __future__ import annotations

import numpy as np

from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric


class MatthewsCorrelation(SummedMetric):
    """Correlation of true and predicted label, 0 at chance; 0 as well where all rows have, or are given, one label."""

    name, title, tasks = "matthews_corrcoef", "Matthews correlation", ("classification",)
    bounds = (-1.0, 1.0)

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return true positives, support and predicted counts [n, labels]."""
        assert predictions.found is not None and predictions.true is not None and predictions.given is not None
        return predictions.found, predictions.true, predictions.given

    def score(self, *sums: np.ndarray) -> np.ndarray:
        """See `SummedMetric`."""
        found, true, given = sums
        rows = true.sum(1)
        covariance = found.sum(1) * rows - (true * given).sum(1)
        spread = (rows**2 - (true**2).sum(1)) * (rows**2 - (given**2).sum(1))
        return np.divide(covariance, np.sqrt(spread), out=np.zeros(len(rows)), where=spread > 0)


METRIC = MatthewsCorrelation()
