"""Leases of this machine's GPUs: each serves one run at a time, and is free again when the process that holds
it ends, however it ends.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

import fcntl
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fullft_assets.errors import WorkloadError
from fullft_assets.launch.contract import LAUNCH_ID, RUN_ID
from fullft_assets.models.hardware import NUM_GPUS
from fullft_assets.store.disk import make_folder, one_at_a_time

#: Environment variable of OpenMP with the number of threads of each process.
THREADS = "OMP_NUM_THREADS"
#: Environment variable of CUDA with the GPUs that a process may use, by index or UUID.
VISIBLE = "CUDA_VISIBLE_DEVICES"
_ASK_SECONDS = 60.0
#: Time between two looks for what is free.
_LOOK_SECONDS = 1.0
#: Where the control group of this process, such as a container, has its share of the CPUs' time.
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@contextmanager
def leased(
    num_processes: int, may_wait: Callable[[], bool], say: Callable[[str], None] = print
) -> Iterator[dict[str, str] | None]:
    """Lease a GPU for each process of a run. Yield the environment variables that limit the run to these GPUs
    and to its share of the CPU cores, or None if the run is no longer wanted.

    Waits until enough GPUs are free and takes them at once, because two runs that each held some would wait
    for each other. A run with more processes than the machine has GPUs takes all of them. Runs of other users
    of the machine are not seen.

    Args:
        may_wait: whether the run is still wanted.
        say: called with one line if the run waits.
    """
    gpus = shared_gpus()
    num_gpus = min(num_processes, len(gpus))
    variables = _threads(num_processes, num_gpus / len(gpus) if gpus else 1.0)
    folder = Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets") / "gpus"
    is_logged = False
    with ExitStack() as locks:
        while may_wait():
            names = _take(gpus, num_gpus, folder, locks) if gpus else []
            if names is not None:
                yield variables | ({VISIBLE: ",".join(names), NUM_GPUS: str(len(gpus))} if gpus else {})
                return
            if not is_logged:
                say(_why_not(gpus, num_gpus, folder))
            is_logged = True
            time.sleep(_LOOK_SECONDS)
        yield None


def shared_gpus() -> list[str]:
    """Return the GPUs that runs on this machine may use, by UUID where nvidia-smi knows it; none without
    nvidia-smi.

    Raises:
        WorkloadError: nvidia-smi failed twice, so that other runs' GPUs would be used.
    """
    visible = os.environ.get(VISIBLE)
    if not shutil.which("nvidia-smi") or (visible is not None and visible.strip() in ("", "-1")):
        return []
    uuids = dict(line.split(", ", 1) for line in _list_gpus().splitlines() if ", " in line)
    if visible is None:
        return list(uuids.values())
    names = [name.strip() for name in visible.split(",")]
    return [uuids.get(name, name) for name in names if name not in ("", "-1")]


def _list_gpus() -> str:
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    reason = f"no answer within {_ASK_SECONDS:g} s"
    for _ in range(2):
        with suppress(subprocess.TimeoutExpired):
            answer = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_ASK_SECONDS, check=False
            )
            # Or where no process can compute on a GPU: none found, no driver, no library of the driver.
            if answer.returncode == 0 or answer.returncode in {6, 9, 12}:
                return answer.stdout if answer.returncode == 0 else ""
            output = (answer.stdout + answer.stderr).strip().split("\n")
            reason = output[0].strip() or f"exit code {answer.returncode}"
    raise WorkloadError(
        f"nvidia-smi: {reason}; repair the GPUs of this machine, or set {VISIBLE}= to compute without",
        "infrastructure",
    )


def _threads(num_processes: int, share: float) -> dict[str, str]:
    """Return the variable with the threads of a run's one process, where torch would start more than its
    share of the cores that its container has time for; torchrun's processes have one each.
    """
    if THREADS in os.environ or num_processes > 1:
        return {}
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text().split()
        num_usable = min(num_cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or `max`
        num_usable = num_cores
    num_threads = max(1, int(num_usable * share))
    return {THREADS: str(num_threads)} if num_threads < num_cores else {}


def _take(gpus: Sequence[str], count: int, folder: Path, locks: ExitStack) -> list[str] | None:
    make_folder(folder)
    names: list[str] = []
    with one_at_a_time(folder / "all.lock"), ExitStack() as new_locks:
        for name in gpus:
            if len(names) == count:
                break
            descriptor = os.open(_lock_file(folder, name), os.O_RDWR | os.O_CREAT, 0o600)
            new_locks.callback(os.close, descriptor)
            if _lock(descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _holder().encode(), 0)
                names.append(name)
        if len(names) < count:
            return None
        locks.push(new_locks.pop_all())
        return names


def _holder() -> str:
    """Return what others read of this process while it holds a lease: its run, the home of its Dagster, and
    how to end it.
    """
    run_id = os.environ.get(RUN_ID)
    name = f"job {os.environ.get(LAUNCH_ID) or os.getpid()}" if run_id is None else f"run {run_id[:8]}"
    home = os.environ.get("DAGSTER_HOME")
    return (
        f"{name}{f' of {home}' if home else ''}"
        f" (`kill {os.getpid()}` ends it; a training keeps its checkpoint)"
    )


def _why_not(gpus: Sequence[str], count: int, folder: Path) -> str:
    holders = set()
    with one_at_a_time(folder / "all.lock"):
        for name in gpus:
            with _lock_file(folder, name).open("a+") as file:
                if not _lock(file.fileno()):
                    file.seek(0)
                    holders.add(file.read())
    return (
        f"waiting until {count} of {len(gpus)} GPUs are free; held by {', '.join(sorted(holders))}: wait, end"
        " it, or set FULLFT_CACHE to a folder of this project's own to compute beside it"
    )


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '_')}.lock"


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
