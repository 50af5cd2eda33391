"""How far training has moved an encoder, for the tasks whose model has no head that predicts general text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.snapshot.general import General
from fullft_assets.workloads.inference import embed, embed_with
from fullft_assets.workloads.recipe import Listener


class GeneralDistance:
    """The part of a recipe that measures it.

    Attributes:
        base_model: a transformers folder with safetensors.
        added_tokens: that its tokenizer did not have.
        general: text on which is measured what is forgotten, or None.
    """

    base_model: Path
    added_tokens: Sequence[str]
    general: General | None

    def score_general(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """See `Recipe`: `general_distance`, 1 - the mean cosine of the general texts' mean-pooled last hidden states and the base model's.

        An encoder's weights have no head that predicts general text, so how well it still does cannot be said; only how far what
        it makes of such text has moved.
        """
        if self.general is None:
            return {}
        return {"general_distance": _distance(embed_with(model, self.general.windows, progress=listener), self._general_embeddings)}

    @cached_property
    def _general_embeddings(self) -> np.ndarray:
        """[texts, hidden] what the base model makes of the general texts."""
        # Loading draws weights that are not used (a pooler's); the course of training must not depend on when this is done.
        with torch.random.fork_rng():
            return embed(self.base_model, self.general.windows, added_tokens=self.added_tokens)


def _distance(found: np.ndarray, original: np.ndarray) -> float:
    """Return 1 - the mean cosine of rows [n, hidden]; nan where one is not finite."""
    found, original = found.astype(np.float64), original.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(original, axis=1)
    return float(1 - ((found * original).sum(1) / np.maximum(lengths, 1e-12)).mean())
