"""A split of rows in memory, without a store: what benchmarks and tests compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fullft_assets.examples.identity import COLUMNS
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot import Frozen
from fullft_assets.snapshot.all_rows import BatchRows
from fullft_assets.snapshot.batches import build_sketches
from fullft_assets.snapshot.ledger import EMPTY, Ledger
from fullft_assets.snapshot.split import freeze_batches
from fullft_assets.task import TASKS

if TYPE_CHECKING:
    import pyarrow as pa


def freeze(
    batches: Mapping[str, pa.Table],
    deliveries: Mapping[str, Mapping[str, int]],
    settings: SnapshotSettings,
    seed: int,
    *,
    task: str = "classification",
    ledger: Ledger = EMPTY,
) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Args:
        batches: valid examples of each batch, by batch name; the names mean nothing.
        deliveries: source files of each batch with their times of delivery: a file delivered again supersedes
            its older rows.
        settings: shares, caps and floors.
        seed: key of every hash.
        task: name of the task.
        ledger: what earlier snapshots held out.

    Raises:
        DataError: see `freeze_batches`.
    """
    found = {}
    for name, table in batches.items():
        found[name] = BatchRows(
            rows=table.select([column for column in COLUMNS if column in table.column_names]),
            files=deliveries.get(name, {}),
            sketches=build_sketches(table, seed).column,
            texts=table["text"].take,
        )
    return freeze_batches(found, settings, seed, task=TASKS.get(task), ledger=ledger)
