"""The split of each group: that of its hash, but for the few groups that are moved so that each label has a
row on every side.

With three groups or more a label is to be in the training, the test and the validation split, with two in the
first two, with one in the training split. A group that an earlier snapshot held out never trains, and never
goes from test to validation; that is what the `ledger` remembers. A label that lacks a side takes the group
for it that fits best by the hash and that no other label needs where it is, so the moves are a function of
the groups and the ledger: the order of rows and batches does not matter.

Where a group, or a split, has more rows than its maximum, some are drawn by keyed hashes, and so that no
label is lost.
"""

from dataclasses import dataclass

import numpy as np

from fullft_assets.settings import ReleaseSettings, SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows, distinct, hashed_split
from fullft_assets.snapshot.labels import Labels
from fullft_assets.snapshot.ledger import UNKNOWN, Ledger
from fullft_assets.store.hashing import unit_hash

#: Groups that a label must have before it needs a row on a side, by the number of the split.
_LEAST_GROUPS = {TRAIN: 1, TEST: 2, VALIDATION: 3}
#: Share of few groups that is tested at most.
MOST_TEST_SHARE = 0.3
#: Times the groups, and the rows, that are needed: copies and what a model knows are left out later.
_ROOM = 1.2
_ROOM_FOR_COPIES = 1.5


@dataclass
class GroupSplits:
    """The splits of the groups, by the code of the group.

    Attributes:
        unit_hash: float64 [g], keyed hash of each group.
        hash_split: int64 [g], the split that the hash gives.
        ledger_split: int64 [g], the split that the ledger has, or UNKNOWN.
        split: int64 [g], the split that the group has.
    """

    unit_hash: np.ndarray
    hash_split: np.ndarray
    ledger_split: np.ndarray
    split: np.ndarray

    @classmethod
    def of(cls, rows: Rows, ledger: Ledger, settings: SnapshotSettings) -> "GroupSplits":
        """Return the splits by hash and ledger, before any label is looked at."""
        hashes = np.empty(int(rows.group.max(initial=-1)) + 1)
        hashes[rows.group] = rows.unit_hash
        ledger_split = ledger.look_up(hashes)
        hash_split = hashed_split(hashes, _test_share(rows, hashes, ledger_split, settings), settings)
        if settings.test_share is None:  # of fewer groups a larger share was tested
            hash_split = np.where(
                np.isin(ledger_split, (TEST, VALIDATION)), np.minimum(ledger_split, hash_split), hash_split
            )
        # Where the shares shrink, what is held out stays held out. Where they grow, a validation group may
        # go on to the test.
        split = np.where(ledger_split == TRAIN, TRAIN, np.minimum(ledger_split, hash_split))
        return cls(hashes, hash_split, ledger_split, np.where(ledger_split == UNKNOWN, hash_split, split))

    def serve(self, labels: Labels, group: np.ndarray) -> None:
        """Move groups so that each label is in the splits that it has enough groups for, where possible.

        Args:
            labels: of the rows that count.
            group: int64 [n], the group of each row.
        """
        from scipy.sparse import csr_array

        # Rows of each label in each group.
        pairs = csr_array(
            (np.ones(len(labels.row), np.int64), (labels.code, group[labels.row])),
            shape=(len(labels.names), len(self.split)),
        )
        by_group = pairs.tocsc()
        # Groups of each label in each split: int64 [labels, splits], and whether there is to be one.
        counts = pairs.astype(bool).astype(np.int64) @ np.eye(len(SPLITS), dtype=np.int64)[self.split]
        is_needed = counts.sum(axis=1)[:, None] >= [_LEAST_GROUPS[split] for split in range(len(SPLITS))]
        lacking = np.flatnonzero((is_needed & (counts == 0)).any(axis=1))
        # Labels with the fewest groups first.
        for label in lacking[np.argsort(counts[lacking].sum(axis=1), kind="stable")].tolist():
            of_label = slice(*pairs.indptr[label : label + 2])
            for side in (TRAIN, TEST, VALIDATION):
                if counts[label, side] or not is_needed[label, side]:
                    continue
                for candidate in self._candidates(pairs.indices[of_label], pairs.data[of_label], side):
                    of_group = by_group.indices[slice(*by_group.indptr[candidate : candidate + 2])]
                    side_now = self.split[candidate]
                    # None of the group's labels needs it where it is.
                    if (counts[of_group, side_now] > is_needed[of_group, side_now]).all():
                        counts[of_group, side_now] -= 1
                        counts[of_group, side] += 1
                        self.split[candidate] = side
                        break

    def _candidates(self, groups: np.ndarray, sizes: np.ndarray, side: int) -> list[int]:
        """Return those of a label's groups that may go to a side, the best one first.

        Args:
            groups, sizes: the groups, and the label's rows in each.
        """
        split = self.split[groups]
        is_new = self.ledger_split[groups] == UNKNOWN
        if side == TRAIN:
            held_out = groups[is_new & (split != TRAIN)]
            return held_out[np.argsort(-self.unit_hash[held_out])].tolist()
        may = (split == TRAIN) | ((split == VALIDATION) if side == TEST else (is_new & (split == TEST)))
        # A group with most of the label's training rows is not held out if there is another: the cap would
        # throw them away.
        order = np.lexsort((self.unit_hash[groups], 2 * sizes > sizes[split == TRAIN].sum(), split != TRAIN))
        return groups[order][may[order]].tolist()

    def num_moved(self, groups: np.ndarray) -> int:
        """Return how many of these groups (codes) are not in the split that their hash gives."""
        return int((self.split[groups] != self.hash_split[groups]).sum())

    def to_ledger(self, groups: np.ndarray) -> Ledger:
        """Return the ledger of these groups (codes): those that are held out, or are by their hash."""
        groups = groups[(self.split[groups] != TRAIN) | (self.hash_split[groups] != TRAIN)]
        return Ledger.of(self.unit_hash[groups], self.split[groups])


def cap_held_out(rows: Rows, labels: Labels, settings: SnapshotSettings, seed: int) -> None:
    """Exclude held-out rows over the maximum of a group, by their draws; one row of each label goes last."""
    held_out = np.flatnonzero((rows.split == TEST) | (rows.split == VALIDATION))
    max_rows = settings.max_heldout_rows_per_group
    candidates = held_out[np.bincount(rows.group[held_out], minlength=1)[rows.group[held_out]] > max_rows]
    if not len(candidates):
        return
    draw = np.full(len(rows), np.inf)
    draw[candidates] = _draw(rows, candidates, seed, "cap")
    # Of each label the row of the lowest draw goes first, so that none loses a split.
    for split in (TEST, VALIDATION):
        draw[_first_of_labels(labels, rows.split == split, draw, floor=1)] -= 1
    order = candidates[np.lexsort((draw[candidates], rows.group[candidates]))]
    rows.drop(
        order[_number_within(rows.group[order]) >= max_rows], "held-out rows over the cap of their group"
    )


def subsample(rows: Rows, labels: Labels, split: int, max_rows: int | None, seed: int) -> None:
    """Exclude rows of a split over a maximum. The same number of rows of each label is taken first, then the
    rows with the lowest draws.
    """
    positions = np.flatnonzero(rows.split == split)
    if max_rows is None or len(positions) <= max_rows:
        return
    draw = np.full(len(rows), np.inf)
    draw[positions] = _draw(rows, positions, seed, "subsample")
    if split == TRAIN:
        group = rows.group[positions]
        # A training row of a group of n rows weighs n to the power of minus this: giant groups have less to
        # say that is new.
        draw[positions] = -np.log(1 - draw[positions]) * np.bincount(group)[group] ** 0.25
    share = int(max_rows * 0.25 / max(1, len(distinct(labels.of(rows.split == split).code))))
    # Rows of each label that are drawn first: so many, and so large a share of the maximum for all labels
    # together.
    is_first = _first_of_labels(labels, rows.split == split, draw, max(1, min(50, share)))
    rows.drop(
        positions[np.lexsort((draw[positions], ~is_first[positions]))[max_rows:]],
        f"{SPLITS[split]} rows over snapshot.max_{SPLITS[split]}_rows",
    )


def _first_of_labels(labels: Labels, mask: np.ndarray, draw: np.ndarray, floor: int) -> np.ndarray:
    """Return the rows (mask) with the `floor` lowest draws of each label, of the rows of a mask."""
    pairs = labels.of(mask)
    order = np.lexsort((draw[pairs.row], pairs.code))
    is_first = np.zeros(len(draw), bool)
    is_first[pairs.row[order][_number_within(pairs.code[order]) < floor]] = True
    return is_first


def _number_within(sorted_values: np.ndarray) -> np.ndarray:
    """Return the number of each value among its equals, from 0."""
    begin = np.flatnonzero(np.append(True, sorted_values[1:] != sorted_values[:-1])[: len(sorted_values)])
    return np.arange(len(sorted_values)) - np.repeat(begin, np.diff(np.append(begin, len(sorted_values))))


def _draw(rows: Rows, positions: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    hashes = rows.table["text_hash"].take(positions)
    # Few of them are objects at once.
    return np.fromiter(
        (
            unit_hash(seed, purpose, hash_)
            for start in range(0, len(hashes), 1 << 16)
            for hash_ in hashes.slice(start, 1 << 16).to_pylist()
        ),
        np.float64,
    )


def _test_share(
    rows: Rows, hashes: np.ndarray, ledger_split: np.ndarray, settings: SnapshotSettings
) -> float:
    """Return the share of the groups to test: where the YAML gives none, of few groups more, if that makes a
    verdict possible and leaves enough rows to train.

    Args:
        hashes: float64 [g], of the groups.
        ledger_split: int64 [g], as in `GroupSplits`: the groups that it tests count.
    """
    least = settings.least_test_share
    num_rows = np.bincount(rows.group[rows.kept], minlength=len(hashes))
    of_groups = np.sort(hashes[num_rows > 0])
    num_needed = ReleaseSettings().min_effective_groups
    most_tested = int(MOST_TEST_SHARE * len(of_groups))
    num_wanted = min(most_tested, int(_ROOM * num_needed))
    num_tested = ((ledger_split == TEST) & (num_rows > 0)).sum()
    if settings.test_share is not None or most_tested < num_needed or num_tested >= num_wanted:
        return least
    share = max(least, float(of_groups[num_wanted]))
    is_left = (hashes >= share + settings.validation_share) & np.isin(ledger_split, (UNKNOWN, TRAIN))
    return share if num_rows[is_left].sum() >= _ROOM_FOR_COPIES * settings.min_train_rows else least
