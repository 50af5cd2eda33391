"""Which rows of all batches count, and which of them train, validate and test.

The split is a keyed hash of the group (without groups, of the text), but for a few groups that are moved so
that each label is in every split (`group_splits`): stable as data grows, and independent of the batches that
rows came in. Nothing is joined into clusters, because joining near-duplicates and groups percolates; instead,
rows near to a held-out row are excluded, and counted. What was held out once is never trained on: a row is
excluded too where an older delivery of its id, or a copy of its text, was held out.

It is decided over all valid rows ever delivered (`all_rows`), so that it does not matter which rows shared a
batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.errors import DataError
from fullft_assets.examples.agreement import Agreement, of_votes
from fullft_assets.examples.identity import contradicting, ranks, repeated
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.all_rows import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    BatchRows,
    Rows,
    collect,
    distinct,
)
from fullft_assets.snapshot.deliveries import SUPERSEDED, Superseded, drop_superseded
from fullft_assets.snapshot.group_splits import GroupSplits, cap_held_out, subsample
from fullft_assets.snapshot.labels import (
    Labels,
    SetAside,
    label_statistics,
    labels_are_common,
    labels_of,
    rare_labels,
    shown_split,
)
from fullft_assets.snapshot.ledger import EMPTY, Ledger
from fullft_assets.snapshot.near_text.pairs import ABSENT, ALIKE, REFERENCE, UNLIKE, Texts
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import Target, Task

SPLITS_ARE_DISJOINT = CheckSpec(
    "splits_are_disjoint", "No id, text or group is in two splits.", blocking=True
)
TRAINING_ROWS_SUFFICE = CheckSpec(
    "training_rows_suffice", "There are enough training rows to go on.", blocking=True
)
#: A split, and those whose rows must not be near to it: first the one that goes before all.
_SIDES = ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,)))


@dataclass(frozen=True)
class Frozen:
    """A snapshot before it is written.

    Attributes:
        index: one row an example, sorted by split and text hash; it does not depend on the batches.
        places: where each row of the index is: `source` and `row` as delivered, `batch` and `position` among
            the examples.
        labels: the label order.
        metadata: counts of the rows, by split and label, and of excluded rows, by reason.
        checks: outcomes that depend on the rows alone.
        order: whether rows arrived in their order; it alone depends on the names of the batches.
        num_breaking: rows that break each rule on row identity (`rules.IDENTITY_RULES`), over all batches.
        ledger: what the next snapshot has to remember.
        agreement: how far annotators agree whose answers are rows of one id; None where there are none.
        places_left_out: the first rows that were excluded, as file:row, by reason.
        twice: see `Superseded`.
        roles: see `Rows`.
    """

    index: pa.Table
    places: pa.Table
    roles: np.ndarray
    labels: list[str]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    order: CheckOutcome
    num_breaking: dict[str, int]
    ledger: Ledger
    agreement: Agreement | None = None
    places_left_out: dict[str, list[str]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def freeze_batches(
    batches: Mapping[str, BatchRows],
    settings: SnapshotSettings,
    seed: int,
    *,
    task: Task,
    ledger: Ledger = EMPTY,
    id_field: str = "id",
    say: Callable[[str], None] = lambda line: None,
) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Args:
        batches: by name.
        settings: shares, caps and floors.
        seed: key of every hash.
        task: what is learned.
        ledger: what earlier snapshots held out.
        id_field: what ids were read from, for a message.
        say: reports what is done.

    Raises:
        DataError: there are no rows, too few labels, or nothing to train or test.
    """
    if not any(len(batch.rows) for batch in batches.values()):
        raise DataError(
            "snapshot: no valid examples in any batch; look at quarantined_examples for the reasons"
        )
    rows = collect(batches, settings)
    for number, name in enumerate(sorted(batches)):
        rows.drop(
            np.flatnonzero(rows.batch == number)[batches[name].untrained],
            "conversations without a trained token",
        )
    superseded = drop_superseded(rows, batches, task.target)
    try:
        return _freeze(rows, superseded, batches, settings, seed, task, ledger, say)
    except DataError as error:
        num_superseded = rows.dropped[SUPERSEDED]
        # The share of the rows that corrections of documents hardly exceed.
        if num_superseded <= 0.5 * len(rows):
            raise
        raise DataError(
            f"{error}. The reason may be the ids: {num_superseded:,} of {len(rows):,} rows have the"
            f" `{id_field}` of a newer row, and of each only the newest row counts; name a field with unique"
            " ids in documents.id, or one that no row has (rows are then named file:row)"
        ) from error


def _freeze(
    rows: Rows,
    superseded: Superseded,
    batches: Mapping[str, BatchRows],
    settings: SnapshotSettings,
    seed: int,
    task: Task,
    ledger: Ledger,
    say: Callable[[str], None],
) -> Frozen:
    num_contradicting = rows.drop(superseded.votes.tied, "annotators of their id disagree without a majority")
    num_contradicting += rows.drop(
        contradicting(rows, rows.kept, superseded.votes.tied, task.target), "equal text with another label"
    )
    if not rows.kept.any():
        raise DataError(
            "snapshot: no row is left of all batches: each has a newer delivery, or an equal text with"
            " another label"
        )
    aside = SetAside()
    all_labels = labels_of(rows.table, task.target)
    frequent_labels = aside.take_rare(rows, all_labels, settings, task)
    aside.require_some_left(rows, all_labels, settings, seed, task.min_labels)
    groups = GroupSplits.of(rows, ledger, settings)
    group_codes = distinct(rows.group[rows.kept])
    num_copies = _split(rows, batches, frequent_labels, groups, settings, say)
    cap_held_out(rows, frequent_labels.of(rows.kept), settings, seed)
    subsample(rows, frequent_labels.of(rows.kept), TRAIN, settings.max_train_rows, seed)
    subsample(rows, frequent_labels.of(rows.kept), VALIDATION, settings.max_validation_rows, seed)
    labels = aside.take_untrainable(rows, frequent_labels.of(rows.kept), frequent_labels, task)
    aside.require_some_left(rows, labels, settings, seed, task.min_labels)
    _require_splits(rows, len(group_codes), settings, seed)
    present = [labels.names[n] for n in np.unique(labels.code).tolist()]
    index, places = _index(rows, sorted(batches), task.target, labels if aside.reasons else None)
    statistics = label_statistics(labels, rows.split, rows.group)
    metadata = {
        **_metadata(rows, present, statistics, len(batches)),
        **aside.metadata(all_labels),
        "num_groups_moved": groups.num_moved(group_codes),
    }
    agreement = of_votes(rows, superseded.votes) if task.target == "label" else None
    num_breaking = {
        "ids_are_unique": superseded.num_twice_in_a_file,
        "texts_are_unique": num_copies,
        "equal_texts_have_equal_labels": num_contradicting,
    }
    label_checks = (
        [labels_are_common(statistics), aside.check(all_labels, settings)] if task.has_labels else []
    )
    return Frozen(
        index,
        places,
        rows.roles,
        present,
        metadata,
        [*_checks(rows, settings), *label_checks, superseded.reused],
        superseded.order,
        num_breaking,
        Ledger.join([ledger, groups.to_ledger(group_codes)]),
        agreement,
        rows.places_left_out(),
        superseded.twice,
    )


def _split(
    rows: Rows,
    batches: Mapping[str, BatchRows],
    labels: Labels,
    groups: GroupSplits,
    settings: SnapshotSettings,
    say: Callable[[str], None],
) -> int:
    """Give the rows the splits of their groups, and exclude the rows that leak from one split to another.

    Returns:
        How many copies were excluded.
    """
    is_in = rows.kept
    labels = labels.of(is_in)
    groups.serve(_with_every_side(rows, labels, groups), rows.group)
    overlaps = np.concatenate([batch.sketches("overlaps").to_numpy() for _, batch in sorted(batches.items())])
    rows.tier = groups.split[rows.group]
    rows.split = np.where(is_in, rows.tier, -1)
    num_copies = _drop_copies(rows)
    _drop_once_held_out(rows)
    rows.drop(overlaps & (rows.split == TRAIN), "train rows that overlap an external evaluation set")
    # Before the cap, since which rows of a group it keeps changes as the group grows: what is near to any of
    # them never trains.
    _drop_near_and_contained(rows, batches, settings, say)
    return num_copies


def _with_every_side(rows: Rows, labels: Labels, groups: GroupSplits) -> Labels:
    """Return the labels of the rows that are in. If a split would be empty, all of these rows get one more
    label.
    """
    positions = np.flatnonzero(rows.kept)
    if np.bincount(groups.split[rows.group[positions]], minlength=len(SPLITS)).all():
        return labels
    return Labels(
        np.concatenate([labels.row, positions]),
        np.concatenate([labels.code, np.full(len(positions), len(labels.names))]),
        [*labels.names, ""],
    )


def _drop_copies(rows: Rows) -> int:
    """Exclude all but one of the rows with one text, and return how many are excluded.

    The row stays whose group has the first split, among these the smallest hash of the group, and in one
    group the smallest id. So a later copy can move a text from train to test, never from test to train.
    """

    def keys(positions: np.ndarray) -> list[np.ndarray]:
        table = rows.table.select(["id", "group", "text_hash"]).take(positions)
        group, _ = ranks(pc.coalesce(table["group"].cast(pa.string()), table["text_hash"]))
        return [rows.tier[positions], rows.unit_hash[positions], group, ranks(table["id"])[0]]

    return rows.drop(repeated(rows, rows.kept, keys), "duplicate text")


def _drop_once_held_out(rows: Rows) -> None:
    """Exclude rows if an older delivery of their id, or a copy of their text, belongs to a split that goes
    before theirs.
    """
    first_split = np.full(len(rows), TRAIN)
    for code in (rows.id, rows.text):
        least_split = np.full(code.max() + 1, TRAIN)
        np.minimum.at(least_split, code, rows.tier)
        first_split = np.minimum(first_split, least_split[code])
    rows.drop(first_split < rows.split, "held out before: an older delivery of their id or text was")


def _drop_near_and_contained(
    rows: Rows,
    batches: Mapping[str, BatchRows],
    settings: SnapshotSettings,
    say: Callable[[str], None],
) -> None:
    """Exclude rows that are near to a row of a split that goes before theirs, contain its text, or are
    inside it.

    Args:
        rows: the rows of all batches.
        batches: where their sketches and texts are.
        settings: from which share on one text is inside another.
        say: reports each comparison.
    """
    texts = Texts(
        [batches[name].sketches for name in sorted(batches)],
        lambda numbers: _read_texts(rows, batches, numbers),
    )
    comparisons = [
        (texts.compare_near, "{} rows near a {} row"),
        (
            partial(texts.compare_contained, share=settings.contained_share),
            "{} rows that contain a {} row or are inside one",
        ),
    ]
    for ((compare, reason), side), last in zip(product(comparisons, _SIDES), rows.roles, strict=True):
        reference_split, candidate_splits = side
        roles = np.full(len(rows), ABSENT, np.int8)
        roles[rows.split == reference_split] = REFERENCE
        roles[np.isin(rows.split, candidate_splits)] = UNLIKE
        say("looking for" + reason.format("", SPLITS[reference_split]))
        last[:] = compare(roles, last)
        for candidate_split in candidate_splits:
            rows.drop(
                (last >= ALIKE) & (rows.split == candidate_split),
                reason.format(SPLITS[candidate_split], SPLITS[reference_split]),
            )


def _read_texts(rows: Rows, batches: Mapping[str, BatchRows], numbers: np.ndarray) -> pa.Array:
    names = sorted(batches)
    edges = np.searchsorted(rows.batch[numbers], np.arange(len(names) + 1)).tolist()
    chunks: list[pa.Array] = []
    for name, first, last in zip(names, edges, edges[1:], strict=False):
        if first < last:
            texts = batches[name].texts(rows.position[numbers[first:last]])
            chunks += texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return pa.chunked_array(chunks, pa.string()).combine_chunks()


def _require_splits(rows: Rows, num_groups: int, settings: SnapshotSettings, seed: int) -> None:
    splits = rows.split[rows.kept]
    for split in (TRAIN, TEST, VALIDATION):
        if not (splits == split).any():
            raise DataError(
                f"snapshot: no {SPLITS[split]} row, of {len(splits):,} rows that are left of {num_groups:,}"
                f" groups ({shown_split(splits, settings, seed)}); deliver more groups, or set examples.group"
                " to a field with more values, or to none"
            )


def _index(
    rows: Rows, names: list[str], target: Target | None, labels: Labels | None
) -> tuple[pa.Table, pa.Table]:
    """Return the index and the places. If labels were set aside, `labels` has the other labels of rows that
    may have several.
    """

    numbers = np.flatnonzero(rows.kept)
    order = pc.sort_indices(
        rows.table.select(["text_hash", "id"])
        .take(numbers)
        .append_column("split", pa.array(SPLITS).take(pa.array(rows.split[numbers]))),
        sort_keys=[("split", "ascending"), ("text_hash", "ascending"), ("id", "ascending")],
    ).to_numpy()
    numbers = numbers[order]
    # Column by column, as they are large.
    columns = {
        "split": pa.array(SPLITS).take(pa.array(rows.split[numbers])),
        "id": rows.table["id"].take(numbers),
        "text_hash": rows.table["text_hash"].take(numbers),
    }
    if target == "labels" and labels is not None:
        columns[target] = _lists(labels, np.sort(numbers)).take(pa.array(order))
    elif target is not None:
        columns[target] = rows.table[target].take(numbers)
    columns["group"] = pc.coalesce(rows.table["group"].take(numbers).cast(pa.string()), columns["text_hash"])
    places = pa.table(
        {
            "source": rows.table["source"].take(numbers).cast(pa.string()),
            "row": rows.row[numbers],
            "batch": pa.array(names, pa.string()).take(pa.array(rows.batch[numbers])),
            "position": rows.position[numbers],
        }
    )
    # One chunk a column: how the file is cut into pages must not depend on the batches either.
    return pa.table(columns).combine_chunks(), places.combine_chunks()


def _lists(labels: Labels, rows: np.ndarray) -> pa.Array:

    order = np.lexsort((labels.code, labels.row))
    names = pa.array(labels.names, pa.string()).take(pa.array(labels.code[order]))
    offsets = np.append(np.searchsorted(labels.row[order], rows), len(order))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names)


def _metadata(
    rows: Rows, present: list[str], statistics: list[dict[str, Any]], num_batches: int
) -> dict[str, Any]:
    counts = {
        split: {s["label"]: s["rows"] for s in statistics if s["split"] == split}
        for split in ("train", "validation", "test")
    }
    return {
        "labels": present,
        "num_batches": num_batches,
        "num_train_rows": int((rows.split == TRAIN).sum()),
        "num_validation_rows": int((rows.split == VALIDATION).sum()),
        "num_test_rows": int((rows.split == TEST).sum()),
        "num_test_groups": len(distinct(rows.group[rows.split == TEST])),
        "label_counts": counts,
        "label_statistics": statistics,
        "rare_labels": [s["label"] for s in rare_labels(statistics)],
        "left_out": {reason: count for reason, count in rows.dropped.items() if count},
    }


def _checks(rows: Rows, settings: SnapshotSettings) -> list[CheckOutcome]:
    num_shared = 0
    for code in (rows.id, rows.text, rows.group):
        present = [
            np.bincount(code[rows.split == split], minlength=code.max() + 1) > 0
            for split in range(len(SPLITS))
        ]
        num_shared += sum(int((first & second).sum()) for first, second in combinations(present, 2))
    num_train = int((rows.split == TRAIN).sum())
    enough = num_train >= settings.min_train_rows
    return [
        CheckOutcome(
            name=SPLITS_ARE_DISJOINT.name,
            passed=num_shared == 0,
            description=(
                ""
                if not num_shared
                else (
                    f"{num_shared:,} ids, texts or groups are in two splits; give documents unique ids"
                    " (documents.id)"
                )
            ),
            metadata={"num_shared": num_shared},
        ),
        CheckOutcome(
            name=TRAINING_ROWS_SUFFICE.name,
            passed=enough,
            description=(
                ""
                if enough
                else (
                    f"{num_train:,} training rows, fewer than snapshot.min_train_rows"
                    f" ({settings.min_train_rows:,}); deliver more"
                )
            ),
            metadata={"num_train_rows": num_train},
        ),
    ]
