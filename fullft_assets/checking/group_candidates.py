"""A field whose equal values share so much text that it may tie rows together, where the YAML names none.

Rows with such a value in common would be on both sides of the split. Topics share text as well, so a
candidate is suggested and never enforced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fullft_assets.checking.corpus import Sampled, look_at_documents
from fullft_assets.checking.fields import flat
from fullft_assets.checking.findings import labels_of
from fullft_assets.checking.places import is_bucket
from fullft_assets.settings.use_case import UseCase

#: Rows and characters that are compared.
_MOST_ROWS = 1_500
_MOST_CHARACTERS = 2_000
#: A longer name is a text: the first row of a table without a header.
_LONGEST_NAME = 60
#: A field with fewer values, or with a smaller share of rows in repeated ones, is no group.
_LEAST_VALUES = 20
_LEAST_REPEATED = 0.1
#: How far the share of nearest neighbours with the same value is above chance, at the least: as a share, and
#: in standard deviations of a share that is due to chance.
_LEAST_EXCESS = 0.1
_LEAST_DEVIATIONS = 4
#: A word, one character of a script without spaces between words, or a whole text that has no word.
_WORD = (
    r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]+"
    r"|[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]"
    r"|^\W+$"
)


@dataclass(frozen=True)
class Candidate:
    """A field that may tie rows together.

    Attributes:
        field: its name.
        agreement: of rows that share value and label with another one, the share whose most similar row of
            their label has their value.
        chance: the share that is expected if the most similar row is any other row of the label.
    """

    field: str
    agreement: float
    chance: float


def suggested_group(use_case: UseCase) -> str | None:
    """Return the line that suggests a field for `examples.group`, from a sample of the delivered rows; None
    where a group is set, or where no field looks like one.
    """
    examples, path = use_case.settings.examples, use_case.settings.documents.path
    if examples.group is not None or is_bucket(path) or not use_case.resolve(path).is_dir():
        return None
    rows = [row for row in look_at_documents(use_case).sample if row.row.get("text") and row.record]
    used = {examples.label, examples.domain, "text", "messages", "annotations"}
    records = [_names(row, used | {row.text_field}) for row in rows]
    names = dict.fromkeys(name for record in records for name in record)
    fields = {name: [record.get(name) for record in records] for name in names}
    labels = ["|".join(labels_of(row, examples)) for row in rows]
    for candidate in candidates([row.row["text"] for row in rows], labels, fields):
        return (
            f"none is set, and rows of equal `{candidate.field}` share text ({candidate.agreement:.0%} of"
            f" them are nearest to one of their own, {candidate.chance:.0%} by chance): if it ties rows"
            f" together, set examples.group: {candidate.field}"
        )
    return None


def candidates(
    texts: Sequence[str], labels: Sequence[str], fields: Mapping[str, Sequence[str | None]]
) -> list[Candidate]:
    """Return the fields that may tie rows together, the likeliest first.

    The most similar row is found by the cosine of TF-IDF vectors of words.

    Args:
        texts: of the rows.
        labels: of the rows; all equal where the task has none.
        fields: the values of each row, by field; None: it has none.
    """
    # The snapshot keeps one of equal texts.
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    rows = sorted(first.values())[:_MOST_ROWS]
    fitting = {
        name: codes
        for name, values in fields.items()
        if (codes := _codes([values[row] for row in rows])) is not None
    }
    if not fitting:
        return []
    label = np.unique(np.array([labels[row] for row in rows], dtype=str), return_inverse=True)[1]
    neighbour = _nearest([texts[row] for row in rows], label)
    suggestions = []
    for name, codes in fitting.items():
        candidate = _candidate(name, codes, label, neighbour)
        if candidate is not None:
            suggestions.append(candidate)
    return sorted(suggestions, key=lambda candidate: candidate.chance - candidate.agreement)


def _names(row: Sampled, left_out: set[str | None]) -> dict[str, str]:
    """Return the fields of a row that may name a group: short text and whole numbers."""
    return {
        name: str(value)
        for name, value in flat(row).items()
        if 0 < len(name) <= _LONGEST_NAME
        and name not in left_out
        and type(value) in (str, int)
        and 0 < len(str(value)) <= 200
    }


def _codes(values: Sequence[str | None]) -> np.ndarray | None:
    """Return the values as codes, -1 for none; None where they are too few, or too rarely repeated."""
    counts = Counter(value for value in values if value is not None)
    repeated = sum(count for count in counts.values() if count > 1)
    if len(counts) < _LEAST_VALUES or repeated < _LEAST_REPEATED * len(values):
        return None
    number = {value: code for code, value in enumerate(counts)}
    return np.array([-1 if value is None else number[value] for value in values])


def _nearest(texts: Sequence[str], label: np.ndarray) -> np.ndarray:
    """Return the most similar other row of each row's label [n]; -1 where it is the only one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True)
    weights = vectorizer.fit_transform([text[:_MOST_CHARACTERS] for text in texts])
    nearest = np.full(len(texts), -1)
    for each in np.unique(label):
        rows = np.flatnonzero(label == each)
        if len(rows) > 1:
            similarity = (weights[rows] @ weights[rows].T).toarray()
            np.fill_diagonal(similarity, -1)
            nearest[rows] = rows[similarity.argmax(axis=1)]
    return nearest


def _candidate(name: str, codes: np.ndarray, label: np.ndarray, neighbour: np.ndarray) -> Candidate | None:
    """Return the field as a candidate, or None where its values share no more text than chance explains."""
    cell = np.where(codes < 0, -1, codes * (int(label.max()) + 1) + label)
    sizes = np.bincount(cell[cell >= 0], minlength=1)
    paired = (cell >= 0) & (sizes[np.maximum(cell, 0)] > 1)
    if not paired.any():
        return None
    agreement = float((codes[neighbour[paired]] == codes[paired]).mean())
    chances = (sizes[cell[paired]] - 1) / (np.bincount(label)[label[paired]] - 1)
    chance = float(chances.mean())
    deviation = float(np.sqrt((chances * (1 - chances)).sum())) / int(paired.sum())
    is_likely = agreement - chance >= max(_LEAST_EXCESS, _LEAST_DEVIATIONS * deviation)
    return Candidate(name, agreement, chance) if is_likely else None
