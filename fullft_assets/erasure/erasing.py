"""The order in which documents are erased from everything that holds something of them.

The tables of batches and windows have one row a document. What was made of erased documents is deleted where
it is made again when needed; else it is written without them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.chunks import WORDS
from fullft_assets.documents.batches import forget
from fullft_assets.documents.erasure import By
from fullft_assets.erasure import snapshots
from fullft_assets.erasure.checkpoints import drop_unfinished, name_checkpoints
from fullft_assets.erasure.erased_documents import (
    GENERAL,
    ErasedDocuments,
    gather,
    key_ref,
    search,
    whole_artifacts,
)
from fullft_assets.erasure.reports import ErasureReport, drop_from_reports, scrub
from fullft_assets.erasure.snapshots import drop_from_snapshots
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import external
from fullft_assets.examples import QUARANTINED, count_labels, count_reasons, write_examples
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
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import CheckOutcome, Manifest, Store

#: The tables of each stage, the first one being the stage's own.
FILES = {
    "raw_documents": ["documents.parquet"],
    "production_documents": ["documents.parquet"],
    "labeled_examples": ["examples.parquet", QUARANTINED],
    "quarantined_examples": ["quarantined.parquet"],
    "tokenized_chunks": ["chunks.parquet"],
}


def _drop_rows(store: Store, case: str, stage: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Rewrite the artifacts of a stage without erased documents and the names of files that are gone.

    Chunks have ids alone, which may be made up. They follow their examples, which must still be there.
    """
    of_examples = _ids_of_examples(store, case, erased) if stage == "tokenized_chunks" else {}
    for manifest, folder in whole_artifacts(store, case, stage):
        before = {name: pq.read_table(folder / name) for name in FILES[stage]}
        if stage == "tokenized_chunks":
            ids = of_examples.get(manifest.inputs["labeled_examples"], erased.ids)
            hit = [np.array([id_ in ids for id_ in before["chunks.parquet"]["id"].to_pylist()], bool)]
        else:
            hit = [erased.rows(table) for table in before.values()]
        said = {
            "metadata": manifest.metadata,
            "inputs": manifest.inputs,
            "checks": [check.model_dump() for check in manifest.checks],
        }
        scrubbed = scrub(said, erased.paths)
        if not any(rows.any() for rows in hit) and scrubbed == said:
            continue
        tables = {
            name: table.filter(pa.array(~rows))
            for (name, table), rows in zip(before.items(), hit, strict=True)
        }
        num_erased = int(hit[0].sum())

        def edit(
            path: Path,
            tables: Mapping[str, pa.Table] = tables,
            metadata: Mapping[str, Any] = scrubbed["metadata"],
            num_erased: int = num_erased,
            manifest: Manifest = manifest,
        ) -> Mapping[str, Any]:
            for name, table in tables.items():
                (write_examples if name == "examples.parquet" else pq.write_table)(table, path / name)
            if (path / WORDS).is_file() and num_erased:
                # Counts of the batch's words, the erased documents' among them; an audit goes on without this
                # batch.
                pq.write_table(pq.read_table(path / WORDS).slice(0, 0), path / WORDS)
            counts = {"num_erased": (metadata.get("num_erased") or 0) + num_erased}
            return {**metadata, **counts, **_counts(manifest, list(tables.values()))}

        checks = [CheckOutcome.model_validate(check) for check in scrubbed["checks"]]
        store.rewrite(manifest, edit, scrubbed["inputs"], checks)
        report.rewritten[stage] += 1


def _ids_of_examples(store: Store, case: str, erased: ErasedDocuments) -> dict[str, set[str]]:
    ids = {}
    for manifest, folder in whole_artifacts(store, case, "labeled_examples"):
        table = pq.read_table(folder / "examples.parquet")
        ids[manifest.content_digest] = set(table["id"].filter(erased.rows(table)).to_pylist())
    return ids


def _counts(manifest: Manifest, tables: list[pa.Table]) -> dict[str, Any]:
    if manifest.stage == "quarantined_examples":
        return {"num_quarantined": len(tables[0]), **count_reasons(tables[0])}
    if manifest.stage != "labeled_examples":
        return {"num_rows": len(tables[0])}
    valid, quarantined = tables
    return {
        "num_rows": len(valid) + len(quarantined),
        "num_valid": len(valid),
        "num_quarantined": len(quarantined),
        "label_counts": count_labels(valid, ExamplesSettings.from_manifest(manifest.settings)),
    }


#: Made of a batch or a window.
MADE_OF_ROWS = ("near_duplicate_index", "screened_examples", "tokenizer_audit", "batch_predictions")
#: Made of a snapshot. Baselines learned from the training rows as weights do, but in words: TF-IDF's
#: vocabulary.
MADE_OF_SNAPSHOTS = ("cheaper_baselines", "drift_scale")


def _drop_made_of_rows(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    artifacts = erased.artifacts | {
        chunks.content_digest
        for chunks in store.artifacts(case, "tokenized_chunks")
        if chunks.inputs["labeled_examples"] in erased.artifacts
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

    snapshots = {manifest.content_digest for manifest, _ in whole_artifacts(store, case, "training_snapshot")}
    for stage in MADE_OF_SNAPSHOTS:
        for manifest in store.artifacts(case, stage):
            if manifest.inputs.get("training_snapshot") in snapshots:
                continue
            if stage != "drift_scale":
                _delete(store, manifest, report)
            elif ScaleMetadata.of(manifest).num_held_out:
                store.rewrite(manifest, without_rows)
                report.rewritten[stage] += 1


def _delete(store: Store, manifest: Manifest, report: ErasureReport) -> None:
    store.delete(manifest)
    report.deleted[manifest.stage] += 1


def _drop_from_drift_reports(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Take erased documents out of the lists of drift reports, and delete explanations that have their words.

    An explanation has words of its own window and of the windows that it was compared with. Sums are means of
    many documents, and stay.
    """
    reports = store.artifacts(case, "drift_report")
    metadata = {manifest.ref: DriftMetadata.of(manifest) for manifest in reports}
    touched = {
        key_ref(ref) for ref, of_report in metadata.items() if key_ref(of_report.documents) in erased.places
    }
    for manifest in reports:
        compared = [manifest.ref, *metadata[manifest.ref].reference, *metadata[manifest.ref].kept_reference]
        is_explained = EXPLANATION in manifest.files and not touched.isdisjoint(map(key_ref, compared))
        places = erased.places.get(key_ref(metadata[manifest.ref].documents), set())
        far = read_far(store.folder(manifest) / FAR) if FAR in manifest.files else []
        far_left = [document for document in far if (document.source, document.row) not in places]
        if not is_explained and far == far_left:
            continue

        def edit(folder: Path, far_left: list[FarDocument] = far_left) -> Mapping[str, Any]:
            (folder / EXPLANATION).unlink(missing_ok=True)
            if (folder / FAR).is_file():
                write_far(folder / FAR, far_left)
            return {}

        store.rewrite(manifest, edit)
        report.rewritten["drift_report"] += 1


#: Every stage whose attempts may hold documents, their names or what was made of them.
HOLDING = (
    *FILES,
    *GENERAL,
    "training_snapshot",
    *MADE_OF_ROWS,
    *MADE_OF_SNAPSHOTS,
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
        store, case: where.
        listed: document ids, or groups (all documents of a patient, a client), as the list has them.
        by: what is listed.
        reason: kept with the tombstones.
    """
    with store.alone_with_artifacts(case), store.rewriting(case):
        return _erase(store, case, list(dict.fromkeys(listed)), by, reason)


def _erase(store: Store, case: str, listed: list[str], by: By, reason: str) -> ErasureReport:
    report = ErasureReport(num_listed=len(listed))
    _sweep(store, case, report)
    sought = search(store, case, listed, by)
    sought.record(store, case, by, reason)
    report.missing = sought.missing
    report.num_before = len(sought.before)
    erased = gather(store, case, reason)
    report.num_found = len(erased.ids)
    forget(store, case, erased.paths, "batch")
    forget(store, case, erased.paths, "window")
    drop_from_reports(store, case, erased, report)
    _drop_from_drift_reports(store, case, erased, report)
    # The copies of the user's predictions have ids of test rows: what is read again needs the erased ones no
    # longer.
    for manifest in store.artifacts(case, external.PREDICTIONS):
        _delete(store, manifest, report)
    _drop_made_of_rows(store, case, erased, report)
    for stage in ("tokenized_chunks", "labeled_examples", "quarantined_examples"):
        _drop_rows(store, case, stage, erased, report)
    for stage in GENERAL:
        snapshots.drop_drawn_rows(store, case, stage, erased, report)
    drop_from_snapshots(store, case, erased, report)
    drop_made_of_snapshots(store, case, report)
    for stage in ("production_documents", "raw_documents"):
        _drop_rows(store, case, stage, erased, report)
    report.trained_on, report.measured_on, report.champions = name_checkpoints(store, case)
    report.num_unfinished, num_training = drop_unfinished(store, case, report.trained_on)
    report.num_in_flight += num_training
    report.record(store, case, reason)
    return report


def _sweep(store: Store, case: str, report: ErasureReport) -> None:
    """Remove what failed and killed processes left: tracebacks, attempts without a manifest, and tables of
    which a part is lost.

    None of it exists for anybody else, and what made it can be run again; but it contains documents.
    """
    report.num_tracebacks = store.delete_tracebacks(case)
    for stage in HOLDING:
        for ref in store.unfinished(case, stage):
            if store.discard(ref):
                report.num_discarded += 1
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
                    report.num_discarded += 1
