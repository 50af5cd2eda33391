"""Which checkpoints learned from erased documents, or were measured on them."""

from __future__ import annotations

from typing import NamedTuple

from fullft_assets import release
from fullft_assets.checkpoint.lineage import erased_since, learned_what_was_erased, trainings
from fullft_assets.erasure.erased_documents import key_ref
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store


class AffectedCheckpoints(NamedTuple):
    """Checkpoints by `Manifest.ref`: see `ErasureReport`."""

    trained_on: list[str]
    measured_on: list[str]
    champions: list[str]


def name_checkpoints(store: Store, case: str) -> AffectedCheckpoints:
    """Name every checkpoint whose snapshot held an erased document, whichever erasure took it out."""
    snapshots = {
        key_ref(snapshot.ref): snapshot
        for snapshot in store.artifacts(case, "training_snapshot")
        if SnapshotMetadata.of(snapshot).erasures
    }
    trained_on, measured_on = [], []
    for checkpoint in store.artifacts(case, "finetuned_checkpoint"):
        on_erased = [
            (snapshots[key_ref(training.snapshot)], training)
            for training in trainings(checkpoint)
            if key_ref(training.snapshot) in snapshots
        ]
        # Of those before, one that it went on from learned; what they were measured on left nothing in it.
        if any(learned_what_was_erased(store, snapshot, training) for snapshot, training in on_erased):
            trained_on.append(checkpoint.ref)
        elif any(
            training.checkpoint == checkpoint.ref and erased_since(snapshot, training)
            for snapshot, training in on_erased
        ):
            measured_on.append(checkpoint.ref)
    champions = _champions(store, case)
    return AffectedCheckpoints(trained_on, measured_on, [ref for ref in trained_on if ref in champions])


def _champions(store: Store, case: str) -> set[str]:
    current = release.read_champion(store, case)
    past = [retired.champion.checkpoint for retired in release.read_history(store, case)]
    return {*past, *([current.checkpoint] if current else [])}
