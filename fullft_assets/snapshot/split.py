"""Which rows of all batches count, and which of them train, validate and test.

The split is a keyed hash of the group (without groups, of the text): stable as data grows, and independent of the order of arrival
and of the batches that rows came in. Nothing is joined into clusters, because joining near-duplicates and groups percolates; instead,
rows near to a held-out row are left out, and counted. What was held out once is never trained on: a row is left out too where an
older delivery of its id, or a copy of its text, was held out.

It is decided over all valid rows ever delivered (`all_rows`), so that it does not matter which rows shared a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.errors import DataError
from fullft_assets.examples.agreement import Agreement, of_votes
from fullft_assets.examples.identity import Votes, contradicting, ranks, repeated, several
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows, collect
from fullft_assets.snapshot.deliveries import drop_superseded
from fullft_assets.snapshot.labels import (
    label_statistics,
    labels_are_common,
    labels_of,
    rare_labels,
    require_every_label,
    require_labels,
)
from fullft_assets.snapshot.minhash import concatenate
from fullft_assets.snapshot.near_duplicates import NearSearch
from fullft_assets.snapshot.shingles import shingle_sets
from fullft_assets.store import CheckOutcome
from fullft_assets.store.hashing import unit_hash
from fullft_assets.task import Target, Task

if TYPE_CHECKING:
    import pyarrow as pa

#: Texts up to which several things are done at a time: that takes the memory of each.
_SIDE_BY_SIDE = 1 << 18


@dataclass(frozen=True)
class Frozen:
    """A snapshot before it is written.

    Attributes:
        index: one row an example, sorted by split and text hash; it does not depend on the batches.
        places: where each row of the index is: `source` and `row` as delivered, `batch` and `position` among the examples.
        labels: the label order.
        metadata: counts of the rows, by split and label, and of those left out, by reason.
        checks: outcomes that depend on the rows alone.
        order: whether rows arrived in their order; it alone depends on the names of the batches.
        num_breaking: rows that break each rule on row identity (`rules.IDENTITY_RULES`), over all batches.
        agreement: how far annotators agree whose answers are rows of one id; None where there are none.
    """

    index: pa.Table
    places: pa.Table
    labels: list[str]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    order: CheckOutcome
    num_breaking: dict[str, int]
    agreement: Agreement | None = None


def freeze_batches(batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int, *, task: Task) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Raises:
        DataError: there are no rows, fewer than two labels, or a label is too rare to be split.
    """
    rows = collect(batches, settings)
    if not len(rows):
        raise DataError("snapshot: no valid examples in any batch; look at quarantined_examples for the reasons")
    old = drop_superseded(rows, batches, task.target)
    num_breaking = {"ids_are_unique": old.num_twice_in_a_file, **_drop_equal_texts(rows, old.votes, task.target)}
    _drop_once_held_out(rows)
    labels = labels_of(rows.table, task.target)
    require_labels(rows, labels, settings, at_least=task.min_labels)
    _drop_overlaps(rows, batches)
    # Before the cap, since which rows of a group it keeps changes as the group grows: what is near to any of them never trains.
    _drop_near_duplicates(rows, batches, settings, seed)
    _cap_heldout(rows, settings, seed)
    _subsample(rows, TRAIN, settings.max_train_rows, seed)
    _subsample(rows, VALIDATION, settings.max_validation_rows, seed)
    kept = labels.of(rows.kept)
    present = [labels.names[n] for n in np.unique(kept.code).tolist()]
    require_every_label(rows, kept)
    index, places = _index(rows, sorted(batches), task.target)
    statistics = label_statistics(kept, rows.split, rows.group)
    metadata = _metadata(rows, present, statistics, len(batches))
    agreement = of_votes(rows, old.votes, task.target) if task.compares_rows_of_an_id else None
    return Frozen(index, places, present, metadata, [*_checks(rows, statistics, settings), old.reused], old.order, num_breaking, agreement)


def _drop_equal_texts(rows: Rows, votes: Votes, target: Target | None) -> dict[str, int]:
    """Leave out equal texts with different targets, all of them, and all but one of those with one target; return the counts by rule.

    Of equal texts the one stays whose group has the smallest place; of one group the smallest id. So a later copy can move a text from
    train to test, never from test to train.
    """
    import pyarrow.compute as pc

    num_tied = rows.drop(votes.tied, "annotators of their id disagree without a majority")
    contradicts = contradicting(rows, rows.kept, votes.tied, target)
    num_contradicting = rows.drop(contradicts, "equal text with another label")
    group, id_ = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    same = several(rows.text, rows.kept)
    if len(same):
        chosen = rows.table.select(["id", "group", "text_hash"]).take(same)
        group[same], id_[same] = ranks(pc.coalesce(chosen["group"], chosen["text_hash"])), ranks(chosen["id"])
    num_copies = rows.drop(repeated(rows, rows.kept, rows.place, group, id_), "duplicate text")
    return {"texts_are_unique": num_copies, "equal_texts_have_equal_labels": num_tied + num_contradicting}


def _drop_once_held_out(rows: Rows) -> None:
    """Leave out rows of which an older delivery of the id, or a copy of the text, belongs to a split that goes before theirs."""
    first = np.full(len(rows), TRAIN)
    for code in (rows.id, rows.text):
        least = np.full(code.max() + 1, TRAIN)
        np.minimum.at(least, code, rows.tier)
        first = np.minimum(first, least[code])
    rows.drop(first < rows.split, "held out before: an older delivery of their id or text was")


def _drop_overlaps(rows: Rows, batches: Mapping[str, BatchRows]) -> None:
    found = [b.overlaps if b.overlaps is not None else np.zeros(len(b.rows), bool) for _, b in sorted(batches.items())]
    rows.drop(np.concatenate(found) & (rows.split == TRAIN), "train rows that overlap an external evaluation set")


def _drop_near_duplicates(rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int) -> None:
    ordered = [batches[name] for name in sorted(batches)]
    sketches = concatenate((batch.sketches() for batch in ordered), len(rows))

    def search_for(guarded: int, others: tuple[int, ...]) -> NearSearch:
        reference, candidates = np.flatnonzero(rows.split == guarded), np.flatnonzero(np.isin(rows.split, others))
        return NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)

    sides = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
    searches = dict(zip(sides, _each(lambda side: search_for(*side), sides, len(sketches)), strict=True))
    # Read at once: what of a batch holds a text is decoded as a whole.
    needed = np.concatenate([search.rows for search in searches.values()])
    sets = shingle_sets(_read_texts(rows, batches, needed), seed)
    begin, dropped = 0, np.zeros(len(rows), bool)
    for (guarded, others), search in searches.items():
        near, _ = search.run(sets.select(np.arange(begin, begin + len(search.rows))), left_out=dropped)
        begin += len(search.rows)
        dropped[near] = True
        is_near = np.zeros(len(rows), bool)
        is_near[near] = True
        for other in others:
            rows.drop(is_near & (rows.split == other), f"{SPLITS[other]} rows near a {SPLITS[guarded]} row")


def _read_texts(rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of rows, in their order; each batch is read once, several at a time."""
    import pyarrow as pa

    order, names = np.argsort(rows.batch[chosen], kind="stable"), sorted(batches)

    def read(number: int) -> list[pa.Array]:
        texts = batches[names[number]].texts(rows.position[chosen[rows.batch[chosen] == number]])
        return texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]

    parts = [part for found in _each(read, np.unique(rows.batch[chosen]).tolist(), len(rows)) for part in found]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.chunked_array(parts, pa.string()).take(pa.array(back))


def _each(do: Callable[[Any], Any], items: Sequence[Any], num_texts: int) -> list[Any]:
    """Return what is made of each item; of few texts side by side, since sorting and decoding go on without the interpreter's lock."""
    if num_texts > _SIDE_BY_SIDE:
        return list(map(do, items))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(do, items))


def _cap_heldout(rows: Rows, settings: SnapshotSettings, seed: int) -> None:
    """Keep at most so many held-out rows of a group, drawn by hash."""
    held_out = np.flatnonzero((rows.split == TEST) | (rows.split == VALIDATION))
    sizes = np.bincount(rows.group[held_out], minlength=1)
    large = held_out[sizes[rows.group[held_out]] > settings.max_heldout_rows_per_group]
    if not len(large):
        return
    order = large[np.lexsort((_draw(rows, large, seed, "cap"), rows.group[large]))]
    begin = np.flatnonzero(np.concatenate([[True], rows.group[order[1:]] != rows.group[order[:-1]]]))
    number = np.arange(len(order)) - np.repeat(begin, np.diff(np.append(begin, len(order))))
    over = np.zeros(len(rows), bool)
    over[order[number >= settings.max_heldout_rows_per_group]] = True
    rows.drop(over, "held-out rows over the cap of their group")


def _subsample(rows: Rows, split: int, most: int | None, seed: int) -> None:
    chosen = np.flatnonzero(rows.split == split)
    if most is None or len(chosen) <= most:
        return
    over = np.zeros(len(rows), bool)
    over[chosen[np.argsort(_draw(rows, chosen, seed, "subsample"), kind="stable")[most:]]] = True
    rows.drop(over, f"{SPLITS[split]} rows over snapshot.max_{SPLITS[split]}_rows")


def _draw(rows: Rows, chosen: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    return np.array([unit_hash(seed, purpose, hash_) for hash_ in rows.table["text_hash"].take(chosen).to_pylist()])


def _index(rows: Rows, names: list[str], target: Target | None) -> tuple[pa.Table, pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = np.flatnonzero(rows.kept)
    table = rows.table.take(kept)
    split = pa.array(SPLITS).take(pa.array(rows.split[kept]))
    columns = {"split": split, "id": table["id"], "text_hash": table["text_hash"]}
    if target is not None:
        columns[target] = table[target]
    columns["group"] = pc.coalesce(table["group"], table["text_hash"])
    index = pa.table(columns)
    order = pc.sort_indices(index, sort_keys=[("split", "ascending"), ("text_hash", "ascending"), ("id", "ascending")])
    batch = pa.array(names, pa.string()).take(pa.array(rows.batch[kept]))
    places = pa.table({"source": table["source"], "row": table["row"], "batch": batch, "position": rows.position[kept]})
    # One chunk a column: how the file is cut into pages must not depend on the batches either.
    return index.take(order).combine_chunks(), places.take(order).combine_chunks()


def _metadata(rows: Rows, present: list[str], statistics: list[dict[str, Any]], num_batches: int) -> dict[str, Any]:
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
        "num_older_rows_kept": int((rows.kept & rows.kept_older).sum()),
    }


def _checks(rows: Rows, statistics: list[dict[str, Any]], settings: SnapshotSettings) -> list[CheckOutcome]:
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
            else f"{shared:,} ids, texts or groups are in two splits; give documents unique ids (documents.id)",
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
        labels_are_common(statistics),
    ]


def _num_shared(rows: Rows) -> int:
    shared = 0
    for code in (rows.id, rows.text, rows.group):
        present = [np.bincount(code[rows.split == split], minlength=code.max() + 1) > 0 for split in range(len(SPLITS))]
        shared += sum(int((first & second).sum()) for first, second in combinations(present, 2))
    return shared
