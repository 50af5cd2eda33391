"""Near-duplicates among many texts: MinHash bands propose pairs, the exact similarity of the word shingles
confirms each.

`minhash` describes what is kept of each text, and how its bands are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fullft_assets.snapshot.minhash import Sketches, sketch_sets
from fullft_assets.snapshot.shingles import BLOCK_ROWS, HASH_BITS, ShingleSets, distinct, expand, shingle_sets

#: Shingles compared at once: what fits a core's cache.
_BLOCK_VALUES = 1 << 15
#: Shingles of a pair that is compared by itself: those of smaller pairs are sorted together.
_LARGE_PAIR = 256
#: Pairs whose signatures are compared at once.
_BLOCK_SIGNATURES = 1 << 15
#: Pairs proposed at once.
_BLOCK_PAIRS = 1 << 20
#: Pairs of a candidate that are tried before it is asked whether any could be near at all.
_TRIES_UNAIDED = 16
#: Candidates with more pairs than this are tried without a look at the signatures where the first one is not
#: far by them ...
_MANY_PAIRS = 64
#: ... and those with more than this in any case.
_TOO_MANY_PAIRS = 1_024
#: Slots of the look-up table for the band keys of one side, for each of them.
_SLOTS_A_KEY = 16
#: Standard deviations that the estimate of a similarity may be off: more is seen of three pairs in a million.
_DEVIATIONS = 4.5
_UINT64 = np.uint64

#: Returns the shingle sets of the given rows.
ReadSets = Callable[[np.ndarray], ShingleSets]


def find_near(
    sketches: Sketches, reference: np.ndarray, candidates: np.ndarray, similarity: float, read: ReadSets
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates that are near to a reference text, each with one text that it is near to.

    Args:
        sketches: of all texts, made for this similarity.
        reference, candidates: rows, disjoint.
        similarity: least Jaccard similarity of the shingle sets.
        read: reads the shingle sets of rows; called once, with the rows of candidate pairs only.
    """
    search = NearSearch(sketches, reference, candidates, similarity)
    return search.run(read(search.rows))


class NearSearch:
    """The search for candidates that are near to a reference text: what the sketches show of it, until the
    texts are read.

    Buckets of thousands of texts stay cheap. Texts with equal sets are interchangeable: whichever of them is
    compared, the similarity is the same number. A candidate needs one confirmed partner, so that among texts
    that are all near to each other the first try settles it. Pairs whose sizes differ by more than the
    threshold allows, and candidates with too few shingles that any reference text has, cannot be near and are
    not compared: |A & B| <= min(|A|, |B|), and |A & B| <= |A & union of all B|.

    Attributes:
        rows: those whose shingle sets `run` needs.
    """

    def __init__(self, sketches: Sketches, reference: np.ndarray, candidates: np.ndarray, similarity: float):
        self._similarity, self._num_texts = similarity, len(sketches)
        self._reference = reference[np.unique(sketches.sets[reference], return_index=True)[1]]
        # Most candidates have neither a set nor a band of a reference text: only those that do are sorted.
        maybe = _keys_of_both(sketches.sets[self._reference], sketches.sets[candidates])[1]
        is_equal, place = positions(sketches.sets[self._reference], sketches.sets[candidates[maybe]])
        self._equal, self._equal_to = candidates[maybe[is_equal]], self._reference[place[is_equal]]
        rest = np.delete(candidates, maybe[is_equal])
        proposals = _propose(sketches.bands, self._reference, rest)
        owners = distinct(proposals.owner)
        self._rest = rest[owners]
        _, first, number = np.unique(sketches.sets[self._rest], return_index=True, return_inverse=True)
        order = np.argsort(first)
        #: One row of each set of the others, and which of them each is compared as.
        self._chosen, self._stands_for = self._rest[first[order]], np.argsort(order)[number]
        self._are_far = partial(are_far, sketches, similarity)
        self._proposals = proposals.of(owners[first[order]]).without(
            lambda mine, theirs: self._are_far(self._chosen[mine], self._reference[theirs])
        )
        self._owners, self._first = np.unique(self._proposals.owner, return_index=True)
        self._listed = self._proposals.listed(np.arange(len(self._proposals.owner)))
        self.rows = np.concatenate([self._chosen[self._owners], self._reference[self._listed]])

    def run(self, sets: ShingleSets, *, left_out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the near candidates and for each one reference text that it is near to.

        Args:
            sets: of `rows`.
            left_out: bool [texts], those that are no longer reference text nor candidate, together with all
                of an equal set.
        """
        is_out = np.zeros(self._num_texts, bool) if left_out is None else left_out
        partner = np.full(len(self._chosen), -1)
        if len(self._owners):
            search = _Search(
                proposals=self._proposals,
                first=np.append(self._first, len(self._proposals.owner)),
                sets=sets,
                set_of=np.searchsorted(self._listed, np.arange(len(self._reference))) + len(self._owners),
                is_out=is_out[self._reference],
                similarity=self._similarity,
                are_far=lambda mine, other: self._are_far(
                    self._chosen[self._owners[mine]], self._reference[other]
                ),
            )
            partner[self._owners] = search.run(~is_out[self._chosen[self._owners]])
        of_rest = partner[self._stands_for]
        near = of_rest >= 0
        still = ~is_out[self._equal]
        return (
            np.concatenate([self._equal[still], self._rest[near]]),
            np.concatenate([self._equal_to[still], self._reference[of_rest[near]]]),
        )


@dataclass(frozen=True)
class _Proposals:
    """Candidate pairs by bucket: range k pairs candidate `owner[k]` with `lists[start[k] : start[k] +
    count[k]]`; owners ascend.
    """

    owner: np.ndarray
    start: np.ndarray
    count: np.ndarray
    lists: np.ndarray

    def of(self, owners: np.ndarray) -> _Proposals:
        """Return the pairs of some candidates (ascending), which are numbered by their place among these."""
        is_here, number = positions(owners, self.owner)
        return _Proposals(number[is_here], self.start[is_here], self.count[is_here], self.lists)

    def listed(self, ranges: np.ndarray) -> np.ndarray:
        """Return the distinct reference texts of some ranges, without going through their pairs."""
        edges = np.zeros(len(self.lists) + 1, np.int64)
        np.add.at(edges, self.start[ranges], 1)
        np.add.at(edges, self.start[ranges] + self.count[ranges], -1)
        return distinct(self.lists[np.cumsum(edges[:-1]) > 0])

    def without(self, are_far: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Proposals:
        """Return the pairs that are not far, each once; candidates with many keep all of theirs where the
        first one is not far.

        Args:
            are_far: returns of (candidates, reference texts) which pairs to leave out.
        """
        is_few = self._are_few(are_far)
        few, many = np.flatnonzero(is_few), np.flatnonzero(~is_few)
        size = int(self.lists.max(initial=0)) + 1
        kept = [np.zeros(0, np.int64)]
        for block in blocks_of(self.count[few], _BLOCK_PAIRS):
            ranges = few[block]
            other = self.lists[expand(self.start[ranges], self.count[ranges])]
            pairs = np.repeat(self.owner[ranges], self.count[ranges]) * size + other
            pairs = distinct(pairs)
            kept += [
                part[~are_far(part // size, part % size)]
                for part in np.array_split(pairs, 1 + len(pairs) // _BLOCK_SIGNATURES)
            ]
        left = np.concatenate(kept)
        owner = np.concatenate([left // size, self.owner[many]])
        start = np.concatenate([len(self.lists) + np.arange(len(left)), self.start[many]])
        count = np.concatenate([np.ones(len(left), np.int64), self.count[many]])
        order = np.argsort(owner, kind="stable")
        return _Proposals(owner[order], start[order], count[order], np.concatenate([self.lists, left % size]))

    def _are_few(self, are_far: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return which ranges are of candidates whose pairs are all looked at: they are few, or the first one
        is far.
        """
        owner, first = np.unique(self.owner, return_index=True)
        pairs = np.add.reduceat(self.count, first) if len(first) else first
        is_few = pairs <= _MANY_PAIRS
        unsure = np.flatnonzero(~is_few & (pairs <= _TOO_MANY_PAIRS))
        for block in blocks_of(np.ones(len(unsure), np.int64), _BLOCK_SIGNATURES):
            chosen = unsure[block]
            is_few[chosen] = are_far(owner[chosen], self.lists[self.start[first[chosen]]])
        return np.repeat(is_few, np.diff(first, append=len(self.owner)))


def _propose(bands: np.ndarray, reference: np.ndarray, candidates: np.ndarray) -> _Proposals:
    """Join the band keys [num_bands, n] of the rows of both sides by one sort a band.

    A key's low bits make room for the row's number, so that plain integers are sorted. What collides by the
    cut is refused later.
    """
    none = np.zeros(0, np.int64)
    num_reference, num_rows = len(reference), len(reference) + len(candidates)
    if not num_reference or not len(candidates):
        return _Proposals(none, none, none, none)
    bits = _UINT64(int(num_rows).bit_length())
    low = (_UINT64(1) << bits) - _UINT64(1)
    owners, starts, counts, lists, base = [], [], [], [], 0
    for band in bands:
        mine, theirs = _keys_of_both(band[reference], band[candidates])
        keys = np.concatenate([band[reference[mine]], band[candidates[theirs]]])
        packed = (keys & ~low) | np.concatenate([mine, theirs + num_reference]).astype(_UINT64)
        packed.sort()
        is_alike = (packed[1:] ^ packed[:-1]) <= low
        # Most texts are alone in their bucket.
        packed = packed[np.append(is_alike, False) | np.append(False, is_alike)]
        if not len(packed):
            continue
        bucket = np.cumsum(np.append(False, (packed[1:] ^ packed[:-1]) > low))
        number = (packed & low).astype(np.int64)
        is_reference = number < num_reference
        # Reference texts have the lower numbers: within a bucket they come first.
        num_mine = np.bincount(bucket[is_reference], minlength=bucket[-1] + 1)
        before = np.cumsum(num_mine) - num_mine
        paired = ~is_reference & (num_mine[bucket] > 0)
        owners.append(number[paired] - num_reference)
        starts.append(before[bucket[paired]] + base)
        counts.append(num_mine[bucket[paired]])
        lists.append(number[is_reference])
        base += len(lists[-1])
    if not lists:
        return _Proposals(none, none, none, none)
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return _Proposals(
        owner[order], np.concatenate(starts)[order], np.concatenate(counts)[order], np.concatenate(lists)
    )


def _keys_of_both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions on the longer side whose key the shorter one may have (by a table of key bits),
    and all of the shorter one.
    """
    if len(first) > len(second):
        theirs, mine = _keys_of_both(second, first)
        return mine, theirs
    shift = _UINT64(64 - max(10, (_SLOTS_A_KEY * len(first)).bit_length()))
    table = np.zeros(1 << (64 - int(shift)), bool)
    table[first >> shift] = True
    return np.arange(len(first)), np.flatnonzero(table[second >> shift])


def are_far(
    sketches: Sketches,
    similarity: float | np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    deviations: float = _DEVIATIONS,
) -> np.ndarray:
    """Return whether the signatures of two lists of rows show that they have less than a similarity.

    `deviations`: standard deviations that an estimate may be off.
    """
    num_bins = sketches.signatures.shape[1]
    num_equal = np.count_nonzero(sketches.signatures[first] == sketches.signatures[second], axis=1)
    larger = np.maximum(sketches.sizes[first], sketches.sizes[second])
    return num_equal < num_bins * _least_estimate(larger, similarity, num_bins, deviations)


def _least_estimate(
    sizes: np.ndarray, similarity: float | np.ndarray, num_bins: int, deviations: float = _DEVIATIONS
) -> np.ndarray:
    """Return the least share of equal bins that two texts with a similarity may be expected to have.

    Shingles fall into the bins by chance; each of the `empty` borrows the value of one of the `filled` by
    chance. So the share is a mean over the filled bins, each weighted by 1 and by how many borrow from it, a
    Poisson number with a mean of empty / filled.

    Args:
        sizes: shingles of the larger text of each pair: their union has as many at least.
        similarity: that they have.
        num_bins: of a text.
        deviations: standard deviations below the mean.
    """
    filled = num_bins * (1 - (1 - 1 / num_bins) ** sizes)
    empty = num_bins - filled
    variance = similarity * (1 - similarity) * (filled + 3 * empty + empty**2 / filled) / num_bins**2
    return similarity - deviations * np.sqrt(variance)


@dataclass(frozen=True)
class _Search:
    """The search for one confirmed partner of each candidate.

    Attributes:
        proposals: the candidate pairs.
        first: first range of each candidate with pairs, and the number of ranges.
        sets: shingle sets of these candidates, in order, then of the reference texts.
        set_of: position in `sets` of each reference text.
        is_out: bool [reference texts], those that no candidate is compared with.
        similarity: the threshold.
        are_far: returns of (candidates, reference texts) which pairs are far by their signatures. No such
            pair counts as near, also where not all were looked at before: whether a pair is near depends on
            nothing but the two texts.
    """

    proposals: _Proposals
    first: np.ndarray
    sets: ShingleSets
    set_of: np.ndarray
    is_out: np.ndarray
    similarity: float
    are_far: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def run(self, wanted: np.ndarray) -> np.ndarray:
        """Return for each candidate a reference text that it is near to, or -1; in rounds of 1, 2, 4, ...
        pairs a candidate.

        Args:
            wanted: bool [candidates], those that one is looked for.
        """
        pairs_before = np.concatenate([[0], np.cumsum(self.proposals.count)])
        done, end = pairs_before[self.first[:-1]], pairs_before[self.first[1:]]
        partner = np.full(len(done), -1)
        left = np.flatnonzero(wanted)
        tries = 1
        while len(left):
            stop = np.minimum(done[left] + tries, end[left])
            for block in blocks_of(stop - done[left], _BLOCK_PAIRS):
                who, other = self._pairs(left[block], done[left[block]], stop[block], pairs_before)
                near = np.flatnonzero(self._are_near(who, self.set_of[other]))
                near = near[~self.are_far(who[near], other[near])]
                partner[who[near]] = other[near]
            done[left] = stop
            left = left[(partner[left] < 0) & (done[left] < end[left])]
            tries *= 2
            if tries == _TRIES_UNAIDED:
                left = left[self._have_support(left)]
        return partner

    def _pairs(
        self, who: np.ndarray, start: np.ndarray, stop: np.ndarray, pairs_before: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (candidate, reference text) of the pairs numbered start to stop of each candidate, each pair
        once, sizes comparable.
        """
        proposals = self.proposals
        number = expand(start, stop - start)
        who = np.repeat(who, stop - start)
        place = np.searchsorted(pairs_before, number, "right") - 1
        other = proposals.lists[proposals.start[place] + number - pairs_before[place]]
        mine, theirs = self.sets.sizes[who], self.sets.sizes[self.set_of[other]]
        able = ~self.is_out[other] & (np.minimum(mine, theirs) >= self.similarity * np.maximum(mine, theirs))
        pair = distinct(who[able] * len(self.set_of) + other[able])
        return pair // len(self.set_of), pair % len(self.set_of)

    def _are_near(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether the sets at two lists of positions are near, by the exact similarity."""
        both = self.sets.sizes[first] + self.sets.sizes[second]
        shared = count_shared(self.sets, first, second)
        return shared / (both - shared) >= self.similarity

    def _have_support(self, who: np.ndarray) -> np.ndarray:
        """Return which candidates share enough shingles with all their reference texts together to be near to
        one.
        """
        if not len(who):
            return np.zeros(0, bool)
        ranges = expand(self.first[who], self.first[who + 1] - self.first[who])
        theirs = self.set_of[self.proposals.listed(ranges)]
        known = distinct(self.sets.values_of(theirs))
        sizes = self.sets.sizes[who]
        supported, _ = positions(known, self.sets.values_of(who))
        return (
            np.add.reduceat(supported.astype(np.int64), np.cumsum(sizes) - sizes) >= self.similarity * sizes
        )


def count_shared(sets: ShingleSets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how many values the sets at two lists of positions share, pair by pair."""
    both, shared = sets.sizes[first] + sets.sizes[second], np.zeros(len(first), np.int64)
    large, small = np.flatnonzero(both > _LARGE_PAIR), np.flatnonzero(both <= _LARGE_PAIR)
    shared[large] = [
        _num_shared(sets.row(a), sets.row(b))
        for a, b in zip(first[large].tolist(), second[large].tolist(), strict=True)
    ]
    for block in blocks_of(both[small], _BLOCK_VALUES, BLOCK_ROWS):
        shared[small[block]] = _shared(sets, first[small[block]], second[small[block]])
    return shared


def _num_shared(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of values that two ascending arrays share, each without repetition."""
    merged = np.concatenate([first, second])
    merged.sort(kind="stable")  # merges what ascends already
    return int(np.count_nonzero(merged[1:] == merged[:-1]))


def _shared(sets: ShingleSets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of values that the sets at two lists of positions share, pair by pair: one sort of
    (pair, value).
    """
    packed = []
    for side in (first, second):
        sizes = sets.sizes[side]
        pair = np.repeat(np.arange(len(side), dtype=_UINT64), sizes)
        packed.append((pair << _UINT64(HASH_BITS)) | sets.values_of(side))
    merged = np.concatenate(packed)
    merged.sort(kind="stable")
    twice = merged[1:][merged[1:] == merged[:-1]] >> _UINT64(HASH_BITS)
    return np.bincount(twice.astype(np.int64), minlength=len(first))


def blocks_of(sizes: np.ndarray, most: int, most_rows: int | None = None) -> list[slice]:
    """Return slices of about `most` in the sum of sizes, and at most `most_rows` rows."""
    block = np.cumsum(sizes) // most
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    step = most_rows or max(1, len(sizes))
    return [
        slice(i, min(i + step, end))
        for start, end in zip(cuts, cuts[1:], strict=False)
        for i in range(start, end, step)
    ]


def positions(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each wanted value is among the known ones (ascending), and the place that it has or
    would have there.
    """
    if not len(known):
        return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[place] == wanted, place


def near_duplicates(
    reference: Sequence[str], candidates: Sequence[str], similarity: float, seed: int
) -> dict[int, int]:
    """Return the candidates that are near-duplicates of a reference text.

    Returns:
        For each near candidate's position the position of one reference text it is near to.
    """
    if not reference or not candidates:
        return {}
    import pyarrow as pa

    sets = shingle_sets(pa.array([*reference, *candidates], pa.string()), seed)
    rows = np.arange(len(sets.sizes))
    near, partner = find_near(
        sketch_sets(sets, similarity), rows[: len(reference)], rows[len(reference) :], similarity, sets.select
    )
    order = np.argsort(near)
    return dict(zip((near[order] - len(reference)).tolist(), partner[order].tolist(), strict=True))
