"""The metrics of classifiers behind `evaluate`'s interface, computed here: no script and no hub is involved.

`evaluate` truncates floats to whole labels silently and answers nan for empty input; both are refused.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from fullft_assets.evaluation.metrics.base import Metric
from fullft_assets.task import METRICS
from fullft_assets.tasks.classification import assessment

_LABEL = datasets.Value("int64")


class EvaluateMetric(evaluate.Metric):
    """A registered metric, ours or that of another package, or `calibration_error`; predictions are labels or
    rows of label probabilities.

    Rows are kept in memory, not in a cache file that two processes would share.
    """

    def __init__(self, metric: str, **options: Any):
        self.metric: Metric | None = None if metric == "calibration_error" else METRICS.get(metric)
        a_label = np.zeros(1, int)
        self.takes_labels = self.metric is not None and self.metric.measures(
            assessment.of_labels(a_label, a_label)
        )
        super().__init__(**{"config_name": metric, "keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        predictions = _LABEL if self.takes_labels else datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=(
                assessment.expected_calibration_error if self.metric is None else type(self.metric)
            ).__doc__
            or self.config_name,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": predictions, "references": _LABEL}),
        )

    def _validate(self, predictions: Any, references: Any) -> None:
        if self.takes_labels:
            assessment.require_labels(references, predictions)
        else:
            assessment.require_labels(references, references, name="references")
            assessment.require_probabilities(predictions, references, name="predictions")

    # evaluate copies these methods without their closure, where `super()` would not work.
    def add_batch(self, *, predictions: Any = None, references: Any = None, **other: Any) -> None:
        """Add rows to be scored."""
        self._validate(predictions, references)
        evaluate.Metric.add_batch(self, predictions=predictions, references=references, **other)

    def add(self, *, prediction: Any = None, reference: Any = None, **other: Any) -> None:
        """Add one row to be scored."""
        self._validate(np.asarray([prediction]), np.asarray([reference]))
        evaluate.Metric.add(self, prediction=prediction, reference=reference, **other)

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        """Score the rows given and those added before."""
        if predictions is None and references is None and self.writer is None:
            raise ValueError(f"{self.config_name}: nothing to score; add predictions and references first")
        found = evaluate.Metric.compute(self, predictions=predictions, references=references, **options)
        assert found is not None, "only processes after the first one of several get nothing"
        return found

    def _compute(
        self, *, predictions: Any = None, references: Any = None, num_bins: int = 10, **options: Any
    ) -> dict[str, float]:
        labels, found = np.asarray(references), np.asarray(predictions)
        if self.metric is None:
            return {"calibration_error": assessment.expected_calibration_error(labels, found, num_bins)}
        if self.takes_labels:
            return {self.metric.name: self.metric.compute(assessment.of_labels(labels, found))}
        return {
            self.metric.name: self.metric.compute(
                assessment.predictions_of(labels, found, [""] * found.shape[1])
            )
        }


def headline(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> dict[str, float]:
    """Return `accuracy`, `macro_f1` and `calibration_error` of label probabilities [n, k]."""
    found: dict[str, float] = {}
    for name in ("accuracy", "macro_f1"):
        found |= EvaluateMetric(name).compute(predictions=probabilities.argmax(axis=1), references=labels)
    return found | EvaluateMetric("calibration_error").compute(
        predictions=probabilities, references=labels, num_bins=num_bins
    )
