"""The next passes' batches are made while this one is computed: the same ones, whoever asks for which."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from fullft_assets.training.feed import Batch, Feed
from fullft_assets.training.loop import ahead

ITEMS_A_PASS = 3
UNTOUCHED = np.zeros(0, np.int64)


def feed(num_items: int, collate: Any) -> Feed:
    bounds = np.append(np.arange(0, num_items, ITEMS_A_PASS), num_items)

    def batch(number: int) -> Batch:
        return collate(list(range(bounds[number], bounds[number + 1])))

    return Feed(batch, num_items, UNTOUCHED, UNTOUCHED, bounds, UNTOUCHED)


class Collate:
    """Tell which items were collated."""

    def __init__(self) -> None:
        self.seen, self.progress = [], threading.Condition()

    def __call__(self, items: list[int]) -> Batch:
        with self.progress:
            self.seen.append(tuple(items))
            self.progress.notify_all()
        return {"items": torch.tensor(items)}

    def wait_for(self, *passes: tuple[int, ...]) -> bool:
        with self.progress:
            return self.progress.wait_for(lambda: {*passes} <= {*self.seen}, timeout=30)


def items_of(batches: Any) -> list[list[int]]:
    return [batch["items"].tolist() for batch in batches]


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("begin", [0, 2], ids=["from-the-start", "resumed"])
def test_batches_are_those_of_the_feed_and_each_is_made_once(
    depth: int, rank: int, processes: int, begin: int
) -> None:
    collate = Collate()
    planned = feed(20, collate)
    numbers = range(planned.num_passes)[begin:][rank::processes]
    expected = [items_of(planned.batches())[number] for number in numbers]
    collate.seen.clear()
    assert items_of(ahead(planned.batch, numbers, depth)) == expected
    assert collate.seen == [tuple(items) for items in expected]


def test_the_next_passes_are_made_before_they_are_asked_for() -> None:
    collate = Collate()
    batches = ahead(feed(20, collate).batch, range(7), 2)
    next(batches)
    assert collate.wait_for((3, 4, 5), (6, 7, 8))
    assert collate.seen == [(0, 1, 2), (3, 4, 5), (6, 7, 8)], "no more than that is held"
