"""erasure: an erasure list -> every artifact without those documents, tombstones, and the models that had
learned from them.

Each artifact that holds a named document is replaced by a copy without it, under the same key; the old one is
deleted. A tombstone (a keyed digest, never the id itself) keeps the document out when its file is read again.
Weights cannot be rewritten: the checkpoints and champions that learned from an erased document are named.

It may be cut short anywhere: what is to go is decided by the tombstones, which are written first, and by what
the artifact holds that a table was made from; so the next erasure with the same list finishes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.chunks import WORDS, AuditMetadata
from fullft_assets.documents.batches import forget
from fullft_assets.documents.erasure import By
from fullft_assets.erasure import general_documents
from fullft_assets.erasure.affected_checkpoints import key_ref, name_checkpoints
from fullft_assets.erasure.counts import batch_of, files_of, recounted
from fullft_assets.erasure.erased_documents import ErasedDocuments, by_content, gather
from fullft_assets.erasure.evaluation_reports import drop_from_reports
from fullft_assets.erasure.file_names import scrub
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.erasure.search import DOCUMENTS, search
from fullft_assets.erasure.snapshots import drop_from_snapshots
from fullft_assets.erasure.unfinished_trainings import drop_unfinished
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import external
from fullft_assets.examples import QUARANTINED, write_examples
from fullft_assets.monitoring import (
    EXPLANATION,
    FAR,
    SCALE,
    DriftMetadata,
    FarDocument,
    Scale,
    ScaleMetadata,
    read_far,
    write_far,
)
from fullft_assets.store import CheckOutcome, Manifest, Store

if TYPE_CHECKING:
    import pyarrow as pa


#: The tables with one row a document, inputs before what is made of them.
_TABLES = {**DOCUMENTS, "tokenized_chunks": "chunks.parquet"}
#: What is made again at the next use, and dropped where it was made from a rewritten artifact. The baselines
#: learned from the training rows as weights do, but in words: TF-IDF's vocabulary.
_DERIVED = ("near_duplicate_index", "screened_examples", "cheaper_baselines", "batch_predictions")
#: Every stage whose attempts may hold documents, their names or what was made of them.
_HOLDING = (
    *_TABLES,
    "training_snapshot",
    *_DERIVED,
    "tokenizer_audit",
    "drift_scale",
    "drift_report",
    "evaluation_report",
)


def erase(
    store: Store, case: str, listed: Iterable[str], *, by: By = "id", reason: str = ""
) -> ErasureReport:
    """Erase documents everywhere in a use case's store.

    One that was cut short is finished by the next with the same list. Runs in flight should end before. It
    waits for another erasure, or a clean-up, of the use case.

    Args:
        listed: document ids, or groups (all documents of a patient, a client), as the list has them.
        reason: kept with the tombstones.
    """
    with store.alone_with_artifacts(case), store.rewriting(case):
        return _erase(store, case, list(dict.fromkeys(listed)), by, reason)


def _erase(store: Store, case: str, listed: list[str], by: By, reason: str) -> ErasureReport:
    report = ErasureReport(num_listed=len(listed))
    _sweep(store, case, report)
    sought = search(store, case, listed, by)
    sought.record(store, case, by, reason)
    report.missing, report.num_before = sought.missing, len(sought.before)
    erased = gather(store, case, reason)
    # Before the tables: if this is cut short, they still contain the texts and names to look for.
    drop_from_reports(store, case, erased, report)
    forget(store, case, erased.paths, "batch")
    forget(store, case, erased.paths, "window")
    made_from: dict[str, dict[str, Manifest]] = {}
    for stage, file in _TABLES.items():
        for manifest in store.artifacts(case, stage):
            if stage not in general_documents.STAGES:
                _drop_rows(store, manifest, file, erased, made_from, report)
            elif general_documents.drop_rows(store, manifest, erased.rows):
                report.rewritten[stage] += 1
        made_from[stage] = by_content(store, case, stage)
    drop_from_snapshots(store, case, erased, report)
    _drop_derived(store, case, report)
    report.num_found = len(erased.found)
    report.trained_on, report.measured_on, report.champions = name_checkpoints(store, case)
    report.num_unfinished, num_training = drop_unfinished(store, case, report.trained_on)
    report.num_in_flight += num_training
    report.record(store, case, reason)
    return report


def _sweep(store: Store, case: str, report: ErasureReport) -> None:
    """Remove what failed and killed processes left: tracebacks, attempts without a manifest, and tables that
    cannot be read any more.

    None of it exists for anybody else, and what made it can be run again; but it contains documents.
    """
    report.num_tracebacks = store.delete_tracebacks(case)
    for stage in _HOLDING:
        for ref in store.unfinished(case, stage):
            if store.discard(ref):
                report.num_discarded += 1
            else:
                report.num_in_flight += 1
    for stage in _TABLES:
        for manifest in store.artifacts(case, stage):
            try:
                store.folder(manifest)
            except StoreError:
                store.delete(manifest)
                report.num_discarded += 1


def _drop_rows(
    store: Store,
    manifest: Manifest,
    file: str,
    erased: ErasedDocuments,
    made_from: Mapping[str, Mapping[str, Manifest]],
    report: ErasureReport,
) -> None:
    """Rewrite a table without the rows that have a tombstone, and with the inputs as they are since their own
    rewriting.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store.folder(manifest)
    table = pq.read_table(folder / file)
    upstream = {
        name: made_from[name].get(content) for name, content in manifest.inputs.items() if name in made_from
    }
    inputs = dict(manifest.inputs) | {
        name: made.content_digest for name, made in upstream.items() if made is not None
    }
    hit = _rows_to_drop(store, manifest, table, upstream, erased)
    quarantined = (
        pq.read_table(folder / QUARANTINED) if manifest.stage == "labeled_examples" else table.slice(0, 0)
    )
    quarantined_hit = erased.rows(quarantined)
    paths = _paths_to_scrub(manifest, table, hit, upstream, erased)
    if not hit.any() and not quarantined_hit.any() and not paths and inputs == manifest.inputs:
        return
    kept = table.filter(pa.array(~hit))
    if "files" in inputs:
        inputs["files"] = scrub(inputs["files"], paths)

    def edit(path: Path) -> Mapping[str, Any]:
        (write_examples if manifest.stage == "labeled_examples" else pq.write_table)(kept, path / file)
        if manifest.stage == "tokenized_chunks" and hit.any():
            # Counts of the batch's words, the erased documents' among them; the audit goes on without this
            # batch.
            pq.write_table(pq.read_table(path / WORDS).slice(0, 0), path / WORDS)
        if manifest.stage == "labeled_examples":
            pq.write_table(quarantined.filter(pa.array(~quarantined_hit)), path / QUARANTINED)
        before = scrub(
            {name: value for name, value in manifest.metadata.items() if name != "replaces"}, paths
        )
        return {
            **before,
            **recounted(manifest, kept, int(hit.sum()), erased.num_quarantined.get(batch_of(manifest), 0)),
        }

    checks = [CheckOutcome.model_validate(scrub(check.model_dump(), paths)) for check in manifest.checks]
    store.rewrite(manifest, edit, inputs, checks)
    report.rewritten[manifest.stage] += 1


def _rows_to_drop(
    store: Store,
    manifest: Manifest,
    table: pa.Table,
    upstream: Mapping[str, Manifest | None],
    erased: ErasedDocuments,
) -> np.ndarray:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    examples = upstream.get("labeled_examples")
    if manifest.stage != "tokenized_chunks" or examples is None:
        return erased.rows(table)
    # Chunks only have the id, which may be made up: they follow their examples, which are rewritten by now.
    # All rows of an id go.
    left = pq.read_table(store.folder(examples) / "examples.parquet", columns=["id"])["id"]
    return ~pc.is_in(table["id"], left.combine_chunks()).to_numpy().astype(bool)


def _paths_to_scrub(
    manifest: Manifest,
    table: pa.Table,
    hit: np.ndarray,
    upstream: Mapping[str, Manifest | None],
    erased: ErasedDocuments,
) -> set[str]:
    """Return which files' names to remove from an artifact's manifest: those that its input does not name any
    more.
    """
    made_from = upstream.get("raw_documents") or upstream.get("labeled_examples")
    named = files_of(manifest)
    if made_from is None:
        return erased.paths & (named or set())
    left = files_of(made_from) or set()
    if named is not None:
        return named - left
    ids = (table["id"][int(row)].as_py() for row in np.flatnonzero(hit))
    return {path for path, _, row in (id_.rpartition(":") for id_ in ids) if path and row.isdecimal()} - left


def _drop_derived(store: Store, case: str, report: ErasureReport) -> None:
    """Delete what was made of rewritten artifacts and is made again when needed; forget the words of their
    windows and the embeddings of held-out rows.
    """
    made = [
        manifest for stage in (*_TABLES, "training_snapshot") for manifest in store.artifacts(case, stage)
    ]
    # A snapshot that lost no row has the content that it had.
    gone = {old for manifest in made for old in manifest.replaces} - {
        manifest.content_digest for manifest in made
    }
    for stage in _DERIVED:
        for manifest in store.artifacts(case, stage):
            if any(_mentions(manifest.inputs, content) for content in gone):
                store.delete(manifest)
                report.deleted[stage] += 1
    # Copies of the user's files, with the ids of test rows: what is read again no longer needs those of the
    # erased ones.
    for manifest in store.artifacts(case, external.STAGE):
        store.delete(manifest)
        report.deleted[external.STAGE] += 1
    for manifest in store.artifacts(case, "tokenizer_audit"):
        if (
            any(_mentions(manifest.inputs, content) for content in gone)
            and not AuditMetadata.of(manifest).withdrawn
        ):

            def withdraw(folder: Path) -> Mapping[str, Any]:
                (folder / "terms.json").write_text("[]", encoding="utf-8")
                (folder / "proposal.yaml").write_text(
                    "# Withdrawn: documents that it was mined from were erased.\n", encoding="utf-8"
                )
                return {"withdrawn": True}

            store.rewrite(manifest, withdraw)
            report.rewritten[manifest.stage] += 1
    # Later windows are read on a scale whose snapshot a clean-up has removed: nobody can tell whose rows it
    # has.
    known = {
        content
        for snapshot in made
        if snapshot.stage == "training_snapshot"
        for content in (snapshot.content_digest, *snapshot.replaces)
    }
    for manifest in store.artifacts(case, "drift_scale"):
        is_touched = (
            any(_mentions(manifest.inputs, content) for content in gone)
            or manifest.inputs["training_snapshot"] not in known
        )
        if is_touched and ScaleMetadata.of(manifest).num_held_out:
            store.rewrite(manifest, _drop_held_out)
            report.rewritten[manifest.stage] += 1
    # An explanation has words of its own window and of the reference windows. Sums are means of many
    # documents, and stay.
    reports = store.artifacts(case, "drift_report")
    touched = {
        key_ref(manifest.ref) for manifest in reports if manifest.inputs.get("production_documents") in gone
    }
    for manifest in reports:
        found = DriftMetadata.of(manifest)
        read = {key_ref(ref) for ref in (manifest.ref, *found.reference, *found.kept_reference)}
        is_explained = EXPLANATION in manifest.files and bool(read & touched)
        is_far = FAR in manifest.files and key_ref(manifest.ref) in touched
        far = read_far(store.folder(manifest) / FAR) if is_far else []
        left = _left_of(store, manifest, far) if far else []
        if is_explained or len(left) < len(far):

            def edit(
                folder: Path,
                *,
                is_explained: bool = is_explained,
                far: list[FarDocument] = far,
                left: list[FarDocument] = left,
            ) -> Mapping[str, Any]:
                if is_explained:
                    (folder / EXPLANATION).unlink()
                if far:
                    write_far(folder / FAR, left)
                return {}

            store.rewrite(manifest, edit)
            report.rewritten[manifest.stage] += 1


def _left_of(store: Store, report: Manifest, far: list[FarDocument]) -> list[FarDocument]:
    """Return those of these documents that the report's window still has."""
    import pyarrow.parquet as pq

    window = store.load(DriftMetadata.of(report).documents)
    table = pq.read_table(store.folder(window) / "documents.parquet", columns=["source", "row"])
    places = set(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
    return [document for document in far if (document.source, document.row) in places]


def _drop_held_out(folder: Path) -> Mapping[str, Any]:
    Scale.load(folder / SCALE, ()).without_rows().save(folder / SCALE)
    return {"num_held_out": 0}


def _mentions(value: Any, content: str) -> bool:
    if isinstance(value, Mapping):
        return any(_mentions(inner, content) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_mentions(inner, content) for inner in value)
    return value == content
