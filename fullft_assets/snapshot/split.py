"""Which rows of all batches count, and which of them train, validate and test.

The split is a keyed hash of the group (without groups, of the text): stable as data grows, and independent of the order of arrival
and of the batches that rows came in. Nothing is joined into clusters, because joining near-duplicates and groups percolates; instead,
rows near to a held-out row are left out, and counted. What was held out once is never trained on: a row is left out too where an
older delivery of its id, or a copy of its text, was held out.

It is decided over all sound rows ever delivered (`rows`). Those that their own batch left out (an older version of an id, a copy, one
of two that contradict each other) take part without their texts, so that it does not matter which rows shared a batch: where such a
row is to stand after all, it does with the text and the tokens of an equal row, which a batch keeps as a spare one if need be.
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
from fullft_assets.examples.agreement import Agreement
from fullft_assets.settings import SnapshotSettings
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
from fullft_assets.snapshot.rows import SPLITS, TEST, TRAIN, VALIDATION, BatchRows, Rows, collect, ranks, targets
from fullft_assets.snapshot.shingles import shingle_sets
from fullft_assets.store import CheckOutcome
from fullft_assets.store.hashing import unit_hash

if TYPE_CHECKING:
    import pyarrow as pa

_NOT_STORED = "no batch has their text and tokens: superseded in their own file, without a trained token, or erased with an equal row; deliver them again"

#: Texts up to which several things are done at a time: that takes the memory of each.
_SIDE_BY_SIDE = 1 << 18


@dataclass(frozen=True)
class Frozen:
    """A snapshot before it is written.

    Attributes:
        index: one row an example, sorted by split and text hash; it does not depend on the batches.
        places: where each row of the index came from, `source` and `row`, and where its text and tokens lie, `batch` and `position`.
        labels: the label order.
        metadata, checks: what is told of it.
        order: what is told of the order of its batches; it alone depends on their names.
        agreement: how far annotators agree whose answers came as rows of one id, over all batches; None where there are none.
    """

    index: pa.Table
    places: pa.Table
    labels: list[str]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    order: CheckOutcome
    agreement: Agreement | None = None


def freeze_batches(batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int, *, task: str, multi_label: bool) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Raises:
        DataError: there are no rows, fewer than two labels, or a label is too rare to be split.
    """
    rows = collect(batches, settings)
    if not rows.kept.any():
        raise DataError("snapshot: no valid examples in any batch; look at quarantined_examples for the reasons")
    order, reused, votes = drop_superseded(rows, batches, task, multi_label)
    _drop_conflicts(rows, votes.tied, task, multi_label)
    _drop_copies(rows)
    _drop_once_held_out(rows)
    _find_stored(rows, task)
    labels = labels_of(rows.table, task, multi_label)
    require_labels(rows, labels, settings, at_least=2 if task == "classification" and not multi_label else 1)
    _drop_overlaps(rows, batches)
    # Before the cap, since which rows of a group it keeps changes as the group grows: what is near to any of them never trains.
    _drop_near_duplicates(rows, batches, settings, seed)
    _cap_heldout(rows, settings, seed)
    _subsample(rows, TRAIN, settings.max_train_rows, seed)
    _subsample(rows, VALIDATION, settings.max_validation_rows, seed)
    kept = labels.of(rows.kept)
    present = [labels.names[n] for n in np.unique(kept.code).tolist()]
    require_every_label(rows, kept)
    index, places = _index(rows, sorted(batches), task, multi_label)
    statistics = label_statistics(kept, rows.split, rows.group)
    metadata = _metadata(rows, present, statistics, len(batches))
    return Frozen(index, places, present, metadata, [*_checks(rows, statistics, settings), reused], order, votes.agreement)


def _drop_conflicts(rows: Rows, tied: np.ndarray, task: str, multi_label: bool) -> None:
    """Leave out equal texts with different targets, all of them; a tie of annotators contradicts every row with its text."""
    is_undecided = np.zeros(rows.text.max(initial=0) + 1, bool)
    is_undecided[rows.text[tied]] = True
    rows.drop(tied, "annotators of their id disagree without a majority")
    rows.drop(is_undecided[rows.text], "equal text with another label")
    several = rows.several(rows.text)
    if not len(several):
        return
    numbers: dict[str, int] = {}
    target = np.array([numbers.setdefault(t, len(numbers)) for t in targets(rows.table.take(several), task, multi_label)])
    pairs = np.unique(np.stack([rows.text[several], target]), axis=1)[0]
    num_targets = np.bincount(pairs, minlength=rows.text.max() + 1)
    rows.drop(num_targets[rows.text] > 1, "equal text with another label")


def _drop_copies(rows: Rows) -> None:
    """Keep of equal texts the one whose group has the smallest place; of one group the smallest id.

    A later copy can so move a text from train to test, never from test to train.
    """
    several = rows.several(rows.text)
    if not len(several):
        return
    import pyarrow.compute as pc

    chosen = rows.table.select(["id", "group", "text_hash"]).take(several)
    group = ranks(pc.coalesce(chosen["group"], chosen["text_hash"]))
    order = several[np.lexsort((ranks(chosen["id"]), group, rows.place[several], rows.text[several]))]
    is_copy = np.zeros(len(rows.split), bool)
    is_copy[order[1:][rows.text[order[1:]] == rows.text[order[:-1]]]] = True
    rows.drop(is_copy, "duplicate text")


def _drop_once_held_out(rows: Rows) -> None:
    """Leave out rows of which an older delivery of the id, or a copy of the text, belongs to a split that goes before theirs."""
    first = np.full(len(rows.split), TRAIN)
    for code in (rows.id, rows.text):
        least = np.full(code.max() + 1, TRAIN)
        np.minimum.at(least, code, rows.tier)
        first = np.minimum(first, least[code])
    rows.drop(first < rows.split, "held out before: an older delivery of their id or text was")


def _find_stored(rows: Rows, task: str) -> None:
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
    stored = np.flatnonzero((rows.stored >= 0) & (alike >= 0))
    of[alike[stored]] = stored
    rows.stored[wanting] = of[alike[wanting]]
    # Counted here, for no batch stored that text.
    missing = np.zeros(len(rows.split), bool)
    missing[wanting[rows.stored[wanting] < 0]] = True
    rows.drop(missing, _NOT_STORED)
    rows.dropped[_NOT_STORED] = int(missing.sum())


def _drop_overlaps(rows: Rows, batches: Mapping[str, BatchRows]) -> None:
    found = [b.overlaps if b.overlaps is not None else np.zeros(len(b.rows), bool) for _, b in sorted(batches.items())]
    # A row without text has the number -1: the False at the end.
    overlaps = np.append(np.concatenate(found), False)
    rows.drop(overlaps[rows.stored] & (rows.split == TRAIN), "train rows that overlap an external evaluation set")


def _drop_near_duplicates(rows: Rows, batches: Mapping[str, BatchRows], settings: SnapshotSettings, seed: int) -> None:
    ordered = [batches[name] for name in sorted(batches)]
    sketches = concatenate((batch.sketches() for batch in ordered), sum(len(batch.rows) for batch in ordered))
    # Kept rows have different texts, so each stored text is one row's.
    row_of = np.full(len(sketches), -1)
    row_of[rows.stored[rows.kept]] = np.flatnonzero(rows.kept)

    def search_for(guarded: int, others: tuple[int, ...]) -> NearSearch:
        reference, candidates = rows.stored[rows.split == guarded], rows.stored[np.isin(rows.split, others)]
        return NearSearch(sketches, reference, candidates, settings.near_duplicate_similarity)

    sides = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))
    searches = dict(zip(sides, _each(lambda side: search_for(*side), sides, len(sketches)), strict=True))
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


def _read_texts(rows: Rows, batches: Mapping[str, BatchRows], chosen: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of stored rows, in their order; each batch is read once, several at a time."""
    import pyarrow as pa

    order, names = np.argsort(rows.batch[chosen], kind="stable"), sorted(batches)

    def read(number: int) -> list[pa.Array]:
        texts = batches[names[number]].texts(rows.position[chosen[rows.batch[chosen] == number]])
        return texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]

    parts = [part for found in _each(read, np.unique(rows.batch[chosen]).tolist(), len(rows.split)) for part in found]
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
    over = np.zeros(len(rows.split), bool)
    over[order[number >= settings.max_heldout_rows_per_group]] = True
    rows.drop(over, "held-out rows over the cap of their group")


def _subsample(rows: Rows, split: int, most: int | None, seed: int) -> None:
    chosen = np.flatnonzero(rows.split == split)
    if most is None or len(chosen) <= most:
        return
    over = np.zeros(len(rows.split), bool)
    over[chosen[np.argsort(_draw(rows, chosen, seed, "subsample"), kind="stable")[most:]]] = True
    rows.drop(over, f"{SPLITS[split]} rows over snapshot.max_{SPLITS[split]}_rows")


def _draw(rows: Rows, chosen: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    return np.array([unit_hash(seed, purpose, hash_) for hash_ in rows.table["text_hash"].take(chosen).to_pylist()])


def _index(rows: Rows, names: list[str], task: str, multi_label: bool) -> tuple[pa.Table, pa.Table]:
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
        "num_older_rows_kept": int((rows.kept & rows.stands_in).sum()),
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
        labels_are_common(statistics),
    ]


def _num_shared(rows: Rows) -> int:
    shared = 0
    for code in (rows.id, rows.text, rows.group):
        present = [np.bincount(code[rows.split == split], minlength=code.max() + 1) > 0 for split in range(len(SPLITS))]
        shared += sum(int((first & second).sum()) for first, second in combinations(present, 2))
    return shared
