"""lineage: what a model has learned from over all its trainings.

A model that went on from the champion has also learned what the champion had: its lineage names every training before, the oldest
first, so that no test row, erased document or general text lost on the way is overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullft_assets.errors import StoreError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Manifest, Store


def record(start: Manifest | None, settings: UseCaseSettings) -> dict[str, Any]:
    """Return what a checkpoint's metadata says of where it began: `trained_from` and `lineage`, the trainings before, the oldest first."""
    if start is None:
        is_first = settings.training.retrain_from == "champion"
        return {"trained_from": "the base model: there was no champion" if is_first else "the base model", "lineage": []}
    return {"trained_from": start.ref, "lineage": trainings(start)}


def snapshots_learned_from(checkpoint: Manifest) -> list[str]:
    """Return the refs of the snapshots that a checkpoint, and those that it went on from, were trained on; its own first."""
    before = [training["snapshot"] for training in reversed(checkpoint.metadata.get("lineage", []))]
    return list(dict.fromkeys([checkpoint.metadata["snapshot"], *before]))


def rows(checkpoint: Manifest) -> list[tuple[str, str]]:
    """Return (name, value) rows of a card or a report: what it was trained from, on which rows, and each training before."""
    made = checkpoint.metadata
    found = [("Trained from", str(made.get("trained_from", "the base model")))]
    if "isolation" in made:
        found.append(("Rows", f"{'several documents' if made['is_packed'] else 'one document'} each: {made['isolation']}"))
    return [*found, *((f"Training {number}", _training(each)) for number, each in enumerate(made.get("lineage", []), start=1))]


def _training(each: Mapping[str, Any]) -> str:
    told = f"{each['checkpoint']} on {each['snapshot']}"
    for name, what in (("general_loss", "loss on general text"), ("general_distance", "distance on general text")):
        if name in each:
            told += f", {what} {each['general_before']:.4f} to {each[name]:.4f}"
    return told


def trainings(checkpoint: Manifest) -> list[dict[str, Any]]:
    """Return a checkpoint's trainings, its own last."""
    made = checkpoint.metadata
    own = {"checkpoint": checkpoint.ref, "snapshot": made["snapshot"], "snapshot_digest": checkpoint.inputs["training_snapshot"]}
    own |= {name: made[name] for name in ("general_before", "general_loss", "general_distance") if name in made}
    return [*made.get("lineage", []), own]


def erased_since(snapshot: Manifest, training: Mapping[str, Any]) -> list[str]:
    """Return what lost documents to an erasure since a training (see `trainings`) read its snapshot: splits, `replay`, `general`."""
    if snapshot.content_digest == training["snapshot_digest"]:
        return []
    losses = snapshot.metadata.get("erasures", [])
    read = next((n for n, each in enumerate(losses) if each["snapshot_digest"] == training["snapshot_digest"]), None)
    if read is None:  # a snapshot that was first rewritten before each erasure was told
        return list(snapshot.metadata.get("erased_from", []))
    return sorted({part for each in losses[read:] for part in each["lost_from"]})


def learned_what_was_erased(store: Store, snapshot: Manifest, training: Mapping[str, Any]) -> bool:
    """Return whether a training (see `trainings`) learned from a document that was erased from its snapshot since."""
    lost = erased_since(snapshot, training)
    if "train" in lost or "replay" in lost:
        return True
    if "general" not in lost or snapshot.metadata.get("replay") is not None:
        return False
    # The general set is only measured on, but where it alone says which weights matter.
    try:
        return bool(store.load(training["checkpoint"]).settings.get("training", {}).get("ewc"))
    except StoreError:  # nobody knows with which settings
        return True
