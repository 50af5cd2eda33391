"""Bounds of reading: time, memory and unpacked size. Files of formats that are not streamed are read by a
process of its own.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar

from fullft_assets.documents.formats.bounded_worker import LENGTH
from fullft_assets.documents.formats.delivered import Delivered, Record, Unpacked, Unreadable
from fullft_assets.documents.formats.protocol import FILE_SECONDS, STEP_SECONDS, Format, Reading, Shared
from fullft_assets.errors import SettingsError
from fullft_assets.extras import EXTRAS, needs

MAX_MEMORY_BYTES = 4 * 2**30


def records(format_: Format, file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of a file, within bounds.

    Raises:
        Unreadable: the file cannot be read to its end, or exceeds a bound.
    """
    assert format_.records is not None, "an export names formats that have records"
    if format_.is_streamed:
        return format_.records(file, reading)
    return reading.shared(ReaderProcess).records(
        format_.records, file, reading, format_.seconds(reading.documents)
    )


class ReaderProcess:
    """A process that reads files one after the other, started at the first and used for all of a batch, and
    by the next batch.
    """

    #: Processes without work, by the process that started them: starting one takes as long as reading
    #: hundreds of pages.
    _idle: ClassVar[list[tuple[int, subprocess.Popen[bytes]]]] = []

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        #: Folder of the request that is being answered, and the longest time for one of its records and for
        #: all of it.
        self._busy_in: str | None = None
        self._seconds = (STEP_SECONDS, FILE_SECONDS)

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._busy_in is None and not self._idle:
            self._idle.append((os.getpid(), self._process))
            self._process = None
        self._stop()

    def records(
        self,
        read: Callable[[Delivered, Reading], Iterator[tuple[int, Record]]],
        file: Delivered,
        reading: Reading,
        seconds: tuple[float, float] = (STEP_SECONDS, FILE_SECONDS),
    ) -> Iterator[tuple[int, Record]]:
        """Yield what `read` yields of a file.

        Args:
            seconds: the longest time for one record, and for all of the file.

        Raises:
            Unreadable: `read` raises it or anything unexpected, or takes more time, memory or bytes than it
                may.
            UnicodeError: the text is in another encoding.
            OSError: the system says so.
        SettingsError: the extra that reads the file is not installed.
        """
        if self._busy_in is not None:
            self._stop()  # whoever asked last did not want all of it, and has not said so yet
        self._seconds = seconds
        limits = (*seconds, MAX_MEMORY_BYTES)
        known = partial(_reading, replace(reading, fetch=_not_here, shared=_not_here, advance=_not_here))
        # The process may be killed, and what it unpacked has words of documents: its folder is made and
        # removed here.
        with tempfile.TemporaryDirectory(prefix="fullft-", ignore_cleanup_errors=True) as folder:
            try:
                answers = self._ask(pickle.dumps((limits, folder, read, file, known)))
                self._busy_in = folder
                yield from self._answered(answers, file)
            finally:
                if self._busy_in == folder:
                    self._stop()

    def _answered(self, answers: IO[bytes], file: Delivered) -> Iterator[tuple[int, Record]]:
        unpacked = Unpacked(file.path.stat().st_size)
        while True:
            data = self._answer(answers)
            unpacked.add(len(data))
            kind, *details = pickle.loads(data)
            if kind != "records":
                break
            yield from details[0]
        self._busy_in = None
        if kind != "end":
            raise _error(file.name, kind, *details)
        if file.head is not None and details[0] is not None:
            vars(file.head).update(vars(details[0]))

    def _ask(self, request: bytes) -> IO[bytes]:
        if self._process is None:
            self._process = self._idle_process() or _started()
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        # A format of another package may have come since the process was started.
        self._process.stdin.write(pickle.dumps([path or os.getcwd() for path in sys.path]) + request)
        self._process.stdin.flush()
        return self._process.stdout

    def _idle_process(self) -> subprocess.Popen[bytes] | None:
        """Return one that another batch has left, and that runs."""
        while self._idle:
            pid, process = self._idle.pop()
            if pid == os.getpid() and process.poll() is None:
                return process
        return None

    def _answer(self, answers: IO[bytes]) -> bytes:
        head = answers.read(LENGTH.size)
        data = answers.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
        if data and len(data) == LENGTH.unpack(head)[0]:
            return data
        process = self._process
        self._process = None
        self._busy_in = None
        assert process is not None, "it was asked"
        process.communicate()  # its pipe is closed: it has ended, or is about to
        if process.returncode == -signal.SIGALRM:
            step, whole = self._seconds
            raise Unreadable(f"takes longer than {step:.0f} s a record or page, or {whole:.0f} s in all")
        raise Unreadable(
            f"its reader ended with exit code {process.returncode}; the file is damaged, or takes too much"
            " memory"
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._busy_in = None, None


def _started() -> subprocess.Popen[bytes]:
    # By its path: what it needs of the package, the request imports. It ends with this process, as its stdin
    # does.
    worker = Path(__file__).with_name("bounded_worker.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(worker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _reading(reading: Reading, shared: Shared, advance: Callable[[], None]) -> Reading:
    return replace(reading, shared=shared, advance=advance)


def _not_here(*_: Any) -> Any:
    raise NotImplementedError("a format fetches references in its `rows`")


def _error(file: str, kind: str, *details: Any) -> Exception:
    """Return the exception for a failure that the process reports."""
    match kind:
        case "unreadable":
            return Unreadable(details[0])
        case "undecodable":
            return UnicodeError("not in this encoding")
        case "system":
            return OSError(*details)
        case "module" if details[0] in EXTRAS:
            return SettingsError(f"{file} {needs(details[0])}")
        case "memory":
            return Unreadable(f"takes more than {MAX_MEMORY_BYTES // 2**30} GiB of memory; split it")
    return Unreadable(f"its reader failed ({details[0]})")
