"""A task's recipe: what differs between tasks in training, planning and the pilot."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from fullft_assets.models.inference import HeadWeights
from fullft_assets.progress import Listener
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.training.feed import Feed

#: Chunks of general text from which the importance of weights is estimated: an average over some hundred
#: changes little with more.
MAX_IMPORTANCE_TEXTS = 256
#: Training rows that a new head is fitted on: it only has to begin well.
MOST_HEAD_ROWS = 4_000
#: (model, inputs without labels, labels) -> the summed loss of a pass; the model may be wrapped.
TotalLoss = Callable[[torch.nn.Module, Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Prepared:
    """A model's training, ready to begin.

    Attributes:
        total_loss: the loss; that of an optimizer step is the sum over its passes, divided by the number of
            labels that are not -100.
        about: facts about the training for the checkpoint's metadata, the plan and the log.
    """

    feed: Feed
    total_loss: TotalLoss
    about: dict[str, Any] = field(default_factory=dict)


class Recipe(ABC):
    """One task on one snapshot: which model is trained, on which items, and how it is scored."""

    #: Whether the output head is new: not in the pretrained weights.
    has_new_head: ClassVar[bool]
    #: What a learning rate that is not set is multiplied by.
    rate_factor: ClassVar[int] = 1

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Training rows as the pilot counts them; the first ones are a random draw."""

    @abstractmethod
    def first(self, num_rows: int) -> "Recipe":
        """Return the same recipe with only the first training rows."""

    @abstractmethod
    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        """Return the model as it is before training, on the CPU, in the number format of `settings.weights`.

        It is the base model, or the fine-tuned one that training starts from; what is new in it is drawn from
        torch's generator.
        """

    @abstractmethod
    def load_original(self, settings: TrainingSettings) -> PreTrainedModel:
        """Return the base model in the same way, as the reference for regularization and distillation; its
        new head has no meaning.
        """

    def fit_head(
        self,
        model: PreTrainedModel,
        settings: TrainingSettings,
        listener: Listener,
        *,
        most_rows: int | None = MOST_HEAD_ROWS,
    ) -> HeadWeights | None:
        """Return weights of a new output layer that fit the training rows with all weights below frozen; None
        where no head is new.

        Linear probing, then fine-tuning: from a random head the first gradients distort what the base model
        knows (Kumar et al. 2022, arXiv:2202.10054).

        Args:
            model: as `load` returned it; it is moved to its device, its mode is restored.
            most_rows: that the fit reads, with some of each label; None: all.
        """
        return None

    @abstractmethod
    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> Prepared:
        """Plan the items that a loaded model reads, and its loss.

        Args:
            model: as `load` returned it; its frozen weights are frozen already.

        Raises:
            DataError, SettingsError: the model cannot be trained on these rows.
        """

    @abstractmethod
    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return `loss` and each metric of the task on the validation rows; nan where the model's outputs are
        not finite.

        Args:
            model: not wrapped; its mode is restored.
        """

    @abstractmethod
    def score_general(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return a model's score on the general set: one of `checkpoint.GENERAL_MEASURES` by its name;
        nothing without a general set.
        """

    def finish(self, model: PreTrainedModel, listener: Listener) -> dict[str, Any]:
        """Write what a trained model needs beside its weights into its configuration, and return that for the
        metadata.

        Args:
            model: with its final weights; its mode is restored.
        """
        return {}

    @abstractmethod
    def log_likelihoods(self, model: PreTrainedModel, seed: int) -> Iterator[torch.Tensor]:
        """Yield the log-likelihood of each general or replayed text, at most `MAX_IMPORTANCE_TEXTS`; EWC
        averages its squared gradients.

        Args:
            model: the base model, on its device, not in training.
        """

    @abstractmethod
    def predict(self, model: PreTrainedModel, rows: Split, listener: Listener) -> Any:
        """Return the predictions for rows of a model that `load` returned, in the form of a baseline's
        `predict`.
        """

    @abstractmethod
    def score_baselines(
        self, names: Sequence[str], folder: Path, context: Any
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Fit baselines, and yield the name of each and its metrics on the validation rows.

        Args:
            folder: where what each has learned is saved.
            context: a `tasks.baseline.BaselineContext`; the recipe adds itself, and what only it knows.
        """
