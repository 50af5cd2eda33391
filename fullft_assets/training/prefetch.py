"""Prefetching: the order of the batches is planned, so a thread collates the next passes while this step is
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fullft_assets.training.feed import Batch, Feed


class Prefetcher:
    """The items of a feed as a dataset whose batches are collated already: Trainer gets `already_collated` as
    its collator.

    It uses a thread and not a process: a thread shares the arrays and ends with this process, whatever ends
    it. It draws no random number.

    Args:
        depth: passes collated ahead; Trainer asks for all passes of a step at once.
    """

    def __init__(self, feed: Feed, depth: int):
        self._feed, self._depth = feed, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._batches: dict[tuple[int, ...], Future[Batch]] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self._feed.dataset)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Return the batch of these items, and start to collate those that will be asked for next."""
        asked = tuple(items)
        found = self._batches.pop(asked, None) or self._thread.submit(self._collate, asked)
        # Several processes take turns: the distance to the next pass is the distance to the last one.
        stride = len(asked) if self._last is None else asked[0] - self._last
        self._last = asked[0]
        expected = [self._after(asked, stride * n) for n in range(1, self._depth + 1)] if stride > 0 else []
        self._batches = {
            items: self._batches.get(items) or self._thread.submit(self._collate, items)
            for items in dict.fromkeys(expected)
            if items
        }
        return found.result()

    def _after(self, asked: tuple[int, ...], distance: int) -> tuple[int, ...]:
        size = max(len(asked), self._feed.items_a_pass)
        return tuple(range(asked[0] + distance, min(asked[0] + distance + size, len(self))))

    def _collate(self, items: Sequence[int]) -> Batch:
        return self._feed.collate([self._feed.dataset[item] for item in items])


def already_collated(batch: Batch) -> Batch:
    """Return a batch of a `Prefetcher` as it is."""
    return batch
