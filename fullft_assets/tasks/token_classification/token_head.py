"""A logistic regression of tags on the hidden states of a frozen base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.jobs.progress import Listener
from fullft_assets.models import loading
from fullft_assets.models.embeddings import initialise_added
from fullft_assets.models.inference import forward_batches
from fullft_assets.models.token_loss import IGNORED

#: Tokens that the regression is fitted on, drawn at random from the training rows.
_MOST_TOKENS = 30_000
#: Score of a tag that no drawn token has.
_NEVER = -1e4


class TokenHead:
    """A logistic regression of tags on hidden states of tokens."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray):
        self.mean, self.scale, self.coefficients, self.intercept = mean, scale, coefficients, intercept

    @classmethod
    def fit(
        cls,
        backbone: PreTrainedModel,
        windows: Sequence[Sequence[Sequence[int]]],
        tags: Sequence[Sequence[Sequence[int]]],
        num_tags: int,
        *,
        seed: int = 0,
        progress: Listener | None = None,
    ) -> TokenHead:
        """Fit on tokens of the training rows, drawn at random.

        Args:
            tags: aligned with the windows, -100 where a token is not trained.
        """
        total = sum(tag != IGNORED for document in tags for window in document for tag in window)
        rng = np.random.default_rng(seed)
        states, targets = [], []
        for items, _, output in forward_batches(backbone, windows, progress):
            hidden = output.last_hidden_state.float().cpu().numpy()
            for at, (row, number) in enumerate(items):
                target = np.array(tags[row][number])
                chosen = (target != IGNORED) & (rng.random(len(target)) < _MOST_TOKENS / max(1, total))
                states.append(hidden[at, : len(target)][chosen])
                targets.append(target[chosen])
        features, target = np.concatenate(states), np.concatenate(targets)
        mean, scale = features.mean(0), features.std(0) + 1e-6
        coefficients, intercept = np.zeros((num_tags, features.shape[1])), np.full(num_tags, _NEVER)
        present = np.unique(target)
        if len(present) == 1:
            intercept[present] = 0.0
            return cls(mean, scale, coefficients, intercept)
        model = LogisticRegression(C=0.1, max_iter=200).fit((features - mean) / scale, target)
        if len(model.classes_) == 2:  # there is one row for both classes
            coefficients[model.classes_[1]], intercept[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
        else:
            coefficients[model.classes_], intercept[model.classes_] = model.coef_, model.intercept_
        return cls(mean, scale, coefficients, intercept)

    def scores(self, output: Any) -> torch.Tensor:
        """Return the scores [windows, tokens, tags] of the backbone's output."""
        hidden = output.last_hidden_state.float()
        mean, scale, coefficients, intercept = (
            torch.tensor(values, dtype=torch.float32, device=hidden.device)
            for values in (self.mean, self.scale, self.coefficients, self.intercept)
        )
        return (hidden - mean) / scale @ coefficients.T + intercept


def load_backbone(base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> PreTrainedModel:
    """Load the base model as it is before any training, with embeddings for added tokens."""
    model = loading.load(AutoModel, base_model, dtype=torch.float32)
    initialise_added(model, base_model, added_tokens)
    return model
