"""Embeddings of added tokens: with `chunks.added_tokens` the tokenizer has words that the base model does not
know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import former_pieces
from fullft_assets.errors import SettingsError


def initialise_added(model: PreTrainedModel, base_model: ModelFolder, added_tokens: Sequence[str]) -> None:
    """Set the embedding of each added token to the mean of the embeddings of its former pieces; nothing else
    changes.

    Input and, if there are any, output embeddings [vocabulary, hidden] grow if the vocabulary has no room
    left. Random embeddings would be far from all others, and ruin a language model's predictions (Hewitt,
    2021).

    Args:
        model: just loaded from `base_model`; changed in place.
        base_model: its folder, with the original tokenizer.

    Raises:
        SettingsError: the weights have no embedding for a token of the folder's own tokenizer.
    """
    former = former_pieces(base_model, added_tokens) if added_tokens else {}
    if not former:
        return
    known = input_embeddings(model).weight.shape[0]
    if (largest := max(piece for pieces in former.values() for piece in pieces)) >= known:
        raise SettingsError(
            f"base_model: its tokenizer has token {largest:,}, its weights have {known:,} tokens; use a"
            " folder where both belong together"
        )
    size = max(former) + 1
    if size > known:
        # `mean_resizing` would draw the new rows from the covariance of the old ones, for minutes in a large
        # model.
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for table in _tables(model):
            for new, pieces in former.items():
                table[new] = table[pieces].mean(dim=0)


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return the word embeddings of a model."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding), f"{type(model).__name__} has no word embeddings"
    return embeddings


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the tensors with a row for each token: embeddings, and the head of a language model with its
    bias; tied ones once.
    """
    head = model.get_output_embeddings()
    tables = [input_embeddings(model).weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return list({id(table): table for table in tables if table is not None}.values())
