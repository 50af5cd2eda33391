"""The feed of a training: its items in the order of training, planned for the complete run, and a thread that
collates the next batches while a step is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Feed:
    """Items in the order of training, and the documents in each forward pass.

    The order does not depend on the size of a pass, so a run that continues with smaller passes finds its
    place.

    Attributes:
        dataset: the items; the processes take passes in turn.
        collate: a list of items -> the batch of a pass, `labels` included.
        num_rows: rows as the batch size counts them, over all epochs.
        lengths: [documents] tokens of each document that attends to itself alone, in the order of training.
        num_predicted: [documents] tokens of it for which the output head computes a loss.
        bounds: [passes + 1] pass i has the documents `bounds[i]` to `bounds[i + 1]`.
        sizes: [passes] tokens of each pass, padding included.
    """

    dataset: Any
    collate: Callable[[list[Any]], Batch]
    items_a_pass: int
    num_rows: int
    lengths: np.ndarray
    num_predicted: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray

    @property
    def num_passes(self) -> int:
        """Forward passes of all processes together."""
        return len(self.bounds) - 1

    def batch(self, number: int) -> Batch:
        """Return the batch of a pass."""
        start = number * self.items_a_pass
        return self.collate(
            [self.dataset[i] for i in range(start, min(start + self.items_a_pass, len(self.dataset)))]
        )

    def batches(self) -> Iterator[Batch]:
        """Yield the batch of each pass."""
        return map(self.batch, range(self.num_passes))

    def bounds_of_steps(self, passes_a_step: int) -> np.ndarray:
        """Return [steps + 1] the documents of each optimizer step, as `bounds`."""
        return np.append(self.bounds[: self.num_passes : passes_a_step], self.bounds[-1])


def sums_between(values: np.ndarray, bounds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the sum of the values from each bound to the next; 0 where they are equal."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[np.asarray(bounds)])


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
        batch = self._batches.pop(asked, None) or self._thread.submit(self._collate, asked)
        # Several processes take turns: the distance to the next pass is the distance to the last one.
        stride = len(asked) if self._last is None else asked[0] - self._last
        self._last = asked[0]
        expected = [self._after(asked, stride * n) for n in range(1, self._depth + 1)] if stride > 0 else []
        self._batches = {
            items: self._batches.get(items) or self._thread.submit(self._collate, items)
            for items in dict.fromkeys(expected)
            if items
        }
        return batch.result()

    def _after(self, asked: tuple[int, ...], distance: int) -> tuple[int, ...]:
        size = max(len(asked), self._feed.items_a_pass)
        return tuple(range(asked[0] + distance, min(asked[0] + distance + size, len(self))))

    def _collate(self, items: Sequence[int]) -> Batch:
        return self._feed.collate([self._feed.dataset[item] for item in items])


def already_collated(batch: Batch) -> Batch:
    """Return a batch of a `Prefetcher` as it is."""
    return batch
