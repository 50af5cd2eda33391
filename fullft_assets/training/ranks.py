"""Agreement between the processes (ranks) of one training: what one of them finds alone decides nothing until
all know it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait as wait_for
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch

from fullft_assets.errors import Interrupted, StoreError
from fullft_assets.models.hardware import free_memory
from fullft_assets.models.inference import IS_DEALT, device, is_sharded
from fullft_assets.progress import Listener, Progress
from fullft_assets.ranks import is_first_local_rank, is_first_rank

_Value = TypeVar("_Value")
#: How often processes synchronize that wait for another one's thread.
_LOOK_SECONDS = 0.1
#: How long a process waits for the others.
_PATIENCE = timedelta(minutes=30)


def connect() -> None:
    """Connect the processes of a training, if there are several."""
    if "RANK" not in os.environ or torch.distributed.is_initialized():
        return
    backends = {"cpu": "gloo"}
    # Requests to stop, and the norm of gradients in the host's memory, are summed there, which a GPU's
    # backend cannot do.
    backends[device().type] = torch.distributed.get_default_backend_for_device(device())
    torch.distributed.init_process_group(
        ",".join(f"{kind}:{backend}" for kind, backend in backends.items()), timeout=_PATIENCE
    )


def _are_connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait() -> None:
    """Wait until all processes are here."""
    if _are_connected():
        torch.distributed.barrier()


def number() -> int:
    """Return the number of this process."""
    return torch.distributed.get_rank() if _are_connected() else 0


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes; all must call this."""
    if _are_connected():
        torch.distributed.all_reduce(value)
    return value


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in one of the processes; all must call this."""
    return _any_rank(flag)[0]


def _any_rank(*flags: bool) -> list[bool]:
    if not _are_connected():
        return list(flags)
    # In the host's memory: on an accelerator the answer would wait for all that it was given to compute.
    values = torch.tensor([int(flag) for flag in flags])
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in values.tolist()]


def from_first(value: _Value) -> _Value:
    """Return the first process's value in all processes; all must call this. The value can be pickled."""
    if not _are_connected():
        return value
    values: list[_Value] = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: _Value) -> list[_Value]:
    """Return the value of each process, by rank; all must call this. The values can be pickled."""
    if not _are_connected():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def attended(work: Callable[[], _Value], listener: Listener) -> _Value:
    """Run work that asks nobody whether to stop, such as a long copy, in a thread, and ask meanwhile."""
    thread = ThreadPoolExecutor(1)
    job = thread.submit(work)
    thread.shutdown(wait=False)
    while not job.done():
        listener.raise_if_stopped()
        wait_for([job], _LOOK_SECONDS)
    return job.result()


def run_on_each_host(work: Callable[[], object], progress: Progress) -> None:
    """Run work in the first process of each host, in a thread, and return when all are done; all must call
    this.

    Raises:
        StoreError: it failed on another host.
    """
    thread = ThreadPoolExecutor(1)
    job = thread.submit(work if is_first_local_rank() else lambda: None)
    thread.shutdown(wait=False)
    while _any_unless_stopped(progress, not job.done()):
        wait_for([job], _LOOK_SECONDS)
    failed = any_rank(job.exception() is not None)
    job.result()
    if failed:
        raise StoreError("another host of this training could not copy its checkpoint; its output says why")


def run_on_first(work: Callable[[Listener], _Value], progress: Progress) -> _Value:
    """Run work in the first process alone and return its result in all processes; all must call this.

    The others synchronize with it as often as the work asks whether to stop: a process that waited for the
    end at once would time out.
    """
    result: list[_Value] = []
    if is_first_rank():
        result.append(work(StopListener(progress)))
    while not _any_unless_stopped(progress, bool(result)):
        pass
    # Each process but the first one sends a None, which nobody reads.
    return from_first(result[0] if result else cast(_Value, None))


def by_first(work: Callable[[], _Value], progress: Progress) -> _Value:
    """Like `run_on_first`, with work that asks nobody whether to stop."""
    connect()
    # The work may load a whole model beside what is left of a shared one.
    free_memory()
    return run_on_first(partial(attended, work), progress)


def _any_unless_stopped(progress: Progress, flag: bool) -> bool:
    """Return whether the flag is set in one of the processes, and end the work if one was asked to stop; all
    must call this.
    """
    any_stopped, any_set = _any_rank(progress.stop_requested, flag)
    if any_stopped:
        raise Interrupted("stopped on request; run the same command to start this part again")
    return any_set


def make_passes(model: torch.nn.Module, work: Callable[[Listener], _Value], progress: Progress) -> _Value:
    """Run work that makes passes of a model without training it, and return its result in all processes,
    which must all call this: those that share the model make the passes together, else the first one does.
    """
    return from_first(work(StopListener(progress))) if is_sharded(model) else run_on_first(work, progress)


def deal_passes(work: Callable[[Listener], _Value], progress: Progress) -> _Value:
    """Run work that makes passes of a model without training it in all processes, which must all call this
    and share the model or have equal weights, and return the first one's result. Each makes its share of the
    passes.
    """
    context = copy_context()
    context.run(IS_DEALT.set, _are_connected())
    return from_first(context.run(work, StopListener(progress)))


@dataclass(frozen=True)
class StopListener:
    """Passes on a request to stop to the work of all processes, or of the first one, and not the work's own
    steps.
    """

    progress: Progress

    def raise_if_stopped(self) -> None:
        """End the work if one process was asked to stop."""
        _any_unless_stopped(self.progress, False)

    def step(self, done: int, total: int) -> None:
        """Do nothing."""
