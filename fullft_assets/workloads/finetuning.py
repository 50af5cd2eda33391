"""Full fine-tuning on transformers' Trainer: planned order, atomic checkpoints, setbacks that are recovered from.

Used by the pilot (small) and by training (whole). Everything that decides the result is planned ahead
from the seed: the row order is a list, read from front to back, so a resumed run reads on where it was.
A run has one leg after the other: each setback (a guard rolls back, memory runs out) is written down in the
course and ends a leg, and the next one begins at the checkpoint that the course names, under its changes.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from fullft_assets.errors import DivergenceError, Interrupted, OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.workloads import layers, precision
from fullft_assets.workloads.checkpoints import STEP_LOG, StepLog, latest_checkpoint, publish, retain, room_needed, step_of
from fullft_assets.workloads.guards import Course, Incident
from fullft_assets.workloads.inference import collate, device, load_for_training
from fullft_assets.workloads.telemetry import Ending, Meter, Trackers, peak_flops, require, step_flops
from fullft_assets.workloads.watcher import RolledBack, Watcher, peak_memory_bytes

if TYPE_CHECKING:
    from fullft_assets.workloads.entry import Progress

# Silences the report on the classifier head, which is new by design, and the bars that a log cannot show.
logging.set_verbosity_error()
logging.disable_progress_bar()

#: Rows are shuffled, then sorted by length within pools of this many batches: random enough, little padding.
_POOL_BATCHES = 50
#: Folder inside the work folder in which a checkpoint is written.
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Fit:
    """What came out: the trained model and how it went.

    Attributes:
        model: the trained weights.
        step: after which the model had them: the last one, or with `keep_best` the best by validation loss.
        num_steps: steps taken; fewer than planned if a guard ended training early.
        num_tokens: useful tokens of these steps.
        seconds: of training, over all legs.
        resumed_from_step: where this process began.
        peak_memory_bytes: of this process.
        history: the step log.
        incidents: what made the run go on differently from planned.
        micro_batch_size: rows a forward pass at the end.
    """

    model: PreTrainedModel
    step: int
    num_steps: int
    num_tokens: int
    seconds: float
    resumed_from_step: int
    peak_memory_bytes: int
    history: list[dict[str, Any]]
    incidents: list[Incident]
    micro_batch_size: int


def planned_order(lengths: list[int], epochs: float, batch_size: int, seed: int) -> np.ndarray:
    """Return the positions to train on, in order, for all epochs together.

    Each epoch visits every position once, a last part of an epoch a random draw of them, in batches of
    similar length in random order. What does not fill a batch moves to the next epoch's pool, so batches
    stay aligned with lengths.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    total = max(1, round(epochs * len(lengths)))
    carried = np.empty(0, np.int64)
    planned: list[np.ndarray] = []
    count = 0
    while (missing := total - count - len(carried)) > 0:
        pool = np.concatenate([carried, rng.permutation(len(lengths))[:missing]])
        batches = []
        for start in range(0, len(pool), batch_size * _POOL_BATCHES):
            part = pool[start : start + batch_size * _POOL_BATCHES]
            part = part[np.argsort(-sizes[part], kind="stable")]
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size]
        carried = np.concatenate([b for b in batches if len(b) < batch_size] or [np.empty(0, np.int64)])
        planned += [full[i] for i in rng.permutation(len(full))]
        count = sum(map(len, planned))
    return np.concatenate([*planned, carried])


def fine_tune(
    base_model: Path,
    train: Split,
    validation: Split,
    labels: list[str],
    settings: TrainingSettings,
    seed: int,
    work_folder: Path,
    progress: Progress,
    *,
    added_tokens: Sequence[str] = (),
    num_processes: int = 1,
    evaluate_at: tuple[int, ...] | None = None,
    resumable: bool = True,
) -> Fit:
    """Train every weight of a classifier.

    Args:
        base_model: a transformers folder with safetensors.
        train: rows to learn from; each window is one training row.
        validation: rows scored on the way.
        labels: label order of the model's outputs.
        settings: hyperparameters.
        seed: of head initialisation, order and dropout.
        work_folder: checkpoints and the step log; a valid checkpoint found there is resumed from.
        progress: told of each logged step; asked whether to stop.
        added_tokens: tokens of the windows that the base model's tokenizer did not have.
        num_processes: processes that share the batch.
        evaluate_at: steps after which validation rows are scored. Default: twice an epoch and at the end.
        resumable: write checkpoints; one takes three times the weights' space.

    Raises:
        SettingsError: the batch cannot be divided as asked, or more layers are frozen than there are.
        DivergenceError: a guard stopped the run, or its weights are not finite.
        OutOfMemory: a single row does not fit.
        DiskError: there is no room for a checkpoint; the last one is intact.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    accumulation_steps(settings, num_processes)
    rows, lengths = _planned_rows(train, settings, seed)
    num_steps = -(-len(rows) // settings.batch_size)
    if evaluate_at is None:
        half_epoch = max(1, round(len(rows) / settings.epochs / settings.batch_size / 2))
        evaluate_at = tuple(range(half_epoch, num_steps - half_epoch // 2, half_epoch))
    if resumable:
        require(settings.track)
    course = Course(work_folder, is_writer=_is_first_rank())
    work = _Work(
        base_model=base_model,
        train=train,
        validation=validation,
        labels=labels,
        settings=settings,
        seed=seed,
        folder=work_folder,
        progress=progress,
        added_tokens=added_tokens,
        num_processes=num_processes,
        evaluate_at={*evaluate_at, num_steps},
        resumable=resumable,
        rows=rows,
        tokens=np.add.reduceat(lengths, np.arange(0, len(lengths), settings.batch_size)),
        lengths=lengths,
        course=course,
    )
    began_at = None
    while True:
        leg = _Leg(work)
        began_at = leg.first_step if began_at is None else began_at
        try:
            return replace(leg.run(), resumed_from_step=began_at)
        except RolledBack:
            pass
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            leg.halve_micro_batches()
        # The exception is gone here, and with it the frames that held the tensors of the failed pass.
        del leg
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Work:
    """What all legs of a run share; see `fine_tune`. `rows` stand in training order, `tokens` are of each step, `lengths` of each row."""

    base_model: Path
    train: Split
    validation: Split
    labels: list[str]
    settings: TrainingSettings
    seed: int
    folder: Path
    progress: Progress
    added_tokens: Sequence[str]
    num_processes: int
    evaluate_at: set[int]
    resumable: bool
    rows: Dataset
    tokens: np.ndarray
    lengths: np.ndarray
    course: Course

    @property
    def num_steps(self) -> int:
        """Planned optimizer steps."""
        return len(self.tokens)


class _Leg:
    """Training from where the course says to the end, or to the next setback. One is built for each."""

    def __init__(self, work: _Work):
        self.work, self.course = work, work.course
        changes = {"micro_batch_size": work.course.micro_batch_size, "learning_rate": work.course.learning_rate}
        self.settings = work.settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
        self.checkpoint = latest_checkpoint(work.folder) if work.resumable else None
        #: Step of the checkpoint that this leg begins at; 0 = the base model.
        self.first_step = step_of(self.checkpoint) if self.checkpoint else 0
        set_seed(work.seed)
        self.model = load_for_training(work.base_model, work.labels, self.settings.attention_dropout, work.added_tokens)
        layers.freeze(self.model, self.settings)
        self.watcher = self._watcher()
        self.trainer = self._trainer()

    def run(self) -> Fit:
        """Train to the end; see `fine_tune`."""
        if self.checkpoint:
            self.work.progress.say(f"resuming at step {self.first_step} of {self.work.num_steps} ({self.checkpoint.name})")
        ending: Ending = "FAILED"
        try:
            self._train()
            fit = self._fit()
            ending = "FINISHED"
            return fit
        except RolledBack:
            ending = "RUNNING"
            raise
        except Interrupted:
            ending = "KILLED"
            raise
        finally:
            self.watcher.trackers.close(ending)

    def _train(self) -> None:
        trainer, watcher = self.trainer, self.watcher
        if self.work.resumable and _is_first_rank():
            # Before the first save: what a killed run left, and what is kept no longer, may be the room that it needs.
            shutil.rmtree(self.work.folder / _UNFINISHED, ignore_errors=True)
            retain(self.work.folder, self.course, newest=self.settings.keep_checkpoints, best=watcher.log.best_step())
        watcher.begin()
        # A stop cut the scoring short after which this checkpoint was written.
        was_scored = any("validation_loss" in line and line["step"] == self.first_step for line in watcher.log.lines)
        is_at_end = self.first_step >= (self.course.end_step or self.work.num_steps)
        if self.checkpoint and (is_at_end or (self.first_step in self.work.evaluate_at and not was_scored)):
            trainer._load_from_checkpoint(str(self.checkpoint))
            if not was_scored:
                watcher.validate(self.first_step, trainer.model)
                is_at_end = self.first_step >= (self.course.end_step or self.work.num_steps)
        if not is_at_end and not watcher.stopped:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if watcher.stopped:
            where = f"stopped at step {max(self.first_step, trainer.state.global_step)} of {self.work.num_steps}"
            again = "resume there" if self.work.resumable else "start this part again"
            raise Interrupted(f"{where}; run the same command to {again}")

    def _fit(self) -> Fit:
        trainer, log = self.trainer, self.watcher.log
        seconds = self.watcher.seconds
        step = num_steps = max(self.first_step, trainer.state.global_step)
        best = log.best_step()
        if self.settings.keep_best and self.work.resumable and best is not None and best != step:
            trainer._load_from_checkpoint(str(self.work.folder / f"checkpoint-{best}"))
            step = best
        final = next(line for line in reversed(log.lines) if "validation_loss" in line and line["step"] == step)
        if not math.isfinite(final["validation_loss"]):
            raise DivergenceError(f"the weights after step {step:,} are not finite; lower training.learning_rate or use precision fp32")
        return Fit(
            model=trainer.accelerator.unwrap_model(trainer.model),
            step=step,
            num_steps=num_steps,
            num_tokens=int(self.work.tokens[:num_steps].sum()),
            seconds=seconds,
            resumed_from_step=self.first_step,
            peak_memory_bytes=peak_memory_bytes(),
            history=log.lines,
            incidents=self.course.incidents,
            micro_batch_size=self.settings.micro_batch_size,
        )

    def halve_micro_batches(self) -> None:
        """Write down that the next leg takes smaller micro-batches, and so more of them: the effective batch stays.

        Raises:
            OutOfMemory: there are no smaller ones; or one of several processes ran out, which leaves the others waiting.
        """
        size, processes, step = self.settings.micro_batch_size, self.work.num_processes, self.trainer.state.global_step
        smaller = next((n for n in range(size // 2, 0, -1) if self.settings.batch_size % (n * processes) == 0), None)
        if smaller is None:
            raise OutOfMemory(
                f"memory ran out at step {step + 1:,} with a single row a pass; set training.gradient_checkpointing, lower chunks.max_tokens "
                "or use a machine with more memory"
            )
        checkpoint = latest_checkpoint(self.work.folder) if self.work.resumable else None
        reason = f"memory ran out with {size:,} rows a pass"
        incident = Incident(
            "out_of_memory",
            step + 1,
            step_of(checkpoint) if checkpoint else 0,
            reason,
            round(self.watcher.seconds, 3),
            micro_batch_size=smaller,
        )
        self.course.add(incident, alone=processes > 1)
        if processes > 1:
            raise OutOfMemory(f"{reason} in one of {processes} processes; run the same command to go on with {smaller:,}")
        self.work.progress.say(f"step {step + 1:,}: {reason}; going on from step {incident.to_step:,} with {smaller:,}, the same batch")

    def _watcher(self) -> Watcher:
        work, is_first = self.work, _is_first_rank()
        log = StepLog(work.folder / STEP_LOG, self.first_step, is_writer=is_first, incidents=self.course.incidents)
        track = self.settings.track if is_first and work.resumable else []
        return Watcher(
            self.settings,
            work.progress,
            log,
            self.course,
            Trackers(track, work.folder, self.first_step, self.settings.model_dump(exclude={"guards", "track"}), work.progress),
            self._meter(),
            work.validation,
            work.evaluate_at,
            num_steps=work.num_steps,
            resumable=work.resumable,
        )

    def _meter(self) -> Meter:
        config, work = self.model.config, self.work
        embedded = {
            id(parameter) for module in self.model.modules() if isinstance(module, torch.nn.Embedding) for parameter in module.parameters()
        }
        weights = [parameter for parameter in self.model.parameters() if id(parameter) not in embedded]
        flops = step_flops(
            work.lengths,
            self.settings.batch_size,
            num_weights=sum(parameter.numel() for parameter in weights),
            num_trained=sum(parameter.numel() for parameter in weights if parameter.requires_grad),
            num_layers=getattr(config, "num_hidden_layers", 0),
            hidden=getattr(config, "hidden_size", 0),
        )
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peak = peak_flops(card, precision.resolve(self.settings.precision))
        return Meter(work.tokens, flops, None if peak is None else peak * work.num_processes)

    def _trainer(self) -> _Trainer:
        work = self.work
        accumulation = accumulation_steps(self.settings, work.num_processes)
        arguments = _arguments(self.settings, work.seed, work.folder, accumulation, num_steps=work.num_steps, resumable=work.resumable)
        pad_id = self.model.config.pad_token_id or 0
        trainer = _Trainer(
            model=self.model,
            args=arguments,
            train_dataset=work.rows,
            data_collator=lambda rows: _collate(rows, pad_id),
            callbacks=[self.watcher],
            compute_loss_func=_loss(work.train, len(work.labels) if self.settings.balance_labels else None),
            leg=self,
        )
        trainer.remove_callback(PrinterCallback)  # the watcher speaks
        if self.settings.l2_sp:
            trainer.add_callback(_Pull(self.model, self.settings.l2_sp))
        return trainer


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step.

    Raises:
        SettingsError: the batch cannot be divided so.
    """
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes ({rows_a_pass})")
    return settings.batch_size // rows_a_pass


def _planned_rows(train: Split, settings: TrainingSettings, seed: int) -> tuple[Dataset, np.ndarray]:
    """Return the training rows in their order, and their lengths."""
    windows = [window for document in train.windows for window in document]
    labels = [int(label) for label, document in zip(train.labels, train.windows, strict=True) for _ in document]
    lengths = np.array([len(window) for window in windows])
    order = planned_order(lengths.tolist(), settings.epochs, settings.batch_size, seed)
    return Dataset.from_dict({"input_ids": windows, "labels": labels}).select(order), lengths[order]


def _arguments(
    settings: TrainingSettings, seed: int, work_folder: Path, accumulation: int, *, num_steps: int, resumable: bool
) -> TrainingArguments:
    chosen = precision.resolve(settings.precision)
    return TrainingArguments(
        output_dir=str(work_folder),
        max_steps=num_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=round(settings.warmup_share * num_steps),
        weight_decay=settings.weight_decay,
        optim="adamw_torch_fused",
        max_grad_norm=settings.max_grad_norm,
        bf16=chosen == "bf16",
        fp16=chosen == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        # The default hides NaN losses behind the running mean.
        logging_nan_inf_filter=False,
        save_strategy="steps" if resumable else "no",
        save_steps=settings.checkpoint_every_steps,
        save_total_limit=None,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
    )


def _collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    return {**collate([row["input_ids"] for row in rows], pad_id), "labels": torch.tensor([row["labels"] for row in rows])}


def _loss(train: Split, balanced_labels: int | None):
    """Return the cross-entropy of a micro-batch as its part of the whole batch's mean.

    A model's own loss is the mean over the micro-batch, and Trainer takes it for that part: with accumulation
    the gradients, and the logged loss, would come out as many times too large as there are micro-batches.

    Args:
        train: the rows; each window counts, as each is a training row.
        balanced_labels: number of labels, to weight each by its inverse frequency; None = no weights.
    """
    weights = None
    if balanced_labels is not None:
        counts = np.bincount(np.repeat(train.labels, [len(document) for document in train.windows]), minlength=balanced_labels)
        weights = torch.tensor(counts.sum() / (balanced_labels * counts), dtype=torch.float32, device=device())

    def loss(outputs, targets, num_items_in_batch=None):
        total = torch.nn.functional.cross_entropy(outputs.logits.float(), targets, weight=weights, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else len(targets))

    return loss


class _Pull(TrainerCallback):
    """L2-SP: adds the pull to the start to the gradients, after clipping."""

    def __init__(self, model: PreTrainedModel, strength: float):
        self._anchor = layers.Anchor(model, strength)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._anchor.pull(model)


class _Trainer(Trainer):
    """Trainer whose checkpoints exist whole or not at all, with a rate for each depth of the model."""

    def __init__(self, *args: Any, leg: _Leg, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._leg = leg
        self._rates: list[float] = []

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = self.model if model is None else model
            groups = layers.groups(trained, self.get_decay_parameter_names(trained), self._leg.settings)
            self._rates = [group["lr"] for group in groups]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # The checkpoint's rates may be those of before a roll-back.
        scheduler = self.lr_scheduler
        scheduler.base_lrs = list(self._rates)
        scheduler._last_lr = [rate * shape(scheduler.last_epoch) for rate, shape in zip(self._rates, scheduler.lr_lambdas, strict=True)]
        for group, base, rate in zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler._last_lr, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = super().get_batch_samples(*args, **kwargs)
        self._leg.watcher.meter.waited(time.perf_counter() - began)
        return found

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # Trainer's own count walks over all parameters in every pass, and takes padding for work.
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer would keep every line in its state and write all of them into every checkpoint; the step log has them.
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes into the final folder, and a run killed meanwhile would resume from the torn one.
        folder, leg = Path(self.args.output_dir), self._leg
        aside = folder / _UNFINISHED
        self.args.output_dir = str(aside)
        try:
            with room_needed(folder, f"the checkpoint of step {self.state.global_step:,}"):
                super()._save_checkpoint(model, trial)
                # Every rank writes a file of its own (its random state); the seal must find them all.
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    leg.watcher.log.sync()
                    written = aside / f"checkpoint-{self.state.global_step}"
                    publish(
                        written,
                        folder / written.name,
                        num_incidents=len(leg.course.incidents),
                        is_planned=leg.watcher.save_is_planned,
                    )
                    retain(folder, leg.course, newest=leg.settings.keep_checkpoints, best=leg.watcher.log.best_step())
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # what found no room gives back what it took
            raise
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder of unfinished work; a second process is refused instead of writing into it.

    Of several ranks the first one holds it for all.

    Raises:
        SettingsError: another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"{folder}: another process is at this work; wait for it or stop it") from None
        yield
