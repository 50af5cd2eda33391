"""What the model predicts: the share of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fullft_assets.examples.labels import named
from fullft_assets.monitoring.drift_test import DriftTest
from fullft_assets.monitoring.features import Features
from fullft_assets.monitoring.sums import Sums

#: A label rarer than this weighs as if it had this share, so that one stray prediction is no drift.
_LEAST_SHARE = 0.01


class PredictedLabels(DriftTest):
    """Compares the shares of the predicted labels."""

    name = "predicted_labels"
    arrays = ("label_weights",)

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return 1 / square root of each label's share [labels] of the held-out rows' predictions."""
        shares = np.bincount(held_out.predicted, minlength=num_labels) / len(held_out)
        return {"label_weights": 1 / np.sqrt(np.maximum(shares, _LEAST_SHARE))}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return one coordinate a label: its weight where it is predicted, else 0."""
        weights = fitted["label_weights"]
        return np.eye(len(weights))[features.predicted] * weights

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return which label's share changed most."""
        old, new = (_shares(side) for side in (reference, current))
        largest = int(np.argmax(np.abs(new - old)))
        label = labels[largest] if largest < len(labels) else f"label {largest}"
        shown = named([(label, "")], 1, labels)
        return f"predicted labels shift, most {shown}: {old[largest]:.1%} -> {new[largest]:.1%}"


def _shares(windows: Sequence[Sums]) -> np.ndarray:
    counts = np.sum([window.counts for window in windows], axis=0)
    return counts / counts.sum()
