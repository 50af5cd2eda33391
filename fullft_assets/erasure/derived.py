"""What was made of erased documents: deleted where it is made again when needed; else without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullft_assets.erasure.erased_documents import ErasedDocuments, key_ref, whole_artifacts
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.evaluation import external
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
from fullft_assets.store import Manifest, Store

#: Made of a batch or a window.
MADE_OF_ROWS = ("near_duplicate_index", "screened_examples", "tokenizer_audit", "batch_predictions")
#: Made of a snapshot. Baselines learned from the training rows as weights do, but in words: TF-IDF's
#: vocabulary.
MADE_OF_SNAPSHOTS = ("cheaper_baselines", "drift_scale")


def drop_made_of_rows(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Delete what was made of a batch or a window that holds an erased document."""
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


def drop_external(store: Store, case: str, report: ErasureReport) -> None:
    """Delete the copies of the user's predictions, which have ids of test rows: what is read again no longer
    needs those of the erased ones.
    """
    for manifest in store.artifacts(case, external.PREDICTIONS):
        _delete(store, manifest, report)


def drop_made_of_snapshots(store: Store, case: str, report: ErasureReport) -> None:
    """Delete the baselines whose snapshot has changed, and take the embeddings of single rows out of the
    scales of drift: nobody can tell any more whose they are.
    """
    snapshots = {manifest.content_digest for manifest, _ in whole_artifacts(store, case, "training_snapshot")}
    for stage in MADE_OF_SNAPSHOTS:
        for manifest in store.artifacts(case, stage):
            if manifest.inputs.get("training_snapshot") in snapshots:
                continue
            if stage != "drift_scale":
                _delete(store, manifest, report)
            elif ScaleMetadata.of(manifest).num_held_out:
                store.rewrite(manifest, _without_rows)
                report.rewritten[stage] += 1


def _delete(store: Store, manifest: Manifest, report: ErasureReport) -> None:
    store.delete(manifest)
    report.deleted[manifest.stage] += 1


def _without_rows(folder: Path) -> Mapping[str, Any]:
    Scale.load(folder / SCALE).without_rows().save(folder / SCALE)
    return {"num_held_out": 0}


def drop_from_drift_reports(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
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
