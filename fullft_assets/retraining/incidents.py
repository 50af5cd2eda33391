"""What a person has to do: an incident is raised once, and again after a time while its reason lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fullft_assets.retraining.history import (
    CLOCK_SECONDS,
    DAY_SECONDS,
    TRANSIENT,
    VERDICTS,
    date,
    has_same_settings,
    if_past,
    num_unproductive,
    past_attempts,
)
from fullft_assets.retraining.rules import Rule
from fullft_assets.retraining.values import Signals, State
from fullft_assets.settings import RetrainingSettings


class Incident(NamedTuple):
    """Something that a person has to do."""

    key: str
    action: Literal["alert", "request_labels"]
    reason: str


def find_incidents(state: State, signals: Signals, settings: RetrainingSettings, rules: Sequence[Rule]) -> Iterator[Incident]:
    """Yield what needs a person, the most urgent first.

    Args:
        rules: the results of all rules.
    """
    is_called = any(rule.action == "retrain" for rule in rules)
    yield from _in_vain(state, signals, settings)
    usd = signals.estimated_hours * signals.hourly_usd
    if is_called and signals.estimated_hours > settings.max_hours_per_month:
        reason = (
            f"the next run takes about {signals.estimated_hours:.1f} h, more than max_hours_per_month = {settings.max_hours_per_month:g}"
        )
        yield Incident("budget", "alert", f"{reason}: raise it, or make the training shorter")
    elif is_called and settings.max_usd_per_month is not None and usd > settings.max_usd_per_month:
        reason = f"the next run costs about {usd:.2f} USD, more than max_usd_per_month = {settings.max_usd_per_month:g}"
        yield Incident("budget", "alert", f"{reason}: raise it, or make the training shorter")
    yield from _without_verdict(state, signals, settings)
    for rule in rules:
        if rule.action == "request_labels":
            yield Incident(f"labels for {rule.name}", "request_labels", rule.reason)


def _in_vain(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that attempts gained nothing, or that the newest one failed for a reason that waiting does not remove: one incident at a time."""
    past = past_attempts(state, signals)
    if not past:
        return
    last = past[-1]
    failed = f"the attempt of {date(last.started_at)} failed ({last.failure or 'unknown'}): its run says what to fix"
    is_failed = last.outcome == "failed" and has_same_settings(last, signals)
    number = num_unproductive(state, signals, settings)
    if number >= settings.alert_after_attempts:
        reason = f"{number} attempts in a row gained nothing, so that others come ever more rarely"
        yield Incident("attempts in vain", "alert", f"{reason}; {failed if is_failed else 'read their evaluation reports'}")
    elif is_failed and last.failure not in TRANSIENT:
        yield Incident(f"failed attempt of {date(last.started_at)}", "alert", failed)


def _without_verdict(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that production is not seen: no window, or none with enough documents, reads like a calm year."""
    if not signals.is_monitored or state.champion_since is None:
        return
    seen = [window for window in signals.windows if window.at <= signals.now]
    # The first windows under a champion make the reference that the next are compared with.
    last = max(
        [if_past(state.champion_since, signals.now) or 0.0, *(window.at for window in seen if window.status in (*VERDICTS, "warming_up"))]
    )
    number = sum(window.at > last for window in seen)
    if number >= settings.alert_after_windows or signals.now - last > settings.alert_after_days * DAY_SECONDS:
        what = "no window came" if not number else f"no verdict on {'one window' if number == 1 else f'{number} windows'}"
        reason = f"{what} since {date(last)}: look at what delivers production documents, and at monitoring.min_window_rows"
        yield Incident("production is not seen", "alert", reason)


def is_due(incident: Incident, state: State, signals: Signals, settings: RetrainingSettings) -> bool:
    """Return whether an incident is to be raised now: for the first time, or once more."""
    at = state.raised.get(incident.key)
    if at is None or at > signals.now + CLOCK_SECONDS:
        return True
    return signals.now - at >= settings.remind_days * DAY_SECONDS
