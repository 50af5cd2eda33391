"""Near-duplicates against slow references: every pair compared, the estimate of pairs whose similarity is
known.
"""

import importlib
import re
from dataclasses import replace

import numpy as np
import pytest

from fullft_assets.demos import licences
from fullft_assets.snapshot.near_text import minhash
from fullft_assets.snapshot.near_text.minhash import SIMILARITY
from fullft_assets.snapshot.near_text.shingles import HASH_BITS, ShingleSets

# The package has a function of that name.
near_duplicates = importlib.import_module("fullft_assets.snapshot.near_text.near_duplicates")


def shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_found_are_those_that_comparing_every_pair_finds() -> None:
    texts = sorted(
        {rule["text"] for rule in licences.rules() if rule["text"].strip()}, key=lambda text: text[::-1]
    )[::24]
    sets = [shingles(text) for text in texts]
    reference, candidates = range(0, len(texts), 4), [i for i in range(len(texts)) if i % 4]
    alike = {
        i: [k for k in reference if len(sets[i] & sets[k]) >= SIMILARITY * len(sets[i] | sets[k])]
        for i in candidates
    }
    found = near_duplicates.near_duplicates(
        [texts[i] for i in reference], [texts[i] for i in candidates], SIMILARITY, 17
    )
    near = [n for n, i in enumerate(candidates) if alike[i]]
    assert len(near) >= 20
    assert all(4 * partner in alike[candidates[n]] for n, partner in found.items())
    # A pair exactly at the threshold is proposed in 99 of 100 cases.
    assert len(found) >= 0.98 * len(near)


def test_a_bucket_of_thousands_of_texts_is_settled_whatever_is_looked_at_first() -> None:
    """Each candidate is in a bucket with many texts that share half of its shingles, and with one that it is
    near to.
    """
    rng = np.random.default_rng(0)
    template, *others = (rng.integers(0, 1 << HASH_BITS, 100, dtype=np.uint64) for _ in range(301))
    alike = [np.concatenate([template[:60], each[:40]]) for each in others]
    candidates = [np.concatenate([each[:95], template[95:]]) for each in alike[:150]]
    sets = [np.sort(each) for each in (*alike, *candidates)]
    shingles = ShingleSets.of(np.concatenate(sets), np.full(len(sets), 100))
    rows = np.arange(len(sets))
    sketches = replace(minhash.sketch_sets(shingles), bands=np.zeros((21, len(sets)), np.uint64))
    near, partners = near_duplicates.find_near(sketches, rows[:300], rows[300:], shingles.select)
    assert dict(zip(near.tolist(), partners.tolist(), strict=True)) == {300 + n: n for n in range(150)}


@pytest.mark.parametrize("size", [9, 45, 90, 450, 2_250])
def test_estimate_of_pairs_at_the_threshold_is_not_far(size: int) -> None:
    """Sets of `size` that share 8 of 9: a similarity of 0.8 exactly."""
    first, second = pairs(size, shared=size * 8 // 9)
    equal = (first.signatures == second.signatures).mean(axis=1)
    assert equal.mean() == pytest.approx(0.8, abs=0.02)
    assert not are_far(first, second).any()


def test_most_pairs_far_below_the_threshold_are_dropped() -> None:
    first, second = pairs(450, shared=300)
    assert are_far(first, second).mean() > 0.99


def are_far(first: minhash.Sketches, second: minhash.Sketches) -> np.ndarray:
    rows = np.arange(len(first.sizes))
    both = minhash.concatenate([first, second])
    return near_duplicates.are_far(both, SIMILARITY, rows, rows + len(first.sizes))


def pairs(size: int, shared: int, count: int = 2_000) -> tuple[minhash.Sketches, minhash.Sketches]:
    rng = np.random.default_rng(size)
    drawn = rng.integers(0, 1 << HASH_BITS, (count, 2 * size - shared), dtype=np.uint64)
    return tuple(
        minhash.sketch_sets(ShingleSets.of(np.sort(values, axis=1).ravel(), np.full(count, size)))
        for values in (drawn[:, :size], drawn[:, size - shared :])
    )
