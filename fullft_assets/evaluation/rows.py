"""Test rows by whether a system was right on them: the groups where it errs most, and who else was right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fullft_assets.evaluation.intervals import Record


class GroupScore(Record):
    """Errors on the test rows of one group."""

    group: str
    num_rows: int
    num_errors: int


class SystemAgreement(Record):
    """Test rows by who was right: the fine-tuned model, the best baseline, both or neither."""

    both_right: int
    only_finetuned_right: int
    only_baseline_right: int
    both_wrong: int


def one_of_each_group_first(groups: Sequence[str], seed: int) -> list[int]:
    """Return the rows [n] in an order drawn by the seed: one of each group, then a second one, and so on.
    Rows of one group are alike.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    seen: dict[str, int] = defaultdict(int)
    turn = {}
    for row in order:
        turn[row] = seen[groups[row]]
        seen[groups[row]] += 1
    return sorted(order, key=turn.__getitem__)


def weakest_groups(
    right: np.ndarray, groups: Sequence[str], *, most: int = 5, min_rows: int = 3
) -> list[GroupScore]:
    """The groups of at least `min_rows` rows with the largest share of errors, worst first; `right` is bool
    [n].
    """
    rights: dict[str, list[bool]] = defaultdict(list)
    for group, is_right in zip(groups, right.tolist(), strict=True):
        rights[group].append(is_right)
    scores = [
        GroupScore(group=group, num_rows=len(found), num_errors=len(found) - sum(found))
        for group, found in rights.items()
        if len(found) >= min_rows and not all(found)
    ]
    return sorted(scores, key=lambda s: (-s.num_errors / s.num_rows, -s.num_errors, s.group))[:most]


def agreement(finetuned: np.ndarray, baseline: np.ndarray) -> SystemAgreement:
    """Count the rows by which of two systems was right on them, bool [n] each."""
    return SystemAgreement(
        both_right=int((finetuned & baseline).sum()),
        only_finetuned_right=int((finetuned & ~baseline).sum()),
        only_baseline_right=int((~finetuned & baseline).sum()),
        both_wrong=int((~finetuned & ~baseline).sum()),
    )
