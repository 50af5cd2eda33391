"""What the recipes of encoders share, whatever the head: loading, baselines, and what is measured on general
text.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from fullft_assets.artifacts import PROBE_FILE
from fullft_assets.base_model import ModelFolder
from fullft_assets.models import precision
from fullft_assets.models.hardware import free_memory
from fullft_assets.models.inference import (
    Chunks,
    HeadWeights,
    collate,
    device,
    embed,
    has_intercept,
    is_sharded,
)
from fullft_assets.models.loading import PooledClassifier
from fullft_assets.progress import Listener
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.snapshot.general import General
from fullft_assets.tasks.baseline import BaselineContext, fit_all
from fullft_assets.tasks.heads import fit_on_states
from fullft_assets.training import ranks, regularization, sharding
from fullft_assets.training.feed import Feed
from fullft_assets.training.recipe import MAX_IMPORTANCE_TEXTS, MOST_HEAD_ROWS, Prepared, Recipe

#: (output, labels) -> the summed loss of a pass.
LossOfOutput = Callable[[Any, torch.Tensor], torch.Tensor]


def stored_probe(folder: Path) -> HeadWeights | None:
    """Return the head of the frozen probe among the baselines that were fitted in a folder, if it was."""
    return HeadWeights(**np.load(folder / PROBE_FILE)) if (folder / PROBE_FILE).is_file() else None


@dataclass(frozen=True)
class Encoder(Recipe):
    """The part of a recipe that is the same whatever the head.

    Attributes:
        train: rows to learn from; each chunk is one training row.
        labels: in the order of the model's outputs; those of spans in the order of their tags.
        start: folder of the fine-tuned model that training begins with; None: the base model.
        probe: head of the frozen probe on all rows; None: none was fitted.
        features: what the head reads of rows, by the formats of passes and weights and by the rows' ids.
    """

    base_model: ModelFolder
    train: Split
    validation: Split
    labels: list[str]
    added_tokens: Sequence[str] = ()
    general: General | None = None
    start: ModelFolder | None = None
    probe: HeadWeights | None = None
    features: dict[tuple[precision.Precision, torch.dtype], dict[str, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )
    has_new_head: ClassVar[bool] = True
    _embeddings: dict[precision.Precision, np.ndarray] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def num_rows(self) -> int:
        return len(self.train)

    def first(self, num_rows: int) -> Self:
        return replace(self, train=self.train.select(range(num_rows)), probe=None)

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        # What training starts from has its head and its added tokens.
        return (
            self.load_original(settings)
            if self.start is None
            else precision.score_alike(self._load(self.start, settings, keeps_head=True), settings)
        )

    def load_original(self, settings: TrainingSettings) -> PreTrainedModel:
        return precision.score_alike(self._load(self.base_model, settings, self.added_tokens), settings)

    @abstractmethod
    def _load(
        self,
        folder: ModelFolder,
        settings: TrainingSettings,
        added_tokens: Sequence[str] = (),
        *,
        keeps_head: bool = False,
    ) -> PreTrainedModel:
        """Return the model in a folder with the task's head, on the CPU; a new one unless it `keeps_head`."""

    def score_general(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """See `Recipe`: `general_distance`, 1 - the mean cosine of the general texts' mean-pooled last hidden
        states and the base model's.

        An encoder's weights have no head that predicts general text, so its loss on such text cannot be
        measured; only how far its representations of such text have moved.
        """
        if self.general is None:
            return {}
        chunks = self.general.chunks
        return {
            "general_distance": _distance(
                embed(model, chunks, progress=listener), self._embeddings_of_base(chunks, model)
            )
        }

    def log_likelihoods(self, model: PreTrainedModel, seed: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pad_id = model.config.get_text_config().pad_token_id or 0
        chunks = [chunk for document in (self.general.chunks if self.general else []) for chunk in document]
        for chunk in chunks[:MAX_IMPORTANCE_TEXTS]:
            inputs = {name: value.to(device()) for name, value in collate([chunk], pad_id).items()}
            representation = regularization.pooled(
                model(**inputs, output_hidden_states=True), inputs["attention_mask"]
            )[0]
            yield representation @ torch.randn(len(representation), generator=generator).to(representation)

    def score_baselines(
        self, names: Sequence[str], folder: Path, context: BaselineContext
    ) -> Iterator[tuple[str, dict[str, float]]]:
        # LoRA begins as the probe, too.
        context = replace(self, probe=stored_probe(folder))._with_recipe(context)
        for name, baseline in fit_all(names, self.train, context, folder):
            yield (
                name,
                self._score_predicted(name, baseline.predict(self.validation), folder)
                | baseline.general_scores(),
            )

    def _with_recipe(self, context: BaselineContext) -> BaselineContext:
        return replace(context, labels=self.labels, open_recipe=lambda: self)

    @abstractmethod
    def _score_predicted(self, name: str, predictions: Any, folder: Path) -> dict[str, float]:
        """Return the task's metrics of what a baseline predicts of the validation rows; what else it needs is
        saved in the folder.
        """

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
        # With layers between it and the base model, which are drawn anew, a head is another one each time.
        if self.probe is not None and isinstance(model, PooledClassifier):
            return self.probe
        validation = self.validation.select(range(min(len(self.validation), MOST_HEAD_ROWS)))
        fit = partial(
            fit_on_states,
            *self._states(model, self._head_rows(most_rows), listener),
            model.config.num_labels,
            self._states(model, validation, listener),
            intercept=has_intercept(model),
            balanced=settings.balance_labels,
        )
        # Of processes that share the model the first one fits it.
        head = (
            ranks.by_first(fit, cast(ranks.StopListener, listener).progress) if is_sharded(model) else fit()
        )
        return HeadWeights(head.coefficients, head.intercept)

    def _head_rows(self, most_rows: int | None) -> Split:
        return self.train.select(range(min(len(self.train), most_rows or len(self.train))))

    @abstractmethod
    def _states(
        self, model: PreTrainedModel, rows: Split, listener: Listener
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the output layer reads of rows [items, features], and the labels of each item."""

    def _prepared(
        self, model: PreTrainedModel, feed: Feed, loss_of_output: LossOfOutput, settings: TrainingSettings
    ) -> Prepared:
        if settings.distillation is None:
            return Prepared(feed, lambda model, inputs, labels: loss_of_output(model(**inputs), labels))
        teacher = regularization.load_teacher(self, model, settings)
        return Prepared(
            feed, regularization.distil_representations(loss_of_output, teacher, settings.distillation.weight)
        )

    def _embeddings_of_base(self, chunks: Chunks, alike: PreTrainedModel) -> np.ndarray:
        computed_in = precision.of_scores(alike)
        if computed_in not in self._embeddings:
            parts = "fsdp2" if next(alike.parameters()).device.type == device().type else "fsdp2_offload"
            # Loading draws weights that are not used (a head's); training must not depend on when this is
            # done.
            with torch.random.fork_rng():
                self._embeddings[computed_in] = embed(
                    sharding.load(
                        self.load_original,
                        TrainingSettings(
                            precision=computed_in,
                            weights="bf16" if alike.dtype == torch.bfloat16 else "fp32",
                            sharding=parts if is_sharded(alike) else "none",
                        ),
                        is_shared=is_sharded(alike),
                    ),
                    chunks,
                )
            # One that was shared is part of a cycle, and training may begin now.
            free_memory()
        return self._embeddings[computed_in]


def _distance(embeddings: np.ndarray, original: np.ndarray) -> float:
    embeddings = embeddings.astype(np.float64)
    original = original.astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(original, axis=1)
    return float(1 - ((embeddings * original).sum(1) / np.maximum(lengths, 1e-12)).mean())
