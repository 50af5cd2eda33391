"""The callback through which a training segment follows Trainer: after each step it records, checks,
validates, acts on what the guards find (a warning, a roll-back, the end of training) and decides what to
save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from fullft_assets.checkpoint import GENERAL_MEASURES, score_before
from fullft_assets.errors import DivergenceError, Interrupted
from fullft_assets.jobs.progress import Listener
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.models.inference import scoring
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import (
    Checkpoint,
    Incident,
    IncidentKind,
    RunHistory,
    complete_checkpoints,
    last_good,
    publish,
    retain,
)
from fullft_assets.training.guards import GuardFinding, GuardSet, PlannedRun, StepMetrics
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.recorder import StepRecorder
from fullft_assets.training.stored_checkpoints import StoredCheckpoints

#: Name of the rule in incidents and in the step log.
RULE = "max_general_rise"
_FIX = (
    "snapshot.replay, training.distillation, a lower learning_rate or training.wise_ft make a model forget"
    " less"
)


class Validator:
    """Scores the weights of a training segment on the validation rows and on the general set, whose rise over
    the score before training may have a budget, and records their scores.
    """

    def __init__(self, recipe: Recipe, max_rise: float | None, recorder: StepRecorder):
        self._recipe = recipe
        self.max_rise = max_rise
        self._recorder = recorder

    def score_before(self, model: PreTrainedModel) -> None:
        """Score the weights that training begins with on the general set, once a run."""
        recorder = self._recorder
        if score_before(recorder.log.lines) is not None:
            return
        with scoring():
            scores = self._recipe.score_general(model, ranks.StopListener(recorder.progress))
        scores = ranks.from_first(scores)
        if not all(map(math.isfinite, scores.values())):
            raise DivergenceError(
                "snapshot.general: the outputs of the weights that training begins with are not finite on it"
            )
        if scores:
            recorder.record({"step": 0, **scores})
            recorder.progress.say(f"before training: {in_words(scores)}")

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return the scores of a model, not wrapped: `validation_loss` and others; and with a general set its
        score there and `general_rise`, the rise over the score before training.
        """
        scores = {f"validation_{name}": value for name, value in self._recipe.score(model, listener).items()}
        general = self._recipe.score_general(model, listener)
        for name, value in general.items():
            before = score_before(self._recorder.log.lines)
            assert before is not None, "the general set is scored before training"
            scores |= {name: value, "general_rise": value - before}
        return scores

    def validate(self, step: int, model: PreTrainedModel) -> dict[str, Any]:
        """Score the weights after a step; return the recorded line."""
        unwrapped: Any = getattr(model, "module", model)
        with scoring():
            scores = self.score(unwrapped, ranks.StopListener(self._recorder.progress))
        # Ranks that score in batches of their own may differ in the last bit, and a rank that decided alone
        # would save alone.
        scores = ranks.from_first(scores)
        line = {"step": step, **scores}
        self._recorder.record(line)
        shown = {name.removeprefix("validation_"): value for name, value in scores.items()}
        self._recorder.progress.say(f"step {step}: validation {in_words(shown)}")
        return line

    def is_spent(self, scores: Mapping[str, Any]) -> bool:
        """Return whether a model with these scores has forgotten more than the budget; a score that is not a
        number is over it.
        """
        return self.max_rise is not None and not scores["general_rise"] <= self.max_rise

    def spent_budget(self, step: int, scores: Mapping[str, Any]) -> GuardFinding:
        """Return the finding for a spent budget, which ends the run."""
        name = next(name for name in GENERAL_MEASURES if name in scores)
        rise = f"{scores['general_rise']:.4f} above the one before training"
        reason = f"{name} {scores[name]:.4f} is {rise}, max_general_rise is {self.max_rise:g}"
        return GuardFinding(RULE, "stop", step, step, reason, _FIX)

    def over_budget(self, step: int) -> DivergenceError:
        """Return the error of a run without any scored weights within the budget."""
        return DivergenceError(
            f"no scored weights, up to step {step:,}, are within training.max_general_rise"
            f" ({self.max_rise:g}); {_FIX}; or raise it"
        )

    def best_step(self) -> int | None:
        """Return the scored step with the lowest validation loss within the forgetting budget."""
        return self._recorder.log.best_step(self.max_rise)


def in_words(scores: dict[str, float]) -> str:
    """Return scores by name as one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


#: Roll-backs of a run at most, and the factor of each on the learning rate.
MAX_ROLL_BACKS = 2
RATE_FACTOR = 0.5


class RolledBack(Exception):
    """The segment ends before the run does: training continues from an earlier checkpoint with a lower rate;
    the run history has both.
    """


class GuardActions:
    """The guards of one segment and what follows from their findings.

    Args:
        stored: checkpoints that need not be on this machine's disk.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        recorder: StepRecorder,
        history: RunHistory,
        *,
        num_steps: int,
        resumable: bool,
        stored: StoredCheckpoints | None = None,
    ):
        self._settings = settings
        self._recorder = recorder
        self._history = history
        self._resumable = resumable
        self._stored = stored
        self._guards = GuardSet(settings.guards, PlannedRun(num_steps))
        self._guards.replay(recorder.log.lines)

    def check(self, line: dict[str, Any]) -> None:
        """Show the guards a line of the step log that is neither an event nor yet shown, and act on their
        findings.

        Raises:
            DivergenceError: the run ends.
            RolledBack: it continues from an earlier checkpoint.
        """
        findings = self._guards.observe(StepMetrics.of_line(line))
        for finding in findings:
            if finding.action == "warn":
                self._recorder.record(finding.line())
                self._say(finding.step, f"warning: {finding.rule}: {finding.reason}; {finding.fix}")
        if findings and findings[0].action in ("roll_back", "stop"):
            self._act(findings[0])

    def _act(self, finding: GuardFinding) -> None:
        num_roll_backs = self._history.num_roll_backs if finding.action == "roll_back" else MAX_ROLL_BACKS
        # What is wrong at the first step was wrong in the loaded weights: a lower rate does not fix them.
        is_in_loaded_weights = finding.rule == "non_finite" and finding.step == 1
        if num_roll_backs < MAX_ROLL_BACKS and not is_in_loaded_weights:
            self._roll_back(finding)
        if finding.rule == "overfitting":
            self.end_early(finding)
            return
        self._recorder.record(finding.line())
        is_in_vain = finding.action == "roll_back" and num_roll_backs > 0
        raise DivergenceError(
            f"training stopped at step {finding.step:,} by its guard {finding.rule}: {finding.reason}"
            f"{f'; {num_roll_backs} roll-backs did not help' if is_in_vain else ''}; {finding.fix}"
        )

    def _roll_back(self, finding: GuardFinding) -> None:
        checkpoints: list[Checkpoint] = []
        if self._resumable and is_first_rank():  # only the first process sees all checkpoints
            checkpoints += complete_checkpoints(self._recorder.log.path.parent, self._history)
            checkpoints += [] if self._stored is None else self._stored.complete(self._history)
        to_step = ranks.from_first(last_good(checkpoints, finding.since))
        rate = self._settings.learning_rate * RATE_FACTOR
        self._history.add(self._incident("roll_back", finding, to_step, learning_rate=rate))
        place = f"step {to_step:,}" if to_step else "the base model"
        self._say(
            finding.step,
            f"{finding.rule}: {finding.reason}; rolled back to {place}, learning rate {rate:.3g}",
        )
        raise RolledBack

    def end_early(self, finding: GuardFinding) -> None:
        """Make the step of a finding the last one of the run."""
        if self._history.end_step is not None:  # decided before a kill
            return
        incident = self._incident("early_stop", finding, finding.step)
        self._history.add(incident)
        self._recorder.record(incident.line())
        self._say(finding.step, f"training ends here: {finding.rule}: {finding.reason}")

    def _incident(
        self, kind: IncidentKind, finding: GuardFinding, to_step: int, learning_rate: float | None = None
    ) -> Incident:
        seconds = round(self._recorder.seconds, 3)
        return Incident(
            kind,
            finding.step,
            to_step,
            finding.reason,
            seconds,
            rule=finding.rule,
            learning_rate=learning_rate,
        )

    def _say(self, step: int, message: str) -> None:
        self._recorder.progress.say(f"step {step:,}: {message}")


#: Steps in a row without a finite gradient that end a run, whatever its guards do. Clipping makes such
#: gradients zero, and the loss scaler of fp16, which skips such steps, has halved its scale to nothing by
#: then.
_MOST_UNMOVED_STEPS = 20


class SegmentCallback(TrainerCallback):
    """Follows one segment of a run, from its start, a resume or a roll-back to its end.

    Args:
        history: may have an early end of the run.
        evaluate_at: steps after which the validation rows are scored.
        resumable: whether checkpoints are written.
        stored: where checkpoints go beside this machine's disk.
    """

    def __init__(
        self,
        recorder: StepRecorder,
        validator: Validator,
        guards: GuardActions,
        history: RunHistory,
        evaluate_at: set[int],
        *,
        resumable: bool,
        stored: StoredCheckpoints | None,
    ):
        self._recorder = recorder
        self._validator = validator
        self._guards = guards
        self._history = history
        self._evaluate_at = evaluate_at
        self._resumable = resumable
        self._stored = stored
        #: The step of the last checkpoint of this segment; None: there is none yet.
        self.saved_step: int | None = None
        self._num_unmoved_steps = 0
        #: A request to stop ended this segment.
        self.stopped = False
        #: Whether the checkpoint that is being written would be written in every run over the same rows.
        self.save_is_planned = True

    def on_save(self, args, state, control, **kwargs):
        """Exclude the time of a checkpoint from the next step's rates."""
        self.saved_step = state.global_step
        self._recorder.meter.start()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, model: Any = None, **kwargs):
        """Record and check a step, validate where that is planned, and end the segment where that is due."""
        if logs is None or "loss" not in logs:
            return
        step = state.global_step
        self.save_is_planned = control.should_save
        self._guards.check(self._recorder.record_step(step, state.max_steps, logs, is_fp16=args.fp16))
        is_moved = math.isfinite(logs.get("grad_norm") or 0.0)
        self._num_unmoved_steps = 0 if is_moved else self._num_unmoved_steps + 1
        if self._num_unmoved_steps >= _MOST_UNMOVED_STEPS:
            raise DivergenceError(
                f"training stopped at step {step:,}: no gradient was finite in the last {_MOST_UNMOVED_STEPS}"
                " steps, so nothing was learned; use training.precision: fp32, or look for weights in"
                " base_model that are not finite"
            )
        if step in self._evaluate_at and self.validate(step, model):
            control.should_save = self.save_is_planned = True
        if step == self._history.end_step:
            control.should_training_stop = True
            control.should_save = self.save_is_planned = self._resumable
        # Ranks learn of a stop at different steps; a rank that saved alone would wait for the others for
        # ever.
        elif self.stopped or (
            step < state.max_steps and ranks.any_rank(self._recorder.progress.stop_requested)
        ):
            self.stopped = control.should_training_stop = True
            control.should_save = self._resumable

    def publish(self, written: Path, target: Path) -> None:
        """Move a checkpoint that Trainer has written aside to its place, and delete those that are no longer
        kept.
        """
        self._recorder.log.sync()
        if self._stored is not None:
            self._stored.copy_beside(target.parent, written)
        publish(written, target, num_incidents=len(self._history.incidents), is_planned=self.save_is_planned)
        self.delete_old_checkpoints()
        if self._stored is not None:
            best = self._validator.best_step()
            # The best one first: who finds the newest one there finds all that it needs.
            offered = [
                target.parent / checkpoint.name
                for checkpoint in complete_checkpoints(target.parent, self._history)
                if checkpoint.step == best
            ]
            self._stored.offer([*offered, target], self._history, best=best)

    def delete_old_checkpoints(self) -> None:
        """Delete the checkpoints that are no longer kept on this machine."""
        best = self._validator.best_step()
        with self._stored.spared() if self._stored is not None else nullcontext() as spared:
            retain(
                self._recorder.log.path.parent,
                self._history,
                best=best,
                spared=spared,
            )

    def validate(self, step: int, model: PreTrainedModel) -> bool:
        """Score the weights after a step and check the scores; return whether to keep the weights as the
        best.

        A request to stop cuts it short; the next segment scores the same weights then.
        """
        try:
            line = self._validator.validate(step, model)
        except Interrupted:
            self.stopped = True
            return False
        self._guards.check(line)
        if "general_rise" in line and self._validator.is_spent(line):
            self._guards.end_early(self._validator.spent_budget(step, line))
        self._recorder.meter.start()
        return self._resumable and self._validator.best_step() == step
