"""Full fine-tuning for every task: the pilot and training both call `fine_tune`.

The order of reading: `fine_tune` checks the settings and runs one `TrainingSegment` after the other. A
segment sets up model, data and loop; the loop steps (`loop.py`), and the segment records, checks, validates
and saves after each step. A setback (a guard rolls back, memory runs out) is recorded in the run history and
ends a segment; the next one begins at the checkpoint that the history names, with its changes. Everything
that decides the result is planned from the seed: the order of the rows is a list, so a resumed run continues
where it was.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from fullft_assets.errors import (
    DivergenceError,
    Interrupted,
    OutOfMemory,
    SettingsError,
    StoreError,
    is_out_of_memory,
)
from fullft_assets.models import inference, layers, precision
from fullft_assets.models.hardware import (
    free_memory,
    gpu_name,
    peak_flops,
    peak_memory_bytes,
)
from fullft_assets.progress import Listener, Progress
from fullft_assets.ranks import is_first_local_rank, is_first_rank
from fullft_assets.settings import TrainingSettings, contradictions
from fullft_assets.settings.guards import guard_settings
from fullft_assets.training import kernels, loop as training_loop, measuring, ranks, regularization, sharding
from fullft_assets.training.checkpoints import (
    STEP_LOG,
    Incident,
    RunHistory,
    StepLog,
    changed_versions,
    checkpoint_of,
    retain,
    room_needed,
    step_of,
)
from fullft_assets.training.feed import sums_between
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.recorder import (
    Ending,
    Meter,
    ModelShape,
    StepRecorder,
    Tracker,
    require_trackers,
    step_flops,
)
from fullft_assets.training.stored_checkpoints import (
    Saver,
    StoredCheckpoints,
    checkpoint_of_step,
    newest_checkpoint,
)
from fullft_assets.training.watching import GuardActions, RolledBack, Validator, in_words

#: Folder inside the work folder in which a checkpoint is written.
UNFINISHED = "unfinished"
#: Steps in a row without a finite gradient that end a run, whatever its guards do. Clipping makes such
#: gradients zero, and the loss scaler of fp16, which skips such steps, has halved its scale to nothing by
#: then.
_MOST_UNMOVED_STEPS = 20
#: Seconds between two checkpoints, and how many are written whatever the clock says, where the YAML does not
#: count steps. Guards roll back to the latter, which are the same in every run.
_SECONDS_TO_SAVE = 600.0
_NUM_PLANNED = 10
#: Peak learning rate of an encoder at most 512 wide, which gained more than 5e-5 on public sets
#: (`benchmarks/results/recipes-2026-12.md`); wider ones were not measured.
_RATE_OF_SMALL = 1e-4

# Silences the report on the classifier head, which is new by design, and progress bars, which a log cannot
# show.
logging.set_verbosity_error()
logging.disable_progress_bar()


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
    interpolated: regularization.Interpolated | None = None


@dataclass(frozen=True)
class TrainingRun:
    """What all segments of a run share; see `fine_tune`."""

    recipe: Recipe
    settings: TrainingSettings
    seed: int
    folder: Path
    progress: Progress
    num_processes: int
    max_memory_gib: float | None
    stored_in: str | None
    evaluate_at: Callable[[float], Iterable[int]] | Sequence[int] | None
    resumable: bool
    watch: training_loop.Watch
    history: RunHistory
    stored: StoredCheckpoints | None


class TrainingSegment:
    """One segment of a run; a new one is set up after each setback.

    Attributes:
        first_step: of the checkpoint that the segment begins at; 0 = the base model.
        stopped: whether a request to stop ended this segment.
    """

    def __init__(self, run: TrainingRun):
        self.history = run.history
        self.checkpoint = (
            newest_checkpoint(run.folder, run.history, run.stored, run.progress) if run.resumable else None
        )
        self.shared = run = replace(run, settings=_with_passes(run, self.checkpoint))
        changes = {
            "micro_batch_size": run.history.micro_batch_size,
            "learning_rate": run.history.learning_rate,
        }
        self.settings = run.settings.model_copy(
            update={name: value for name, value in changes.items() if value is not None}
        )
        self.first_step = step_of(self.checkpoint) if self.checkpoint else 0
        self.saver = Saver(run.history, run.stored)
        self.stopped = False
        self._saved_at = time.monotonic()
        self._num_unmoved_steps = 0
        self._unread_steps: deque[training_loop.Step] = deque()
        set_seed(run.seed)
        self.model = sharding.load(
            run.recipe.load, self.settings, is_shared=(self.settings.sharding != "none")
        )
        is_small = (
            run.recipe.has_new_head
            and getattr(self.model.config.get_text_config(), "hidden_size", math.inf) <= 512
        )
        #: Peak learning rate that the training began with.
        self.rate = run.settings.learning_rate or (
            run.recipe.rate_factor * (_RATE_OF_SMALL if is_small else run.settings.peak_rate)
        )
        if self.settings.learning_rate is None:
            self.settings = self.settings.model_copy(update={"learning_rate": self.rate})
        # Passes of training have no use for one; and what is exported must not depend on a kill.
        self.model.config.use_cache = False
        if self.checkpoint is None and run.recipe.has_new_head:
            self._fit_head()
        self.prepared = kernels.apply(
            self.model, run.recipe.prepare(self.model, self.settings, run.seed), self.settings
        )
        feed = self.prepared.feed
        passes_a_step = training_loop.accumulation_steps(self.settings, run.num_processes) * run.num_processes
        documents_of_steps = np.append(feed.bounds[: feed.num_passes : passes_a_step], feed.bounds[-1])
        if self.settings.compile:
            layers.compile_layers(self.model)
        #: [steps] useful tokens of each.
        self.tokens = sums_between(feed.lengths, documents_of_steps)
        self.num_steps = len(self.tokens)
        self.evaluate_at = self._evaluation_steps(feed.num_rows / self.settings.batch_size)
        self.recorder = self._make_recorder(documents_of_steps)
        # With WiSE-FT the budget applies to the interpolated weights after training, not on the way.
        self.validator = Validator(
            run.recipe, (None if self.settings.wise_ft else self.settings.max_general_rise), self.recorder
        )
        self.guards = GuardActions(
            self.settings,
            self.recorder,
            self.history,
            num_steps=self.num_steps,
            resumable=run.resumable,
            checkpoints=run.stored,
            before_roll_back=self.saver.finish,
        )
        self.loop: training_loop.Loop | None = None

    def _fit_head(self) -> None:
        """Begin with a head that fits the base model's representations; the first process fits it for all."""
        weights = ranks.make_passes(
            self.model,
            lambda listener: self.shared.recipe.fit_head(self.model, self.settings, listener),
            self.shared.progress,
        )
        if weights is not None:
            inference.set_head_weights(self.model, weights)
        # It is moved to the accelerator by whoever trains it.
        inference.move(self.model, torch.device("cpu"))

    def _evaluation_steps(self, num_steps: float) -> set[int]:
        """Return the steps after which validation rows are scored: the same in every segment, whatever its
        micro-batches.
        """
        steps = self.shared.evaluate_at
        if steps is None:
            half_epoch = max(1, round(num_steps / self.settings.num_epochs / 2))
            steps = range(half_epoch, self.num_steps - half_epoch // 2, half_epoch)
        return {*(steps(num_steps) if callable(steps) else steps), self.num_steps}

    def _make_recorder(self, documents_of_steps: Any) -> StepRecorder:
        run = self.shared
        feed = self.prepared.feed
        is_first = is_first_rank()
        log = StepLog(
            run.folder / STEP_LOG, self.first_step, is_writer=is_first, incidents=self.history.incidents
        )
        # Another host may have none, or an old one.
        log.lines, log.seconds_before = ranks.from_first((log.lines, log.seconds_before))
        tracker = Tracker(
            self.settings.track if is_first and run.resumable else [],
            run.folder,
            self.settings.model_dump(exclude={"guards", "track"}),
            run.progress,
        )
        flops = step_flops(feed.lengths, feed.num_predicted, documents_of_steps, ModelShape.of(self.model))
        peak = peak_flops(gpu_name() or "", precision.of(self.settings))
        return StepRecorder(
            log,
            tracker,
            Meter(self.tokens, flops, None if peak is None else peak * run.num_processes),
            run.progress,
        )

    def run(self) -> Fit:
        """Train to the end; see `fine_tune`."""
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
        except RolledBack:
            ending = "RUNNING"
            raise
        except Interrupted:
            ending = "KILLED"
            raise
        finally:
            self.recorder.tracker.close(ending)
        return fit

    def _warn_of_other_versions(self, checkpoint: Path) -> None:
        reason = f"{changed_versions(checkpoint)}: bits may differ"
        line = {"step": self.first_step, "event": "other_versions", "action": "warn", "reason": reason}
        if changed_versions(checkpoint) is not None and line not in self.recorder.log.lines:
            self.recorder.record(line)
            self.shared.progress.say(f"warning: {reason} from those of a training that was not resumed")

    def _train(self) -> None:
        # Before the first rank removes a checkpoint: another may still look for the one that it continues
        # from.
        ranks.wait()
        # Before the first save, which may need the room: what a killed run left, and checkpoints that are no
        # longer kept.
        if self.shared.resumable and is_first_local_rank():
            shutil.rmtree(self.shared.folder / UNFINISHED, ignore_errors=True)
        if self.shared.resumable and is_first_rank():
            retain(
                self.shared.folder,
                self.history,
                best=self.validator.best_step(),
                spared=(None if self.shared.stored is None else self.shared.stored.uploading),
            )
        self.validator.score_before(self.model)
        self.recorder.start()
        if 0 in self.evaluate_at and self.checkpoint is None:
            self._validate(0)
        is_at_end = self.first_step >= (self.history.end_step or self.num_steps)
        if self.checkpoint:
            training_loop.load_weights(self.model, self.checkpoint)
            # A stop may have cut the validation of these weights short.
            was_scored = any(
                "validation_loss" in line and line["step"] == self.first_step
                for line in self.recorder.log.lines
            )
            if not was_scored and (is_at_end or self.first_step in self.evaluate_at):
                self._validate(self.first_step)
        if not is_at_end and not self.stopped:
            self._take_steps()
        if self.stopped:
            again = "resume there" if self.shared.resumable else "start this part again"
            raise Interrupted(
                f"stopped at step {self.step} of {self.num_steps}; run the same command to {again}"
            )

    def _take_steps(self) -> None:
        run = self.shared
        with _setting_up(self.settings):
            self.loop = loop = training_loop.Loop(
                self.model,
                self.prepared,
                self.settings,
                run.seed,
                num_processes=run.num_processes,
                num_steps=self.num_steps,
                checkpoint=self.checkpoint,
                anchors=regularization.anchors(run.recipe, self.model, self.settings, run.seed),
                watch=run.watch,
            )
        try:
            for step in loop.steps():
                self.saver.look()
                if self._end_step(loop, step):
                    break
        except DivergenceError:  # of a guard, in all processes alike: what was saved before counts
            self.saver.finish()
            raise
        self.saver.finish()

    @property
    def step(self) -> int:
        """The last step that was taken."""
        return self.first_step if self.loop is None else self.loop.step

    def _end_step(self, loop: training_loop.Loop, step: training_loop.Step) -> bool:
        """Record and check steps, validate and save where that is planned; return whether the segment ends
        here.

        Before its weights are scored or saved, a step has been read: its guards have seen it.
        """
        number = step.number
        is_last = number in (self.num_steps, self.history.end_step)
        every_steps = self.settings.checkpoint_every_steps or math.ceil(self.num_steps / _NUM_PLANNED)
        is_planned = is_last or number % every_steps == 0
        # Processes measure different times, and which step it is depends on the machine.
        is_due = (
            self.settings.checkpoint_every_steps is None
            and self.shared.resumable
            and ranks.any_rank(time.monotonic() - self._saved_at >= _SECONDS_TO_SAVE)
        )
        is_scored = number in self.evaluate_at
        self._unread_steps.append(step)
        self._read_steps(0 if is_planned or is_due or is_scored else training_loop.most_unread_steps())
        if is_scored and self._validate(number):
            is_planned = True
        if number == self.history.end_step:
            is_last = is_planned = True
        # Ranks learn of a stop at different steps; a rank that saved alone would wait for the others for
        # ever.
        elif self.stopped or (not is_last and ranks.any_rank(self.shared.progress.stop_requested)):
            self.stopped = True
            self._read_steps(0)
        if self.shared.resumable and (is_planned or is_due or self.stopped):
            self._save(loop, is_planned=is_planned)
        return is_last or self.stopped

    def _read_steps(self, most_unread: int) -> None:
        while len(self._unread_steps) > most_unread:
            line = self._unread_steps.popleft().read()
            self.guards.check(
                self.recorder.record_step(
                    line, self.num_steps, is_fp16=(precision.of(self.settings) == "fp16")
                )
            )
            self._num_unmoved_steps = 0 if math.isfinite(line["grad_norm"]) else self._num_unmoved_steps + 1
            if self._num_unmoved_steps >= _MOST_UNMOVED_STEPS:
                raise DivergenceError(
                    f"training stopped at step {line['step']:,}: no gradient was finite in the last"
                    f" {_MOST_UNMOVED_STEPS} steps, so nothing was learned; use training.precision: fp32, or"
                    " look for weights in base_model that are not finite"
                )

    def _validate(self, step: int) -> bool:
        """Score the weights after a step and check the scores; return whether to keep the weights as the
        best.

        A request to stop cuts it short; the next segment scores the same weights then.
        """
        try:
            line = self.validator.validate(step, self.model)
        except Interrupted:
            self.stopped = True
            return False
        self.guards.check(line)
        if "general_rise" in line and self.validator.is_spent(line):
            self.guards.end_early(self.validator.spent_budget(step, line))
        self.recorder.meter.start()
        return self.shared.resumable and self.validator.best_step() == step

    def _save(self, loop: training_loop.Loop, *, is_planned: bool) -> None:
        """Write a checkpoint aside, and move it to its place when it is complete: a run that is killed
        meanwhile must not resume from a part of it.

        Args:
            is_planned: whether every run over the same rows writes it.
        """
        aside = checkpoint_of(self.shared.folder / UNFINISHED, loop.step)
        self.saver.finish()
        with room_needed(self.shared.folder, f"the checkpoint of step {loop.step:,}"):
            self.recorder.log.sync()
            write = loop.save(aside)
        self.saver.begin(aside, write, best=self.validator.best_step(), is_planned=is_planned)
        # A part is a copy of its own: it is written while training goes on.
        if not inference.is_sharded(self.model):
            self.saver.finish()
        self._saved_at = time.monotonic()
        self.recorder.meter.start()

    def _finish(self) -> Fit:
        seconds = self.recorder.seconds
        step = self._choose_weights(self.step)
        scores = _require_finite(_scores_of(self.recorder.log.lines, step), step)
        interpolated = None
        inference.reshard(self.model)
        if self.settings.wise_ft:
            # The optimizer's state and the anchors are copies of the weights.
            if self.loop is not None:
                self.loop.anchors = ()
                self.loop.optimizer.state.clear()
            free_memory()
            interpolated = self._interpolate(self.model, step)
            scores = next(line for line in interpolated.scores if line["alpha"] == interpolated.alpha)
        stored_in = self.shared.stored_in
        if stored_in is not None and precision.round_weights(self.model, stored_in, keeps_format=True):
            scores = _require_finite(self.validator.score_now(self.model), step)
            if self.validator.is_spent(scores):
                raise self.validator.over_budget(step)
        return Fit(
            model=sharding.complete_model(self.model, lambda: self.shared.recipe.load(self.settings)),
            step=step,
            num_steps=self.step,
            num_tokens=int(self.tokens[: self.step].sum()),
            seconds=seconds,
            resumed_from_step=self.first_step,
            peak_memory_bytes=peak_memory_bytes(),
            history=self.recorder.log.lines,
            incidents=self.history.incidents,
            micro_batch_size=self.settings.rows_a_pass(),
            about=self.prepared.about | {"learning_rate": self.rate},
            scores={
                name: value for name, value in scores.items() if name.startswith(("validation_", "general_"))
            },
            interpolated=interpolated,
        )

    def _choose_weights(self, last_step: int) -> int:
        """Give the model its final weights; return the step after which it had them."""
        best = self.validator.best_step()
        is_over = self.validator.is_spent(_scores_of(self.recorder.log.lines, last_step))
        if is_over and (best is None or not self.shared.resumable):
            raise self.validator.over_budget(last_step)
        takes_best = self.shared.resumable and (self.settings.keep_best or is_over)
        if takes_best and best is not None and best != last_step:
            self._load_best(best)
            last_step = best
        return last_step

    def _load_best(self, step: int) -> None:
        run = self.shared

        def find(listener: Listener) -> Path:
            return checkpoint_of_step(step, run.folder, self.history, run.stored, listener)

        def load(listener: Listener) -> str | None:
            try:
                training_loop.load_weights(self.model, find(listener))
            except StoreError as error:
                return str(error)
            return None

        if inference.is_sharded(self.model):
            # Each host needs it; and this one waits without saying so.
            ranks.run_on_each_host(lambda: find(Progress(silent=True)), run.progress)
            training_loop.load_weights(self.model, checkpoint_of(run.folder, step))
        elif problem := ranks.run_on_first(load, run.progress):
            raise StoreError(f"best step {step:,}: {problem}; delete {run.folder} to train again")

    def _interpolate(self, model: PreTrainedModel, step: int) -> regularization.Interpolated:
        recipe = self.shared.recipe
        progress = self.shared.progress
        self.validator.max_rise = self.settings.max_general_rise
        is_shared = inference.is_sharded(model)

        def interpolate(listener: Listener) -> regularization.Interpolated | None:
            return regularization.interpolate(
                model,
                sharding.load(recipe.load_original, self.settings, is_shared=is_shared),
                self.settings.wise_ft,
                # Processes that share the model must choose the same alpha.
                lambda: (
                    self.validator.score_now(model) if is_shared else self.validator.score(model, listener)
                ),
                has_new_head=recipe.has_new_head,
                is_spent=self.validator.is_spent,
            )

        with inference.scoring():
            interpolated = ranks.make_passes(model, interpolate, progress)
        if interpolated is None:
            raise self.validator.over_budget(step)
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
        size = self.settings.rows_a_pass()
        processes = self.shared.num_processes
        step = self.step
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
        to_step = self.first_step if self.saver.saved_step is None else self.saver.saved_step
        reason = f"memory ran out with {size:,} rows a pass"
        self.history.add(
            Incident(
                "out_of_memory",
                step + 1,
                to_step,
                reason,
                round(self.recorder.seconds, 3),
                micro_batch_size=smaller,
            ),
            is_local=processes > 1,
        )
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


def _with_passes(run: TrainingRun, checkpoint: Path | None) -> TrainingSettings:
    """Return the settings with the rows of a pass in place of `auto`: on a resume those of the checkpoint, so
    that bits stay equal, where these processes can share the batch so.
    """
    settings = run.settings
    if settings.micro_batch_size == "auto" and checkpoint is not None:
        recorded = settings.model_copy(update=training_loop.passes_of(checkpoint))
        if recorded.batch_size % (recorded.rows_a_pass() * run.num_processes) == 0:
            settings = recorded
    return measuring.with_fitting_passes(
        run.recipe, settings, run.seed, run.num_processes, run.max_memory_gib, run.progress
    )


def _require_finite(scores: dict[str, Any], step: int) -> dict[str, Any]:
    if not math.isfinite(scores["validation_loss"]):
        raise DivergenceError(
            f"the weights after step {step:,} are not finite; lower training.learning_rate or use"
            " precision fp32"
        )
    return scores


def _scores_of(lines: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    return next(line for line in reversed(lines) if "validation_loss" in line and line["step"] == step)


def fine_tune(
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
    work_folder: Path,
    progress: Progress,
    *,
    num_processes: int = 1,
    max_memory_gib: float | None = None,
    stored_in: str | None = None,
    evaluate_at: Callable[[float], Iterable[int]] | Sequence[int] | None = None,
    resumable: bool = True,
    watch: training_loop.Watch = lambda moment, loop: None,
    checkpoints: StoredCheckpoints | None = None,
) -> Fit:
    """Train every weight of a model.

    Args:
        seed: of what is new in the model, of the order and of dropout.
        work_folder: checkpoints and the step log; training resumes from a valid checkpoint there.
        max_memory_gib: of a process, for `micro_batch_size: auto`. Default: what is free on the GPU.
        stored_in: number format that the model will be written in: fp32 weights get the values that they have
            in it, and are scored with them. Default: they stay.
        evaluate_at: steps after which validation rows are scored, beside the last; 0 is before the first. Or
            a function that returns them, given the number of steps, of which the last one may be a part.
            Default: twice an epoch.
        resumable: write checkpoints; one takes three times the weights' space.
        watch: called at each `loop.Moment`.
        checkpoints: those of this training in its store, where that is not a disk: they go there too, and may
            come from there.

    Raises:
        DataError, SettingsError: the recipe's model cannot be trained on its rows.
        SettingsError: see `require`; or more layers are frozen than there are.
        DivergenceError: a guard stopped the run, its weights are not finite, or none are within the
            forgetting budget.
        OutOfMemory: a single row does not fit, in training or in scoring.
        DiskError: there is no room for a checkpoint; earlier ones stay complete.
        StoreError: the best checkpoint is damaged; a damaged one that training would resume from is skipped.
        Interrupted: a stop was requested; if resumable, a checkpoint was written.
    """
    require(settings if resumable else settings.model_copy(update={"track": []}), num_processes)
    ranks.connect()
    history = RunHistory(
        work_folder,
        is_writer=is_first_rank(),
        stored_history=checkpoints.read_history() if checkpoints is not None and is_first_rank() else None,
        store=None if checkpoints is None else checkpoints.write_history,
    )
    # Hosts may have disks of their own, and the first process may write its file before or after another one
    # reads it.
    history.incidents = ranks.from_first(history.incidents)
    return _train_in_segments(
        TrainingRun(
            recipe=recipe,
            settings=settings,
            seed=seed,
            folder=work_folder,
            progress=progress,
            num_processes=num_processes,
            max_memory_gib=max_memory_gib,
            stored_in=stored_in,
            evaluate_at=evaluate_at,
            resumable=resumable,
            watch=watch,
            history=history,
            stored=checkpoints,
        )
    )


def require(settings: TrainingSettings, num_processes: int) -> None:
    """Check what training needs.

    Raises:
        SettingsError: the first problem: the batch cannot be divided, the hardware lacks the precision, two
            settings contradict each other, MLflow is missing, or a guard is not registered.
    """
    training_loop.accumulation_steps(settings, num_processes)
    # `auto` is fp16 on older GPUs, which only this machine knows.
    for is_here in (False, True):
        checked = settings.model_copy(update={"precision": precision.of(settings)}) if is_here else settings
        for key, message in contradictions(checked, num_processes):
            raise SettingsError(f"{'.'.join(key)}: {message}")
    require_trackers(settings.track)
    guard_settings(settings.guards)


def _train_in_segments(run: TrainingRun) -> Fit:
    resumed_from_step = None
    while True:
        with _setting_up(run.settings):
            segment = TrainingSegment(run)
        run = segment.shared
        if resumed_from_step is None:
            resumed_from_step = segment.first_step
            for name, value in segment.prepared.about.items():
                run.progress.say(f"{name}: {value}")
        try:
            return replace(segment.run(), resumed_from_step=resumed_from_step)
        except RolledBack:
            pass
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            segment.halve_micro_batches()
        # The exception is gone here, and with it the frames that held the tensors of the failed pass.
        del segment
        free_memory()


@contextmanager
def _setting_up(settings: TrainingSettings) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        copies = [name for name in ("distillation", "ewc", "l2_sp") if getattr(settings, name)]
        without = f"remove training.{copies[0]}, which holds a copy of the weights, " if copies else ""
        raise OutOfMemory(
            f"memory ran out before the first step: the model itself does not fit; {without}set a lower"
            " training.optimizer and training.weights of the memory ladder, or use a machine with more"
            " memory"
        ) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder of unfinished work; a second process is refused instead of writing into it.

    Of several ranks the first one locks it for all.
    """
    try:
        lock = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise SettingsError(
            f"{folder}: another process works in this folder; wait for it or stop it"
        ) from None
    with lock:
        yield
