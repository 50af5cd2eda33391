"""What several annotators said of one document, over all batches: the majority's answer stands, and without one none does.

The same vote that a batch holds among its own rows (`examples.identity`), held again over all of them: so it does not matter which
annotators' rows came together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from fullft_assets.examples.agreement import Agreement, measure, measure_sets
from fullft_assets.snapshot.rows import Rows, codes, targets


@dataclass(frozen=True)
class Votes:
    """Rows that vote on their id, as masks over all rows: of an id's votes one row stands, the others are outvoted, or all are tied.

    `agreement`: how far those who vote agree, in a classification; None where nobody votes.
    """

    voting: np.ndarray
    outvoted: np.ndarray
    tied: np.ndarray
    agreement: Agreement | None = None


def count_votes(rows: Rows, row: np.ndarray, newest: np.ndarray, task: str, multi_label: bool) -> Votes:
    """Count the votes of the rows that have the text of their id's newest one and, as it has, an annotator: of each annotator the last.

    Args:
        rows: all rows.
        row: those whose id others have too, by id and within it from the oldest to the newest.
        newest: the newest one of each one's id.
        task: what an example is.
        multi_label: the target is in `labels`, not in `label`.
    """
    votes = Votes(*(np.zeros(len(rows.split), bool) for _ in range(3)))
    voters = _voters(rows, row, newest)
    if not len(voters):
        return votes
    votes.voting[voters] = True
    _, id_ = np.unique(rows.id[voters], return_inverse=True)
    numbers: dict[str, int] = {}
    said = targets(rows.table.take(voters), task, multi_label)
    target = np.array([numbers.setdefault(t, len(numbers)) for t in said])
    answers, answer, counts = np.unique(id_ * len(numbers) + target, return_inverse=True, return_counts=True)
    most = np.zeros(id_.max() + 1, np.int64)
    np.maximum.at(most, answers // len(numbers), counts)
    leads = counts == most[answers // len(numbers)]
    is_tied = np.bincount(answers[leads] // len(numbers))[id_] > 1
    votes.tied[voters[is_tied]] = True
    # Of those with the majority's answer the newest stands: assigned in their order, the last one stays.
    elected = np.zeros(len(most), np.int64)
    of_majority = np.flatnonzero(leads[answer])
    elected[id_[of_majority]] = of_majority
    votes.outvoted[voters[~is_tied & (np.arange(len(voters)) != elected[id_])]] = True
    return replace(votes, agreement=_agreement(rows, voters, said, multi_label)) if task == "classification" else votes


def _agreement(rows: Rows, voters: np.ndarray, said: list[str], multi_label: bool) -> Agreement | None:
    # Sorted: sums of floats must not depend on the order in which batches arrived.
    who = (rows.table[name].take(voters).to_pylist() for name in ("id", "annotator"))
    items, annotators, labels = (list(column) for column in zip(*sorted(zip(*who, said, strict=True)), strict=True))
    if multi_label:
        return measure_sets(items, annotators, [json.loads(each) for each in labels])
    return measure(items, annotators, labels)


def _voters(rows: Rows, row: np.ndarray, newest: np.ndarray) -> np.ndarray:
    if not len(row) or "annotator" not in rows.table.column_names:
        return np.zeros(0, np.int64)
    annotator = rows.table["annotator"].take(row)
    if annotator.null_count == len(annotator):
        return np.zeros(0, np.int64)
    known = annotator.is_valid().to_numpy()
    has_annotator = np.zeros(len(rows.split), bool)
    has_annotator[row] = known
    number, _ = codes(annotator.fill_null(""))
    may = np.flatnonzero(known & has_annotator[newest] & (rows.text[row] == rows.text[newest]))
    # The last of each pair of id and annotator is the first one from behind.
    _, from_behind = np.unique((rows.id[row] * (number.max() + 1) + number)[may][::-1], return_index=True)
    last = np.sort(may[len(may) - 1 - from_behind])
    voters = row[last]
    return voters[np.bincount(rows.id[voters], minlength=1)[rows.id[voters]] > 1]
