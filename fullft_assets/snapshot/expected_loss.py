"""How many rows the cap on held-out rows of a group will leave out, predicted from the groups of a sample.

It only needs the groups, so that `fullft check` can call it before anything is read as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fullft_assets.settings import SnapshotSettings
from fullft_assets.store.hashing import unit_hash


def rows_over_cap(groups: Sequence[str | None], settings: SnapshotSettings, seed: int, num_rows: int | None = None) -> int:
    """Return how many rows will be over `snapshot.max_heldout_rows_per_group`, about.

    The keyed hash says of each group of the sample whether it is held out, as in the snapshot; the few groups that the snapshot moves
    for the sake of a label are not foreseen. The size of a group in all rows is estimated from the *other* rows of it that a row meets
    in the sample, so that a sample in which each group comes once predicts groups of one row.

    Args:
        groups: of each row of the sample, as `examples.group` gives them; None: the row is a group of its own.
        settings: shares and cap.
        seed: the use case's seed, which keys the hash.
        num_rows: rows in all, of which the sample is an even part. Default: the sample is all of them.
    """
    scale = max(1.0, (num_rows or 0) / max(1, len(groups)))
    cap, share = settings.max_heldout_rows_per_group, settings.test_share + settings.validation_share
    sizes = Counter(group for group in groups if group is not None)
    expected = 0.0
    for group, size in sizes.items():
        whole = 1 + (size - 1) * scale
        if whole > cap and unit_hash(seed, "split", group) < share:
            expected += size * scale * (1 - cap / whole)
    return round(expected)
