"""The outcomes of a batch's checks: counts, the first places, how to fix it. Texts of documents are never
quoted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.documents.aliases import alias
from fullft_assets.examples.agreement import Agreement
from fullft_assets.examples.label_names import may_be_named, named
from fullft_assets.examples.rules import MIN_KAPPA, MIN_LABEL_SHARE, REASONS, ROWS_FOR_BALANCE, Finding, Rule
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.task import task_of

if TYPE_CHECKING:
    import pyarrow as pa

_FIX = "fix them in the source and deliver the file again"
_SHOWN = 5
#: Where a parser stopped, in an archive or a mailbox as well: the same fault is at another place in each row.
_POSITION = re.compile(r": line \d+ column \d+ \(char \d+\)|^(?:member \d+(?:, row \d+)?|message \d+): ")


def row_outcome(
    name: str, rule: Rule, finding: Finding, table: pa.Table, settings: ExamplesSettings
) -> CheckOutcome:
    """Return the outcome of a rule on single rows, or of a user's expectation, that Great Expectations
    tried.
    """
    metadata: dict[str, int | float] = {"num_rows": len(table)}
    if finding.rows is not None:
        metadata["num_failed"] = len(finding.rows)
    if finding.observed is not None:
        metadata["observed"] = finding.observed
    description = "" if finding.passed else _why(rule, finding, table, settings)
    return CheckOutcome(
        name=name, passed=finding.passed, severity=rule.severity, description=description, metadata=metadata
    )


def with_masked(check: CheckOutcome, num_masked: int) -> CheckOutcome:
    """Return the outcome on personal data with the number of rows in which it was masked."""
    return check.model_copy(update={"metadata": {**check.metadata, "num_masked": num_masked}})


def _why(rule: Rule, finding: Finding, table: pa.Table, settings: ExamplesSettings) -> str:
    if not finding.rows:
        observed = "" if finding.observed is None else f", observed {finding.observed:.6g}"
        return f"the batch {rule.reason}{observed}; look at its rows, or fix the expectation"
    verb = "quarantined" if rule.quarantines else "found"
    problem, count = (
        _commonest_problem(table)
        if rule.reason == REASONS["rows_are_well_formed"]
        else ("", len(finding.rows))
    )
    why = f"{rule.reason}, most often: {problem}" if problem else rule.reason
    fix = _wrong_field(rule.reason, problem, count == len(table), settings) + _FIX
    return (
        f"{len(finding.rows):,} of {len(table):,} rows {verb} ({why}): {places(finding.rows, table)}; {fix}"
    )


def problem_counts(rows: pa.Table, most: int = 10) -> dict[str, int]:
    """Return how many of some rows are malformed in the same way, the commonest first; a problem names
    fields, never their values.
    """
    counts = Counter(
        _POSITION.sub("", problem) for problem in rows["problem"].to_pylist() if problem is not None
    )
    return dict(counts.most_common(most))


def _commonest_problem(rows: pa.Table) -> tuple[str, int]:
    return next(iter(problem_counts(rows, 1).items()), ("", 0))


def _unknown_labels(rows: pa.Table, settings: ExamplesSettings) -> str:
    """Return the commonest labels that examples.labels lacks, and the labels that it has; nothing if the
    labels look like texts.
    """
    if task_of(settings).target != "label":
        return ""
    known = settings.labels or []
    counts = Counter(label for label in rows["label"].to_pylist() if label and label not in known)
    if not may_be_named(counts):
        return ""
    most = counts.most_common(_SHOWN)
    return (
        f"{named([(label, f'{count:,}') for label, count in most], len(most), counts)}; examples.labels has"
        f" {', '.join(known)}"
    )


def _wrong_field(reason: str, problem: str, is_every_row: bool, settings: ExamplesSettings) -> str:
    """Return the key to look at where each row lacks the field that it names: then it is probably the key
    that is wrong, not the rows.
    """
    if is_every_row and problem.startswith("no field "):
        return "no row has this field: if another one holds the text, name it in documents.text; else "
    if is_every_row and reason == REASONS["labels_are_present"]:
        return (
            f"no row has a value in the field `{settings.label}`: if another one holds the label, name it in"
            " examples.label; else "
        )
    return ""


def places(rows: Sequence[int], table: pa.Table) -> str:
    """Return the first five rows as file:row (see `documents.aliases`), and how many more there are."""
    shown = [f"{alias(table['source'][row].as_py())}:{table['row'][row].as_py()}" for row in rows[:_SHOWN]]
    more = f" and {len(rows) - len(shown):,} more" if len(rows) > len(shown) else ""
    return ", ".join(shown) + more


def balance_outcome(
    rule: Rule, label_counts: Mapping[str, int], num_valid: int, settings: ExamplesSettings
) -> CheckOutcome:
    """Return whether each label, known or found, has its least share of the valid rows (of the spans); of few
    rows none is judged.
    """
    counts = {**dict.fromkeys(settings.labels or [], 0), **label_counts}
    total = max(sum(counts.values()) if task_of(settings).target == "spans" else num_valid, 1)
    least = MIN_LABEL_SHARE if num_valid >= ROWS_FOR_BALANCE else 0
    rare = sorted((label for label, count in counts.items() if count / total < least), key=counts.__getitem__)
    shown = [(label, f"{counts[label] / total:.2%}") for label in rare[:_SHOWN]]
    return CheckOutcome(
        name="labels_are_balanced",
        passed=not rare,
        severity=rule.severity,
        description=(
            f"rarer than {MIN_LABEL_SHARE:.0%}: {named(shown, len(rare), list(counts))}; deliver more of them"
            if rare
            else ""
        ),
        metadata={
            "num_labels": len(counts),
            "num_rare_labels": len(rare),
            **({"smallest_share": min(counts.values()) / total} if counts else {}),
        },
    )


def agreement_outcome(rule: Rule, agreement: Agreement | None) -> CheckOutcome:
    """Return whether annotators agree beyond chance; where nobody labelled the same text there is nothing to
    judge.
    """
    kappa = None if agreement is None else agreement.kappa
    passed = kappa is None or kappa >= MIN_KAPPA
    description = ""
    if agreement is None:
        description = "no text was labelled by two annotators"
    elif kappa is None:
        description = "all annotations are one label: kappa is not defined"
    elif not passed:
        method = {"cohen": "Cohen's", "fleiss": "Fleiss'"}[agreement.method]
        worst = sorted((k, label) for label, k in agreement.label_kappas.items() if k is not None)[:3]
        least = named([(label, f"{k:.2f}") for k, label in worst], len(worst), agreement.label_kappas)
        description = (
            f"{method} kappa {kappa:.2f} of {agreement.num_annotators} annotators on"
            f" {agreement.num_items:,} texts is below {MIN_KAPPA:g}, least on {least}; sharpen the guideline"
            " for these labels"
        )
    metadata: dict[str, int | float] = {"num_items": 0 if agreement is None else agreement.num_items}
    if agreement is not None:
        metadata |= {"num_annotators": agreement.num_annotators, "observed_agreement": agreement.observed}
        metadata |= (
            {"lowest_label_kappa": min(known)}
            if (known := [k for k in agreement.label_kappas.values() if k is not None])
            else {}
        )
    if kappa is not None:
        metadata["kappa"] = kappa
    return CheckOutcome(
        name="annotators_agree",
        passed=passed,
        severity=rule.severity,
        description=description,
        metadata=metadata,
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
    bounded = share <= settings.max_quarantined_share and (len(valid) > 0 or not num_rows)
    reasons = Counter(r for text in quarantined["reasons"].to_pylist() for r in text.split("; ")).most_common(
        1
    )
    reason, count = reasons[0] if reasons else ("", 0)
    problem, count = (
        _commonest_problem(quarantined) if reason == REASONS["rows_are_well_formed"] else ("", count)
    )
    strange = _unknown_labels(quarantined, settings) if reason == REASONS["labels_are_known"] else ""
    problem = problem or strange
    why = f", most often: {reason}{f' ({problem})' if problem else ''}" if reason else ""
    finding = (
        f"{len(quarantined):,} of {num_rows:,} rows quarantined{why}"
        if num_rows
        else "not one of its files was read"
    )
    fix = "add them to examples.labels, or " if strange else ""
    fix += _wrong_field(reason, problem, count == num_rows, settings) + "fix the source and deliver it again"
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
            passed=bounded,
            description="" if bounded else f"batch {batch_name}: {finding}; {fix}",
            metadata={"quarantined_share": float(np.round(share, 6))},
        ),
    ]
