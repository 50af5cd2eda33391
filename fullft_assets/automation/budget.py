"""The month's budget: what automatic runs took of it."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg

from fullft_assets.assets.case import Case
from fullft_assets.automation.runs import attempts_of, hours, hours_beside, model_runs


def month_start(case: Case, now: float) -> float:
    """Return when the calendar month of the budget began; times in seconds since the epoch."""
    return _first_day(case, now).timestamp()


def month_end(case: Case, now: float) -> float:
    """Return when the calendar month of the budget ends; times in seconds since the epoch."""
    first = _first_day(case, now)
    return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1).timestamp()


def _first_day(case: Case, now: float) -> datetime:
    local = datetime.fromtimestamp(now, ZoneInfo(case.settings.automation.timezone))
    return local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def shares_spent(
    case: Case, instance: dg.DagsterInstance, now: float, next_hours: float = 0.0
) -> dict[str, float]:
    """Return the share of each limit of the month, by its setting, that automatic runs took, with a next one
    of so many hours.

    Args:
        now: seconds since the epoch.
    """
    start, settings = month_start(case, now), case.settings.retraining
    attempts = attempts_of(model_runs(case, instance, now), instance, now)
    spent = hours_beside(case, instance, start, now) + sum(
        attempt.hours for attempt in attempts if start <= attempt.started_at <= now
    )
    spent += next_hours
    shares = {"max_hours_per_month": spent / settings.max_hours_per_month}
    if settings.max_usd_per_month is not None:
        shares["max_usd_per_month"] = spent * case.settings.planning.hourly_usd / settings.max_usd_per_month
    return shares


def evaluation_above_budget(case: Case, instance: dg.DagsterInstance, now: float) -> str | None:
    """Return why the month has no room for one more evaluation, which takes as long as the newest that
    succeeded; None if it has.

    Args:
        now: seconds since the epoch.
    """
    job = f"{case.name}_evaluate"
    after = datetime.fromtimestamp(month_start(case, now), UTC)
    done = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS], created_after=after)
    took = [hours(record, now) for record in instance.get_run_records(done, limit=1)]
    for name, share in shares_spent(case, instance, now, sum(took)).items():
        if share > 1:
            limit = f"retraining.{name} = {getattr(case.settings.retraining, name):g}"
            return (
                f"with one more evaluation the month has {share:.0%} of {limit}; raise it, launch {job} by"
                " hand, or wait for the next month"
            )
    return None
