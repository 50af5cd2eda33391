"""Temperature scaling: how much softer, or sharper, probabilities have to be to match what happens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Temperatures outside of these say that the probabilities have nothing to do with the labels.
_RANGE = (0.05, 20.0)
_SMALLEST = 1e-12


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature with the lowest log loss (Guo et al. 2017, section 4.2, arXiv:1706.04599).

    Args:
        labels: positions in the label order [n], of rows that the model did not learn from.
        probabilities: of each label [n, k]; their logarithms are the logits.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probabilities, math.exp(log_temperature))
        return float(-np.log(np.maximum(scaled[np.arange(len(labels)), labels], _SMALLEST)).mean())

    found: Any = minimize_scalar(loss, bounds=tuple(map(math.log, _RANGE)), method="bounded")
    return math.exp(float(found.x))


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities [n, k] at a temperature; above 1 they are softer. The order of the labels
    stays.
    """
    from scipy.special import softmax

    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST)) / temperature
    return softmax(logits, axis=1)
