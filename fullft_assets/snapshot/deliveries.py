"""Which rows a newer delivery supersedes: older rows of its files, and older rows with its ids. And whether
the rows of later batches are newer by the times of their files.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from fullft_assets.documents.names import alias
from fullft_assets.examples.identity import REUSED_IDS, Versions, Votes, codes, superseded
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
#: Reason for which older rows of an id are excluded.
SUPERSEDED = "superseded by a newer delivery of their id"


@dataclass(frozen=True)
class Superseded:
    """What became of the rows that share a file or an id with newer rows.

    Attributes:
        order: the check LATER_ROWS_ARE_NEWER; it depends on the order of the batches.
        reused: the check IDS_NAME_ONE_DOCUMENT.
        num_twice_in_a_file: superseded rows whose newest version is in the same file.
        twice: the first of them and its newest version, as file:row.
        votes: of several annotators; rows of a tie are still in, since they contradict others with their
            text.
    """

    order: CheckOutcome
    reused: CheckOutcome
    num_twice_in_a_file: int
    twice: list[str]
    votes: Votes


def drop_superseded(rows: Rows, batches: Mapping[str, BatchRows], target: Target | None) -> Superseded:
    """Exclude rows of older deliveries of a file, older rows of an id, and outvoted answers."""
    newest, newest_batch = _newest_deliveries(rows, batches)
    is_old = rows.delivered < newest
    late_by_file = np.flatnonzero(is_old & (rows.batch > newest_batch))
    rows.drop(is_old, "superseded by a newer delivery of their file")
    versions = Versions.of(rows, rows.kept)
    votes = Votes.of(rows, versions, target)
    is_superseded = superseded(rows, versions, votes)
    order = _order_check(rows, late_by_file, newest, versions, is_superseded)
    reused = _reused_check(rows, versions)
    is_twice = is_superseded[versions.row] & (versions.source == versions.newest_source)
    rows.drop(is_superseded, SUPERSEDED)
    rows.drop(votes.outvoted, "merged with the other annotations of their id")
    return Superseded(order, reused, int(is_twice.sum()), _first_places(rows, versions, is_twice), votes)


def _newest_deliveries(rows: Rows, batches: Mapping[str, BatchRows]) -> tuple[np.ndarray, np.ndarray]:
    """Return the time and the number of the batch of the newest delivery of each row's file: int64 [n]."""
    newest: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(sorted(batches)):
        for path, mtime_ns in batches[name].files.items():
            if mtime_ns > newest.get(path, (-1, -1))[0]:
                newest[path] = mtime_ns, number
    code, sources = codes(rows.table["source"])
    of_source = np.array([newest.get(source, (0, 0)) for source in sources.to_pylist()], np.int64)
    return of_source.reshape(-1, 2)[code, 0], of_source.reshape(-1, 2)[code, 1]


def _reused_check(rows: Rows, versions: Versions) -> CheckOutcome:
    """Return the check that an id names one document: ids that are counted anew in each file name a different
    document in each file.
    """
    differs = (versions.source != versions.newest_source) & (
        rows.text[versions.row] != rows.text[versions.newest]
    )
    num_ids = int(np.count_nonzero(np.bincount(rows.id[rows.kept])))
    num_reused = len(np.unique(rows.id[versions.row[differs]]))
    # Up to this share of all ids, ids that name different texts in two files count as corrections of
    # documents. Where they are few, the second share applies.
    max_share = 0.1 if num_reused < 10 else 0.01
    description = ""
    if num_reused:  # said from the first one on
        description = REUSED_IDS.format(num_reused, num_ids, *_first_places(rows, versions, differs))
    return CheckOutcome(
        name=IDS_NAME_ONE_DOCUMENT.name,
        passed=num_reused <= max_share * num_ids,
        severity="warn",
        description=description,
        metadata={"num_reused_ids": num_reused},
    )


def _first_places(rows: Rows, versions: Versions, mask: np.ndarray) -> list[str]:
    """Return the places of the first of some versions (mask) and of its id's newest row, as file:row."""
    positions = np.flatnonzero(mask)
    # The first by file and row: which one is named does not depend on the batches.
    first = positions[np.lexsort((rows.row[versions.row[positions]], versions.source[positions]))[:1]]
    return [
        f"{alias(rows.table['source'][row].as_py())}:{rows.row[row]}"
        for row in (*versions.row[first].tolist(), *versions.newest[first].tolist())
    ]


def _order_check(
    rows: Rows, late_by_file: np.ndarray, newest: np.ndarray, versions: Versions, is_superseded: np.ndarray
) -> CheckOutcome:
    """Return whether the rows of later batches count: a correction whose file has an older time (cp -p,
    rsync -t, unzip) does not count.

    The time of rows that vote does not matter.

    Args:
        late_by_file: rows that an older batch's delivery of their file supersedes.
        newest: time of the newest delivery of each row's file.
    """
    is_late = (rows.batch[versions.row] > rows.batch[versions.newest]) & (
        rows.delivered[versions.row] < rows.delivered[versions.newest]
    )
    is_late &= is_superseded[versions.row]
    is_late[is_late] = _differ(rows, versions.row[is_late], versions.newest[is_late])
    version = rows.id * (rows.text.max(initial=0) + 1) + rows.text
    by_file = late_by_file[~np.isin(version[late_by_file], version[rows.kept])]
    late = [*versions.row[is_late].tolist(), *by_file.tolist()]
    winner = [*versions.newest[is_late].tolist(), *by_file.tolist()]
    time = [*rows.delivered[versions.newest[is_late]].tolist(), *newest[by_file].tolist()]
    description = ""
    if late:
        late_file, winning_file = (alias(rows.table["source"][row].as_py()) for row in (late[0], winner[0]))
        description = (
            f"{len(late):,} rows of later batches lose to rows whose file has a newer time, such as"
            f" {late_file} ({_utc(int(rows.delivered[late[0]]))}) to {winning_file} of an earlier batch"
            f" ({_utc(time[0])}): a file's time decides what is newest; if these are corrections, give"
            " their files a new time (touch)"
        )
    return CheckOutcome(
        name=LATER_ROWS_ARE_NEWER.name,
        passed=not late,
        severity="warn",
        description=description,
        metadata={"num_late_rows": len(late)},
    )


def _differ(rows: Rows, losers: np.ndarray, winners: np.ndarray) -> np.ndarray:
    columns = [name for name in ("text_hash", "label", "labels", "spans") if name in rows.table.column_names]
    first, second = (rows.table.select(columns).take(side).to_pylist() for side in (losers, winners))
    return np.array([*map(operator.ne, first, second)], bool)


def _utc(delivered_ns: int) -> str:
    return datetime.fromtimestamp(delivered_ns / 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
