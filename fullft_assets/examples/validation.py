"""examples: raw documents -> valid labelled examples, and the quarantine of the rest with reasons.

The rules are Great Expectations on a *profile*: a narrow table of numbers, flags and names, one row a
document, without its text (see `rules`). Each row is judged by itself. What the rows of a batch are to each
other (copies, contradictions, votes, older versions) is only counted here: the snapshot decides about it over
all batches (see `identity`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    DOCUMENTS_FILE,
    EXAMPLES_FILE,
    LABELED_EXAMPLES,
    QUARANTINED_EXAMPLES,
    RAW_DOCUMENTS,
)
from fullft_assets.conversations import messages_hash
from fullft_assets.documents import RawMetadata, masked_kinds
from fullft_assets.errors import SettingsError
from fullft_assets.examples import agreement, expectations
from fullft_assets.examples.agreement import Agreement
from fullft_assets.examples.labels import as_listed
from fullft_assets.examples.outcomes import (
    agreement_outcome,
    count_reasons,
    field_outcomes,
    gate_outcomes,
    row_outcome,
)
from fullft_assets.examples.rules import (
    Finding,
    Rule,
    profile,
    rules_for,
    run_expectations,
    suite_for,
)
from fullft_assets.personal_data.entities import pipeline_key
from fullft_assets.personal_data.search import (
    PersonalDataSearch,
    counts_of,
    kinds_named,
    mask_documents,
    search_of,
)
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.hashing import text_hash
from fullft_assets.store.metadata import Metadata, Private
from fullft_assets.task import task_of

if TYPE_CHECKING:
    import pandas as pd

    from fullft_assets.settings.use_case import UseCase


class ExamplesMetadata(Metadata):
    """Metadata of `labeled_examples`.

    Attributes:
        batch: name of the batch.
        uri: where its documents came from.
        files: time of delivery (ns) of each file that was read.
        taken_away: files of the batch that were gone before they could be read again.
        num_rows: rows in = `num_valid` + `num_quarantined`.
        num_masked: rows in which personal data was masked.
        encodings: files by encoding, the most frequent first; a file without text counts for UTF-8.
        label_counts: valid rows (for spans: the spans) by label, the most frequent first.
        kappa: agreement of the annotators (None where chance alone gives full agreement), also of each
            label.
        num_items_annotated_twice: texts that the agreement is measured on.
        num_erased: rows that erasures removed.
    """

    batch: str
    uri: str
    files: Annotated[dict[str, int], Private.FILES]
    taken_away: Annotated[list[str] | None, Private.FILES] = None
    num_rows: int
    num_valid: int
    num_quarantined: int
    num_masked: int = 0
    encodings: dict[str, int] = {}
    label_counts: Annotated[dict[str, int], Private.LABELS]
    kappa: float | None = None
    kappa_per_label: Annotated[dict[str, float] | None, Private.LABELS] = None
    num_items_annotated_twice: int | None = None
    num_erased: int | None = None


class QuarantineMetadata(Metadata):
    """Metadata of `quarantined_examples`.

    Attributes:
        batch, uri: see `ExamplesMetadata`.
        num_quarantined: quarantined rows.
        reasons: rows by reason, the most frequent first.
        problems: malformed rows by problem, the ten commonest.
        num_erased: see `ExamplesMetadata`.
    """

    batch: str
    uri: str
    num_quarantined: int
    reasons: dict[str, int]
    problems: dict[str, int]
    num_erased: int | None = None


VERSION = "13"
#: Rows of a row group of `examples.parquet`: some megabytes of text.
_ROW_GROUP = 1 << 14
#: What is kept of the quarantined rows beside the valid ones: a newer delivery of a file does not supersede a
#: row that is broken in it.
QUARANTINED = "quarantined_rows.parquet"
_QUARANTINED_COLUMNS = ["id", "text_hash", "group", "source", "row", "delivered_ns", "reasons"]


@dataclass(frozen=True)
class Examined:
    """A batch after validation: `valid` + `quarantined` = what came in."""

    valid: pa.Table
    quarantined: pa.Table
    checks: list[CheckOutcome]
    label_counts: dict[str, int]
    num_masked: int = 0
    agreement: Agreement | None = None


def write_examples(rows: pa.Table, path: Path) -> None:
    """Write valid examples in groups of rows, so that the texts of a few rows can be read without the time
    and memory that all rows take.
    """

    # LZ4 is read in half the time of Parquet's default, at the same size.
    pq.write_table(rows, path, compression="lz4", row_group_size=_ROW_GROUP)


def validate(store: Store, use_case: "UseCase", raw: Manifest) -> tuple[Manifest, Manifest]:
    """Validate a batch and write its valid examples and its quarantine, both also when empty.

    Returns:
        The artifacts `labeled_examples` and `quarantined_examples`.

    Raises:
        SettingsError: an expectation of the user's own cannot be computed.
    """

    settings = use_case.settings
    raw_metadata = RawMetadata.of(raw)
    kinds = masked_kinds(use_case)

    @cache
    def examine_once() -> Examined:
        return examine(
            pq.read_table(store.folder(raw) / DOCUMENTS_FILE),
            settings.examples,
            raw_metadata.batch,
            any_file_was_read=bool(raw_metadata.files),
            id_field=settings.documents.id,
            num_masked=raw_metadata.num_masked
            if kinds is not None and raw.settings.get("masked") == kinds
            else None,
            search=search_of(use_case),
        )

    def write_valid(draft: Draft) -> Outcome:
        examined = examine_once()
        write_examples(examined.valid, draft.path / EXAMPLES_FILE)
        pq.write_table(examined.quarantined.select(_QUARANTINED_COLUMNS), draft.path / QUARANTINED)
        metadata = ExamplesMetadata(
            batch=raw_metadata.batch,
            uri=raw_metadata.uri,
            files=raw_metadata.files,
            taken_away=raw_metadata.taken_away,
            num_rows=len(examined.valid) + len(examined.quarantined),
            num_valid=len(examined.valid),
            num_quarantined=len(examined.quarantined),
            num_masked=examined.num_masked,
            encodings=_encodings(raw_metadata),
            label_counts=examined.label_counts,
            **agreement.metadata_of(examined.agreement),
        )
        return metadata.as_dict(), examined.checks

    def write_quarantined(draft: Draft) -> Outcome:
        rows = examine_once().quarantined
        pq.write_table(rows, draft.path / "quarantined.parquet")
        return (
            QuarantineMetadata(
                batch=raw_metadata.batch,
                uri=raw_metadata.uri,
                num_quarantined=len(rows),
                **count_reasons(rows),
            ).as_dict(),
            [],
        )

    arguments: dict[str, Any] = {
        "version": VERSION,
        "settings": key_settings(settings),
        # Rows without an id are the same whichever field it was looked for in; the gate on it is not.
        "inputs": {
            RAW_DOCUMENTS: raw.content_digest,
            "id_field": settings.documents.id,
            **pipeline_key(use_case),
        },
        "seed": settings.seed,
    }
    valid = store.ensure(use_case.name, LABELED_EXAMPLES, write_valid, **arguments)
    return valid, store.ensure(use_case.name, QUARANTINED_EXAMPLES, write_quarantined, **arguments)


def _encodings(metadata: RawMetadata) -> dict[str, int]:
    counts = Counter(metadata.encodings.values())
    counts["utf-8"] += len(metadata.files) - counts.total()
    return {name: count for name, count in counts.most_common() if count}


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the examples."""
    return settings.examples.model_dump()


def examine(
    documents: pa.Table,
    settings: ExamplesSettings,
    batch_name: str,
    *,
    any_file_was_read: bool = True,
    id_field: str = "id",
    num_masked: int | None = None,
    search: PersonalDataSearch | None = None,
) -> Examined:
    """Validate a batch of documents.

    Args:
        documents: table with `examples.identity.COLUMNS`.
        settings: the rules' thresholds.
        batch_name: named in the messages of red checks.
        any_file_was_read: of the batch; where none was, having no rows is a failure.
        id_field: `documents.id`.
        num_masked: rows in which personal data was masked already as they were read; None: it was not.
        search: personal data that is looked for. Default: the patterns of the settings.

    Raises:
        SettingsError: an expectation of the user's own cannot be computed.
    """

    rules = rules_for(settings)
    documents, num_personal_data, num_masked = _masked(
        as_listed(documents, settings),
        settings,
        search or PersonalDataSearch(kinds_named(settings.pii_kinds)),
        num_masked,
    )
    table = documents.append_column("text_hash", pa.array(_hashes(documents, settings), pa.string()))
    findings = _of_well_formed(_findings(profile(table, settings, num_personal_data), settings), rules)
    reasons = _reasons(findings, rules)
    is_valid = np.ones(len(table), bool)
    is_valid[list(reasons)] = False
    # Filtered, for what is taken by position is copied whole first.
    valid = table.filter(pa.array(is_valid)).drop_columns(["problem"])
    rows = sorted(reasons)
    quarantined = table.take(pa.array(rows, pa.int64())).append_column(
        "reasons", pa.array([reasons[row] for row in rows], pa.list_(pa.string()))
    )
    agreed = agreement.of_batch(valid) if task_of(settings).target == "label" else None
    label_counts = count_labels(valid, settings)
    checks = [row_outcome(name, rules[name], finding, table) for name, finding in findings.items()]
    for check in checks:
        if check.name == "personal_data_is_absent" and settings.pii == "mask":
            check.metadata["num_masked"] = num_masked
    if (rule := rules.get("annotators_agree")) is not None:
        checks.append(agreement_outcome(rule, agreed))
    checks += gate_outcomes(
        len(table), valid, quarantined, settings, batch_name, any_file_was_read=any_file_was_read
    )
    checks += field_outcomes(documents.filter(documents["problem"].is_null()), valid, settings, id_field)
    return Examined(valid, quarantined, checks, label_counts, num_masked, agreed)


def _masked(
    documents: pa.Table, settings: ExamplesSettings, search: PersonalDataSearch, num_masked_before: int | None
) -> tuple[pa.Table, np.ndarray | None, int]:
    if settings.pii == "off":
        return documents, None, 0
    none_left = np.zeros(len(documents), np.int32)
    if settings.pii == "mask" and num_masked_before is not None:
        return documents, none_left, num_masked_before
    pieces_by_row = search.find_in(documents)
    return (
        (mask_documents(documents, pieces_by_row), none_left, len(pieces_by_row))
        if settings.pii == "mask"
        else (documents, counts_of(pieces_by_row, len(documents)), 0)
    )


def _hashes(documents: pa.Table, settings: ExamplesSettings) -> list[str | None]:
    if task_of(settings).has_messages:
        return [
            None if messages is None else messages_hash(messages)
            for messages in documents["messages"].to_pylist()
        ]
    return [None if text is None else text_hash(text) for text in documents["text"].to_pylist()]


def _findings(frame: "pd.DataFrame", settings: ExamplesSettings) -> dict[str, Finding]:
    findings = run_expectations(frame, suite_for(settings))
    # Each of the user's is tried alone: Great Expectations does not always say which one it failed on.
    for number, (name, expectation) in enumerate(
        (expectations.build(settings) if settings.expectations else {}).items()
    ):
        try:
            findings |= run_expectations(frame, {name: expectation})
        except Exception:
            # Its words may quote labels or groups, a patient among them, and this reaches the event log; so
            # would a cause.
            raise SettingsError(
                f"examples.expectations.{number}: {expectation.expectation_type} cannot be computed on the"
                " profile; fix its arguments"
            ) from None
    return findings


def _of_well_formed(findings: Mapping[str, Finding], rules: Mapping[str, Rule]) -> dict[str, Finding]:
    """Return the findings without the malformed rows, except for the rule on malformed rows: such a row
    breaks other rules too.

    The user's own expectations may be about malformed rows, so whether they passed stays.
    """
    malformed = set(findings["rows_are_well_formed"].rows or [])
    of_well_formed = {}
    for name, finding in findings.items():
        if finding.rows is not None and name != "rows_are_well_formed":
            rows = [row for row in finding.rows if row not in malformed]
            finding = Finding(finding.passed or not (rows or rules[name].is_own), rows, finding.observed)
        of_well_formed[name] = finding
    return of_well_formed


def _reasons(findings: Mapping[str, Finding], rules: Mapping[str, Rule]) -> dict[int, list[str]]:
    reasons: dict[int, list[str]] = {}
    for name, rule in rules.items():
        if rule.quarantines and name in findings:
            for row in findings[name].rows or []:
                reasons.setdefault(row, []).append(rule.reason)
    return reasons


def count_labels(valid: pa.Table, settings: ExamplesSettings) -> dict[str, int]:
    """Return the rows (for spans: the spans) of each label, the most frequent first."""

    if (target := task_of(settings).target) is None:
        return {}
    labels = valid[target] if target == "label" else pc.list_flatten(valid[target])
    labels = pc.struct_field(labels, "label") if target == "spans" else labels
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(labels).to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
