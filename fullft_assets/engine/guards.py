"""What watches over a training run: rules on its step metrics, and the course that a run takes after a setback.

No torch here. The rules see the same numbers in the same order in every run over the same rows, and a resumed
run shows them its step log first: what they decide depends on nothing else, so it survives a kill.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fullft_assets.settings import (
    DeadGradientGuard,
    ExplodingGradientGuard,
    GuardsSettings,
    IdleGuard,
    LossSpikeGuard,
    NoProgressGuard,
    OverfittingGuard,
)
from fullft_assets.store.disk import replace_synced

#: Healthy steps before a running median says anything.
_LEAST_HISTORY = 20
#: A robust deviation counts at least this share of the first steps' loss: near zero every hard row is many of its own.
_LEAST_DEVIATION = 0.05
#: Below this share of the first steps' loss there is nothing left to learn: gradients may vanish.
_LEARNED_SHARE = 0.01
#: Of several findings at a step the strongest action counts.
_STRENGTH = ("off", "warn", "roll_back", "stop")
_COURSE_FILE = "course.json"


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one optimizer step; None = not measured at this step.

    Attributes:
        step: 1 for the first.
        loss: mean of the step's batch.
        grad_norm: before clipping.
        validation_loss: of the weights after the step.
        data_wait_share: of the time; None without an accelerator.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    validation_loss: float | None = None
    data_wait_share: float | None = None

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> StepMetrics:
        """Return the numbers of a line of the step log."""
        return cls(**{name: line.get(name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Finding:
    """One rule that fired: at which step, since which step it was wrong, and what was seen."""

    rule: str
    action: str
    step: int
    since: int
    reason: str
    mend: str

    def line(self) -> dict[str, Any]:
        """Return it as an event of the step log."""
        return {"step": self.step, "event": self.rule, "action": self.action, "since": self.since, "reason": self.reason}


@dataclass(frozen=True)
class Verdict:
    """What the rules say of a step."""

    findings: tuple[Finding, ...] = ()

    @property
    def action(self) -> str:
        """The strongest action asked for; `off` without a finding."""
        return self.gravest.action if self.findings else "off"

    @property
    def gravest(self) -> Finding:
        """The first finding with the strongest action."""
        return max(self.findings, key=lambda finding: _STRENGTH.index(finding.action))


class Rule(Protocol):
    """Looks at each step in order and keeps what it needs of them."""

    mend: str

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """Return (the first wrong step, what was seen) if the rule fires at this step. It then begins anew."""
        ...


class Guard:
    """All rules that the settings leave on.

    Args:
        settings: thresholds and actions.
        num_steps: planned optimizer steps.
        max_grad_norm: where gradients are clipped.
    """

    def __init__(self, settings: GuardsSettings, *, num_steps: int, max_grad_norm: float):
        rules: dict[str, Rule] = {
            "non_finite": NonFinite(),
            "loss_spike": LossSpike(settings.loss_spike),
            "exploding_gradient": ExplodingGradient(settings.exploding_gradient, max_grad_norm),
            "dead_gradient": DeadGradient(settings.dead_gradient),
            "no_progress": NoProgress(settings.no_progress, num_steps),
            "overfitting": Overfitting(settings.overfitting),
            "idle": Idle(settings.idle),
        }
        self._rules = {name: (rule, getattr(settings, name).action) for name, rule in rules.items()}

    def observe(self, metrics: StepMetrics) -> Verdict:
        """Show the rules one step; return what they say of it."""
        if not _is_finite(metrics):
            # The others would take it into their medians.
            return self._verdict(metrics, ["non_finite"])
        return self._verdict(metrics, self._rules)

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Show the rules the step log of the steps before; what they said then was obeyed then."""
        for line in lines:
            if "event" not in line:
                self.observe(StepMetrics.of_line(line))

    def _verdict(self, metrics: StepMetrics, names: Iterable[str]) -> Verdict:
        findings = []
        for name in names:
            rule, action = self._rules[name]
            found = rule.look(metrics) if action != "off" else None
            if found is not None:
                findings.append(Finding(name, action, metrics.step, *found, rule.mend))
        return Verdict(tuple(findings))


def _is_finite(metrics: StepMetrics) -> bool:
    return all(value is None or math.isfinite(value) for value in (metrics.loss, metrics.grad_norm, metrics.validation_loss))


class NonFinite:
    """A loss, gradient or validation loss that is no finite number."""

    mend = "lower training.learning_rate or use precision fp32"

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        if _is_finite(metrics):
            return None
        if metrics.loss is None:
            return metrics.step, "the model's outputs on the validation rows are not finite"
        return metrics.step, f"loss {metrics.loss}, gradient norm {metrics.grad_norm}"


class _Streak:
    """Steps in a row for which something holds."""

    def __init__(self, steps: int):
        self._steps = steps
        self._since: list[int] = []

    def add(self, step: int, holds: bool) -> int | None:
        """Return the first step of the streak once it is long enough, and begin anew."""
        self._since = [*self._since, step] if holds else []
        if len(self._since) < self._steps:
            return None
        first, self._since = self._since[0], []
        return first


class LossSpike:
    """A loss above the running median by many robust standard deviations (1.4826 times the median absolute deviation)."""

    mend = "lower training.learning_rate, or look at the rows of these steps"

    def __init__(self, settings: LossSpikeGuard):
        self._deviations = settings.deviations
        self._recent: deque[float] = deque(maxlen=settings.window)
        self._first: list[float] = []
        self._least = min(settings.window, _LEAST_HISTORY)
        self._streak = _Streak(settings.steps)

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        if metrics.loss is None:
            return None
        if len(self._first) < _LEAST_HISTORY:
            self._first.append(metrics.loss)
        limit = self._limit()
        # A spike is kept out of what later steps are compared with, until it has lasted.
        if metrics.loss <= limit:
            self._recent.append(metrics.loss)
        since = self._streak.add(metrics.step, metrics.loss > limit)
        if since is None:
            return None
        median = statistics.median(self._recent)
        self._recent.clear()
        return since, f"loss {metrics.loss:.4g} since step {since:,}, the median before was {median:.4g}"

    def _limit(self) -> float:
        if len(self._recent) < self._least:
            return math.inf
        median = statistics.median(self._recent)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
        return median + self._deviations * max(deviation, _LEAST_DEVIATION * statistics.fmean(self._first))


class ExplodingGradient:
    """Gradient norms many times the running median and many times what they are clipped to."""

    mend = "lower training.learning_rate or raise training.warmup_share"

    def __init__(self, settings: ExplodingGradientGuard, max_grad_norm: float):
        self._factor, self._least_norm = settings.factor, max_grad_norm
        self._recent: deque[float] = deque(maxlen=settings.window)
        self._least = min(settings.window, _LEAST_HISTORY)
        self._streak = _Streak(settings.steps)

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        norm = metrics.grad_norm
        if norm is None:
            return None
        median = statistics.median(self._recent) if len(self._recent) >= self._least else math.inf
        exploded = norm > self._factor * max(median, self._least_norm)
        if not exploded:
            self._recent.append(norm)
        since = self._streak.add(metrics.step, exploded)
        if since is None:
            return None
        self._recent.clear()
        return since, f"gradient norm {norm:.4g} since step {since:,}, the median before was {median:.4g}"


class DeadGradient:
    """Gradient norms of about zero while the loss is not."""

    mend = "lower training.learning_rate (weights that grew too large no longer learn) or unfreeze layers"

    def __init__(self, settings: DeadGradientGuard):
        self._below = settings.below
        self._first: float | None = None
        self._streak = _Streak(settings.steps)

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        if metrics.loss is None or metrics.grad_norm is None:
            return None
        self._first = metrics.loss if self._first is None else self._first
        dead = metrics.grad_norm < self._below and metrics.loss > _LEARNED_SHARE * self._first
        since = self._streak.add(metrics.step, dead)
        return (
            None
            if since is None
            else (since, f"gradient norm {metrics.grad_norm:.2g} since step {since:,} at a loss of {metrics.loss:.4g}")
        )


class NoProgress:
    """Mean losses of the first and the last quarter of the steps so far, compared once."""

    mend = "raise or lower training.learning_rate, or look at the labels"

    def __init__(self, settings: NoProgressGuard, num_steps: int):
        self._min_fall = settings.min_fall
        at = math.ceil(settings.share * num_steps)
        self._at = at if at >= settings.min_steps else None
        self._losses: list[float] = []

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        if self._at is None or metrics.loss is None or metrics.step > self._at:
            return None
        self._losses.append(metrics.loss)
        if metrics.step < self._at:
            return None
        quarter = max(1, len(self._losses) // 4)
        first, last = statistics.fmean(self._losses[:quarter]), statistics.fmean(self._losses[-quarter:])
        if last < first * (1 - self._min_fall):
            return None
        return 1, f"mean loss {last:.4g} over the last {quarter:,} of {self._at:,} steps, {first:.4g} over the first"


class Overfitting:
    """Validation losses above their best by a factor, several looks in a row."""

    mend = "lower training.epochs, or set training.keep_best"

    def __init__(self, settings: OverfittingGuard):
        self._factor = settings.factor
        self._best, self._best_step = math.inf, 0
        self._streak = _Streak(settings.looks)

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        loss = metrics.validation_loss
        if loss is None:
            return None
        if loss < self._best:
            self._best, self._best_step = loss, metrics.step
        since = self._streak.add(metrics.step, loss > self._factor * self._best)
        return None if since is None else (since, f"validation loss {loss:.4g}, its best was {self._best:.4g} at step {self._best_step:,}")


class Idle:
    """Shares of the time that the accelerator waited for data."""

    mend = "the rows come too slowly: a faster disk, or larger batches"

    def __init__(self, settings: IdleGuard):
        self._share = settings.share
        self._streak = _Streak(settings.steps)

    def look(self, metrics: StepMetrics) -> tuple[int, str] | None:
        """See `Rule`."""
        if metrics.data_wait_share is None:
            return None
        since = self._streak.add(metrics.step, metrics.data_wait_share > self._share)
        return (
            None if since is None else (since, f"{metrics.data_wait_share:.0%} of the time since step {since:,} went into waiting for data")
        )


@dataclass(frozen=True)
class Incident:
    """What made a run go on differently from planned, remembered before it does.

    Attributes:
        kind: `roll_back`: back to `to_step` at a lower rate; `out_of_memory`: smaller micro-batches from `to_step` on;
            `early_stop`: `to_step` is the last step.
        step: where it happened.
        to_step: the checkpoint that training goes on from; 0 = the base model.
        reason: one line.
        seconds: training seconds up to then, over all legs.
        rule: the guard's rule.
        learning_rate: the peak rate from then on.
        micro_batch_size: rows a forward pass from then on.
    """

    kind: Literal["roll_back", "out_of_memory", "early_stop"]
    step: int
    to_step: int
    reason: str
    seconds: float
    rule: str | None = None
    learning_rate: float | None = None
    micro_batch_size: int | None = None

    def line(self) -> dict[str, Any]:
        """Return it as an event of the step log."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"step": self.step, "event": known.pop("kind"), **known}


class Course:
    """The incidents of a piece of work so far, kept in its folder.

    Args:
        folder: of the unfinished work.
        is_writer: False on every rank but the first.
    """

    def __init__(self, folder: Path, *, is_writer: bool = True):
        self._path, self._is_writer = folder / _COURSE_FILE, is_writer
        try:
            self.incidents = [Incident(**found) for found in json.loads(self._path.read_text())]
        except FileNotFoundError:
            self.incidents = []

    def add(self, incident: Incident, *, alone: bool = False) -> None:
        """Remember an incident; it is on the disk before anything acts on it.

        Args:
            incident: what happened.
            alone: it happened on this rank alone, which therefore writes.
        """
        self.incidents.append(incident)
        if not (self._is_writer or alone):
            return
        replace_synced(self._path, json.dumps([asdict(known) for known in self.incidents], indent=1))

    @property
    def num_roll_backs(self) -> int:
        """Roll-backs so far."""
        return sum(incident.kind == "roll_back" for incident in self.incidents)

    @property
    def learning_rate(self) -> float | None:
        """The peak rate since the last roll-back, or None."""
        return next((i.learning_rate for i in reversed(self.incidents) if i.learning_rate is not None), None)

    @property
    def micro_batch_size(self) -> int | None:
        """Rows a forward pass since memory ran out last, or None."""
        return next((i.micro_batch_size for i in reversed(self.incidents) if i.micro_batch_size is not None), None)

    @property
    def end_step(self) -> int | None:
        """The step that training ended at before its plan, or None."""
        return next((i.to_step for i in self.incidents if i.kind == "early_stop"), None)

    def is_on(self, step: int, num_incidents: int) -> bool:
        """Return whether a checkpoint is still good that was written after this many incidents: no later one led back before it."""
        return all(step <= incident.to_step for incident in self.incidents[num_incidents:])
