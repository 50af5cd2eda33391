"""The recipe of the task token_classification: a new head on every token, which learns the tags of labelled
spans (`tagging`).

The loss of an optimizer step is the mean cross-entropy over its tokens, however many windows, passes and
processes they are in: special tokens, padding, and tokens that belong to another window count for nothing.
Scores on the validation rows are those of exact spans, in characters, as the evaluation counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import DataError
from fullft_assets.jobs.progress import Listener
from fullft_assets.models import precision
from fullft_assets.models.inference import (
    HeadWeights,
    has_intercept,
    load_for_training,
    load_tagger,
    read_by_head,
)
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import BaselineContext
from fullft_assets.tasks.classification.logistic import fit_on_states
from fullft_assets.tasks.classification.recipe import window_feed
from fullft_assets.tasks.encoder import Encoder
from fullft_assets.tasks.token_classification import assessment
from fullft_assets.tasks.token_classification.assessment import Span
from fullft_assets.tasks.token_classification.tagging import (
    Frame,
    TokenizedTexts,
    find_spans,
    normal,
    tag,
    tag_names,
)
from fullft_assets.training.recipe import MOST_HEAD_ROWS, Prepared

#: Tokens that a new head is fitted on, drawn at random from the training rows.
_MOST_TOKENS = 30_000


@dataclass(frozen=True)
class TokenClassificationRecipe(Encoder):
    """Each token of a window that belongs to it learns a tag."""

    tokenization: Tokenization = field(kw_only=True)

    def _load(
        self,
        folder: ModelFolder,
        settings: TrainingSettings,
        added_tokens: Sequence[str] = (),
        *,
        keeps_head: bool = False,
    ) -> PreTrainedModel:
        dtype = precision.of_weights(settings)
        options = {"load": load_tagger, "keeps_head": keeps_head, "dtype": dtype}
        return load_for_training(folder, tag_names(self.labels), added_tokens, **options)

    def fit_head(
        self,
        model: PreTrainedModel,
        settings: TrainingSettings,
        listener: Listener,
        *,
        most_rows: int | None = MOST_HEAD_ROWS,
    ) -> HeadWeights | None:
        if self.start is not None:
            return None
        train = self.train if most_rows is None else self.train.select(range(min(len(self.train), most_rows)))
        validation = self.validation.select(range(min(len(self.validation), MOST_HEAD_ROWS)))
        states, tags = self._states_of_tokens(model, train, listener)
        checked = self._states_of_tokens(model, validation, listener)
        head = fit_on_states(
            states, tags, len(tag_names(self.labels)), checked, intercept=has_intercept(model)
        )
        return HeadWeights(head.coefficients, head.intercept)

    def _states_of_tokens(
        self, model: PreTrainedModel, rows: Split, listener: Listener
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the output layer reads of tokens that are drawn at random [tokens, features], and their
        tags [tokens].
        """
        tags = self._tags(rows)
        total = sum(tag != IGNORED for document in tags for window in document for tag in window)
        rng = np.random.default_rng(0)
        states, targets = [], []
        for items, read, _ in read_by_head(model, rows.windows, listener):
            numbers = read.cpu().numpy()
            for at, (row, number) in enumerate(items):
                target = np.array(tags[row][number])
                is_drawn = (target != IGNORED) & (rng.random(len(target)) < _MOST_TOKENS / max(1, total))
                states.append(numbers[at, : len(target)][is_drawn])
                targets.append(target[is_drawn])
        return np.concatenate(states), np.concatenate(targets)

    def prepare(
        self, model: PreTrainedModel, settings: TrainingSettings, seed: int, num_processes: int
    ) -> Prepared:
        windows = [window for document in self.train.windows for window in document]
        tags = [window for document in self._tags(self.train) for window in document]
        return self._prepared(
            model, window_feed(windows, tags, model, settings, seed, _padded), loss_of_output, settings
        )

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """See `Recipe`: loss, micro-F1 and macro-F1 of exact spans."""
        reading = self._reading
        tagged = tag(model, reading.windows, reading.frame, self._validation_tags, progress=listener)
        if not math.isfinite(tagged.loss):
            return dict.fromkeys(("loss", "micro_f1", "macro_f1"), math.nan)
        return {"loss": tagged.loss / max(1, tagged.num_tokens), **self._scores(reading.spans(tagged.tags))}

    def predict(self, model: PreTrainedModel, rows: Split, listener: Listener) -> list[list[Span]]:
        """See `Recipe`: the spans of each row."""
        return find_spans(model, TokenizedTexts.of(self.tokenization, rows.texts), progress=listener)

    def _with_recipe(self, context: BaselineContext) -> BaselineContext:
        return replace(super()._with_recipe(context), tokenization=self.tokenization)

    def _score_predicted(self, name: str, predicted: Any, folder: Path) -> dict[str, float]:
        return self._scores(predicted)

    @cached_property
    def _reading(self) -> TokenizedTexts:
        reading = TokenizedTexts.of(self.tokenization, self.validation.texts)
        if reading.windows != self.validation.windows:
            raise DataError(
                "the snapshot's windows are not those that base_model's tokenizer makes of its texts; take"
                " the snapshot again"
            )
        return reading

    @cached_property
    def _validation_tags(self) -> list[list[list[int]]]:
        return self._tags(self.validation)

    @cached_property
    def _truth(self) -> list[list[Span]]:
        assert self.validation.spans is not None
        return normal(self.validation.texts, self.validation.spans)

    def _tags(self, split: Split) -> list[list[list[int]]]:
        return Frame.of(self.tokenization).tags_of_rows(split)

    def _scores(self, predicted: Sequence[Sequence[Span]]) -> dict[str, float]:
        return assessment.scores(self._truth, predicted, len(self.labels))


def _padded(tags: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(window) for window in tags], batch_first=True, padding_value=IGNORED
    )


def loss_of_output(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of a pass; labels are tags [windows, tokens], -100 where nothing is
    learned.
    """
    logits = output.logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
