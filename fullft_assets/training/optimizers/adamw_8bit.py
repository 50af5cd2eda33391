"""AdamW of bitsandbytes, whose moments have 8 bits (Dettmers et al. 2022, arXiv 2110.02861)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fullft_assets.settings.optimizers import Optimizer, Weights
from fullft_assets.training.optimizers.adamw import BETAS, EPSILON

if TYPE_CHECKING:
    import torch


class AdamW8Bit(Optimizer):
    """Keeps two moments of each weight in a byte each."""

    package = ("bitsandbytes", "pip install bitsandbytes")

    def state_bytes(self, weights: Weights) -> int:
        """Return the bytes of both moments."""
        return 2

    def build(
        self, groups: list[dict[str, Any]], weights: Weights, max_norm: float, seed: int
    ) -> torch.optim.Optimizer:
        """Return the optimizer of bitsandbytes."""
        from bitsandbytes.optim.adamw import AdamW8bit  # pyright: ignore[reportMissingImports]  # an extra

        return AdamW8bit(groups, betas=BETAS, eps=EPSILON)


ADAMW_8BIT = AdamW8Bit()
