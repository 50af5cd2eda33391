"""The content of the texts: embeddings of the base model, which no training moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fullft_assets.monitoring.drift_test import POOLED, DriftTest
from fullft_assets.monitoring.features import Features
from fullft_assets.monitoring.sums import Sums
from fullft_assets.monitoring.whitening import whitening

#: Principal components of the embeddings. Of twice as many, the smaller half is mostly noise, which whitening
#: makes as loud as the rest.
MAX_COMPONENTS = 64


class Content(DriftTest):
    """Compares embeddings on the whitened principal components of the held-out rows: `centre` and `axes`."""

    name = "embeddings"
    arrays = ("centre", "axes")
    outlives_champion = True
    thresholds = {1: 0.0045, POOLED: 0.03}

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the mean embedding [d] of held-out rows, and their whitened principal components [d, k]."""
        centre, axes = whitening(held_out.embeddings.astype(np.float64), MAX_COMPONENTS)
        return {"centre": centre, "axes": axes}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return the components of each document's embedding.

        Raises:
            ValueError: the documents were read by another model than the held-out rows.
        """
        size = features.embeddings.shape[1]
        if size != len(fitted["centre"]):
            raise ValueError(
                f"embeddings have {size} dimensions, those of the held-out rows {len(fitted['centre'])}: they"
                " were read by different models"
            )
        return (features.embeddings - fitted["centre"]) @ fitted["axes"]

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return that the content changed."""
        return "the content of the texts changed"
