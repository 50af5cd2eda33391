"""The order in which documents are erased from everything that holds something of them.

The tables of batches and windows have one row a document. What was made of erased documents is deleted where
it is made again when needed; else it is written without them.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    CHEAPER_BASELINES,
    CHUNKS_FILE,
    DOCUMENTS_FILE,
    DRIFT_REPORT,
    DRIFT_SCALE,
    EVALUATION_REPORT,
    EXAMPLES_FILE,
    LABELED_EXAMPLES,
    NEAR_DUPLICATE_INDEX,
    PRODUCTION_DOCUMENTS,
    QUARANTINED_EXAMPLES,
    RAW_DOCUMENTS,
    SCREENED_EXAMPLES,
    TOKENIZED_CHUNKS,
    TOKENIZER_AUDIT,
    TRAINING_SNAPSHOT,
)
from fullft_assets.documents.batches import forget
from fullft_assets.documents.erasure import By, write_tombstones
from fullft_assets.erasure.checkpoints import drop_unfinished, name_checkpoints
from fullft_assets.erasure.erased_documents import (
    GENERAL,
    ErasedDocuments,
    gather,
    key_ref,
    search,
    whole_artifacts,
)
from fullft_assets.erasure.rewriting import (
    ATTEMPTS,
    TRACEBACKS,
    TRAININGS,
    ErasureReport,
    drop_drawn_rows,
    drop_from_reports,
    drop_from_snapshots,
)
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import external
from fullft_assets.examples import QUARANTINED, count_labels, count_reasons, write_examples
from fullft_assets.monitoring import (
    EXPLANATION,
    FAR,
    SCALE,
    DriftMetadata,
    Scale,
    ScaleMetadata,
    write_far,
)
from fullft_assets.settings import ExamplesSettings
from fullft_assets.snapshot import table_folder
from fullft_assets.store import Manifest, Store

#: The tables of each stage, the first one being the stage's own.
FILES = {
    RAW_DOCUMENTS: [DOCUMENTS_FILE],
    PRODUCTION_DOCUMENTS: [DOCUMENTS_FILE],
    LABELED_EXAMPLES: [EXAMPLES_FILE, QUARANTINED],
    QUARANTINED_EXAMPLES: ["quarantined.parquet"],
    TOKENIZED_CHUNKS: [CHUNKS_FILE],
}


def _drop_rows(
    store: Store, case: str, stage: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    """Rewrite the artifacts of a stage without erased documents and the names of files that are gone.

    Chunks have ids alone, which may be made up. They follow their examples, which must still be there.
    """
    of_examples = _ids_of_examples(store, case, erased_documents) if stage == TOKENIZED_CHUNKS else {}
    for manifest, folder in whole_artifacts(store, case, stage):
        tables = {name: pq.read_table(folder / name) for name in FILES[stage]}
        if stage == TOKENIZED_CHUNKS:
            ids = of_examples.get(manifest.inputs[LABELED_EXAMPLES], erased_documents.ids)
            hit = [np.array([id_ in ids for id_ in tables[CHUNKS_FILE]["id"].to_pylist()], bool)]
        else:
            hit = [erased_documents.rows(table) for table in tables.values()]
        metadata = _without_paths(manifest.metadata, erased_documents.paths)
        inputs = _without_paths(manifest.inputs, erased_documents.paths)
        if not any(rows.any() for rows in hit) and (metadata, inputs) == (manifest.metadata, manifest.inputs):
            continue
        tables_left = {
            name: table.filter(pa.array(~rows))
            for (name, table), rows in zip(tables.items(), hit, strict=True)
        }
        metadata["num_erased"] = (metadata.get("num_erased") or 0) + int(hit[0].sum())
        metadata |= _counts(manifest, list(tables_left.values()))
        store.rewrite(manifest, partial(_write_tables, tables_left, metadata), inputs)
        report.rewritten[stage] += 1


def _without_paths(value: Any, paths: Collection[str]) -> Any:
    """Return a JSON value without these paths, whether they are items or keys."""
    if isinstance(value, Mapping):
        return {name: _without_paths(inner, paths) for name, inner in value.items() if name not in paths}
    return (
        [_without_paths(item, paths) for item in value if not isinstance(item, str) or item not in paths]
        if isinstance(value, list)
        else value
    )


def _write_tables(
    tables: Mapping[str, pa.Table], metadata: Mapping[str, Any], folder: Path
) -> Mapping[str, Any]:
    for name, table in tables.items():
        (write_examples if name == EXAMPLES_FILE else pq.write_table)(table, folder / name)
    # Words of the documents, which an earlier version kept beside their chunks.
    (folder / "words.parquet").unlink(missing_ok=True)
    return metadata


def _ids_of_examples(store: Store, case: str, erased_documents: ErasedDocuments) -> dict[str, set[str]]:
    ids = {}
    for manifest, folder in whole_artifacts(store, case, LABELED_EXAMPLES):
        table = pq.read_table(folder / EXAMPLES_FILE)
        ids[manifest.content_digest] = set(table["id"].filter(erased_documents.rows(table)).to_pylist())
    return ids


def _counts(manifest: Manifest, tables: list[pa.Table]) -> dict[str, Any]:
    if manifest.stage == QUARANTINED_EXAMPLES:
        return {"num_quarantined": len(tables[0]), **count_reasons(tables[0])}
    if manifest.stage != LABELED_EXAMPLES:
        return {"num_rows": len(tables[0])}
    valid, quarantined = tables
    return {
        "num_rows": len(valid) + len(quarantined),
        "num_valid": len(valid),
        "num_quarantined": len(quarantined),
        "label_counts": count_labels(valid, ExamplesSettings.from_manifest(manifest.settings)),
    }


#: Made of a batch or a window.
MADE_OF_ROWS = (NEAR_DUPLICATE_INDEX, SCREENED_EXAMPLES, TOKENIZER_AUDIT, BATCH_PREDICTIONS)
#: Made of a snapshot. Baselines learned from the training rows as weights do, but in words: TF-IDF's
#: vocabulary.
MADE_OF_SNAPSHOTS = (CHEAPER_BASELINES, DRIFT_SCALE)


def _drop_made_of_rows(
    store: Store, case: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    artifacts = erased_documents.artifacts | {
        chunks.content_digest
        for chunks in store.artifacts(case, TOKENIZED_CHUNKS)
        if chunks.inputs[LABELED_EXAMPLES] in erased_documents.artifacts
    }
    for stage in MADE_OF_ROWS:
        for manifest in store.artifacts(case, stage):
            inputs = json.dumps(manifest.inputs)
            if any(digest in inputs for digest in artifacts):
                _delete(store, manifest, report)


def drop_made_of_snapshots(store: Store, case: str, report: ErasureReport) -> None:
    """Delete the baselines whose snapshot has changed, and take the embeddings of single rows out of the
    scales of drift: nobody can tell any more whose they are.
    """

    def without_rows(folder: Path) -> Mapping[str, Any]:
        Scale.load(folder / SCALE).without_rows().save(folder / SCALE)
        return {"num_held_out": 0}

    snapshots = {manifest.content_digest for manifest, _ in whole_artifacts(store, case, TRAINING_SNAPSHOT)}
    for stage in MADE_OF_SNAPSHOTS:
        for manifest in store.artifacts(case, stage):
            if manifest.inputs.get(TRAINING_SNAPSHOT) in snapshots:
                continue
            if stage != DRIFT_SCALE:
                _delete(store, manifest, report)
            elif ScaleMetadata.of(manifest).num_held_out:
                store.rewrite(manifest, without_rows)
                report.rewritten[stage] += 1


def _delete(store: Store, manifest: Manifest, report: ErasureReport) -> None:
    store.delete(manifest)
    report.deleted[manifest.stage] += 1


def _drop_from_drift_reports(
    store: Store, case: str, erased_documents: ErasedDocuments, report: ErasureReport
) -> None:
    """Empty the lists of far documents of drift reports whose window held an erased one, and delete
    explanations that have their words.

    An explanation has words of its own window and of the windows that it was compared with. Sums are means of
    many documents, and stay.
    """
    reports = store.artifacts(case, DRIFT_REPORT)
    metadata = {manifest.ref: DriftMetadata.of(manifest) for manifest in reports}
    touched_refs = {
        key_ref(ref)
        for ref, drift in metadata.items()
        if key_ref(drift.documents) in erased_documents.windows
    }

    def forget_documents(has_documents: bool, folder: Path) -> Mapping[str, Any]:
        (folder / EXPLANATION).unlink(missing_ok=True)
        if has_documents and (folder / FAR).is_file():
            write_far(folder / FAR, [])
        return {}

    for manifest in reports:
        drift = metadata[manifest.ref]
        reference_refs = {key_ref(ref) for ref in (*drift.reference, *drift.kept_reference)}
        is_touched = key_ref(manifest.ref) in touched_refs
        if is_touched or (EXPLANATION in manifest.files and not touched_refs.isdisjoint(reference_refs)):
            store.rewrite(manifest, partial(forget_documents, is_touched))
            report.rewritten[DRIFT_REPORT] += 1


#: Every stage whose attempts may hold documents, their names or what was made of them.
HOLDING = (
    *FILES,
    *GENERAL,
    TRAINING_SNAPSHOT,
    *MADE_OF_ROWS,
    *MADE_OF_SNAPSHOTS,
    DRIFT_REPORT,
    EVALUATION_REPORT,
)


def erase(
    store: Store, case: str, list_lines: Iterable[str], *, by: By = "id", reason: str = ""
) -> ErasureReport:
    """Erase documents everywhere in a use case's store.

    One that was cut short is finished by the next with the same list. Runs in flight should end before. It
    waits for another erasure, or a clean-up, of the use case.

    Args:
        store, case: where.
        list_lines: document ids, or groups (all documents of a patient, a client), as the list has them.
        by: what is listed.
        reason: kept with the tombstones.
    """
    with store.alone_with_artifacts(case), store.rewriting(case):
        return _erase(store, case, list(dict.fromkeys(list_lines)), by, reason)


def _erase(store: Store, case: str, list_lines: list[str], by: By, reason: str) -> ErasureReport:
    report = ErasureReport(num_listed=len(list_lines))
    _sweep(store, case, report)
    documents = search(store, case, list_lines, by)
    write_tombstones(store, case, documents.digests, by=by, reason=reason)
    report.missing = documents.missing
    report.num_before = len(documents.before)
    erased_documents = gather(store, case, reason)
    report.num_found = len(erased_documents.ids)
    forget(store, case, erased_documents.paths, "batch")
    forget(store, case, erased_documents.paths, "window")
    drop_from_reports(store, case, erased_documents, report)
    _drop_from_drift_reports(store, case, erased_documents, report)
    # The copies of the user's predictions have ids of test rows: what is read again needs the erased ones no
    # longer.
    for manifest in store.artifacts(case, external.PREDICTIONS):
        _delete(store, manifest, report)
    _drop_made_of_rows(store, case, erased_documents, report)
    for stage in (TOKENIZED_CHUNKS, LABELED_EXAMPLES, QUARANTINED_EXAMPLES):
        _drop_rows(store, case, stage, erased_documents, report)
    for stage in GENERAL:
        drop_drawn_rows(store, case, stage, erased_documents, report)
    drop_from_snapshots(store, case, erased_documents, report)
    shutil.rmtree(table_folder(store, case), ignore_errors=True)
    drop_made_of_snapshots(store, case, report)
    for stage in (PRODUCTION_DOCUMENTS, RAW_DOCUMENTS):
        _drop_rows(store, case, stage, erased_documents, report)
    report.trained_on, report.champions = name_checkpoints(store, case)
    report.deleted[TRAININGS], num_training = drop_unfinished(store, case, report.trained_on)
    report.num_in_flight += num_training
    return report


def _sweep(store: Store, case: str, report: ErasureReport) -> None:
    """Remove what failed and killed processes left: tracebacks, attempts without a manifest, and tables of
    which a part is lost.

    None of it exists for anybody else, and what made it can be run again; but it contains documents.
    """
    report.deleted[TRACEBACKS] = store.delete_tracebacks(case)
    for stage in HOLDING:
        for ref in store.unfinished(case, stage):
            if store.discard(ref):
                report.deleted[ATTEMPTS] += 1
            else:
                report.num_in_flight += 1
    for stage in (*FILES, *GENERAL):
        for manifest in store.artifacts(case, stage):
            try:
                store.folder(manifest)
            except StoreError:
                # A clean-up leaves manifests alone.
                if len(store.sizes(manifest.ref)) > 1:
                    store.delete(manifest)
                    report.deleted[ATTEMPTS] += 1
