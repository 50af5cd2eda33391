"""group candidates: a field whose equal values share so much text that it may tie rows together, where the
YAML names none.

Rows with such a value in common would be on both sides of the split. Topics share text as well, so a
candidate is suggested and never enforced.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Rows and characters that are compared.
MOST_ROWS, MOST_CHARACTERS = 1_500, 2_000
#: A field with fewer values, or with a smaller share of rows in repeated ones, is no group.
LEAST_VALUES, LEAST_REPEATED = 20, 0.1
#: How far the share of nearest neighbours with the same value is above chance, at the least.
LEAST_EXCESS = 0.1
_PERMUTATIONS = 39
_BUCKETS = 1 << 16
#: A word, or one character of a script without spaces between words.
_WORD = re.compile(r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]+|[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]")


@dataclass(frozen=True)
class Candidate:
    """A field that may tie rows together.

    Attributes:
        field: its name.
        num_values: distinct values in the sample.
        agreement: of rows that share value and label with another one, the share whose most similar row of
            their label has their value.
        chance: the same with the values permuted within the labels, on average.
    """

    field: str
    num_values: int
    agreement: float
    chance: float


def candidates(
    texts: Sequence[str], labels: Sequence[str], fields: Mapping[str, Sequence[str | None]], seed: int = 0
) -> list[Candidate]:
    """Return the fields that may tie rows together, the likeliest first.

    The most similar row is found by the cosine of hashed TF-IDF vectors of words. The bar: no permutation of
    39 agrees as well (p <= .025), and the excess over their mean is `LEAST_EXCESS`.

    Args:
        texts, labels: of the rows; labels are all equal where the task has none.
        fields: the values of each row, by field; None: it has none.
        seed: of the permutations.
    """
    # The snapshot keeps one of equal texts.
    rows = list({text: row for row, text in reversed(list(enumerate(texts)))}.values())[::-1][:MOST_ROWS]
    fitting = {
        name: codes
        for name, values in fields.items()
        if (codes := _codes([values[row] for row in rows])) is not None
    }
    if not fitting:
        return []
    label = np.unique(np.array([labels[row] for row in rows], dtype=str), return_inverse=True)[1]
    neighbour = _nearest([texts[row] for row in rows], label)
    rng = np.random.default_rng(seed)
    found = []
    for name, codes in fitting.items():
        agreement = _agreement(codes, label, neighbour)
        if agreement is None:
            continue
        by_chance = [
            _agreement(_permuted(codes, label, rng), label, neighbour) or 0.0 for _ in range(_PERMUTATIONS)
        ]
        if agreement > max(by_chance) and agreement - np.mean(by_chance) >= LEAST_EXCESS:
            found.append(Candidate(name, int(codes.max()) + 1, agreement, float(np.mean(by_chance))))
    return sorted(found, key=lambda candidate: candidate.chance - candidate.agreement)


def _codes(values: Sequence[str | None]) -> np.ndarray | None:
    """Return the values as codes, -1 for none; None where they are too few, or too rarely repeated."""
    counts = Counter(value for value in values if value is not None)
    repeated = sum(count for count in counts.values() if count > 1)
    if len(counts) < LEAST_VALUES or repeated < LEAST_REPEATED * len(values):
        return None
    number = {value: code for code, value in enumerate(counts)}
    return np.array([-1 if value is None else number[value] for value in values])


def _nearest(texts: Sequence[str], label: np.ndarray) -> np.ndarray:
    """Return the most similar other row of each row's label [n]; -1 where it is the only one."""
    from scipy.sparse import csr_array

    words = [
        Counter(
            zlib.crc32(word.encode()) % _BUCKETS for word in _WORD.findall(text[:MOST_CHARACTERS].lower())
        )
        for text in texts
    ]
    starts = np.cumsum([0, *map(len, words)])
    columns = np.fromiter((column for found in words for column in found), np.int64, starts[-1])
    counts = np.fromiter((count for found in words for count in found.values()), np.float64, starts[-1])
    idf = np.log((1 + len(texts)) / (1 + np.bincount(columns, minlength=_BUCKETS))) + 1
    weights = csr_array(((1 + np.log(counts)) * idf[columns], columns, starts), shape=(len(texts), _BUCKETS))
    norms = np.sqrt(np.maximum(weights.multiply(weights).sum(axis=1), 1e-12))
    nearest = np.full(len(texts), -1)
    for each in np.unique(label):
        rows = np.flatnonzero(label == each)
        if len(rows) > 1:
            mine = weights[rows]
            similar = (mine @ mine.T).toarray() / norms[rows] / norms[rows][:, None]
            np.fill_diagonal(similar, -1)
            nearest[rows] = rows[similar.argmax(axis=1)]
    return nearest


def _agreement(codes: np.ndarray, label: np.ndarray, neighbour: np.ndarray) -> float | None:
    """Return, of the rows that share value and label with another one, the share whose nearest row has their
    value.
    """
    cell = np.where(codes < 0, -1, codes * (int(label.max()) + 1) + label)
    sizes = np.bincount(cell[cell >= 0], minlength=1)
    paired = (cell >= 0) & (sizes[np.maximum(cell, 0)] > 1)
    return float((codes[neighbour[paired]] == codes[paired]).mean()) if paired.any() else None


def _permuted(codes: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the values permuted within the labels."""
    order, shuffled = np.argsort(label, kind="stable"), np.lexsort((rng.random(len(label)), label))
    found = np.empty_like(codes)
    found[order] = codes[shuffled]
    return found
