"""retraining: when to train again, when a person is needed, and when to wait: a pure function.

Sensors and schedules gather what happened, call `decide`, carry out the decision and record it. Nothing here reads a clock, a store or
Dagster, so a year of operation can be simulated in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fullft_assets.errors import FailureClass
from fullft_assets.monitoring import Status
from fullft_assets.settings import RetrainingSettings
from fullft_assets.store import digest

HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
#: What is further ahead of `now` than clocks differ is dated in the future.
CLOCK_SECONDS = 300.0
#: Windows among which drift is counted.
NUM_WINDOWS = 3
#: Growth of the labelled examples since a drift began that is worth another retrain.
_MORE_OF_DRIFT = 0.5
#: Wait before the first retry; it doubles.
RETRY_HOURS = 1.0

Action = Literal["wait", "retrain", "request_labels", "alert", "hold"]
Outcome = Literal["in_flight", "succeeded", "failed", "cancelled"]

#: Statuses that are a verdict: of the others nothing follows.
_VERDICTS: tuple[Status, ...] = ("ok", "alarm", "confirmed")
#: Failures after which the same run may succeed unchanged.
_TRANSIENT: tuple[FailureClass, ...] = ("preemption", "infrastructure")


class _Frozen(BaseModel):
    """A value: numbers that are not finite are errors, never the reason of an action."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attempt(_Frozen):
    """One automatic retrain, as its run says; times in seconds since the epoch.

    Attributes:
        hours: that its run (and Dagster's own retries of it) took from start to end: plan, baselines, pilot, training, evaluation.
        num_examples: rows of the snapshot that it was launched for.
        evidence: `Decision.evidence` of the decision that launched it.
        settings_version: `Signals.settings_version` then.
        num_drift_examples: `drift_examples` then.
        failure: the class of its failure.
    """

    started_at: float
    hours: float = Field(ge=0)
    num_examples: int = Field(ge=0)
    evidence: str
    settings_version: str = ""
    num_drift_examples: int = Field(default=0, ge=0)
    outcome: Outcome = "succeeded"
    failure: FailureClass | None = None


class State(_Frozen):
    """What happened so far; times in seconds since the epoch.

    Attributes:
        attempts: automatic retrains in any order.
        trained_on: content digest of the snapshot of the last training; None before the first.
        num_trained: its rows.
        trained_at: when that training ended.
        champion_since: when the champion was released; None before the first release.
        frozen: why a person froze the use case, in a sentence; None: it is not frozen.
        raised: when each incident that is open was raised last.
    """

    attempts: list[Attempt] = []
    trained_on: str | None = None
    num_trained: int = Field(default=0, ge=0)
    trained_at: float | None = None
    champion_since: float | None = None
    frozen: str | None = None
    raised: dict[str, float] = {}


class Window(_Frozen):
    """The verdict on one window of production documents, and when it was made (seconds since the epoch)."""

    key: str
    status: Status
    at: float


class Signals(_Frozen):
    """Everything else that a decision depends on, as of now.

    Attributes:
        now, month_start: seconds since the epoch; the calendar month of the budget.
        num_examples: rows of the newest snapshot. Only a snapshot knows what of a delivery is new: copies, near-duplicates, older
            versions and rows over a group's cap are not in it.
        num_uncounted: valid examples of batches that it does not have yet.
        data_version: its content digest.
        settings_version: digest of the YAML sections that shape the model.
        windows: the windows, oldest first.
        is_monitored: whether windows are expected.
        num_labels_since_drift: valid examples of the batches that were read since `drift_began`.
        score_drop: the champion's primary metric at its release minus its value on newer test rows; None = unknown.
        live_drop: its accuracy at release minus that on production documents that were labelled since, where it certainly fell; else 0.
        estimated_hours: of the next run, from plan to evaluation.
        hourly_usd: price of the training machine.
        usd_per_point: what a point (0.01) of the primary metric is worth in a year; None: nothing is weighed against the cost of a run.
        predicted_gain: of the primary metric, what a learning curve predicts of the rows that are new; None = unknown.
        num_runs_in_flight: queued or started runs that train the model or freeze a snapshot.
    """

    now: float
    month_start: float
    num_examples: int = Field(ge=0)
    num_uncounted: int = Field(default=0, ge=0)
    data_version: str
    settings_version: str = ""
    windows: list[Window] = []
    is_monitored: bool = False
    num_labels_since_drift: int = Field(default=0, ge=0)
    score_drop: float | None = None
    live_drop: float = Field(default=0.0, ge=0)
    estimated_hours: float = Field(ge=0)
    hourly_usd: float = Field(default=0.0, ge=0)
    usd_per_point: float | None = Field(default=None, gt=0)
    predicted_gain: float | None = None
    num_runs_in_flight: int = Field(default=0, ge=0)


class Decision(_Frozen):
    """What to do, and why; `wait` has reasons too.

    Attributes:
        evidence: of a retrain, the digest of data and settings; of an alert or a request, the name of its incident.
        incidents: names of all incidents that are open now.
        count_first: whether the delivered examples that no snapshot has yet could change the decision: a snapshot counts them.
        notes: what was wrong with the records that the decision rests on.
    """

    action: Action
    reasons: list[str] = Field(min_length=1)
    evidence: str
    incidents: list[str] = []
    count_first: bool = False
    notes: list[str] = []


class RecordedDecision(_Frozen):
    """One line of the decision log."""

    case: str
    time: float = Field(description="Seconds since the epoch.")
    signals: Signals
    decision: Decision


class _Rule(NamedTuple):
    """Result of one rule: what it calls for, why, and whether examples that no snapshot has yet could change that."""

    name: Literal["new_data", "drift", "more_of_drift", "score", "age", "retry"]
    action: Action
    reason: str
    count_first: bool = False


class _Incident(NamedTuple):
    """Something that a person has to do."""

    key: str
    action: Literal["alert", "request_labels"]
    reason: str


def decide(state: State, signals: Signals, settings: RetrainingSettings) -> Decision:
    """Decide what to do.

    What costs nothing comes first: an alert or a request for labels is raised once, and again after `remind_days` while its reason
    lasts. A retrain needs a rule that calls for it, rows that no attempt had, and no obstacle (frozen, a run in flight, cooldown or
    backoff, the month's budget, a gain that is worth less than it costs).
    """
    rules = [*_retry(state, signals, settings), _new_data(state, signals, settings), _drift(state, signals, settings)]
    rules += [*_more_of_drift(state, signals, settings), _score(state, signals, settings), _age(state, signals, settings)]
    calls = [rule for rule in rules if rule.action == "retrain"]
    incidents = [*_incidents(state, signals, settings, is_called=bool(calls))]
    incidents += [_Incident(f"labels for {rule.name}", "request_labels", rule.reason) for rule in rules if rule.action == "request_labels"]
    count_first = signals.num_uncounted > 0 and not calls and any(rule.count_first for rule in rules)

    def made(action: Action, reasons: list[str], evidence: str | None = None) -> Decision:
        return Decision(
            action=action,
            reasons=reasons,
            evidence=evidence or retrain_evidence(signals),
            incidents=[incident.key for incident in incidents],
            count_first=count_first,
            notes=list(_notes(state, signals)),
        )

    for incident in incidents:
        if _is_due(incident, state, signals, settings):
            return made(incident.action, [incident.reason], incident.key)
    reasons = [rule.reason for rule in calls or rules]
    for incident in incidents:
        asked = "labels were asked for" if incident.action == "request_labels" else f"a person was alerted, as {incident.reason},"
        reasons.append(f"{asked} on {_date(state.raised[incident.key])}")
    if state.frozen is not None:
        return made("hold", [state.frozen, *reasons])
    if not calls:
        return made("wait", reasons)
    if obstacles := [*_obstacles(state, signals, settings), *_costs_more(calls, signals)]:
        return made("wait", reasons + [f"but {obstacle}" for obstacle in obstacles])
    return made("retrain", reasons)


def retrain_evidence(signals: Signals) -> str:
    """Return the digest of what a retrain would learn from. It does not depend on the rule that calls for it."""
    return digest([signals.data_version, signals.settings_version])


def run_key(state: State, decision: Decision) -> str:
    """Return the run key of a retrain, which Dagster remembers forever: a repeated tick has the same one until there is a run of it."""
    return f"retrain-{decision.evidence}-{len(state.attempts)}"


def raised_after(state: State, signals: Signals, decision: Decision) -> dict[str, float]:
    """Return `State.raised` after a decision: incidents whose reason is gone are closed."""
    raised = {key: at for key, at in state.raised.items() if key in decision.incidents}
    return raised | ({decision.evidence: signals.now} if decision.action in ("alert", "request_labels") else {})


def hours_spent(state: State, signals: Signals) -> float:
    """Return the hours of the attempts started in this calendar month."""
    return sum(attempt.hours for attempt in _past(state, signals) if attempt.started_at >= signals.month_start)


def num_unproductive(state: State, signals: Signals, settings: RetrainingSettings) -> int:
    """Return how many attempts in a row, the newest last, gained nothing.

    They are the ones under today's settings since the last promotion, however it came about; while drift lasts, all since the last window
    without: a champion that does not end it is no cure.
    """
    since = state.champion_since
    if drift_began(state, signals.windows, signals.now, settings) is not None:
        since = max((window.at for window in signals.windows if window.status == "ok" and window.at <= signals.now), default=None)
    attempts = [attempt for attempt in _past(state, signals) if attempt.outcome != "in_flight" and _same_settings(attempt, signals)]
    return sum(since is None or attempt.started_at > since for attempt in attempts)


def drift_began(state: State, windows: list[Window], now: float, settings: RetrainingSettings) -> float | None:
    """Return when the drift that counts began, in seconds since the epoch, or None where none counts.

    Of the last three verdicts since the last training, within the horizon, enough must be confirmed drift. A window without a verdict neither
    counts nor ends a drift.
    """
    since = max(now - settings.drift_horizon_days * DAY_SECONDS, _if_past(state.trained_at, now) or -float("inf"))
    recent = [window for window in windows if window.status in _VERDICTS and since < window.at <= now]
    confirmed = [window for window in recent[-NUM_WINDOWS:] if window.status == "confirmed"]
    if len(confirmed) < settings.drift_windows:
        return None
    calm = max((window.at for window in recent if window.status == "ok" and window.at < confirmed[0].at), default=since)
    return min(window.at for window in recent if window.at > calm and window.status != "ok")


def drift_examples(state: State, signals: Signals, settings: RetrainingSettings) -> int:
    """Return how many labelled examples since a drift began a retrain of now would learn from; 0 where no drift is being learned."""
    new, _ = _new_examples(state, signals)
    last = next(reversed(_past(state, signals)), None)
    if drift_began(state, signals.windows, signals.now, settings) is not None:
        # What a failed attempt was to learn of it counts still.
        tried = last.num_drift_examples if last is not None and last.outcome == "failed" else 0
        return min(tried + new, signals.num_labels_since_drift)
    return last.num_drift_examples + new if last is not None and last.num_drift_examples else 0


def _past(state: State, signals: Signals) -> list[Attempt]:
    """Return the attempts that are not dated in the future, oldest first."""
    past = [attempt for attempt in state.attempts if attempt.started_at <= signals.now + CLOCK_SECONDS]
    return sorted(past, key=lambda attempt: attempt.started_at)


def _if_past(at: float | None, now: float) -> float | None:
    """Return a time, or None if it is dated in the future: a training under a wrong clock would hide every drift until then."""
    return None if at is None or at > now + CLOCK_SECONDS else at


def _same_settings(attempt: Attempt, signals: Signals) -> bool:
    return attempt.settings_version == signals.settings_version


def _new_examples(state: State, signals: Signals) -> tuple[int, str]:
    """Return how many rows the snapshot has grown by, and since what: the last training, or an attempt with today's settings."""
    since, rows = "the last training", state.num_trained
    for attempt in state.attempts:
        if _same_settings(attempt, signals) and attempt.num_examples > rows:
            since, rows = f"the attempt of {_date(attempt.started_at)}", attempt.num_examples
            if attempt.outcome == "cancelled":
                since += ", which was cancelled and is not started again by itself (launch the model job by hand for it)"
    return max(0, signals.num_examples - rows), since


def _reach(state: State, signals: Signals, needed: int, available: int) -> tuple[bool, bool]:
    """Return whether the new examples are enough, and whether they may be once a snapshot has counted all."""
    return available >= needed, available < needed <= available + signals.num_uncounted


def _new_data(state: State, signals: Signals, settings: RetrainingSettings) -> _Rule:
    new, since = _new_examples(state, signals)
    share = settings.min_growth * state.num_trained
    needed = max(settings.min_new_examples, round(share))
    enough, count_first = _reach(state, signals, needed, new)
    name = f"min_new_examples = {needed:,}" if share <= needed and needed == settings.min_new_examples else f"{needed:,} (min_growth)"
    reason = f"{new:,} new examples since {since}, {'enough for' if enough else 'fewer than'} {name}"
    if count_first:
        reason += f"; a snapshot has yet to tell how many of {signals.num_uncounted:,} delivered ones are new"
    return _Rule("new_data", "retrain" if enough else "wait", reason, count_first)


def _drift(state: State, signals: Signals, settings: RetrainingSettings) -> _Rule:
    began = drift_began(state, signals.windows, signals.now, settings)
    if began is None:
        return _Rule("drift", "wait", f"drift is not confirmed in {settings.drift_windows} of the last {NUM_WINDOWS} windows")
    reason = f"drift is confirmed since the window of {_date(began)}"
    return _with_labels(state, signals, settings, "drift", reason, signals.num_labels_since_drift)


def _more_of_drift(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[_Rule]:
    """Yield that a drift is learned again from half as many labels more: the first retrain has few, and makes the drift its reference."""
    past = _past(state, signals)
    if not past or not past[-1].num_drift_examples or past[-1].outcome != "succeeded" or not _same_settings(past[-1], signals):
        return
    new, since = _new_examples(state, signals)
    learned = past[-1].num_drift_examples
    if learned >= settings.min_new_examples:
        return
    needed = max(round(_MORE_OF_DRIFT * learned), settings.min_new_examples_on_drift)
    enough, count_first = _reach(state, signals, needed, new)
    reason = f"{new:,} new examples since {since}, {'enough for' if enough else 'fewer than'} {needed:,} beside the {learned:,} that showed it a drift"
    yield _Rule("more_of_drift", "retrain" if enough else "wait", reason, count_first)


def _score(state: State, signals: Signals, settings: RetrainingSettings) -> _Rule:
    limit = f"max_score_drop = {settings.max_score_drop:g}"
    if signals.live_drop >= settings.max_score_drop:
        reason = f"the champion's accuracy is {signals.live_drop:.3f} lower on labelled production documents than at release ({limit})"
        return _with_labels(state, signals, settings, "score", reason, None)
    if signals.score_drop is None:
        return _Rule("score", "wait", "the champion's score on newer rows is unknown")
    if signals.score_drop < settings.max_score_drop:
        return _Rule("score", "wait", f"the champion's score changed by {0 - signals.score_drop:+.3f} on newer rows, within {limit}")
    reason = f"the champion's score fell by {signals.score_drop:.3f} on newer rows ({limit})"
    return _with_labels(state, signals, settings, "score", reason, None)


def _with_labels(
    state: State, signals: Signals, settings: RetrainingSettings, name: Literal["drift", "score"], reason: str, delivered: int | None
) -> _Rule:
    """Return a retrain if there are labels to learn from, else a request for them.

    Args:
        delivered: labelled examples that count at most. None: all.
    """
    new, _ = _new_examples(state, signals)
    needed = max(settings.min_new_examples_on_drift, 1)
    available = new if delivered is None else min(new, delivered)
    enough, count_first = _reach(state, signals, needed, available)
    if delivered is not None:
        count_first = count_first and delivered >= needed
    if enough:
        return _Rule(name, "retrain", f"{reason}, and {available:,} new labelled examples are there to learn from")
    if any(attempt.outcome == "in_flight" for attempt in state.attempts):
        return _Rule(name, "wait", f"{reason}; an attempt is in flight")
    if count_first:
        return _Rule(name, "wait", f"{reason}; a snapshot has yet to count {signals.num_uncounted:,} delivered examples", True)
    what = "label some of these production documents" if name == "drift" else "label more documents like those of today"
    return _Rule(name, "request_labels", f"{reason}, but only {available:,} of {needed:,} new labelled examples: {what}")


def _age(state: State, signals: Signals, settings: RetrainingSettings) -> _Rule:
    if state.champion_since is None:
        return _Rule("age", "wait", "there is no champion yet, so it has no age")
    # A training since then that did not beat the champion has used the newer data, too.
    since = max(_if_past(at, signals.now) or 0.0 for at in (state.champion_since, state.trained_at))
    reason = f"the champion was trained or challenged on {_date(since)} (max_age_days = {settings.max_age_days:g})"
    if signals.now - since < settings.max_age_days * DAY_SECONDS:
        return _Rule("age", "wait", reason)
    if signals.num_uncounted:
        return _Rule("age", "wait", f"{reason}; a snapshot has yet to count {signals.num_uncounted:,} delivered examples", True)
    tried = {attempt.evidence for attempt in state.attempts}
    if signals.data_version == state.trained_on or retrain_evidence(signals) in tried:
        return _Rule("age", "wait", f"{reason}, but there is nothing new to learn")
    return _Rule("age", "retrain", reason)


def _retry(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[_Rule]:
    number = _num_transient(state, signals)
    if 0 < number <= settings.max_retries:
        last = _past(state, signals)[-1]
        reason = (
            f"the attempt of {_date(last.started_at)} failed by {last.failure}, so that it is resumed ({number} of {settings.max_retries})"
        )
        yield _Rule("retry", "retrain", reason)


def _num_transient(state: State, signals: Signals) -> int:
    """Return how many attempts in a row, up to the newest, failed for a reason that may be gone."""
    number = 0
    for attempt in reversed(_past(state, signals)):
        if attempt.outcome != "failed" or attempt.failure not in _TRANSIENT or not _same_settings(attempt, signals):
            break
        number += 1
    return number


def _incidents(state: State, signals: Signals, settings: RetrainingSettings, *, is_called: bool) -> Iterator[_Incident]:
    """Yield what needs a person, the most urgent first."""
    yield from _in_vain(state, signals, settings)
    usd = signals.estimated_hours * signals.hourly_usd
    if is_called and signals.estimated_hours > settings.max_hours_per_month:
        reason = (
            f"the next run takes about {signals.estimated_hours:.1f} h, more than max_hours_per_month = {settings.max_hours_per_month:g}"
        )
        yield _Incident("budget", "alert", f"{reason}: raise it, or make the training shorter")
    elif is_called and settings.max_usd_per_month is not None and usd > settings.max_usd_per_month:
        reason = f"the next run costs about {usd:.2f} USD, more than max_usd_per_month = {settings.max_usd_per_month:g}"
        yield _Incident("budget", "alert", f"{reason}: raise it, or make the training shorter")
    yield from _without_verdict(state, signals, settings)


def _in_vain(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[_Incident]:
    """Yield that attempts gained nothing, or that the newest one failed for a reason that waiting does not remove: one incident at a time."""
    past = _past(state, signals)
    if not past:
        return
    last = past[-1]
    failed = f"the attempt of {_date(last.started_at)} failed ({last.failure or 'unknown'}): its run says what to fix"
    is_failed = last.outcome == "failed" and _same_settings(last, signals)
    number = num_unproductive(state, signals, settings)
    if number >= settings.alert_after_attempts:
        reason = f"{number} attempts in a row gained nothing, so that others come ever more rarely"
        yield _Incident("attempts in vain", "alert", f"{reason}; {failed if is_failed else 'read their evaluation reports'}")
    elif is_failed and last.failure not in _TRANSIENT:
        yield _Incident(f"failed attempt of {_date(last.started_at)}", "alert", failed)


def _without_verdict(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[_Incident]:
    """Yield that production is not seen: no window, or none with enough documents, reads like a calm year."""
    if not signals.is_monitored or state.champion_since is None:
        return
    seen = [window for window in signals.windows if window.at <= signals.now]
    # The first windows under a champion make the reference that the next are compared with.
    last = max(
        [_if_past(state.champion_since, signals.now) or 0.0, *(window.at for window in seen if window.status in (*_VERDICTS, "warming_up"))]
    )
    number = sum(window.at > last for window in seen)
    if number >= settings.alert_after_windows or signals.now - last > settings.alert_after_days * DAY_SECONDS:
        what = "no window came" if not number else f"no verdict on {'one window' if number == 1 else f'{number} windows'}"
        reason = f"{what} since {_date(last)}: look at what delivers production documents, and at monitoring.min_window_rows"
        yield _Incident("production is not seen", "alert", reason)


def _is_due(incident: _Incident, state: State, signals: Signals, settings: RetrainingSettings) -> bool:
    at = state.raised.get(incident.key)
    if at is None or at > signals.now + CLOCK_SECONDS:
        return True
    return signals.now - at >= settings.remind_days * DAY_SECONDS


def _obstacles(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[str]:
    if signals.num_runs_in_flight:
        yield f"{signals.num_runs_in_flight} run(s) of the model or of its snapshot are in flight"
    past = _past(state, signals)
    if past:
        hours, why = _wait_hours(state, signals, settings)
        until = past[-1].started_at + hours * HOUR_SECONDS
        # A fixed time, not "3 h ago": the reasons of a repeated tick stay the same, and are recorded once.
        if signals.now < until:
            yield f"the last attempt was on {_date(past[-1].started_at)}, and the next may start on {_date(until)} ({why})"
    spent = hours_spent(state, signals)
    if spent + signals.estimated_hours > settings.max_hours_per_month:
        yield (
            f"{spent:.1f} h were spent this month and the next run takes about {signals.estimated_hours:.1f} h "
            f"(max_hours_per_month = {settings.max_hours_per_month:g})"
        )
    usd, next_usd = spent * signals.hourly_usd, signals.estimated_hours * signals.hourly_usd
    if settings.max_usd_per_month is not None and usd + next_usd > settings.max_usd_per_month:
        yield (
            f"{usd:.2f} USD were spent this month and the next run costs about {next_usd:.2f} USD "
            f"(max_usd_per_month = {settings.max_usd_per_month:g})"
        )


def _costs_more(calls: list[_Rule], signals: Signals) -> Iterator[str]:
    """Yield that the run costs more than its expected gain is worth in a year; a gain that is unknown, as that of a drift or of age, is not weighed."""
    drop = max(signals.score_drop or 0.0, signals.live_drop)
    gains = [{"new_data": signals.predicted_gain, "score": drop}.get(rule.name) for rule in calls]
    known = [gain for gain in gains if gain is not None]
    if signals.usd_per_point is None or len(known) < len(gains):
        return
    points, cost = 100 * max(0.0, *known), signals.estimated_hours * signals.hourly_usd
    if (worth := points * signals.usd_per_point) < cost:
        yield (
            f"an expected gain of {points:.1f} points is worth {worth:.2f} USD a year (usd_per_point = {signals.usd_per_point:g}) and the next "
            f"run costs about {cost:.2f} USD"
        )


def _wait_hours(state: State, signals: Signals, settings: RetrainingSettings) -> tuple[float, str]:
    """Return how long after the newest attempt the next may start, and the setting that says so."""
    number = _num_transient(state, signals)
    if 0 < number <= settings.max_retries:
        return RETRY_HOURS * 2 ** (number - 1), "a retry"
    number = num_unproductive(state, signals, settings)
    if not number:
        return settings.cooldown_hours, f"cooldown_hours = {settings.cooldown_hours:g}"
    # 2 ** 60 is beyond any bound.
    backoff = min(settings.backoff_hours * 2.0 ** min(number - 1, 60), settings.max_backoff_days * 24)
    return max(settings.cooldown_hours, backoff), f"{number} in a row gained nothing (backoff_hours = {settings.backoff_hours:g})"


def _notes(state: State, signals: Signals) -> Iterator[str]:
    future = [attempt.started_at for attempt in state.attempts if attempt.started_at > signals.now + CLOCK_SECONDS]
    if future:
        yield f"{len(future)} attempt(s) dated in the future ({_date(min(future))}) count for no wait and no budget: look at the clocks"
    trained = [at for at in (state.trained_at, state.champion_since) if at is not None and at > signals.now + CLOCK_SECONDS]
    if trained:
        yield f"the last training or release is dated in the future ({_date(max(trained))}), which does not count: look at the clocks"
    windows = [window.at for window in signals.windows if window.at > signals.now + CLOCK_SECONDS]
    if windows:
        yield f"{len(windows)} window(s) dated in the future ({_date(min(windows))}) do not count: look at the clocks"
    raised = [key for key, at in state.raised.items() if at > signals.now + CLOCK_SECONDS]
    if raised:
        yield f"the ledger has incidents dated in the future ({', '.join(sorted(raised))}), which do not count"


def _date(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at:.0f} s since 1970"
