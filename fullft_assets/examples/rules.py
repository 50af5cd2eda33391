"""The rules that a batch is held to: which of them apply, how severe they are, and the profile that they are
tried on.

A profile is a narrow table of numbers, flags and names, one row a document, without its text: validating text
columns takes Great Expectations several times the time and memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.examples import texts
from fullft_assets.settings import RULES, ExamplesSettings, Expectation
from fullft_assets.settings.examples import Severity
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import task_of

if TYPE_CHECKING:
    import pandas as pd

#: Columns that the user's own expectations may name.
PROFILE_COLUMNS = (
    *(
        "well_formed",
        "num_characters",
        "num_words",
        "label",
        "confidence",
        "human_annotated",
        "domain",
        "group",
    ),
    *("language", "damage_share", "num_personal_data", "num_labels", "num_turns"),
)
ROLES = ("system", "user", "assistant", "tool")
#: Reason of a quarantined row by the rule that it breaks.
REASONS = {
    "rows_are_well_formed": "malformed row",
    "texts_are_present": "empty text",
    "text_lengths_are_in_bounds": "text too short or too long",
    "languages_are_expected": "unexpected language",
    "encodings_are_intact": "damaged characters",
    "personal_data_is_absent": "personal data",
    "labels_are_present": "no label",
    "labels_are_known": "unknown label",
    "spans_are_in_range": "span out of range",
    "assistant_turns_are_present": "no or empty assistant turn, or unknown role",
    "ids_are_unique": "id twice in one file",
    "texts_are_unique": "duplicate text",
    "equal_texts_have_equal_labels": "equal text with another label",
}
#: What is true of a batch when a rule on the batch as one is green.
BATCH_TRUTHS = {
    "labels_have_one_spelling": "no two labels differ only in case, or in what separates their words",
    "annotators_agree": "kappa is at least 0.6",
}
#: Least kappa of annotators: above it agreement counts as substantial (Landis and Koch 1977).
MIN_KAPPA = 0.6
#: Gates that are always there and always block.
GATES = {
    "rows_are_accounted_for": "rows in = valid + quarantined",
    "quarantined_share_is_bounded": "most of the batch is usable",
    "named_fields_have_values": (
        "each field that documents.id, examples.group, examples.domain or examples.slice_by names has a value"
        " in more than a few rows"
    ),
}
#: Another one, of use cases with groups.
GATE_OF_GROUPS = {"groups_are_given": "at most 5% of the valid rows have no group"}
#: Rules that only the snapshot can judge: on what the valid rows of all batches are to each other, and on all
#: labels.
IDENTITY_RULES = ("ids_are_unique", "texts_are_unique", "equal_texts_have_equal_labels")
_SNAPSHOT_RULES = (*IDENTITY_RULES, "labels_have_one_spelling")
#: Severities other than `warn`, where `examples.severities` gives none: most use cases have no annotators.
_SEVERITIES: dict[str, Severity] = {"annotators_agree": "off"}
#: A row that breaks one of these cannot be trained on, so they cannot be turned off.
ESSENTIAL = (
    "rows_are_well_formed",
    "texts_are_present",
    "labels_are_present",
    "spans_are_in_range",
    "assistant_turns_are_present",
)


@dataclass(frozen=True)
class Rule:
    """A rule that applies: the reason that a row is quarantined for (the truth of a rule on the batch), and
    how severe it is.

    `is_own`: one of the user's expectations.
    """

    reason: str
    severity: Literal["error", "warn"]
    scope: Literal["row", "batch"]
    quarantines: bool = False
    is_own: bool = False


def rules_for(settings: ExamplesSettings) -> dict[str, Rule]:
    """Return every rule that applies to a use case, the user's own and the gates included: each is an asset
    check.
    """
    rules = {}
    for name in applicable(settings):
        if (severity := _severity(name, settings)) == "off" or name in _SNAPSHOT_RULES:
            continue
        is_row = name in REASONS
        quarantines = is_row and not (name == "personal_data_is_absent" and settings.pii != "quarantine")
        rules[name] = Rule(
            REASONS[name] if is_row else BATCH_TRUTHS[name],
            severity,
            "row" if is_row else "batch",
            quarantines,
        )
    for number, expectation in enumerate(settings.expectations, start=1):
        on = expectation.arguments.get("column")
        description = expectation.name.removeprefix("expect_") + (f" on {on}" if on else "")
        reason = f"breaks expectation {number} ({description})"
        quarantines = expectation.severity == "quarantine"
        rules[check_name(number, expectation)] = Rule(
            reason,
            "error" if expectation.severity == "error" else "warn",
            "row" if quarantines else "batch",
            quarantines,
            is_own=True,
        )
    return rules | {
        name: Rule(truth, "error", "batch")
        for name, truth in (GATES | (GATE_OF_GROUPS if settings.group is not None else {})).items()
    }


def snapshot_rules(settings: ExamplesSettings) -> dict[str, Rule]:
    """Return the rules that are judged over all batches, with the severities that the YAML gives them."""
    over_all = (*_SNAPSHOT_RULES, "annotators_agree")
    rules = {}
    for name in applicable(settings):
        severity = _severity(name, settings)
        if name in over_all and severity != "off":
            rules[name] = Rule(REASONS.get(name) or BATCH_TRUTHS[name], severity, "batch")
    return rules


def _severity(name: str, settings: ExamplesSettings) -> Severity:
    return settings.severities.get(name, _SEVERITIES.get(name, "warn"))


def checks_of(settings: ExamplesSettings) -> tuple[CheckSpec, ...]:
    """Return the checks that a use case's batches have."""
    return tuple(
        CheckSpec(name, _truth(rule, settings), blocking=rule.severity == "error")
        for name, rule in rules_for(settings).items()
    )


def _truth(rule: Rule, settings: ExamplesSettings) -> str:
    if rule.is_own:
        return f"Nothing {rule.reason}."
    if rule.scope == "row":
        unsought = "Names, addresses and places" if settings.pii_model is None else "Postal addresses"
        limit = (
            f" {unsought} are not looked for." if rule.reason == REASONS["personal_data_is_absent"] else ""
        )
        return f"No row is {'quarantined' if rule.quarantines else 'found'} for: {rule.reason}.{limit}"
    return f"{rule.reason[:1].upper()}{rule.reason[1:]}."


def check_name(number: int, expectation: Expectation) -> str:
    """Return the name of the check of the user's expectation with this number, counted from 1."""
    return f"own_{number}_{expectation.name.removeprefix('expect_')}"


def applicable(settings: ExamplesSettings) -> list[str]:
    """Return the names of settings.RULES that apply under these settings, whatever their severity."""
    task = task_of(settings)
    labelled = task.has_labels
    conditions = {
        "languages_are_expected": settings.languages is not None,
        "personal_data_is_absent": settings.pii != "off",
        "labels_are_present": labelled,
        "labels_are_known": labelled and settings.labels is not None,
        "spans_are_in_range": task.target == "spans",
        "assistant_turns_are_present": task.has_messages,
        "equal_texts_have_equal_labels": labelled,
        "labels_have_one_spelling": labelled,
        "annotators_agree": task.target == "label",
    }
    return [rule for rule in RULES if conditions.get(rule, True)]


def profile(
    table: pa.Table, settings: ExamplesSettings, num_personal_data: np.ndarray | None = None
) -> "pd.DataFrame":
    """Return the profile of a batch of documents; a column that no rule and no expectation needs is excluded.

    Args:
        table: with `examples.identity.COLUMNS`.
        settings: they decide which columns are needed.
        num_personal_data: pieces of personal data in each text, where they are looked for.
    """
    import pandas as pd

    text = table["text"].combine_chunks()
    lengths = pc.utf8_length(text)
    blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0), True)
    frame = pd.DataFrame(
        {
            "well_formed": np.asarray(table["problem"].is_null()),
            "num_characters": np.asarray(pc.if_else(blank, None, lengths).cast(pa.float64())),
            "num_words": np.asarray(pc.fill_null(pc.count_substring_regex(text, r"\S+"), 0)),
            "label": pd.Series(table["label"].to_numpy(), dtype=object),
            "confidence": np.asarray(table["confidence"]),
            "human_annotated": pd.Series(table["human_annotated"].to_numpy(), dtype=object),
            "domain": pd.Series(table["domain"].to_numpy(), dtype=object),
            "group": pd.Series(table["group"].to_numpy(), dtype=object),
            "damage_share": texts.damage_shares(text),
        }
    )
    if settings.languages is not None:
        frame["language"] = texts.identify_languages(text)
    if num_personal_data is not None:
        frame["num_personal_data"] = num_personal_data
    return frame.assign(**_label_columns(table, lengths, settings), **_turn_columns(table, settings))


def _label_columns(table: pa.Table, lengths: pa.Array, settings: ExamplesSettings) -> dict[str, np.ndarray]:

    if (target := task_of(settings).target) is None:
        return {}
    columns = {}
    has_label = np.asarray(table[target].is_valid())
    if target == "spans":
        parents, spans = _flat(table["spans"])
        labels = pc.struct_field(spans, "label")
        start, end = (np.asarray(pc.fill_null(pc.struct_field(spans, name), -1)) for name in ("start", "end"))
        longest = np.asarray(pc.fill_null(lengths, 0))[parents]
        columns["num_bad_spans"] = np.bincount(
            parents, (start < 0) | (end <= start) | (end > longest), len(table)
        )
    elif target == "labels":
        parents, labels = _flat(table["labels"])
    else:
        labels = table["label"].combine_chunks()
        parents = np.arange(len(table))
    is_named = np.asarray(pc.fill_null(pc.not_equal(labels, ""), False))
    columns["has_label"] = has_label & (np.bincount(parents, ~is_named, len(table)) == 0)
    columns["num_labels"] = np.bincount(parents, is_named, len(table)).astype(int)
    if settings.labels is not None:
        is_unknown = is_named & ~np.asarray(pc.is_in(labels, pa.array(settings.labels, labels.type)))
        columns["num_unknown_labels"] = np.bincount(parents, is_unknown, len(table))
    return columns


def _turn_columns(table: pa.Table, settings: ExamplesSettings) -> dict[str, np.ndarray]:

    if not task_of(settings).has_messages:
        return {}
    parents, turns = _flat(table["messages"])
    role = pc.struct_field(turns, "role")
    content = pc.utf8_trim_whitespace(pc.struct_field(turns, "content"))
    is_assistant = np.asarray(pc.fill_null(pc.equal(role, "assistant"), False))
    is_unknown = ~np.asarray(pc.is_in(role, pa.array(ROLES)))
    # In a JSON text an inner quote has a backslash before it.
    has_call = pc.match_substring(pc.struct_field(turns, "extras"), '"tool_calls": [')
    is_blank = np.asarray(pc.fill_null(pc.equal(content, ""), True)) & ~np.asarray(
        pc.fill_null(has_call, False)
    )
    num_assistant = np.bincount(parents, is_assistant, len(table))
    num_bad = np.bincount(parents, is_unknown | (is_assistant & is_blank), len(table))
    return {
        "num_turns": np.bincount(parents, minlength=len(table)),
        "num_bad_turns": num_bad + (num_assistant == 0),
    }


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, Any]:

    lists = column.combine_chunks()
    return np.asarray(pc.list_parent_indices(lists)), pc.list_flatten(lists)


def suite_for(settings: ExamplesSettings) -> dict[str, Any]:
    """Return the expectations on single rows, by rule; the user's own expectations are built by
    `expectations.build`.
    """
    from great_expectations.expectations.core.expect_column_values_to_be_between import (
        ExpectColumnValuesToBeBetween as between,
    )
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import (
        ExpectColumnValuesToBeInSet as within,
    )
    from great_expectations.expectations.core.expect_column_values_to_not_be_null import (
        ExpectColumnValuesToNotBeNull as not_null,
    )

    makers = {
        "rows_are_well_formed": lambda: within(column="well_formed", value_set=[True]),
        "texts_are_present": lambda: not_null(column="num_characters"),
        "text_lengths_are_in_bounds": lambda: between(
            column="num_characters", min_value=1, max_value=settings.max_characters
        ),
        "languages_are_expected": lambda: within(
            column="language", value_set=[*(settings.languages or []), texts.UNKNOWN]
        ),
        "encodings_are_intact": lambda: between(column="damage_share", max_value=texts.MAX_DAMAGE_SHARE),
        "personal_data_is_absent": lambda: between(column="num_personal_data", max_value=0),
        "labels_are_present": lambda: within(column="has_label", value_set=[True]),
        "labels_are_known": lambda: between(column="num_unknown_labels", max_value=0),
        "spans_are_in_range": lambda: between(column="num_bad_spans", max_value=0),
        "assistant_turns_are_present": lambda: between(column="num_bad_turns", max_value=0),
    }
    rules = rules_for(settings)
    return {rule: make() for rule, make in makers.items() if rule in rules}


@dataclass(frozen=True)
class Finding:
    """The result of an expectation, with the numbers of the rows that break it in order, or None if it is not
    about single rows.
    """

    passed: bool
    rows: list[int] | None
    observed: float | None = None


def run_expectations(frame: "pd.DataFrame", suite: Mapping[str, Any]) -> dict[str, Finding]:
    """Return the findings of Great Expectations by rule.

    The user's `mostly` decides whether enough rows pass, not which ones do: that must not depend on the rows
    beside them.

    Raises:
        RuntimeError: an expectation could not be computed.
    """
    findings = {}
    for name, result in (_validate(frame, suite) if suite else {}).items():
        details = result["result"]
        no_rows = [] if "unexpected_count" in details and not details["unexpected_count"] else None
        rows = details.get("unexpected_index_list", no_rows)
        observed = details.get("observed_value")
        is_number = isinstance(observed, int | float) and not isinstance(observed, bool)
        findings[name] = Finding(
            result["success"],
            None if rows is None else sorted(rows),
            float(observed) if is_number else None,
        )
    return findings


def _validate(frame: "pd.DataFrame", suite: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    import great_expectations as gx

    batch = _any_frame().get_batch({"dataframe": frame})
    # The result's order is not the suite's: the rule's name travels in `meta`.
    expectations = [expectation.copy(update={"meta": {"rule": rule}}) for rule, expectation in suite.items()]
    results = batch.validate(
        gx.ExpectationSuite(name="examples", expectations=expectations),
        result_format={"result_format": "COMPLETE", "exclude_unexpected_values": True},
    )
    results_by_rule = {}
    for result in results.results:
        rule = result.expectation_config.meta["rule"]
        # A failure is reported flat, or once for each metric that could not be computed.
        for report in [result.exception_info or {}, *(result.exception_info or {}).values()]:
            if isinstance(report, dict) and report.get("raised_exception"):
                # Its own words may quote values.
                raise RuntimeError(f"{rule} could not be computed")
        results_by_rule[rule] = result.to_json_dict()
    return results_by_rule


@cache
def _any_frame() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return (
        context.data_sources.add_pandas("profile")
        .add_dataframe_asset("documents")
        .add_batch_definition_whole_dataframe("batch")
    )
