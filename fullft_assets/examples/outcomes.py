"""The outcomes of a batch's checks: counts, the first places, how to fix it.

Texts of documents are never quoted.

Gates on the fields that the settings name for what ties rows together: a wrong name would leave each row by
itself, unnoticed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.documents.erasure import has_made_up_id
from fullft_assets.documents.names import alias
from fullft_assets.examples.agreement import Agreement
from fullft_assets.examples.labels import listed, may_be_named, named
from fullft_assets.examples.rules import MIN_KAPPA, REASONS, Finding, Rule
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.task import task_of

_FIX = "fix them in the source and deliver the file again"
_LOOK = "`fullft check` lists the fields that rows have"
_SHOWN = 5
#: Where the parser of JSON stopped: the same fault is at another place in each row.
_POSITION = re.compile(r": line \d+ column \d+ \(char \d+\)")


def row_outcome(name: str, rule: Rule, finding: Finding, table: pa.Table) -> CheckOutcome:
    """Return the outcome of a rule on single rows, or of a user's expectation, that Great Expectations
    tried.
    """
    metadata: dict[str, int | float] = {"num_rows": len(table)}
    if finding.rows is not None:
        metadata["num_failed"] = len(finding.rows)
    if finding.observed is not None:
        metadata["observed"] = finding.observed
    return CheckOutcome(
        name=name,
        passed=finding.passed,
        severity=rule.severity,
        description="" if finding.passed else _why(rule, finding, table),
        metadata=metadata,
    )


def _why(rule: Rule, finding: Finding, table: pa.Table) -> str:
    if not finding.rows:
        observed = "" if finding.observed is None else f", observed {finding.observed:.6g}"
        return f"the batch {rule.reason}{observed}; look at its rows, or fix the expectation"
    verb = "quarantined" if rule.quarantines else "found"
    problems = problem_counts(table) if rule.reason == REASONS["rows_are_well_formed"] else {}
    why = (
        f"{rule.reason}, {'most often' if max(problems.values()) > 1 else 'such as'}: {next(iter(problems))}"
        if problems
        else rule.reason
    )
    return (
        f"{len(finding.rows):,} of {len(table):,} rows {verb} ({why}): {places(finding.rows, table)}; {_FIX}"
    )


def reasons_of(quarantined: pa.Table) -> list[list[str]]:
    """Return the reasons of each quarantined row; earlier releases joined them into one text."""
    reasons = quarantined["reasons"]
    return (pc.split_pattern(reasons, "; ") if reasons.type == pa.string() else reasons).to_pylist()


def count_reasons(quarantined: pa.Table) -> dict[str, Any]:
    """Return the counts of a quarantine: rows by reason, and the commonest `problems` of malformed rows."""
    return {
        "reasons": dict(Counter(chain.from_iterable(reasons_of(quarantined))).most_common()),
        "problems": problem_counts(quarantined),
    }


def problem_counts(rows: pa.Table) -> dict[str, int]:
    """Return how many of some rows are malformed in the same way, the commonest first; a problem names
    fields, never their values.
    """
    return dict(
        Counter(
            _POSITION.sub("", problem) for problem in rows["problem"].to_pylist() if problem is not None
        ).most_common(10)
    )


def _unknown_labels(rows: pa.Table, settings: ExamplesSettings) -> str:
    known_labels = settings.labels or []
    values = rows[task_of(settings).target or "label"].to_pylist()
    counts = Counter(label for value in values for label in listed(value) if label not in known_labels)
    if not may_be_named(counts):
        return ""
    most = counts.most_common(_SHOWN)
    return (
        f"{named([(label, f'{count:,}') for label, count in most], len(most), counts)}; examples.labels has"
        f" {', '.join(known_labels)}"
    )


def places(rows: Sequence[int], table: pa.Table) -> str:
    """Return the first five rows as file:row (see `documents.names`), and how many more there are."""
    locations = [
        f"{alias(table['source'][row].as_py())}:{table['row'][row].as_py()}" for row in rows[:_SHOWN]
    ]
    return ", ".join(locations) + (
        f" and {len(rows) - len(locations):,} more" if len(rows) > len(locations) else ""
    )


def agreement_outcome(rule: Rule, agreement: Agreement | None) -> CheckOutcome:
    """Return whether annotators agree beyond chance; where nobody labelled the same text there is nothing to
    judge.
    """
    kappa = None if agreement is None else agreement.kappa
    description = ""
    if agreement is None:
        description = "no text was labelled by two annotators"
    elif kappa is None:
        description = "all annotations are one label: kappa is not defined"
    elif kappa < MIN_KAPPA:
        kappas = sorted((k, label) for label, k in agreement.label_kappas.items() if k is not None)
        lowest = [(label, f"{k:.2f}") for k, label in kappas[:3]]
        description = (
            f"Fleiss' kappa {kappa:.2f} on {agreement.num_items:,} texts is below {MIN_KAPPA:g}, least on"
            f" {named(lowest, len(lowest), agreement.label_kappas)}; sharpen the guideline for these labels"
        )
    metadata: dict[str, int | float] = {"num_items": 0 if agreement is None else agreement.num_items}
    return CheckOutcome(
        name="annotators_agree",
        passed=kappa is None or kappa >= MIN_KAPPA,
        severity=rule.severity,
        description=description,
        metadata=metadata | ({} if kappa is None else {"kappa": kappa}),
    )


def gate_outcomes(
    num_rows: int,
    valid: pa.Table,
    quarantined: pa.Table,
    settings: ExamplesSettings,
    batch_name: str,
    *,
    any_file_was_read: bool = True,
) -> list[CheckOutcome]:
    """Return the two gates of every batch.

    Files that were read and hold no row are no failure: delivered again so, they withdraw all rows that they
    held.
    """
    share = len(quarantined) / num_rows if num_rows else 0.0 if any_file_was_read else 1.0
    is_bounded = share <= settings.max_quarantined_share and (len(valid) > 0 or not num_rows)
    counts = count_reasons(quarantined)
    reason = next(iter(counts["reasons"]), "")
    unknown_labels = _unknown_labels(quarantined, settings) if reason == REASONS["labels_are_known"] else ""
    problem = (
        next(iter(counts["problems"]), "") if reason == REASONS["rows_are_well_formed"] else unknown_labels
    )
    details = f", most often: {reason}{f' ({problem})' if problem else ''}" if reason else ""
    finding = (
        f"{len(quarantined):,} of {num_rows:,} rows quarantined{details}"
        if num_rows
        else "not one of its files was read"
    )
    fix = "add them to examples.labels, or " if unknown_labels else ""
    fix += f"name another field ({_LOOK}), or " if num_rows and not len(valid) else ""
    fix += "fix the source and deliver it again"
    fix += ", or raise examples.max_quarantined_share" if len(valid) else ""
    return [
        CheckOutcome(
            name="rows_are_accounted_for",
            passed=num_rows == len(valid) + len(quarantined),
            description=f"{num_rows:,} in = {len(valid):,} valid + {len(quarantined):,} quarantined",
            metadata={"num_rows": num_rows, "num_valid": len(valid), "num_quarantined": len(quarantined)},
        ),
        CheckOutcome(
            name="quarantined_share_is_bounded",
            passed=is_bounded,
            description="" if is_bounded else f"batch {batch_name}: {finding}; {fix}",
            metadata={"quarantined_share": float(np.round(share, 6))},
        ),
    ]


#: A named field of ids, domains or slices that a larger share of rows lacks is taken for a wrong name.
MOST_WITHOUT = 0.9
OPTIONAL_COLUMNS = ("id", "domain", "slice_by")


def field_outcomes(
    documents: pa.Table, valid: pa.Table, settings: ExamplesSettings, id_field: str
) -> list[CheckOutcome]:
    """Return whether the fields that are named for ids, groups, domains and slices have values, and whether
    enough rows have a group.

    Args:
        documents: the rows of a batch that are not malformed, the quarantined ones too.
        valid: its valid rows, which alone can be split wrongly.
        settings: they name the fields.
        id_field: `documents.id`; its default need not exist.
    """
    fields = {
        "documents.id": None if id_field == DocumentsSettings.model_fields["id"].default else id_field,
        "examples.group": settings.group,
        "examples.domain": settings.domain,
        "examples.slice_by": settings.slice_by,
    }
    gaps: list[str] = []
    num_without = {}
    for key, field in fields.items():
        if field is None:
            continue
        column = key.partition(".")[2]
        is_missing = has_made_up_id(documents) if column == "id" else np.asarray(documents[column].is_null())
        num_without[f"num_without_{column}"] = int(is_missing.sum())
        share = is_missing.sum() / max(1, len(documents))
        # How many rows may have no group is a setting, which another gate is about.
        if share > MOST_WITHOUT if column in OPTIONAL_COLUMNS else share == 1:
            gaps.append(
                f"{key} names `{field}`, in which {int((~is_missing).sum()):,} of the {len(documents):,} rows"
                " have a value"
            )
    values = CheckOutcome(
        name="named_fields_have_values",
        passed=not gaps,
        description=f"{' and '.join(gaps)}; {_LOOK}: name one of them, or remove the key" if gaps else "",
        metadata=num_without,
    )
    return [values, *([] if settings.group is None else [_groups_outcome(valid, settings)])]


def _groups_outcome(valid: pa.Table, settings: ExamplesSettings) -> CheckOutcome:
    missing_rows = np.flatnonzero(np.asarray(valid["group"].is_null()))
    share = len(missing_rows) / max(1, len(valid))
    passed = share <= settings.max_ungrouped_share
    description = ""
    if len(missing_rows):
        description = (
            f"{len(missing_rows):,} of {len(valid):,} valid rows have no `{settings.group}`, so each is a"
            " group of its own and may be tested on what its relatives trained:"
            f" {places(missing_rows.tolist(), valid)}"
        )
        description += "" if passed else f"; deliver them with a group. {_LOOK}"
    return CheckOutcome(
        name="groups_are_given",
        passed=passed,
        description=description,
        metadata={"num_without_group": len(missing_rows), "ungrouped_share": round(share, 6)},
    )
