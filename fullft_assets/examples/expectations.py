"""Expectations of the user's own: checked by their names and arguments before anything runs, then run by
Great Expectations.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fullft_assets.errors import SettingsError, did_you_mean
from fullft_assets.examples.rules import ESSENTIAL, PROFILE_COLUMNS, applicable, check_name
from fullft_assets.examples.texts import LANGUAGES
from fullft_assets.settings import RULES, ExamplesSettings, Expectation
from fullft_assets.task import task_of

#: A key below a use case's attributes, and one line that says what is wrong with it and how to fix it.
Problem = tuple[tuple[str | int, ...], str]
#: The expectations of Great Expectations that run on a profile, and whether each judges every row's value by
#: itself. Importing the library takes seconds; definitions are loaded without it.
EXPECTATIONS: dict[str, bool] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
#: Where a name in camel case gets an underscore in snake case.
_BEFORE_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
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
    of_expectations = [
        (("examples", "expectations", number, *key), message)
        for number, expectation in enumerate(settings.expectations)
        for key, message in _expectation_problems(expectation, settings)
    ]
    return [*_severity_problems(settings), *_language_problems(settings), *of_expectations]


def argument_problems(settings: ExamplesSettings) -> Iterator[Problem]:
    """Yield the objections of Great Expectations to the arguments; importing it takes seconds."""
    if not settings.expectations:
        return
    from pydantic.v1 import ValidationError

    for number, expectation in enumerate(settings.expectations):
        if expectation.name not in EXPECTATIONS:
            continue  # `problems` says so
        try:
            _build(expectation)
        except (ValidationError, ValueError, TypeError) as error:
            first = {"loc": (), "msg": str(error).splitlines()[0]}
            first = error.errors()[0] if isinstance(error, ValidationError) else first
            key = (
                "examples",
                "expectations",
                number,
                "arguments",
                *[part for part in first["loc"] if part != "__root__"],
            )
            yield key, f"{expectation.name}: {first['msg']}; fix the value"


def _build(expectation: Expectation) -> Any:
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(expectation.name)(**expectation.arguments)


def build(settings: ExamplesSettings) -> dict[str, Any]:
    """Return Great Expectations' object for each of the user's expectations, by the name of its check.

    Raises:
        SettingsError: an argument has a value that the expectation does not take.
    """
    for key, message in argument_problems(settings):
        raise SettingsError(f"{'.'.join(map(str, key))}: {message}")
    return {
        check_name(number, expectation): _build(expectation)
        for number, expectation in enumerate(settings.expectations, start=1)
    }


def _severity_problems(settings: ExamplesSettings) -> Iterator[Problem]:
    rules = applicable(settings)
    for rule, severity in settings.severities.items():
        key = ("examples", "severities", rule)
        if rule not in RULES:
            yield key, f"unknown rule `{rule}`{_near(rule, RULES)}"
        elif severity == "off" and rule in ESSENTIAL:
            yield key, "cannot be off: a row that breaks it cannot be trained on; choose error or warn"
        elif severity != "off" and rule not in rules:
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
            yield (
                ("examples", "languages", number),
                f"`{language}` is no language that can be identified{_near(language, LANGUAGES)}; give its"
                " code of ISO 639-1",
            )


def _expectation_problems(expectation: Expectation, settings: ExamplesSettings) -> Iterator[Problem]:
    if expectation.name not in EXPECTATIONS:
        yield (
            ("name",),
            (
                f"Great Expectations has no `{expectation.name}` for a"
                f" profile{_near(_BEFORE_CAPITAL.sub('_', expectation.name).lower(), EXPECTATIONS)}"
            ),
        )
        return
    if expectation.severity == "quarantine":
        if not EXPECTATIONS[expectation.name]:
            yield (
                ("severity",),
                f"`quarantine` needs an expectation on each row's value; {expectation.name} judges more at"
                " once: use warn or error",
            )
        elif expectation.name in _OF_OTHER_ROWS:
            yield (
                ("severity",),
                f"`quarantine` would set a row aside for the rows that share its batch; {expectation.name}"
                " compares them: use warn or error",
            )
    for argument, value in expectation.arguments.items():
        columns = [value] if argument in _COLUMN_ARGUMENTS else []
        columns = value if argument in _COLUMNS_ARGUMENTS and isinstance(value, list) else columns
        for column in columns:
            yield from ((("arguments", argument), message) for message in _column_problems(column, settings))


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


def _near(name: str, choices: Iterable[str]) -> str:
    names = list(choices)
    return did_you_mean(name, names) or (f"; known: {', '.join(names)}" if len(names) <= 20 else "")
