"""Expectations of the user's own: checked by their names and arguments before anything runs, then run by
Great Expectations.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fullft_assets.errors import SettingsError
from fullft_assets.examples.rules import ESSENTIAL, PROFILE_COLUMNS, applicable, check_name
from fullft_assets.examples.texts import LANGUAGES
from fullft_assets.settings import RULES, ExamplesSettings, Expectation
from fullft_assets.task import task_of

#: A key below a use case's attributes, and one line that says what is wrong with it and how to fix it.
Problem = tuple[tuple[str | int, ...], str]
#: What each expectation of Great Expectations that runs on a profile judges (`column_map`: each value of a
#: column), its arguments, and those without a default. Importing the library takes seconds; a use case is
#: checked without it.
EXPECTATIONS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_COLUMN_ARGUMENTS = ("column", "column_A", "column_B")
_COLUMNS_ARGUMENTS = ("column_list", "column_set")
#: They judge a value by those of other rows, which are others in another batch.
_OF_OTHER_ROWS = (
    "expect_column_value_z_scores_to_be_less_than",
    "expect_column_values_to_be_decreasing",
    "expect_column_values_to_be_increasing",
    "expect_column_values_to_be_unique",
    "expect_column_values_to_not_be_outliers",
)


def problems(settings: ExamplesSettings) -> list[Problem]:
    """Return the problems of the severities, languages and expectations, found without Great Expectations."""
    all_problems = [*_severity_problems(settings), *_language_problems(settings)]
    for number, expectation in enumerate(settings.expectations):
        problems_of_one = list(_expectation_problems(expectation, settings)) or list(
            _range_problems(expectation)
        )
        all_problems += [
            (("examples", "expectations", number, *key), message) for key, message in problems_of_one
        ]
    return all_problems


def build(settings: ExamplesSettings) -> dict[str, Any]:
    """Return Great Expectations' object for each of the user's expectations, by the name of its check.

    Raises:
        SettingsError: an argument has a value that the expectation does not take.
    """
    from great_expectations.expectations.registry import get_expectation_impl
    from pydantic.v1 import ValidationError

    suite = {}
    for number, expectation in enumerate(settings.expectations, start=1):
        try:
            suite[check_name(number, expectation)] = get_expectation_impl(expectation.name)(
                **expectation.arguments
            )
        except (ValidationError, ValueError, TypeError) as error:
            first = (
                error.errors()[0]
                if isinstance(error, ValidationError)
                else {"loc": (), "msg": str(error).splitlines()[0]}
            )
            at = [str(part) for part in first["loc"] if part != "__root__"]
            key = ".".join(["examples", "expectations", str(number - 1), "arguments", *at])
            raise SettingsError(f"{key}: {expectation.name}: {first['msg']}; fix the value") from error
    return suite


def _severity_problems(settings: ExamplesSettings) -> Iterator[Problem]:
    used = applicable(settings)
    for rule, severity in settings.severities.items():
        key = ("examples", "severities", rule)
        if rule not in RULES:
            yield key, f"unknown rule `{rule}`{_near(rule, RULES)}"
        elif severity == "off" and rule in ESSENTIAL:
            yield key, "cannot be off: a row that breaks it cannot be trained on; choose error or warn"
        elif severity != "off" and rule not in used:
            yield (
                key,
                (
                    f"has no effect here: the rule does not apply with these settings (task {settings.task});"
                    " remove it"
                ),
            )


def _language_problems(settings: ExamplesSettings) -> Iterator[Problem]:
    for number, language in enumerate(settings.languages or []):
        if language not in LANGUAGES:
            near = _near(language, LANGUAGES)
            yield (
                ("examples", "languages", number),
                f"`{language}` is no language that can be identified{near}; give its code of ISO 639-1",
            )


def _expectation_problems(expectation: Expectation, settings: ExamplesSettings) -> Iterator[Problem]:
    if expectation.name not in EXPECTATIONS:
        yield (
            ("name",),
            (
                f"Great Expectations has no `{expectation.name}` for a"
                f" profile{_near(_in_snake_case(expectation.name), EXPECTATIONS)}"
            ),
        )
        return
    known = EXPECTATIONS[expectation.name]
    if expectation.severity == "quarantine" and known["judges"] != "column_map":
        yield (
            ("severity",),
            (
                f"`quarantine` needs an expectation on each row's value; {expectation.name} judges more at"
                " once: use warn or error"
            ),
        )
    elif expectation.severity == "quarantine" and expectation.name in _OF_OTHER_ROWS:
        yield (
            ("severity",),
            (
                f"`quarantine` would set a row aside for the rows that share its batch; {expectation.name}"
                " compares them: use warn or error"
            ),
        )
    for argument in known["required"]:
        if argument not in expectation.arguments:
            yield ("arguments",), f"{expectation.name} needs `{argument}`"
    for argument, value in expectation.arguments.items():
        if argument not in known["arguments"]:
            yield (
                ("arguments", argument),
                f"{expectation.name} takes no `{argument}`{_near(argument, known['arguments'])}",
            )
        elif argument in _COLUMN_ARGUMENTS:
            yield from (((("arguments", argument)), message) for message in _column_problems(value, settings))
        elif argument in _COLUMNS_ARGUMENTS and isinstance(value, list):
            for at, column in enumerate(value):
                yield from (
                    ((("arguments", argument, at)), message) for message in _column_problems(column, settings)
                )


def _range_problems(expectation: Expectation) -> Iterator[Problem]:
    if (
        expectation.name.endswith("_between")
        and not {"min_value", "max_value"} & expectation.arguments.keys()
    ):
        yield ("arguments",), f"{expectation.name} needs `min_value` or `max_value`"


def _column_problems(column: Any, settings: ExamplesSettings) -> Iterator[str]:
    needs = {
        "language": ("examples.languages", settings.languages is not None),
        "num_personal_data": ("examples.pii", settings.pii != "off"),
        "num_turns": ("the task sft", task_of(settings).has_messages),
    }
    if column not in PROFILE_COLUMNS:
        yield f"the profile has no column `{column}`{_near(str(column), PROFILE_COLUMNS)}"
    elif column in needs and not needs[column][1]:
        yield f"the profile has `{column}` only with {needs[column][0]}"


def _in_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _near(name: str, choices: Iterable[str]) -> str:
    known = list(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""
