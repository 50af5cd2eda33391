"""What a launcher and the process that it launches agree on."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from fullft_assets.errors import FailureClass

#: Environment variable with the id of the launch; every process that the workload starts inherits it.
LAUNCH_ID = "FULLFT_LAUNCH_ID"
#: Environment variable with Dagster's id of the run that launched it.
RUN_ID = "FULLFT_RUN_ID"
#: Environment variable with the path of the file to which a failing workload writes its `WorkloadFailure`.
ERROR_FILE = "FULLFT_ERROR_FILE"
#: Environment variable with the folder where a job's relative paths start; without it, the one that the job
#: names.
PROJECT_ROOT = "FULLFT_PROJECT_ROOT"
#: Environment variable with a folder that takes the place of the job's store, in a container that cannot
#: reach that; without it, the store that the job names.
STORE = "FULLFT_JOB_STORE"
#: Exit code of a workload that ended for a reason that the user can fix. Anything unforeseen is 1.
EXIT_FIXABLE = 3

#: Variables of Dagster's database and of the UI's login.
_OF_CONTROL_PLANE = re.compile(r"DAGSTER_(?!HOME$|PIPES_)|PG[A-Z]+$|FULLFT_(LOGIN|UI)_|RAY_AUTH_")
#: Variables of accounts, passwords and keys.
_OF_ACCOUNTS = re.compile(
    r"(AWS|AZURE|GOOGLE|SSH)_|.*(PASSW|SECRET|TOKEN|CREDENTIAL|KEY|_URL)", re.IGNORECASE
)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class WorkloadFailure:
    """Why a workload failed: one line, and the kind of failure."""

    line: str
    failure: FailureClass

    @classmethod
    def read(cls, path: Path) -> WorkloadFailure | None:
        """Return the failure that a workload wrote, or None if it ended before it could."""
        text = path.read_text() if path.is_file() else ""
        return cls(**json.loads(text)) if text else None

    def write(self, path: Path) -> bool:
        """Write it unless another rank did. Return whether this was the first."""
        try:
            with path.open("x") as file:
                json.dump(asdict(self), file)
        except FileExistsError:
            return False
        return True


def environment_for_others(*, with_accounts: bool) -> dict[str, str]:
    """Return the variables of this process for one that may run code of a model or of another package, or
    reads a delivered file: none of the control plane, and none of accounts unless they are asked for.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not _OF_CONTROL_PLANE.match(name) and (with_accounts or not _OF_ACCOUNTS.match(name))
    }


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies; on Linux only."""
    _prctl(_PR_SET_PDEATHSIG, number)


def die_with_torchrun() -> None:
    """Have the kernel kill this process when the torchrun that a launcher started dies.

    Ranks run in sessions of their own and would outlive a killed torchrun. Data-loading workers are left
    alone: their parent is a thread that may end before they do.
    """
    if LAUNCH_ID in os.environ and "LOCAL_RANK" in os.environ and multiprocessing.parent_process() is None:
        die_with_parent()


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies; on Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
