"""Cron lines of five fields, checked without Dagster, whose own check would import it."""

from __future__ import annotations

from croniter import croniter

#: The fields of a cron, and the values that they take.
_UNITS = {"minute": "0-59", "hour": "0-23", "day": "1-31", "month": "1-12", "weekday": "0-7"}


def cron_problem(cron: str) -> str | None:
    """Return what is wrong with a cron of five fields (or `@daily` and the like), or None."""
    fields = cron.split()
    if not cron.startswith("@") and len(fields) != len(_UNITS):
        return f"{len(fields)} fields instead of 5"
    if croniter.is_valid(cron, strict=True):
        return None
    if cron.startswith("@"):
        return "unknown name"
    for number, (text, (unit, values)) in enumerate(zip(fields, _UNITS.items(), strict=False)):
        alone = ["*"] * len(_UNITS)
        for part in text.split(","):
            alone[number] = part
            if not croniter.is_valid(" ".join(alone)):
                return f"{unit} `{part}` is not in {values}"
    return "no such day in that month"
