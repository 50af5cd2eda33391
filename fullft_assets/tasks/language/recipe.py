"""The recipe of the tasks sft and language_modeling: the next token, on packed rows.

A row has several documents, each of which attends to itself alone (`models.documents`), without an attention
mask and without a cache. The loss of an optimizer step is the mean over its trained tokens, however many
rows, passes and processes they are in. A model that does not keep documents apart (`documents.probe`) gets
each on a row of its own instead, beside others of its length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar, Self

import torch
from transformers import PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.models import documents, precision
from fullft_assets.models.document_scores import DocumentScores
from fullft_assets.models.inference import device, load_causal, move
from fullft_assets.models.loading import input_embeddings
from fullft_assets.models.token_loss import SHOWN_TOKENS, TokenLoss, plain, score_documents
from fullft_assets.progress import Listener
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split, Training
from fullft_assets.snapshot.general import General
from fullft_assets.tasks.baseline import BaselineContext, fit_all
from fullft_assets.training import feed, regularization
from fullft_assets.training.feed import Feed, Pieces, first_tokens
from fullft_assets.training.recipe import MAX_IMPORTANCE_TEXTS, Prepared, Recipe

#: A row has room for three documents of two tokens, or nothing can be tried on it.
_LEAST_CAPACITY = 6


@dataclass(frozen=True)
class NextTokenRecipe(Recipe):
    """See `Recipe`. Rows are those of the packing plan, also where the model is fed padded ones."""

    base_model: ModelFolder
    training: Training
    validation: Split
    added_tokens: Sequence[str] = ()
    general: General | None = None
    start: ModelFolder | None = None
    has_new_head: ClassVar[bool] = False

    @property
    def num_rows(self) -> int:
        return self.training.packing.num_rows

    def first(self, num_rows: int) -> Self:
        return replace(self, training=replace(self.training, packing=self.training.packing.first(num_rows)))

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        # What training starts from has its added tokens.
        return (
            self if self.start is None else replace(self, base_model=self.start, added_tokens=())
        ).load_original(settings)

    def load_original(self, settings: TrainingSettings) -> PreTrainedModel:
        return precision.score_alike(
            load_causal(self.base_model, self.added_tokens, dtype=precision.of_weights(settings)), settings
        )

    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> Prepared:
        """See `Recipe`: probes the model and plans packed rows, or, where it leaks, padded ones.

        A padded pass takes at most as many tokens, padding included, as a packed one has room for.

        Raises:
            DataError: there is no row or no trained token, or a token is not in the model's vocabulary.
            SettingsError: the rows are longer than the model takes.
        """
        self._check(model)
        move(model)
        documents.attend_apart_where_equal(model, self._pieces.plan.capacity, seed=seed)
        isolated = documents.probe(model, self._pieces.plan.capacity, seed=seed)
        feed = _feed(
            model,
            self._pieces,
            isolated,
            settings,
            seed,
            tells_replayed=settings.distillation is not None
            and (self.training.num_task_chunks < len(self.training.chunks)),
        )
        about = {"isolation": isolated.reason, "is_packed": isolated.is_isolated}
        inputs = {
            name: value.to(model.device) for name, value in first_tokens(feed.batch(0), SHOWN_TOKENS).items()
        }
        with precision.autocast(precision.of(settings)), torch.no_grad():
            loss = TokenLoss(model, inputs)
        if settings.distillation is None:
            return Prepared(feed, loss.total, about)
        teacher = regularization.load_teacher(self, model, settings)
        if documents.takes_bounds(model):
            documents.attend_apart(teacher)
        return Prepared(
            feed, regularization.DistilledTokenLoss(loss, teacher, settings.distillation.weight).total, about
        )

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        return _metrics(
            score_documents(model, self.validation.chunks, self.validation.marks, progress=listener)
        )

    def score_general(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        return (
            {}
            if self.general is None
            else {
                "general_loss": (
                    score_documents(
                        model, self.general.chunks, self.general.marks, progress=listener
                    ).mean_loss()
                )
            }
        )

    def log_likelihoods(self, model: PreTrainedModel, seed: int) -> Iterator[torch.Tensor]:
        """See `Recipe`: of each replayed chunk; of the general set's only without any: what forgetting is
        measured on should not steer it.
        """
        chunks = self.training.chunks[self.training.num_task_chunks :] or [
            chunk for document in (self.general.chunks if self.general else []) for chunk in document
        ]
        for chunk in islice((chunk for chunk in chunks if len(chunk) > 1), MAX_IMPORTANCE_TEXTS):
            ids = torch.tensor([chunk if isinstance(chunk, list) else chunk.as_py()], device=device())
            yield -plain(model, {"input_ids": ids}, ids)

    def predict(self, model: PreTrainedModel, rows: Split, listener: Listener) -> DocumentScores:
        return score_documents(model, rows.chunks, rows.marks, progress=listener)

    def score_baselines(
        self, names: Sequence[str], folder: Path, context: BaselineContext
    ) -> Iterator[tuple[str, dict[str, float]]]:
        for name, baseline in fit_all(names, self.training, self._with_recipe(context), folder):
            scores: DocumentScores = baseline.predict(self.validation)
            if scores.num_right is None:
                raise DataError(
                    f"baseline {name}: num_right is missing; it has to score the tokens of the validation"
                    " rows' chunks"
                )
            yield name, _metrics(scores) | baseline.general_scores()

    def _with_recipe(self, context: BaselineContext) -> BaselineContext:
        return replace(context, open_recipe=lambda: self)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.training)

    def _check(self, model: PreTrainedModel) -> None:
        pieces = self._pieces
        validation = self.validation
        if not len(pieces):
            raise DataError(
                "the snapshot has no training row; deliver documents, or set a lower snapshot.test_share and"
                " validation_share"
            )
        marks = [mark for document in validation.marks or [] for chunk in document for mark in chunk[1:]]
        for name, has_tokens in (
            ("training", pieces.num_predicted.any()),
            ("validation", any(len(chunk) > 1 for document in validation.chunks for chunk in document)),
            ("validation", validation.marks is None or 1 in marks),
        ):
            if not has_tokens:
                raise DataError(
                    f"the snapshot's {name} rows have no trained token; look at chunks.train_on and at the"
                    " assistant turns"
                )
        num_tokens = input_embeddings(model).num_embeddings
        largest = max(
            pieces.largest_id,
            max(max(chunk, default=0) for document in validation.chunks for chunk in document),
        )
        if largest >= num_tokens:
            raise DataError(
                f"the snapshot has token {largest:,}, the model knows {num_tokens:,}: its tokenizer is not"
                " base_model's; take the snapshot again"
            )
        longest = int(pieces.plan.length.max())
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and longest > positions:
            raise SettingsError(
                f"chunks.max_tokens: {longest:,} is more than the {positions:,} positions of base_model"
            )
        if pieces.plan.capacity < _LEAST_CAPACITY:
            raise SettingsError(
                f"chunks.max_tokens: rows of {pieces.plan.capacity} tokens are too short to hold several"
                " documents"
            )


def _metrics(scores: DocumentScores) -> dict[str, float]:
    return {
        "loss": scores.mean_loss(),
        "token_accuracy": scores.token_accuracy(),
        "token_probability": scores.token_probability(),
    }


def _feed(
    model: PreTrainedModel,
    pieces: Pieces,
    isolated: documents.Isolation,
    settings: TrainingSettings,
    seed: int,
    *,
    tells_replayed: bool,
) -> Feed:
    rows_a_pass = settings.rows_a_pass()
    epochs = settings.num_epochs
    num_tokens = input_embeddings(model).num_embeddings
    config = model.config.get_text_config()
    pad_id = next(
        number
        # Not all configurations have both.
        for number in (getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None), 0)
        if isinstance(number, int) and 0 <= number < num_tokens
    )
    if not isolated.is_isolated:
        return feed.padded(
            pieces, rows_a_pass, settings.batch_size, epochs, seed, pad_id, with_replayed=tells_replayed
        )
    options = {"with_replayed": tells_replayed, "fills_rows": settings.compile}
    return feed.packed(pieces, rows_a_pass, epochs, seed, pad_id, **options)
