"""The headline metrics behind `evaluate`'s interface, computed here: no script and no hub is involved.

`evaluate` truncates floats to whole labels silently and answers nan for empty input; both are refused.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from fullft_assets.tasks.classification import assessment

_LABELS = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
_PROBABILITIES = {
    "predictions": datasets.Sequence(datasets.Value("float64")),
    "references": datasets.Value("int64"),
}


class _Metric(evaluate.Metric):
    """Validates what is added; rows are kept in memory, not in a cache file that two processes would share."""

    summary = ""
    source = ""
    columns = _LABELS

    def __init__(self, **options: Any):
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation=self.source,
            inputs_description="",
            features=datasets.Features(self.columns),
        )

    def _validate(self, predictions: Any, references: Any) -> None:
        assessment.require_labels(references, predictions)

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
            raise ValueError(f"{self.name}: nothing to score; add predictions and references first")
        found = evaluate.Metric.compute(self, predictions=predictions, references=references, **options)
        assert found is not None, "only processes after the first one of several get nothing"
        return found


class EvaluateAccuracy(_Metric):
    """Share of rows whose prediction is the label."""

    summary = "Share of rows whose predicted label is the true one."

    def _compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        return {"accuracy": assessment.accuracy(np.asarray(references), np.asarray(predictions))}


class EvaluateMacroF1(_Metric):
    """Mean F1 over the labels that occur."""

    summary = "Unweighted mean of the F1 of each label that occurs among the references."

    def _compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, float]:
        return {"macro_f1": assessment.macro_f1(np.asarray(references), np.asarray(predictions))}


class EvaluateCalibrationError(_Metric):
    """Expected calibration error; predictions are rows of label probabilities."""

    summary = "Mean distance between confidence and accuracy over equal-width bins of the highest probability."
    source = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017"
    columns = _PROBABILITIES

    def _validate(self, predictions: Any, references: Any) -> None:
        assessment.require_labels(references, references, name="references")
        assessment.require_probabilities(predictions, references, name="predictions")

    def _compute(self, *, predictions: Any = None, references: Any = None, num_bins: int = 10, **options: Any) -> dict[str, float]:
        error = assessment.expected_calibration_error(np.asarray(references), np.asarray(predictions), num_bins)
        return {"calibration_error": error}


def headline(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> dict[str, float]:
    """Return `accuracy`, `macro_f1` and `calibration_error` of label probabilities [n, k]."""
    predicted = probabilities.argmax(axis=1)
    return {
        **EvaluateAccuracy().compute(predictions=predicted, references=labels),
        **EvaluateMacroF1().compute(predictions=predicted, references=labels),
        **EvaluateCalibrationError().compute(predictions=probabilities, references=labels, num_bins=num_bins),
    }
