"""The starting point of a training: the weights of the base model or of the champion."""

from fullft_assets.artifacts import BASELINE_MODEL
from fullft_assets.checkpoint.lineage import learned_what_was_erased, tokenizer_of, trainings
from fullft_assets.checkpoint.metadata import CheckpointMetadata, PastTraining
from fullft_assets.errors import GateError, StoreError
from fullft_assets.examples.labels import named
from fullft_assets.release.champion import read_champion
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import label_names
from fullft_assets.store import Manifest, Store

_FROM_BASE = "set training.retrain_from: base"


def find(
    store: Store, case: str, settings: UseCaseSettings, snapshot: Manifest, *, revision: str, decision: str
) -> Manifest | None:
    """Return the champion's checkpoint that a training continues from, or None if it begins with the base
    model.

    The answer to the first call is recorded: a champion that this training makes, or a later one, does not
    change where it began.

    Args:
        decision: key of the training without its starting point; names the record.

    Raises:
        GateError: the champion has another base model, other labels or another tokenizer, or learned from
            erased documents.
        StoreError: the champion's checkpoint is gone.
    """
    if settings.training.retrain_from == "base":
        return None
    pointer = f"{case}/starting_points/{decision}"
    record = store.read_pointer(pointer)
    champion = read_champion(store, case)
    ref = (
        record["checkpoint"] if record is not None else champion.checkpoint if champion is not None else None
    )
    start = None if ref is None else store.load(ref)
    if start is not None and start.stage == BASELINE_MODEL:
        return None  # no training began there
    if start is not None and (problem := _problem(store, start, snapshot, revision)) is not None:
        raise GateError(f"training.retrain_from: the champion {ref} {problem}; {_FROM_BASE}")
    if record is None:
        store.write_pointer(pointer, {"checkpoint": ref})
    return start


def _problem(store: Store, start: Manifest, snapshot: Manifest, revision: str) -> str | None:
    metadata = CheckpointMetadata.of(start)
    if metadata.base_model_revision != revision:
        return "has another base_model"
    if metadata.labels != label_names(snapshot):
        champion_labels = set(metadata.labels)
        snapshot_labels = set(label_names(snapshot))
        missing_names, new_names = (
            named(((label, "") for label in sorted(labels)), len(labels), champion_labels | snapshot_labels)
            for labels in (champion_labels - snapshot_labels, snapshot_labels - champion_labels)
        )
        return (
            f"has other labels: the snapshot lacks {missing_names or 'none'} and adds {new_names or 'none'}"
        )
    if tokenizer_of(store, store.load(metadata.snapshot)) != tokenizer_of(store, snapshot):
        return "has another tokenizer than the snapshot (chunks.added_tokens)"
    return (
        "learned from documents that were erased since, and a model trained from it would keep what it"
        " learned"
        if any(_held_erased(store, training) for training in trainings(start))
        else None
    )


def _held_erased(store: Store, training: PastTraining) -> bool:
    try:
        snapshot = store.load(training.snapshot)
    except StoreError:  # deleted by the user: no erasure is known
        return False
    return learned_what_was_erased(store, snapshot, training)
