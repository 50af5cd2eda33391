"""What a newer delivery supersedes: the rows of its file, and those with its ids; and whether what came later is newer at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from fullft_assets.snapshot.rows import BROKEN, BatchRows, Rows, codes, ranks
from fullft_assets.snapshot.votes import Votes, count_votes
from fullft_assets.store import CheckOutcome

#: So many ids, and such a share of them, that stand for two texts in two files are no longer corrections of documents.
_REUSED_IDS, _REUSED_SHARE = 10, 0.01


def drop_superseded(rows: Rows, batches: Mapping[str, BatchRows], task: str, multi_label: bool) -> tuple[CheckOutcome, CheckOutcome, Votes]:
    """Leave out rows of older deliveries of a file, but for those that are broken in each newer one, and older rows of an id.

    What several annotators said of an id is put to the vote. Rows of a tie are still in: they contradict others with their text.

    Returns:
        Whether what came later counts, which depends on the order of the batches; whether ids name documents; and the votes.
    """
    is_old = _is_old_delivery(rows, batches)
    rows.stands_in = _stands_in(rows, batches, np.flatnonzero(is_old))
    by_file = _late_by_file(rows, batches, is_old & ~rows.stands_in & rows.kept)
    rows.drop(is_old & ~rows.stands_in, "superseded by a newer delivery of their file")
    versions = Versions.of(rows)
    votes = count_votes(rows, versions.row, versions.newest, task, multi_label)
    order, reused = _order_check(rows, by_file, versions, votes.voting), _reused_check(rows, versions)
    rows.drop(versions.is_old(len(rows.split)) & ~votes.voting, "superseded by a newer delivery of their id")
    rows.drop(votes.outvoted, "merged with the other annotations of their id")
    return order, reused, votes


def _is_old_delivery(rows: Rows, batches: Mapping[str, BatchRows]) -> np.ndarray:
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


def _stands_in(rows: Rows, batches: Mapping[str, BatchRows], old: np.ndarray) -> np.ndarray:
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


def _last_seen(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """Return the time of the last delivery of each row's file that holds its text."""
    same = np.flatnonzero(np.isin(rows.text, rows.text[chosen]))
    number, _ = codes(rows.table["source"])
    pair = number * (rows.text.max(initial=0) + 1) + rows.text
    pairs, place = np.unique(pair[same], return_inverse=True)
    last = np.zeros(len(pairs), np.int64)
    np.maximum.at(last, place, rows.delivered[same])
    return last[np.searchsorted(pairs, pair[chosen])]


@dataclass(frozen=True)
class Versions:
    """Sound rows whose id others have too, and for each the newest of its id: by time of delivery, then source, then row."""

    row: np.ndarray
    newest: np.ndarray
    #: Rank of their sources, sorted.
    source: np.ndarray
    newest_source: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Versions:
        """Return those among the rows that are still in."""
        several = rows.several(rows.id)
        if not len(several):
            return cls(several, several, several, several)
        source = ranks(rows.table["source"].take(several))
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


def _reused_check(rows: Rows, versions: Versions) -> CheckOutcome:
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


def _late_by_file(rows: Rows, batches: Mapping[str, BatchRows], is_old: np.ndarray) -> dict[int, tuple[str, int]]:
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


def _order_check(rows: Rows, by_file: dict[int, tuple[str, int]], versions: Versions, voting: np.ndarray) -> CheckOutcome:
    """Return whether what came later counts: a correction whose file has an older time (cp -p, rsync -t, unzip) does not.

    Of rows that vote the time does not matter.
    """
    beaten = (rows.came_in[versions.row] > rows.came_in[versions.newest]) & (rows.delivered[versions.row] < rows.delivered[versions.newest])
    beaten &= ~voting[versions.row]
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


def _differ(rows: Rows, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which pairs of rows differ in their text or their target."""
    columns = [name for name in ("text_hash", "label", "labels", "spans") if name in rows.table.column_names]
    pairs = zip(*(rows.table.select(columns).take(each).to_pylist() for each in (one, other)), strict=True)
    return np.array([first != second for first, second in pairs], bool)


def _shown_time(delivered_ns: int) -> str:
    return datetime.fromtimestamp(int(delivered_ns) / 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
