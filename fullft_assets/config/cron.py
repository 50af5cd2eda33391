"""Cron lines of five fields, checked without Dagster, whose own check would import it."""

from __future__ import annotations

import re

CRON_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
CRON_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
CRON_NAMES = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "weekday": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def cron_problem(cron: str) -> str | None:
    """Return what is wrong with a cron of five fields, or None."""
    if cron.lower() in CRON_ALIASES:
        return None
    fields = cron.lower().split()
    if len(fields) != 5:
        return f"{len(fields)} fields instead of 5"
    values: dict[str, set[int]] = {}
    for text, (unit, low, high) in zip(fields, CRON_RANGES, strict=True):
        values[unit] = set()
        for part in text.split(","):
            expanded = _cron_values(part, unit, low, high)
            if not expanded:
                return f"{unit} `{part}` is not in {low}-{high}"
            values[unit] |= expanded
    if all(day > DAYS_OF_MONTH[month - 1] for day in values["day"] for month in values["month"]):
        return "no such day in that month"
    return None


def _cron_values(part: str, unit: str, low: int, high: int) -> set[int]:
    """Return the values of `*`, `5`, `1-5`, `*/15`, `1-9/2`; an empty set where the part is not valid."""
    for number, name in enumerate(CRON_NAMES.get(unit, ()), start=low):
        part = re.sub(rf"\b{name}\b", str(number), part)
    match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", part, re.ASCII)
    if match is None:
        return set()
    first, last, step = (None if text is None else int(text) for text in match.groups())
    if step is not None and (not 1 <= step <= high or (first is not None and last is None)):
        return set()
    begin = low if first is None else first
    end = high if first is None else begin if last is None else last
    return set(range(begin, end + 1, step or 1)) if low <= begin <= end <= high else set()
