"""Packing: every token once, no row over capacity, the same plan for the same seed, as good as the
slow way.
"""

from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from benchmarks import packing as benchmark
from fullft_assets.snapshot import packing

pytestmark = pytest.mark.quick

lengths_and_capacity = st.integers(1, 60).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(0, 3 * capacity), max_size=80).map(np.array), st.just(capacity)
    )
)


def slow_best_fit(lengths: np.ndarray, capacity: int) -> list[int]:
    """Return how full each row is after best-fit-decreasing, one piece at a time."""
    pieces = [
        min(capacity, int(length) - start) for length in lengths for start in range(0, int(length), capacity)
    ]
    rooms: list[int] = []
    for piece in sorted(pieces, reverse=True):
        place = bisect_left(rooms, piece)
        room = rooms.pop(place) if place < len(rooms) else capacity
        insort(rooms, room - piece)
    return sorted(capacity - room for room in rooms)


def read_back(plan: packing.Packing, lengths: np.ndarray) -> list[np.ndarray]:
    """Return how often each token of each text is in a row."""
    seen = [np.zeros(int(length), int) for length in lengths]
    for source, start, length in zip(plan.source, plan.start, plan.length, strict=True):
        assert start + length <= len(seen[source])
        seen[source][start : start + length] += 1
    return seen


def fills(plan: packing.Packing) -> list[int]:
    return [int(plan.length[plan.row(number)].sum()) for number in range(plan.num_rows)]


@given(lengths_and_capacity, st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_each_token_is_in_one_row(case, seed):
    lengths, capacity = case
    plan = packing.plan(lengths.astype(int), capacity, seed)
    assert all((counts == 1).all() for counts in read_back(plan, lengths))
    assert plan.num_tokens == lengths.sum()


@given(lengths_and_capacity)
@settings(deadline=None, max_examples=150)
def test_rows_are_as_full_as_one_piece_at_a_time_makes_them(case):
    lengths, capacity = case
    plan = packing.plan(lengths.astype(int), capacity, seed=1)
    assert sorted(fills(plan)) == slow_best_fit(lengths, capacity)
    assert max(fills(plan), default=0) <= capacity and min(fills(plan), default=1) >= 1


def test_equal_seed_gives_the_same_plan_and_another_seed_another_order():
    lengths = benchmark.lengths(3_000)
    first, again, other = (packing.plan(lengths, 2_048, seed) for seed in (3, 3, 4))
    for name in ("source", "start", "length", "row_offsets"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.source, other.source) and first.num_rows == other.num_rows


@pytest.mark.parametrize("capacity", [512, 2_048, 32_768])
@pytest.mark.parametrize("median", [40, 300, 1_500])
def test_lognormal_lengths_fill_the_rows(capacity, median):
    lengths = np.maximum(1, np.random.default_rng(5).lognormal(np.log(median), 1.0, 50_000)).astype(int)
    plan = packing.plan(lengths, capacity, seed=1)
    # 101 rows, one of them open, cannot be that full.
    assert plan.fill >= 0.995 or plan.num_rows == -(-lengths.sum() // capacity) < 200


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=60), st.integers(1, 40), st.integers(0, 3))
def test_cut_to_fill_takes_as_few_rows_as_the_tokens_need(lengths, capacity, seed):
    plan = packing.plan(np.array(lengths, int), capacity, seed, cut_to_fill=True)
    assert plan.num_rows == -(-sum(lengths) // capacity)
    assert (plan.length > 0).all()
    assert all((counts == 1).all() for counts in read_back(plan, np.array(lengths)))
    assert max([plan.length[plan.row(n)].sum() for n in range(plan.num_rows)], default=0) <= capacity


def test_cut_to_fill_cuts_few_texts():
    lengths = np.random.default_rng(2).integers(300, 500, 1_000)
    plain, filled = packing.plan(lengths, 512, 1), packing.plan(lengths, 512, 1, cut_to_fill=True)
    assert plain.fill < 0.8 and filled.fill > 0.999
    # A text is cut where a hole ends: at most once a row.
    assert len(filled.length) - len(plain.length) <= filled.num_rows
