"""Full fine-tuning on transformers' Trainer: planned order, atomic checkpoints, step log, guards.

Used by the pilot (small) and by training (whole). Everything that decides the result is planned ahead
from the seed: the row order is a list, read from front to back, so a resumed run reads on where it was.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score, log_loss
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from fullft_assets.errors import DivergenceError, Interrupted, SettingsError
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Split
from fullft_assets.workloads import precision
from fullft_assets.workloads.inference import collate, device, load_for_training, predict_with

if TYPE_CHECKING:
    from fullft_assets.workloads.entry import Progress

# Silences the report on the classifier head, which is new by design, and the bars that a log cannot show.
logging.set_verbosity_error()
logging.disable_progress_bar()

SEAL = "complete.json"
STEP_LOG = "metrics.jsonl"
_LOG_EVERY_STEPS = 5
#: Rows are shuffled, then sorted by length within pools of this many batches: random enough, little padding.
_POOL_BATCHES = 50


@dataclass(frozen=True)
class Fit:
    """What came out: the trained model and how it went; `seconds` count the legs before a resume, too."""

    model: PreTrainedModel
    num_steps: int
    num_tokens: int
    seconds: float
    resumed_from_step: int
    peak_memory_bytes: int
    history: list[dict[str, Any]]


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
        num_processes: processes that share the batch.
        evaluate_at: steps after which validation rows are scored. Default: twice an epoch and at the end.
        resumable: write checkpoints; one takes three times the weights' space.

    Raises:
        SettingsError: the batch cannot be divided as asked.
        DivergenceError: the loss is not finite.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    set_seed(seed)
    accumulation = accumulation_steps(settings, num_processes)
    model = load_for_training(base_model, labels, settings.attention_dropout)
    dataset, order, num_tokens = _planned_dataset(train, settings, seed)
    checkpoint = latest_checkpoint(work_folder)
    resumed_from = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    num_steps = -(-len(order) // settings.batch_size)
    arguments = _arguments(settings, seed, work_folder, accumulation, num_steps=num_steps, resumable=resumable)
    log = StepLog(work_folder / STEP_LOG, resumed_from, is_writer=arguments.process_index == 0)
    if evaluate_at is None:
        half_epoch = max(1, round(len(order) / settings.epochs / settings.batch_size / 2))
        evaluate_at = tuple(range(half_epoch, arguments.max_steps - half_epoch // 2, half_epoch))
    watcher = _Watcher(progress, log, validation, {*evaluate_at, arguments.max_steps}, num_tokens / arguments.max_steps)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=lambda rows: _collate(rows, model.config.pad_token_id or 0),
        callbacks=[watcher],
        compute_loss_func=_loss(train, len(labels) if settings.balance_labels else None),
        keep=settings.keep_checkpoints,
    )
    trainer.remove_callback(PrinterCallback)  # the watcher speaks
    if checkpoint:
        progress.say(f"resuming at step {resumed_from} of {arguments.max_steps} ({checkpoint.name})")
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = log.seconds_before + time.monotonic() - started
    if watcher.stopped:
        where = f"stopped at step {trainer.state.global_step} of {arguments.max_steps}"
        raise Interrupted(f"{where}; run the same command to {'resume there' if resumable else 'start this part again'}")
    return Fit(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.state.global_step,
        num_tokens,
        seconds,
        resumed_from,
        peak_memory_bytes(),
        log.read(),
    )


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step.

    Raises:
        SettingsError: the batch cannot be divided so.
    """
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes ({rows_a_pass})")
    return settings.batch_size // rows_a_pass


def _planned_dataset(train: Split, settings: TrainingSettings, seed: int) -> tuple[Dataset, np.ndarray, int]:
    windows = [window for document in train.windows for window in document]
    labels = [int(label) for label, document in zip(train.labels, train.windows, strict=True) for _ in document]
    order = planned_order([len(window) for window in windows], settings.epochs, settings.batch_size, seed)
    dataset = Dataset.from_dict({"input_ids": windows, "labels": labels}).select(order)
    return dataset, order, int(np.array([len(w) for w in windows])[order].sum())


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
        logging_steps=_LOG_EVERY_STEPS,
        logging_first_step=True,
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


class _Trainer(Trainer):
    """Trainer whose checkpoints exist whole or not at all."""

    def __init__(self, *args: Any, keep: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._keep = keep

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes into the final folder, and a run killed meanwhile would resume from the torn one.
        folder = Path(self.args.output_dir)
        aside = folder / "unfinished"
        self.args.output_dir = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        # Every rank writes a file of its own (its random state); the seal must find them all.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = aside / f"checkpoint-{self.state.global_step}"
            seal(written)
            target = folder / written.name
            shutil.rmtree(target, ignore_errors=True)
            written.rename(target)
            for old in _checkpoints(folder)[: -self._keep]:
                shutil.rmtree(old)


def seal(folder: Path) -> None:
    """Sync a checkpoint's files and write the list of them that marks it as whole."""
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    with (folder / SEAL).open("w") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None."""
    for checkpoint in reversed(_checkpoints(folder)):
        seal_file = checkpoint / SEAL
        if seal_file.is_file():
            files = json.loads(seal_file.read_text())
            if all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in files.items()):
                return checkpoint
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


class StepLog:
    """The step metrics as JSON lines; on resume, lines after the checkpoint are dropped and new ones appended.

    Args:
        path: the file.
        resumed_from: step of the checkpoint; 0 = a new start.
        is_writer: False on every rank but the first, which only reads.
    """

    def __init__(self, path: Path, resumed_from: int, *, is_writer: bool = True):
        self.path, self.is_writer = path, is_writer
        lines = self.read()
        #: Training seconds of the legs before this one, work that a kill undid included: it was paid for, too.
        self.seconds_before = max((line.get("seconds", 0.0) for line in lines), default=0.0)
        if is_writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".partial")
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= resumed_from))
            aside.replace(path)

    def append(self, line: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        if self.is_writer:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; one torn by a kill is left out."""
        try:
            written = self.path.read_text()
        except FileNotFoundError:  # a new start; or the first rank is done and has tidied up
            return []
        lines = []
        for text in written.splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines


class _Watcher(TrainerCallback):
    """Logs, validates, guards, and turns a stop request into a checkpoint."""

    def __init__(self, progress: Progress, log: StepLog, validation: Split, evaluate_at: set[int], tokens_a_step: float):
        self.progress, self.log, self.validation = progress, log, validation
        self.evaluate_at, self.tokens_a_step = evaluate_at, tokens_a_step
        self.stopped = False
        self._started: tuple[float, int] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._started = (time.monotonic(), state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        # In fp16 the loss scaler tries a scale, skips the step that overflows, and lowers it: not a divergence.
        norm = 0.0 if args.fp16 else logs.get("grad_norm", 0.0)
        if not math.isfinite(logs["loss"]) or not math.isfinite(norm):
            raise _divergence(f"loss {logs['loss']}, gradient norm {logs.get('grad_norm')} at step {state.global_step}")
        began, first = self._started
        spent = time.monotonic() - began
        speed = self.tokens_a_step * (state.global_step - first) / max(1e-9, spent)
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round(speed, 1),
            "seconds": round(self.log.seconds_before + spent, 3),
        }
        self.log.append(line)
        self.progress.step(state.global_step, state.max_steps, loss=logs["loss"], tokens_per_second=speed)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.evaluate_at:
            scores = score(model, self.validation)
            self.log.append({"step": state.global_step, **{f"validation_{k}": v for k, v in scores.items()}})
            self.progress.say(f"step {state.global_step}: validation " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        if state.global_step < state.max_steps and self._all_ranks_stop():
            self.stopped = control.should_training_stop = True
            control.should_save = args.save_strategy != "no"

    def _all_ranks_stop(self) -> bool:
        if not torch.distributed.is_initialized():
            return self.progress.stop_requested
        # Ranks hear of a stop at different steps; one that saved alone would wait for the others for ever.
        flag = torch.tensor(int(self.progress.stop_requested), device=device())
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


def _divergence(what: str) -> DivergenceError:
    return DivergenceError(f"training diverged: {what}; lower training.learning_rate or use precision fp32")


def score(model: PreTrainedModel, split: Split) -> dict[str, float]:
    """Return loss, accuracy and macro-F1 of a model on a split.

    Raises:
        DivergenceError: the model's outputs are not finite.
    """
    inner = getattr(model, "module", model)
    found = predict_with(inner, split.windows).probabilities
    if not np.isfinite(found).all():
        raise _divergence("the model's outputs on the validation rows are not finite")
    predicted = found.argmax(1)
    clipped = np.clip(found.astype(np.float64), 1e-7, None)
    return {
        "loss": float(log_loss(split.labels, clipped / clipped.sum(1, keepdims=True), labels=list(range(found.shape[1])))),
        "accuracy": float(accuracy_score(split.labels, predicted)),
        "macro_f1": float(f1_score(split.labels, predicted, average="macro", zero_division=0)),
    }


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: the accelerator's, or on a CPU the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
