"""The metadata of a checkpoint that no training wrote."""

from typing import Any

from fullft_assets.checkpoint.metadata import CheckpointMetadata

_GIVEN: dict[str, Any] = {
    "base_model": "models/tiny",
    "base_model_revision": "r1",
    "base_model_weights": "abc123",
    "snapshot": "letters/training_snapshot/k1",
    "labels": [],
    "trained_from": "the base model",
    "num_parameters": 5,
    "num_trained_parameters": 5,
    "num_steps": 2,
    "model_of_step": 2,
    "num_tokens": 100,
    "training_seconds": 60.0,
    "tokens_per_second": 2.0,
    "training_usd": 0.0,
    "resumed_from_step": 0,
    "peak_memory_gib": 1.0,
    "micro_batch_size": 8,
    "incidents": [],
    "num_warnings": 0,
    "precision": "fp32",
    "validation_loss": 1.0,
    "settings_digest": "def456",
}


def checkpoint_metadata(**given: Any) -> dict[str, Any]:
    """Return complete metadata, with these values in place of its own."""
    return CheckpointMetadata.model_validate(_GIVEN | given).as_dict()
