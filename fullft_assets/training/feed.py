"""The feed of a training: its items in the order of training, planned for the complete run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
