"""Metadata of the release's artifact."""

from __future__ import annotations

from fullft_assets.store.metadata import Metadata


class ChampionMetadata(Metadata):
    """Metadata of a `champion_model`.

    Attributes:
        checkpoint: ref of the `finetuned_checkpoint`.
        score: primary metric on the test rows.
        verdict: the release verdict in words.
        model: folder of the model within the store.
    """

    checkpoint: str
    score: float
    verdict: str
    model: str
