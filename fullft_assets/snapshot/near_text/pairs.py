"""Texts that are nearly equal, or inside longer ones: joins of sketches propose pairs, the exact similarity
of the word shingles confirms each.

A sketch has the MinHashes of a text's shingles (Broder 1997, "On the resemblance and containment of
documents"): two texts agree in each with a probability of their Jaccard similarity. Texts that agree in all
MinHashes of a band (Leskovec et al., Mining of Massive Datasets, ch. 3) are a candidate pair, and one bit of
each MinHash (Li and Koenig 2010, b-bit minwise hashing) shows which of those are far from near.

A text inside a longer one has a small similarity to it. What shows it are its anchors: the least hash of each
WINDOW consecutive runs of RUN_WORDS words (Roberts et al. 2004, "Reducing storage requirements for biological
sequence comparison"). A passage of 18 words that is quoted word for word keeps one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fullft_assets.snapshot.all_rows import distinct, expand
from fullft_assets.snapshot.near_text.engine import load_engine, searched
from fullft_assets.snapshot.near_text.words import (
    HASH_BITS,
    Words,
    blocks,
    distinct_shingles,
    hash_lists,
    hash_runs,
    num_values,
    shingle_sets,
    shingle_words,
)

if TYPE_CHECKING:
    from daft import DataFrame

#: Jaccard similarity of word shingles from which two texts are near-duplicates.
SIMILARITY = 0.8
#: A pair exactly at that similarity agrees in one of 20 bands of 6 MinHashes in 998 of 1,000 cases.
_BAND_HASHES = 6
_NUM_BANDS = 20
NUM_HASHES = _NUM_BANDS * _BAND_HASHES
#: Standard deviations that an estimate may be off: more is seen of three pairs in 100,000.
_DEVIATIONS = 4
#: Reference texts that a candidate is compared with at most: the nearest by the bits of each residue of the
#: texts' numbers. It bounds what a bucket of thousands of texts costs.
_SLOTS = 128
#: Bits of a text's number, a hash of its shingles: rows' numbers would depend on the batches.
_NUMBER_BITS = 55
#: Consecutive runs of which one is an anchor, a power of 2.
WINDOW = 8
RUN_WORDS = 11
#: Texts that an anchor may be in: what is in more is a disclaimer or a standard clause.
MAX_ROWS = 100
#: Anchors that the shorter text loses with the share of its shingles that the longer one lacks: a word that
#: differs is in three shingles, and in 11 runs.
_LOST_ANCHORS = 12
#: Least share of them that the longer one has, whatever is lost.
_LEAST_ANCHORS = 0.1
#: Least distinct shingles of a text that is looked for in longer ones: shorter ones are phrases that anybody
#: may write.
_LEAST_SIZE = 16
#: What a row is in a comparison: neither, a reference text, or a candidate that is like none of them, or like
#: one.
ABSENT, REFERENCE, UNLIKE, ALIKE = range(4)
#: Candidates that are joined at once.
_JOINED_ROWS = 1 << 17
#: Shingles of the texts that are read at once: about 100 MB of texts. Any texts are in all batches, so that
#: fewer at once would be read from all of their files again and again.
_READ_SHINGLES = 1 << 24
#: Pairs that are looked at at once. Above the bits of a shingle's hash fits the number of a pair.
_PAIRS_AT_ONCE = 1 << (64 - HASH_BITS)
#: A hash function is the product with an odd number, modulo 2^64; shingles are hashes already.
_FACTORS = np.frombuffer(hashlib.shake_128(b"minhash").digest(8 * NUM_HASHES), "<u8") | np.uint64(1)

#: Bits by which values are looked up at most, in 64 MB.
_LOOK_UP_BITS = 26

#: Returns the texts of rows (ascending).
ReadTexts = Callable[[np.ndarray], "pa.Array | pa.ChunkedArray"]
#: Returns which pairs of texts are alike, by the numbers of shingles of both and how many they share.
AreAlike = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def sketch(texts: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the sketches of texts, one row a text; they depend on nothing but each text.

    Columns: `keys` of the bands, `bits` of the MinHashes for the joins, and a byte of each (`signature`) for
    what they propose; `anchors`, `number` (a hash of all shingles), and `size`: the distinct shingles.
    """
    schema = pa.schema(
        {
            "size": pa.int32(),
            "number": pa.int64(),
            "bits": pa.binary(NUM_HASHES // 8),
            "signature": pa.binary(NUM_HASHES),
            "keys": pa.list_(pa.uint32()),
            "anchors": pa.list_(pa.uint32()),
        }
    )
    return pa.Table.from_batches([_sketch_block(block, schema) for block in blocks(texts)], schema)


def _sketch_block(texts: pa.Array, schema: pa.Schema) -> pa.RecordBatch:
    words = hash_lists(shingle_words(texts))
    hashes, sizes = distinct_shingles(words)
    starts = np.cumsum(sizes) - sizes
    minima = np.empty((NUM_HASHES, len(texts)), np.uint64)
    for number, factor in enumerate(_FACTORS):
        minima[number] = np.minimum.reduceat(hashes * factor, starts)
    keys = (minima * _FACTORS[:, None]).reshape(_NUM_BANDS, _BAND_HASHES, -1).sum(axis=1) >> np.uint64(32)
    # The upper bits of a minimum are zeros.
    signatures = np.ascontiguousarray((minima.T >> np.uint64(32)).astype(np.uint8))
    bits = np.packbits(signatures & 1, axis=1)
    columns = [
        pa.array(sizes, pa.int32()),
        pa.array((np.add.reduceat(hashes * _FACTORS[0], starts) >> np.uint64(64 - _NUMBER_BITS)), pa.int64()),
        *(
            pa.FixedSizeBinaryArray.from_buffers(
                schema.field(name).type, len(texts), [None, pa.py_buffer(values.tobytes())]
            )
            for name, values in (("bits", bits), ("signature", signatures))
        ),
        pa.ListArray.from_arrays(
            np.arange(0, keys.size + 1, _NUM_BANDS, dtype=np.int32), keys.T.astype(np.uint32).ravel()
        ),
        _anchors(words),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _anchors(words: Words) -> pa.ListArray:
    """Return the distinct anchors of each text, ascending."""
    hashes, text = hash_runs(words, RUN_WORDS + np.arange(len(words.hashes)))
    # Above the hash is the number of the text, so that a window that reaches over two has the least of the
    # first one.
    least = (text.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32))
    least = np.append(least, np.full(WINDOW - 1, ~np.uint64(0)))
    size = 1
    while size < WINDOW:
        least = np.minimum(least[:-size], least[size:])
        size *= 2
    # Whole windows, and of a text with fewer runs the first one.
    is_whole = np.append(text, np.full(WINDOW - 1, -1))[WINDOW - 1 :] == text
    is_first = np.append(-1, text)[:-1] != text
    least = least[is_whole | is_first]
    # Neighbouring windows often have one minimum: fewer are sorted.
    least = distinct(least[np.append(True, least[1:] != least[:-1])[: len(least)]])
    counts = np.bincount((least >> np.uint64(32)).astype(np.int64), minlength=len(words.counts))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(starts, least.astype(np.uint32))


@dataclass(frozen=True)
class Texts:
    """Texts that are compared: n rows.

    Attributes:
        sketches: of all rows, part by part in their order.
        read: reads the texts of rows.
    """

    sketches: Sequence[pa.Table]
    read: ReadTexts

    def find_near(
        self, reference: np.ndarray, candidates: np.ndarray, similarity: float = SIMILARITY
    ) -> dict[int, int]:
        """Return the candidates that are near to a reference text, each with one row that it is near to.

        Args:
            reference, candidates: rows, disjoint.
            similarity: least Jaccard similarity of the shingles; pairs below SIMILARITY are hardly proposed.
        """
        if not len(reference) or not len(candidates):
            return {}
        proposed = searched(lambda: self._propose_near(reference, candidates, similarity))
        proposed = proposed[:, self._estimates(proposed) >= _least_estimate(similarity)]
        return self._confirm(
            proposed,
            lambda first, second, num_shared: num_shared >= similarity * (first + second - num_shared),
        )

    def _propose_near(self, reference: np.ndarray, candidates: np.ndarray, similarity: float) -> np.ndarray:
        """Return pairs of rows [2, n] that may be near to each other: candidates (ascending), references."""
        daft = load_engine()
        col = daft.col
        keys = self._values("keys", min(reference, candidates, key=len))
        lookup = self._side(reference, "reference", "keys", keys, "bits", "number")
        lookup = lookup.with_column_renamed("bits", "reference_bits").collect()
        distance = daft.functions.hamming_distance(col("bits"), col("reference_bits"))
        # One number orders the pairs by their distance, then by the reference text.
        order_number = distance.cast(daft.DataType.int64()) * (1 << _NUMBER_BITS) + col("number")
        end = (_largest_distance(similarity) + 1) << _NUMBER_BITS
        parts = []
        for start in range(0, len(candidates), _JOINED_ROWS):
            frame = self._side(candidates[start : start + _JOINED_ROWS], "candidate", "keys", keys, "bits")
            pairs = frame.join(lookup, on="keys").with_column("pair", order_number)
            nearest_pairs = pairs.where(col("pair") < end).groupby("candidate", col("number") % _SLOTS)
            parts.append(nearest_pairs.agg(col("pair").min()).to_arrow())
        nearest = pa.concat_tables(parts).sort_by([("candidate", "ascending"), ("pair", "ascending")])
        numbers = self._column("number").to_numpy()[reference]
        order = np.argsort(numbers, kind="stable")
        number = nearest["pair"].to_numpy() & ((1 << _NUMBER_BITS) - 1)
        return np.stack(
            [nearest["candidate"].to_numpy(), reference[order[np.searchsorted(numbers[order], number)]]]
        )

    def compare_near(self, roles: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the roles of rows, ALIKE for the candidates that are near to a reference text.

        Args:
            roles: int8 [n], ABSENT, REFERENCE or UNLIKE (a candidate).
            last: int8 [n], what an earlier comparison of these rows returned, ABSENT for new ones. It saves
                time and changes nothing.
        """
        # A reference text that comes or goes changes which are the nearest ones of their residue.
        changed_rows = np.flatnonzero((roles == REFERENCE) != (last == REFERENCE))
        compared, candidates = self._settle(roles, last, "keys", self._values("keys", changed_rows))
        compared[list(self.find_near(np.flatnonzero(roles == REFERENCE), candidates))] = ALIKE
        return compared

    def compare_contained(self, roles: np.ndarray, last: np.ndarray, share: float) -> np.ndarray:
        """Return the roles of rows, ALIKE for the candidates that contain a reference text or are inside one.

        Args:
            roles, last: see `compare_near`.
            share: least share of the shorter text's shingles that the longer one has, the same for `last`.
        """
        sizes = self._column("size").to_numpy()
        roles = np.where(sizes >= _LEAST_SIZE, roles, ABSENT)
        common = self._common_anchors(roles)
        changed_anchors = np.setxor1d(common, self._common_anchors(last))
        removed = self._values("anchors", np.flatnonzero((last == REFERENCE) & (roles != REFERENCE)))
        changed_anchors = np.append(changed_anchors, np.setdiff1d(removed, common))
        compared, candidates = self._settle(roles, last, "anchors", changed_anchors)
        reference = np.flatnonzero(roles == REFERENCE)
        added = reference[last[reference] != REFERENCE]
        settled = np.setdiff1d(np.flatnonzero(compared == UNLIKE), candidates)
        proposed = [
            searched(partial(self._propose_contained, *rows, share, common))
            for rows in ((reference, candidates), (added, settled))
            if all(map(len, rows))
        ]
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *proposed], axis=1)
        # The least similarity of two texts of which the longer one has this share of the shorter one.
        shared_shingles = share * sizes[pairs].min(axis=0)
        similarity = shared_shingles / (sizes[pairs].sum(axis=0) - shared_shingles)
        pairs = pairs[:, self._estimates(pairs) >= _least_estimate(similarity)]
        contained = self._confirm(
            pairs[:, np.lexsort((pairs[1], pairs[0]))],
            lambda first, second, num_shared: num_shared >= share * np.minimum(first, second),
        )
        compared[list(contained)] = ALIKE
        return compared

    def _settle(
        self, roles: np.ndarray, last: np.ndarray, name: str, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the roles of rows, in which the last search's results replace `UNLIKE`, and the positions of
        the rows that must be searched again: new rows, and rows whose lists contain one of the values.
        """
        is_settled = (roles == UNLIKE) & (last >= UNLIKE)
        if is_settled.any():
            entries, rows = self._entries(name, np.flatnonzero(is_settled), values)
            is_settled[rows[np.isin(entries, values)]] = False
        return np.where(is_settled, last, roles), np.flatnonzero((roles == UNLIKE) & ~is_settled)

    def _propose_contained(
        self, reference: np.ndarray, candidates: np.ndarray, share: float, common: np.ndarray
    ) -> np.ndarray:
        """Return pairs of rows [2, n], candidates and references, that share enough rare anchors."""
        daft = load_engine()
        anchors = np.setdiff1d(self._values("anchors", min(reference, candidates, key=len)), common)
        entries, rows = self._entries("anchors", reference, anchors)
        is_rare = ~np.isin(entries, common)
        lookup = daft.from_arrow(pa.table({"anchors": entries[is_rare], "reference": rows[is_rare]}))
        parts = []
        for start in range(0, len(candidates), _JOINED_ROWS):
            frame = self._side(candidates[start : start + _JOINED_ROWS], "candidate", "anchors", anchors)
            counts = (
                frame.join(lookup, on="anchors")
                .groupby("candidate", "reference")
                .agg(daft.col("anchors").count().alias("num_shared"))
                .to_arrow()
            )
            parts.append(self._with_enough_anchors(counts, share))
        return np.concatenate(parts, axis=1)

    def _side(
        self, rows: np.ndarray, name: str, exploded: str, values: np.ndarray, *columns: str
    ) -> DataFrame:
        """Return a frame of some rows: their numbers, a value of a list a row, and other columns. Most of
        what is not in `values` is left out.
        """
        entries, numbers = self._entries(exploded, rows, values)
        side_columns = pa.concat_tables(self.sketches).select(columns).take(pa.array(numbers))
        side = pa.table({exploded: entries, name: numbers, **dict(zip(columns, side_columns, strict=True))})
        return load_engine().from_arrow(side)

    def _entries(self, name: str, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values in the lists of some rows (ascending), and the row of each. Most of what is not
        in `values` is left out.
        """
        num_bits = min((16 * len(values)).bit_length(), _LOOK_UP_BITS)
        low_bits = np.uint32((1 << num_bits) - 1)
        is_value = np.zeros(1 << num_bits, bool)
        is_value[values & low_bits] = True
        lists = self._lists(name, rows)
        entries = lists.flatten().to_numpy()
        positions = np.flatnonzero(is_value[entries & low_bits])
        numbers = np.searchsorted(np.cumsum(num_values(lists)), positions, "right")
        return entries[positions], rows[numbers]

    def _values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the values in the lists of some rows."""
        return self._lists(name, rows).flatten().to_numpy()

    def _lists(self, name: str, rows: np.ndarray) -> pa.ListArray:
        mask = np.zeros(sum(map(len, self.sketches)), bool)
        mask[rows] = True
        return pa.concat_tables(self.sketches)[name].filter(pa.array(mask)).combine_chunks()

    def _common_anchors(self, roles: np.ndarray) -> np.ndarray:
        """Return the anchors that more than MAX_ROWS of the compared rows have."""
        anchors = np.sort(self._values("anchors", np.flatnonzero(roles)))
        return distinct(anchors[MAX_ROWS:][anchors[MAX_ROWS:] == anchors[:-MAX_ROWS]])

    def _column(self, name: str) -> pa.Array:
        return pa.concat_tables(self.sketches)[name].combine_chunks()

    def _estimates(self, pairs: np.ndarray) -> np.ndarray:
        """Return the estimated similarity of each pair of rows [2, n]: the share of equal signature bytes."""
        column = self._column("signature")
        data = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, NUM_HASHES)
        signatures = data[column.offset : column.offset + len(column)]
        estimates = np.zeros(pairs.shape[1])
        for start in range(0, len(estimates), _PAIRS_AT_ONCE):
            block = slice(start, start + _PAIRS_AT_ONCE)
            estimates[block] = (signatures[pairs[0, block]] == signatures[pairs[1, block]]).mean(axis=1)
        return estimates

    def _with_enough_anchors(self, pair_counts: pa.Table, share: float) -> np.ndarray:
        """Return the pairs [2, n] of which the longer text has enough of the shorter one's anchors."""
        sizes = self._column("size").to_numpy()
        counts = num_values(self._column("anchors"))
        pairs = np.stack([pair_counts["candidate"].to_numpy(), pair_counts["reference"].to_numpy()])
        shorter = np.where(sizes[pairs[0]] < sizes[pairs[1]], *pairs)
        least = max(_LEAST_ANCHORS, 1 - _LOST_ANCHORS * (1 - share))
        return pairs[:, pair_counts["num_shared"].to_numpy() >= least * counts[shorter]]

    def _confirm(self, pairs: np.ndarray, are_alike: AreAlike) -> dict[int, int]:
        """Return the first pair of each candidate whose texts are alike by their shingles.

        Args:
            pairs: int64 [2, n], candidates (ascending) and reference rows.
            are_alike: see `AreAlike`.
        """
        # The first pair of every candidate before any second one: most need no other.
        pairs = pairs[
            :, np.argsort(np.arange(pairs.shape[1]) - np.searchsorted(pairs[0], pairs[0]), kind="stable")
        ]
        partners: dict[int, int] = {}
        num_shingles = self._column("size").to_numpy()
        while pairs.shape[1]:
            num_read = np.searchsorted(np.cumsum(num_shingles[pairs].sum(axis=0)), _READ_SHINGLES) + 1
            block, pairs = np.split(pairs, [num_read], axis=1)
            rows = distinct(block.ravel())
            sizes, num_shared = _count_shared(self.read(rows), np.searchsorted(rows, block))
            alike = block[:, are_alike(*sizes, num_shared)]
            # The first of several pairs of a candidate counts.
            partners |= dict(alike[:, ::-1].T.tolist())
            pairs = pairs[:, ~np.isin(pairs[0], alike[0])]
        return partners


def _count_shared(texts: pa.Array | pa.ChunkedArray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of distinct shingles of both texts of each pair [2, n], and how many they share [n].

    Args:
        texts: all that are in a pair.
        pairs: int64 [2, n], positions of texts.
    """
    hashes, sizes = shingle_sets(texts)
    starts = np.cumsum(sizes) - sizes
    num_shared = [np.zeros(0, np.int64)]
    for start in range(0, pairs.shape[1], _PAIRS_AT_ONCE):
        block = pairs[:, start : start + _PAIRS_AT_ONCE]
        numbers = np.arange(block.shape[1], dtype=np.uint64) << np.uint64(HASH_BITS)
        packed = np.concatenate(
            [np.repeat(numbers, sizes[side]) | hashes[expand(starts[side], sizes[side])] for side in block]
        )
        packed.sort(kind="stable")
        twice = packed[1:][packed[1:] == packed[:-1]] >> np.uint64(HASH_BITS)
        num_shared.append(np.bincount(twice.astype(np.int64), minlength=block.shape[1]))
    return sizes[pairs], np.concatenate(num_shared)


def _largest_distance(similarity: float) -> int:
    """Return how many bits of two texts with a similarity may differ: a bit of unequal MinHashes is equal by
    chance in half of the cases.
    """
    differing = (1 - similarity) / 2
    return int(NUM_HASHES * differing + _DEVIATIONS * np.sqrt(NUM_HASHES * differing * (1 - differing)))


def _least_estimate(similarity: float | np.ndarray) -> float | np.ndarray:
    """Return the least share of equal MinHashes that two texts with a similarity may be expected to have."""
    return similarity - _DEVIATIONS * np.sqrt(similarity * (1 - similarity) / NUM_HASHES)


def near_duplicates(
    reference: Sequence[str], candidates: Sequence[str], similarity: float = SIMILARITY
) -> dict[int, int]:
    """Return the candidates that are near-duplicates of a reference text.

    Returns:
        For each near candidate's position the position of one reference text it is near to.
    """
    column = pa.array([*reference, *candidates], pa.string())
    rows = np.arange(len(column))
    partners = Texts([sketch(column)], column.take).find_near(
        rows[: len(reference)], rows[len(reference) :], similarity
    )
    return {row - len(reference): partner for row, partner in partners.items()}
