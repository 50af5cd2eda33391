"""The metrics behind `evaluate`'s interface: offline, equal to scikit-learn, strict about what they take."""

from __future__ import annotations

import socket

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, roc_auc_score

from fullft_assets.task import METRICS
from fullft_assets.tasks.classification.assessment import expected_calibration_error
from fullft_assets.tasks.classification.evaluate_metrics import EvaluateMetric, headline


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No connection can be opened, and the current folder holds nothing that `evaluate` could load."""

    def refuse(*_: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    return rng.integers(0, 4, 500), rng.dirichlet(np.ones(4), 500)


def test_headline_equals_sklearn(scored):
    labels, probabilities = scored
    predicted = probabilities.argmax(1)
    assert headline(labels, probabilities, 10) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "calibration_error": expected_calibration_error(labels, probabilities, 10),
        }
    )


def test_each_registered_metric_of_classifiers_runs_through_evaluate(scored):
    labels, probabilities = scored
    predicted = probabilities.argmax(1)
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "weighted_f1": f1_score(labels, predicted, average="weighted"),
        "matthews_corrcoef": matthews_corrcoef(labels, predicted),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
        "brier": ((probabilities - np.eye(4)[labels]) ** 2).sum(1).mean(),
        "log_loss": log_loss(labels, probabilities),
    }
    assert set(expected) == {
        name for name, metric in METRICS.all().items() if "classification" in metric.tasks
    }
    for name, value in expected.items():
        metric = EvaluateMetric(name)
        given = predicted if metric.takes_labels else probabilities
        assert metric.compute(predictions=given, references=labels) == {name: pytest.approx(value)}


def test_they_are_metrics_with_features():
    for metric in map(EvaluateMetric, ("accuracy", "macro_f1", "calibration_error")):
        assert isinstance(metric, evaluate.Metric)
        assert set(metric.features) == {"predictions", "references"}
        assert metric.description


def test_rows_may_be_added_one_by_one_and_in_batches(scored):
    labels, probabilities = scored
    predicted = probabilities.argmax(1)
    metric = EvaluateMetric("macro_f1")
    metric.add(prediction=predicted[0], reference=labels[0])
    metric.add_batch(predictions=predicted[1:200], references=labels[1:200])
    metric.add_batch(predictions=predicted[200:], references=labels[200:])
    assert metric.compute()["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metric.compute(predictions=[1, 0], references=[1, 0]) == {"macro_f1": 1.0}


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0.9, 1.2], [0, 1], "labels are whole numbers"),
        ([0, 1], [0.0, 1.0], "labels are whole numbers"),
        ([], [], "expected a non-empty list"),
        ([0, 1], [0], "2 for 1 labels"),
        ([0, -1], [0, 1], "row 1 has label -1"),
    ],
)
def test_bad_labels_are_refused(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        EvaluateMetric(metric).compute(predictions=predictions, references=references)
    with pytest.raises(ValueError, match=message):
        EvaluateMetric(metric).add_batch(predictions=predictions, references=references)


def test_nothing_to_score_is_an_error():
    for metric in map(EvaluateMetric, ("accuracy", "macro_f1", "calibration_error")):
        with pytest.raises(ValueError, match="nothing to score"):
            metric.compute()
    with pytest.raises(ValueError, match="labels are whole numbers"):
        EvaluateMetric("accuracy").add(prediction=0.7, reference=1)


def test_bad_probabilities_are_refused():
    for predictions, message in (
        ([[0.5, np.nan], [0.5, 0.5]], "not finite"),
        ([[0.5, 0.2], [0.5, 0.5]], "not a distribution"),
        ([0, 1], "rows of label probabilities"),
        ([], "rows of label probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluateMetric("calibration_error").compute(predictions=predictions, references=[0, 1])
