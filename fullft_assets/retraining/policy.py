"""When to train again, when a person is needed, and when to wait."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_assets.retraining.history import CLOCK_SECONDS, date, retrain_evidence
from fullft_assets.retraining.incidents import Incident, find_incidents, is_due
from fullft_assets.retraining.obstacles import find_obstacles
from fullft_assets.retraining.rules import apply_rules
from fullft_assets.retraining.values import Action, Decision, Signals, State
from fullft_assets.settings import RetrainingSettings


def decide(state: State, signals: Signals, settings: RetrainingSettings) -> Decision:
    """Decide what to do.

    What costs nothing comes first: an alert, or a request for labels where no run is in flight, is raised
    once, and again after 30 days while its reason lasts. A retrain needs a rule that calls for it, rows
    that no attempt had, and no obstacle (frozen, a run in flight, cooldown or backoff, the month's budget, a
    gain that is worth less than it costs).
    """
    rules = apply_rules(state, signals, settings)
    calls = [rule for rule in rules if rule.action == "retrain"]
    obstacles = list(find_obstacles(state, signals, settings, calls)) if calls else []
    incidents = list(find_incidents(state, signals, settings, rules, obstacles))
    count_first = signals.num_uncounted > 0 and not calls and any(rule.count_first for rule in rules)

    def decided(action: Action, reasons: list[str], incident: Incident | None = None) -> Decision:
        return Decision(
            action=action,
            reasons=reasons,
            evidence=retrain_evidence(signals) if incident is None else incident.key,
            instruction="" if incident is None else incident.action,
            is_about_attempt=incident is not None and incident.is_about_attempt,
            incidents=[incident.key for incident in incidents],
            count_first=count_first,
            notes=list(_notes(state, signals)),
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


def _notes(state: State, signals: Signals) -> Iterator[str]:
    """Yield what is dated in the future by more than clocks differ, and so does not count."""
    dated = {
        "attempt(s)": [attempt.started_at for attempt in state.attempts],
        "training(s) or release(s)": [
            at for at in (state.trained_at, state.champion_since) if at is not None
        ],
        "window(s)": [window.at for window in signals.windows],
        "incident(s)": list(state.raised.values()),
    }
    for what, times in dated.items():
        future = [at for at in times if at > signals.now + CLOCK_SECONDS]
        if future:
            shown = f"{len(future)} {what} dated in the future ({date(min(future))})"
            yield f"{shown} do not count: look at the clocks"
