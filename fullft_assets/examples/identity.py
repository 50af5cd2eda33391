"""Which of several rows with one id or one text counts, whatever order, files and batches they came in.

The snapshot decides by this over all batches. A batch sets no row aside for it: it only counts what it sees
among its own rows.

Of one id the newest row counts; rows of several annotators on one text are one vote each, and the majority's
answer counts (without a majority none does). Equal texts with different targets all go; of equal texts with
one target one stays.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.task import Target

#: Columns of the examples that decide; `label`, `labels` and `spans` where the task has them.
COLUMNS = (
    "id",
    "text_hash",
    "label",
    "labels",
    "spans",
    "group",
    "annotator",
    "source",
    "row",
    "delivered_ns",
)
#: What is said of ids that rows with different texts share: how many ids, of how many, and two places.
REUSED_IDS = (
    "{:,} of {:,} ids name different texts in two files, such as {} and {}, and only the newest counts; if"
    " these are different documents, name a field with unique ids in documents.id (rows without one are named"
    " file:row); if they are corrections, nothing is wrong"
)
#: The same of rows of one file.
IDS_TWICE_IN_A_FILE = (
    "{:,} of {:,} ids name different texts in one file, such as {} and {}, and only the last one counts; give"
    " each document an id of its own"
)


@dataclass
class IdentityRows:
    """Valid rows as columns of numbers: no Python object a row, so that a million rows take seconds.

    Attributes:
        table: the rows with COLUMNS.
        id, text: int64 [n], codes of the ids and of the texts' hashes.
        row: int64 [n], number of each row in its file.
        delivered: int64 [n], time of delivery of its file in ns.
    """

    table: pa.Table
    id: np.ndarray
    text: np.ndarray
    row: np.ndarray
    delivered: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "IdentityRows":
        """Return the rows of a table with COLUMNS."""
        return cls(
            table,
            codes(table["id"])[0],
            codes(table["text_hash"])[0],
            table["row"].to_numpy(),
            table["delivered_ns"].to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.id)


def codes(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return a column's values as int64 codes, and the distinct values that they number."""

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoding = values.cast(pa.large_string()).dictionary_encode()
    return encoding.indices.to_numpy().astype(np.int64), encoding.dictionary


def ranks(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return a column's values as int64 ranks among its distinct values, and these values, sorted."""

    number, values = codes(column)
    order = pc.sort_indices(values).to_numpy()
    return np.argsort(order)[number], values.take(order)


def targets(table: pa.Table, target: Target | None) -> list[str]:
    """Return the target of each row (what the model is to learn) as a text; equal targets have equal texts.
    It is empty if the target is the row's text itself.
    """
    if target == "spans":
        spans = (
            sorted(row or [], key=lambda s: (s["start"], s["end"], s["label"]))
            for row in table["spans"].to_pylist()
        )
        return [json.dumps(row, ensure_ascii=False) for row in spans]
    if target == "labels":
        return [json.dumps(sorted(set(row or [])), ensure_ascii=False) for row in table["labels"].to_pylist()]
    return table["label"].to_pylist() if target == "label" else [""] * len(table)


def several(code: np.ndarray, is_compared: np.ndarray) -> np.ndarray:
    """Return the positions of the compared rows (mask) whose code other compared rows have too."""
    rows = np.flatnonzero(is_compared)
    return rows[np.bincount(code[rows], minlength=1)[code[rows]] > 1]


@dataclass(frozen=True)
class Versions:
    """Rows whose id others have too, by id and within it from the oldest to the newest: by time of delivery,
    then source, then row.

    Attributes:
        row: int64 [m], positions of the rows.
        newest: int64 [m], position of the newest row of each one's id.
        source, newest_source: int64 [m], ranks of their sources, sorted.
    """

    row: np.ndarray
    newest: np.ndarray
    source: np.ndarray
    newest_source: np.ndarray

    @classmethod
    def of(cls, rows: IdentityRows, is_compared: np.ndarray) -> "Versions":
        """Return the versions among the compared rows (mask)."""
        same = several(rows.id, is_compared)
        source, _ = ranks(rows.table["source"].take(same))
        order = np.lexsort((rows.row[same], source, rows.delivered[same], rows.id[same]))
        row = same[order]
        last = np.flatnonzero(np.append(rows.id[row[1:]] != rows.id[row[:-1]], True))
        newest = order[last[np.searchsorted(last, np.arange(len(row)))]]
        return cls(row, same[newest], source[order], source[newest])


@dataclass(frozen=True)
class Votes:
    """Answers of several annotators on one document. Of the votes on an id one row counts and the other rows
    are outvoted, or all are tied.

    Attributes:
        voters: int64 [v], positions of the rows that vote: of each annotator of an id the last one.
        items: int64 [v], position of the newest row of each one's id.
        answers: their targets (see `targets`).
        outvoted, tied: positions of rows.
    """

    voters: np.ndarray
    items: np.ndarray
    answers: list[str]
    outvoted: np.ndarray
    tied: np.ndarray

    @classmethod
    def of(cls, rows: IdentityRows, versions: Versions, target: Target | None) -> "Votes":
        """Count the votes. A row votes if it and its id's newest row have an annotator and the same text."""
        positions = _voters(rows, versions)
        if not len(voters := versions.row[positions]):
            return cls(voters, voters, [], voters, voters)
        _, id_ = np.unique(rows.id[voters], return_inverse=True)
        answers = targets(rows.table.take(voters), target)
        answer, names = codes(pa.array(answers))
        pairs, pair, counts = np.unique(id_ * len(names) + answer, return_inverse=True, return_counts=True)
        id_of_pair = pairs // len(names)
        max_counts = np.zeros(id_.max() + 1, np.int64)
        np.maximum.at(max_counts, id_of_pair, counts)
        is_leading = counts == max_counts[id_of_pair]
        is_tied = np.bincount(id_of_pair[is_leading])[id_] > 1
        # Of the rows with the majority's answer the newest counts: assigned in their order, the last one
        # stays.
        elected_votes = np.zeros(len(max_counts), np.int64)
        majority_votes = np.flatnonzero(is_leading[pair])
        elected_votes[id_[majority_votes]] = majority_votes
        is_outvoted = ~is_tied & (np.arange(len(voters)) != elected_votes[id_])
        return cls(voters, versions.newest[positions], answers, voters[is_outvoted], voters[is_tied])


def _voters(rows: IdentityRows, versions: Versions) -> np.ndarray:
    """Return the positions in `versions` of the rows that vote: of each annotator of an id the last row."""
    if not len(row := versions.row) or "annotator" not in rows.table.column_names:
        return np.zeros(0, np.int64)
    annotator = rows.table["annotator"].take(row)
    has_annotator = np.zeros(len(rows), bool)
    has_annotator[row] = annotator.is_valid().to_numpy()
    number, names = codes(annotator.cast(pa.string()).fill_null(""))
    may = np.flatnonzero(
        has_annotator[row] & has_annotator[versions.newest] & (rows.text[row] == rows.text[versions.newest])
    )
    # The last of each pair of id and annotator is the first one from behind.
    _, from_behind = np.unique((rows.id[row] * len(names) + number)[may][::-1], return_index=True)
    last = np.sort(may[len(may) - 1 - from_behind])
    ids = rows.id[row[last]]
    return last[np.bincount(ids, minlength=1)[ids] > 1]


def superseded(rows: IdentityRows, versions: Versions, votes: Votes) -> np.ndarray:
    """Return the mask [n] of the rows that do not vote and whose id has a newer row."""
    is_superseded = np.zeros(len(rows), bool)
    is_superseded[versions.row[versions.row != versions.newest]] = True
    is_superseded[votes.voters] = False
    return is_superseded


def contradicting(
    rows: IdentityRows, is_compared: np.ndarray, tied: np.ndarray, target: Target | None
) -> np.ndarray:
    """Return the compared rows whose text has several targets: mask [n]. Tied annotators contradict every row
    with their text.
    """
    is_undecided = np.zeros(rows.text.max(initial=0) + 1, bool)
    is_undecided[rows.text[tied]] = True
    if len(same := several(rows.text, is_compared & ~is_undecided[rows.text])):
        answer, _ = codes(pa.array(targets(rows.table.take(same), target)))
        text_of_pair = np.unique(np.stack([rows.text[same], answer]), axis=1)[0]
        is_undecided |= np.bincount(text_of_pair, minlength=len(is_undecided)) > 1
    return is_compared & is_undecided[rows.text]


def repeated(
    rows: IdentityRows,
    is_compared: np.ndarray,
    keys: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda positions: (),
) -> np.ndarray:
    """Return the compared rows that have an equal text before them: mask [n].

    Args:
        rows, is_compared: the rows, and which of them (mask) to compare.
        keys: returns, of positions of rows, the values that they are ordered by, the first key first. Rows
            with equal keys keep their own order.
    """
    is_repeated = np.zeros(len(rows), bool)
    same = several(rows.text, is_compared)
    order = same[np.lexsort((*reversed(keys(same)), rows.text[same]))]
    is_repeated[order[1:][rows.text[order[1:]] == rows.text[order[:-1]]]] = True
    return is_repeated
