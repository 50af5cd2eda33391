"""What a newer delivery supersedes: the rows of its file, and those with its ids; and whether what came later
is newer at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from fullft_assets.documents.aliases import alias
from fullft_assets.examples.identity import Versions, Votes, codes, superseded, twice_in_a_file
from fullft_assets.snapshot.all_rows import BatchRows, Rows
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import Target

IDS_NAME_ONE_DOCUMENT = CheckSpec(
    "ids_name_one_document",
    "Almost no id names different texts in two files: those that do are corrections.",
)
LATER_ROWS_ARE_NEWER = CheckSpec(
    "later_rows_are_newer", "No row of a later batch loses to an older batch's by the times of their files."
)
#: Ids that name two texts in two files are corrections of documents up to this share of all; a few of them up
#: to the second one.
_REUSED_SHARE = 0.01
_FEW_REUSED = 10
_FEW_REUSED_SHARE = 0.1
#: The share of the rows that corrections of documents hardly exceed.
_REPEATED_SHARE = 0.5


@dataclass(frozen=True)
class Superseded:
    """What became of the rows that share a file or an id with newer ones.

    Attributes:
        order: whether what came later counts; depends on the order of the batches.
        reused: whether ids name documents.
        num_twice_in_a_file: superseded rows whose newest version is in the same file.
        num_rows, num_older, most_sharing: rows before any was left out because of its id, those of them that
        have a newer row of their id,
            and the most that have one id.
        votes: of several annotators; rows of a tie are still in, since they contradict others with their
            text.
    """

    order: CheckOutcome
    reused: CheckOutcome
    num_twice_in_a_file: int
    num_rows: int
    num_older: int
    most_sharing: int
    votes: Votes

    def repeated_ids(self, field: str) -> str | None:
        """Return what is wrong with ids read from a field, and what to do, where most rows have that of a
        newer row; else None.
        """
        if self.num_older <= _REPEATED_SHARE * self.num_rows:
            return None
        return (
            f"{self.num_older:,} of {self.num_rows:,} rows have the `{field}` of a newer row, up to"
            f" {self.most_sharing:,} rows share one, and of each only the newest row counts; name a field"
            " with unique ids in documents.id, or one that no row has (rows are then named file:row)"
        )


def drop_superseded(rows: Rows, batches: Mapping[str, BatchRows], target: Target | None) -> Superseded:
    """Leave out rows of older deliveries of a file, but for those quarantined in each newer one; older rows
    of an id; outvoted answers.
    """
    is_old = _is_old_delivery(rows, batches)
    rows.kept_older = _kept_older(rows, batches, np.flatnonzero(is_old))
    is_old &= ~rows.kept_older
    by_file = _late_by_file(rows, batches, is_old)
    rows.drop(is_old, "superseded by a newer delivery of their file")
    versions = Versions.of(rows, rows.kept)
    votes = Votes.of(rows, versions, target)
    is_superseded = superseded(rows, versions, votes)
    num_rows, sharing = (
        int(np.count_nonzero(rows.kept)),
        np.bincount(rows.id[rows.kept], minlength=1)[rows.id[is_superseded]],
    )
    order, reused = _order_check(rows, by_file, versions, is_superseded), _reused_check(rows, versions)
    rows.drop(is_superseded, "superseded by a newer delivery of their id")
    rows.drop(votes.outvoted, "merged with the other annotations of their id")
    num_twice = len(twice_in_a_file(versions, is_superseded))
    return Superseded(order, reused, num_twice, num_rows, len(sharing), int(sharing.max(initial=0)), votes)


def _is_old_delivery(rows: Rows, batches: Mapping[str, BatchRows]) -> np.ndarray:
    """Return the rows whose file was delivered again later."""
    deliveries = _deliveries(batches)
    number, sources = codes(rows.table["source"])
    last = np.array([max(deliveries.get(source, {0})) for source in sources.to_pylist()], np.int64)
    return rows.delivered < last[number] if len(last) else np.zeros(len(rows), bool)


def _deliveries(batches: Mapping[str, BatchRows]) -> dict[str, set[int]]:
    """Return the times at which each file was delivered."""
    deliveries: dict[str, set[int]] = {}
    for batch in batches.values():
        for path, delivered in batch.files.items():
            deliveries.setdefault(path, set()).add(delivered)
    return deliveries


def _kept_older(rows: Rows, batches: Mapping[str, BatchRows], old: np.ndarray) -> np.ndarray:
    """Return, of rows whose file was delivered again, those that are quarantined in each newer delivery: mask
    over all rows.

    A quarantined row is the row with its id; one that cannot be named (a line cut off, a file without ids) is
    the row at its number. Numbers shift: a row whose text is elsewhere in a newer delivery has moved there,
    and is superseded.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_kept = np.zeros(len(rows), bool)
    quarantined = _quarantined_ids(batches)
    if not quarantined or not len(old):
        return is_kept
    table = rows.table.select(["id", "source", "row"]).take(pa.array(old))
    numbered = pc.binary_join_element_wise(table["source"], table["row"].cast(pa.string()), ":")
    names = pa.array(sorted(set().union(*quarantined.values())), pa.string())
    maybe = np.flatnonzero(pc.or_(pc.is_in(table["id"], names), pc.is_in(numbered, names)).to_numpy())
    last_seen = _last_seen(rows, old[maybe])
    deliveries = _deliveries(batches)
    some = (column.take(pa.array(maybe)).to_pylist() for column in (table["id"], numbered, table["source"]))
    for row, last, *called, source in zip(old[maybe].tolist(), last_seen.tolist(), *some, strict=True):
        delivered = int(rows.delivered[row])
        newer = (quarantined.get((source, at), set()) for at in deliveries[source] if at > delivered)
        is_kept[row] = last <= delivered and all(not ids.isdisjoint(called) for ids in newer)
    return is_kept


def _quarantined_ids(batches: Mapping[str, BatchRows]) -> dict[tuple[str, int], set[str]]:
    """Return the ids of the quarantined rows, by file and time of delivery."""
    ids: dict[tuple[str, int], set[str]] = {}
    for batch in batches.values():
        if batch.quarantined is not None:
            columns = (batch.quarantined[name].to_pylist() for name in ("id", "source", "delivered_ns"))
            for id_, source, delivered in zip(*columns, strict=True):
                ids.setdefault((source, delivered), set()).add(id_)
    return ids


def _last_seen(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """Return the time of the last delivery of each row's file that holds its text."""
    same = np.flatnonzero(np.isin(rows.text, rows.text[chosen]))
    number, _ = codes(rows.table["source"])
    pair = number * (rows.text.max(initial=0) + 1) + rows.text
    pairs, place = np.unique(pair[same], return_inverse=True)
    last = np.zeros(len(pairs), np.int64)
    np.maximum.at(last, place, rows.delivered[same])
    return last[np.searchsorted(pairs, pair[chosen])]


def _reused_check(rows: Rows, versions: Versions) -> CheckOutcome:
    """Return whether ids name documents: one that starts again in each file names as many documents as
    there are files.
    """
    differs = (versions.source != versions.newest_source) & (
        rows.text[versions.row] != rows.text[versions.newest]
    )
    num_ids = int(np.count_nonzero(np.bincount(rows.id[rows.kept])))
    num_reused = len(np.unique(rows.id[versions.row[differs]]))
    most = _FEW_REUSED_SHARE if num_reused < _FEW_REUSED else _REUSED_SHARE
    passed = num_reused <= most * num_ids
    description = ""
    if num_reused:  # said from the first one on
        # Of each pair of files every id counts once, however often its rows came: the pair named does not
        # depend on the batches.
        triples = np.stack(
            [versions.source[differs], versions.newest_source[differs], rows.id[versions.row[differs]]]
        )
        pairs, counts = np.unique(np.unique(triples, axis=1)[:2], axis=1, return_counts=True)
        old, new = pairs[:, counts.argmax()]
        of_pair = np.flatnonzero(differs & (versions.source == old) & (versions.newest_source == new))
        first = of_pair[rows.row[versions.row[of_pair]].argmin()]
        places = [
            f"{alias(rows.table['source'][row].as_py())}:{rows.row[row]}"
            for row in (int(versions.row[first]), int(versions.newest[first]))
        ]
        description = (
            f"{num_reused:,} of {num_ids:,} ids name different texts in two files, such as {places[0]} and"
            f" {places[1]}, and only the newest counts; if these are different documents, name a field with"
            " unique ids in documents.id (rows without one are named file:row); if they are corrections,"
            " nothing is wrong"
        )
    return CheckOutcome(
        name=IDS_NAME_ONE_DOCUMENT.name,
        passed=passed,
        severity="warn",
        description=description,
        metadata={"num_reused_ids": num_reused},
    )


def _late_by_file(
    rows: Rows, batches: Mapping[str, BatchRows], is_old: np.ndarray
) -> dict[int, tuple[str, int]]:
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
    late = np.flatnonzero(is_old & (rows.batch > batch[code]))
    return {
        row: (source, newest[source][0])
        for row in late.tolist()
        if (source := sources[int(code[row])].as_py())
    }


def _order_check(
    rows: Rows, by_file: dict[int, tuple[str, int]], versions: Versions, is_superseded: np.ndarray
) -> CheckOutcome:
    """Return whether what came later counts: a correction whose file has an older time (cp -p, rsync -t,
    unzip) does not.

    Of rows that vote the time does not matter.
    """
    beaten = (rows.batch[versions.row] > rows.batch[versions.newest]) & (
        rows.delivered[versions.row] < rows.delivered[versions.newest]
    )
    beaten &= is_superseded[versions.row]
    late, beats = versions.row[beaten], versions.newest[beaten]
    late, beats = late[differs := _differ(rows, late, beats)], beats[differs]
    is_in = rows.kept
    known = set(zip(rows.id[is_in].tolist(), rows.text[is_in].tolist(), strict=True)) if by_file else set()
    by_file = {
        row: by for row, by in by_file.items() if (int(rows.id[row]), int(rows.text[row])) not in known
    }
    num_late = len(late) + len(by_file)
    description = ""
    if num_late:
        row = int(late[0]) if len(late) else next(iter(by_file))
        place = rows.table["source"][row].as_py()
        by, at = (
            (rows.table["source"][int(beats[0])].as_py(), int(rows.delivered[beats[0]]))
            if len(late)
            else by_file[row]
        )
        description = (
            f"{num_late:,} rows of later batches lose to rows whose file has a newer time, such as"
            f" {alias(place)} ({_shown_time(rows.delivered[row])}) to {alias(by)} of an earlier batch"
            f" ({_shown_time(at)}): a file's time decides what is newest; if these are corrections, give"
            " their files a new time (touch)"
        )
    return CheckOutcome(
        name=LATER_ROWS_ARE_NEWER.name,
        passed=not num_late,
        severity="warn",
        description=description,
        metadata={"num_late_rows": num_late},
    )


def _differ(rows: Rows, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which pairs of rows differ in their text or their target."""
    columns = [name for name in ("text_hash", "label", "labels", "spans") if name in rows.table.column_names]
    pairs = zip(*(rows.table.select(columns).take(each).to_pylist() for each in (one, other)), strict=True)
    return np.array([first != second for first, second in pairs], bool)


def _shown_time(delivered_ns: int) -> str:
    return datetime.fromtimestamp(int(delivered_ns) / 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
