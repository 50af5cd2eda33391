"""Takes erased documents out of training snapshots, which name rows by their positions in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fullft_assets.documents.erasure import read_tombstones
from fullft_assets.erasure import general_documents
from fullft_assets.erasure.erased_documents import ErasedDocuments, with_origin
from fullft_assets.erasure.ledgers import LedgersWithoutErased
from fullft_assets.erasure.report import ErasureReport
from fullft_assets.snapshot import data_report, pack_again
from fullft_assets.snapshot.frozen_batches import locate
from fullft_assets.snapshot.ledger import FILE as LEDGER
from fullft_assets.snapshot.metadata import Erasure, SnapshotMetadata
from fullft_assets.snapshot.verdicts import FILE as VERDICTS
from fullft_assets.store import Manifest, Store


def drop_from_snapshots(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Rewrite the snapshots whose rows are gone, or are at other positions of their batches now."""
    # With the names of files that this erasure recorded.
    tombstones, ledgers = read_tombstones(store, case), LedgersWithoutErased(store, case)
    for manifest in store.artifacts(case, "training_snapshot"):
        if _drop_from_snapshot(store, manifest, erased, tombstones, ledgers):
            report.rewritten[manifest.stage] += 1


def _drop_from_snapshot(
    store: Store,
    manifest: Manifest,
    erased: ErasedDocuments,
    tombstones: Collection[str],
    ledgers: LedgersWithoutErased,
) -> bool:
    """Rewrite one snapshot; return whether anything in it has changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = store.folder(manifest)
    index, places = pq.read_table(folder / "index.parquet"), pq.read_table(folder / "places.parquet")
    hit = erased.rows(with_origin(index, places))
    found = locate(store, manifest, places)
    gone = hit | found.lost
    before = SnapshotMetadata.of(manifest)
    # What was drawn for it is rewritten by now: that it is not what the snapshot froze shows it, also after
    # an erasure cut short.
    lost_of_drawn, inputs = (
        general_documents.changed(store, manifest),
        general_documents.without_names(manifest, tombstones),
    )
    ledger = None if found.unreadable else ledgers.without_erased(manifest)
    if (
        not gone.any()
        and not lost_of_drawn
        and found.parts == before.parts
        and inputs == manifest.inputs
        and ledger is None
    ):
        return False
    kept, moved = index.filter(pa.array(~gone)), found.places.filter(pa.array(~gone))
    lost_from = sorted({*index.filter(pa.array(gone))["split"].to_pylist(), *lost_of_drawn})
    # By the recorded digest it is known which version of the snapshot a training read.
    loss = Erasure(snapshot_digest=manifest.content_digest, lost_from=lost_from)
    counts = Counter(kept["split"].to_pylist())
    changes: dict[str, Any] = {
        **{f"num_{split}_rows": counts[split] for split in ("train", "validation", "test")},
        **general_documents.counts_of(lost_of_drawn),
        "parts": found.parts,
        "erased_from": sorted({*(before.erased_from or []), *lost_from}),
        "erasures": [*(before.erasures or []), loss],
        **({"erased_up_to": manifest.attempt} if lost_from else {}),
    }
    is_packed_anew = (
        (gone.any() or "replay" in lost_of_drawn)
        and not found.unreadable
        and general_documents.is_whole(store, manifest)
    )

    def edit(path: Path) -> Mapping[str, Any]:
        pq.write_table(kept, path / "index.parquet")
        pq.write_table(moved, path / "places.parquet")
        # Hashes of texts, the erased ones among them; the next snapshot compares all pairs again.
        (path / VERDICTS).unlink(missing_ok=True)
        if ledger is not None:
            ledger[0].write(path / LEDGER, ledger[1])
        if is_packed_anew and (path / "packing.parquet").is_file():
            # Its positions are those of all training windows, so it is planned anew.
            plan = pack_again(store, manifest, kept, moved, found.parts)
            pq.write_table(plan.to_table(), path / "packing.parquet")
            changes.update(num_packed_rows=plan.num_rows, packing_fill=plan.fill)
        # It names places of rows that are in no split, too.
        withdrawn = (
            f"# Data report of {manifest.case}\n\nWithdrawn: documents that it was made of were erased.\n"
        )
        (path / "report.md").write_text(withdrawn, encoding="utf-8")
        (path / "report.html").write_text(data_report.to_page(withdrawn), encoding="utf-8")
        return before.model_copy(update=changes).as_dict()

    store.rewrite(manifest, edit, inputs, identity=general_documents.identity_of(manifest, lost_of_drawn))
    return True
