"""The labels of a snapshot's rows: which there are, and whether each has enough rows and groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.examples.identity import codes
from fullft_assets.examples.labels import named
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import Target

LABELS_ARE_COMMON = CheckSpec(
    "labels_are_common", "Each label has enough independent groups in the test split."
)
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

    def without(self, codes: np.ndarray) -> Labels:
        """Return the pairs of the labels that are not among these codes."""
        chosen = ~np.isin(self.code, codes)
        return Labels(self.row[chosen], self.code[chosen], self.names)


def labels_of(table: pa.Table, target: Target | None) -> Labels:
    """Return the labels of examples; none for tasks that have none."""

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


def shown_split(split: np.ndarray, settings: SnapshotSettings, seed: int) -> str:
    """Return what a refusal says of the splits (numbers) of rows: how many are in each, and what the splits
    were made with.
    """
    counts = np.bincount(split, minlength=len(SPLITS)).tolist()
    rows = ", ".join(f"{counts[split]:,} {SPLITS[split]}" for split in (TRAIN, VALIDATION, TEST))
    return (
        f"{rows}; test_share {settings.test_share:g}, validation_share {settings.validation_share:g}, seed"
        f" {seed}"
    )


def label_statistics(labels: Labels, split: np.ndarray, group: np.ndarray) -> list[dict[str, Any]]:
    """Return rows, groups and the effective number of groups by label and split.

    k_eff = (sum n_g)^2 / sum n_g^2 over the groups' rows n_g (Kish 1965): 20 groups of one row, or of ten
    each, are 20; one group of 1,000 rows among nine of one is 1.02.
    """
    where, num_splits = split[labels.row], len(SPLITS)
    cell = labels.code * num_splits + where
    num_groups, num_cells = int(group.max(initial=-1)) + 1, len(labels.names) * num_splits
    pairs, sizes = np.unique(cell * num_groups + group[labels.row], return_counts=True)
    cells = pairs // max(1, num_groups)
    total, squares = (
        np.bincount(cells, sizes, num_cells),
        np.bincount(cells, sizes.astype(float) ** 2, num_cells),
    )
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
    named = name_labels(
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
                f"too few test groups for a reliable score of {named} (k_eff under {COMMON_GROUPS}); deliver"
                " more groups with them"
            )
        ),
        metadata={"num_rare_labels": len(rare), **({} if least is None else {"least_k_eff": least})},
    )


def name_labels(about: Mapping[str, str], all_labels: Collection[str]) -> str:
    """Name the first few of some labels, each with what is said about it; labels that may be texts are only
    counted.
    """
    return named(
        [(label, f"({said})") for label, said in list(about.items())[:_SHOWN_LABELS]], len(about), all_labels
    )
