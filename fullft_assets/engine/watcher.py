"""What looks at each step of a training run: logs it, scores the validation rows, lets the guards judge, heeds a request to stop."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from fullft_assets.engine import ranks
from fullft_assets.engine.checkpoints import StepLog, last_good
from fullft_assets.engine.forgetting import Forgetting
from fullft_assets.engine.guards import Course, Finding, Guard, Incident, StepMetrics
from fullft_assets.engine.recipe import Listener
from fullft_assets.engine.telemetry import Meter, Trackers
from fullft_assets.errors import DivergenceError, IdleError, Interrupted
from fullft_assets.models.inference import scoring
from fullft_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from fullft_assets.jobs.process import Progress


class RolledBack(Exception):
    """Training goes on from an earlier checkpoint, with a lower rate; the course says which."""


class Watcher(TrainerCallback):
    """The eyes of one leg of a run, from its start, a resume or a roll-back to the next.

    Args:
        settings: of this leg: micro-batch size and rate are what earlier incidents made of them.
        progress: told of each step; asked whether to stop.
        log: the step log, in the folder of the unfinished work.
        course: the incidents of the run.
        trackers: what the log is copied to.
        meter: times the steps.
        score: of a model, not wrapped: its scores on the validation rows by name, `loss` among them.
        forgetting: scores a model on the general set beside them.
        evaluate_at: steps after which they are scored.
        num_steps: planned optimizer steps.
        resumable: checkpoints are written.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        progress: Progress,
        log: StepLog,
        course: Course,
        trackers: Trackers,
        meter: Meter,
        score: Callable[[PreTrainedModel, Listener], dict[str, float]],
        forgetting: Forgetting,
        evaluate_at: set[int],
        *,
        num_steps: int,
        resumable: bool,
    ):
        self.settings, self.progress, self.log, self.course = settings, progress, log, course
        self.trackers, self.meter, self.score = trackers, meter, score
        self.forgetting, self.evaluate_at, self.resumable = forgetting, evaluate_at, resumable
        self.guard = Guard(settings.guards, num_steps=num_steps, max_grad_norm=settings.max_grad_norm)
        self.guard.recall(log.lines)
        #: A request to stop ended this leg.
        self.stopped = False
        #: The checkpoint that is being written would be written in every run over the same rows.
        self.save_is_planned = True
        self._began = time.monotonic()

    def begin(self) -> None:
        """Let training time run from here."""
        self._began = time.monotonic()
        self.meter.go()

    def score_before(self, model: PreTrainedModel) -> None:
        """Score the weights that training begins with on the general set, once a run.

        Raises:
            Interrupted: a stop was requested.
        """
        with scoring():
            line = self.forgetting.score_before(model, self.log, ranks.Between(self.progress))
        if line is not None:
            self.trackers.log(line)
            self.progress.say("before training: " + ", ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "step"))

    @property
    def seconds(self) -> float:
        """Training seconds so far, those of the legs before included."""
        return self.log.seconds_before + time.monotonic() - self._began

    def on_train_begin(self, args, state, control, **kwargs):
        """Leave out what came before the first step."""
        self.meter.go()

    def on_save(self, args, state, control, **kwargs):
        """Leave out the time that a checkpoint took."""
        self.meter.go()

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        """Log a step, judge it, score after it where that is planned, and end the leg where that is due.

        Raises:
            DivergenceError, IdleError, RolledBack: a guard says so.
            OutOfMemory: scoring does not fit.
        """
        if "loss" not in logs:
            return
        step = state.global_step
        self.save_is_planned = control.should_save
        self._step_done(step, state.max_steps, logs, is_fp16=args.fp16)
        if step in self.evaluate_at and self.validate(step, model):
            control.should_save = self.save_is_planned = True
        if step == self.course.end_step:
            control.should_training_stop = True
            control.should_save = self.save_is_planned = self.resumable
        # Ranks hear of a stop at different steps; one that saved alone would wait for the others for ever.
        elif self.stopped or (step < state.max_steps and ranks.any_says(self.progress.stop_requested)):
            self.stopped = control.should_training_stop = True
            control.should_save = self.resumable

    def validate(self, step: int, model: PreTrainedModel) -> bool:
        """Score the validation rows after a step and let the guards judge; return whether the weights are worth keeping as the best.

        A request to stop cuts it short; the next leg makes up for it.

        Raises:
            DivergenceError, RolledBack: a guard says so.
            OutOfMemory: scoring does not fit.
        """
        try:
            inner = getattr(model, "module", model)
            between = ranks.Between(self.progress)
            with scoring():
                scores = self.score(inner, between)
                general = self.forgetting.score(inner, self.log, between)
        except Interrupted:
            self.stopped = True
            return False
        # Ranks that score in batches of their own may differ in the last bit, and one that judged alone would save alone.
        scores, general = ranks.of_first((scores, general))
        line = {"step": step, **{f"validation_{name}": value for name, value in scores.items()}, **general}
        self._log(line)
        self.progress.say(f"step {step}: validation " + ", ".join(f"{name} {value:.4f}" for name, value in (scores | general).items()))
        self._judge(line)
        if general and self.forgetting.is_spent(general):
            self._end_early(self.forgetting.finding(step, general))
        self.meter.go()
        return self.resumable and self.best_step() == step

    def best_step(self) -> int | None:
        """Return the scored step with the lowest validation loss within the forgetting budget."""
        return self.log.best_step(self.forgetting.max_rise)

    def _step_done(self, step: int, num_steps: int, logs: dict[str, Any], *, is_fp16: bool) -> None:
        rates = self.meter.step_done(step)
        norm = logs.get("grad_norm")
        # In fp16 the loss scaler tries a scale, skips the step that overflows, and lowers it: not a divergence.
        if is_fp16 and norm is not None and not math.isfinite(norm):
            norm = None
        line = {
            "step": step,
            "loss": logs["loss"],
            "grad_norm": norm,
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round(rates.tokens_per_second, 1),
            "memory_gib": round(peak_memory_bytes() / 2**30, 3),
            "seconds": round(self.seconds, 3),
        }
        if rates.mfu is not None:
            line["mfu"] = round(rates.mfu, 4)
        if torch.cuda.is_available():
            line["data_wait_share"] = round(rates.data_wait_share, 4)
        self._log(line)
        shown = {name: line[name] for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib")}
        self.progress.step(step, num_steps, **shown)
        self._judge(line)

    def _log(self, line: dict[str, Any]) -> None:
        self.log.append(line)
        self.trackers.log(line)

    def _judge(self, line: dict[str, Any]) -> None:
        verdict = self.guard.observe(StepMetrics.of_line(line))
        for finding in verdict.findings:
            if finding.action == "warn":
                self._log(finding.line())
                self.progress.say(f"step {finding.step:,}: warning: {finding.rule}: {finding.reason}; {finding.mend}")
        if verdict.action in ("roll_back", "stop"):
            self._act(verdict.gravest)

    def _act(self, finding: Finding) -> None:
        if finding.action == "roll_back" and self._may_roll_back(finding):
            self._roll_back(finding)
        elif finding.rule == "overfitting":
            self._end_early(finding)
        else:
            self._log(finding.line())
            tried = self.course.num_roll_backs if finding.action == "roll_back" else 0
            helped_not = f"; {tried} roll-backs did not help" if tried else ""
            raise (IdleError if finding.rule == "idle" else DivergenceError)(
                f"training stopped at step {finding.step:,} by its guard {finding.rule}: {finding.reason}{helped_not}; {finding.mend}"
            )

    def _may_roll_back(self, finding: Finding) -> bool:
        # What the first step finds, it finds in the weights as they came: no rate mends them.
        at_once = finding.rule == "non_finite" and finding.step == 1
        return not at_once and self.course.num_roll_backs < self.settings.guards.max_roll_backs

    def _roll_back(self, finding: Finding) -> None:
        to_step = last_good(self.log.path.parent, self.course, finding.since) if self.resumable else 0
        rate = self.settings.learning_rate * self.settings.guards.rate_factor
        self.course.add(self._incident("roll_back", finding, to_step, learning_rate=rate))
        where = f"step {to_step:,}" if to_step else "the base model"
        self.progress.say(f"step {finding.step:,}: {finding.rule}: {finding.reason}; rolled back to {where}, learning rate {rate:.3g}")
        raise RolledBack

    def _end_early(self, finding: Finding) -> None:
        if self.course.end_step is not None:  # decided before a kill
            return
        incident = self._incident("early_stop", finding, finding.step)
        self.course.add(incident)
        self._log(incident.line())
        self.progress.say(f"step {finding.step:,}: training ends here: {finding.rule}: {finding.reason}")

    def _incident(self, kind: Any, finding: Finding, to_step: int, **changes: float) -> Incident:
        seconds = round(self.seconds, 3)
        return Incident(kind, finding.step, to_step, finding.reason, seconds, rule=finding.rule, **changes)


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: the accelerator's, or on a CPU the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
