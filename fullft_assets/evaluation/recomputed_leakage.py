"""What gives labels away in a stored evaluation, counted a second time by searching the texts. It shares no
code: see `verification`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from fullft_assets.evaluation.recomputation import Tree, drawn_rows, effective_groups, group_weights
from fullft_assets.snapshot import Split, near_duplicates

#: As the evaluation searches: rows of each side, rows that a piece is on, rows of a label that are compared.
_MOST_ROWS, _MIN_ROWS, _MOST_COMPARED = 10_000, 5, 2_000
_MIN_LABEL_GROUPS, _MIN_WORDS, _REPEATED = 5, 8, 0.9
_SAME_STAMP, _MIN_TOLD = 0.8, 10
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
)


@dataclass(frozen=True)
class Labelled:
    """Rows: texts and groups [n], and their labels as bool [n, labels]."""

    texts: Sequence[str]
    groups: Sequence[str]
    labels: np.ndarray

    @classmethod
    def of(cls, rows: Split, num_labels: int, seed: int) -> Labelled:
        """Return the rows that are searched: all of them, or the first that are drawn."""
        labels = rows.labels if rows.labels.ndim == 2 else rows.labels[:, None] == np.arange(num_labels)
        kept = (
            list(range(len(rows))) if len(rows) <= _MOST_ROWS else drawn_rows(rows.groups, seed)[:_MOST_ROWS]
        )
        return cls([rows.texts[row] for row in kept], [rows.groups[row] for row in kept], labels[kept])

    @cached_property
    def weights(self) -> np.ndarray:
        """How much each row counts [n]."""
        return group_weights(self.groups)

    @cached_property
    def pieces(self) -> list[set[str]]:
        """The pieces of each text [n]."""
        return [_pieces(text) for text in self.texts]


def leakage_fields(
    stored: Mapping[str, Any], train: Labelled, test: Labelled, names: Sequence[str], seed: int
) -> Tree:
    """Return precision, recall and groups of each marker on the test rows, and how many of them repeat
    training rows.
    """
    enough = [
        effective_groups(test.labels[:, label] * test.weights, test.groups) > _MIN_LABEL_GROUPS - 1e-9
        and train.labels[:, label].any()
        for label in range(len(names))
    ]
    ours, theirs = ([_words(text) for text in rows.texts] for rows in (test, train))
    near = near_duplicates(
        [" ".join(words) for words in theirs], [" ".join(words) for words in ours], _REPEATED, seed
    )
    repeats = np.array([row in near and len(set(words)) >= _MIN_WORDS for row, words in enumerate(ours)])
    return {
        "num_labels": sum(enough),
        "markers": [_marker(each, train, test, names) for each in stored["markers"]],
        "num_repeated": int(repeats.sum()),
        "share_repeated": float(np.average(repeats, weights=test.weights)),
    }


def _marker(stored: Mapping[str, Any], train: Labelled, test: Labelled, names: Sequence[str]) -> Tree:
    label, kind, rule = stored["label"], stored["kind"], stored["rule"]
    true = test.labels[:, names.index(label)]
    given = np.array(
        [_has(kind, rule, text, pieces) for text, pieces in zip(test.texts, test.pieces, strict=True)]
    )
    right = test.weights * given * true
    return {
        "label": label,
        "kind": kind,
        "precision": float(right.sum() / test.weights[given].sum()) if given.any() else 0.0,
        "recall": float(right.sum() / test.weights[true].sum()),
        "effective_groups": effective_groups(right, test.groups),
        "told_by_text": None
        if stored["told_by_text"] is None
        else _told_by_text(names.index(label), rule, train, test),
    }


def _has(kind: str, rule: str, text: str, pieces: set[str]) -> bool:
    if kind == "length":
        limit = int(re.sub(r"\D", "", rule))
        return len(text) <= limit if rule.startswith("at most") else len(text) > limit
    if kind == "name":
        # As words alone, so that signs between them do not count.
        name, words = (
            " ".join(["", *re.findall(r"[^\W_]+", part), ""]) for part in (rule.casefold(), text.casefold())
        )
        return name in words
    return rule in pieces


def _told_by_text(label: int, rule: str, train: Labelled, test: Labelled) -> float:
    """Return the area under the ROC curve with which the other pieces of a label's texts tell whether they
    have the marker.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    rows = [
        (side, row)
        for side in (train, test)
        for row in np.flatnonzero(side.labels[:, label])[:_MOST_COMPARED].tolist()
    ]
    has = np.array([rule in side.pieces[row] for side, row in rows])
    groups = [side.groups[row] for side, row in rows]
    if min(has.sum(), (~has).sum()) < _MIN_TOLD or len(set(groups)) < _MIN_TOLD:
        return 0.5
    of_train = Counter(piece for pieces in train.pieces for piece in pieces)
    here = Counter(piece for side, row in rows for piece in side.pieces[row])
    together = Counter(
        piece
        for (side, row), marked in zip(rows, has.tolist(), strict=True)
        if marked
        for piece in side.pieces[row]
    )
    common = sorted(piece for piece, count in of_train.items() if count >= _MIN_ROWS)
    kept = [
        piece
        for piece in common
        if together[piece] / (here[piece] + has.sum() - together[piece]) < _SAME_STAMP
    ]
    place = {piece: column for column, piece in enumerate(kept)}
    columns = [sorted(place[piece] for piece in side.pieces[row] if piece in place) for side, row in rows]
    ends = np.cumsum([0, *map(len, columns)])
    table = sparse.csr_matrix(
        (np.ones(ends[-1]), np.concatenate([np.array(each, int) for each in columns]), ends),
        (len(rows), len(kept)),
    )
    lengths = np.log1p(np.diff(ends))[:, None]
    features: Any = sparse.hstack([table, (lengths - lengths.mean()) / (lengths.std() or 1.0)]).tocsr()
    scores = np.full(len(rows), np.nan)
    for fit, held_out in StratifiedGroupKFold(3).split(features, has, groups):
        if len(set(has[fit].tolist())) == 2:
            scores[held_out] = (
                LogisticRegression(C=0.1, max_iter=200)
                .fit(features[fit], has[fit])
                .decision_function(features[held_out])
            )
    known = np.isfinite(scores)
    return float(roc_auc_score(has[known], scores[known]))


def _pieces(text: str) -> set[str]:
    """Return the runs of letters, digits and signs, white space that is more than one space, and pairs of
    letters without spaces.
    """
    folded, found = text.casefold(), set()
    for kind, run in groupby(folded, _kind_of):
        characters = "".join(run)
        if kind == "space":
            found.update(re.findall(r" {2,}|[^ ]", characters))
        else:
            found.add(characters)
    for is_unspaced, run in groupby(folded, _is_unspaced):
        characters = "".join(run)
        if is_unspaced:
            found.update(one + other for one, other in zip(characters, characters[1:], strict=False))
    return found


def _words(text: str) -> list[str]:
    return ["".join(run) for kind, run in groupby(text.casefold(), _kind_of) if kind == "letter"]


def _kind_of(character: str) -> str:
    if character == "_":
        return "_"
    if character.isdecimal():
        return "digit"
    return "letter" if character.isalnum() else "space" if character.isspace() else "sign"


def _is_unspaced(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _UNSPACED)
