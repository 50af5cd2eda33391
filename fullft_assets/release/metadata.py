"""Metadata of the release's artifact."""

from __future__ import annotations

from fullft_assets.store.metadata import Metadata


class ChampionMetadata(Metadata):
    """Metadata of a `champion_model`.

    Attributes:
        model: folder of the model within the store.
    """

    checkpoint: str
    score: float
    verdict: str
    model: str
