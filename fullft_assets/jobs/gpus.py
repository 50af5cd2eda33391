"""The GPUs of this machine: each serves one run at a time, and each process of a run has one of its own.

This file stays light: the supervisor of a local workload imports it, and must start fast.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fullft_assets.errors import WorkloadError
from fullft_assets.store.disk import make_folder, one_at_a_time

#: Environment variable of CUDA with the GPUs that a process may use, by index or UUID.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Environment variable with the number of GPUs that all runs on this machine share.
NUM_GPUS = "FULLFT_NUM_GPUS"
#: Time between two looks for a free GPU.
_LOOK_SECONDS = 1.0
#: Exit codes of nvidia-smi where no process can compute on a GPU: none found, no driver, no library of the driver.
_NO_GPU = frozenset({6, 9, 12})
_ASK_SECONDS = 60.0


def shared_gpus() -> list[str]:
    """Return the GPUs that runs on this machine may use, by UUID where nvidia-smi knows it; none without nvidia-smi.

    Raises:
        WorkloadError: nvidia-smi failed twice, so that other runs' GPUs would be used.
    """
    given = os.environ.get(VISIBLE)
    if not shutil.which("nvidia-smi") or (given is not None and given.strip() in ("", "-1")):
        return []
    known = dict(line.split(", ", 1) for line in _listed().splitlines() if ", " in line)
    if given is None:
        return list(known.values())
    return [known.get(each.strip(), each.strip()) for each in given.split(",") if each.strip() not in ("", "-1")]


def _listed() -> str:
    reason = ""
    for _ in range(2):
        try:
            asked = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
            listed = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=_ASK_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            reason = f"no answer within {_ASK_SECONDS:g} s"
            continue
        if listed.returncode == 0:
            return listed.stdout
        if listed.returncode in _NO_GPU:
            return ""
        said = (listed.stdout + listed.stderr).split("\n")
        reason = next((line.strip() for line in said if line.strip()), f"exit code {listed.returncode}")
    raise WorkloadError(f"nvidia-smi: {reason}; repair the GPUs of this machine, or set {VISIBLE}= to compute without", "infrastructure")


@contextmanager
def leased(num_processes: int, may_wait: Callable[[], bool]) -> Iterator[dict[str, str] | None]:
    """Keep a GPU for each process of a run, and yield the environment variables that give the run no other one; None if it is not wanted.

    Waits until enough are free: all at once, as two runs that each keep some would wait for each other. Where there are fewer than processes,
    all are kept. Runs of other users of the machine are not seen.

    Args:
        may_wait: whether the run is still wanted.
    """
    gpus = shared_gpus()
    if not gpus:
        yield {}
        return
    folder = Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets") / "gpus"
    make_folder(folder)
    with ExitStack() as kept:
        is_said = False
        while may_wait():
            with one_at_a_time(folder / "all.lock"):
                found = _free(gpus, min(num_processes, len(gpus)), folder, kept)
            if found:
                yield {VISIBLE: ",".join(found), NUM_GPUS: str(len(gpus))}
                return
            if not is_said:
                print(f"waiting until {min(num_processes, len(gpus))} of {len(gpus)} GPUs are free: other runs have them", flush=True)
            is_said = True
            time.sleep(_LOOK_SECONDS)
        yield None


def _free(gpus: list[str], count: int, folder: Path, kept: ExitStack) -> list[str]:
    """Lock the first GPUs that are free until the stack is closed, and return them; none if there are not enough."""
    with ExitStack() as mine:
        found = []
        for gpu in gpus:
            descriptor = os.open(folder / f"{gpu.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            mine.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found.append(gpu)
            if len(found) == count:
                kept.push(mine.pop_all())
                return found
    return []
