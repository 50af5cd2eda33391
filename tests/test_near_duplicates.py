"""Near-duplicates against slow references: every pair compared, every lender asked, the estimate of pairs
whose similarity is known.
"""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from fullft_assets.demos import licences
from fullft_assets.snapshot import minhash
from fullft_assets.snapshot.shingles import HASH_BITS, ShingleSets

# The package has a function of that name.
near_duplicates = importlib.import_module("fullft_assets.snapshot.near_duplicates")
NUM_BINS = 126


def shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


@pytest.mark.parametrize(
    "similarity", [pytest.param(0.6, marks=pytest.mark.long), 0.8, pytest.param(0.9, marks=pytest.mark.long)]
)
def test_found_are_those_that_comparing_every_pair_finds(similarity: float) -> None:
    texts = sorted(
        {rule["text"] for rule in licences.rules() if rule["text"].strip()}, key=lambda text: text[::-1]
    )[::24]
    sets = [shingles(text) for text in texts]
    reference, candidates = range(0, len(texts), 4), [i for i in range(len(texts)) if i % 4]
    alike = {
        i: [k for k in reference if len(sets[i] & sets[k]) >= similarity * len(sets[i] | sets[k])]
        for i in candidates
    }
    found = near_duplicates.near_duplicates(
        [texts[i] for i in reference], [texts[i] for i in candidates], similarity, 17
    )
    near = [n for n, i in enumerate(candidates) if alike[i]]
    assert len(near) >= 20 and max(len(sets[i]) for i in candidates if alike[i]) > near_duplicates._LARGE_PAIR
    assert all(4 * partner in alike[candidates[n]] for n, partner in found.items())
    # A pair exactly at the threshold is proposed in 99 of 100 cases.
    assert len(found) >= 0.98 * len(near)


def test_an_empty_bin_borrows_from_the_first_filled_one_that_it_prefers() -> None:
    rng = np.random.default_rng(0)
    counts = [1, 2, minhash._MANY_FILLED, minhash._MANY_FILLED + 1, NUM_BINS - 1, NUM_BINS]
    is_filled = np.array([rng.permutation(NUM_BINS) < count for count in counts])
    values = np.where(is_filled, rng.integers(1, 1 << 60, is_filled.shape, dtype=np.uint64), 0)
    preferences = minhash._preferences(NUM_BINS)
    expected = [
        [
            row[bin] if filled[bin] else row[next(lender for lender in preferences[bin] if filled[lender])]
            for bin in range(NUM_BINS)
        ]
        for row, filled in zip(values, is_filled, strict=True)
    ]
    minhash._lend(values, is_filled)
    assert values.tolist() == expected


@pytest.mark.parametrize("size", [9, 45, 90, 450, 2_250])
def test_estimate_of_pairs_at_the_threshold_is_not_far(size: int) -> None:
    """Sets of `size` that share 8 of 9: a similarity of 0.8 exactly."""
    first, second = pairs(size, shared=size * 8 // 9)
    equal = (first.signatures == second.signatures).mean(axis=1)
    assert equal.mean() == pytest.approx(0.8, abs=0.02)
    assert (equal >= near_duplicates._least_estimate(first.sizes, 0.8, NUM_BINS)).all()


def test_most_pairs_far_below_the_threshold_are_dropped() -> None:
    first, second = pairs(450, shared=300)
    equal = (first.signatures == second.signatures).mean(axis=1)
    assert (equal < near_duplicates._least_estimate(first.sizes, 0.8, NUM_BINS)).mean() > 0.99


def pairs(size: int, shared: int, count: int = 2_000) -> tuple[minhash.Sketches, minhash.Sketches]:
    rng = np.random.default_rng(size)
    drawn = rng.integers(0, 1 << HASH_BITS, (count, 2 * size - shared), dtype=np.uint64)
    return tuple(
        minhash.sketch_sets(ShingleSets.of(np.sort(values, axis=1).ravel(), np.full(count, size)), 0.8)
        for values in (drawn[:, :size], drawn[:, size - shared :])
    )
