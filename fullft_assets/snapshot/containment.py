"""Held-out texts that are inside longer training texts, such as a mail quoted in the reply to it.

The Jaccard similarity of such a pair is small. What tells it is the share of the shorter text's shingles that the longer one has (Broder
1997, "On the resemblance and containment of documents"). A passage of WINDOW shingles that is quoted word for word keeps its minimizers:
candidate pairs share the rarest ones of the shorter text, and half of all. Each pair is confirmed by the exact share.

What is in more than MAX_ROWS longer texts (a disclaimer, a standard clause) is not looked for: it is no copy of that document.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fullft_assets.snapshot.near_duplicates import count_shared, positions
from fullft_assets.snapshot.shingles import Minimizers, ShingleSets, expand

#: Longer texts that a minimizer may be in.
MAX_ROWS = 100
#: Rarest minimizers of a text that are looked up, and how many of them a longer text has at least.
_NUM_RAREST, _NUM_SHARED = 5, 2
#: Least share of the shorter text's minimizers that the longer one has.
_LEAST_SHARE = 0.5
#: Texts whose minimizers are looked up at once, and pairs that are counted at once.
_BLOCK_TEXTS, _BLOCK_PAIRS = 1 << 17, 1 << 18
_TABLE_BITS = 24


def join(parts: Iterable[Minimizers]) -> Minimizers:
    """Return the minimizers of several batches as one; at least one batch."""
    found = list(parts)
    return Minimizers(np.concatenate([part.values for part in found]), np.concatenate([part.counts for part in found]))


class ContainmentSearch:
    """The search for candidates that contain a reference text.

    Args:
        minimizers: of all texts.
        reference, candidates: rows, disjoint.
        share: least share of the reference text's shingles that the candidate has.

    Attributes:
        rows: those whose shingle sets `run` needs.
    """

    def __init__(self, minimizers: Minimizers, reference: np.ndarray, candidates: np.ndarray, share: float):
        self._share = share
        offsets = np.cumsum(minimizers.counts) - minimizers.counts
        reference = reference[minimizers.counts[reference] > 0]
        sizes = minimizers.counts[reference]
        known, code = np.unique(minimizers.values[expand(offsets[reference], sizes)], return_inverse=True)
        candidate, text = _Lookup(known, code, sizes).pairs(minimizers, offsets, candidates)
        self._longer, self._first = np.unique(candidates[candidate], return_inverse=True)
        shorter, self._second = np.unique(reference[text], return_inverse=True)
        self.rows = np.concatenate([self._longer, shorter])

    def run(self, sets: ShingleSets) -> np.ndarray:
        """Return the candidates that contain a reference text; `sets` are the shingle sets of `rows`."""
        second = self._second + len(self._longer)
        contains = count_shared(sets, self._first, second) >= self._share * sets.sizes[second]
        return self._longer[np.unique(self._first[contains])]


class _Lookup:
    """Looks reference texts up by their minimizers.

    Args:
        known: the distinct minimizers of all reference texts, ascending.
        code: position in `known` of each text's minimizers, text by text.
        sizes: number of minimizers of each text.
    """

    def __init__(self, known: np.ndarray, code: np.ndarray, sizes: np.ndarray):
        self._known, self._code, self._sizes = known, code, sizes
        self._offsets = np.cumsum(sizes) - sizes
        self._needed = np.ceil(_LEAST_SHARE * sizes).astype(np.int64)
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        self._table[known >> np.uint32(32 - _TABLE_BITS)] = True

    def pairs(self, minimizers: Minimizers, offsets: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidate pairs, as positions among the candidates and among the reference texts."""
        code, candidate = self._hits(minimizers, offsets, candidates)
        frequency = np.bincount(code, minlength=len(self._known))
        by_code = candidate[np.argsort(code, kind="stable")]
        hits = np.sort(candidate * len(self._known) + code)
        begin = np.cumsum(frequency) - frequency
        text, chosen = self._rarest(frequency)
        least = np.minimum(np.bincount(text, minlength=len(self._sizes)), _NUM_SHARED)
        counts = frequency[chosen]
        pairs = by_code[expand(begin[chosen], counts)] * len(self._sizes) + np.repeat(text, counts)
        pairs, num_shared = np.unique(pairs, return_counts=True)
        pairs = pairs[num_shared >= least[pairs % max(1, len(self._sizes))]]
        blocks = np.array_split(pairs, 1 + len(pairs) // _BLOCK_PAIRS)
        return np.divmod(np.concatenate([self._that_share_enough(block, hits) for block in blocks]), max(1, len(self._sizes)))

    def _hits(self, minimizers: Minimizers, offsets: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of all minimizers of candidates that a reference text has as well, and the position of each one's candidate."""
        codes, texts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for start in range(0, len(candidates), _BLOCK_TEXTS):
            rows = candidates[start : start + _BLOCK_TEXTS]
            values = minimizers.values[expand(offsets[rows], minimizers.counts[rows])]
            maybe = np.flatnonzero(self._table[values >> np.uint32(32 - _TABLE_BITS)])
            is_hit, place = positions(self._known, values[maybe])
            codes.append(place[is_hit])
            texts.append(np.repeat(np.arange(start, start + len(rows)), minimizers.counts[rows])[maybe[is_hit]])
        return np.concatenate(codes), np.concatenate(texts)

    def _rarest(self, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return reference texts that a longer one may contain, and the codes of their rarest minimizers among those that one has."""
        of_code = frequency[self._code]
        text = np.repeat(np.arange(len(self._sizes)), self._sizes)
        num_found = np.bincount(text, of_code > 0, len(self._sizes))
        able = np.flatnonzero((of_code > 0) & (of_code <= MAX_ROWS) & (num_found >= self._needed)[text])
        order = able[np.lexsort((self._code[able], of_code[able], text[able]))]
        is_first = np.append(True, text[order][1:] != text[order][:-1])[: len(order)]
        begin = np.flatnonzero(is_first)
        rank = np.arange(len(order)) - np.repeat(begin, np.diff(begin, append=len(order)))
        order = order[rank < _NUM_RAREST]
        return text[order], self._code[order]

    def _that_share_enough(self, pairs: np.ndarray, hits: np.ndarray) -> np.ndarray:
        candidate, text = np.divmod(pairs, max(1, len(self._sizes)))
        sizes = self._sizes[text]
        codes = self._code[expand(self._offsets[text], sizes)]
        is_hit = positions(hits, np.repeat(candidate, sizes) * len(self._known) + codes)[0]
        return pairs[np.bincount(np.repeat(np.arange(len(pairs)), sizes), is_hit, len(pairs)) >= self._needed[text]]
