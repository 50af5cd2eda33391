"""What a launcher and the process that it launches agree on."""

from __future__ import annotations

import ctypes
import signal
import sys

#: Environment variable with the id of the launch; every process that the workload starts inherits it.
LAUNCH_ID = "FULLFT_LAUNCH_ID"
#: Environment variable with the path of the file in which a failing workload leaves one line: the reason.
ERROR_FILE = "FULLFT_ERROR_FILE"
#: Exit code of a workload that ended for a reason that the user can mend. Anything unforeseen is 1.
EXIT_MENDABLE = 3

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies; on Linux only."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies; on Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
