"""What goes wrong for a reason that a user can mend. Each message is one line: the place, then the mend."""

from __future__ import annotations

import errno
from typing import Literal

#: What a failure is put down to: it decides who looks at it, and whether the same command may succeed as it is.
FailureClass = Literal["data", "settings", "gate", "out_of_memory", "divergence", "preemption", "infrastructure", "unknown"]

#: Errors of the operating system that say: no room for this file (disk full, quota, size limit).
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FullftError(Exception):
    """Base of every error that is the user's to mend; shown without a traceback."""

    failure: FailureClass = "unknown"


class SettingsError(FullftError):
    """The YAML, or a path that it names, is wrong."""

    failure = "settings"


class DataError(FullftError):
    """A delivered file, row or label cannot be used."""

    failure = "data"


class StoreError(FullftError):
    """An artifact is missing, torn or does not match its digest."""

    failure = "infrastructure"


class GateError(FullftError):
    """A gate upstream is red, or an input was never made: the work was refused, nothing was written."""

    failure = "gate"


class WorkloadError(FullftError):
    """A launched workload ended without its manifest.

    Args:
        message: its own one line.
        failure: what the workload put it down to.
    """

    def __init__(self, message: str, failure: FailureClass = "unknown"):
        super().__init__(message)
        self.failure = failure


class DivergenceError(FullftError):
    """Training went wrong in a way that more steps do not mend."""

    failure = "divergence"


class IdleError(FullftError):
    """An accelerator waits for rows more than it computes."""

    failure = "infrastructure"


class OutOfMemory(FullftError):
    """The smallest batch does not fit."""

    failure = "out_of_memory"


class DiskError(FullftError):
    """A disk has no room for a file; what was whole before still is."""

    failure = "infrastructure"


class Interrupted(FullftError):
    """The workload was asked to stop; what it had is checkpointed."""

    failure = "preemption"


def classify(error: BaseException) -> FailureClass:
    """Return what a failure is put down to; an error that nobody foresaw is `unknown`, as are errors of the code."""
    if isinstance(error, FullftError):
        return error.failure
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, KeyboardInterrupt):
        return "preemption"
    return "infrastructure" if isinstance(error, OSError) or is_disk_full(error) else "unknown"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of an accelerator or of the host; torch tells its CPU's by the text alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_disk_full(error: BaseException) -> bool:
    """Return whether a file found no room; the writers of weights and of optimizer states tell it by their text alone."""
    if isinstance(error, FullftError):  # which has said so
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    signs = ("No space left", "File too large", "Disk quota", "PytorchStreamWriter failed", "file write failed", "unexpected pos")
    return any(sign in str(error) for sign in signs)
