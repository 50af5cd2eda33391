"""How many rows the snapshot will leave out because of the split, predicted from a sample of them for `fullft
check`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot import sketches
from fullft_assets.snapshot.all_rows import TRAIN, BatchRows, collect, hashed_split
from fullft_assets.snapshot.group_splits import GroupSplits
from fullft_assets.snapshot.labels import Labels
from fullft_assets.snapshot.ledger import UNKNOWN
from fullft_assets.snapshot.near_rows import drop_near_and_contained
from fullft_assets.store.hashing import text_hash, unit_hash


def rows_over_cap(
    groups: Sequence[str | None],
    settings: SnapshotSettings,
    seed: int,
    num_rows: int | None = None,
    labels: Sequence[Collection[str]] | None = None,
) -> int:
    """Return how many rows will be over `snapshot.max_heldout_rows_per_group`, about.

    The keyed hash says of each group of the sample whether it is held out, as in the snapshot. The groups
    that the snapshot moves for the sake of a label are foreseen where all labels are known. The size of a
    group in all rows is estimated from the *other* rows of it that a row meets in the sample, so that a
    sample in which each group comes once predicts groups of one row.

    Args:
        groups: of each row of the sample, as `examples.group` gives them; None: the row is a group of its
            own.
        settings: shares and cap.
        seed: the use case's seed, which keys the hash.
        num_rows: rows in all, of which the sample is an even part. Default: the sample is all of them.
        labels: of each row, where the sample is all rows, and each of them has a group. Default: no group is
            moved.
    """
    scale = max(1.0, (num_rows or 0) / max(1, len(groups)))
    cap = settings.max_heldout_rows_per_group
    sizes = Counter(group for group in groups if group is not None)
    if not sizes:
        return 0
    codes = {group: code for code, group in enumerate(sizes)}
    place = np.array([unit_hash(seed, "split", group) for group in codes])
    hashed = hashed_split(place, settings)
    splits = GroupSplits(place, hashed, np.full(len(codes), UNKNOWN), hashed.copy())
    if labels is not None:
        names = sorted({label for each in labels for label in each})
        pairs = np.array(
            [(row, names.index(label)) for row, each in enumerate(labels) for label in each], np.int64
        ).reshape(-1, 2)
        splits.serve(
            Labels(pairs[:, 0], pairs[:, 1], names),
            np.array([codes[group] for group in groups if group is not None]),
        )
    expected = 0.0
    for group, size in sizes.items():
        whole = 1 + (size - 1) * scale
        if whole > cap and splits.split[codes[group]] != TRAIN:
            expected += size * scale * (1 - cap / whole)
    return round(expected)


def rows_near_held_out(
    texts: Sequence[str], groups: Sequence[str | None], settings: SnapshotSettings, seed: int
) -> int:
    """Return how many rows of a sample the snapshot would leave out because they are near to a held-out row,
    contain it, or are inside it.

    Of all rows the share is at least as large, since partners outside of the sample count as well.

    Args:
        texts: of the rows, each once.
        groups: of the rows, see `rows_over_cap`.
        settings: shares and thresholds.
        seed: the use case's seed.
    """
    import pyarrow as pa

    if not texts:
        return 0
    hashes = [text_hash(text) for text in texts]
    columns = {"id": hashes, "text": texts, "text_hash": hashes, "group": groups, "source": [""] * len(texts)}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    for name in ("row", "delivered_ns"):
        table = table.append_column(name, pa.array(range(len(texts)), pa.int64()))
    index = sketches.build(table, seed)
    batch = BatchRows(
        table, {}, index.places, lambda: index.sketches, lambda: index.minimizers, table["text"].take
    )
    rows = collect({"": batch}, settings)
    drop_near_and_contained(rows, {"": batch}, settings, seed)
    return rows.dropped.total()
