"""What keeps a retrain that is called for from starting now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from fullft_assets.retraining.history import (
    HOUR_SECONDS,
    MAX_RETRIES,
    date,
    hours_spent,
    num_transient,
    num_unproductive,
    past_attempts,
)
from fullft_assets.retraining.rules import Rule
from fullft_assets.retraining.values import Attempt, Signals, State
from fullft_assets.settings import RetrainingSettings

#: Wait before the first retry; it doubles.
_RETRY_HOURS = 1.0
#: Wait after an attempt that gave no champion, or that did not end a drift. It doubles with each further one
#: in a row, up to the longest.
_BACKOFF_HOURS, _MAX_BACKOFF_DAYS = 48.0, 90.0


class Obstacle(NamedTuple):
    """Something that keeps a retrain from starting now, and why."""

    name: Literal["in flight", "wait", "month", "gain"]
    reason: str


def find_obstacles(
    state: State, signals: Signals, settings: RetrainingSettings, calls: Sequence[Rule]
) -> Iterator[Obstacle]:
    """Yield why a retrain may not start now.

    Args:
        calls: the rules that call for it.
    """
    if signals.num_runs_in_flight:
        yield Obstacle(
            "in flight", f"{signals.num_runs_in_flight} run(s) of the model or of its snapshot are in flight"
        )
    past = past_attempts(state, signals)
    if past:
        until, why = _next_start(past, state, signals, settings)
        # A fixed time, not "3 h ago": the reasons of a repeated tick stay the same, and are recorded once.
        if signals.now < until:
            reason = (
                f"the last attempt was on {date(past[-1].started_at)}, and the next may start on"
                f" {date(until)} ({why})"
            )
            yield Obstacle("wait", reason)
    spent = hours_spent(state, signals)
    if spent + signals.estimated_hours > settings.max_hours_per_month:
        reason = (
            f"{spent:.1f} h were spent this month and the next run takes about"
            f" {signals.estimated_hours:.1f} h"
        )
        yield Obstacle("month", f"{reason} (max_hours_per_month = {settings.max_hours_per_month:g})")
    usd, next_usd = spent * signals.hourly_usd, signals.estimated_hours * signals.hourly_usd
    if settings.max_usd_per_month is not None and usd + next_usd > settings.max_usd_per_month:
        reason = f"{usd:.2f} USD were spent this month and the next run costs about {next_usd:.2f} USD"
        yield Obstacle("month", f"{reason} (max_usd_per_month = {settings.max_usd_per_month:g})")
    yield from _costs_more(calls, signals)


def _costs_more(calls: Sequence[Rule], signals: Signals) -> Iterator[Obstacle]:
    """Yield that the run costs more than its expected gain is worth in a year; a gain that is unknown, as
    that of a drift or of age, is not weighed.
    """
    drop = max(signals.score_drop or 0.0, signals.live_drop)
    gains = [{"new_data": signals.predicted_gain, "score": drop}.get(rule.name) for rule in calls]
    known = [gain for gain in gains if gain is not None]
    if signals.usd_per_point is None or len(known) < len(gains):
        return
    points, cost = 100 * max(0.0, *known), signals.estimated_hours * signals.hourly_usd
    if (worth := points * signals.usd_per_point) < cost:
        reason = (
            f"an expected gain of {points:.1f} points is worth {worth:.2f} USD a year (usd_per_point ="
            f" {signals.usd_per_point:g})"
        )
        yield Obstacle("gain", f"{reason} and the next run costs about {cost:.2f} USD")


def _next_start(
    past: Sequence[Attempt], state: State, signals: Signals, settings: RetrainingSettings
) -> tuple[float, str]:
    """Return when the next attempt may start after past ones, in seconds since the epoch, and the setting
    that says so.
    """
    number = num_transient(state, signals)
    if 0 < number <= MAX_RETRIES:
        return past[-1].started_at + _RETRY_HOURS * 2 ** (number - 1) * HOUR_SECONDS, "a retry"
    cooldown = (
        past[-1].started_at + settings.cooldown_hours * HOUR_SECONDS,
        f"cooldown_hours = {settings.cooldown_hours:g}",
    )
    number = num_unproductive(state, signals, settings)
    if not number:
        return cooldown
    # 2 ** 60 is beyond any bound.
    hours = min(_BACKOFF_HOURS * 2.0 ** min(number - 1, 60), _MAX_BACKOFF_DAYS * 24)
    last = [attempt for attempt in past if attempt.outcome != "cancelled"][-1]
    backoff = (
        last.started_at + hours * HOUR_SECONDS,
        f"{number} in a row gained nothing",
    )
    return max(cooldown, backoff)
