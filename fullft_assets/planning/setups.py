"""The memory ladder as whole settings of training: from those of the YAML down to those that take the least
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fullft_assets.planning.memory import MEMORY_LADDER, state_bytes
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.contradictions import contradictions


def setups(training: TrainingSettings, processes: int) -> Iterator[TrainingSettings]:
    """Yield settings that keep the effective batch, each taking less memory than the one before, as a rule.

    First smaller passes, which cost little; then recomputed activations; then sharding over several
    processes; then the lower rungs of optimizer and weights. Those that contradict other settings are
    excluded.
    """
    seen = set()
    for changes in _changes(training, processes):
        setup = training.model_copy(update=changes)
        if setup.batch_size % (setup.micro_batch_size * processes) or any(contradictions(setup, processes)):
            continue
        if (key := setup.model_dump_json()) not in seen:
            seen.add(key)
            yield setup


def changed(setup: TrainingSettings, training: TrainingSettings) -> dict[str, Any]:
    """Return the keys of training that differ, with their new values."""
    return {
        name: value
        for name in type(training).model_fields
        if (value := getattr(setup, name)) != getattr(training, name)
    }


def _changes(training: TrainingSettings, processes: int) -> Iterator[dict[str, Any]]:
    share = training.batch_size // processes
    first = min(training.micro_batch_size, share)
    sizes = [size for size in range(first, 0, -1) if share % size == 0]
    # Halving is enough: what fits between two of them would save little time.
    sizes = [size for number, size in enumerate(sizes) if number == 0 or size & (size - 1) == 0]
    for size in sizes:
        yield {"micro_batch_size": size}
    for size in sizes:
        yield {"micro_batch_size": size, "gradient_checkpointing": True}
    last = {"micro_batch_size": sizes[-1], "gradient_checkpointing": True}
    if processes > 1:
        yield {**last, "sharding": "fsdp2"}
    for optimizer, weights in MEMORY_LADDER:
        if state_bytes(optimizer, weights) < state_bytes(training.optimizer, training.weights):
            yield {**last, "optimizer": optimizer, "weights": weights}
            # It cannot accumulate.
            yield {
                **last,
                "optimizer": optimizer,
                "weights": weights,
                "micro_batch_size": training.batch_size,
            }
