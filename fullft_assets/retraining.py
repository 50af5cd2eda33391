"""retraining: when to train again, when to ask for labels, and when to wait: a pure function.

Sensors and schedules gather the signals, call `decide`, carry out the decision and record it. Nothing
here reads a clock, a store or Dagster, so months of operation can be simulated in milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fullft_assets.monitoring import Status
from fullft_assets.settings import RetrainingSettings
from fullft_assets.store import digest

HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
BUDGET_DAYS = 30.0

Action = Literal["retrain", "ask_for_labels", "wait"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(_Frozen):
    """One automatic retrain that was launched, successful or not."""

    started_at: float = Field(description="Seconds since the epoch.")
    hours: float = Field(ge=0, description="Training hours: the estimate until the run has ended, then the measured ones.")
    evidence: str = Field(description="`Decision.evidence` of the decision that launched it.")


class Ask(_Frozen):
    """One request for labels."""

    at: float = Field(description="Seconds since the epoch.")
    evidence: str = Field(description="`Decision.evidence` of the decision that asked.")


class State(_Frozen):
    """Memory of earlier decisions."""

    attempts: list[Attempt] = Field(default=[], description="Automatic retrains in any order, failed ones included.")
    asks: list[Ask] = Field(default=[], description="Requests for labels in any order.")
    trained_on: str | None = Field(default=None, description="Data version of the last training snapshot; None before the first.")
    trained_at: float | None = Field(default=None, description="When that training ended, in seconds since the epoch.")
    champion: str | None = Field(default=None, description="Content digest of the champion; None before the first release.")
    champion_since: float | None = Field(default=None, description="When the champion was released, in seconds since the epoch.")

    @property
    def last_attempt_at(self) -> float | None:
        """When the newest attempt started, in seconds since the epoch."""
        return max((attempt.started_at for attempt in self.attempts), default=None)

    def hours_spent(self, now: float) -> float:
        """Return the training hours of the attempts started in the 30 days before `now`."""
        since = now - BUDGET_DAYS * DAY_SECONDS
        return sum(attempt.hours for attempt in self.attempts if attempt.started_at > since)


class Window(_Frozen):
    """The verdict on one window of production documents."""

    key: str
    status: Status
    at: float = Field(description="When the verdict was made, in seconds since the epoch.")


class Signals(_Frozen):
    """Everything that a decision depends on, as of now."""

    now: float = Field(description="Seconds since the epoch.")
    num_new_examples: int = Field(ge=0, description="Valid examples that are not in the last training snapshot.")
    data_version: str = Field(description="Digest of the valid examples that a snapshot taken now would read.")
    settings_version: str = Field(default="", description="Digest of the YAML sections that shape the model.")
    windows: list[Window] = Field(default=[], description="The last windows, newest last.")
    num_windows_since_training: int = Field(
        default=0, ge=0, description="How many of `windows`, from the newest back, are newer than the last training."
    )
    score_drop: float | None = Field(
        default=None,
        description="The champion's primary metric at its release minus its value on newer test rows; None = unknown.",
    )
    estimated_hours: float = Field(ge=0, description="Expected training hours of the next run.")
    num_runs_in_flight: int = Field(0, ge=0, description="Runs of this use case's model that are queued or started.")
    scheduled: bool = Field(default=False, description="The periodic schedule asks for the decision, not a sensor.")

    @model_validator(mode="after")
    def _windows_are_counted(self) -> Signals:
        if self.num_windows_since_training > len(self.windows):
            raise ValueError(
                f"num_windows_since_training: {self.num_windows_since_training} is more than the {len(self.windows)} windows given"
            )
        return self

    @property
    def drifted_windows(self) -> list[Window]:
        """The consecutive drifted windows up to the newest one since the last training, oldest first.

        A window with insufficient data is skipped: it neither counts nor ends the series.
        """
        recent = self.windows[len(self.windows) - self.num_windows_since_training :]
        streak: list[Window] = []
        for window in reversed([window for window in recent if window.status != "insufficient_data"]):
            if window.status != "confirmed":
                break
            streak.insert(0, window)
        return streak


class Decision(_Frozen):
    """What to do, and why; `wait` has reasons too."""

    action: Action
    reasons: list[str] = Field(min_length=1)
    evidence: str = Field(description="Digest of the evidence for the action; the same evidence never acts twice.")


class RecordedDecision(_Frozen):
    """One line of the decision log."""

    case: str
    time: float = Field(description="Seconds since the epoch.")
    signals: Signals
    decision: Decision


class _RuleResult(NamedTuple):
    """Result of one rule: the action that it calls for, and why."""

    rule: Literal["new_data", "drift", "score", "age"]
    action: Action
    reason: str


def decide(state: State, signals: Signals, settings: RetrainingSettings) -> Decision:
    """Decide whether to train again.

    A retrain needs a rule that calls for it (enough new data, drift, a worse score, age), something new to learn,
    evidence that was not acted on before, and no obstacle (a run in flight, the cooldown, the monthly hours).
    """
    results = [
        _new_data(signals, settings),
        _drift(signals, settings),
        _score(signals, settings),
        _age(state, signals, settings),
    ]
    evidence = retrain_evidence(state, signals)
    calls = [result for result in results if result.action == "retrain"]
    if calls:
        obstacles = _obstacles(state, signals, settings)
        if evidence in {attempt.evidence for attempt in state.attempts}:
            obstacles.append("this data was already tried with these settings: see that run, or launch one by hand")
        return _act("retrain", calls, obstacles, evidence)
    calls = [result for result in results if result.action == "ask_for_labels"]
    if calls:
        obstacles = _obstacles(state, signals, settings)
        fresh = [result for result in calls if not _was_asked(state, signals, result)]
        if not fresh:
            obstacles.append("labels were already asked for")
        # One request at a time: the request of a second rule comes at the next tick.
        call = (fresh or calls)[0]
        return _act("ask_for_labels", [call], obstacles, _ask_evidence(state, call))
    return Decision(action="wait", reasons=[result.reason for result in results], evidence=evidence)


def retrain_evidence(state: State, signals: Signals) -> str:
    """Return the digest of what a retrain would learn from: the data, the settings, and the last training's data.

    It does not depend on the rule: the same data is not trained on again because a second rule calls for it.
    """
    return digest([state.trained_on, signals.data_version, signals.settings_version])


def run_key(state: State, decision: Decision) -> str:
    """Return the run key of a decision's run.

    Dagster remembers run keys forever. The key contains the evidence, so a repeated tick launches nothing twice, and
    the time of the previous attempt, so evidence that comes back later is not dropped.
    """
    return f"{decision.action}-{decision.evidence}-{int(state.last_attempt_at or 0)}"


def _act(action: Action, calls: list[_RuleResult], obstacles: list[str], evidence: str) -> Decision:
    reasons = [result.reason for result in calls]
    if obstacles:
        return Decision(action="wait", reasons=reasons + [f"but {reason}" for reason in obstacles], evidence=evidence)
    return Decision(action=action, reasons=reasons, evidence=evidence)


def _ask_evidence(state: State, result: _RuleResult) -> str:
    return digest(["labels", result.rule, state.trained_on, state.champion])


def _was_asked(state: State, signals: Signals, result: _RuleResult) -> bool:
    """Return whether labels were asked for already: once for each drift, however long it lasts."""
    evidence = _ask_evidence(state, result)
    last = max((ask.at for ask in state.asks if ask.evidence == evidence), default=None)
    if last is None:
        return False
    calm_since = any(window.status == "ok" and window.at > last for window in signals.windows)
    return not (result.rule == "drift" and calm_since)


def _new_data(signals: Signals, settings: RetrainingSettings) -> _RuleResult:
    enough = signals.num_new_examples >= settings.min_new_examples
    relation = "new examples reach" if enough else "new examples, fewer than"
    reason = f"{signals.num_new_examples:,} {relation} min_new_examples = {settings.min_new_examples:,}"
    return _RuleResult("new_data", "retrain" if enough else "wait", reason)


def _drift(signals: Signals, settings: RetrainingSettings) -> _RuleResult:
    drifted = len(signals.drifted_windows)
    row = f"{drifted} drifted window{'' if drifted == 1 else 's'} in a row since the last training"
    if drifted < settings.drift_windows:
        return _RuleResult("drift", "wait", f"{row}, fewer than drift_windows = {settings.drift_windows}")
    if lacking := _lacking_labels(signals, settings):
        return _RuleResult("drift", "ask_for_labels", f"{row}, {lacking}: label some of these production documents")
    return _RuleResult("drift", "retrain", f"{row}, and {signals.num_new_examples:,} new labelled examples to learn from")


def _score(signals: Signals, settings: RetrainingSettings) -> _RuleResult:
    limit = f"max_score_drop = {settings.max_score_drop:g}"
    if signals.score_drop is None:
        return _RuleResult("score", "wait", "the champion's score on newer rows is unknown")
    if signals.score_drop < settings.max_score_drop:
        change = f"{0 - signals.score_drop:+.3f} on newer rows, within {limit}"
        return _RuleResult("score", "wait", f"the champion's score changed by {change}")
    reason = f"the champion's score fell by {signals.score_drop:.3f} on newer rows ({limit})"
    if lacking := _lacking_labels(signals, settings):
        return _RuleResult("score", "ask_for_labels", f"{reason}, {lacking}")
    return _RuleResult("score", "retrain", reason)


def _lacking_labels(signals: Signals, settings: RetrainingSettings) -> str:
    """Return which new examples a drift or a worse score lacks for a retrain, or an empty string.

    Either may last for months; without a minimum, each new example would start a training that changes nothing.
    """
    needed = max(settings.min_new_examples_on_drift, 1)
    if signals.num_new_examples >= needed:
        return ""
    return f"but only {signals.num_new_examples:,} new labelled examples of {needed:,} needed"


def _age(state: State, signals: Signals, settings: RetrainingSettings) -> _RuleResult:
    if state.champion_since is None:
        return _RuleResult("age", "wait", "there is no champion yet, so it has no age")
    # A training since then that did not beat the champion has used the newer data, too.
    days = (signals.now - max(state.champion_since, state.trained_at or 0.0)) / DAY_SECONDS
    reason = f"the champion was trained or challenged {days:.0f} days ago (max_age_days = {settings.max_age_days:g})"
    if days < settings.max_age_days:
        return _RuleResult("age", "wait", reason)
    if not signals.scheduled:
        return _RuleResult("age", "wait", f"{reason}; the schedule will decide")
    if signals.num_new_examples == 0:
        return _RuleResult("age", "wait", f"{reason}, but there is nothing new to learn")
    return _RuleResult("age", "retrain", reason)


def _obstacles(state: State, signals: Signals, settings: RetrainingSettings) -> list[str]:
    reasons = []
    if signals.num_runs_in_flight:
        reasons.append(f"{signals.num_runs_in_flight} run(s) of the model are in flight")
    last = state.last_attempt_at
    if last is not None and signals.now - last < settings.cooldown_hours * HOUR_SECONDS:
        # A fixed time, not "3 h ago": the reasons of a repeated tick stay the same, and are recorded once.
        at = datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M")
        reasons.append(f"the last attempt was at {at} UTC (cooldown_hours = {settings.cooldown_hours:g})")
    spent = state.hours_spent(signals.now)
    if spent + signals.estimated_hours > settings.max_hours_per_month:
        reasons.append(
            f"{spent:.1f} h were spent in {BUDGET_DAYS:.0f} days and the next run takes about "
            f"{signals.estimated_hours:.1f} h (max_hours_per_month = {settings.max_hours_per_month:g})"
        )
    return reasons
