"""Texts that are inside longer ones across the split, such as a mail quoted in the reply to it.

The Jaccard similarity of such a pair is small. What shows it is the share of the shorter text's shingles that
the longer one has (Broder 1997, "On the resemblance and containment of documents"). A passage of WINDOW
shingles that is quoted word for word keeps its minimizers: texts are a candidate pair that share enough of
them, and the exact share confirms it.

A minimizer in more than MAX_ROWS texts (of a disclaimer, of a standard clause) shows no copy of a document,
and is not looked up.
"""

from __future__ import annotations

import numpy as np

from fullft_assets.snapshot.minhash import Sketches
from fullft_assets.snapshot.near_duplicates import are_far, blocks_of, count_shared, positions
from fullft_assets.snapshot.shingles import Minimizers, ShingleSets, distinct, expand

#: Texts that a minimizer may be in.
MAX_ROWS = 100
#: Least share of the shorter text's minimizers that the longer one has and that are in few texts.
_LEAST_RARE = 0.25
#: Minimizers that a text loses with each shingle, and standard deviations that it may lose more: of 7,600
#: texts with words replaced or deleted at random, as many as leave 95% of the shingles, 0.3% lose more.
_LOST, _DEVIATIONS = 0.35, 2
#: Standard deviations by which the signatures of a pair may be below the similarity that they should have.
_SIGNATURE_DEVIATIONS = 3
#: Least distinct shingles of a text that is looked for in longer ones: shorter ones are phrases that anybody
#: may write.
_LEAST_SIZE = 16
#: Minimizers looked up at once, and pairs that are counted at once.
_BLOCK_VALUES, _BLOCK_PAIRS = 1 << 20, 1 << 20
#: Slots of the table that most minimizers are refused by, for each of those that are looked for, and the bits
#: of a slot's number.
_SLOTS_A_VALUE, _TABLE_BITS = 16, (20, 24)
#: Mixes the bits of a hash (Knuth, vol. 3, ch. 6.4: of the golden ratio).
_FACTOR = np.uint32(0x9E3779B1)


def common(minimizers: Minimizers, rows: np.ndarray) -> np.ndarray:
    """Return the minimizers (ascending) that more than MAX_ROWS of some rows have.

    They never become fewer as texts are added: a pair that was refused once stays refused, so that it need
    not be looked at again.
    """
    is_counted = np.zeros(len(minimizers.counts), bool)
    is_counted[rows] = True
    values = minimizers.values[np.repeat(is_counted, minimizers.counts)]
    values.sort()
    repeated = values[MAX_ROWS:]
    return distinct(repeated[repeated == values[: len(repeated)]])


def are_looked_for(
    minimizers: Minimizers, sizes: np.ndarray, common: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return which pairs of rows, one inside the other, are still found by minimizers that are not common."""
    least = _LEAST_RARE * minimizers.counts[_shorter(sizes, minimizers.counts, first, second)]
    return _count_shared(minimizers, common, first, second) >= least


class ContainmentSearch:
    """The search for candidates that contain a reference text, or are inside one.

    Args:
        minimizers, sketches: of all texts.
        common: minimizers that are not looked up, ascending.
        reference, candidates: rows, disjoint.
        share: least share of the shorter text's shingles that the longer one has.

    Attributes:
        rows: those whose shingle sets `run` needs.
    """

    def __init__(
        self,
        minimizers: Minimizers,
        sketches: Sketches,
        common: np.ndarray,
        reference: np.ndarray,
        candidates: np.ndarray,
        share: float,
    ):
        self._share = share
        mine, theirs = (rows[sketches.sizes[rows] >= _LEAST_SIZE] for rows in (candidates, reference))
        lookup = _Lookup(
            minimizers, sketches.sizes, common, _least_shared(minimizers.counts, sketches.sizes, share)
        )
        # The relation is symmetric: the list of the fewer texts is the shorter one to sort.
        first, second = (
            lookup.pairs(mine, theirs) if len(mine) < len(theirs) else lookup.pairs(theirs, mine)[::-1]
        )
        similarity = _least_similarity(sketches.sizes[first], sketches.sizes[second], share)
        likely = ~are_far(sketches, similarity, first, second, _SIGNATURE_DEVIATIONS)
        self._candidate, self._text = first[likely], second[likely]
        self.rows = distinct(np.concatenate([self._candidate, self._text]))

    def run(self, sets: ShingleSets, *, left_out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates that contain a reference text or are inside one, and one such text for each.

        Args:
            sets: of `rows`.
            left_out: bool [texts], those that are no longer reference text nor candidate.
        """
        is_in = np.ones(len(self._candidate), bool)
        if left_out is not None:
            is_in = ~left_out[self._candidate] & ~left_out[self._text]
        candidate, text = self._candidate[is_in], self._text[is_in]
        first, second = np.searchsorted(self.rows, candidate), np.searchsorted(self.rows, text)
        shorter = np.minimum(sets.sizes[first], sets.sizes[second])
        found = np.flatnonzero(count_shared(sets, first, second) >= self._share * shorter)
        rows, chosen = np.unique(candidate[found], return_index=True)
        return rows, text[found][chosen]


def _shorter(sizes: np.ndarray, counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the row of each pair that has fewer shingles, or as many and fewer minimizers: the same one from
    either side.
    """
    is_first = (sizes[first] < sizes[second]) | (
        (sizes[first] == sizes[second]) & (counts[first] < counts[second])
    )
    return np.where(is_first, first, second)


def _count_shared(
    minimizers: Minimizers, without: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return how many minimizers pairs of rows share, not counting those that are `without` (ascending)."""
    rows = distinct(np.concatenate([first, second]))
    values, text = _values(minimizers, rows), np.repeat(np.arange(len(rows)), minimizers.counts[rows])
    is_counted = ~positions(without, values)[0]
    counts = np.bincount(text[is_counted], minlength=len(rows))
    sets = ShingleSets.of(values[is_counted].astype(np.uint64), counts)
    return count_shared(sets, np.searchsorted(rows, first), np.searchsorted(rows, second))


def _slot(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the slot of each minimizer in a table of 2 ** bits: their bits are mixed, since small hashes are
    frequent.
    """
    return (values * _FACTOR) >> np.uint32(32 - bits)


def _values(minimizers: Minimizers, rows: np.ndarray) -> np.ndarray:
    return minimizers.values[expand(minimizers.offsets[rows], minimizers.counts[rows])]


def _least_shared(counts: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Return how many of the minimizers of each text another one has that has a share of its shingles; at
    least one.
    """
    lost = _LOST * np.floor((1 - share) * sizes + 1e-9)
    return np.maximum(1, counts - np.floor(lost + _DEVIATIONS * np.sqrt(lost)).astype(np.int64))


def _least_similarity(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Return the Jaccard similarity of texts of so many shingles where the longer one has that share of the
    shorter one's.
    """
    shared = share * np.minimum(first, second)
    return shared / (first + second - shared)


class _Lookup:
    """Looks texts up by their minimizers.

    Args:
        minimizers, common: see `ContainmentSearch`.
        sizes: int64 [n], distinct shingles of each text.
        least: int64 [n], how many of each text's minimizers a longer one has.
    """

    def __init__(self, minimizers: Minimizers, sizes: np.ndarray, common: np.ndarray, least: np.ndarray):
        self._minimizers, self._sizes, self._common, self._least = minimizers, sizes, common, least

    def pairs(self, few: np.ndarray, many: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of two lists of rows that share enough minimizers."""
        values, text = (
            _values(self._minimizers, few),
            np.repeat(np.arange(len(few)), self._minimizers.counts[few]),
        )
        is_rare = ~positions(self._common, values)[0]
        order = np.argsort(values[is_rare], kind="stable")
        text = text[is_rare][order]
        known, begin, counts = np.unique(values[is_rare][order], return_index=True, return_counts=True)
        place, row = self._hits(known, many)
        found = [np.zeros((2, 0), np.int64)]
        for block in self._blocks(row, counts[place]):
            which, size = place[block], counts[place[block]]
            # No row is in two blocks, so that all that a pair shares is counted at once.
            pairs = np.repeat(row[block], size) * len(few) + text[expand(begin[which], size)]
            pairs.sort()
            is_first = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)])
            num_shared = np.diff(is_first, append=len(pairs))
            theirs, mine = np.divmod(pairs[is_first], max(1, len(few)))
            enough = self._share_enough(few[mine], theirs, num_shared)
            found.append(np.stack([few[mine[enough]], theirs[enough]]))
        first, second = np.concatenate(found, axis=1)
        return first, second

    def _hits(self, known: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in `known` of the minimizers of rows that are there, and the row of each; rows
        ascend.
        """
        bits = int(np.clip((_SLOTS_A_VALUE * len(known)).bit_length(), *_TABLE_BITS))
        table = np.zeros(1 << bits, bool)
        table[_slot(known, bits)] = True
        is_wanted = np.zeros(len(self._sizes), bool)
        is_wanted[rows] = True
        is_wanted = np.repeat(is_wanted, self._minimizers.counts)
        ends = np.cumsum(self._minimizers.counts)
        places, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for start in range(0, len(is_wanted), _BLOCK_VALUES):
            values, wanted = (
                self._minimizers.values[start : start + _BLOCK_VALUES],
                is_wanted[start : start + _BLOCK_VALUES],
            )
            maybe = np.flatnonzero(table[_slot(values, bits)] & wanted)
            is_hit, place = positions(known, values[maybe])
            places.append(place[is_hit])
            found.append(np.searchsorted(ends, maybe[is_hit] + start, "right"))
        return np.concatenate(places), np.concatenate(found)

    def _blocks(self, row: np.ndarray, num_pairs: np.ndarray) -> list[slice]:
        """Return slices of hits with about as many pairs as are counted at once, each with all hits of its
        rows.
        """
        first = np.flatnonzero(np.append(True, row[1:] != row[:-1])[: len(row)])
        ends = np.append(first[1:], len(row))
        sums = np.add.reduceat(num_pairs, first) if len(first) else num_pairs
        return [
            slice(int(first[block.start]), int(ends[block.stop - 1]))
            for block in blocks_of(sums, _BLOCK_PAIRS)
        ]

    def _share_enough(self, first: np.ndarray, second: np.ndarray, num_rare: np.ndarray) -> np.ndarray:
        """Return the places of the pairs of rows that share enough minimizers, of which some are in few
        texts.
        """
        counts = self._minimizers.counts
        shorter = _shorter(self._sizes, counts, first, second)
        chosen = np.flatnonzero(num_rare >= _LEAST_RARE * counts[shorter])
        least = self._least[shorter]
        unsure = chosen[num_rare[chosen] < least[chosen]]
        shared = _count_shared(self._minimizers, np.zeros(0, np.uint32), first[unsure], second[unsure])
        return np.setdiff1d(chosen, unsure[shared < least[unsure]], assume_unique=True)
