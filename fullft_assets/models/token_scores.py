"""Scores of a language model: how well it predicts the trained tokens of held-out documents.

The same scores are used on the validation rows in training, in the pilot and by the baselines, and on the
test rows in the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.models import precision
from fullft_assets.models.inference import collate, device, in_batches, move_unless_sharded
from fullft_assets.models.token_loss import IGNORED, TokenLoss

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Listener

#: Fills rows up after their last token, which no trained token attends to.
_PADDING = 0


@dataclass(frozen=True)
class TokenScores:
    """The predictions of the trained tokens of documents; the methods pool all tokens of all documents.

    Attributes:
        num_tokens: [documents] int64, trained tokens that were predicted.
        loss: [documents] float64, their summed cross-entropy in nats; nan where the model's outputs are not
            finite.
        num_right: [documents] int64, how many of them the model ranked first.
    """

    num_tokens: np.ndarray
    loss: np.ndarray
    num_right: np.ndarray

    def mean_loss(self) -> float:
        """Return the mean cross-entropy of a token in nats; nan without a token, or if an output was not
        finite.
        """
        count = self.num_tokens.sum()
        return float(self.loss.sum() / count) if count else math.nan

    def token_probability(self) -> float:
        """Return the geometric mean of the tokens' probabilities, 1 / perplexity."""
        return math.exp(-self.mean_loss())

    def token_accuracy(self) -> float:
        """Return the share of tokens that were ranked first; nan like the loss."""
        loss = self.mean_loss()
        return float(self.num_right.sum() / self.num_tokens.sum()) if math.isfinite(loss) else math.nan


def score_documents(
    model: PreTrainedModel,
    windows: Sequence[Sequence[Sequence[int]]],
    marks: Sequence[Sequence[Sequence[int]]] | None,
    *,
    progress: Listener | None = None,
) -> TokenScores:
    """Score a causal language model on documents; the model's mode is restored.

    A token is predicted from those before it in its window, so the first one of a window never is. Each
    window has a row of its own, longest first, so packing does not matter.

    Args:
        marks: aligned with the windows, 1 where a token is trained; None: all are.
        progress: reports how many windows are done; asked between batches whether to stop.
    """
    num_tokens, loss, num_right = (np.zeros(len(windows), kind) for kind in (np.int64, np.float64, np.int64))
    rows = _rows(windows, marks)
    was_training = model.training
    model.eval()
    move_unless_sharded(model)
    token_loss: TokenLoss | None = None

    def forward(start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the document, the loss and whether it was ranked first of each trained token."""
        nonlocal token_loss
        batch = rows[start:end]
        inputs = {
            name: value.to(device()) for name, value in collate([row.ids for row in batch], _PADDING).items()
        }
        labels = _labels(batch, inputs["input_ids"])
        if token_loss is None:
            token_loss = TokenLoss(model, {name: value[:1] for name, value in inputs.items()})
        losses, is_first = token_loss.of_tokens(model, inputs, labels)
        documents = np.repeat(
            [row.document for row in batch], (labels[:, 1:] != IGNORED).sum(1).cpu().numpy()
        )
        return documents, losses.double().cpu().numpy(), is_first.long().cpu().numpy()

    try:
        with torch.no_grad(), precision.autocast(precision.of_scores(model)):
            for documents, losses, is_first in in_batches(
                [len(row.ids) for row in rows], forward, model, progress
            ):
                np.add.at(num_tokens, documents, 1)
                np.add.at(loss, documents, losses)
                np.add.at(num_right, documents, is_first)
    finally:
        model.train(was_training)
    return TokenScores(num_tokens, np.where(np.isfinite(loss), loss, np.nan), num_right)


@dataclass(frozen=True)
class _Row:
    document: int
    ids: Sequence[int]
    marks: Sequence[int] | None


def _rows(
    windows: Sequence[Sequence[Sequence[int]]], marks: Sequence[Sequence[Sequence[int]]] | None
) -> list[_Row]:
    """Return the windows that have a token to predict, longest first: a batch that does not fit fails at
    once.
    """
    rows = [
        _Row(number, window, None if marks is None else marks[number][place])
        for number, document in enumerate(windows)
        for place, window in enumerate(document)
    ]
    rows = [row for row in rows if len(row.ids) > 1 and (row.marks is None or 1 in row.marks[1:])]
    return sorted(rows, key=lambda row: -len(row.ids))


def _labels(batch: Sequence[_Row], ids: torch.Tensor) -> torch.Tensor:
    """Return [rows, tokens]: the token's id where it is trained, else IGNORED."""
    trained = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(batch):
        trained[number, : len(row.ids)] = True if row.marks is None else torch.tensor(row.marks) == 1
    return torch.where(trained.to(ids.device), ids, IGNORED)
