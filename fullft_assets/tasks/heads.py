"""Logistic regressions: the heads of baselines, and what a new head of a model begins as. The strength of
their regularization is chosen on validation rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Inverse strengths of the regularization that are tried on standardized features of a model.
PROBE_C = (0.001, 0.01, 0.1, 1.0)
#: Rows on which strengths are tried; all rows are fitted with the one that is chosen.
_MOST_ROWS_TO_CHOOSE = 4_000
#: Log-odds of a label that no training row has, or that all have.
_CERTAIN = 20.0
#: A feature that varies less than this share of the others' median is constant: divided by its deviation it
#: would be noise.
_CONSTANT = 1e-3


@dataclass(frozen=True)
class LogisticHead:
    """Logistic regression on features: softmax over labels where a row has one, else each label against the
    rest.

    Attributes:
        coefficients: [labels, features].
        intercept: [labels].
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    is_exclusive: bool

    @classmethod
    def fit_best(
        cls,
        features: Any,
        labels: np.ndarray,
        num_labels: int,
        strengths: Sequence[float],
        validation: tuple[Any, np.ndarray],
        **options: Any,
    ) -> LogisticHead:
        """Fit with the inverse strength that has the lowest log loss on validation rows.

        Args:
            features: [rows, features], sparse or dense.
            labels: int [rows], or bool [rows, labels].
            validation: features and labels of rows to choose on.
            options: of `fit`.
        """
        validation_features, truth = validation
        sample = (features[:_MOST_ROWS_TO_CHOOSE], labels[:_MOST_ROWS_TO_CHOOSE], num_labels)
        # One after the other: with many labels and features a head is large.
        best, C = min(
            ((cls.fit(*sample, C=C, **options), C) for C in strengths),
            key=lambda fitted: mean_log_loss(truth, fitted[0].probabilities(validation_features)),
        )
        return (
            best
            if len(labels) <= _MOST_ROWS_TO_CHOOSE
            else cls.fit(features, labels, num_labels, C=C, **options)
        )

    @classmethod
    def fit(
        cls,
        features: Any,
        labels: np.ndarray,
        num_labels: int,
        *,
        C: float,
        balanced: bool = False,
        intercept: bool = True,
    ) -> LogisticHead:
        """Fit with an inverse strength of the regularization.

        Args:
            balanced: weight rows by the inverse frequency of their label.
            intercept: fit one; else it is zero.
        """
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(
            C=C, max_iter=1_000, class_weight="balanced" if balanced else None, fit_intercept=intercept
        )
        is_exclusive = labels.ndim == 1
        with warnings.catch_warnings():
            # Few rows of many labels are no regression.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            arrays = (
                _fit_softmax(model, features, labels, num_labels)
                if is_exclusive
                else _fit_each(model, features, labels)
            )
        # Saved in single precision, and the same after loading.
        return cls(*(values.astype(np.float32) for values in arrays), is_exclusive=is_exclusive)

    def probabilities(self, features: Any) -> np.ndarray:
        from scipy.special import expit, softmax

        scores = features @ self.coefficients.T + self.intercept
        return softmax(scores, axis=1) if self.is_exclusive else expit(scores)

    def save(self, path: Path, **arrays: np.ndarray) -> None:
        """Write the head, and further arrays beside it, as npz."""
        about = {"coefficients": self.coefficients, "intercept": self.intercept}
        np.savez(path, allow_pickle=False, is_exclusive=np.array(self.is_exclusive), **about, **arrays)

    @classmethod
    def of(cls, arrays: Any) -> LogisticHead:
        return cls(arrays["coefficients"], arrays["intercept"], bool(arrays["is_exclusive"]))


def fit_on_states(
    features: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    validation: tuple[np.ndarray, np.ndarray],
    *,
    intercept: bool,
    balanced: bool = False,
) -> LogisticHead:
    """Return a regression on hidden states [rows, features] of a model, which are standardized for the fit.

    Args:
        intercept: fit one; without, the states are divided by their deviation and not shifted, so that none
            is needed.
    """
    mean = features.mean(0) if intercept else np.zeros(features.shape[1], np.float32)
    deviation = features.std(0)
    # The first is the rounding of single precision: most features may be constant.
    varies = deviation > np.maximum(1e-5 * np.abs(features).mean(0), _CONSTANT * np.median(deviation))
    scale = np.where(varies, deviation, 1.0)

    def standardized(states: np.ndarray) -> np.ndarray:
        return np.where(varies | (not intercept), (states - mean) / scale, 0.0)

    validation_features, truth = validation
    head = LogisticHead.fit_best(
        standardized(features),
        labels,
        num_labels,
        PROBE_C,
        (standardized(validation_features), truth),
        intercept=intercept,
        balanced=balanced,
    )
    coefficients = np.where(varies | (not intercept), head.coefficients / scale, 0.0)
    return LogisticHead(coefficients, head.intercept - coefficients @ mean, head.is_exclusive)


def mean_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean log loss of probabilities [rows, labels].

    Args:
        labels: positions of labels [rows], or bool [rows, labels].
    """
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    of_labels = (
        clipped[np.arange(len(labels)), labels]
        if labels.ndim == 1
        else np.where(labels, clipped, 1 - clipped)
    )
    return float(-np.log(of_labels).mean())


def _fit_softmax(
    model: Any, features: Any, labels: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    coefficients = np.zeros((num_labels, features.shape[1]))
    present = np.unique(labels)
    if len(present) == 1:
        return coefficients, np.where(np.arange(num_labels) == present[0], _CERTAIN, 0.0)
    model.fit(features, labels)
    # With two labels there is one row for both.
    signs = np.array([[-0.5], [0.5]]) if len(present) == 2 else 1.0
    coefficients[present] = signs * model.coef_
    # A label without a row is a little less likely than the rarest.
    intercepts = np.ravel(signs) * model.intercept_
    intercept = np.full(num_labels, intercepts.min() - 1.0)
    intercept[present] = intercepts
    return coefficients, intercept


def _fit_each(model: Any, features: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coefficients = np.zeros((labels.shape[1], features.shape[1]))
    intercept = np.zeros(labels.shape[1])
    for i, column in enumerate(labels.T):
        if column.all() or not column.any():
            intercept[i] = _CERTAIN if column.all() else -_CERTAIN
            continue
        model.fit(features, column)
        coefficients[i] = model.coef_[0]
        intercept[i] = model.intercept_[0] if np.ndim(model.intercept_) else 0.0
    return coefficients, intercept
