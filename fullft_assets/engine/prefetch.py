"""Batches put together ahead of time: the order is planned, so a thread makes the next passes' while this step's are computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fullft_assets.engine.feed import Batch, Feed


class Ahead:
    """The items of a feed as a dataset whose batches come collated: give Trainer `as_it_is` to collate them.

    A thread, and no process: it shares the arrays and is gone with this one, whatever ends it. It draws no random number.

    Args:
        feed: the items in the order of training.
        depth: passes made ahead; Trainer asks for all passes of a step at once.
    """

    def __init__(self, feed: Feed, depth: int):
        self._feed, self._depth = feed, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._made: dict[tuple[int, ...], Future[Batch]] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self._feed.dataset)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Return the batch of these items, and have those that will be asked for next made."""
        asked = tuple(items)
        found = self._made.pop(asked, None) or self._thread.submit(self._make, asked)
        # Several processes take turns: each one's next pass is as far as its last one was.
        stride = len(asked) if self._last is None else asked[0] - self._last
        self._last = asked[0]
        expected = [self._after(asked, stride * n) for n in range(1, self._depth + 1)] if stride > 0 else []
        self._made = {items: self._made.get(items) or self._thread.submit(self._make, items) for items in dict.fromkeys(expected) if items}
        return found.result()

    def _after(self, asked: tuple[int, ...], distance: int) -> tuple[int, ...]:
        size = max(len(asked), self._feed.items_a_pass)
        return tuple(range(asked[0] + distance, min(asked[0] + distance + size, len(self))))

    def _make(self, items: Sequence[int]) -> Batch:
        return self._feed.collate([self._feed.dataset[item] for item in items])


def as_it_is(batch: Batch) -> Batch:
    """Collate what is collated."""
    return batch
