"""Metrics of labels and probabilities against scikit-learn with the weights of the rows, and their intervals
against scipy.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    roc_auc_score,
)

from fullft_assets.evaluation.intervals import bounded_interval
from fullft_assets.evaluation.metrics import Predictions
from fullft_assets.task import METRICS
from fullft_assets.tasks.classification import assessment

pytestmark = pytest.mark.quick

seeds = st.integers(0, 10_000)
NUM_LABELS = 4


def drawn(seed: int) -> Predictions:
    """Rows with weights, with probabilities that often tie, and with a label that is not measurable."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(2, 60))
    labels = rng.integers(0, NUM_LABELS, num_rows)
    probabilities = rng.integers(1, 5, (num_rows, NUM_LABELS)) + 2.0 * np.eye(NUM_LABELS)[labels]
    found = assessment.predictions_of(
        labels, probabilities / probabilities.sum(1, keepdims=True), list("abcd")
    )
    measurable = np.array([True, True, True, False])
    return replace(found, weights=1 / rng.integers(1, 11, num_rows), measurable=measurable)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_metrics_of_labels(seed: int) -> None:
    found = drawn(seed)
    predicted, measurable = found.predicted.argmax(1), np.flatnonzero(found.measurable)
    options = {"sample_weight": found.weights}
    occurring = [label for label in measurable if (found.truth == label).any()]
    expected = (
        f1_score(found.truth, predicted, labels=occurring, average="macro", **options) if occurring else 0.0
    )
    assert METRICS.get("macro_f1").compute(found) == pytest.approx(expected)
    expected = accuracy_score(found.truth, predicted, **options)
    assert METRICS.get("accuracy").compute(found) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_auroc(seed: int) -> None:
    found = drawn(seed)
    is_true = found.truth[:, None] == np.arange(NUM_LABELS)
    areas = [
        roc_auc_score(is_true[:, label], found.predicted[:, label], sample_weight=found.weights)
        for label in [label for label in range(3) if 0 < is_true[:, label].sum() < len(found.truth)]
    ]
    assert METRICS.get("auroc").compute(found) == pytest.approx(np.mean(areas) if areas else 0.5)


def test_a_metric_of_probabilities_measures_nothing_without_them() -> None:
    labels = np.arange(60) % 3
    without = replace(assessment.predictions_of(labels, np.eye(3)[labels], list("abc")), predicted=None)
    assert not METRICS.get("auroc").measures(without)


@pytest.mark.parametrize(("share", "num_right"), [(0.0, 0), (1.0, 20)])
def test_at_a_bound_the_interval_is_the_exact_binomial_one(share: float, num_right: int) -> None:
    found = bounded_interval(share, 0.0, 19, 0.95, (0.0, 1.0))
    expected = stats.binomtest(num_right, 20).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_score_without_an_upper_bound_has_an_interval_on_a_log_scale() -> None:
    found = bounded_interval(3.0, 0.5, 19, 0.95, (1.0, None))
    expected = 1 + np.exp(stats.t.interval(0.95, 19, np.log(3.0 - 1.0), 0.5 / 2.0))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
