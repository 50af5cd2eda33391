"""What the processes of one training, its ranks, must agree on: what one of them finds alone decides nothing until all know it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fullft_assets.engine.recipe import Listener
from fullft_assets.errors import Interrupted
from fullft_assets.models.inference import device

if TYPE_CHECKING:
    from fullft_assets.jobs.process import Progress

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
    return _any_says(flag)[0]


def _any_says(*flags: bool) -> list[bool]:
    if not are_joined():
        return list(flags)
    found = torch.tensor([int(flag) for flag in flags], device=device())
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def of_first(value: _Value) -> _Value:
    """Return the first process's value, which can be pickled, in all of them; all must ask."""
    if not are_joined():
        return value
    values: list[Any] = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def by_first(work: Callable[[Listener], _Value], progress: Progress) -> _Value:
    """Return, in all processes, what the first one finds alone; all must ask.

    The others hear from it as often as the work asks whether to stop: waiting for the end at once, they would be given up after a while.

    Args:
        work: is given a listener; what it finds can be pickled.
        progress: told how far the work is; asked whether to stop.

    Raises:
        Interrupted: one process was asked to stop.
    """
    found: list[_Value] = []
    if is_first():
        found.append(work(_Working(progress)))
    while not _is_done(progress, is_done=bool(found)):
        pass
    return of_first(found[0] if found else None)


def _is_done(progress: Progress, *, is_done: bool) -> bool:
    any_stopped, any_done = _any_says(progress.stop_requested, is_done)
    if any_stopped:
        raise Interrupted("stopped on request; run the same command to start this part again")
    return any_done


class Between:
    """The part of a progress that scoring in the middle of training may speak to: its steps are not the run's.

    Args:
        progress: asked whether to stop. All processes end the scoring at the same batch if one was.
    """

    def __init__(self, progress: Progress):
        self._progress = progress

    def raise_if_stopped(self) -> None:
        """End the scoring if one process was asked to stop.

        Raises:
            Interrupted: one was.
        """
        if any_says(self._progress.stop_requested):
            raise Interrupted("stopped on request while scoring")

    def step(self, done: int, total: int) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class _Working:
    """What the first process speaks to while the others wait for it."""

    progress: Progress

    def raise_if_stopped(self) -> None:
        _is_done(self.progress, is_done=False)

    def step(self, done: int, total: int) -> None:
        self.progress.step(done, total)
