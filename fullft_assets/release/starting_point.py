"""starting_point: which weights a training begins with, the base model's or the champion's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullft_assets import release
from fullft_assets.errors import GateError, StoreError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import label_names
from fullft_assets.store import Manifest, Store
from fullft_assets.training.lineage import learned_what_was_erased, trainings

_FROM_BASE = "set training.retrain_from: base"


def find(store: Store, case: str, settings: UseCaseSettings, snapshot: Manifest, *, revision: str, decision: str) -> Manifest | None:
    """Return the checkpoint of the champion that a training goes on from; None: it begins with the base model.

    Which one is fixed when it is first asked for: a champion that came of this training, or later, does not change what it began with.

    Args:
        store: where the champion's pointer lives.
        case: the use case.
        settings: with `training.retrain_from`.
        snapshot: that is trained on.
        revision: of the base model.
        decision: what pins the training but for where it begins; names the record.

    Raises:
        GateError: the champion was made of another base model, other labels or another tokenizer, or learned from erased documents.
        StoreError: it is gone.
    """
    if settings.training.retrain_from == "base":
        return None
    pointer = f"{case}/starting_points/{decision}"
    fixed = store.read_pointer(pointer)
    champion = release.read_champion(store, case)
    ref = fixed["checkpoint"] if fixed is not None else champion.checkpoint if champion is not None else None
    start = None if ref is None else store.load(ref)
    if start is not None and (problem := _problem(store, start, snapshot, revision)) is not None:
        raise GateError(f"training.retrain_from: the champion {ref} {problem}; {_FROM_BASE}")
    if fixed is None:
        store.write_pointer(pointer, {"checkpoint": ref})
    return start


def _problem(store: Store, start: Manifest, snapshot: Manifest, revision: str) -> str | None:
    if start.metadata["base_model_revision"] != revision:
        return "was made of another base_model"
    if start.metadata["labels"] != label_names(snapshot):
        return f"knows the labels {', '.join(start.metadata['labels'])}, the snapshot has {', '.join(label_names(snapshot))}"
    if _tokenizer(store, store.load(start.metadata["snapshot"])) != _tokenizer(store, snapshot):
        return "has another tokenizer than the snapshot (chunks.added_tokens)"
    if any(_held_erased(store, training) for training in trainings(start)):
        return "learned from documents that were erased since, and what goes on from it would keep that"
    return None


def _held_erased(store: Store, training: Mapping[str, Any]) -> bool:
    try:
        snapshot = store.load(training["snapshot"])
    except StoreError:  # deleted by its owner: nothing is known to be erased
        return False
    return learned_what_was_erased(store, snapshot, training)


def _tokenizer(store: Store, snapshot: Manifest) -> str:
    """Return the digest of the tokenizer that made all windows of a snapshot."""
    part = next(iter(snapshot.metadata["parts"].values()))
    return store.load(part["chunks"]).inputs["tokenizer"]
