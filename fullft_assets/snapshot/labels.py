"""The labels of a snapshot's rows: which there are, and whether each has enough rows and groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.errors import DataError
from fullft_assets.examples.identity import codes
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, Rows
from fullft_assets.store import CheckOutcome
from fullft_assets.task import Target

if TYPE_CHECKING:
    import pyarrow as pa

#: A label with a smaller effective number of groups in the test split has no reliable score.
COMMON_GROUPS = 20
_SHOWN_LABELS = 5


@dataclass(frozen=True)
class Labels:
    """Labels of rows as pairs (row, code), each once; `names` sorted."""

    row: np.ndarray
    code: np.ndarray
    names: list[str]

    def of(self, rows: np.ndarray) -> Labels:
        """Return the pairs of the rows chosen by a mask."""
        chosen = rows[self.row]
        return Labels(self.row[chosen], self.code[chosen], self.names)


def labels_of(table: pa.Table, target: Target | None) -> Labels:
    """Return the labels of examples; none for tasks that have none."""
    import pyarrow.compute as pc

    if target is None:
        return Labels(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    has_one = target == "label"
    if has_one:
        row, values = np.arange(len(table)), table["label"]
    else:
        lists = table[target].combine_chunks()
        row, values = pc.list_parent_indices(lists).to_numpy().astype(np.int64), lists.flatten()
        values = pc.struct_field(values, "label") if target == "spans" else values
    number, names = codes(values)
    rank = np.empty(len(names), np.int64)
    order = pc.sort_indices(names)
    rank[order.to_numpy()] = np.arange(len(names))
    pairs = row * max(1, len(names)) + rank[number]
    pairs = pairs if has_one else np.unique(pairs)
    return Labels(pairs // max(1, len(names)), pairs % max(1, len(names)), names.take(order).to_pylist())


def require_labels(rows: Rows, labels: Labels, settings: SnapshotSettings, at_least: int) -> None:
    """Check that rows are left, and that each label left has enough of them.

    Raises:
        DataError: there are too few rows or labels; the message names the remedy.
    """
    num_rows = int(rows.kept.sum())
    if not num_rows:
        raise DataError("snapshot: no row is left of all batches: each has a newer delivery, or an equal text with another label")
    if not labels.names:
        return
    kept = labels.of(rows.kept)
    counts = np.bincount(kept.code, minlength=len(labels.names))
    found = np.flatnonzero(counts)
    if len(found) < at_least:
        raise DataError(f"snapshot: only one label (`{labels.names[found[0]]}`) in {num_rows:,} rows; a classifier needs two")
    for code in found[np.argsort(counts[found], kind="stable")].tolist():
        count = int(counts[code])
        if count < settings.min_rows_per_label:
            # Named by the first in the order of sources: the message does not depend on the batches.
            source, number = min((rows.table["source"][n].as_py(), int(rows.row[n])) for n in kept.row[kept.code == code].tolist())
            raise DataError(
                f"{source}:{number}: label `{labels.names[code]}` has {count} row{'s' * (count > 1)}, fewer than "
                f"snapshot.min_rows_per_label ({settings.min_rows_per_label}); deliver more, or leave it out of examples.labels"
            )


def require_every_label(rows: Rows, labels: Labels) -> None:
    """Check that each split has a row of each label.

    Raises:
        DataError: one has none.
    """
    known = np.unique(labels.code)
    for split in (TRAIN, VALIDATION, TEST):
        missing = np.setdiff1d(known, labels.code[rows.split[labels.row] == split])
        if len(missing):
            raise DataError(
                f"snapshot: no {SPLITS[split]} row with label `{labels.names[missing[0]]}` (its rows share too few groups or are "
                "near-duplicates); deliver more groups with it, or leave it out of examples.labels"
            )


def label_statistics(labels: Labels, split: np.ndarray, group: np.ndarray) -> list[dict[str, Any]]:
    """Return rows, groups and the effective number of groups by label and split.

    k_eff = (sum n_g)^2 / sum n_g^2 over the groups' rows n_g (Kish 1965): 20 groups of one row, or of ten each, are 20; one group
    of 1,000 rows among nine of one is 1.02.
    """
    where, num_splits = split[labels.row], len(SPLITS)
    cell = labels.code * num_splits + where
    num_groups, num_cells = int(group.max(initial=-1)) + 1, len(labels.names) * num_splits
    pairs, sizes = np.unique(cell * num_groups + group[labels.row], return_counts=True)
    cells = pairs // max(1, num_groups)
    total, squares = np.bincount(cells, sizes, num_cells), np.bincount(cells, sizes.astype(float) ** 2, num_cells)
    groups = np.bincount(cells, minlength=num_cells)
    return [
        {
            "label": labels.names[n // num_splits],
            "split": SPLITS[n % num_splits],
            "rows": int(total[n]),
            "groups": int(groups[n]),
            "k_eff": round(float(total[n] ** 2 / squares[n]), 2),
        }
        for n in np.flatnonzero(total).tolist()
    ]


def rare_labels(statistics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the test rows of the statistics of the labels with too few groups, rarest first."""
    rare = [s for s in statistics if s["split"] == "test" and s["k_eff"] < COMMON_GROUPS]
    return sorted(rare, key=lambda s: (s["k_eff"], s["label"]))


def labels_are_common(statistics: list[dict[str, Any]]) -> CheckOutcome:
    """Return whether each label has enough groups in the test split."""
    rare = rare_labels(statistics)
    named = ", ".join(f"`{s['label']}` ({s['rows']:,} rows, k_eff {s['k_eff']:g})" for s in rare[:_SHOWN_LABELS])
    more = f" and {len(rare) - _SHOWN_LABELS:,} more" if len(rare) > _SHOWN_LABELS else ""
    least = min((s["k_eff"] for s in statistics if s["split"] == "test"), default=None)
    return CheckOutcome(
        name="labels_are_common",
        passed=not rare,
        severity="warn",
        description=""
        if not rare
        else f"too few test groups for a reliable score of {named}{more} (k_eff under {COMMON_GROUPS}); deliver more groups with them",
        metadata={"num_rare_labels": len(rare), **({} if least is None else {"least_k_eff": least})},
    )
