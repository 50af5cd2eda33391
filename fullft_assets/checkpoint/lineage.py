"""Lineage: the data that a model has learned from, over all its trainings.

A model that was trained from the champion has also learned from the champion's data: its lineage lists every
earlier training, the oldest first, so that a test row, an erased document or a loss on general text of an
earlier training is not overlooked.
"""

from fullft_assets.artifacts import TRAINING_SNAPSHOT
from fullft_assets.checkpoint.metadata import CheckpointMetadata, PastTraining
from fullft_assets.errors import StoreError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest, Store


def trained_from(start: Manifest | None, settings: UseCaseSettings) -> str:
    """Return the name of the model that a training begins with: the ref of a checkpoint, or the base
    model.
    """
    lacks_champion = start is None and settings.training.retrain_from == "champion"
    base_model = "the base model: there was no fine-tuned champion" if lacks_champion else "the base model"
    return base_model if start is None else start.ref


def snapshots_learned_from(checkpoint: Manifest) -> list[str]:
    """Return the refs of the snapshots that a checkpoint and its predecessors were trained on; its own
    first.
    """
    metadata = CheckpointMetadata.of(checkpoint)
    return list(
        dict.fromkeys([metadata.snapshot, *(training.snapshot for training in reversed(metadata.lineage))])
    )


def rows(checkpoint: Manifest) -> list[tuple[str, str]]:
    """Return (name, value) rows of a card or a report: what it was trained from, on which rows, and each
    training before.
    """
    metadata = CheckpointMetadata.of(checkpoint)
    facts = [("Trained from", metadata.trained_from)]
    if "isolation" in metadata.facts:
        documents = "several documents" if metadata.facts["is_packed"] else "one document"
        facts.append(("Rows", f"{documents} each: {metadata.facts['isolation']}"))
    return [
        *facts,
        *((f"Training {number}", _training(past)) for number, past in enumerate(metadata.lineage, start=1)),
        *([("Learning rate", f"{rate:g}")] if (rate := metadata.facts.get("learning_rate")) else []),
    ]


def tokenizer_of(store: Store, snapshot: Manifest) -> str:
    """Return the digest of the tokenizer that made all windows of a snapshot."""
    return store.load(next(iter(SnapshotMetadata.of(snapshot).parts.values())).chunks).inputs["tokenizer"]


def _training(training: PastTraining) -> str:
    text = f"{training.checkpoint} on {training.snapshot}"
    for value, title in (
        (training.general_loss, "loss on general text"),
        (training.general_distance, "distance on general text"),
    ):
        if value is not None and training.general_before is not None:
            text += f", {title} {training.general_before:.4f} to {value:.4f}"
    return text


def trainings(checkpoint: Manifest) -> list[PastTraining]:
    """Return a checkpoint's trainings, its own last."""
    metadata = CheckpointMetadata.of(checkpoint)
    return [
        *metadata.lineage,
        PastTraining(
            checkpoint=checkpoint.ref,
            snapshot=metadata.snapshot,
            snapshot_digest=checkpoint.inputs[TRAINING_SNAPSHOT],
            general_before=metadata.general_before,
            general_loss=metadata.general_loss,
            general_distance=metadata.general_distance,
        ),
    ]


def learned_what_was_erased(store: Store, snapshot: Manifest, training: PastTraining) -> bool:
    """Return whether a training learned from a document that was erased from its snapshot since."""
    if snapshot.content_digest == training.snapshot_digest:
        return False
    metadata = SnapshotMetadata.of(snapshot)
    erasures = metadata.erasures or []
    start = next(
        (
            number
            for number, erasure in enumerate(erasures)
            if erasure.snapshot_digest == training.snapshot_digest
        ),
        0,
    )
    parts = {part for erasure in erasures[start:] for part in erasure.lost_from}
    if "train" in parts or "replay" in parts:
        return True
    if "general" not in parts or metadata.replay is not None:
        return False
    # The general set is only measured on, except by EWC without replay, which estimates the importance of
    # weights on it.
    try:
        return bool(store.load(training.checkpoint).settings.get("training", {}).get("ewc"))
    except StoreError:  # its settings are unknown
        return True
