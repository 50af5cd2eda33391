"""Full fine-tuning on transformers' Trainer: planned order, atomic checkpoints, setbacks that are recovered from.

Used by the pilot (small) and by training (whole), for every task: what differs between tasks is its recipe's. Everything that
decides the result is planned ahead from the seed: the order is a list, read from front to back, so a resumed run reads on where it was.
A run has one leg after the other: each setback (a guard rolls back, memory runs out) is written down in the
course and ends a leg, and the next one begins at the checkpoint that the course names, under its changes.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from fullft_assets.errors import DivergenceError, Interrupted, OutOfMemory, SettingsError, is_out_of_memory
from fullft_assets.settings import TrainingSettings
from fullft_assets.workloads import holding, layers, optimizers, precision, sharding
from fullft_assets.workloads.checkpoints import STEP_LOG, StepLog, latest_checkpoint, publish, retain, room_needed, step_of
from fullft_assets.workloads.feed import sums_between
from fullft_assets.workloads.forgetting import Forgetting
from fullft_assets.workloads.guards import Course, Incident
from fullft_assets.workloads.interpolation import Interpolated, interpolate
from fullft_assets.workloads.recipe import Recipe
from fullft_assets.workloads.telemetry import Ending, Meter, Shape, Trackers, peak_flops, require, step_flops
from fullft_assets.workloads.watcher import RolledBack, Watcher, peak_memory_bytes

if TYPE_CHECKING:
    from fullft_assets.workloads.entry import Progress

# Silences the report on the classifier head, which is new by design, and the bars that a log cannot show.
logging.set_verbosity_error()
logging.disable_progress_bar()

#: Folder inside the work folder in which a checkpoint is written.
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Fit:
    """What came out: the trained model and how it went.

    Attributes:
        model: the trained weights.
        step: after which the model had them: the last one, or with `keep_best` the best by validation loss; within the forgetting
            budget, if there is one.
        num_steps: steps taken; fewer than planned if a guard ended training early.
        num_tokens: useful tokens of these steps.
        seconds: of training, over all legs.
        resumed_from_step: where this process began.
        peak_memory_bytes: of this process.
        history: the step log.
        incidents: what made the run go on differently from planned.
        micro_batch_size: rows a forward pass at the end.
        about: what the recipe says of the training.
        scores: of the model: `validation_loss` and others, and what the general set says.
        interpolated: how the model's weights lie between the base model's and those after `step`; None: they are the latter.
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
    about: dict[str, Any]
    scores: dict[str, float]
    interpolated: Interpolated | None = None


def fine_tune(
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
    work_folder: Path,
    progress: Progress,
    *,
    num_processes: int = 1,
    evaluate_at: Callable[[float], Iterable[int]] | Iterable[int] | None = None,
    resumable: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fit:
    """Train every weight of a model.

    Args:
        recipe: the task: model, rows and scores.
        settings: hyperparameters.
        seed: of what is new in the model, of the order and of dropout.
        work_folder: checkpoints and the step log; a valid checkpoint found there is resumed from.
        progress: told of each logged step; asked whether to stop.
        num_processes: processes that share the batch.
        evaluate_at: steps after which validation rows are scored, beside the last; or what names them, given the number of steps,
            of which the last one may be a part. Default: twice an epoch.
        resumable: write checkpoints; one takes three times the weights' space.
        callbacks: of the Trainer, beside its own.

    Raises:
        DataError, SettingsError: the recipe's model cannot be trained on its rows.
        SettingsError: the batch cannot be divided as asked, or more layers are frozen than there are.
        DivergenceError: a guard stopped the run, its weights are not finite, or none are within the forgetting budget.
        OutOfMemory: a single row does not fit.
        DiskError: there is no room for a checkpoint; the last one is intact.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    accumulation_steps(settings, num_processes)
    optimizers.require(settings, num_processes)
    sharding.require(settings, num_processes)
    if resumable:
        require(settings.track)
    if evaluate_at is not None and not callable(evaluate_at):
        evaluate_at = tuple(evaluate_at)
    work = _Work(
        recipe=recipe,
        settings=settings,
        seed=seed,
        folder=work_folder,
        progress=progress,
        num_processes=num_processes,
        evaluate_at=evaluate_at,
        resumable=resumable,
        callbacks=callbacks,
        course=Course(work_folder, is_writer=_is_first_rank()),
    )
    began_at = None
    while True:
        try:
            leg = _Leg(work)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            held = [name for name in ("distillation", "ewc", "l2_sp") if getattr(settings, name)]
            without = f"leave out training.{held[0]}, which holds a copy of the weights, " if held else ""
            raise OutOfMemory(
                f"memory ran out before the first step: the model itself does not fit; {without}set a lower training.optimizer and "
                "training.weights of the memory ladder, or use a machine with more memory"
            ) from error
        if began_at is None:
            began_at = leg.first_step
            for name, value in leg.prepared.about.items():
                progress.say(f"{name}: {value}")
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
    """What all legs of a run share; see `fine_tune`."""

    recipe: Recipe
    settings: TrainingSettings
    seed: int
    folder: Path
    progress: Progress
    num_processes: int
    evaluate_at: Callable[[float], Iterable[int]] | tuple[int, ...] | None
    resumable: bool
    callbacks: Sequence[TrainerCallback]
    course: Course


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
        self.model = work.recipe.load(self.settings)
        layers.freeze(self.model, self.settings)
        self.prepared = work.recipe.prepare(self.model, self.settings, work.seed, work.num_processes)
        feed = self.prepared.feed
        self._documents_of_steps = feed.bounds_of_steps(accumulation_steps(self.settings, work.num_processes) * work.num_processes)
        if self.settings.compile:
            layers.compile_below_head(self.model)
        #: [steps] useful tokens of each.
        self.tokens = sums_between(feed.lengths, self._documents_of_steps)
        self.num_steps = len(self.tokens)
        share = self.settings.unfreeze_share
        self.unfreezing = layers.Unfreezing(self.model, share, self.num_steps) if share else None
        self.evaluate_at = self._evaluations(feed.num_rows / self.settings.batch_size)
        self.watcher = self._watcher()
        self.trainer = self._trainer()

    def run(self) -> Fit:
        """Train to the end; see `fine_tune`."""
        if self.checkpoint:
            self.work.progress.say(f"resuming at step {self.first_step} of {self.num_steps} ({self.checkpoint.name})")
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
            retain(self.work.folder, self.course, newest=self.settings.keep_checkpoints, best=watcher.best_step())
        watcher.score_before(self.model)
        watcher.begin()
        # A stop cut the scoring short after which this checkpoint was written.
        was_scored = any("validation_loss" in line and line["step"] == self.first_step for line in watcher.log.lines)
        is_at_end = self.first_step >= (self.course.end_step or self.num_steps)
        if self.checkpoint and (is_at_end or (self.first_step in self.evaluate_at and not was_scored)):
            sharding.load(trainer, self.checkpoint)
            if not was_scored:
                watcher.validate(self.first_step, trainer.model)
                is_at_end = self.first_step >= (self.course.end_step or self.num_steps)
        if not is_at_end and not watcher.stopped:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if watcher.stopped:
            where = f"stopped at step {max(self.first_step, trainer.state.global_step)} of {self.num_steps}"
            again = "resume there" if self.work.resumable else "start this part again"
            raise Interrupted(f"{where}; run the same command to {again}")

    def _fit(self) -> Fit:
        trainer, log = self.trainer, self.watcher.log
        seconds = self.watcher.seconds
        step = num_steps = max(self.first_step, trainer.state.global_step)
        best, forgetting = self.watcher.best_step(), self.watcher.forgetting
        is_over = forgetting.max_rise is not None and forgetting.is_spent(_scores_of(log.lines, step))
        if is_over and (best is None or not self.work.resumable):
            raise forgetting.nothing_left(step)
        model = sharding.whole(trainer, lambda: self.work.recipe.load(self.settings))
        if (self.settings.keep_best or is_over) and self.work.resumable and best is not None and best != step:
            sharding.load(trainer, self.work.folder / f"checkpoint-{best}", model)
            step = best
        final = _scores_of(log.lines, step)
        if not math.isfinite(final["validation_loss"]):
            raise DivergenceError(f"the weights after step {step:,} are not finite; lower training.learning_rate or use precision fp32")
        interpolated = None
        if self.settings.wise_ft:
            self._free()
            interpolated = self._interpolate(model, step)
            final = interpolated.of_chosen
        return Fit(
            model=model,
            step=step,
            num_steps=num_steps,
            num_tokens=int(self.tokens[:num_steps].sum()),
            seconds=seconds,
            resumed_from_step=self.first_step,
            peak_memory_bytes=peak_memory_bytes(),
            history=log.lines,
            incidents=self.course.incidents,
            micro_batch_size=self.settings.micro_batch_size,
            about=self.prepared.about,
            scores={name: value for name, value in final.items() if name.startswith(("validation_", "general_"))},
            interpolated=interpolated,
        )

    def _free(self) -> None:
        """Let go of what only steps need, whoever still names the optimizer: its state and the anchors are copies of the weights."""
        if self.trainer.optimizer is not None:  # none where the last step was taken before this leg
            self.trainer.optimizer.state.clear()
        self.trainer.remove_callback(holding.Pull)

    def _interpolate(self, model: PreTrainedModel, step: int) -> Interpolated:
        """Put the best weights between the base model's and the trained ones into the model.

        Raises:
            DivergenceError: none are within the forgetting budget.
            Interrupted: a stop was requested.
        """
        work, log = self.work, self.watcher.log
        forgetting = Forgetting(work.recipe.score_general, self.settings.max_general_rise)

        def score() -> dict[str, float]:
            found = work.recipe.score(model, work.progress)
            return {f"validation_{name}": value for name, value in found.items()} | forgetting.score(model, log, work.progress)

        original = work.recipe.load_original(self.settings)
        alphas, has_new_head = self.settings.wise_ft, work.recipe.has_new_head
        found = interpolate(model, original, alphas, score, has_new_head=has_new_head, is_spent=forgetting.is_spent)
        if found is None:
            raise forgetting.nothing_left(step)
        for line in found.scores:
            told = ", ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "alpha")
            work.progress.say(f"{'chosen: ' if line['alpha'] == found.alpha else ''}{line['alpha']:g} of the fine-tuned weights: {told}")
        return found

    def halve_micro_batches(self) -> None:
        """Write down that the next leg takes smaller micro-batches, and so more of them: the effective batch stays.

        Raises:
            OutOfMemory: there are no smaller ones; or one of several processes ran out, which leaves the others waiting.
        """
        size, processes, step = self.settings.micro_batch_size, self.work.num_processes, self.trainer.state.global_step
        if self.settings.steps_in_backward:
            raise OutOfMemory(
                f"memory ran out at step {step + 1:,} with {size:,} rows a pass, and {self.settings.optimizer} cannot accumulate smaller ones; "
                "lower training.batch_size and micro_batch_size, or set training.gradient_checkpointing"
            )
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

    def _evaluations(self, num_steps: float) -> set[int]:
        """Return the steps after which validation rows are scored: the same in every leg, whatever its micro-batches."""
        asked = self.work.evaluate_at
        if asked is None:
            half_epoch = max(1, round(num_steps / self.settings.epochs / 2))
            asked = range(half_epoch, self.num_steps - half_epoch // 2, half_epoch)
        return {*(asked(num_steps) if callable(asked) else asked), self.num_steps}

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
            work.recipe.score,
            # Interpolated, the weights after training keep the budget; on the way there is none.
            Forgetting(work.recipe.score_general, None if self.settings.wise_ft else self.settings.max_general_rise),
            self.evaluate_at,
            num_steps=self.num_steps,
            resumable=work.resumable,
        )

    def _meter(self) -> Meter:
        feed, processes = self.prepared.feed, self.work.num_processes
        flops = step_flops(feed.lengths, feed.num_predicted, self._documents_of_steps, Shape.of(self.model))
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peak = peak_flops(card, precision.of(self.settings))
        return Meter(self.tokens, flops, None if peak is None else peak * processes)

    def _trainer(self) -> _Trainer:
        work, feed = self.work, self.prepared.feed
        trainer = _Trainer(
            model=self.model,
            args=_arguments(self.settings, work, self.model, feed.items_a_pass, num_steps=self.num_steps),
            train_dataset=feed.dataset,
            data_collator=feed.collate,
            callbacks=[self.watcher, *work.callbacks],
            leg=self,
        )
        trainer.remove_callback(PrinterCallback)  # the watcher speaks
        if anchors := holding.anchors(work.recipe, self.settings, work.seed):
            trainer.add_callback(holding.Pull(anchors))
        if self.unfreezing is not None and work.num_processes == 1:
            trainer.add_callback(holding.Unfreeze(self.unfreezing))
        return trainer


def _scores_of(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    return next(line for line in reversed(lines) if "validation_loss" in line and line["step"] == step)


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


def _arguments(settings: TrainingSettings, work: _Work, model: PreTrainedModel, items_a_pass: int, *, num_steps: int) -> TrainingArguments:
    chosen = precision.of(settings)
    return TrainingArguments(
        output_dir=str(work.folder),
        max_steps=num_steps,
        per_device_train_batch_size=items_a_pass,
        gradient_accumulation_steps=accumulation_steps(settings, work.num_processes),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=round(settings.warmup_share * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=chosen == "bf16",
        fp16=chosen == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        **sharding.arguments(settings, model),
        logging_strategy="steps",
        logging_steps=1,
        # The default hides NaN losses behind the running mean.
        logging_nan_inf_filter=False,
        save_strategy="steps" if work.resumable else "no",
        save_steps=settings.checkpoint_every_steps,
        save_total_limit=None,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        # The next batch goes to the card while this one is computed.
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        use_cpu=not torch.cuda.is_available(),
        seed=work.seed,
        data_seed=work.seed,
    )


class _Trainer(Trainer):
    """Trainer whose checkpoints exist whole or not at all, with a rate for each depth of the model."""

    def __init__(self, *args: Any, leg: _Leg, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._leg = leg
        self._rates: list[float] = []
        self._in_backward: optimizers.Lean | None = None
        # Has Trainer count the labels of all passes and processes of a step, and not divide the loss again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        sharding.enable_on_cpu(self)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        assert not return_outputs and num_items_in_batch is not None, "it only trains"
        labels = inputs.pop("labels")
        total = self._leg.prepared.total_loss(model, inputs, labels)
        # A step may hold nothing to learn from, such as prompts alone.
        loss = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        # Gradients are averaged over the processes, and the labels are counted over all of them.
        return loss * self.accelerator.num_processes if self.accelerator.num_processes > 1 else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = self.model if model is None else model
            groups = layers.groups(trained, self.get_decay_parameter_names(trained), self._leg.settings)
            self._rates = [group["lr"] for group in groups]
            self.optimizer = optimizers.build(groups, self._leg.settings, self._leg.work.seed)
            if self._leg.settings.steps_in_backward:
                self._in_backward = self.optimizer
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        stepping = self._in_backward
        if stepping is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if stepping.measures_first:
            # The same pass twice: dropout draws the same numbers.
            drawn = optimizers.random_state()
            with stepping.measuring():
                super().training_step(model, inputs, num_items_in_batch)
            optimizers.restore(drawn)
        with stepping.updating():
            return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._in_backward is not None:
            return self._in_backward.norm
        unfreezing = self._leg.unfreezing
        if unfreezing is not None and self._leg.work.num_processes > 1:
            unfreezing.drop(model, self.state.global_step)
        limit = self._leg.settings.max_grad_value
        if limit is None:
            return super()._clip_grad_norm(model)
        norm = self.accelerator.clip_grad_norm_(model.parameters(), math.inf)
        torch.nn.utils.clip_grad_value_(model.parameters(), limit)
        return norm

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
                    retain(folder, leg.course, newest=leg.settings.keep_checkpoints, best=leg.watcher.best_step())
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
