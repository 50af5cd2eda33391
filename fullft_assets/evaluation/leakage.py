"""What gives a label away before a text is read, one word; and test rows that repeat training rows.

A marker is chosen on training rows and counted on test rows. It is reported where it is enough alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT, measurable_labels
from fullft_assets.evaluation.intervals import Record, effective_number
from fullft_assets.evaluation.metrics.base import MIN_LABEL_GROUPS
from fullft_assets.evaluation.resampling import number_groups
from fullft_assets.evaluation.rows import one_of_each_group_first
from fullft_assets.snapshot.near_text.pairs import near_duplicates

#: F1 of a rule that is enough alone.
ENOUGH = 0.98
#: Least similarity of two texts that repeat each other, numbers and signs aside, for texts of at least so
#: many different words.
REPEATED, _MIN_WORDS = 0.9, 8
#: Share of the test groups that may repeat training rows.
MAX_REPEATED = 0.25
_MOST_ROWS = 10_000
#: Training rows that a word must be in.
_MIN_ROWS = 5
#: Letters, digits or a run of symbols; white space where it is more than one space; scripts without spaces in
#: pairs of characters.
_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+|_+|[^\S ]|[ ]{2,}")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2,}"
)
_WORD = re.compile(r"[^\W\d_]+")


class Marker(Record):
    """A word that gives a label away, counted on the test rows.

    Attributes:
        kind: of the rule; older evaluations have other ones.
        rule: the word; a text of the data, so it stays in the store.
    """

    label: str
    kind: str = "word"
    rule: str
    precision: float
    recall: float
    effective_groups: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / ((self.precision + self.recall) or 1.0)


class Leakage(Record):
    """Markers of the labels, and test rows that repeat training rows.

    Attributes:
        num_labels: labels with enough test groups, whose markers were searched for.
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
        """Return at most `most` rows; the first row of each group comes before any second one."""
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
    """Search for a word that gives each label away, and for test rows that repeat training rows."""
    from sklearn.feature_extraction.text import CountVectorizer

    train, test = train.draw(_MOST_ROWS, seed), test.draw(_MOST_ROWS, seed)
    index, num_groups = test.index
    in_test = measurable_labels(test.labels, index, num_groups, test.weights)
    labels = np.flatnonzero(in_test & train.labels.any(0)).tolist()
    analyzer: Any = pieces
    vectorizer: Any = CountVectorizer(analyzer=analyzer, binary=True)
    counts = vectorizer.fit_transform(train.texts).tocsc()
    common = np.flatnonzero(np.asarray(counts.sum(0)).ravel() >= _MIN_ROWS)
    counts, test_counts = counts[:, common], vectorizer.transform(test.texts).tocsc()[:, common]
    words = vectorizer.get_feature_names_out()[common]
    markers = []
    for label in labels if len(words) else ():
        # The word that tells the label best on the training rows, by F1.
        true, weights = train.labels[:, label], train.weights
        right = np.asarray(counts.T @ (weights * true)).ravel()
        f1 = 2 * right / (np.asarray(counts.T @ weights).ravel() + weights @ true)
        best = int(np.argmax(f1))
        marker = _counted(
            test, label, names[label], words[best], test_counts[:, [best]].toarray().ravel() > 0
        )
        if marker.f1 >= ENOUGH and marker.effective_groups >= MIN_LABEL_GROUPS:
            markers.append(marker)
    repeated = _repeats(train.texts, test.texts)
    share = float(np.average(repeated, weights=test.weights))
    return Leakage(
        num_labels=len(labels), markers=markers, num_repeated=int(repeated.sum()), share_repeated=share
    )


def _counted(test: LabelledTexts, label: int, name: str, word: str, has_word: np.ndarray) -> Marker:
    true, weights = test.labels[:, label], test.weights
    right = weights * (has_word & true)
    index, num_groups = test.index
    return Marker(
        label=name,
        rule=str(word),
        precision=float(right.sum() / max(weights @ has_word, 1e-12)),
        recall=float(right.sum() / (weights @ true)),
        effective_groups=effective_number(np.bincount(index, weights=right, minlength=num_groups)),
    )


def pieces(text: str) -> set[str]:
    """Return the words, numbers and runs of symbols of a text; of scripts without spaces pairs of
    characters.
    """
    folded = text.casefold()
    parts = set(_PIECE.findall(folded))
    for run in _UNSPACED.findall(folded):
        parts.update(run[place : place + 2] for place in range(len(run) - 1))
    return parts


def _repeats(train: Sequence[str], test: Sequence[str]) -> np.ndarray:
    train_words, test_words = (
        [" ".join(_WORD.findall(text.casefold())) for text in texts] for texts in (train, test)
    )
    is_near = np.zeros(len(test), bool)
    is_near[list(near_duplicates(train_words, test_words, REPEATED))] = True
    return is_near & np.array([len(set(text.split())) >= _MIN_WORDS for text in test_words])
