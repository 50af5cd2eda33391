"""examples: raw documents -> valid labelled examples, and the quarantine of the rest with reasons.

The rules are Great Expectations on a *profile*: a narrow table of numbers, flags and names, one row a
document, without its text (see `rules`). What other rows a batch holds counts last (see `identity`): only
a sound row can supersede, repeat or contradict another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.errors import SettingsError
from fullft_assets.examples import agreement, expectations, identity, pii
from fullft_assets.examples.agreement import Agreement
from fullft_assets.examples.masking import mask_documents
from fullft_assets.examples.outcomes import (
    agreement_outcome,
    balance_outcome,
    gate_outcomes,
    problem_counts,
    row_outcome,
    size_outcome,
    with_masked,
)
from fullft_assets.examples.rules import (
    IDENTITY_RULES,
    Finding,
    NotComputableError,
    Rule,
    absent,
    balance_profile,
    balanced,
    large_enough,
    profile,
    rules_for,
    run_expectations,
    suite_for,
)
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store
from fullft_assets.store.hashing import messages_hash, text_hash

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from fullft_assets.settings.use_case import UseCase


VERSION = "6"
#: Rows of a row group of `examples.parquet`: some megabytes of text.
_ROW_GROUP = 1 << 14
SUPERSEDED = "superseded by a newer delivery of its id"
MERGED = "merged into one row with the other annotations of its id"
TIED = "annotators disagree without a majority"
#: What the snapshot needs of a sound row that is not among the valid ones; why it is not, as masks of `identity.Identity`.
_OF_LEFT_OUT = ["id", "text_hash", "label", "labels", "spans", "group", "annotator", "source", "row", "delivered_ns"]
_WHY_LEFT_OUT = ("superseded", "merged", "tied", "conflicting", "repeated")
#: A row that a rule caught by itself: the snapshot lets it supersede nothing, so that an older delivery of it may stand.
BROKEN = "broken"


@dataclass(frozen=True)
class Examined:
    """A batch after validation: `valid` + `quarantined` + `superseded` = what came in.

    `left_out` holds the sound rows that are not among the valid ones all the same, without their texts, and `why`. The snapshot
    reckons with them: such a row may be the newest of its id, contradict another batch's, or have been held out once.
    With them stand the ids and places of the rows that are not sound (`why` is BROKEN), and nothing else of those.

    `spare` are those of them whose text no valid row has: kept for it and its tokens, should an equal row stand over all batches.
    """

    valid: pa.Table
    spare: pa.Table
    quarantined: pa.Table
    superseded: pa.Table
    left_out: pa.Table
    checks: list[CheckOutcome]
    label_counts: dict[str, int]
    num_masked: int = 0
    agreement: Agreement | None = None

    @property
    def stored(self) -> pa.Table:
        """The rows of `examples.parquet`: the valid ones, then the spare ones, told apart by the column `spare`."""
        import pyarrow as pa

        parts = ((self.valid, False), (self.spare, True))
        return pa.concat_tables([part.append_column("spare", pa.array([is_spare] * len(part), pa.bool_())) for part, is_spare in parts])


def write_examples(rows: pa.Table, path: Path) -> None:
    """Write valid examples so that the texts of some can be read without the time and the memory that all of them take."""
    import pyarrow.parquet as pq

    # LZ4 is read in half the time of Parquet's default, at the same size.
    pq.write_table(rows, path, compression="lz4", row_group_size=_ROW_GROUP)


def validate(store: Store, use_case: UseCase, raw: Manifest) -> tuple[Manifest, Manifest]:
    """Validate a batch and write its valid examples and its quarantine, both also when empty.

    Returns:
        The artifacts `labeled_examples` and `quarantined_examples`.

    Raises:
        SettingsError: an expectation of the user's own cannot be computed.
    """
    import pyarrow.parquet as pq

    settings = use_case.settings
    about = {"batch": raw.metadata["batch"], "uri": raw.metadata["uri"]}
    taken_away = {"taken_away": raw.metadata["taken_away"]} if "taken_away" in raw.metadata else {}
    examined: list[Examined] = []

    def examine_once() -> Examined:
        if not examined:
            documents = pq.read_table(store.folder(raw) / "documents.parquet")
            any_file_was_read = bool(raw.metadata["files"])
            examined.append(
                examine(documents, settings.examples, raw.metadata["batch"], settings.seed, any_file_was_read=any_file_was_read)
            )
        return examined[0]

    def write_valid(draft: Draft) -> Outcome:
        found = examine_once()
        write_examples(found.stored, draft.path / "examples.parquet")
        pq.write_table(found.left_out, draft.path / "left_out.parquet")
        metadata = {**about, "files": raw.metadata["files"], **taken_away, **_counts(found), "label_counts": found.label_counts}
        return {**metadata, **agreement.metadata_of(found.agreement)}, found.checks

    def write_quarantined(draft: Draft) -> Outcome:
        import pyarrow as pa

        found = examine_once()
        rows = pa.concat_tables([found.quarantined, found.superseded]).sort_by([("source", "ascending"), ("row", "ascending")])
        pq.write_table(rows, draft.path / "quarantined.parquet")
        counts = {name: count for name, count in _counts(found).items() if name in ("num_quarantined", "num_superseded")}
        return {**about, **counts, **count_reasons(rows)}, []

    shared = {
        "version": VERSION,
        "settings": key_settings(settings),
        "inputs": {"raw_documents": raw.content_digest},
        "seed": settings.seed,
    }
    valid = store.ensure(use_case.name, "labeled_examples", write_valid, **shared)
    return valid, store.ensure(use_case.name, "quarantined_examples", write_quarantined, **shared)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that shape the examples."""
    return settings.examples.model_dump()


def _counts(found: Examined) -> dict[str, int]:
    parts = {"num_valid": len(found.valid), "num_quarantined": len(found.quarantined), "num_superseded": len(found.superseded)}
    return {"num_rows": sum(parts.values()), **parts, "num_masked": found.num_masked}


def examine(documents: pa.Table, settings: ExamplesSettings, batch_name: str, seed: int = 0, *, any_file_was_read: bool = True) -> Examined:
    """Validate a batch of documents.

    Args:
        documents: table with `documents.COLUMNS`.
        settings: the rules' thresholds.
        batch_name: named in the messages of red checks.
        seed: of the split: which of equal texts stays.
        any_file_was_read: of the batch; where none was, having no rows is a failure.

    Raises:
        SettingsError: an expectation of the user's own cannot be computed.
    """
    import pyarrow as pa

    rules = rules_for(settings)
    documents, num_personal_data, num_masked = _masked(documents, settings)
    table = documents.append_column("text_hash", pa.array(_hashes(documents, settings), pa.string()))
    frame = profile(table, settings, num_personal_data)
    findings = _try(frame, settings)
    reasons = _reasons(findings, rules)
    sound = np.ones(len(table), bool)
    sound[list(reasons)] = False
    found = identity.resolve(table, sound, settings, set(rules), seed)
    findings |= _try_identity(frame, found, rules)
    reasons |= _reasons({rule: findings[rule] for rule in IDENTITY_RULES if rule in findings}, rules)
    reasons |= {row: [TIED] for row in np.flatnonzero(found.tied)}
    is_valid = ~(found.superseded | found.merged)
    is_valid[list(reasons)] = False
    parts = _partition(table, reasons, found, is_valid, np.flatnonzero(~sound), settings)
    agreed = agreement.of_batch(table, found, settings) if "annotators_agree" in rules else None
    label_counts = count_labels(parts["valid"], settings)
    checks = [row_outcome(name, rules[name], finding, table, settings) for name, finding in findings.items()]
    if "personal_data_is_absent" in rules and settings.pii == "mask":
        checks = [with_masked(check, num_masked) if check.name == "personal_data_is_absent" else check for check in checks]
    checks += _batch_outcomes(frame[is_valid], label_counts, agreed, rules, settings)
    checks += gate_outcomes(
        len(table), parts["valid"], parts["quarantined"], parts["superseded"], settings, batch_name, any_file_was_read=any_file_was_read
    )
    return Examined(**parts, checks=checks, label_counts=label_counts, num_masked=num_masked, agreement=agreed)


def _masked(documents: pa.Table, settings: ExamplesSettings) -> tuple[pa.Table, np.ndarray | None, int]:
    """Return the documents, how much personal data is left in each, and in how many it was masked."""
    if settings.pii == "off":
        return documents, None, 0
    counts = pii.count(documents["text"])
    if settings.pii != "mask":
        return documents, counts, 0
    rows = np.flatnonzero(counts)
    documents = mask_documents(documents, counts)
    counts[rows] = pii.count(documents["text"].take(rows))
    return documents, counts, len(rows)


def _hashes(documents: pa.Table, settings: ExamplesSettings) -> list[str | None]:
    """Return each row's content hash: of its text, for the task sft of its turns; None where there is no content."""
    if settings.task == "sft":
        turns = documents["messages"].to_pylist()
        return [None if found is None else messages_hash([(t["role"], t["content"]) for t in found]) for found in turns]
    return [None if text is None else text_hash(text) for text in documents["text"].to_pylist()]


def _try(frame: pd.DataFrame, settings: ExamplesSettings) -> dict[str, Finding]:
    own = expectations.build(settings) if settings.expectations else {}
    try:
        return run_expectations(frame, {**suite_for(settings), **own})
    except Exception:
        # Great Expectations does not always say which expectation it failed on: each of the user's is tried alone.
        for number, (name, expectation) in enumerate(own.items()):
            try:
                run_expectations(frame, {name: expectation})
            except Exception as error:
                kind = error.kind if isinstance(error, NotComputableError) else type(error).__name__
                # Its words may quote labels or groups, a patient among them, and this reaches the event log; so would a cause.
                raise SettingsError(
                    f"examples.expectations.{number}: {expectation.expectation_type} cannot be computed on the profile ({kind}); mend its "
                    "arguments"
                ) from None
        raise


def _try_identity(frame: pd.DataFrame, found: identity.Identity, rules: Mapping[str, Rule]) -> dict[str, Finding]:
    masks = {
        "ids_are_unique": found.superseded_in_file,
        "texts_are_unique": found.repeated,
        "equal_texts_have_equal_labels": found.conflicting | found.tied,
    }
    used = {rule: mask for rule, mask in masks.items() if rule in rules}
    return run_expectations(frame[[]].assign(**used), absent(used))


def _batch_outcomes(
    valid: pd.DataFrame, label_counts: Mapping[str, int], agreed: Agreement | None, rules: Mapping[str, Rule], settings: ExamplesSettings
) -> list[CheckOutcome]:
    """Return what the rules on the valid rows together find; `valid` is their profile."""
    checks = []
    if (rule := rules.get("labels_are_balanced")) is not None:
        labels = balance_profile(label_counts, len(valid), settings)
        checks.append(
            balance_outcome(rule, run_expectations(labels, balanced(settings, len(valid)))["labels_are_balanced"], labels, settings)
        )
    if (rule := rules.get("annotators_agree")) is not None:
        checks.append(agreement_outcome(rule, agreed, settings))
    if (rule := rules.get("rows_suffice")) is not None:
        checks.append(size_outcome(rule, run_expectations(valid, large_enough(settings))["rows_suffice"], settings))
    return checks


def _reasons(findings: Mapping[str, Finding], rules: Mapping[str, Rule]) -> dict[int, list[str]]:
    """Return the reasons of each row that a quarantining rule caught, in the rules' order."""
    reasons: dict[int, list[str]] = {}
    for name, rule in rules.items():
        if rule.quarantines and name in findings:
            for row in findings[name].rows or []:
                reasons.setdefault(row, []).append(rule.reason)
    return reasons


def _partition(
    table: pa.Table,
    reasons: Mapping[int, list[str]],
    found: identity.Identity,
    is_valid: np.ndarray,
    broken: np.ndarray,
    settings: ExamplesSettings,
) -> dict[str, pa.Table]:
    import pyarrow as pa

    quarantined = np.array(sorted(reasons), np.int64)
    old = np.flatnonzero(found.superseded | found.merged)
    examples = _with_annotations(table, found.ratings).drop_columns(["problem"])
    return {
        "valid": examples.filter(is_valid),
        # Filtered, for what is taken by position is copied whole first.
        "spare": examples.filter(_spare(table, found, is_valid, settings)),
        "quarantined": _with_reasons(table, quarantined, ["; ".join(reasons[row]) for row in quarantined]),
        "superseded": _with_reasons(table, old, [MERGED if merged else SUPERSEDED for merged in found.merged[old]]),
        "left_out": pa.concat_tables([_left_out(table, found), _named(table, broken)]),
    }


def _spare(table: pa.Table, found: identity.Identity, is_valid: np.ndarray, settings: ExamplesSettings) -> np.ndarray:
    """Return a mask over the rows: of the contents that no valid row has, one sound row each.

    Not of versions that the same file supersedes: whatever else arrives, those come in one batch.
    """
    import pyarrow.compute as pc

    rows = np.flatnonzero(found.tied | found.merged | found.conflicting | (found.superseded & ~found.superseded_in_file))
    spare = np.zeros(len(table), bool)
    if not len(rows):
        return spare
    valid = np.flatnonzero(is_valid)
    same = pc.is_in(table["text_hash"].take(valid), table["text_hash"].take(rows).combine_chunks())
    known = set(_contents(table, valid[same.to_numpy().astype(bool)], settings))
    found_by = dict(zip(reversed(_contents(table, rows, settings)), rows[::-1].tolist(), strict=True))
    spare[[row for content, row in found_by.items() if content not in known]] = True
    return spare


def _contents(table: pa.Table, rows: np.ndarray, settings: ExamplesSettings) -> list[tuple[str, str]]:
    """Return what makes the text and the tokens of each row: marks of tokens depend on the spans as well."""
    spans = identity.targets(table, rows, settings) if settings.task == "token_classification" else [""] * len(rows)
    return list(zip(table["text_hash"].take(rows).to_pylist(), spans, strict=True))


def _left_out(table: pa.Table, found: identity.Identity) -> pa.Table:
    import pyarrow as pa

    masks = {why: getattr(found, why) for why in _WHY_LEFT_OUT}
    rows = np.concatenate([np.flatnonzero(mask) for mask in masks.values()])
    reasons = [why for why, mask in masks.items() for _ in range(int(mask.sum()))]
    return table.select(_OF_LEFT_OUT).take(rows).append_column("why", pa.array(reasons, pa.string()))


def _named(table: pa.Table, broken: np.ndarray) -> pa.Table:
    """Return the ids and places of rows that are not sound; the rest of them is nobody's business but the quarantine's."""
    import pyarrow as pa

    rows = table.select(["id", "source", "row", "delivered_ns"]).take(broken)
    columns = {
        name: rows[name] if name in rows.column_names else pa.nulls(len(rows), table.schema.field(name).type) for name in _OF_LEFT_OUT
    }
    # Not null: a place in the split is made of it, which means nothing here.
    columns["text_hash"] = pa.array([""] * len(rows), pa.string())
    return pa.table(columns).append_column("why", pa.array([BROKEN] * len(rows), pa.string()))


def _with_reasons(table: pa.Table, rows: np.ndarray, reasons: list[str]) -> pa.Table:
    import pyarrow as pa

    return table.take(rows).append_column("reasons", pa.array(reasons, pa.string()))


def _with_annotations(table: pa.Table, ratings: list[identity.Rating]) -> pa.Table:
    """Return the table with the annotations of merged rows, one entry an annotator, in each of their rows."""
    if not ratings:
        return table
    import pyarrow as pa

    given: dict[str, list[dict[str, str]]] = {}
    for item, annotator, target in sorted(ratings):
        given.setdefault(table["id"][item].as_py(), []).append({"annotator": annotator, "label": target})
    column = table["annotations"]
    pairs = zip(table["id"].to_pylist(), column.to_pylist(), strict=True)
    annotations = pa.array([given.get(id_, delivered) for id_, delivered in pairs], column.type)
    return table.set_column(table.schema.get_field_index("annotations"), "annotations", annotations)


def count_labels(valid: pa.Table, settings: ExamplesSettings) -> dict[str, int]:
    """Return the rows (for spans: the spans) of each label, the most frequent first."""
    import pyarrow.compute as pc

    if settings.task == "classification":
        labels = pc.list_flatten(valid["labels"]) if settings.multi_label else valid["label"]
    elif settings.task == "token_classification":
        labels = pc.struct_field(pc.list_flatten(valid["spans"]), "label")
    else:
        return {}
    counts = {found["values"]: found["counts"] for found in pc.value_counts(labels).to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def count_reasons(quarantined: pa.Table) -> dict[str, dict[str, int]]:
    """Return what is told of a quarantine: how many rows each reason has, and the commonest `problems`."""
    reasons = Counter(r for text in quarantined["reasons"].to_pylist() for r in text.split("; "))
    return {"reasons": dict(reasons.most_common()), "problems": problem_counts(quarantined)}
