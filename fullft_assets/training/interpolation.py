"""WiSE-FT: the weights between the base model's and the fine-tuned ones (Wortsman et al. 2021,
arXiv:2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.models import layers


@dataclass(frozen=True)
class Interpolated:
    """The chosen interpolation.

    Attributes:
        alpha: share of the fine-tuned weights in the model; 1 = the fine-tuned weights themselves.
        scores: of each alpha that was tried: `alpha`, `validation_loss` and others.
    """

    alpha: float
    scores: list[dict[str, Any]]

    @property
    def of_chosen(self) -> dict[str, Any]:
        """Scores of the chosen alpha."""
        found = next(line for line in self.scores if line["alpha"] == self.alpha)
        return {name: value for name, value in found.items() if name != "alpha"}


@torch.no_grad()
def interpolate(
    model: nn.Module,
    original: PreTrainedModel,
    alphas: Sequence[float],
    score: Callable[[], dict[str, float]],
    *,
    has_new_head: bool,
    is_spent: Callable[[dict[str, float]], bool],
) -> Interpolated | None:
    """Put weights between the original's and a model's own into the model: those with the lowest validation
    loss within the budget.

    Args:
        original: the base model; a new head of it is not used: the fine-tuned head stays.

    Returns:
        The chosen interpolation; None where no alpha is within the budget, the model is then as it was.
    """
    head = layers.head_prefixes(original) if has_new_head else ()
    start = {name: value for name, value in original.named_parameters() if not name.startswith(head)}
    mixed = {name: value for name, value in model.named_parameters() if name in start}
    tuned = {name: value.detach().to("cpu", copy=True) for name, value in mixed.items()}

    def put(alpha: float) -> None:
        for name, value in mixed.items():
            # Not lerp: at 1 the result must be the fine-tuned weight to the last bit.
            ours = tuned[name].to(value.device)
            value.copy_(ours if alpha == 1 else start[name].to(value.device) * (1 - alpha) + ours * alpha)

    scores = []
    for alpha in alphas:
        put(alpha)
        scores.append({"alpha": alpha, **score()})
    within = [line for line in scores if math.isfinite(line["validation_loss"]) and not is_spent(line)]
    if not within:
        put(1)
        return None
    # Of equal losses the larger share of the fine-tuned weights.
    chosen = min(within, key=lambda line: (line["validation_loss"], -line["alpha"]))["alpha"]
    put(chosen)
    return Interpolated(chosen, scores)
