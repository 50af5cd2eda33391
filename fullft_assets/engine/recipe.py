"""What differs between tasks: everything else about training, planning and the pilot is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from fullft_assets.engine.feed import Feed
from fullft_assets.settings import TrainingSettings

#: Windows of general text that tell which weights matter to it: an average over some hundred changes little with more.
MOST_IMPORTANT_TEXTS = 256
#: (model, inputs without labels, labels) -> the summed loss of a pass; the model may be wrapped.
TotalLoss = Callable[[torch.nn.Module, Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]


class Listener(Protocol):
    """The part of a progress that long forward work speaks to."""

    def raise_if_stopped(self) -> None:
        """End the work if it was asked to stop."""
        ...

    def step(self, done: int, total: int) -> None:
        """Take how far the work is."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A model's training, ready to begin.

    Attributes:
        feed: what it reads.
        total_loss: what it learns from; the loss of an optimizer step is the sum over its passes, divided by the labels that are not -100.
        about: what the checkpoint's metadata, the plan and the log say of it.
    """

    feed: Feed
    total_loss: TotalLoss
    about: dict[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """One task on one snapshot: which model is trained, what it is fed with, how it is scored."""

    #: The output head is not in the pretrained weights.
    has_new_head: bool

    @property
    def num_rows(self) -> int:
        """Rows that the pilot grows by; the first ones are a random draw."""
        ...

    def first(self, num_rows: int) -> Recipe:
        """Return the same with so many training rows."""
        ...

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        """Return the model as it is before training, on the CPU, in the format of `settings.weights`.

        It is the base model, or the fine-tuned one that training goes on from; what is new in it is drawn from torch's generator.
        """
        ...

    def load_original(self, settings: TrainingSettings) -> PreTrainedModel:
        """Return the base model, likewise: what is held on to. A new head of it means nothing."""
        ...

    def prepare(self, model: PreTrainedModel, settings: TrainingSettings, seed: int, num_processes: int) -> Prepared:
        """Plan what a loaded model reads.

        Args:
            model: as `load` returned it, frozen where the settings say so.
            settings: batch sizes and epochs.
            seed: of the order.
            num_processes: processes that share a batch.

        Raises:
            DataError, SettingsError: the model cannot be trained on it.
        """
        ...

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return `loss` and each metric of the task on the validation rows; nan where the model's outputs are not finite.

        Args:
            model: not wrapped; its mode is restored.
            listener: told how far it is; what it raises ends the scoring.
        """
        ...

    def score_general(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return what the general set says of a model: one of `training.GENERAL_MEASURES` by its name; nothing where there is none.

        Args:
            model: not wrapped; its mode is restored.
            listener: told how far it is; what it raises ends the scoring.
        """
        ...

    def finish(self, model: PreTrainedModel, listener: Listener) -> dict[str, Any]:
        """Fix what a trained model needs beside its weights into its configuration, and return what metadata says of that.

        Args:
            model: with its final weights; its mode is restored.
            listener: told how far it is.
        """
        ...

    def log_likelihoods(self, model: PreTrainedModel, seed: int) -> Iterator[torch.Tensor]:
        """Yield a scalar of each general or replayed text, at most `MOST_IMPORTANT_TEXTS`, whose squared gradients add up to what matters to it.

        Args:
            model: the base model, on its device, not in training.
            seed: of what is drawn.
        """
        ...

    def cheaper_ways(self, folder: Path, listener: Listener) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield the name of each cheaper way, cheapest first, and its metrics on the validation rows.

        Args:
            folder: where what each has learned is saved.
            listener: told how far it is.
        """
        ...
