"""Errors that a user can fix. Each message is one line: the place, then the fix."""

import difflib
import errno
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

#: Cause of a failure: it decides who looks at it, and whether the same command may succeed unchanged.
FailureClass = Literal[
    "data", "settings", "gate", "out_of_memory", "divergence", "preemption", "infrastructure", "unknown"
]
#: Classes of failures after which the same job may succeed unchanged.
TRANSIENT: frozenset[FailureClass] = frozenset({"preemption", "infrastructure"})

#: torch's errors of a rank that does not reach another one, by name: this module does not import torch.
_LOST_RANK = {"DistBackendError", "DistNetworkError", "DistStoreError"}
#: Errors of botocore, boto3 and http.client whose answer never came, was cut off or differs
#: from its checksum.
_CUT_ANSWER = {
    "HTTPClientError",
    "ConnectionError",
    "FlexibleChecksumError",
    "IncompleteReadError",
    "IncompleteRead",
    "RetriesExceededError",
}
#: Errors of the operating system that mean: no room for this file (disk full, quota, size limit).
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


#: What an address may contain besides the place: who asks and a password, as one or the other, and keys among
#: its parameters. A password may have been written into it as it is, so that a slash does not end it; a port
#: is none.
_WHO = re.compile(r"(?<=://)(?:[^\s/?#]{1,500}|[^\s/?#@:]{0,200}:(?!\d{1,5}[/?#])[^\s@]{1,500})@")
_KEY = re.compile(
    r"([?&;][\w.-]*(?:token|key|secret|sig|signature|password|passwd|pwd|auth"
    r"|credential)[\w.-]*=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)
_HIDDEN = "***"
_PACKAGE = Path(__file__).parent


def without_secrets(text: str) -> str:
    """Return a text with the passwords and keys hidden that addresses in it contain: for logs and for
    messages of any library.
    """
    return _KEY.sub(rf"\1{_HIDDEN}", _WHO.sub(f"{_HIDDEN}@", text))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean ...?` for the nearest of the choices, or an empty string where none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


class FullftError(Exception):
    """Base of every error that the user can fix; shown without a traceback, and kept without secrets."""

    failure: FailureClass = "unknown"

    def __init_subclass__(cls, failure: FailureClass | None = None):
        cls.failure = failure or cls.failure

    def __init__(self, *arguments: object):
        super().__init__(
            *(without_secrets(argument) if isinstance(argument, str) else argument for argument in arguments)
        )


class SettingsError(FullftError, failure="settings"):
    """The YAML, or a path that it names, is wrong."""


class DataError(FullftError, failure="data"):
    """A delivered file, row or label cannot be used."""


class SourceError(FullftError, failure="infrastructure"):
    """A place with delivered files cannot be read now."""


class StoreError(FullftError, failure="infrastructure"):
    """An artifact is missing, incomplete or does not match its digest."""


class GateError(FullftError, failure="gate"):
    """A gate upstream is red, or an input does not exist: the work was refused, nothing was written."""


class WorkloadError(FullftError):
    """A launched workload ended without its manifest."""

    def __init__(self, message: str, failure: FailureClass = "unknown"):
        super().__init__(message)
        self.failure = failure


class DivergenceError(FullftError, failure="divergence"):
    """Training went wrong in a way that more steps do not fix."""


class OutOfMemory(FullftError, failure="out_of_memory"):
    """The smallest batch does not fit."""


class DiskError(FullftError, failure="infrastructure"):
    """A disk has no room for a file; files that were complete before are unchanged."""


class Interrupted(FullftError, failure="preemption"):
    """The workload was asked to stop; its state is in a checkpoint."""


def classify(error: BaseException) -> FailureClass:
    """Return the cause of a failure; an error that nobody foresaw, such as one in the code, is `unknown`."""
    if isinstance(error, FullftError):
        return error.failure
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, KeyboardInterrupt):
        return "preemption"
    is_lost = any(base.__name__ in _LOST_RANK | _CUT_ANSWER for base in type(error).__mro__)
    return "infrastructure" if is_lost or isinstance(error, OSError) or is_disk_full(error) else "unknown"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an accelerator or the host ran out of memory; for the host, torch shows it only in the
    message.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk had no room for a file; writers of weights and optimizer states show it only in
    the message.
    """
    if isinstance(error, FullftError):  # its class shows its cause
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    signs = (
        "No space left",
        "File too large",
        "Disk quota",
        "PytorchStreamWriter failed",
        "file write failed",
        "unexpected pos",
    )
    return any(sign in str(error) for sign in signs)


def without_message(error: BaseException) -> str:
    """Return an error's type and the line of this package where it was raised, and its message only where
    that cannot quote a document.
    """
    message = _harmless_message(error)
    words = [type(error).__name__, *([f"({message})"] if message else [])]
    frames = traceback.extract_tb(error.__traceback__)
    package_frames = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    words += [
        f"at {path.relative_to(_PACKAGE.parent) if package_frames else path.name}:{frame.lineno}"
        f" ({frame.name})"
        for frame in (package_frames or frames)[-1:]
        for path in [Path(frame.filename)]
    ]
    return " ".join(words)


def stack_without_messages(error: BaseException) -> str:
    """Return the traceback of an error and of its causes as Python prints it, but without messages, which may
    contain values.
    """
    parts = [
        "".join(
            [
                "Traceback (most recent call last):\n",
                *traceback.format_tb(cause.__traceback__),
                f"{type(cause).__name__}\n",
            ]
        )
        for cause in _chain(error)
    ]
    return "\nand so\n\n".join(reversed(parts))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen_ids: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen_ids:
        yield cause
        seen_ids.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _harmless_message(error: BaseException) -> str:
    """Return what the operating system or an allocator says: their words, without the name of a file."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or ""
    return without_secrets(" ".join(str(error).split()))[:200] if is_out_of_memory(error) else ""
