"""All sound rows of all batches as columns: numpy arrays of codes and numbers, no object a row, so that a million rows take seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.minhash import Sketches

if TYPE_CHECKING:
    import pyarrow as pa

#: In the order of precedence: a row of a lower place never moves behind a later one.
SPLITS = ("test", "validation", "train")
TEST, VALIDATION, TRAIN = range(3)
SplitName = Literal["train", "validation", "test"]
#: Columns of the examples that the split reads; `label`, `labels` and `spans` where the task has them.
COLUMNS = ("id", "text_hash", "label", "labels", "spans", "group", "annotator", "source", "row", "delivered_ns")
#: Why a sound row is no example of its batch. Over all batches it may yet stand, or stand against other rows.
LEFT_OUT = ("merged", "superseded", "tied", "conflicting", "repeated")
WHY = {why: number for number, why in enumerate(LEFT_OUT)}
#: Stands in place of LEFT_OUT at a row that is not sound: only its id and its place are known.
BROKEN = "broken"


@dataclass(frozen=True)
class BatchRows:
    """What the split needs of one batch.

    Attributes:
        rows: examples with COLUMNS, without their texts, and the rows behind them that are `spare` (see `examples.Examined`).
        files: time of delivery (ns) of each of the batch's files: a newer delivery of a file supersedes the rows of older ones,
            but for those that are broken in it.
        places: float64 [n] in [0, 1), keyed hash of each row's group, or of its text where it has none.
        sketches: reads the sketches of the rows' texts.
        texts: reads the texts at positions, in that order.
        left_out: sound rows that are not in `rows`, with COLUMNS, their `place` and `why`, one of LEFT_OUT; and the ids and places
            of the rows that are not sound, whose `why` is BROKEN.
        overlaps: bool [n], rows that overlap an external evaluation set; they do not train.
        unfit: positions of spare rows whose text and tokens are of no use to anyone.
    """

    rows: pa.Table
    files: Mapping[str, int]
    places: np.ndarray
    sketches: Callable[[], Sketches]
    texts: Callable[[np.ndarray], pa.Array | pa.ChunkedArray]
    left_out: pa.Table | None = None
    overlaps: np.ndarray | None = None
    unfit: Sequence[int] = ()


@dataclass
class Rows:
    """All rows of all batches as codes: what each batch stored, then what batches left out.

    Attributes:
        stored: number of the stored row that has the row's text and tokens: its own; -1 for a row that was left out. A spare one is
            there for that alone, and never in: it is among those left out as well.
        batch, position: where an example lies.
        came_in: number of the batch that a row came in, also of one that is no example.
        split: SPLITS' number, or -1 for what is left out.
        why: LEFT_OUT's number, or -1 for a stored row.
        stands_in: rows of older deliveries of a file that stand because they are broken in each newer one.
    """

    table: pa.Table
    stored: np.ndarray
    batch: np.ndarray
    position: np.ndarray
    came_in: np.ndarray
    id: np.ndarray
    text: np.ndarray
    group: np.ndarray
    row: np.ndarray
    delivered: np.ndarray
    place: np.ndarray
    tier: np.ndarray
    split: np.ndarray
    why: np.ndarray
    stands_in: np.ndarray
    dropped: Counter[str]

    def drop(self, mask: np.ndarray, reason: str) -> None:
        """Leave out the rows of a mask that are still in, and count the examples among them (the others' batches did)."""
        mask = mask & (self.split >= 0)
        self.split[mask] = -1
        self.dropped[reason] += int((mask & (self.why < 0)).sum())

    @property
    def kept(self) -> np.ndarray:
        """Mask of the rows that are still in."""
        return self.split >= 0

    def several(self, code: np.ndarray) -> np.ndarray:
        """Return the rows still in whose code others that are still in have too."""
        kept = np.flatnonzero(self.kept)
        return kept[np.bincount(code[kept], minlength=1)[code[kept]] > 1]


def collect(batches: Mapping[str, BatchRows], settings: SnapshotSettings) -> Rows:
    """Return the rows of all batches, each with the split that its place gives it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ordered = [batches[name] for name in sorted(batches)]
    left_out = [part for b in ordered if b.left_out is not None and len(part := _sound(b.left_out))]
    none = pa.table({name: pa.array([], pa.int64() if name in ("row", "delivered_ns") else pa.string()) for name in COLUMNS})
    table = pa.concat_tables(
        [none.select(["id"]), *(b.rows for b in ordered), *(part.drop_columns(["place", "why"]) for part in left_out)],
        promote_options="permissive",
    )
    if len(table.column_names) == 1:
        table = none
    spare = np.zeros(len(table), bool)
    if "spare" in table.column_names:
        spare = table["spare"].fill_null(False).to_numpy()
        table = table.drop_columns(["spare"])
    sizes = [len(b.rows) for b in ordered]
    stored, others = np.arange(sum(sizes)), len(table) - sum(sizes)
    for batch, begin in zip(ordered, np.cumsum([0, *sizes]), strict=False):
        stored[begin + np.asarray(batch.unfit, np.int64)] = -1
    place = np.concatenate([np.zeros(0), *(b.places for b in ordered), *(part["place"].to_numpy() for part in left_out)])
    tier = np.where(place < settings.test_share, TEST, np.where(place < settings.test_share + settings.validation_share, VALIDATION, TRAIN))
    absent = np.full(others, -1)
    sizes_left_out = [0 if b.left_out is None else len(_sound(b.left_out)) for b in ordered]
    return Rows(
        table=table,
        stored=np.concatenate([stored, absent]),
        batch=np.concatenate([np.repeat(np.arange(len(ordered)), sizes), absent]),
        position=np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes), absent]),
        came_in=np.concatenate([np.repeat(np.arange(len(ordered)), each) for each in (sizes, sizes_left_out)]),
        id=codes(table["id"])[0],
        text=codes(table["text_hash"])[0],
        group=codes(pc.coalesce(table["group"], table["text_hash"]))[0],
        row=table["row"].to_numpy(),
        delivered=table["delivered_ns"].to_numpy(),
        place=place,
        tier=tier,
        split=np.where(spare, -1, tier),
        why=np.concatenate([np.full(len(stored), -1), *([WHY[why] for why in part["why"].to_pylist()] for part in left_out)]),
        stands_in=np.zeros(len(table), bool),
        dropped=Counter(),
    )


def _sound(left_out: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return left_out.filter(pc.not_equal(left_out["why"], BROKEN))


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return a column's values as int64 codes, and the distinct values that they number."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.cast(pa.large_string()).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def ranks(column: pa.ChunkedArray) -> np.ndarray:
    """Return each value's rank among the column's distinct values, sorted."""
    import pyarrow.compute as pc

    number, values = codes(column)
    rank = np.empty(len(values), np.int64)
    rank[pc.sort_indices(values).to_numpy()] = np.arange(len(values))
    return rank[number]


def targets(table: pa.Table, task: str, multi_label: bool) -> list[str]:
    """Return what the model is to learn of each row, as text that is equal where it is the same; nothing where it is the text itself."""
    if task == "token_classification":
        return ["|".join(sorted(f"{s['start']}:{s['end']}:{s['label']}" for s in spans or [])) for spans in table["spans"].to_pylist()]
    if task == "classification" and multi_label:
        return [json.dumps(sorted(set(labels or []))) for labels in table["labels"].to_pylist()]
    if task == "classification":
        return table["label"].to_pylist()
    return [""] * len(table)
