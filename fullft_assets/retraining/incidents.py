"""What a person has to do: an incident is raised once, and again after a time while its reason lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fullft_assets.errors import TRANSIENT
from fullft_assets.retraining.history import (
    CLOCK_SECONDS,
    DAY_SECONDS,
    HOUR_SECONDS,
    VERDICTS,
    date,
    has_same_settings,
    if_past,
    is_settled,
    num_transient,
    num_unproductive,
    past_attempts,
)
from fullft_assets.retraining.obstacles import Obstacle
from fullft_assets.retraining.rules import RANDOM_LABELS, Rule
from fullft_assets.retraining.values import Signals, State
from fullft_assets.settings import RetrainingSettings

#: A run is in flight for too long after so many times what the next retrain is estimated to take, and at
#: least so many hours.
_HANGS_TIMES, _HANGS_HOURS = 3.0, 24.0


class Incident(NamedTuple):
    """Something that a person has to do."""

    key: str
    action: Literal["alert", "request_labels"]
    reason: str


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
    yield from _without_verdict(state, signals, settings)
    # A drift and the lower score that follows from it are one reason to label.
    if requests := {rule.name: rule.reason for rule in rules if rule.action == "request_labels"}:
        yield Incident(
            RANDOM_LABELS if RANDOM_LABELS in requests else "labels",
            "request_labels",
            "; ".join(requests.values()),
        )


def _in_vain(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that attempts gained nothing, or that the newest one failed and is not repeated by itself: one
    incident at a time.
    """
    past = past_attempts(state, signals)
    if not past:
        return
    last = past[-1]
    failed = (
        f"the attempt of {date(last.started_at)} failed ({last.failure or 'unknown'}): its run says what"
        " to fix"
    )
    is_failed = (
        last.outcome == "failed" and has_same_settings(last, signals) and not is_settled(last, state, signals)
    )
    number = num_unproductive(state, signals, settings)
    if number >= settings.alert_after_attempts:
        reason = f"{number} attempts in a row gained nothing, so that others come ever more rarely"
        yield Incident(
            "attempts in vain",
            "alert",
            f"{reason}; {failed if is_failed else 'read their evaluation reports'}",
        )
    elif is_failed and (
        last.failure not in TRANSIENT or num_transient(state, signals) > settings.max_retries
    ):
        yield Incident(f"failed attempt of {date(last.started_at)}", "alert", failed)


def _hangs(signals: Signals) -> Iterator[Incident]:
    """Yield that a run which holds retrains back is in flight for so long that it may never end."""
    run, limit = signals.oldest_run, max(_HANGS_HOURS, _HANGS_TIMES * signals.estimated_hours)
    since = None if run is None else if_past(run.since, signals.now)
    if run is None or since is None or signals.now - since <= limit * HOUR_SECONDS:
        return
    # A fixed number, so that the reasons of a repeated tick stay the same.
    has_not, what = (
        ("ended", "open it, and terminate it if it hangs")
        if run.has_started
        else ("begun", "look at Dagster's daemon and queue")
    )
    reason = (
        f"the run {run.run_id} of {run.job}, asked for on {date(since)}, has not {has_not} in {limit:,.0f} h"
        " and holds retrains back"
    )
    yield Incident(f"run {run.run_id} in flight", "alert", f"{reason}: {what}")


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
        yield Incident("budget", "alert", f"{reason}: {what}")
        return
    # A run in flight is no other reason: the evaluations of each day would end the incident, and raise it
    # again.
    others = [obstacle for obstacle in obstacles if obstacle.name not in ("month", "in flight")]
    month = [obstacle.reason for obstacle in obstacles if obstacle.name == "month"]
    if month and not others and state.frozen is None:
        until = "the next month" if signals.month_end is None else date(signals.month_end)
        reason = f"{' and '.join(month)}, so that the retrain that is called for waits until {until}"
        yield Incident(
            "month's budget",
            "alert",
            f"{reason}: raise that, or launch the model job by hand, which is not booked",
        )


def _without_verdict(state: State, signals: Signals, settings: RetrainingSettings) -> Iterator[Incident]:
    """Yield that production is not seen: no window, or none with enough documents, reads like a calm year."""
    if not signals.is_monitored or state.champion_since is None:
        return
    seen = [window for window in signals.windows if window.at <= signals.now]
    # The first windows under a champion make the reference that the next are compared with.
    judged = [window.at for window in seen if window.status in (*VERDICTS, "warming_up")]
    last = max(filter(None, [if_past(state.champion_since, signals.now), *judged]), default=None)
    if last is None:
        return  # the release is dated in the future, and no window came before it
    number = sum(window.at > last for window in seen)
    if number >= settings.alert_after_windows or signals.now - last > settings.alert_after_days * DAY_SECONDS:
        what = (
            "no window came"
            if not number
            else f"no verdict on {'one window' if number == 1 else f'{number} windows'}"
        )
        reason = (
            f"{what} since {date(last)}: look at what delivers production documents, and at"
            " monitoring.min_window_rows"
        )
        yield Incident("production is not seen", "alert", reason)


def is_due(incident: Incident, state: State, signals: Signals, settings: RetrainingSettings) -> bool:
    """Return whether an incident is to be raised now: for the first time, or once more."""
    # What a run has learned, and may release in a moment, is no reason to label more.
    if incident.action == "request_labels" and signals.num_runs_in_flight:
        return False
    at = state.raised.get(incident.key)
    if at is None or at > signals.now + CLOCK_SECONDS:
        return True
    return signals.now - at >= settings.remind_days * DAY_SECONDS
