"""The labels of a snapshot's rows: which there are, whether each has enough rows and groups, and which a
snapshot does without, since they have too few rows or none that may train.

Where a row has one label, or spans of several, its rows go with a label that is set aside. Where a row may
have several labels, it stays and only loses that one: each label is a question of its own, and this one is no
longer asked.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.errors import DataError
from fullft_assets.escaping import quoted
from fullft_assets.examples.identity import ranks
from fullft_assets.examples.labels import may_be_named, named
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows, distinct
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import Target, Task

LABELS_ARE_COMMON = CheckSpec(
    "labels_are_common", "Each label has enough independent groups in the test split."
)
#: A label with a smaller effective number of groups in the test split has no reliable score.
COMMON_GROUPS = 20
_SHOWN_LABELS = 5
LABELS_ARE_SPLIT = CheckSpec(
    "labels_are_split", "Each label is in the training and in the test split, and none is set aside."
)
#: Labels that the metadata names at most, those with most rows first.
_MAX_NAMED = 100
_DROPPED = "rows of labels that are set aside"


@dataclass(frozen=True)
class Labels:
    """Labels of rows as pairs (row, code), each once; `names` sorted."""

    row: np.ndarray
    code: np.ndarray
    names: list[str]

    def of(self, rows: np.ndarray) -> "Labels":
        """Return the pairs of the rows that a mask [rows] selects."""
        mask = rows[self.row]
        return Labels(self.row[mask], self.code[mask], self.names)

    def without(self, codes: np.ndarray) -> "Labels":
        """Return the pairs of the labels that are not among these codes."""
        mask = ~np.isin(self.code, codes)
        return Labels(self.row[mask], self.code[mask], self.names)


def labels_of(table: pa.Table, target: Target | None) -> Labels:
    """Return the labels of examples; none for tasks that have none."""

    if target is None:
        return Labels(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    if target == "label":
        row = np.arange(len(table))
        values = table["label"]
    else:
        lists = table[target].combine_chunks()
        row = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        values = pc.struct_field(lists.flatten(), "label") if target == "spans" else lists.flatten()
    code, names = ranks(values)
    pairs = distinct(row * max(1, len(names)) + code)
    return Labels(pairs // max(1, len(names)), pairs % max(1, len(names)), names.to_pylist())


def shown_split(split: np.ndarray, settings: SnapshotSettings, seed: int) -> str:
    """Return the part of a refusal on the splits (numbers) of rows: the number of rows in each split, and the
    settings that made the splits.
    """
    counts = np.bincount(split, minlength=len(SPLITS)).tolist()
    rows = ", ".join(f"{counts[split]:,} {SPLITS[split]}" for split in (TRAIN, VALIDATION, TEST))
    return (
        f"{rows}; test_share {settings.least_test_share:g}, validation_share"
        f" {settings.validation_share:g}, seed {seed}"
    )


def label_statistics(labels: Labels, split: np.ndarray, group: np.ndarray) -> list[dict[str, Any]]:
    """Return rows, groups and the effective number of groups by label and split.

    k_eff = (sum n_g)^2 / sum n_g^2 over the groups' rows n_g (Kish 1965): 20 groups of one row, or of ten
    each, are 20; one group of 1,000 rows among nine of one is 1.02.
    """
    cell = labels.code * len(SPLITS) + split[labels.row]
    num_groups = int(group.max(initial=0)) + 1
    pairs, sizes = np.unique(cell * num_groups + group[labels.row], return_counts=True)
    cells = pairs // num_groups
    rows = np.bincount(cells, sizes)
    squares = np.bincount(cells, sizes.astype(float) ** 2)
    groups = np.bincount(cells)
    return [
        {
            "label": labels.names[n // len(SPLITS)],
            "split": SPLITS[n % len(SPLITS)],
            "rows": int(rows[n]),
            "groups": int(groups[n]),
            "k_eff": round(float(rows[n] ** 2 / squares[n]), 2),
        }
        for n in np.flatnonzero(groups).tolist()
    ]


def rare_labels(statistics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the test rows of the statistics of the labels with too few groups, rarest first."""
    return sorted(
        (s for s in statistics if s["split"] == "test" and s["k_eff"] < COMMON_GROUPS),
        key=lambda s: (s["k_eff"], s["label"]),
    )


def labels_are_common(statistics: list[dict[str, Any]]) -> CheckOutcome:
    """Return whether each label has enough groups in the test split."""
    rare = rare_labels(statistics)
    names = name_labels(
        {s["label"]: f"{s['rows']:,} rows, k_eff {s['k_eff']:g}" for s in rare},
        {s["label"] for s in statistics},
    )
    least = min((s["k_eff"] for s in statistics if s["split"] == "test"), default=None)
    return CheckOutcome(
        name=LABELS_ARE_COMMON.name,
        passed=not rare,
        severity="warn",
        description=(
            ""
            if not rare
            else (
                f"too few test groups for a reliable score of {names} (k_eff under {COMMON_GROUPS}); deliver"
                " more groups with them"
            )
        ),
        metadata={"num_rare_labels": len(rare), **({} if least is None else {"least_k_eff": least})},
    )


def name_labels(about: Mapping[str, str], all_labels: Collection[str]) -> str:
    """Return the first few of some labels with a remark on each, or their number if labels may be texts."""
    return named(
        [(label, f"({remark})") for label, remark in list(about.items())[:_SHOWN_LABELS]],
        len(about),
        all_labels,
    )


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

    def take_untrainable(self, rows: Rows, labels: Labels, labels_before: Labels, task: Task) -> Labels:
        """Set aside the labels without a training row, and note those without a test row. Return the other
        labels.

        Args:
            rows: as they are split.
            labels: of the rows that are still in.
            labels_before: of these rows and of those that were excluded for the sake of the split.
            task: of the use case.
        """
        while True:
            cells = np.unique(labels.code * len(SPLITS) + rows.split[labels.row])
            has = np.zeros((len(labels.names), len(SPLITS)), bool)
            has.flat[cells] = True
            present = np.zeros(len(labels.names), bool)
            present[labels_before.without(np.array(list(self.reasons), np.int64)).code] = True
            untrained = np.flatnonzero(present & ~has[:, TRAIN])
            if not len(untrained):
                break
            self._take(rows, labels_before, untrained, "no_training_row", task)
            labels = labels.of(rows.kept).without(untrained)
        num_groups = _num_distinct(labels_before, rows.group)
        self.untested = {
            labels.names[n]: int(num_groups[n]) for n in np.flatnonzero(present & ~has[:, TEST]).tolist()
        }
        self.num_unvalidated = int((present & ~has[:, VALIDATION]).sum())
        return labels

    def _take(self, rows: Rows, labels: Labels, codes: np.ndarray, reason: str, task: Task) -> Labels:
        num_rows = np.bincount(labels.code, minlength=len(labels.names))
        num_groups = _num_distinct(labels, rows.group)
        for code in codes.tolist():
            self.rows[code] = int(num_rows[code])
            self.groups[code] = int(num_groups[code])
            self.reasons[code] = reason
        if task.target != "labels":
            rows.drop(labels.row[np.isin(labels.code, codes)], _DROPPED)
        return labels.without(codes).of(rows.kept)

    def require_some_left(
        self, rows: Rows, labels: Labels, settings: SnapshotSettings, seed: int, at_least: int
    ) -> None:
        """Check that there are labels to learn.

        Raises:
            DataError: too few are left.
        """
        codes = distinct(labels.of(rows.kept).code)
        if not labels.names or len(codes) >= at_least:
            return
        num_rows = int(rows.kept.sum())
        if not self.reasons:
            only = (
                f"one label ({quoted(labels.names[codes[0]])})" if may_be_named(labels.names) else "one label"
            )
            raise DataError(
                f"snapshot: only {only} in {num_rows:,} rows; a classifier needs two: deliver rows of another"
                " label, or check that examples.label names the right field"
            )
        num_rare = list(self.reasons.values()).count("few_rows")
        raise DataError(
            f"snapshot: {len(codes):,} of {len(codes) + len(self.reasons):,} labels are left, with"
            f" {num_rows:,} rows: {num_rare:,} have fewer than snapshot.min_rows_per_label"
            f" ({settings.min_rows_per_label}) rows, and {len(self.reasons) - num_rare:,} no row that may"
            f" train ({shown_split(rows.split[rows.kept], settings, seed)}); the task needs at least"
            f" {at_least}: deliver more rows of them, check that examples.label names the right field, or"
            " set a lower snapshot.min_rows_per_label or snapshot.test_share"
        )

    def metadata(self, labels: Labels) -> dict[str, Any]:
        """Return the snapshot's metadata on these labels."""
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
                " correct or deliver more of them"
            ),
            "no_training_row": (
                "have no row that may train, since their groups were held out before or are near to"
                " held-out rows: deliver rows of new groups"
            ),
        }
        for reason, why in whys.items():
            codes = sorted(
                (code for code in self.reasons if self.reasons[code] == reason),
                key=lambda code: (-self.rows[code], code),
            )
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
            names = name_labels(
                {name: _count(number, "group") for name, number in self.untested.items()}, labels.names
            )
            parts.append(
                f"{_count(len(self.untested), 'label')} trained but not tested: deliver rows of further"
                f" groups with them: {names}"
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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
