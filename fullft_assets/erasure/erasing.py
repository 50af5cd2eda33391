"""The order in which documents are erased from everything that holds something of them."""

from __future__ import annotations

from collections.abc import Iterable

from fullft_assets.documents.batches import forget
from fullft_assets.documents.erasure import By
from fullft_assets.erasure import general_documents, tables
from fullft_assets.erasure.affected_checkpoints import name_checkpoints
from fullft_assets.erasure.derived import (
    MADE_OF_ROWS,
    MADE_OF_SNAPSHOTS,
    drop_external,
    drop_from_drift_reports,
    drop_made_of_rows,
    drop_made_of_snapshots,
)
from fullft_assets.erasure.erased_documents import GENERAL, gather
from fullft_assets.erasure.evaluation_reports import drop_from_reports
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.erasure.search import search
from fullft_assets.erasure.snapshots import drop_from_snapshots
from fullft_assets.erasure.unfinished_trainings import drop_unfinished
from fullft_assets.errors import StoreError
from fullft_assets.store import Store

#: Every stage whose attempts may hold documents, their names or what was made of them.
HOLDING = (
    *tables.FILES,
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
    drop_from_drift_reports(store, case, erased, report)
    drop_external(store, case, report)
    drop_made_of_rows(store, case, erased, report)
    for stage in ("tokenized_chunks", "labeled_examples", "quarantined_examples"):
        tables.drop_rows(store, case, stage, erased, report)
    for stage in GENERAL:
        general_documents.drop_rows(store, case, stage, erased, report)
    drop_from_snapshots(store, case, erased, report)
    drop_made_of_snapshots(store, case, report)
    for stage in ("production_documents", "raw_documents"):
        tables.drop_rows(store, case, stage, erased, report)
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
    for stage in (*tables.FILES, *GENERAL):
        for manifest in store.artifacts(case, stage):
            try:
                store.folder(manifest)
            except StoreError:
                # A clean-up leaves manifests alone.
                if len(store.sizes(manifest.ref)) > 1:
                    store.delete(manifest)
                    report.num_discarded += 1
