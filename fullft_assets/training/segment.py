"""One segment of a training run: from the checkpoint that the run history names to the end, or to the next
setback.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from fullft_assets.errors import DivergenceError, Interrupted, OutOfMemory, StoreError
from fullft_assets.jobs.progress import Listener
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.models import heads, layers, precision
from fullft_assets.models.hardware import (
    free_memory,
    gpu_name,
    peak_flops,
    peak_memory_bytes,
)
from fullft_assets.models.inference import move, scoring
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import kernels, ranks, regularization, sharding
from fullft_assets.training.callback import SegmentCallback
from fullft_assets.training.checkpoints import STEP_LOG, StepLog, changed_versions, step_of
from fullft_assets.training.feed import Prefetcher, already_collated, sums_between
from fullft_assets.training.guard_actions import GuardActions, SegmentOver
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.recorder import Meter, ModelShape, StepRecorder, step_flops
from fullft_assets.training.regularization import Interpolated, interpolate
from fullft_assets.training.resuming import checkpoint_of_step, newest_checkpoint
from fullft_assets.training.run_history import Incident, RunHistory
from fullft_assets.training.stored_checkpoints import StoredCheckpoints
from fullft_assets.training.trackers import Ending, Trackers
from fullft_assets.training.trainer import UNFINISHED, FineTuner, accumulation_steps, training_arguments
from fullft_assets.training.validation import ForgettingBudget, Validator, in_words

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress


@dataclass(frozen=True)
class Fit:
    """The trained model and how training went.

    Attributes:
        model: the trained weights; of several processes only the first one has them.
        step: the step after which the model had them: the last one, or with `keep_best` the best by
            validation loss; within the forgetting budget, if there is one.
        num_steps: steps taken; fewer than planned if a guard ended training early.
        resumed_from_step: the step at which this process began.
        micro_batch_size: rows a forward pass at the end.
        scores: of the model: `validation_loss` and others, and those on the general set.
        interpolated: how the model's weights were chosen between the base model's and those after `step`;
            None: they are the latter.
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


@dataclass(frozen=True)
class TrainingRun:
    """What all segments of a run share; see `finetuning.fine_tune`."""

    recipe: Recipe
    settings: TrainingSettings
    seed: int
    folder: Path
    progress: Progress
    num_processes: int
    evaluate_at: Callable[[float], Iterable[int]] | Sequence[int] | None
    resumable: bool
    callbacks: Sequence[TrainerCallback]
    history: RunHistory
    stored: StoredCheckpoints | None


class TrainingSegment:
    """One segment of a run; a new one is set up after each setback.

    Attributes:
        first_step: of the checkpoint that the segment begins at; 0 = the base model.
    """

    def __init__(self, run: TrainingRun):
        self.shared, self.history = run, run.history
        changes = {
            "micro_batch_size": run.history.micro_batch_size,
            "learning_rate": run.history.learning_rate,
        }
        self.settings = run.settings.model_copy(
            update={name: value for name, value in changes.items() if value is not None}
        )
        self.checkpoint = (
            newest_checkpoint(run.folder, run.history, run.stored, run.progress) if run.resumable else None
        )
        self.first_step = step_of(self.checkpoint) if self.checkpoint else 0
        set_seed(run.seed)
        self.model = run.recipe.load(self.settings)
        if self.checkpoint is None and run.recipe.has_new_head:
            self._fit_head()
        layers.freeze(self.model, self.settings)
        prepared = run.recipe.prepare(self.model, self.settings, run.seed, run.num_processes)
        self.prepared = kernels.apply(self.model, prepared, self.settings)
        feed = self.prepared.feed
        documents_of_steps = feed.bounds_of_steps(
            accumulation_steps(self.settings, run.num_processes) * run.num_processes
        )
        if self.settings.compile:
            layers.compile_below_head(self.model)
        #: [steps] useful tokens of each.
        self.tokens = sums_between(feed.lengths, documents_of_steps)
        self.num_steps = len(self.tokens)
        self.evaluate_at = self._evaluation_steps(feed.num_rows / self.settings.batch_size)
        self.recorder = self._make_recorder(documents_of_steps)
        self.validator = self._make_validator()
        guards = GuardActions(
            self.settings,
            self.recorder,
            self.history,
            num_steps=self.num_steps,
            resumable=run.resumable,
            stored=run.stored,
        )
        self.callback = SegmentCallback(
            self.recorder,
            self.validator,
            guards,
            self.history,
            self.evaluate_at,
            resumable=run.resumable,
            stored=run.stored,
        )
        self.trainer = self._make_trainer()

    def _fit_head(self) -> None:
        """Begin with a head that fits the base model's representations; the first process fits it for all."""
        recipe, model = self.shared.recipe, self.model
        weights = ranks.run_on_first(
            lambda listener: recipe.fit_head(model, self.settings, listener), self.shared.progress
        )
        if weights is not None:
            heads.set_weights(model, weights)
        # It is sharded, or moved to the accelerator, by whoever trains it.
        move(model, torch.device("cpu"))

    def _evaluation_steps(self, num_steps: float) -> set[int]:
        """Return the steps after which validation rows are scored: the same in every segment, whatever its
        micro-batches.
        """
        asked = self.shared.evaluate_at
        if asked is None:
            half_epoch = max(1, round(num_steps / self.settings.num_epochs / 2))
            asked = range(half_epoch, self.num_steps - half_epoch // 2, half_epoch)
        return {*(asked(num_steps) if callable(asked) else asked), self.num_steps}

    def _make_recorder(self, documents_of_steps: Any) -> StepRecorder:
        run = self.shared
        feed = self.prepared.feed
        is_first = is_first_rank()
        log = StepLog(
            run.folder / STEP_LOG, self.first_step, is_writer=is_first, incidents=self.history.incidents
        )
        # Another host may have none, or an old one.
        log.lines, log.seconds_before = ranks.from_first((log.lines, log.seconds_before))
        track = self.settings.track if is_first and run.resumable else []
        params = self.settings.model_dump(exclude={"guards", "track"})
        flops = step_flops(feed.lengths, feed.num_predicted, documents_of_steps, ModelShape.of(self.model))
        peak = peak_flops(gpu_name() or "", precision.of(self.settings))
        meter = Meter(self.tokens, flops, None if peak is None else peak * run.num_processes)
        return StepRecorder(
            log, Trackers(track, run.folder, self.first_step, params, run.progress), meter, run.progress
        )

    def _make_validator(self) -> Validator:
        recipe = self.shared.recipe
        # With WiSE-FT the budget applies to the interpolated weights after training, not on the way.
        forgetting = ForgettingBudget(
            recipe.score_general, None if self.settings.wise_ft else self.settings.max_general_rise
        )
        return Validator(recipe.score, forgetting, self.recorder)

    def _make_trainer(self) -> FineTuner:
        run = self.shared
        feed = self.prepared.feed
        arguments = training_arguments(
            self.settings,
            self.model,
            run.folder,
            seed=run.seed,
            num_processes=run.num_processes,
            items_a_pass=feed.items_a_pass,
            num_steps=self.num_steps,
            resumable=run.resumable,
        )
        trainer = FineTuner(
            model=self.model,
            args=arguments,
            train_dataset=Prefetcher(feed, accumulation_steps(self.settings, run.num_processes)),
            data_collator=already_collated,
            callbacks=[self.callback, *run.callbacks],
            prepared=self.prepared,
            settings=self.settings,
            seed=run.seed,
            meter=self.recorder.meter,
            # Not a method of this segment: a circle would keep the optimizer's state until the next garbage
            # collection.
            publish=self.callback.publish,
        )
        trainer.remove_callback(PrinterCallback)  # the recorder reports each step
        if anchors := regularization.anchors(run.recipe, self.settings, run.seed):
            trainer.add_callback(regularization.Pull(anchors))
        return trainer

    def run(self) -> Fit:
        """Train to the end; see `finetuning.fine_tune`."""
        if self.checkpoint:
            self.shared.progress.say(
                f"resuming at step {self.first_step} of {self.num_steps} ({self.checkpoint.name})"
            )
            self._warn_of_other_versions(self.checkpoint)
        ending: Ending = "FAILED"
        try:
            self._train()
            fit = self._finish()
            ending = "FINISHED"
            return fit
        except SegmentOver:
            ending = "RUNNING"
            raise
        except Interrupted:
            ending = "KILLED"
            raise
        finally:
            self.recorder.trackers.close(ending)

    def _warn_of_other_versions(self, checkpoint: Path) -> None:
        changed = changed_versions(checkpoint)
        reason = f"{changed}: bits may differ"
        line = {"step": self.first_step, "event": "other_versions", "action": "warn", "reason": reason}
        if changed is not None and line not in self.recorder.log.lines:
            self.recorder.record(line)
            self.shared.progress.say(f"warning: {reason} from those of a training that was not resumed")

    def _train(self) -> None:
        # Before the first rank removes a checkpoint: another may still look for the one that it continues
        # from.
        ranks.wait()
        if self.shared.resumable and is_first_rank():
            # Before the first save, which may need the room: what a killed run left, and checkpoints that are
            # no longer kept.
            shutil.rmtree(self.shared.folder / UNFINISHED, ignore_errors=True)
            self.callback.delete_old_checkpoints()
        self.validator.score_before(self.model)
        self.recorder.start()
        if self.checkpoint:
            self._catch_up_validation(self.checkpoint)
        if not self._is_at_end() and not self.callback.stopped:
            self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if self.callback.stopped:
            place = f"stopped at step {self._last_step()} of {self.num_steps}"
            again = "resume there" if self.shared.resumable else "start this part again"
            raise Interrupted(f"{place}; run the same command to {again}")

    def _last_step(self) -> int:
        return max(self.first_step, self.trainer.state.global_step)

    def _is_at_end(self) -> bool:
        return self.first_step >= (self.history.end_step or self.num_steps)

    def _catch_up_validation(self, checkpoint: Path) -> None:
        """Validate the weights of the checkpoint if a stop cut that short; load them where Trainer
        will not.
        """
        was_scored = any(
            "validation_loss" in line and line["step"] == self.first_step for line in self.recorder.log.lines
        )
        if self._is_at_end() or (self.first_step in self.evaluate_at and not was_scored):
            sharding.load(self.trainer, checkpoint)
            if not was_scored:
                self.callback.validate(self.first_step, self.model)

    def _finish(self) -> Fit:
        """Choose the weights that training returns."""
        seconds, num_steps = self.recorder.seconds, self._last_step()
        model, step = self._choose_weights(num_steps)
        scores = _scores_of(self.recorder.log.lines, step)
        if not math.isfinite(scores["validation_loss"]):
            raise DivergenceError(
                f"the weights after step {step:,} are not finite; lower training.learning_rate or use"
                " precision fp32"
            )
        interpolated = None
        if self.settings.wise_ft:
            self._free_training_state()
            interpolated = self._interpolate(model, step)
            scores = interpolated.of_chosen
        return Fit(
            model=model,
            step=step,
            num_steps=num_steps,
            num_tokens=int(self.tokens[:num_steps].sum()),
            seconds=seconds,
            resumed_from_step=self.first_step,
            peak_memory_bytes=peak_memory_bytes(),
            history=self.recorder.log.lines,
            incidents=self.history.incidents,
            micro_batch_size=self.settings.micro_batch_size,
            about=self.prepared.about,
            scores={
                name: value for name, value in scores.items() if name.startswith(("validation_", "general_"))
            },
            interpolated=interpolated,
        )

    def _choose_weights(self, last_step: int) -> tuple[PreTrainedModel, int]:
        """Return the complete trained model, and the step after which it had these weights: the last one, or
        the best.
        """
        best, forgetting = self.validator.best_step(), self.validator.forgetting
        is_over = forgetting.max_rise is not None and forgetting.is_spent(
            _scores_of(self.recorder.log.lines, last_step)
        )
        if is_over and (best is None or not self.shared.resumable):
            raise forgetting.over_budget(last_step)
        model = sharding.gather(self.trainer, lambda: self.shared.recipe.load(self.settings))
        if (
            not (self.settings.keep_best or is_over)
            or not self.shared.resumable
            or best is None
            or best == last_step
        ):
            return model, last_step
        if problem := ranks.run_on_first(
            lambda listener: self._load_best(best, model, listener), self.shared.progress
        ):
            raise StoreError(f"best step {best:,}: {problem}; delete {self.shared.folder} to train again")
        return model, best

    def _load_best(self, best: int, model: PreTrainedModel, listener: Listener) -> str | None:
        """Load the weights of the best step into the first process's model; return what is wrong with them,
        or None.
        """
        try:
            chosen = checkpoint_of_step(best, self.shared.folder, self.history, self.shared.stored, listener)
        except StoreError as error:
            return str(error)
        sharding.load(self.trainer, chosen, model)
        return None

    def _free_training_state(self) -> None:
        """Free what only steps need, whoever still refers to the optimizer: its state and the anchors are
        copies of the weights.
        """
        if self.trainer.optimizer is not None:  # None where the last step was taken before this segment
            self.trainer.optimizer.state.clear()
        self.trainer.remove_callback(regularization.Pull)
        free_memory()

    def _interpolate(self, model: PreTrainedModel, step: int) -> Interpolated:
        """Put the best weights between the base model's and the trained ones into the model; of several
        processes the first one does.
        """
        recipe = self.shared.recipe
        log = self.recorder.log
        progress = self.shared.progress
        forgetting = ForgettingBudget(recipe.score_general, self.settings.max_general_rise)

        def on_first(listener: Listener) -> Interpolated | None:
            def score() -> dict[str, float]:
                scores = recipe.score(model, listener)
                return {f"validation_{name}": value for name, value in scores.items()} | forgetting.score(
                    model, log, listener
                )

            original = recipe.load_original(self.settings)
            alphas, has_new_head = self.settings.wise_ft, recipe.has_new_head
            return interpolate(
                model, original, alphas, score, has_new_head=has_new_head, is_spent=forgetting.is_spent
            )

        with scoring():
            interpolated = ranks.run_on_first(on_first, progress)
        if interpolated is None:
            raise forgetting.over_budget(step)
        for line in interpolated.scores:
            scores = in_words({name: value for name, value in line.items() if name != "alpha"})
            progress.say(
                f"{'chosen: ' if line['alpha'] == interpolated.alpha else ''}{line['alpha']:g} of the"
                f" fine-tuned weights: {scores}"
            )
        return interpolated

    def halve_micro_batches(self) -> None:
        """Record that the next segment takes smaller micro-batches, and more of them: the effective batch
        stays.

        Raises:
            OutOfMemory: there are no smaller ones; or one of several processes ran out of memory, for which
                the others wait in vain.
        """
        size = self.settings.micro_batch_size
        processes = self.shared.num_processes
        step = self.trainer.state.global_step
        if self.settings.steps_in_backward:
            raise OutOfMemory(
                f"memory ran out at step {step + 1:,} with {size:,} rows a pass, and"
                f" {self.settings.optimizer} cannot accumulate smaller ones; lower training.batch_size and"
                " micro_batch_size, or set training.gradient_checkpointing"
            )
        smaller = next(
            (n for n in range(size // 2, 0, -1) if self.settings.batch_size % (n * processes) == 0), None
        )
        if smaller is None:
            raise OutOfMemory(
                f"memory ran out at step {step + 1:,} with a single row a pass; set"
                " training.gradient_checkpointing, lower chunks.max_tokens or use a machine with more memory"
            )
        to_step = self.first_step if self.callback.saved_step is None else self.callback.saved_step
        reason = f"memory ran out with {size:,} rows a pass"
        seconds = round(self.recorder.seconds, 3)
        incident = Incident("out_of_memory", step + 1, to_step, reason, seconds, micro_batch_size=smaller)
        self.history.add(incident, is_local=processes > 1)
        if processes > 1:
            fix = (
                f"run the same command to continue with {smaller:,}"
                if self.shared.resumable
                else f"set training.micro_batch_size: {smaller}"
            )
            raise OutOfMemory(f"{reason} in one of {processes} processes; {fix}")
        self.shared.progress.say(
            f"step {step + 1:,}: {reason}; continuing from step {to_step:,} with {smaller:,}, the same batch"
        )


def _scores_of(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    return next(line for line in reversed(lines) if "validation_loss" in line and line["step"] == step)
