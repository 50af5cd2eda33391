"""Which checkpoints learned from erased documents, or were measured on them."""

from __future__ import annotations

from typing import NamedTuple

from fullft_assets import release
from fullft_assets.checkpoint.lineage import erased_since, learned_what_was_erased, trainings
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store


class AffectedCheckpoints(NamedTuple):
    """Checkpoints by `Manifest.ref`: see `ErasureReport`."""

    trained_on: list[str]
    measured_on: list[str]
    champions: list[str]


def name_checkpoints(store: Store, case: str) -> AffectedCheckpoints:
    """Name every checkpoint whose snapshot held an erased document, whichever erasure took it out."""
    taken = store.artifacts(case, "training_snapshot")
    snapshots = {key_ref(made.ref): made for made in taken if SnapshotMetadata.of(made).erased_from}
    trained_on, measured_on = [], []
    for checkpoint in store.artifacts(case, "finetuned_checkpoint"):
        every = [
            (made, each)
            for each in trainings(checkpoint)
            if (made := snapshots.get(key_ref(each.snapshot))) is not None
        ]
        # Of those before, one that it went on from learned; what they were measured on left nothing in it.
        if any(learned_what_was_erased(store, made, each) for made, each in every):
            trained_on.append(checkpoint.ref)
        elif any(each.checkpoint == checkpoint.ref and erased_since(made, each) for made, each in every):
            measured_on.append(checkpoint.ref)
    champions = _champions(store, case)
    return AffectedCheckpoints(trained_on, measured_on, [ref for ref in trained_on if ref in champions])


def _champions(store: Store, case: str) -> set[str]:
    current = release.read_champion(store, case)
    past = [retired.champion.checkpoint for retired in release.read_history(store, case)]
    return {*past, *([current.checkpoint] if current else [])}


def key_ref(ref: str) -> str:
    """Return the part of a ref that names the artifact, whichever attempt."""
    return ref.rsplit("/", 1)[0]
