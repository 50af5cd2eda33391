"""Labels that a snapshot does without, since they have too few rows or none that may train; and those that it
cannot test.

Where a row has one label, or spans of several, its rows go with a label that is set aside. Where a row may
have several labels, it stays and only loses that one: each label is a question of its own, and this one is no
longer asked.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fullft_assets.errors import DataError
from fullft_assets.escaping import quoted
from fullft_assets.examples.labels import may_be_named
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows, distinct
from fullft_assets.snapshot.labels import Labels, name_labels, shown_split
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import Task

LABELS_ARE_SPLIT = CheckSpec(
    "labels_are_split", "Each label is in the training and in the test split, and none is set aside."
)
#: Labels that the metadata names at most, those with most rows first.
_MAX_NAMED = 100
_DROPPED = "rows of labels that are set aside"


@dataclass
class SetAside:
    """Labels that are set aside, by code.

    Attributes:
        rows, groups: how many each had.
        reasons: why, see `metadata.LabelSetAside`.
        untested: names of the labels that train and have no test row, with their training groups.
        num_unvalidated: labels that train and have no validation row.
    """

    rows: dict[int, int] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    untested: dict[str, int] = field(default_factory=dict)
    num_unvalidated: int = 0

    def take_rare(self, rows: Rows, labels: Labels, settings: SnapshotSettings, task: Task) -> Labels:
        """Set aside the labels with fewer texts than `min_rows_per_label`; return the other labels."""
        labels = labels.of(rows.kept)
        while True:
            counts = _num_distinct(labels, rows.text)
            rare = np.flatnonzero((counts > 0) & (counts < settings.min_rows_per_label))
            if not len(rare):
                return labels
            labels = self._take(rows, labels, rare, "few_rows", task)

    def take_untrainable(self, rows: Rows, labels: Labels, known: Labels, task: Task) -> Labels:
        """Set aside the labels without a training row, note those without a test row; return the labels that
        are left.

        Args:
            rows: as they are split.
            labels: of the rows that are still in.
            known: of the rows before any were excluded for the sake of the split: what each label had.
            task: of the use case.
        """
        while True:
            cells = np.unique(labels.code * len(SPLITS) + rows.split[labels.row])
            has = np.zeros((len(labels.names), len(SPLITS)), bool)
            has.flat[cells] = True
            present = np.zeros(len(labels.names), bool)
            present[known.without(np.array(list(self.reasons), np.int64)).code] = True
            untrained = np.flatnonzero(present & ~has[:, TRAIN])
            if not len(untrained):
                break
            self._take(rows, known, untrained, "no_training_row", task)
            labels = labels.of(rows.kept).without(untrained)
        num_groups = _num_distinct(known, rows.group)
        self.untested = {
            labels.names[n]: int(num_groups[n]) for n in np.flatnonzero(present & ~has[:, TEST]).tolist()
        }
        self.num_unvalidated = int((present & ~has[:, VALIDATION]).sum())
        return labels

    def _take(self, rows: Rows, labels: Labels, codes: np.ndarray, reason: str, task: Task) -> Labels:
        chosen = np.isin(labels.code, codes)
        row = labels.row[chosen]
        num_rows = np.bincount(labels.code, minlength=len(labels.names))
        num_groups = _num_distinct(labels, rows.group)
        for code in codes.tolist():
            self.rows[code] = int(num_rows[code])
            self.groups[code] = int(num_groups[code])
            self.reasons[code] = reason
        if task.target != "labels":
            rows.drop(row, _DROPPED)
        return labels.without(codes).of(rows.kept)

    def require_some_left(
        self, rows: Rows, labels: Labels, settings: SnapshotSettings, seed: int, at_least: int
    ) -> None:
        """Check that there are labels to learn.

        Raises:
            DataError: too few are left.
        """
        left = np.unique(labels.of(rows.kept).code)
        if not labels.names or len(left) >= at_least:
            return
        num_rows = int(rows.kept.sum())
        if not self.reasons:
            only = (
                f"one label ({quoted(labels.names[left[0]])})" if may_be_named(labels.names) else "one label"
            )
            raise DataError(
                f"snapshot: only {only} in {num_rows:,} rows; a classifier needs two: deliver rows of another"
                " label, or check that examples.label names the right field"
            )
        reasons = list(self.reasons.values())
        why, fixes = [], ["deliver more rows of them", "check that examples.label names the right field"]
        if num_rare := reasons.count("few_rows"):
            why.append(
                f"{num_rare:,} have fewer than snapshot.min_rows_per_label ({settings.min_rows_per_label})"
                " rows"
            )
            fixes.append("lower snapshot.min_rows_per_label")
        if num_untrained := reasons.count("no_training_row"):
            split = shown_split(rows.split[rows.kept], settings, seed)
            why.append(f"{num_untrained:,} have no row that may train ({split})")
            fixes.append("lower snapshot.test_share")
        raise DataError(
            f"snapshot: {len(left):,} of {len(left) + len(reasons):,} labels are left, with {num_rows:,}"
            f" rows: {' and '.join(why)}; the task needs at least {at_least}: {', '.join(fixes[:-1])}, or"
            f" {fixes[-1]}"
        )

    def metadata(self, labels: Labels) -> dict[str, Any]:
        """Return what the snapshot's metadata says of these labels."""
        order = sorted(self.reasons, key=lambda code: (-self.rows[code], labels.names[code]))
        return {
            "num_labels_set_aside": len(order),
            "labels_set_aside": [
                {
                    "label": labels.names[code],
                    "rows": self.rows[code],
                    "groups": self.groups[code],
                    "reason": self.reasons[code],
                }
                for code in order[:_MAX_NAMED]
            ],
            "labels_untested": list(self.untested)[:_MAX_NAMED],
            "num_labels_without_validation_row": self.num_unvalidated,
        }

    def check(self, labels: Labels, settings: SnapshotSettings) -> CheckOutcome:
        """Return whether each label is in the training and the test split; the description says what
        to do.
        """
        parts = []
        whys = {
            "few_rows": (
                f"have fewer than snapshot.min_rows_per_label ({settings.min_rows_per_label}) rows:"
                " deliver more of them"
            ),
            "no_training_row": (
                "have no row that may train, since their groups were held out before or are near to"
                " held-out rows: deliver rows of new groups"
            ),
        }
        for reason, why in whys.items():
            codes = sorted(code for code in self.reasons if self.reasons[code] == reason)
            codes.sort(key=lambda code: -self.rows[code])
            if codes:
                about = {
                    labels.names[n]: f"{_count(self.rows[n], 'row')}, {_count(self.groups[n], 'group')}"
                    for n in codes
                }
                parts.append(
                    f"{_count(len(codes), 'label')} set aside that {why}, or leave them out of"
                    f" examples.labels: {name_labels(about, labels.names)}"
                )
        if self.untested:
            named = name_labels(
                {name: _count(number, "group") for name, number in self.untested.items()}, labels.names
            )
            parts.append(
                f"{_count(len(self.untested), 'label')} trained but not tested: deliver rows of further"
                f" groups with them: {named}"
            )
        return CheckOutcome(
            name=LABELS_ARE_SPLIT.name,
            passed=not parts,
            severity="warn",
            description="; ".join(parts),
            metadata={"num_labels_set_aside": len(self.reasons), "num_labels_untested": len(self.untested)},
        )


def _num_distinct(labels: Labels, values: np.ndarray) -> np.ndarray:
    """Return how many different values [n rows] the rows of each label have: int64 [labels]."""
    most = int(values.max(initial=0)) + 1
    return np.bincount(distinct(labels.code * most + values[labels.row]) // most, minlength=len(labels.names))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
