"""examples: the user's own expectations, by the names that the installed Great Expectations knows."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from fullft_assets import examples
from fullft_assets.checking.validation import load_use_case
from fullft_assets.documents.names import alias
from fullft_assets.errors import SettingsError
from fullft_assets.examples.expectations import EXPECTATIONS, argument_problems
from fullft_assets.settings import RULES, ExamplesSettings
from fullft_assets.store import CheckOutcome
from tests import project as projects
from tests.test_examples import sound_rows, table

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
#: Need SQL, a second table or a registration that the library lacks: they cannot run on a profile.
NOT_ON_A_PROFILE = (
    *("expect_column_values_to_match_like_pattern", "expect_column_values_to_match_like_pattern_list"),
    *(
        "expect_column_values_to_not_match_like_pattern",
        "expect_column_values_to_not_match_like_pattern_list",
    ),
    *("expect_multicolumn_values_to_be_unique", "expect_query_results_to_match_comparison"),
    "expect_table_row_count_to_equal_other_table",
)


def generate() -> str:
    """Return `examples/expectations.json` for the installed library; `python -m
    tests.test_examples_expectations` writes it.
    """
    import great_expectations.expectations.core as core
    from great_expectations.expectations import expectation as base

    lines = []
    for found in core.__dict__.values():
        if not (inspect.isclass(found) and issubclass(found, base.BatchExpectation)):
            continue
        name = found.__dict__.get("expectation_type", "")
        if not name.startswith("expect_") or name in NOT_ON_A_PROFILE:
            continue
        lines.append(f"  {json.dumps(name)}: {json.dumps(issubclass(found, base.ColumnMapExpectation))}")
    return "{\n" + ",\n".join(sorted(lines)) + "\n}\n"


BETWEEN = "expect_column_values_to_be_between"


def with_own(name: str, severity: str = "warn", **arguments: Any) -> ExamplesSettings:
    own = {"name": name, "arguments": arguments, "severity": severity}
    return ExamplesSettings.model_validate({"label": "kind", "expectations": [own]})


def own_check(examined: examples.Examined) -> CheckOutcome:
    return next(check for check in examined.checks if check.name.startswith("own_1_"))


def test_the_names_are_those_of_the_installed_library() -> None:
    assert json.loads(generate()) == EXPECTATIONS, "run `python -m tests.test_examples_expectations`"


class TestProblems:
    def problem(self, settings: ExamplesSettings) -> tuple[str, str]:
        [(key, message)] = examples.problems(settings)
        return ".".join(map(str, key)), message

    @pytest.mark.parametrize(
        ("arguments", "key", "message"),
        [
            (
                {"name": "expect_column_values_to_be_betwen", "column": "num_words"},
                "name",
                (
                    "Great Expectations has no `expect_column_values_to_be_betwen` for a profile; did you"
                    f" mean `{BETWEEN}`?"
                ),
            ),
            (
                {"name": BETWEEN, "column": "num_word"},
                "arguments.column",
                "the profile has no column `num_word`; did you mean `num_words`?",
            ),
            (
                {"name": BETWEEN, "column": "num_turns"},
                "arguments.column",
                "the profile has `num_turns` only with the task sft",
            ),
            (
                {"name": "expect_compound_columns_to_be_unique", "column_list": ["group", "lable"]},
                "arguments.column_list",
                "the profile has no column `lable`; did you mean `label`?",
            ),
            (
                {
                    "name": "expect_column_mean_to_be_between",
                    "severity": "quarantine",
                    "column": "num_words",
                    "min_value": 1,
                },
                "severity",
                (
                    "`quarantine` needs an expectation on each row's value; expect_column_mean_to_be_between"
                    " judges more at once: use warn or error"
                ),
            ),
            (
                {
                    "name": "expect_column_values_to_be_unique",
                    "severity": "quarantine",
                    "column": "num_words",
                },
                "severity",
                (
                    "`quarantine` would set a row aside for the rows that share its batch;"
                    " expect_column_values_to_be_unique compares them: use warn or error"
                ),
            ),
        ],
    )
    def test_one_line_names_the_key_and_the_fix(
        self, arguments: dict[str, Any], key: str, message: str
    ) -> None:
        assert self.problem(with_own(**arguments)) == (f"examples.expectations.0.{key}", message)

    @pytest.mark.parametrize(
        ("changes", "key", "message"),
        [
            (
                {"severities": {"labels_are_know": "error"}},
                "labels_are_know",
                "unknown rule `labels_are_know`; did you mean `labels_are_known`?",
            ),
            (
                {"severities": {"texts_are_present": "off"}},
                "texts_are_present",
                "cannot be off: a row that breaks it cannot be trained on; choose error or warn",
            ),
            (
                {"severities": {"languages_are_expected": "error"}},
                "languages_are_expected",
                (
                    "has no effect here: the rule does not apply with these settings (task classification);"
                    " remove it"
                ),
            ),
        ],
    )
    def test_severities(self, changes: dict[str, Any], key: str, message: str) -> None:
        assert self.problem(ExamplesSettings(label="kind", **changes)) == (
            f"examples.severities.{key}",
            message,
        )

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [
            ({"min_value": 1}, "column"),
            ({"column": "num_words", "minimum": 1}, "minimum"),
            ({"column": "group"}, ""),
        ],
    )
    def test_the_library_refuses_arguments_where_the_data_is_looked_at(
        self, arguments: dict[str, Any], key: str
    ) -> None:
        chosen = with_own(BETWEEN, **arguments)
        [(at, message)] = argument_problems(chosen)
        assert at[:4] == ("examples", "expectations", 0, "arguments") and at[4:] == ((key,) if key else ())
        assert message.startswith(f"{BETWEEN}: ")
        with pytest.raises(SettingsError, match=r"^examples\.expectations\.0\.arguments"):
            examples.examine(table(sound_rows({})), chosen, "b")

    def test_languages(self) -> None:
        key, message = self.problem(ExamplesSettings(label="kind", languages=["en", "english"]))
        assert (key, message.split()[0]) == ("examples.languages.1", "`english`")

    def test_sound_settings_have_none(self) -> None:
        every = ExamplesSettings(
            task="token_classification",
            label="s",
            labels=["a", "b"],
            languages=["en"],
            pii="flag",
            severities=dict.fromkeys(
                set(RULES) - {"assistant_turns_are_present", "annotators_agree"}, "error"
            ),
            expectations=[
                {
                    "name": BETWEEN,
                    "arguments": {"column": "num_labels", "max_value": 9},
                    "severity": "quarantine",
                }
            ],
        )
        assert examples.problems(every) == []

    @pytest.mark.heavy
    def test_the_yaml_is_refused_with_its_line(self, project: projects.Project) -> None:
        project.configure(examples={"expectations": [{"name": BETWEEN, "arguments": {"column": "num_word"}}]})
        line = next(
            n
            for n, text in enumerate(project.yaml_path.read_text().splitlines(), start=1)
            if "num_word" in text
        )
        with pytest.raises(SettingsError) as refused:
            load_use_case(project.yaml_path)
        assert (
            f"defs.yaml:{line}: examples.expectations.0.arguments.column: the profile has no column"
            " `num_word`" in str(refused.value)
        )


class TestFindings:
    def test_failing_rows_are_set_aside_with_the_expectation_as_reason(self) -> None:
        rows = sound_rows({"text": "one two three"}, {"text": "one"}, {"text": "one  two\nthree four"})
        examined = examples.examine(
            table(rows), with_own(BETWEEN, "quarantine", column="num_words", min_value=3), "b"
        )
        assert examined.quarantined.select(["row", "reasons"]).to_pylist() == [
            {"row": 3, "reasons": ["breaks expectation 1 (column_values_to_be_between on num_words)"]}
        ]
        check = own_check(examined)
        assert (check.name, check.passed, check.severity) == (
            "own_1_column_values_to_be_between",
            False,
            "warn",
        )
        assert check.metadata == {"num_rows": 3, "num_failed": 1}

    @pytest.mark.parametrize(("severity", "num_valid"), [("warn", 2), ("error", 2)])
    def test_a_warning_or_an_error_sets_nothing_aside(self, severity: str, num_valid: int) -> None:
        settings = with_own("expect_column_values_to_not_be_null", severity, column="group")
        examined = examples.examine(table(sound_rows({}, {"group": "g"})), settings, "b")
        check = own_check(examined)
        assert (len(examined.valid), check.passed, check.severity, check.metadata["num_failed"]) == (
            num_valid,
            False,
            severity,
            1,
        )
        assert check.description.startswith(
            "1 of 2 rows found (breaks expectation 1 (column_values_to_not_be_null on group)):"
            f" {alias('a.csv')}:2; "
        )

    def test_mostly_judges_the_batch_not_the_row(self) -> None:
        """Which rows share a batch must not decide which of them are set aside."""
        settings = with_own("expect_column_values_to_not_be_null", "quarantine", column="group", mostly=0.5)
        for groups, passed in (
            (("g",), True),
            ((None, "g"), True),
            ((None,), False),
            ((None, None, "g"), False),
        ):
            examined = examples.examine(
                table(sound_rows(*({"group": group} for group in groups))), settings, "b"
            )
            check = own_check(examined)
            assert examined.valid["group"].to_pylist() == [group for group in groups if group], groups
            assert (check.passed, check.metadata["num_failed"]) == (passed, groups.count(None)), groups

    def test_an_expectation_on_the_whole_table_says_what_it_saw(self) -> None:
        rows: list[dict[str, Any]] = [{}, {}]
        settings = with_own("expect_table_row_count_to_be_between", "error", min_value=3)
        check = own_check(examples.examine(table(sound_rows(*rows)), settings, "b"))
        assert (check.passed, check.metadata["observed"]) == (False, len(rows))
        assert f" 1 (table_row_count_to_be_between), observed {len(rows)}; " in check.description

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            (
                BETWEEN,
                {"column": "num_words", "min_value": "five"},
                f"0.arguments.min_value: {BETWEEN}: value is not a valid float; fix the value",
            ),
            (
                BETWEEN,
                {"column": "num_words"},
                f"0.arguments: {BETWEEN}: min_value and max_value cannot both be None; fix the value",
            ),
            (
                "expect_column_mean_to_be_between",
                {"column": "label", "min_value": 1},
                "0: expect_column_mean_to_be_between cannot be computed on the profile; fix its arguments",
            ),
            (
                "expect_column_quantile_values_to_be_between",
                {"column": "num_words", "quantile_ranges": {"quantile": [0.5]}},
                "0: expect_column_quantile_values_to_be_between cannot be computed on the profile; fix its",
            ),
        ],
        ids=["type", "both-missing", "kind-of-column", "shape"],
    )
    def test_what_cannot_be_computed_is_one_line(
        self, name: str, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SettingsError) as refused:
            examples.examine(table(sound_rows({}, {})), with_own(name, **arguments), "b")
        assert str(refused.value).startswith(f"examples.expectations.{message}")
        assert "\n" not in str(refused.value)


if __name__ == "__main__":
    (ROOT / "fullft_assets/examples/expectations.json").write_text(generate(), encoding="utf-8")
