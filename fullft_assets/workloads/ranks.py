"""What the processes of one training, its ranks, must agree on: what one of them finds alone decides nothing until all know it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fullft_assets.errors import Interrupted
from fullft_assets.workloads.inference import device

_Value = TypeVar("_Value")


def is_first() -> bool:
    """Return whether this process writes for all; one without others does."""
    return int(os.environ.get("RANK", "0")) == 0


def are_joined() -> bool:
    """Return whether there are several processes and they have found each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait() -> None:
    """Go on when all processes are here."""
    if are_joined():
        torch.distributed.barrier()


def any_says(flag: bool) -> bool:
    """Return whether one of the processes says so; all must ask."""
    if not are_joined():
        return flag
    found = torch.tensor(int(flag), device=device())
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def of_first(value: _Value) -> _Value:
    """Return the first process's value, which can be pickled, in all of them; all must ask."""
    if not are_joined():
        return value
    values: list[Any] = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


class Between:
    """The part of a progress that scoring in the middle of training may speak to: its steps are not the run's.

    Args:
        is_stopped: whether this process was asked to stop. All of them end the scoring at the same batch if one was.
    """

    def __init__(self, is_stopped: Callable[[], bool]):
        self._is_stopped = is_stopped

    def raise_if_stopped(self) -> None:
        """End the scoring if one process was asked to stop.

        Raises:
            Interrupted: one was.
        """
        if any_says(self._is_stopped()):
            raise Interrupted("stopped on request while scoring")

    def step(self, done: int, total: int) -> None:
        """Say nothing."""
