"""Training on packed rows: the tasks sft and language_modeling.

A row holds several documents; position ids that restart tell the model where each begins, without an attention mask and
without a cache. The loss of an optimizer step is the mean over its trained tokens, however many rows, passes and
processes they lie in. Which row comes when is planned ahead, so a resumed run reads on where it was. A model that does
not keep documents apart (`isolation`) gets each on a row of its own instead, beside others of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Training
from fullft_assets.workloads import isolation, packed_rows, precision
from fullft_assets.workloads.inference import device
from fullft_assets.workloads.isolation import Isolation
from fullft_assets.workloads.packed_rows import Batch, Feed, Pieces
from fullft_assets.workloads.token_loss import IGNORED, TokenLoss

#: A row has room for three documents of two tokens, or nothing can be tried on it.
_LEAST_CAPACITY = 6
#: Enough to see what a model does to its logits.
_SHOWN_TOKENS = 32


class TokenLossMixin:
    """Of a Trainer: the loss is the mean over the trained tokens of the whole optimizer step, computed for them alone.

    Args:
        token_loss: how the sum over them is computed.
    """

    def __init__(self, *args: Any, token_loss: TokenLoss, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._token_loss = token_loss
        # Has Trainer count the trained tokens of all passes and processes of a step, and not divide the loss again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """Return a pass's part of the mean; logits are not among the outputs: they never exist together."""
        labels = inputs["labels"]
        total = self._token_loss.total(model, {name: value for name, value in inputs.items() if name != "labels"}, labels)
        count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        # A step may hold nothing but prompts.
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over the processes, and `count` is of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss.detach()}) if return_outputs else loss


class PackedTrainer(TokenLossMixin, Trainer):
    """transformers' Trainer with that loss."""


@dataclass(frozen=True)
class Prepared:
    """A Trainer that is ready to train, or to resume.

    Attributes:
        trainer: call `train(resume_from_checkpoint=...)`.
        isolation: what the probe found; not isolated: rows are padded.
        tokens_of_steps: [steps] useful tokens of each optimizer step, over all processes, padding not counted.
        token_loss: how the loss is computed.
    """

    trainer: Trainer
    isolation: Isolation
    tokens_of_steps: np.ndarray
    token_loss: TokenLoss

    @property
    def num_steps(self) -> int:
        """Planned optimizer steps."""
        return len(self.tokens_of_steps)

    @torch.no_grad()
    def mean_loss(self, model: torch.nn.Module, held_out: Training, rows_a_pass: int) -> float:
        """Return the mean loss over the trained tokens of other documents; the model's mode is restored.

        Args:
            model: the Trainer's, wrapped or not.
            held_out: packed as the training rows are.
            rows_a_pass: rows of a forward pass.
        """
        feed = _feed(self.trainer.accelerator.unwrap_model(model), Pieces(held_out), self.isolation, rows_a_pass, rows_a_pass)
        total, count, is_training = 0.0, 0, model.training
        place = next(model.parameters()).device
        model.eval()
        try:
            for batch in feed.batches():
                labels = batch.pop("labels").to(place)
                inputs = {name: value.to(place) for name, value in batch.items()}
                with self.trainer.compute_loss_context_manager():
                    total += self.token_loss.total(model, inputs, labels).item()
                count += int((labels[:, 1:] != IGNORED).sum())
        finally:
            model.train(is_training)
        return total / max(1, count)


def prepare(
    model: PreTrainedModel,
    training: Training,
    settings: TrainingSettings,
    output_folder: Path,
    *,
    seed: int,
    num_processes: int = 1,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: Callable[..., Trainer] = PackedTrainer,
    **arguments: Any,
) -> Prepared:
    """Probe a model and return what trains it on packed rows, or, where it leaks, on padded ones.

    Rows of the plan are what `batch_size` and `micro_batch_size` count. A padded pass takes at most as many tokens,
    padding included, as a packed one has room for.

    Args:
        model: a causal language model, not wrapped; it is moved to the accelerator, if there is one.
        training: of the snapshot.
        settings: hyperparameters.
        output_folder: of checkpoints.
        seed: of the order of the later epochs, and of dropout.
        num_processes: processes that share a batch.
        callbacks: of the Trainer.
        trainer_class: makes a Trainer with `TokenLossMixin`.
        arguments: for TrainingArguments, in place of the settings' own.

    Raises:
        DataError: there is no row or no trained token, or a token is not in the model's vocabulary.
        SettingsError: the batch cannot be divided as asked, or the rows are longer than the model takes.
    """
    pieces = Pieces(training)
    _check(model, pieces)
    passes_a_step = _passes_a_step(settings, num_processes)
    model.to(device())
    found = isolation.probe(model, pieces.plan.capacity, seed=seed)
    feed = _feed(model, pieces, found, settings.micro_batch_size, settings.batch_size, settings.epochs, seed, num_processes)
    tokens_of_steps = np.add.reduceat(feed.tokens_of_passes, np.arange(0, feed.num_passes, passes_a_step * num_processes))
    token_loss = _token_loss(model, next(feed.batches()), settings)
    trainer = trainer_class(
        model=model,
        args=_arguments(settings, seed, output_folder, feed.items_a_pass, passes_a_step, len(tokens_of_steps), arguments),
        train_dataset=feed.dataset,
        data_collator=feed.collate,
        callbacks=list(callbacks),
        token_loss=token_loss,
    )
    return Prepared(trainer, found, tokens_of_steps, token_loss)


def _feed(
    model: PreTrainedModel,
    pieces: Pieces,
    found: Isolation,
    rows_a_pass: int,
    rows_a_batch: int,
    epochs: float = 1.0,
    seed: int = 0,
    num_processes: int = 1,
) -> Feed:
    pad_id = next(i for i in (model.config.pad_token_id, model.config.eos_token_id, 0) if isinstance(i, int))
    if not found.is_isolated:
        return packed_rows.padded(pieces, rows_a_pass, rows_a_batch, epochs, seed, pad_id, num_processes=num_processes)
    is_flat = isolation.needs_flat_rows(model)
    return packed_rows.packed(pieces, rows_a_pass, epochs, seed, pad_id, num_processes=num_processes, is_flat=is_flat)


def _token_loss(model: PreTrainedModel, batch: Batch, settings: TrainingSettings) -> TokenLoss:
    shown = {name: value[:1, :_SHOWN_TOKENS].to(model.device) for name, value in batch.items() if name != "labels"}
    with precision.autocast(precision.resolve(settings.precision)):
        return TokenLoss(model, shown)


def _check(model: PreTrainedModel, pieces: Pieces) -> None:
    plan = pieces.plan
    if not len(pieces):
        raise DataError("the snapshot has no training row; deliver documents, or lower snapshot.test_share and validation_share")
    if not pieces.num_trained_tokens:
        raise DataError("the snapshot's training rows have no trained token; look at chunks.train_on and at the assistant turns")
    known = model.get_input_embeddings().num_embeddings
    if pieces.largest_id >= known:
        raise DataError(
            f"the snapshot holds token {pieces.largest_id:,}, the model knows {known:,}: its tokenizer is not base_model's; "
            "take the snapshot again"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and int(plan.length.max()) > longest:
        raise SettingsError(f"chunks.max_tokens: {int(plan.length.max()):,} is more than the {longest:,} positions of base_model")
    if plan.capacity < _LEAST_CAPACITY:
        raise SettingsError(f"chunks.max_tokens: rows of {plan.capacity} tokens are too short to hold several documents")


def _passes_a_step(settings: TrainingSettings, num_processes: int) -> int:
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes ({rows_a_pass})")
    return settings.batch_size // rows_a_pass


def _arguments(
    settings: TrainingSettings,
    seed: int,
    output_folder: Path,
    items_a_pass: int,
    passes_a_step: int,
    num_steps: int,
    changes: Mapping[str, Any],
) -> TrainingArguments:
    chosen = precision.resolve(settings.precision)
    arguments: dict[str, Any] = {
        "output_dir": str(output_folder),
        "max_steps": num_steps,
        "per_device_train_batch_size": items_a_pass,
        "gradient_accumulation_steps": passes_a_step,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": round(settings.warmup_share * num_steps),
        "weight_decay": settings.weight_decay,
        "optim": "adamw_torch_fused",
        "max_grad_norm": settings.max_grad_norm,
        "bf16": chosen == "bf16",
        "fp16": chosen == "fp16",
        "activation_checkpointing": settings.gradient_checkpointing,
        # The plan is the order.
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "logging_steps": 1,
        # The default hides NaN losses behind the running mean.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every_steps,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
    }
    return TrainingArguments(**arguments | changes)
