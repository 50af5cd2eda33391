"""Which rows of all batches count, and which of them train, validate and test.

The split is a keyed hash of the group (without groups, of the text): stable as data grows, and independent of the order of arrival
and of the batches that rows came in. Nothing is joined into clusters, because joining near-duplicates and groups percolates; instead,
rows near to a held-out row are left out, and counted. What was held out once is never trained on: a row is left out too where an
older delivery of its id, or a copy of its text, was held out.

It is decided over all sound rows ever delivered. Those that their own batch left out (an older version of an id, a copy, one of two
that contradict each other) take part without their texts, so that it does not matter which rows shared a batch: where such a row is
to stand after all, it does with the text and the tokens of an equal row.

Rows are columns here: numpy arrays of codes and numbers, no object a row, so that a million rows take seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.errors import DataError
from fullft_assets.hashing import unit_hash
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.near_duplicates import NearSearch, Sketches, concatenate
from fullft_assets.snapshot.shingles import shingle_sets
from fullft_assets.store import CheckOutcome

if TYPE_CHECKING:
    import pyarrow as pa

#: In the order of precedence: a row of a lower place never moves behind a later one.
SPLITS = ("test", "validation", "train")
TEST, VALIDATION, TRAIN = range(3)
#: Columns of the examples that the split reads; `label`, `labels` and `spans` where the task has them.
COLUMNS = ("id", "text_hash", "label", "labels", "spans", "group", "source", "row", "delivered_ns")
#: Why a sound row is no example of its batch. A merged one is history; the others may yet stand, or stand against other rows.
LEFT_OUT = ("merged", "superseded", "tied", "conflicting", "repeated")
#: A label with a smaller effective number of groups in the test split has a score that is hardly known.
COMMON_GROUPS = 20
_SHOWN_LABELS = 5
#: So many ids, and such a share of them, that stand for two texts in two files are no longer corrections of documents.
_REUSED_IDS, _REUSED_SHARE = 10, 0.01
_NOT_STORED = "contradicted or superseded in their own batch, and would stand now; deliver them again"
_WHY = {why: number for number, why in enumerate(LEFT_OUT)}
#: Stands in place of LEFT_OUT at a row that is not sound: only its id and its place are known.
BROKEN = "broken"


@dataclass(frozen=True)
class BatchRows:
    """What the split needs of one batch.

    Attributes:
        rows: examples with COLUMNS, without their texts.
        files: time of delivery (ns) of each of the batch's files: a newer delivery of a file supersedes the rows of older ones,
            but for those that are broken in it.
        places: float64 [n] in [0, 1), keyed hash of each row's group, or of its text where it has none.
        sketches: reads the sketches of the rows' texts.
        texts: reads the texts at positions, in that order.
        left_out: sound rows that are not in `rows`, with COLUMNS, their `place` and `why`, one of LEFT_OUT; and the ids and places
            of the rows that are not sound, whose `why` is BROKEN.
        overlaps: bool [n], rows that overlap an external evaluation set; they do not train.
    """

    rows: pa.Table
    files: Mapping[str, int]
    places: np.ndarray
    sketches: Callable[[], Sketches]
    texts: Callable[[np.ndarray], pa.Array | pa.ChunkedArray]
    left_out: pa.Table | None = None
    overlaps: np.ndarray | None = None


@dataclass(frozen=True)
class Frozen:
    """A snapshot before it is written.

    Attributes:
        index: one row an example, sorted by split and text hash; it does not depend on the batches.
        places: where each row of the index came from, `source` and `row`, and where its text and tokens lie, `batch` and `position`.
        labels: the label order.
        metadata, checks: what is told of it.
        order: what is told of the order of its batches; it alone depends on their names.
    """

    index: pa.Table
    places: pa.Table
    labels: list[str]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    order: CheckOutcome


@dataclass(frozen=True)
class _Labels:
    """Labels of rows as pairs (row, code), each once; `names` sorted."""

    row: np.ndarray
    code: np.ndarray
    names: list[str]

    def of(self, rows: np.ndarray) -> _Labels:
        """Return the pairs of the rows chosen by a mask."""
        chosen = rows[self.row]
        return _Labels(self.row[chosen], self.code[chosen], self.names)


@dataclass
class _Rows:
    """All rows of all batches as codes: the examples of each batch, then what batches left out.

    Attributes:
        stored: number of the example that has the row's text and tokens: its own; -1 for a row that is no example.
        batch, position: where an example lies.
        came_in: number of the batch that a row came in, also of one that is no example.
        split: SPLITS' number, or -1 for what is left out.
        why: LEFT_OUT's number, or -1 for an example.
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


def freeze_batches(batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int, *, task: str, multi_label: bool) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Raises:
        DataError: there are no rows, fewer than two labels, or a label is too rare to be split.
    """
    rows = _collect(batches, settings)
    if not (rows.why < 0).any():
        raise DataError("snapshot: no valid examples in any batch; look at quarantined_examples for the reasons")
    rows.split[rows.why == _WHY["merged"]] = -1
    is_old = _is_old_delivery(rows, batches)
    rows.stands_in = _stands_in(rows, batches, np.flatnonzero(is_old))
    by_file = _late_by_file(rows, batches, is_old & ~rows.stands_in & rows.kept)
    rows.drop(is_old & ~rows.stands_in, "superseded by a newer delivery of their file")
    versions = _Versions.of(rows)
    order, reused = _order_check(rows, by_file, versions), _reused_check(rows, versions)
    rows.drop(versions.is_old(len(rows.split)), "superseded by a newer delivery of their id")
    _drop_conflicts(rows, task, multi_label)
    _drop_copies(rows)
    _drop_once_held_out(rows)
    _find_stored(rows, task)
    labels = _labels(rows.table, task, multi_label)
    _require_labels(rows, labels, settings, at_least=2 if task == "classification" and not multi_label else 1)
    _drop_overlaps(rows, batches)
    # Before the cap, since which rows of a group it keeps changes as the group grows: what is near to any of them never trains.
    _drop_near_duplicates(rows, batches, settings, seed)
    _cap_heldout(rows, settings, seed)
    _subsample(rows, TRAIN, settings.max_train_rows, seed)
    _subsample(rows, VALIDATION, settings.max_validation_rows, seed)
    kept = labels.of(rows.kept)
    present = [labels.names[n] for n in np.unique(kept.code).tolist()]
    _require_every_label(rows, kept)
    index, places = _index(rows, sorted(batches), task, multi_label)
    statistics = label_statistics(kept, rows.split, rows.group)
    metadata = _metadata(rows, kept, present, statistics, len(batches))
    return Frozen(index, places, present, metadata, [*_checks(rows, statistics, settings), reused], order)


def _collect(batches: Mapping[str, BatchRows], settings: SnapshotSettings) -> _Rows:
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
    sizes = [len(b.rows) for b in ordered]
    examples, others = sum(sizes), len(table) - sum(sizes)
    place = np.concatenate([np.zeros(0), *(b.places for b in ordered), *(part["place"].to_numpy() for part in left_out)])
    tier = np.where(place < settings.test_share, TEST, np.where(place < settings.test_share + settings.validation_share, VALIDATION, TRAIN))
    absent = np.full(others, -1)
    sizes_left_out = [0 if b.left_out is None else len(_sound(b.left_out)) for b in ordered]
    return _Rows(
        table=table,
        stored=np.concatenate([np.arange(examples), absent]),
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
        split=tier.copy(),
        why=np.concatenate([np.full(examples, -1), *([_WHY[why] for why in part["why"].to_pylist()] for part in left_out)]),
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


def _is_old_delivery(rows: _Rows, batches: Mapping[str, BatchRows]) -> np.ndarray:
    """Return the rows whose file was delivered again later."""
    deliveries = _deliveries(batches)
    number, sources = codes(rows.table["source"])
    last = np.array([max(deliveries.get(source, {0})) for source in sources.to_pylist()], np.int64)
    return rows.delivered < last[number] if len(last) else np.zeros(len(rows.split), bool)


def _deliveries(batches: Mapping[str, BatchRows]) -> dict[str, set[int]]:
    """Return the times at which each file was delivered."""
    found: dict[str, set[int]] = {}
    for batch in batches.values():
        for path, delivered in batch.files.items():
            found.setdefault(path, set()).add(delivered)
    return found


def _stands_in(rows: _Rows, batches: Mapping[str, BatchRows], old: np.ndarray) -> np.ndarray:
    """Return, of rows whose file was delivered again, those that are broken in each newer delivery: bool over all rows.

    A broken row stands for the row with its id; one that cannot be named (a line cut off, a file without ids) for the row at its
    number. Numbers shift: a row whose text stands elsewhere in a newer delivery has moved there, and is superseded.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.zeros(len(rows.split), bool)
    broken = _broken_ids(batches)
    if not broken or not len(old):
        return found
    table = rows.table.select(["id", "source", "row"]).take(pa.array(old))
    numbered = pc.binary_join_element_wise(table["source"], table["row"].cast(pa.string()), ":")
    names = pa.array(sorted(set().union(*broken.values())), pa.string())
    maybe = np.flatnonzero(pc.or_(pc.is_in(table["id"], names), pc.is_in(numbered, names)).to_numpy())
    last_seen = _last_seen(rows, old[maybe])
    deliveries = _deliveries(batches)
    some = (column.take(pa.array(maybe)).to_pylist() for column in (table["id"], numbered, table["source"]))
    for row, last, *called, source in zip(old[maybe].tolist(), last_seen.tolist(), *some, strict=True):
        delivered = int(rows.delivered[row])
        newer = (broken.get((source, at), set()) for at in deliveries[source] if at > delivered)
        found[row] = last <= delivered and all(not ids.isdisjoint(called) for ids in newer)
    return found


def _broken_ids(batches: Mapping[str, BatchRows]) -> dict[tuple[str, int], set[str]]:
    """Return the ids of the rows that are not sound, by file and time of delivery."""
    import pyarrow.compute as pc

    found: dict[tuple[str, int], set[str]] = {}
    for batch in batches.values():
        if batch.left_out is not None:
            broken = batch.left_out.filter(pc.equal(batch.left_out["why"], BROKEN))
            for id_, *delivery in zip(*(broken[name].to_pylist() for name in ("id", "source", "delivered_ns")), strict=True):
                found.setdefault((delivery[0], delivery[1]), set()).add(id_)
    return found


def _last_seen(rows: _Rows, chosen: np.ndarray) -> np.ndarray:
    """Return the time of the last delivery of each row's file that holds its text."""
    same = np.flatnonzero(np.isin(rows.text, rows.text[chosen]))
    number, _ = codes(rows.table["source"])
    pair = number * (rows.text.max(initial=0) + 1) + rows.text
    pairs, place = np.unique(pair[same], return_inverse=True)
    last = np.zeros(len(pairs), np.int64)
    np.maximum.at(last, place, rows.delivered[same])
    return last[np.searchsorted(pairs, pair[chosen])]


@dataclass(frozen=True)
class _Versions:
    """Sound rows whose id others have too, and for each the newest of its id: by time of delivery, then source, then row."""

    row: np.ndarray
    newest: np.ndarray
    #: Rank of their sources, sorted.
    source: np.ndarray
    newest_source: np.ndarray

    @classmethod
    def of(cls, rows: _Rows) -> _Versions:
        several = _several(rows, rows.id)
        if not len(several):
            return cls(several, several, several, several)
        source = _ranks(rows.table["source"].take(several))
        order = np.lexsort((rows.row[several], source, rows.delivered[several], rows.id[several]))
        row, source = several[order], source[order]
        last = np.flatnonzero(np.append(rows.id[row[1:]] != rows.id[row[:-1]], True))
        newest = last[np.searchsorted(last, np.arange(len(row)))]
        return cls(row, row[newest], source, source[newest])

    def is_old(self, num_rows: int) -> np.ndarray:
        """Return, of all rows, those whose id has a newer one."""
        found = np.zeros(num_rows, bool)
        found[self.row[self.row != self.newest]] = True
        return found


def _reused_check(rows: _Rows, versions: _Versions) -> CheckOutcome:
    """Return whether ids name documents: one that starts again in each file names as many as there are files."""
    differs = (versions.source != versions.newest_source) & (rows.text[versions.row] != rows.text[versions.newest])
    num_ids = np.count_nonzero(np.bincount(rows.id[rows.kept]))
    num_reused = len(np.unique(rows.id[versions.row[differs]]))
    passed = num_reused < _REUSED_IDS or num_reused <= _REUSED_SHARE * num_ids
    description = ""
    if not passed:
        # Of each pair of files every id counts once, however often its rows came: the pair named does not depend on the batches.
        found = np.stack([versions.source[differs], versions.newest_source[differs], rows.id[versions.row[differs]]])
        pairs, counts = np.unique(np.unique(found, axis=1)[:2], axis=1, return_counts=True)
        old, new = pairs[:, counts.argmax()]
        names = [rows.table["source"][int(versions.row[np.flatnonzero(versions.source == rank)[0]])].as_py() for rank in (old, new)]
        description = (
            f"{num_reused:,} of {num_ids:,} ids stand for different texts in two files, such as {names[0]} and {names[1]}, and only the "
            "newest counts; if these are different documents, name a field with unique ids in documents.id (rows without one are named "
            "file:row); if they are corrections, nothing is amiss"
        )
    return CheckOutcome(
        name="ids_name_one_document", passed=passed, severity="warn", description=description, metadata={"num_reused_ids": num_reused}
    )


def _late_by_file(rows: _Rows, batches: Mapping[str, BatchRows], is_old: np.ndarray) -> dict[int, tuple[str, int]]:
    """Return the rows that an older batch's delivery of their file supersedes, and that delivery."""
    if not is_old.any():
        return {}
    newest: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(sorted(batches)):
        for path, delivered in batches[name].files.items():
            if delivered > newest.get(path, (-1, -1))[0]:
                newest[path] = delivered, number
    code, sources = codes(rows.table["source"])
    batch = np.array([newest.get(source, (0, 0))[1] for source in sources.to_pylist()])
    late = np.flatnonzero(is_old & (rows.came_in > batch[code]))
    return {row: (source, newest[source][0]) for row in late.tolist() if (source := sources[int(code[row])].as_py())}


def _order_check(rows: _Rows, by_file: dict[int, tuple[str, int]], versions: _Versions) -> CheckOutcome:
    """Return whether what came later counts: a correction whose file has an older time (cp -p, rsync -t, unzip) does not."""
    beaten = (rows.came_in[versions.row] > rows.came_in[versions.newest]) & (rows.delivered[versions.row] < rows.delivered[versions.newest])
    late, beats = versions.row[beaten], versions.newest[beaten]
    late, beats = late[differs := _differ(rows, late, beats)], beats[differs]
    stands = rows.kept
    known = set(zip(rows.id[stands].tolist(), rows.text[stands].tolist(), strict=True)) if by_file else set()
    by_file = {row: by for row, by in by_file.items() if (int(rows.id[row]), int(rows.text[row])) not in known}
    num_late = len(late) + len(by_file)
    description = ""
    if num_late:
        row = int(late[0]) if len(late) else next(iter(by_file))
        place = rows.table["source"][row].as_py()
        by, at = (rows.table["source"][int(beats[0])].as_py(), int(rows.delivered[beats[0]])) if len(late) else by_file[row]
        description = (
            f"{num_late:,} rows of later batches lose to rows whose file has a newer time, such as {place} ({_shown_time(rows.delivered[row])}) "
            f"to {by} of an earlier batch ({_shown_time(at)}): a file's time says what is newest; if these are corrections, give their files "
            "a new time (touch)"
        )
    return CheckOutcome(
        name="later_rows_are_newer",
        passed=not num_late,
        severity="warn",
        description=description,
        metadata={"num_late_rows": num_late},
    )


def _differ(rows: _Rows, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which pairs of rows differ in their text or their target."""
    columns = [name for name in ("text_hash", "label", "labels", "spans") if name in rows.table.column_names]
    pairs = zip(*(rows.table.select(columns).take(each).to_pylist() for each in (one, other)), strict=True)
    return np.array([first != second for first, second in pairs], bool)


def _shown_time(delivered_ns: int) -> str:
    return datetime.fromtimestamp(int(delivered_ns) / 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """Return each value's rank among the column's distinct values, sorted."""
    import pyarrow.compute as pc

    number, values = codes(column)
    rank = np.empty(len(values), np.int64)
    rank[pc.sort_indices(values).to_numpy()] = np.arange(len(values))
    return rank[number]


def _drop_conflicts(rows: _Rows, task: str, multi_label: bool) -> None:
    """Leave out equal texts with different targets, all of them; a tie of annotators contradicts every row with its text."""
    several = np.union1d(_several(rows, rows.text), np.flatnonzero(rows.kept & (rows.why == _WHY["tied"])))
    if not len(several):
        return
    numbers: dict[str, int] = {}
    target = np.array([numbers.setdefault(t, len(numbers)) for t in targets(rows.table.take(several), task, multi_label)])
    pairs = np.unique(np.stack([rows.text[several], target]), axis=1)[0]
    num_targets = np.bincount(pairs, minlength=rows.text.max() + 1)
    num_targets[rows.text[several[rows.why[several] == _WHY["tied"]]]] = 2
    rows.drop(num_targets[rows.text] > 1, "equal text with another label")


def _several(rows: _Rows, code: np.ndarray) -> np.ndarray:
    """Return the rows still in whose code others that are still in have too."""
    kept = np.flatnonzero(rows.kept)
    return kept[np.bincount(code[kept], minlength=1)[code[kept]] > 1]


def targets(table: pa.Table, task: str, multi_label: bool) -> list[str]:
    """Return what the model is to learn of each row, as text that is equal where it is the same; nothing where it is the text itself."""
    if task == "token_classification":
        return ["|".join(sorted(f"{s['start']}:{s['end']}:{s['label']}" for s in spans or [])) for spans in table["spans"].to_pylist()]
    if task == "classification" and multi_label:
        return [json.dumps(sorted(set(labels or []))) for labels in table["labels"].to_pylist()]
    if task == "classification":
        return table["label"].to_pylist()
    return [""] * len(table)


def _drop_copies(rows: _Rows) -> None:
    """Keep of equal texts the one whose group has the smallest place; of one group the smallest id.

    A later copy can so move a text from train to test, never from test to train.
    """
    several = _several(rows, rows.text)
    if not len(several):
        return
    import pyarrow.compute as pc

    chosen = rows.table.select(["id", "group", "text_hash"]).take(several)
    group = _ranks(pc.coalesce(chosen["group"], chosen["text_hash"]))
    order = several[np.lexsort((_ranks(chosen["id"]), group, rows.place[several], rows.text[several]))]
    is_copy = np.zeros(len(rows.split), bool)
    is_copy[order[1:][rows.text[order[1:]] == rows.text[order[:-1]]]] = True
    rows.drop(is_copy, "duplicate text")


def _drop_once_held_out(rows: _Rows) -> None:
    """Leave out rows of which an older delivery of the id, or a copy of the text, belongs to a split that goes before theirs."""
    first = np.full(len(rows.split), TRAIN)
    for code in (rows.id, rows.text):
        least = np.full(code.max() + 1, TRAIN)
        np.minimum.at(least, code, rows.tier)
        first = np.minimum(first, least[code])
    rows.drop(first < rows.split, "held out before: an older delivery of their id or text was")


def _find_stored(rows: _Rows, task: str) -> None:
    """Find the text and the tokens of the rows that are no examples of their batch: those of an equal row, which may be an old one."""
    wanting = np.flatnonzero(rows.kept & (rows.stored < 0))
    if not len(wanting):
        return
    # Marks of tokens depend on the spans as well; else equal texts have equal tokens.
    alike = rows.text
    if task == "token_classification":
        same = np.flatnonzero(np.isin(rows.text, rows.text[wanting]))
        alike = np.full(len(rows.text), -1)
        numbers: dict[tuple[int, str], int] = {}
        for row, target in zip(same.tolist(), targets(rows.table.take(same), task, False), strict=True):
            alike[row] = numbers.setdefault((int(rows.text[row]), target), len(numbers))
    of = np.full(alike.max() + 1, -1)
    examples = np.flatnonzero((rows.why < 0) & (alike >= 0))
    of[alike[examples]] = examples
    rows.stored[wanting] = of[alike[wanting]]
    # Counted here, for no batch has an example with that text.
    missing = np.zeros(len(rows.split), bool)
    missing[wanting[rows.stored[wanting] < 0]] = True
    rows.drop(missing, _NOT_STORED)
    rows.dropped[_NOT_STORED] = int(missing.sum())


def _drop_overlaps(rows: _Rows, batches: Mapping[str, BatchRows]) -> None:
    found = [b.overlaps if b.overlaps is not None else np.zeros(len(b.rows), bool) for _, b in sorted(batches.items())]
    # A row without text has the number -1: the False at the end.
    overlaps = np.append(np.concatenate(found), False)
    rows.drop(overlaps[rows.stored] & (rows.split == TRAIN), "train rows that overlap an external evaluation set")


def _labels(table: pa.Table, task: str, multi_label: bool) -> _Labels:
    import pyarrow.compute as pc

    if task not in ("classification", "token_classification"):
        return _Labels(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    has_one = task == "classification" and not multi_label
    if has_one:
        row, values = np.arange(len(table)), table["label"]
    else:
        lists = table["labels" if task == "classification" else "spans"].combine_chunks()
        row, values = pc.list_parent_indices(lists).to_numpy().astype(np.int64), lists.flatten()
        values = pc.struct_field(values, "label") if task == "token_classification" else values
    number, names = codes(values)
    rank = np.empty(len(names), np.int64)
    order = pc.sort_indices(names)
    rank[order.to_numpy()] = np.arange(len(names))
    pairs = row * max(1, len(names)) + rank[number]
    pairs = pairs if has_one else np.unique(pairs)
    return _Labels(pairs // max(1, len(names)), pairs % max(1, len(names)), names.take(order).to_pylist())


def _require_labels(rows: _Rows, labels: _Labels, settings: SnapshotSettings, at_least: int) -> None:
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


def _drop_near_duplicates(rows: _Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int) -> None:
    ordered = [batches[name] for name in sorted(batches)]
    sketches = concatenate((batch.sketches() for batch in ordered), sum(len(batch.rows) for batch in ordered))
    # Kept rows have different texts, so each stored text is one row's.
    row_of = np.full(len(sketches), -1)
    row_of[rows.stored[rows.kept]] = np.flatnonzero(rows.kept)

    searches = {}
    for guarded, others in ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,))):
        reference, candidates = rows.stored[rows.split == guarded], rows.stored[np.isin(rows.split, others)]
        searches[guarded, others] = NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)
    # Read at once: what of a batch holds a text is decoded as a whole.
    needed = np.concatenate([search.rows for search in searches.values()])
    sets = shingle_sets(_read_texts(rows, batches, needed), seed)
    begin, dropped = 0, np.zeros(len(sketches), bool)
    for (guarded, others), search in searches.items():
        near, _ = search.run(sets.select(np.arange(begin, begin + len(search.rows))), left_out=dropped)
        begin += len(search.rows)
        dropped[near] = True
        is_near = np.zeros(len(rows.split), bool)
        is_near[row_of[near]] = True
        for other in others:
            rows.drop(is_near & (rows.split == other), f"{SPLITS[other]} rows near a {SPLITS[guarded]} row")


def _read_texts(rows: _Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of examples, in their order; each batch is read once."""
    import pyarrow as pa

    order = np.argsort(rows.batch[chosen], kind="stable")
    parts, names = [], sorted(batches)
    for number in np.unique(rows.batch[chosen]).tolist():
        mine = chosen[rows.batch[chosen] == number]
        texts = batches[names[number]].texts(rows.position[mine])
        parts += texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.chunked_array(parts, pa.string()).take(pa.array(back))


def _cap_heldout(rows: _Rows, settings: SnapshotSettings, seed: int) -> None:
    """Keep at most so many held-out rows of a group, drawn by hash."""
    held_out = np.flatnonzero((rows.split == TEST) | (rows.split == VALIDATION))
    sizes = np.bincount(rows.group[held_out], minlength=1)
    large = held_out[sizes[rows.group[held_out]] > settings.max_heldout_rows_per_group]
    if not len(large):
        return
    order = large[np.lexsort((_draw(rows, large, seed, "cap"), rows.group[large]))]
    begin = np.flatnonzero(np.concatenate([[True], rows.group[order[1:]] != rows.group[order[:-1]]]))
    number = np.arange(len(order)) - np.repeat(begin, np.diff(np.append(begin, len(order))))
    over = np.zeros(len(rows.split), bool)
    over[order[number >= settings.max_heldout_rows_per_group]] = True
    rows.drop(over, "held-out rows over the cap of their group")


def _subsample(rows: _Rows, split: int, most: int | None, seed: int) -> None:
    chosen = np.flatnonzero(rows.split == split)
    if most is None or len(chosen) <= most:
        return
    over = np.zeros(len(rows.split), bool)
    over[chosen[np.argsort(_draw(rows, chosen, seed, "subsample"), kind="stable")[most:]]] = True
    rows.drop(over, f"{SPLITS[split]} rows over snapshot.max_{SPLITS[split]}_rows")


def _draw(rows: _Rows, chosen: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    return np.array([unit_hash(seed, purpose, hash_) for hash_ in rows.table["text_hash"].take(chosen).to_pylist()])


def _require_every_label(rows: _Rows, labels: _Labels) -> None:
    known = np.unique(labels.code)
    for split in (TRAIN, VALIDATION, TEST):
        missing = np.setdiff1d(known, labels.code[rows.split[labels.row] == split])
        if len(missing):
            raise DataError(
                f"snapshot: no {SPLITS[split]} row with label `{labels.names[missing[0]]}` (its rows share too few groups or are "
                "near-duplicates); deliver more groups with it, or leave it out of examples.labels"
            )


def _index(rows: _Rows, names: list[str], task: str, multi_label: bool) -> tuple[pa.Table, pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = np.flatnonzero(rows.kept)
    table = rows.table.take(kept)
    split = pa.array(SPLITS).take(pa.array(rows.split[kept]))
    columns = {"split": split, "id": table["id"], "text_hash": table["text_hash"]}
    if task == "token_classification":
        columns["spans"] = table["spans"]
    elif task == "classification":
        columns |= {"labels": table["labels"]} if multi_label else {"label": table["label"]}
    columns["group"] = pc.coalesce(table["group"], table["text_hash"])
    index = pa.table(columns)
    order = pc.sort_indices(index, sort_keys=[("split", "ascending"), ("text_hash", "ascending"), ("id", "ascending")])
    stored = rows.stored[kept]
    batch = pa.array(names, pa.string()).take(pa.array(rows.batch[stored]))
    places = pa.table({"source": table["source"], "row": table["row"], "batch": batch, "position": rows.position[stored]})
    # One chunk a column: how the file is cut into pages must not depend on the batches either.
    return index.take(order).combine_chunks(), places.take(order).combine_chunks()


def label_statistics(labels: _Labels, split: np.ndarray, group: np.ndarray) -> list[dict[str, Any]]:
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
    """Return the test rows of the statistics of the labels that too few groups stand for, rarest first."""
    rare = [s for s in statistics if s["split"] == "test" and s["k_eff"] < COMMON_GROUPS]
    return sorted(rare, key=lambda s: (s["k_eff"], s["label"]))


def _metadata(rows: _Rows, labels: _Labels, present: list[str], statistics: list[dict[str, Any]], num_batches: int) -> dict[str, Any]:
    counts = {split: {s["label"]: s["rows"] for s in statistics if s["split"] == split} for split in ("train", "validation", "test")}
    return {
        "labels": present,
        "num_batches": num_batches,
        "num_train_rows": int((rows.split == TRAIN).sum()),
        "num_validation_rows": int((rows.split == VALIDATION).sum()),
        "num_test_rows": int((rows.split == TEST).sum()),
        "num_test_groups": len(np.unique(rows.group[rows.split == TEST])),
        "label_counts": counts,
        "label_statistics": statistics,
        "rare_labels": [s["label"] for s in rare_labels(statistics)],
        "left_out": {reason: count for reason, count in rows.dropped.items() if count},
        "num_older_rows_kept": int((rows.kept & rows.stands_in).sum()),
    }


def _checks(rows: _Rows, statistics: list[dict[str, Any]], settings: SnapshotSettings) -> list[CheckOutcome]:
    shared = _num_shared(rows)
    num_train = int((rows.split == TRAIN).sum())
    enough = num_train >= settings.min_train_rows
    plenty = num_train >= settings.recommended_train_rows
    return [
        CheckOutcome(
            name="splits_are_disjoint",
            passed=shared == 0,
            description=""
            if not shared
            else f"{shared:,} ids, texts or groups stand in two splits; give documents unique ids (documents.id)",
            metadata={"num_shared": shared},
        ),
        CheckOutcome(
            name="training_rows_suffice",
            passed=enough,
            description=""
            if enough
            else f"{num_train:,} training rows, fewer than snapshot.min_train_rows ({settings.min_train_rows:,}); deliver more",
            metadata={"num_train_rows": num_train},
        ),
        CheckOutcome(
            name="training_rows_are_plenty",
            passed=plenty,
            severity="warn",
            description=""
            if plenty
            else f"{num_train:,} training rows; full fine-tuning wants {settings.recommended_train_rows:,} and more, or it overfits",
            metadata={"num_train_rows": num_train},
        ),
        _labels_are_common(statistics),
    ]


def _num_shared(rows: _Rows) -> int:
    shared = 0
    for code in (rows.id, rows.text, rows.group):
        present = [np.bincount(code[rows.split == split], minlength=code.max() + 1) > 0 for split in range(len(SPLITS))]
        shared += sum(int((first & second).sum()) for first, second in combinations(present, 2))
    return shared


def _labels_are_common(statistics: list[dict[str, Any]]) -> CheckOutcome:
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
        else f"few groups stand for {named}{more} in the test split (k_eff under {COMMON_GROUPS}): their scores are hardly known; "
        "deliver more groups with them",
        metadata={"num_rare_labels": len(rare), **({} if least is None else {"least_k_eff": least})},
    )
