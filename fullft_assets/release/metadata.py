"""Metadata of the release's artifact."""

from __future__ import annotations

from fullft_assets.store.metadata import Metadata


class ChampionMetadata(Metadata):
    """Metadata of a `champion_model`.

    Attributes:
        verdict: what the gates said.
        outcome: how the release ended; differs from the verdict where a person decided.
        model: folder of the model within the store.
    """

    checkpoint: str
    score: float
    verdict: str
    outcome: str
    model: str
