"""Values of an expectation's arguments that Great Expectations would only refuse, or compute nonsense of, in
the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

_NUMBERS = ("min_value", "max_value", "mostly", "threshold", "sum_total", "multiplier")
_LISTS = ("value_set", "regex_list", "type_list", "column_list", "column_set", "value_pairs_set")
_SWITCHES = ("strict_min", "strict_max", "strictly", "or_equal", "ties_okay", "double_sided", "exact_match")

#: A key below the arguments, and one line that says what is wrong with it and how to fix it.
Problem = tuple[tuple[str | int, ...], str]


def value_problems(arguments: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the values of the arguments, whichever expectation they are for."""
    for name, value in arguments.items():
        if value is None or isinstance(value, Mapping):
            continue
        if name in _NUMBERS and not _is_number(value):
            yield (name,), f"{value} is not a number{_as_number(value)}"
        elif name in _LISTS and not isinstance(value, list | tuple):
            yield (name,), f"{value} is not a list; write [{value}]"
        elif name in _SWITCHES and not isinstance(value, bool):
            yield (name,), f"{value} is not true or false"
    mostly: Any = arguments.get("mostly")
    if _is_number(mostly) and not 0 <= mostly <= 1:
        yield ("mostly",), f"{mostly} is not a share from 0 to 1"
    yield from _regex_problems(arguments)
    low: Any = arguments.get("min_value")
    high: Any = arguments.get("max_value")
    if _is_number(low) and _is_number(high) and low > high:
        yield ("min_value",), f"{low} is more than max_value ({high}), so no value passes; swap them"


def _regex_problems(arguments: Mapping[str, Any]) -> Iterator[Problem]:
    several = arguments.get("regex_list")
    named: list[tuple[tuple[str | int, ...], Any]] = (
        [(("regex",), arguments["regex"])] if "regex" in arguments else []
    )
    named += (
        [(("regex_list", at), each) for at, each in enumerate(several)] if isinstance(several, list) else []
    )
    for key, pattern in named:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield key, f"{pattern} is not a regular expression ({error})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(value: Any) -> str:
    # YAML 1.1 takes `1e-5` for text.
    try:
        return f"; write {Decimal(value):f}" if isinstance(value, str) else ""
    except InvalidOperation:
        return ""
