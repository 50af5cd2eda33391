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

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
#: What a row is in a comparison: neither, a reference text, or a candidate that is like none of them, or like
#: one. To ALIKE `compare_near` adds half of the residue of the text that it is like.
ABSENT, REFERENCE, UNLIKE, ALIKE = range(4)
#: Candidates that are joined at once, and where they are few: those that are searched again have many near
#: texts, and pairs take memory.
_JOINED_ROWS = 1 << 17
_FEWEST_JOINED_ROWS = 1 << 14
#: Low bits by which values are looked up at most, in 64 MB.
_LOOK_UP_BITS = 26
#: Pairs whose signatures are compared at once.
_ESTIMATED_PAIRS = 1 << 17
#: Pairs that are confirmed at once at most.
_CONFIRMED_PAIRS = 1 << 22
#: Shingles of the texts that are read at once, of 8 bytes. Any texts are in all batches, so that fewer at
#: once would be read from all of their files again and again.
_READ_SHINGLES = 1 << 25
#: Pairs that are looked at at once. Above the bits of a shingle's hash fits the number of a pair.
_PAIRS_AT_ONCE = 1 << (64 - HASH_BITS)
#: A hash function is the product with an odd number, modulo 2^64; shingles are hashes already.
_FACTORS = np.frombuffer(hashlib.shake_128(b"minhash").digest(8 * NUM_HASHES), "<u8") | np.uint64(1)


_NONE = np.zeros(0, np.uint32)
#: Returns of values whether they may be among some others.
LookUp = Callable[[np.ndarray], np.ndarray]
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
    least = least[is_whole | (np.append(-1, text)[:-1] != text)]
    # Neighbouring windows often have one minimum: fewer are sorted.
    least = distinct(least[np.append(True, least[1:] != least[:-1])[: len(least)]])
    counts = np.bincount((least >> np.uint64(32)).astype(np.int64), minlength=len(words.counts))
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(counts)).astype(np.int32), least.astype(np.uint32))


@dataclass(frozen=True)
class Texts:
    """Texts that are compared: n rows.

    Attributes:
        sketches: of all rows, part by part in their order: each reads a column of a table of `sketch`.
        read: reads the texts of rows.
    """

    sketches: Sequence[Callable[[str], pa.ChunkedArray]]
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
        return self._confirm(
            searched(lambda: self._propose_near(reference, candidates, similarity)), _are_near(similarity)
        )

    def _propose_near(
        self,
        reference: np.ndarray,
        candidates: np.ndarray,
        similarity: float,
        last: np.ndarray | None = None,
        least: float | None = None,
    ) -> np.ndarray:
        """Return pairs of rows [2, n] that may be near to each other: candidates (ascending), references.

        Args:
            last: see `compare_near`. Of a candidate that is ALIKE then the pairs with reference texts that
                may have the place of the one that it is like.
            least: estimate of the similarity. Default: what that similarity may be expected to have.
        """
        daft = load_engine()
        col = daft.col
        # One number orders the pairs by their distance, then by the reference text.
        distance = daft.functions.hamming_distance(col("bits"), col("reference_bits"))
        order_number = distance.cast(daft.DataType.int64()) * (1 << _NUMBER_BITS) + col("number")
        # A bit of unequal MinHashes is equal by chance in half of the cases.
        differing = (1 - similarity) / 2
        deviation = np.sqrt(NUM_HASHES * differing * (1 - differing))
        end = (int(NUM_HASHES * differing + _DEVIATIONS * deviation) + 1) << _NUMBER_BITS
        signatures = self._bytes("signature", reference)
        bits = np.packbits(signatures & 1, axis=1)
        numbers = self._bytes("number", reference).view(np.int64)[:, 0]
        order = np.argsort(numbers, kind="stable")
        ordered_numbers = numbers[order]
        parts = [np.zeros((2, 0), np.int64)]
        for entries, lookup in self._sides("keys", reference, candidates):
            position = np.searchsorted(reference, lookup["reference"])
            candidate_bits = self._bytes("bits", entries["candidate"].to_numpy())
            lookup = lookup.append_column("reference_bits", _binary(bits[position]))
            pairs = daft.from_arrow(entries.append_column("bits", _binary(candidate_bits))).join(
                daft.from_arrow(lookup.append_column("number", [numbers[position]])), on="keys"
            )
            nearest_pairs = (
                pairs.with_column("pair", order_number)
                .where(col("pair") < end)
                .groupby("candidate", col("number") % _SLOTS)
                .agg(col("pair").min())
                .to_arrow()
                .sort_by([("candidate", "ascending"), ("pair", "ascending")])
            )
            number = nearest_pairs["pair"].to_numpy() & ((1 << _NUMBER_BITS) - 1)
            position = order[np.searchsorted(ordered_numbers, number)]
            proposed = np.stack([nearest_pairs["candidate"].to_numpy(), reference[position]])
            estimates = self._estimates(proposed[0], signatures, position)
            is_close = estimates >= (_least_estimate(similarity) if least is None else least)
            if last is not None:
                roles = last[proposed[0]]
                is_close = np.where(roles == UNLIKE, is_close, roles == ALIKE + number % _SLOTS // 2)
            parts.append(proposed[:, is_close])
        return np.concatenate(parts, axis=1)

    def compare_near(self, roles: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the roles of rows, ALIKE or more for the candidates that are near to a reference text.

        Args:
            roles: int8 [n], ABSENT, REFERENCE or UNLIKE (a candidate).
            last: int8 [n], what an earlier comparison of these rows returned, ABSENT for new ones. It saves
                time and changes nothing.
        """
        reference = np.flatnonzero(roles == REFERENCE)
        added = reference[last[reference] != REFERENCE]
        removed = np.flatnonzero((last == REFERENCE) & (roles != REFERENCE))
        is_settled = (roles == UNLIKE) & (last >= UNLIKE)
        # The next nearest text of a residue takes the place of one that goes, however alike that one was.
        is_settled[self._propose_changed(removed, is_settled, last, 0.0)[0]] = False
        pairs = self._propose_changed(added, is_settled, last, None)
        is_unlike = last[pairs[0]] == UNLIKE
        is_settled[pairs[0, ~is_unlike]] = False
        # No other text can have become near to it.
        is_settled[list(self._confirm(pairs[:, is_unlike], _are_near(SIMILARITY)))] = False
        compared = np.where(is_settled, last, roles)
        partners = self.find_near(reference, np.flatnonzero((roles == UNLIKE) & ~is_settled))
        if partners:
            numbers = self._bytes("number", np.fromiter(partners.values(), np.int64)).view(np.int64)[:, 0]
            compared[list(partners)] = ALIKE + numbers % _SLOTS // 2
        return compared

    def _propose_changed(
        self, reference: np.ndarray, is_settled: np.ndarray, last: np.ndarray, least: float | None
    ) -> np.ndarray:
        """Return pairs of settled candidates and texts that came or went (see `_propose_near`)."""
        candidates = np.flatnonzero(is_settled)
        if not len(reference) or not len(candidates):
            return np.zeros((2, 0), np.int64)
        return searched(lambda: self._propose_near(reference, candidates, SIMILARITY, last, least))

    def compare_contained(self, roles: np.ndarray, last: np.ndarray, share: float) -> np.ndarray:
        """Return the roles of rows, ALIKE for the candidates that contain a reference text or are inside one.

        Args:
            roles, last: see `compare_near`.
            share: least share of the shorter text's shingles that the longer one has, the same for `last`.
        """
        # Least distinct shingles of a text that is looked for in longer ones: shorter ones are phrases that
        # anybody may write.
        roles = np.where(self._sizes >= 16, roles, ABSENT)
        # Only anchors of these rows are in more or fewer rows than before.
        common, common_before = self._common_anchors(
            roles, last, np.flatnonzero(roles != np.minimum(last, UNLIKE))
        )
        removed = self._values("anchors", np.flatnonzero((last == REFERENCE) & (roles != REFERENCE)))
        # Fewer rare anchors make fewer pairs.
        lost = np.append(removed, np.setdiff1d(common, common_before, assume_unique=True))
        is_settled = self._are_settled(
            roles, last, np.setdiff1d(common_before, common, assume_unique=True), lost
        )
        compared = np.where(is_settled, last, roles)
        candidates = np.flatnonzero((roles == UNLIKE) & ~is_settled)
        common = np.union1d(
            common, self._common_anchors(roles, roles, candidates[last[candidates] != ABSENT])[0]
        )
        reference = np.flatnonzero(roles == REFERENCE)
        added = reference[last[reference] != REFERENCE]
        is_settled &= last == UNLIKE
        proposed = [
            searched(partial(self._propose_contained, *rows, share, common))
            for rows in ((reference, candidates), (added, np.flatnonzero(is_settled)))
            if all(map(len, rows))
        ]
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *proposed], axis=1)
        # The least similarity of two texts of which the longer one has this share of the shorter one.
        shared_shingles = share * self._sizes[pairs].min(axis=0)
        similarity = shared_shingles / (self._sizes[pairs].sum(axis=0) - shared_shingles)
        rows = distinct(pairs[1])
        estimates = self._estimates(pairs[0], self._bytes("signature", rows), np.searchsorted(rows, pairs[1]))
        pairs = pairs[:, estimates >= _least_estimate(similarity)]
        contained = self._confirm(
            pairs[:, np.lexsort((pairs[1], pairs[0]))],
            lambda first, second, num_shared: num_shared >= share * np.minimum(first, second),
        )
        compared[list(contained)] = ALIKE
        return compared

    def _are_settled(
        self, roles: np.ndarray, last: np.ndarray, of_unlike: np.ndarray, of_alike: np.ndarray
    ) -> np.ndarray:
        """Return which candidates keep what the last search returned: those of it that have none of the
        anchors that may change an UNLIKE, or an ALIKE: bool [n].
        """
        is_settled = (roles == UNLIKE) & (last >= UNLIKE)
        for role, values in ((UNLIKE, of_unlike), (ALIKE, of_alike)):
            rows = np.flatnonzero(is_settled & (np.minimum(last, ALIKE) == role))
            if len(rows) and len(values):
                entries, entry_rows = self._entries("anchors", rows, _look_up(values))
                is_settled[entry_rows[_is_in(entries, values)]] = False
        return is_settled

    def _propose_contained(
        self, reference: np.ndarray, candidates: np.ndarray, share: float, common: np.ndarray
    ) -> np.ndarray:
        """Return pairs of rows [2, n], candidates and references, that share enough rare anchors."""
        daft = load_engine()
        counts = np.concatenate(
            [num_values(sketches("anchors")).astype(np.int32) for sketches in self.sketches]
        )
        # Anchors that the shorter text loses with the share of its shingles that the longer one lacks: a word
        # that differs is in three shingles, and in 11 runs. Least share of them that the longer one has,
        # whatever is lost.
        least = max(0.1, 1 - 12 * (1 - share))
        parts = [np.zeros((2, 0), np.int64)]
        for entries, lookup in self._sides("anchors", reference, candidates, common):
            pair_counts = (
                daft.from_arrow(entries)
                .join(daft.from_arrow(lookup), on="anchors")
                .groupby("candidate", "reference")
                .agg(daft.col("anchors").count().alias("num_shared"))
                .to_arrow()
            )
            pairs = np.stack([pair_counts["candidate"].to_numpy(), pair_counts["reference"].to_numpy()])
            num_needed = least * counts[np.where(self._sizes[pairs[0]] < self._sizes[pairs[1]], *pairs)]
            parts.append(pairs[:, pair_counts["num_shared"].to_numpy() >= num_needed])
        return np.concatenate(parts, axis=1)

    def _sides(
        self, name: str, reference: np.ndarray, candidates: np.ndarray, common: np.ndarray = _NONE
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield both sides of a join, of some candidates at a time: a row for each value in the lists of the
        candidates, and of the reference texts. Most of what the other side does not have is left out, and
        what is `common` (ascending).
        """
        entries, rows = self._entries(
            name, reference, _look_up(self._values(name, min(reference, candidates, key=len)))
        )
        is_rare = ~_is_in(entries, common)
        # In the order of the bits by which they are looked up for each block.
        order = np.flatnonzero(is_rare)[np.argsort(entries[is_rare] << np.uint32(32 - _LOOK_UP_BITS))]
        entries, rows = (part[order] for part in (entries, rows))
        may_be_joined = _look_up(entries)
        size = min(_JOINED_ROWS, max(_FEWEST_JOINED_ROWS, len(candidates) // 16))
        for start in range(0, len(candidates), size):
            block = self._entries(name, candidates[start : start + size], may_be_joined)
            mask = _look_up(block[0])(entries)
            if mask.any():
                yield (
                    pa.table({name: block[0], "candidate": block[1]}),
                    pa.table({name: entries[mask], "reference": rows[mask]}),
                )

    def _entries(self, name: str, rows: np.ndarray, look_up: LookUp) -> tuple[np.ndarray, np.ndarray]:
        """Return the values in the lists of some rows (ascending) that are looked up, and the row of each."""
        entries = [_NONE]
        numbers = [np.zeros(0, np.int64)]
        for lists, part_rows in self._parts(name, rows):
            values = lists.flatten().to_numpy()
            mask = look_up(values)
            entries.append(values[mask])
            numbers.append(np.repeat(part_rows, num_values(lists))[mask])
        return np.concatenate(entries), np.concatenate(numbers)

    def _values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the values in the lists of some rows (ascending)."""
        return np.concatenate([_NONE, *(lists.flatten().to_numpy() for lists, _ in self._parts(name, rows))])

    def _parts(self, name: str, rows: np.ndarray) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yield a column's values of some rows (ascending), and the rows, part by part: a part is read when
        it is needed, and let go.
        """
        edges = self._edges.tolist()
        for sketches, start, end in zip(self.sketches, edges, edges[1:], strict=False):
            part_rows = rows[slice(*np.searchsorted(rows, [start, end]))]
            if len(part_rows):
                mask = np.zeros(end - start, bool)
                mask[part_rows - start] = True
                yield sketches(name).filter(pa.array(mask)).combine_chunks(), part_rows

    @cached_property
    def _edges(self) -> np.ndarray:
        """Number of the first row of each part, and the number of rows."""
        return np.cumsum([0, *(len(sketches("size")) for sketches in self.sketches)])

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Number of distinct shingles of each text: int32 [n]."""
        return np.concatenate([sketches("size").to_numpy() for sketches in self.sketches])

    def _common_anchors(
        self, roles: np.ndarray, last: np.ndarray, among: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the anchors of some rows (ascending) that more than MAX_ROWS of the compared rows have, and
        those that more had in the last comparison, ascending; perhaps with others that as many have.

        Args:
            among: at least the rows that only one of the two compared.
        """
        is_compared = roles != ABSENT
        was_compared = last != ABSENT
        rows = np.flatnonzero(is_compared & was_compared)
        if 8 * len(among) < len(rows):
            anchors = distinct(self._values("anchors", among))
            counts = self._count(anchors, rows)
            num_added = self._count(anchors, np.flatnonzero(is_compared & ~was_compared))
            num_removed = self._count(anchors, np.flatnonzero(was_compared & ~is_compared))
            return anchors[counts + num_added > MAX_ROWS], anchors[counts + num_removed > MAX_ROWS]
        common = self._all_common(np.flatnonzero(is_compared))
        return common, common if last is roles else self._all_common(np.flatnonzero(was_compared))

    def _count(self, anchors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return how many of these rows (ascending) have each anchor (ascending)."""
        counts = np.zeros(len(anchors), np.int64)
        for lists, _ in self._parts("anchors", rows if len(anchors) else rows[:0]):
            part = np.sort(lists.flatten().to_numpy())
            counts += np.searchsorted(part, anchors, "right") - np.searchsorted(part, anchors)
        return counts

    def _all_common(self, rows: np.ndarray) -> np.ndarray:
        """Return the anchors that more than MAX_ROWS of these rows (ascending) have, ascending."""
        # Some at a time, by their lowest bits, so that those of about four million rows are sorted at once.
        num_residues = 1 << (len(rows) >> 22).bit_length()
        common = [_NONE]
        for residue in range(num_residues):
            parts = [_NONE]
            for lists, _ in self._parts("anchors", rows):
                part = lists.flatten().to_numpy()
                parts.append(part[part & (num_residues - 1) == residue])
            anchors = np.sort(np.concatenate(parts))
            common.append(distinct(anchors[MAX_ROWS:][anchors[MAX_ROWS:] == anchors[:-MAX_ROWS]]))
        return np.sort(np.concatenate(common))

    def _bytes(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the bytes of a column's values of some rows: uint8 [n, width]."""
        distinct_rows = distinct(rows)
        parts = []
        for column, _ in self._parts(name, distinct_rows):
            data = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, column.type.bit_width // 8)
            parts.append(data[column.offset : column.offset + len(column)])
        return np.concatenate(parts)[np.searchsorted(distinct_rows, rows)] if parts else np.zeros(0)

    def _estimates(self, rows: np.ndarray, signatures: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return the estimated similarity of each row to another one: the share of equal signature bytes.

        Args:
            rows: [n].
            signatures: of others, uint8 [m, NUM_HASHES].
            position: [n] which of these each row is compared with.
        """
        estimates = [np.zeros(0)]
        for start in range(0, len(rows), _ESTIMATED_PAIRS):
            part = slice(start, start + _ESTIMATED_PAIRS)
            estimates.append(
                (self._bytes("signature", rows[part]) == signatures[position[part]]).mean(axis=1)
            )
        return np.concatenate(estimates)

    def _confirm(self, pairs: np.ndarray, are_alike: AreAlike) -> dict[int, int]:
        """Return the first pair of each candidate whose texts are alike by their shingles.

        Args:
            pairs: int64 [2, n], candidates (ascending) and reference rows.
            are_alike: see `AreAlike`.
        """
        partners: dict[int, int] = {}
        while pairs.shape[1]:
            rows, first = np.unique(pairs[:, :_CONFIRMED_PAIRS].T, return_index=True)
            num_shingles = np.zeros(2 * min(pairs.shape[1], _CONFIRMED_PAIRS), np.int64)
            num_shingles[first] = self._sizes[rows]
            num_read = np.searchsorted(np.cumsum(num_shingles)[1::2], _READ_SHINGLES) + 1
            block, pairs = np.split(pairs, [num_read], axis=1)
            rows = distinct(block.ravel())
            parts = [
                shingle_sets(self.read(part))
                for part in np.split(rows, np.searchsorted(rows, self._edges[1:-1]))
                if len(part)
            ]
            hashes, sizes = map(np.concatenate, zip(*parts, strict=True))
            while block.shape[1]:
                # The first pair of every candidate before any second one: most need no other.
                is_first = np.append(True, block[0, 1:] != block[0, :-1])
                numbers = np.searchsorted(rows, block[:, is_first])
                alike = block[:, is_first][
                    :, are_alike(*sizes[numbers], _count_shared(numbers, hashes, sizes))
                ]
                partners |= dict(alike.T.tolist())
                block = block[:, ~is_first & ~_is_in(block[0], alike[0])]
            pairs = pairs[:, ~_is_in(pairs[0], np.fromiter(partners, np.int64))]
        return partners


def _count_shared(pairs: np.ndarray, hashes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return how many distinct shingles the texts of each pair share: int64 [n].

    Args:
        pairs: int64 [2, n], numbers of texts.
        hashes, sizes: of the texts, see `shingle_sets`.
    """
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
    return np.concatenate(num_shared)


def _binary(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(values.shape[1]), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def _look_up(values: np.ndarray) -> LookUp:
    """Return what says whether other values may be among these; it is wrong for some that are not."""
    num_bits = min((16 * len(values)).bit_length(), _LOOK_UP_BITS)
    low_bits = np.uint32((1 << num_bits) - 1)
    is_value = np.zeros(1 << num_bits, bool)
    is_value[values & low_bits] = True
    return lambda queries: is_value[queries & low_bits]


def _is_in(values: np.ndarray, value_set: np.ndarray) -> np.ndarray:
    """Return whether each value is in a set: bool [n]. `np.isin` sorts them all."""
    return pc.is_in(pa.array(values), value_set=pa.array(value_set)).to_numpy(zero_copy_only=False)


def _are_near(similarity: float) -> AreAlike:
    return lambda first, second, num_shared: num_shared >= similarity * (first + second - num_shared)


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
    partners = Texts([sketch(column).column], column.take).find_near(
        *np.split(np.arange(len(column)), [len(reference)]), similarity=similarity
    )
    return {row - len(reference): partner for row, partner in partners.items()}
