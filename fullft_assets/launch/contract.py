"""What a launcher and the process that it launches agree on."""

import ctypes
import multiprocessing
import os
import signal
import sys

#: Environment variable with the id of the launch; every process that the workload starts inherits it.
LAUNCH_ID = "FULLFT_LAUNCH_ID"
#: Environment variable with Dagster's id of the run that launched it.
RUN_ID = "FULLFT_RUN_ID"
#: Environment variable with the folder where a job's relative paths start; without it, the one that the job
#: names.
PROJECT_ROOT = "FULLFT_PROJECT_ROOT"
#: Environment variable with a folder that takes the place of the job's store, in a container that cannot
#: reach that; without it, the store that the job names.
STORE = "FULLFT_JOB_STORE"
#: Exit code of a workload that ended for a reason that the user can fix. Anything unforeseen is 1.
EXIT_FIXABLE = 3


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies; on Linux only."""
    _prctl(1, number)  # PR_SET_PDEATHSIG


def die_with_torchrun() -> None:
    """Ask the kernel to kill this process when the torchrun that a launcher started dies.

    Ranks run in sessions of their own and would outlive a killed torchrun. Data-loading workers are left
    alone: their parent is a thread that may end before they do.
    """
    if LAUNCH_ID in os.environ and "LOCAL_RANK" in os.environ and multiprocessing.parent_process() is None:
        die_with_parent()


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies; on Linux only."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
