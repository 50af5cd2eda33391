"""The split of each group: that of its hash, but for the few groups that are moved so that each label has a
row on every side.

With three groups or more a label is to be in the training, the test and the validation split, with two in the
first two, with one in the training split. A group that an earlier snapshot held out never trains, and never
goes from test to validation; that is what the `ledger` remembers. A label that lacks a side takes the group
for it that fits best by the hash and that no other label needs where it is, so the moves are a function of
the groups and the ledger: the order of rows and batches does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows, hashed_split
from fullft_assets.snapshot.labels import Labels
from fullft_assets.snapshot.ledger import UNKNOWN, Ledger

#: Groups that a label must have before it needs a row on a side, by the number of the split.
_LEAST_GROUPS = {TRAIN: 1, TEST: 2, VALIDATION: 3}


@dataclass
class GroupSplits:
    """The splits of the groups, by the code of the group.

    Attributes:
        place: float64 [g], keyed hash of each group.
        hashed: int64 [g], the split that the hash gives.
        known: int64 [g], the split that the ledger has, or UNKNOWN.
        split: int64 [g], the split that the group has.
    """

    place: np.ndarray
    hashed: np.ndarray
    known: np.ndarray
    split: np.ndarray

    @classmethod
    def of(cls, rows: Rows, ledger: Ledger, settings: SnapshotSettings) -> GroupSplits:
        """Return the splits by hash and ledger, before any label is looked at."""
        place = np.empty(int(rows.group.max(initial=-1)) + 1)
        place[rows.group] = rows.place
        hashed, known = hashed_split(place, settings), ledger.look_up(place)
        # What is held out stays so where the shares shrink; where they grow, a validation group may go on to
        # the test.
        split = np.where(known == UNKNOWN, hashed, np.where(known == TRAIN, TRAIN, np.minimum(known, hashed)))
        return cls(place, hashed, known, split)

    def serve(self, labels: Labels, group: np.ndarray) -> int:
        """Move groups so that each label has the sides that it has groups for, where that can be; return how
        many were moved.

        Args:
            labels: of the rows that count.
            group: int64 [n], the group of each row.
        """
        return _Moves.of(self, labels, group).make()

    def num_moved(self, groups: np.ndarray) -> int:
        """Return how many of these groups (codes) are not in the split that their hash gives."""
        return int((self.split[groups] != self.hashed[groups]).sum())

    def to_ledger(self, groups: np.ndarray) -> Ledger:
        """Return what there is to remember of these groups (codes)."""
        counts = groups[(self.split[groups] != TRAIN) | (self.hashed[groups] != TRAIN)]
        return Ledger.of(self.place[counts], self.split[counts])


@dataclass
class _Moves:
    """What is moved for the sake of labels.

    Attributes:
        groups: whose splits change.
        label, group, size: int64 [p], the pairs of a label and a group with rows of it, by label, and how
        many rows these are.
        counts: int64 [labels, splits], groups of each label in each split.
        needed: bool [labels, splits], whether a label is to have one there.
    """

    groups: GroupSplits
    label: np.ndarray
    group: np.ndarray
    size: np.ndarray
    counts: np.ndarray
    needed: np.ndarray

    @classmethod
    def of(cls, groups: GroupSplits, labels: Labels, group: np.ndarray) -> _Moves:
        num_labels, num_groups = len(labels.names), len(groups.split)
        cell, size = np.unique(labels.code * num_groups + group[labels.row], return_counts=True)
        label, of_pair = cell // max(1, num_groups), cell % max(1, num_groups)
        counts = np.bincount(
            label * len(SPLITS) + groups.split[of_pair], minlength=num_labels * len(SPLITS)
        ).reshape(-1, len(SPLITS))
        least = np.array([_LEAST_GROUPS[split] for split in range(len(SPLITS))])
        return cls(groups, label, of_pair, size, counts, counts.sum(1)[:, None] >= least)

    def make(self) -> int:
        """Serve the labels that lack a side, those with the fewest groups first."""
        lacking = np.flatnonzero((self.needed & (self.counts == 0)).any(1))
        num_moved = 0
        for label in lacking[np.argsort(self.counts[lacking].sum(1), kind="stable")].tolist():
            pairs = np.arange(*np.searchsorted(self.label, [label, label + 1]))
            for side in (TRAIN, TEST, VALIDATION):
                if self.needed[label, side] and not self.counts[label, side]:
                    num_moved += self._move_one(pairs, side)
        return num_moved

    def _move_one(self, pairs: np.ndarray, side: int) -> bool:
        """Move the first of a label's groups (positions of its pairs) that may go to a side, and that nobody
        needs where it is.
        """
        for pair in self._candidates(pairs, side):
            group = int(self.group[pair])
            labels, here = self._labels_of(group), int(self.groups.split[group])
            if (self.counts[labels, here] > self.needed[labels, here]).all():
                self.counts[labels, here] -= 1
                self.counts[labels, side] += 1
                self.groups.split[group] = side
                return True
        return False

    def _candidates(self, pairs: np.ndarray, side: int) -> list[int]:
        """Return the pairs whose groups may go to a side, the best one first."""
        split, known, place = (
            values[self.group[pairs]] for values in (self.groups.split, self.groups.known, self.groups.place)
        )
        is_new = known == UNKNOWN
        if side == TRAIN:
            return pairs[is_new & (split != TRAIN)][np.argsort(-place[is_new & (split != TRAIN)])].tolist()
        may = (split == TRAIN) | ((split == VALIDATION) if side == TEST else (is_new & (split == TEST)))
        # A group with most of the label's training rows is not held out if there is another: the cap would
        # throw them away.
        is_large = 2 * self.size[pairs] > self.size[pairs][split == TRAIN].sum()
        order = np.lexsort((place, is_large, split != TRAIN))
        return pairs[order][may[order]].tolist()

    def _labels_of(self, group: int) -> np.ndarray:
        order, groups = self._by_group
        return self.label[order[slice(*np.searchsorted(groups, [group, group + 1]))]]

    @cached_property
    def _by_group(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the pairs in the order of their groups, and the groups in it."""
        order = np.argsort(self.group, kind="stable")
        return order, self.group[order]
