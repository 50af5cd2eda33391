"""What gives a label away before a text is read: one word, its length, the label's own name; and test rows
that repeat training rows.

A marker is chosen on training rows and counted on test rows. One that is enough alone is found whatever it
is. One that only some rows of the label have, and no others, is found where the rest of the text does not
tell which rows have it: a word of the topic goes with other words, a stamp does not (see
`benchmarks/leakage.py` for how often either is taken for the other).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT, measurable_labels
from fullft_assets.evaluation.counts import MIN_LABEL_GROUPS
from fullft_assets.evaluation.intervals import Record, effective_number
from fullft_assets.evaluation.resampling import number_groups
from fullft_assets.evaluation.rows import one_of_each_group_first
from fullft_assets.snapshot import near_duplicates

#: F1 of a rule that is enough alone, and precision of one that only some rows of a label have.
ENOUGH, EXCLUSIVE = 0.98, 0.98
#: Smallest share of a label's rows that such a marker, or the label's name, is on.
MIN_RECALL = 0.3
#: Above this area under the ROC curve the rest of a text tells whether it has the marker.
GOES_WITH_TEXT = 0.7
#: Too few rows of a label with or without a marker say nothing about what goes with it.
_MIN_TOLD = 10
#: Pieces that come and go with a marker are of one stamp.
_SAME_STAMP = 0.8
#: Least similarity of two texts that repeat each other, numbers and signs aside, for texts of so many
#: different words.
REPEATED, _MIN_WORDS = 0.9, 8
#: Share of the test groups that may repeat training rows.
MAX_REPEATED = 0.25
_MOST_ROWS, _MOST_COMPARED, _MIN_ROWS = 10_000, 2_000, 5
#: Markers of a label that are tried, those on the most rows first.
_MOST_TRIED = 5
#: Letters, digits or a run of symbols; white space where it is more than one space; scripts without spaces in
#: pairs of characters.
_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+|_+|[^\S ]|[ ]{2,}")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2,}"
)
_WORD = re.compile(r"[^\W\d_]+")


class Marker(Record):
    """What gives a label away, counted on the test rows.

    Attributes:
        kind: word, length or name (the label's own).
        rule: the word itself, or which lengths; a text of the data, so it stays in the store.
        told_by_text: area under the ROC curve with which the rest of the text tells whether a row of the
            label has it. None: not asked.
    """

    label: str
    kind: str
    rule: str
    precision: float
    recall: float
    effective_groups: float
    told_by_text: float | None = None


class Leakage(Record):
    """What was found.

    Attributes:
        num_labels: labels with enough test groups, which were looked at.
        num_repeated: test rows that repeat a training row, but for numbers and the order of the words.
        share_repeated: the share of the test groups that they are.
    """

    num_labels: int
    markers: list[Marker]
    num_repeated: int
    share_repeated: float

    @property
    def is_found(self) -> bool:
        """Whether a score on these rows says too much."""
        return bool(self.markers) or self.share_repeated > MAX_REPEATED


@dataclass(frozen=True)
class LabelledTexts:
    """Rows: texts and groups [n], and the labels that each has, bool [n, labels]."""

    texts: Sequence[str]
    labels: np.ndarray
    groups: Sequence[str]

    def draw(self, most: int, seed: int) -> LabelledTexts:
        """Return at most so many rows, one of each group first."""
        if len(self.texts) <= most:
            return self
        rows = one_of_each_group_first(self.groups, seed)[:most]
        return LabelledTexts(
            [self.texts[row] for row in rows], self.labels[rows], [self.groups[row] for row in rows]
        )

    @property
    def index(self) -> tuple[np.ndarray, int]:
        """The number of each row's group [n], and how many groups there are."""
        return number_groups(self.groups, len(self.texts))

    @property
    def weights(self) -> np.ndarray:
        """How much each row counts [n]."""
        index, num_groups = self.index
        return 1.0 / np.minimum(np.bincount(index, minlength=num_groups), MAX_GROUP_WEIGHT)[index]


def find_leakage(train: LabelledTexts, test: LabelledTexts, names: Sequence[str], seed: int) -> Leakage:
    """Look for markers of each label, and for test rows that repeat training rows."""
    train, test = train.draw(_MOST_ROWS, seed), test.draw(_MOST_ROWS, seed)
    index, num_groups = test.index
    measurable = np.flatnonzero(
        measurable_labels(test.labels, index, num_groups, test.weights) & train.labels.any(0)
    ).tolist()
    search = _MarkerSearch(train, test)
    markers = [found for label in measurable if (found := search.marker_of(label, names[label])) is not None]
    repeated = _repeats(train.texts, test.texts, seed)
    share = float(np.average(repeated, weights=test.weights))
    return Leakage(
        num_labels=len(measurable), markers=markers, num_repeated=int(repeated.sum()), share_repeated=share
    )


class _MarkerSearch:
    def __init__(self, train: LabelledTexts, test: LabelledTexts):
        from sklearn.feature_extraction.text import CountVectorizer

        self._train, self._test = train, test
        cut: Any = pieces
        vectorizer: Any = CountVectorizer(analyzer=cut, binary=True)
        found = vectorizer.fit_transform(train.texts).tocsc()
        common = np.flatnonzero(np.asarray(found.sum(0)).ravel() >= _MIN_ROWS)
        self._of_train, self._of_test = found[:, common], vectorizer.transform(test.texts).tocsc()[:, common]
        self._words: list[str] = vectorizer.get_feature_names_out()[common].tolist()
        self._lengths = [np.array([len(text) for text in rows.texts]) for rows in (train, test)]

    def marker_of(self, label: int, name: str) -> Marker | None:
        """Return what gives a label away; where there are several what gives away most of its rows."""
        found = [self._name(label, name), *self._word_markers(label, name), self._length(label, name)]
        return max(
            (each for each in found if each is not None),
            key=lambda each: each.recall * each.precision,
            default=None,
        )

    def _word_markers(self, label: int, name: str) -> list[Marker | None]:
        if not self._words:
            return []
        true, weights = self._train.labels[:, label], self._train.weights
        total = np.asarray(self._of_train.T @ weights).ravel()
        right = np.asarray(self._of_train.T @ (weights * true)).ravel()
        precision, recall = right / total, right / (weights @ true)
        best = int(np.argmax(2 * right / (total + weights @ true)))
        exclusive = np.where(precision >= EXCLUSIVE, recall, 0.0)
        found = [self._if_enough(label, name, "word", self._words[best], self._has(best))]
        some = [
            word for word in np.argsort(-exclusive)[:_MOST_TRIED].tolist() if exclusive[word] >= MIN_RECALL
        ]
        return [*found, *(self._if_a_stamp(label, name, word) for word in some)]

    def _has(self, word: int) -> np.ndarray:
        return self._of_test[:, [word]].toarray().ravel() > 0

    def _if_enough(self, label: int, name: str, kind: str, rule: str, given: np.ndarray) -> Marker | None:
        marker = self._counted(label, name, kind, rule, given)
        f1 = 2 * marker.precision * marker.recall / ((marker.precision + marker.recall) or 1.0)
        return marker if f1 >= ENOUGH and marker.effective_groups >= MIN_LABEL_GROUPS else None

    def _if_a_stamp(self, label: int, name: str, word: int) -> Marker | None:
        marker = self._counted(label, name, "word", self._words[word], self._has(word))
        if (
            marker.precision < EXCLUSIVE
            or marker.recall < MIN_RECALL
            or marker.effective_groups < MIN_LABEL_GROUPS
        ):
            return None
        area = self._told_by_text(label, word)
        return None if area > GOES_WITH_TEXT else marker.model_copy(update={"told_by_text": area})

    def _name(self, label: int, name: str) -> Marker | None:
        """The label's name, where its texts have it and others do not."""
        words = [re.escape(word) for word in re.split(r"[\W_]+", name.casefold()) if word]
        if not words or not any(len(word) > 1 for word in words):
            return None
        pattern = re.compile(r"(?<![^\W_])" + r"[\W_]+".join(words) + r"(?![^\W_])")
        given = np.array([pattern.search(text.casefold()) is not None for text in self._test.texts])
        marker = self._counted(label, name, "name", name, given)
        is_found = (
            marker.precision >= EXCLUSIVE
            and marker.recall >= MIN_RECALL
            and marker.effective_groups >= MIN_LABEL_GROUPS
        )
        return marker if is_found else None

    def _length(self, label: int, name: str) -> Marker | None:
        """The lengths at or below, or at or above, the best limit on the training rows."""
        true, weights, lengths = self._train.labels[:, label], self._train.weights, self._lengths[0]
        order = np.argsort(lengths, kind="stable")
        limits = lengths[order]
        last = np.append(limits[1:] != limits[:-1], True)
        below, right = np.cumsum(weights[order])[last], np.cumsum((weights * true)[order])[last]
        of_label, everything = right[-1], below[-1]
        shorter = 2 * right / (below + of_label)
        longer = 2 * (of_label - right) / (everything - below + of_label)
        limit = limits[last]
        if shorter.max() >= longer.max():
            most = int(limit[shorter.argmax()])
            return self._if_enough(
                label, name, "length", f"at most {most:,} characters", self._lengths[1] <= most
            )
        least = int(limit[longer.argmax()])
        return self._if_enough(
            label, name, "length", f"more than {least:,} characters", self._lengths[1] > least
        )

    def _counted(self, label: int, name: str, kind: str, rule: str, given: np.ndarray) -> Marker:
        true, weights = self._test.labels[:, label], self._test.weights
        right = weights * (given & true)
        index, num_groups = self._test.index
        return Marker(
            label=name,
            kind=kind,
            rule=rule,
            precision=float(right.sum() / max(weights @ given, 1e-12)),
            recall=float(right.sum() / (weights @ true)),
            effective_groups=effective_number(np.bincount(index, weights=right, minlength=num_groups)),
        )

    def _told_by_text(self, label: int, word: int) -> float:
        """Return how well the rest of a text tells whether a row of the label has the word; 0.5 where there
        are too few rows to say.
        """
        from scipy import sparse
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import StratifiedGroupKFold

        rows = [np.flatnonzero(each.labels[:, label])[:_MOST_COMPARED] for each in (self._train, self._test)]
        both: Any = sparse.vstack([self._of_train[rows[0]], self._of_test[rows[1]]]).tocsc()
        has = both[:, [word]].toarray().ravel() > 0
        groups = [
            each.groups[row]
            for each, mine in zip((self._train, self._test), rows, strict=True)
            for row in mine.tolist()
        ]
        if min(has.sum(), (~has).sum()) < _MIN_TOLD or len(set(groups)) < _MIN_TOLD:
            return 0.5
        rest = both[:, _others(both, has)]
        lengths = np.log1p(np.asarray(rest.sum(1)))
        features = sparse.hstack([rest, (lengths - lengths.mean()) / (lengths.std() or 1.0)]).tocsr()
        scores = np.full(len(has), np.nan)
        for fit, held_out in StratifiedGroupKFold(3).split(features, has, groups):
            if 0 < has[fit].sum() < len(fit):
                head = LogisticRegression(C=0.1, max_iter=200).fit(features[fit], has[fit])
                scores[held_out] = head.decision_function(features[held_out])
        known = ~np.isnan(scores)
        return float(roc_auc_score(has[known], scores[known]))


def pieces(text: str) -> set[str]:
    """Return the words, numbers and runs of symbols of a text; of scripts without spaces pairs of
    characters.
    """
    folded = text.casefold()
    found = set(_PIECE.findall(folded))
    for run in _UNSPACED.findall(folded):
        found.update(run[place : place + 2] for place in range(len(run) - 1))
    return found


def _others(features: Any, has: np.ndarray) -> np.ndarray:
    """Return the pieces that do not come and go with a marker."""
    both = np.asarray(features[has].sum(0)).ravel()
    either = np.asarray(features.sum(0)).ravel() + has.sum() - both
    return np.flatnonzero(both / either < _SAME_STAMP)


def _repeats(train: Sequence[str], test: Sequence[str], seed: int) -> np.ndarray:
    """Return which test texts are near a training text when numbers and signs are not looked at: bool [n]."""
    theirs, ours = ([" ".join(_WORD.findall(text.casefold())) for text in texts] for texts in (train, test))
    found = np.zeros(len(test), bool)
    found[list(near_duplicates(theirs, ours, REPEATED, seed))] = True
    return found & np.array([len(set(text.split())) >= _MIN_WORDS for text in ours])
