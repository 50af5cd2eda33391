"""Which checkpoints learned from erased documents, or were measured on them."""

from __future__ import annotations

from typing import Any, NamedTuple

from fullft_assets import release
from fullft_assets.errors import StoreError
from fullft_assets.store import Manifest, Store


class Learned(NamedTuple):
    """Checkpoints by `Manifest.ref`: see `Report`."""

    trained_on: list[str]
    measured_on: list[str]
    champions: list[str]


def name_checkpoints(store: Store, case: str) -> Learned:
    """Name every checkpoint whose snapshot held an erased document, whichever erasure took it out."""
    snapshots = {_key_ref(made.ref): made for made in store.artifacts(case, "training_snapshot") if made.metadata.get("erased_from")}
    trained_on, measured_on = [], []
    for checkpoint in store.artifacts(case, "finetuned_checkpoint"):
        own = snapshots.get(_key_ref(checkpoint.metadata["snapshot"]))
        learned = own is not None and _learned(own, checkpoint.settings)
        # Of those before, one that it went on from learned; what they were measured on left nothing in it.
        for training in checkpoint.metadata.get("lineage", []):
            before = snapshots.get(_key_ref(training["snapshot"]))
            learned |= before is not None and _learned(before, _settings(store, training["checkpoint"]))
        if learned:
            trained_on.append(checkpoint.ref)
        elif own is not None:
            measured_on.append(checkpoint.ref)
    champions = _champions(store, case)
    return Learned(trained_on, measured_on, [ref for ref in trained_on if ref in champions])


def _learned(snapshot: Manifest, settings: dict[str, Any] | None) -> bool:
    """Return whether a training on a snapshot learned from what was erased from it; `settings` None: nobody knows with which."""
    lost = snapshot.metadata["erased_from"]
    if "train" in lost or "replay" in lost:
        return True
    # The general set is only measured on, but where it says which weights matter.
    holds = settings is None or bool(settings.get("training", {}).get("ewc"))
    return "general" in lost and holds and snapshot.metadata.get("replay") is None


def _settings(store: Store, ref: str) -> dict[str, Any] | None:
    try:
        return store.load(ref).settings
    except StoreError:
        return None


def _champions(store: Store, case: str) -> set[str]:
    current = release.read_champion(store, case)
    past = [retired.champion.checkpoint for retired in release.read_history(store, case)]
    return {*past, *([current.checkpoint] if current else [])}


def _key_ref(ref: str) -> str:
    """Return the part of a ref that names the artifact, whichever attempt."""
    return ref.rsplit("/", 1)[0]
