"""When to train again, when a person is needed, and when to wait."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fullft_assets.errors import TRANSIENT
from fullft_assets.monitoring import MOST_WITHOUT_VERDICT
from fullft_assets.retraining.history import (
    DAY_SECONDS,
    HOUR_SECONDS,
    MAX_RETRIES,
    VERDICTS,
    Action,
    Decision,
    Signals,
    State,
    date,
    has_same_settings,
    in_order,
    is_settled,
    num_transient,
    num_unproductive,
    retrain_evidence,
)
from fullft_assets.retraining.rules import RANDOM_LABELS, Obstacle, Rule, apply_rules, find_obstacles
from fullft_assets.settings import RetrainingSettings

#: A run is in flight for too long after so many times what the next retrain is estimated to take, and at
#: least so many hours.
_HANGS_TIMES, _HANGS_HOURS = 3.0, 24.0
#: Attempts in a row that gained nothing after which a person is alerted.
_ATTEMPTS_IN_VAIN = 3
#: Days without a verdict on a window after which a person is alerted.
_DAYS_WITHOUT_VERDICT = 30.0
#: Days after which an incident is raised again while its reason lasts.
_REMIND_DAYS = 30.0


class Incident(NamedTuple):
    """Something that a person has to do.

    Attributes:
        key: names the reason: an incident is raised once while it lasts.
        action: what the person is asked to do.
    """

    key: str
    kind: Literal["alert", "request_labels"]
    reason: str
    action: str


def find_incidents(
    state: State,
    signals: Signals,
    settings: RetrainingSettings,
    rules: Sequence[Rule],
    obstacles: Sequence[Obstacle],
) -> Iterator[Incident]:
    """Yield what needs a person, the most urgent first.

    Args:
        rules: the results of all rules.
        obstacles: what keeps a retrain from starting that a rule calls for; none where none does.
    """
    yield from _in_vain(state, signals, settings)
    yield from _hangs(signals)
    if any(rule.action == "retrain" for rule in rules):
        yield from _budget(state, signals, settings, obstacles)
    yield from _without_verdict(state, signals)
    # A drift and the lower score that follows from it are one reason to label.
    requests = [rule for rule in rules if rule.action == "request_labels"]
    if requests:
        is_random = any(rule.name == RANDOM_LABELS for rule in requests)
        reason = "; ".join(rule.reason for rule in requests)
        # The first one is the drift's: a random sample of production has documents like those of today.
        action = requests[0].instruction
        yield Incident(RANDOM_LABELS if is_random else "labels", "request_labels", reason, action)


def _in_vain(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that attempts gained nothing, or that the newest one failed and is not repeated by itself: one
    incident at a time.
    """
    if not state.attempts:
        return
    last = in_order(state)[-1]
    failed = f"the attempt of {date(last.started_at)} failed ({last.failure or 'unknown'})"
    what_to_fix = "open its run, which says what to fix"
    is_failed = last.outcome == "failed" and has_same_settings(last, signals) and not is_settled(last, state)
    number = num_unproductive(state, signals, settings)
    if number >= _ATTEMPTS_IN_VAIN:
        reason = f"{number} attempts in a row gained nothing, so that others come ever more rarely"
        if is_failed:
            yield Incident("attempts in vain", "alert", f"{reason}; {failed}", what_to_fix)
        else:
            yield Incident("attempts in vain", "alert", reason, "read their evaluation reports")
    elif is_failed and (last.failure not in TRANSIENT or num_transient(state, signals) > MAX_RETRIES):
        yield Incident(f"failed attempt of {date(last.started_at)}", "alert", failed, what_to_fix)


def _hangs(signals: Signals) -> Iterator[Incident]:
    run, limit = signals.oldest_run, max(_HANGS_HOURS, _HANGS_TIMES * signals.estimated_hours)
    if run is None or signals.now - run.since <= limit * HOUR_SECONDS:
        return
    # A fixed number, so that the reasons of a repeated tick stay the same.
    has_not, what = (
        ("ended", "open it, and terminate it if it hangs")
        if run.has_started
        else ("begun", "look at Dagster's daemon and queue")
    )
    yield Incident(
        f"run {run.run_id} in flight",
        "alert",
        (
            f"the run {run.run_id} of {run.job}, asked for on {date(run.since)}, has not {has_not} in"
            f" {limit:,.0f} h and holds retrains back"
        ),
        what,
    )


def _budget(
    state: State, signals: Signals, settings: RetrainingSettings, obstacles: Sequence[Obstacle]
) -> Iterator[Incident]:
    """Yield that the next run is above the whole month's budget, or that nothing but what is left of it keeps
    a retrain from starting.
    """
    hours, usd = signals.estimated_hours, signals.estimated_hours * signals.hourly_usd
    above = []
    if hours > settings.max_hours_per_month:
        above.append(
            f"takes about {hours:.1f} h, more than max_hours_per_month = {settings.max_hours_per_month:g}"
        )
    if settings.max_usd_per_month is not None and usd > settings.max_usd_per_month:
        above.append(
            f"costs about {usd:.2f} USD, more than max_usd_per_month = {settings.max_usd_per_month:g}"
        )
    if above:
        reason = f"the next run {' and '.join(above)}"
        what = (
            "raise that, make the training shorter, or launch the model job by hand if the estimate is wrong"
        )
        yield Incident("budget", "alert", reason, what)
        return
    # A run in flight is no other reason: the evaluations of each day would end the incident, and raise it
    # again.
    others = [obstacle for obstacle in obstacles if obstacle.name not in ("month", "in flight")]
    month = [obstacle.reason for obstacle in obstacles if obstacle.name == "month"]
    if month and not others and state.frozen is None:
        reason = f"{' and '.join(month)}, so that the retrain that is called for waits for the next month"
        what = "raise that, or launch the model job by hand, which is not booked"
        yield Incident("month's budget", "alert", reason, what)


def _without_verdict(state: State, signals: Signals) -> Iterator[Incident]:
    if not signals.is_monitored or state.champion_since is None:
        return
    # The first windows under a champion make the reference that the next are compared with.
    judged = [window.at for window in signals.windows if window.status in (*VERDICTS, "warming_up")]
    last = max([state.champion_since, *judged])
    number = sum(window.at > last for window in signals.windows)
    if number >= MOST_WITHOUT_VERDICT or signals.now - last > _DAYS_WITHOUT_VERDICT * DAY_SECONDS:
        seen_windows = (
            "no window came"
            if not number
            else f"no verdict on {'one window' if number == 1 else f'{number} windows'}"
        )
        yield Incident(
            "production is not seen",
            "alert",
            f"{seen_windows} since {date(last)}",
            "look at what delivers production documents, and at monitoring.min_window_rows",
        )


def is_due(incident: Incident, state: State, signals: Signals) -> bool:
    """Return whether an incident is to be raised now: for the first time, or once more."""
    # What a run has learned, and may release in a moment, is no reason to label more.
    if incident.kind == "request_labels" and signals.num_runs_in_flight:
        return False
    at = state.raised.get(incident.key)
    return at is None or signals.now - at >= _REMIND_DAYS * DAY_SECONDS


def decide(state: State, signals: Signals, settings: RetrainingSettings) -> Decision:
    """Decide what to do.

    What costs nothing comes first: an alert, or a request for labels where no run is in flight, is raised
    once, and again after 30 days while its reason lasts. A retrain needs a rule that calls for it, rows
    that no attempt had, and no obstacle (frozen, a run in flight, cooldown or backoff, the month's budget).
    """
    rules = apply_rules(state, signals, settings)
    calls = [rule for rule in rules if rule.action == "retrain"]
    obstacles = list(find_obstacles(state, signals, settings)) if calls else []
    incidents = list(find_incidents(state, signals, settings, rules, obstacles))
    count_first = signals.num_uncounted > 0 and not calls and any(rule.count_first for rule in rules)

    def decided(action: Action, reasons: list[str], incident: Incident | None = None) -> Decision:
        return Decision(
            action=action,
            reasons=reasons,
            evidence=retrain_evidence(signals) if incident is None else incident.key,
            instruction="" if incident is None else incident.action,
            incidents=[incident.key for incident in incidents],
            count_first=count_first,
        )

    for incident in incidents:
        if is_due(incident, state, signals):
            return decided(incident.kind, [incident.reason], incident)
    reasons = [rule.reason for rule in calls or rules]
    for incident in incidents:
        asked = (
            "labels were asked for"
            if incident.kind == "request_labels"
            else f"a person was alerted, as {incident.reason},"
        )
        at = state.raised.get(incident.key)
        reasons.append(
            f"{asked} on {date(at)}"
            if at is not None
            else "labels are asked for once the run that is in flight has ended"
        )
    if state.frozen is not None:
        return decided("hold", [state.frozen, *reasons])
    if not calls:
        return decided("wait", reasons)
    if obstacles:
        return decided("wait", reasons + [f"but {obstacle.reason}" for obstacle in obstacles])
    return decided("retrain", reasons)


def run_key(state: State, decision: Decision) -> str:
    """Return the run key of a retrain, which Dagster remembers forever: a repeated tick has the same one
    until there is a run of it.
    """
    return f"retrain-{decision.evidence}-{len(state.attempts)}"


def raised_after(state: State, signals: Signals, decision: Decision) -> dict[str, float]:
    """Return `State.raised` after a decision: incidents whose reason is gone are closed."""
    raised = {key: at for key, at in state.raised.items() if key in decision.incidents}
    return raised | (
        {decision.evidence: signals.now} if decision.action in ("alert", "request_labels") else {}
    )
