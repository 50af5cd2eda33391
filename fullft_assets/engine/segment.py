"""One leg of a training run: from where the course says to the end, or to the next setback."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from fullft_assets.engine import kernels, ranks, regularization, sharding
from fullft_assets.engine.checkpoints import STEP_LOG, StepLog, checkpoint_of, first_damaged, give_up, retain, step_of, whole_checkpoints
from fullft_assets.engine.feed import sums_between
from fullft_assets.engine.forgetting import Forgetting
from fullft_assets.engine.guards import Course, Incident
from fullft_assets.engine.interpolation import Interpolated, interpolate
from fullft_assets.engine.prefetch import Ahead, as_it_is
from fullft_assets.engine.recipe import Listener, Recipe
from fullft_assets.engine.telemetry import Ending, Meter, Shape, Trackers, peak_flops, step_flops
from fullft_assets.engine.trainer import UNFINISHED, FineTuner, accumulation_steps, arguments
from fullft_assets.engine.watcher import RolledBack, Watcher, peak_memory_bytes
from fullft_assets.errors import DivergenceError, Interrupted, OutOfMemory, StoreError
from fullft_assets.models import layers, precision
from fullft_assets.models.inference import scoring
from fullft_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from fullft_assets.jobs.process import Progress


@dataclass(frozen=True)
class Fit:
    """What came out: the trained model and how it went.

    Attributes:
        model: the trained weights; of several processes the first one's count.
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


class Damaged(RolledBack):
    """The checkpoint that the leg would have begun at is not what was written."""


@dataclass(frozen=True)
class Work:
    """What all legs of a run share; see `finetuning.fine_tune`."""

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


class Leg:
    """Training from where the course says to the end, or to the next setback. One is built for each."""

    def __init__(self, work: Work):
        self.work, self.course = work, work.course
        changes = {"micro_batch_size": work.course.micro_batch_size, "learning_rate": work.course.learning_rate}
        self.settings = work.settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
        self.checkpoint = self._latest_checkpoint()
        #: Step of the checkpoint that this leg begins at; 0 = the base model.
        self.first_step = step_of(self.checkpoint) if self.checkpoint else 0
        set_seed(work.seed)
        self.model = work.recipe.load(self.settings)
        layers.freeze(self.model, self.settings)
        prepared = work.recipe.prepare(self.model, self.settings, work.seed, work.num_processes)
        self.prepared = kernels.apply(self.model, prepared, self.settings)
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

    def _latest_checkpoint(self) -> Path | None:
        """Return what training would go on from.

        The course in memory says: every rank's is the same, while its file is written by the first one, sooner or later than another looks.
        """
        found = whole_checkpoints(self.work.folder, self.course) if self.work.resumable else []
        return found[-1].path if found else None

    def run(self) -> Fit:
        """Train to the end; see `finetuning.fine_tune`."""
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
        # Before the first rank removes any: another may still look which checkpoint it goes on from.
        ranks.wait()
        if self.checkpoint and ranks.by_first(self._gives_up_damaged, self.work.progress):
            raise Damaged
        if self.work.resumable and ranks.is_first():
            # Before the first save: what a killed run left, and what is kept no longer, may be the room that it needs.
            shutil.rmtree(self.work.folder / UNFINISHED, ignore_errors=True)
            retain(self.work.folder, self.course, newest=self.settings.keep_checkpoints, best=watcher.best_step())
        watcher.score_before(self.model)
        watcher.begin()
        if self.checkpoint:
            self._make_up_scores()
        if not self._is_at_end() and not watcher.stopped:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if watcher.stopped:
            where = f"stopped at step {max(self.first_step, trainer.state.global_step)} of {self.num_steps}"
            again = "resume there" if self.work.resumable else "start this part again"
            raise Interrupted(f"{where}; run the same command to {again}")

    def _gives_up_damaged(self, listener: Listener) -> bool:
        """Look whether the checkpoint is what was written, and otherwise have it never be gone on from."""
        damaged = first_damaged(self.checkpoint, listener)
        if damaged is not None:
            self.work.progress.say(f"{self.checkpoint / damaged} is damaged; going on from the checkpoint before, if there is one")
            give_up(self.checkpoint)
        return damaged is not None

    def _is_at_end(self) -> bool:
        return self.first_step >= (self.course.end_step or self.num_steps)

    def _make_up_scores(self) -> None:
        """Load the checkpoint that this leg begins at where nothing else will, and score it where a stop cut that short."""
        was_scored = any("validation_loss" in line and line["step"] == self.first_step for line in self.watcher.log.lines)
        if self._is_at_end() or (self.first_step in self.evaluate_at and not was_scored):
            sharding.load(self.trainer, self.checkpoint)
            if not was_scored:
                self.watcher.validate(self.first_step, self.trainer.model)

    def _fit(self) -> Fit:
        seconds, num_steps = self.watcher.seconds, max(self.first_step, self.trainer.state.global_step)
        model, step = self._chosen(num_steps)
        # The first rank removes the folder at the end, while another may still load the best checkpoint.
        ranks.wait()
        final = _scores_of(self.watcher.log.lines, step)
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
            history=self.watcher.log.lines,
            incidents=self.course.incidents,
            micro_batch_size=self.settings.micro_batch_size,
            about=self.prepared.about,
            scores={name: value for name, value in final.items() if name.startswith(("validation_", "general_"))},
            interpolated=interpolated,
        )

    def _chosen(self, last_step: int) -> tuple[PreTrainedModel, int]:
        """Return the whole model that comes out, and the step after which its weights were so: the last one, or the best.

        Raises:
            DivergenceError: none is within the forgetting budget.
            StoreError: the best checkpoint is damaged.
        """
        best, forgetting = self.watcher.best_step(), self.watcher.forgetting
        is_over = forgetting.max_rise is not None and forgetting.is_spent(_scores_of(self.watcher.log.lines, last_step))
        if is_over and (best is None or not self.work.resumable):
            raise forgetting.nothing_left(last_step)
        model = sharding.whole(self.trainer, lambda: self.work.recipe.load(self.settings))
        if not (self.settings.keep_best or is_over) or not self.work.resumable or best in (None, last_step):
            return model, last_step
        chosen = checkpoint_of(self.work.folder, best)
        if damaged := ranks.by_first(lambda listener: first_damaged(chosen, listener), self.work.progress):
            raise StoreError(f"{chosen / damaged}, of the best step, is damaged; delete {self.work.folder} to train again")
        sharding.load(self.trainer, chosen, model)
        return model, best

    def _free(self) -> None:
        """Let go of what only steps need, whoever still names the optimizer: its state and the anchors are copies of the weights."""
        if self.trainer.optimizer is not None:  # none where the last step was taken before this leg
            self.trainer.optimizer.state.clear()
        self.trainer.remove_callback(regularization.Pull)
        give_back()

    def _interpolate(self, model: PreTrainedModel, step: int) -> Interpolated:
        """Put the best weights between the base model's and the trained ones into the model: of several processes the first one's alone.

        Raises:
            DivergenceError: none are within the forgetting budget.
            Interrupted: a stop was requested.
        """
        work, log = self.work, self.watcher.log
        forgetting = Forgetting(work.recipe.score_general, self.settings.max_general_rise)

        def on_first(listener: Listener) -> Interpolated | None:
            def score() -> dict[str, float]:
                found = work.recipe.score(model, listener)
                return {f"validation_{name}": value for name, value in found.items()} | forgetting.score(model, log, listener)

            original = work.recipe.load_original(self.settings)
            alphas, has_new_head = self.settings.wise_ft, work.recipe.has_new_head
            return interpolate(model, original, alphas, score, has_new_head=has_new_head, is_spent=forgetting.is_spent)

        with scoring():
            found = ranks.by_first(on_first, work.progress)
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
        checkpoint = self._latest_checkpoint()
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
            mend = f"run the same command to go on with {smaller:,}" if self.work.resumable else f"set training.micro_batch_size: {smaller}"
            raise OutOfMemory(f"{reason} in one of {processes} processes; {mend}")
        self.work.progress.say(f"step {step + 1:,}: {reason}; going on from step {incident.to_step:,} with {smaller:,}, the same batch")

    def _evaluations(self, num_steps: float) -> set[int]:
        """Return the steps after which validation rows are scored: the same in every leg, whatever its micro-batches."""
        asked = self.work.evaluate_at
        if asked is None:
            half_epoch = max(1, round(num_steps / self.settings.epochs / 2))
            asked = range(half_epoch, self.num_steps - half_epoch // 2, half_epoch)
        return {*(asked(num_steps) if callable(asked) else asked), self.num_steps}

    def _watcher(self) -> Watcher:
        work, is_first = self.work, ranks.is_first()
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

    def _trainer(self) -> FineTuner:
        work, feed = self.work, self.prepared.feed
        args = arguments(
            self.settings,
            self.model,
            work.folder,
            seed=work.seed,
            num_processes=work.num_processes,
            items_a_pass=feed.items_a_pass,
            num_steps=self.num_steps,
            resumable=work.resumable,
        )
        trainer = FineTuner(
            model=self.model,
            args=args,
            train_dataset=Ahead(feed, accumulation_steps(self.settings, work.num_processes)),
            data_collator=as_it_is,
            callbacks=[self.watcher, *work.callbacks],
            prepared=self.prepared,
            settings=self.settings,
            seed=work.seed,
            watcher=self.watcher,
            # In one process nothing is computed for weights that are not trained yet (`holding.Unfreeze`).
            unfreezing=self.unfreezing if work.num_processes > 1 else None,
        )
        trainer.remove_callback(PrinterCallback)  # the watcher speaks
        if anchors := regularization.anchors(work.recipe, self.settings, work.seed):
            trainer.add_callback(regularization.Pull(anchors))
        if self.unfreezing is not None and work.num_processes == 1:
            trainer.add_callback(regularization.Unfreeze(self.unfreezing))
        return trainer


def give_back() -> None:
    """Give the system what is free: torch and the C library keep it for whoever asks next, who may ask in sizes that do not fit into it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # Not every C library has it.
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _scores_of(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    return next(line for line in reversed(lines) if "validation_loss" in line and line["step"] == step)
