"""Guards watch a training run: each looks at the metrics of every step and reports what went wrong. No torch
here.

A guard sees the same numbers in the same order in every run over the same rows, and a resumed run shows it
the step log first: what it reports depends on nothing else, so it survives a kill.
`fullft_assets.settings.guards` registers ours and those of other packages.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fullft_assets.settings.guards import (
    GUARDS,
    Guards,
    GuardSettings,
    RollsBack,
    guard_settings,
)

#: Recent healthy steps that a step is compared with, and the fewest of them for a running median.
_WINDOW = 50
_MIN_HISTORY = 20
#: A loss is a spike this many robust standard deviations above the median, for as many steps in a row: a
#: single one is only a hard batch.
_SPIKE_DEVIATIONS = 8.0
_SPIKE_STEPS = 3
#: Share of the steps after which the loss must have fallen; fewer steps than these are too few to judge.
_PROGRESS_SHARE = 0.5
_PROGRESS_STEPS = 100
#: A validation loss this many times the best one is overfitted, after as many validations in a row.
_OVERFITTED_FACTOR = 1.1
_OVERFITTED_LOOKS = 2
#: A robust deviation counts as at least this share of the first steps' loss: near zero every hard row is many
#: deviations away.
_MIN_DEVIATION = 0.05
#: Actions; of several findings at a step the strongest one counts.
_STRENGTH = ("off", "warn", "roll_back", "stop")


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one optimizer step; None = not measured at this step.

    Attributes:
        validation_loss: of the weights after the step.
        tokens_per_second: useful tokens, averaged over the last steps.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "StepMetrics":
        """Return the metrics in a line of the step log."""
        return cls(
            line["step"], **{name: line.get(name) for name in cls.__dataclass_fields__ if name != "step"}
        )


@dataclass(frozen=True)
class PlannedRun:
    """The plan of the run that a guard watches."""

    num_steps: int


@dataclass(frozen=True)
class Symptom:
    """What a guard saw: the first step at which it was wrong, and one line with the numbers."""

    since: int
    reason: str


class Guard(Protocol):
    """One guard. A new one is made at each start, resume and roll-back, and is shown the step log so far.

    Attributes:
        settings_class: of its settings in the YAML: `GuardSettings`, which has the `action`, or a subclass
            with another default action or with settings of the guard's own.
        fix: what a user can do about it, one line.
    """

    settings_class: ClassVar[type[GuardSettings]]
    fix: ClassVar[str]

    def __init__(self, settings: Any, run: PlannedRun) -> None:
        """Take an instance of `settings_class`, and the plan of the run."""

    def look(self, metrics: StepMetrics) -> Symptom | None:
        """Look at the next step; return what is wrong, or None. After a symptom the guard starts again.

        What it returns may depend only on the metrics that it was shown; otherwise a resumed run would
        differ.
        """


@dataclass(frozen=True)
class GuardFinding:
    """A symptom with the name of the guard that reports it, the step, the action that follows, and what a
    user can do.
    """

    rule: str
    action: str
    step: int
    since: int
    reason: str
    fix: str

    def line(self) -> dict[str, Any]:
        """Return the finding as an event of the step log."""
        return {
            "step": self.step,
            "event": self.rule,
            "action": self.action,
            "since": self.since,
            "reason": self.reason,
        }


class GuardSet:
    """All guards that the settings leave on."""

    def __init__(self, guards: Guards, run: PlannedRun):
        self._guards: dict[str, tuple[Guard, str]] = {
            name: (GUARDS.get(name)(settings, run), settings.action)
            for name, settings in guard_settings(guards).items()
            if settings.action != "off"
        }

    def observe(self, metrics: StepMetrics) -> list[GuardFinding]:
        """Show the guards one step; return their findings, the one with the strongest action first."""
        # The other guards would take numbers that are not finite into their medians.
        names = self._guards if _is_finite(metrics) else self._guards.keys() & {"non_finite"}
        findings = []
        for name in names:
            guard, action = self._guards[name]
            symptom = guard.look(metrics)
            if symptom is not None:
                findings.append(
                    GuardFinding(name, action, metrics.step, symptom.since, symptom.reason, guard.fix)
                )
        return sorted(findings, key=lambda finding: -_STRENGTH.index(finding.action))

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Show the guards the step log so far; what they found then was acted on then."""
        for line in lines:
            if "event" not in line:
                self.observe(StepMetrics.of_line(line))


def _is_finite(metrics: StepMetrics) -> bool:
    return all(
        value is None or math.isfinite(value)
        for value in (metrics.loss, metrics.grad_norm, metrics.validation_loss)
    )


class NonFinite:
    """A loss, gradient or validation loss that is not a finite number."""

    settings_class = RollsBack
    fix = "lower training.learning_rate or use precision fp32"

    def __init__(self, settings: GuardSettings, run: PlannedRun):
        """Take no thresholds."""

    def look(self, metrics: StepMetrics) -> Symptom | None:
        if _is_finite(metrics):
            return None
        of_step = f"loss {metrics.loss}, gradient norm {metrics.grad_norm}"
        return Symptom(
            metrics.step,
            "the model's outputs on the validation rows are not finite" if metrics.loss is None else of_step,
        )


class Streak:
    """Counts steps in a row for which a condition holds."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._steps: list[int] = []

    def add(self, step: int, holds: bool) -> int | None:
        """Return the first step of the streak once it is long enough, and start again; else None."""
        self._steps = [*(self._steps if len(self._steps) < self._num_steps else []), step] if holds else []
        return self._steps[0] if len(self._steps) == self._num_steps else None


class LossSpike:
    """A loss above the running median by many robust standard deviations (1.4826 times the median absolute
    deviation).
    """

    settings_class = RollsBack
    fix = "lower training.learning_rate, or look at the rows of these steps"

    def __init__(self, settings: GuardSettings, run: PlannedRun):
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._first: list[float] = []
        self._streak = Streak(_SPIKE_STEPS)

    def look(self, metrics: StepMetrics) -> Symptom | None:
        if metrics.loss is None:
            return None
        if len(self._first) < _MIN_HISTORY:
            self._first.append(metrics.loss)
        limit = self._limit()
        # Later steps are not compared with a spike until it has lasted.
        if metrics.loss <= limit:
            self._recent.append(metrics.loss)
        since = self._streak.add(metrics.step, metrics.loss > limit)
        if since is None:
            return None
        median = statistics.median(self._recent)
        self._recent.clear()
        return Symptom(
            since, f"loss {metrics.loss:.4g} since step {since:,}, the median before was {median:.4g}"
        )

    def _limit(self) -> float:
        if len(self._recent) < _MIN_HISTORY:
            return math.inf
        median = statistics.median(self._recent)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
        return median + _SPIKE_DEVIATIONS * max(deviation, _MIN_DEVIATION * statistics.fmean(self._first))


class NoProgress:
    """Mean losses of the first and the last quarter of the steps so far, compared once."""

    settings_class = GuardSettings
    fix = "raise or lower training.learning_rate, or look at the labels"

    def __init__(self, settings: GuardSettings, run: PlannedRun):
        step = math.ceil(_PROGRESS_SHARE * run.num_steps)
        self._look_at_step = step if step >= _PROGRESS_STEPS else None
        self._losses: list[float] = []

    def look(self, metrics: StepMetrics) -> Symptom | None:
        last_step = self._look_at_step
        if last_step is None or metrics.loss is None or metrics.step > last_step:
            return None
        self._losses.append(metrics.loss)
        if metrics.step < last_step:
            return None
        quarter = max(1, len(self._losses) // 4)
        first = statistics.fmean(self._losses[:quarter])
        last = statistics.fmean(self._losses[-quarter:])
        losses = f"mean loss {last:.4g} over the last {quarter:,} of {last_step:,} steps, {first:.4g}"
        return None if last < first else Symptom(1, f"{losses} over the first")


class Overfitting:
    """Validation losses above their best by a factor, at several validations in a row."""

    settings_class = GuardSettings
    fix = "lower training.epochs, or set training.keep_best"

    def __init__(self, settings: GuardSettings, run: PlannedRun):
        #: The lowest loss, and the step of it.
        self._best = (math.inf, 0)
        self._streak = Streak(_OVERFITTED_LOOKS)

    def look(self, metrics: StepMetrics) -> Symptom | None:
        loss = metrics.validation_loss
        if loss is None:
            return None
        self._best = min(self._best, (loss, metrics.step))
        best, best_step = self._best
        since = self._streak.add(metrics.step, loss > _OVERFITTED_FACTOR * best)
        reason = f"validation loss {loss:.4g}, its best was {best:.4g} at step {best_step:,}"
        return None if since is None else Symptom(since, reason)
