"""Leases of this machine's GPUs and CPU cores: each serves one run at a time, and is free again when the
process that holds it ends, however it ends.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fullft_assets.jobs.cores import THREADS, allowed_cores, threads_of_process, usable_cores
from fullft_assets.jobs.gpus import NUM_GPUS, VISIBLE, shared_gpus
from fullft_assets.jobs.launch import LAUNCH_ID, RUN_ID
from fullft_assets.store.disk import make_folder, one_at_a_time

#: Time between two looks for what is free.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class _Kind:
    """The GPUs or the CPU cores of the machine, and how many of them a run needs.

    Attributes:
        what: the name of the kind in messages.
        names: the names of all of them; the first free ones are taken.
        count: the number that the run needs.
        folder: the folder with a lock file for each, which names its holder.
    """

    what: str
    names: Sequence[str]
    count: int
    folder: Path


@contextmanager
def leased(
    num_processes: int,
    may_wait: Callable[[], bool],
    say: Callable[[str], None] = print,
    *,
    shares_cores: bool = False,
) -> Iterator[dict[str, str] | None]:
    """Keep a GPU for each process of a run and a core for each of its threads, and yield the variables that
    hold it to these; None if it is not wanted.

    Waits until enough are free: all at once, as two runs that each keep some would wait for each other. Where
    there are fewer than processes or threads, all are kept. Runs of other users of the machine are not seen.

    A process has as many threads as OMP_NUM_THREADS says; else those of torchrun have one, as torchrun has
    it, and one alone has all cores. On a machine with GPUs that is at most the cores' share of the run's
    GPUs, so that no GPU is idle because there are too few cores.

    Args:
        may_wait: whether the run is still wanted.
        say: called with one line if the run waits.
        shares_cores: keep no cores; a process without OMP_NUM_THREADS has a thread for each core that is free
            now, at least one.
    """
    gpus = shared_gpus()
    cores = usable_cores()
    threads = threads_of_process(os.environ)
    num_gpus = min(num_processes, len(gpus))
    num_cores = min(len(cores), num_processes * (threads or (1 if num_processes > 1 else len(cores))))
    if gpus:
        num_cores = min(num_cores, len(cores) * num_gpus // len(gpus))
    cache = Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets")
    # A GPU's name is unique. Machines that share a home have cores of the same numbers.
    of_gpus = _Kind("GPUs", gpus, num_gpus, cache / "gpus")
    of_cores = _Kind(
        "CPU cores", [str(core) for core in cores], num_cores, cache / "cores" / socket.gethostname()
    )
    kinds = [of_gpus] if gpus else []
    kinds += [of_cores] if num_cores and not shares_cores and _can_lock(of_cores.folder) else []
    with ExitStack() as locks:
        is_said = False
        while may_wait():
            names = _take(kinds, locks)
            if names is not None:
                variables = {VISIBLE: ",".join(names[of_gpus.what]), NUM_GPUS: str(len(gpus))} if gpus else {}
                if threads is None and num_processes == 1:
                    num_threads = max(1, _num_free(of_cores) if shares_cores else num_cores)
                    variables |= {THREADS: str(num_threads)} if num_threads < len(allowed_cores()) else {}
                yield variables
                return
            if not is_said:
                say(_why_not(kinds))
            is_said = True
            time.sleep(_LOOK_SECONDS)
        yield None


def _take(kinds: Sequence[_Kind], locks: ExitStack) -> dict[str, list[str]] | None:
    """Lock what is wanted until the stack is closed, and return the names; None, and nothing is locked, if
    not enough is free.
    """
    with ExitStack() as turns, ExitStack() as new_locks:
        for kind in kinds:
            make_folder(kind.folder)
            turns.enter_context(one_at_a_time(kind.folder / "all.lock"))
        names = {kind.what: _lock_free(kind, new_locks) for kind in kinds}
        if any(len(names[kind.what]) < kind.count for kind in kinds):
            return None
        locks.push(new_locks.pop_all())
        return names


def _num_free(kind: _Kind) -> int:
    if not os.access(kind.folder, os.W_OK):  # nothing was ever held here
        return kind.count
    with one_at_a_time(kind.folder / "all.lock"), ExitStack() as locks:
        return len(_lock_free(kind, locks))


def _lock_free(kind: _Kind, locks: ExitStack) -> list[str]:
    """Lock the first ones that are free, as many as are needed or there are, until the stack is closed;
    return their names.
    """
    names = []
    for name in kind.names:
        if len(names) == kind.count:
            break
        descriptor = os.open(_lock_file(kind, name), os.O_RDWR | os.O_CREAT, 0o600)
        locks.callback(os.close, descriptor)
        if _lock(descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder().encode(), 0)
            names.append(name)
    return names


def _holder() -> str:
    """Return what others read of this process while it holds a lease: its run, the home of its Dagster, and
    how to end it.
    """
    name = (
        f"run {os.environ[RUN_ID][:8]}"
        if RUN_ID in os.environ
        else f"job {os.environ.get(LAUNCH_ID) or os.getpid()}"
    )
    home = os.environ.get("DAGSTER_HOME")
    return (
        f"{name}{f' of {home}' if home else ''} (`kill {os.getpid()}` ends it; a training keeps its"
        " checkpoint)"
    )


def _why_not(kinds: Sequence[_Kind]) -> str:
    """Return the line that says what a run waits for, and who has it."""
    needs, holders = [], set()
    for kind in kinds:
        holders_of_kind = []
        with one_at_a_time(kind.folder / "all.lock"):
            for name in kind.names:
                with _lock_file(kind, name).open("a+") as file:
                    if not _lock(file.fileno()):
                        file.seek(0)
                        holders_of_kind.append(file.read())
        if len(kind.names) - len(holders_of_kind) < kind.count:
            needs.append(f"{kind.count} of {len(kind.names)} {kind.what}")
            holders.update(holders_of_kind)
    if not needs:  # they became free at this moment
        return "waiting for GPUs or CPU cores that another run had until now"
    way_on = "wait, end it, or set FULLFT_CACHE to a folder of this project's own to compute beside it"
    return f"waiting until {' and '.join(needs)} are free; held by {', '.join(sorted(holders))}: {way_on}"


def _lock_file(kind: _Kind, name: str) -> Path:
    return kind.folder / f"{name.replace('/', '_')}.lock"


def _lock(descriptor: int) -> bool:
    """Lock a file unless another process or thread has it, and return whether that was done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _can_lock(folder: Path) -> bool:
    """Return whether there is a place for cores' locks: a container that has its cores for itself may have no
    disk to write to.
    """
    try:
        make_folder(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
