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
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from fullft_assets.documents.formats.delivered import Delivered, Record, Unpacked, Unreadable
from fullft_assets.documents.formats.registered import FILE_SECONDS, STEP_SECONDS, Format, Reading

MAX_MEMORY_BYTES = 4 * 2**30
#: A process that reads files, and the connection to it.
_Process = tuple[subprocess.Popen[bytes], Connection]


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

    #: Processes without work: starting one takes as long as reading hundreds of pages.
    _idle: ClassVar[list[_Process]] = []

    def __init__(self) -> None:
        self._process: _Process | None = None
        #: Folder of the request that is being answered.
        self._busy_in: str | None = None

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._busy_in is None and not self._idle:
            self._idle.append(self._process)
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
        reading = replace(reading, fetch=_not_here, shared=_not_here, advance=_not_here)
        # The process may be killed, and what it unpacked has words of documents: its folder is made and
        # removed here.
        with tempfile.TemporaryDirectory(prefix="fullft-", ignore_cleanup_errors=True) as folder:
            try:
                process, connection = self._process = self._process or _idle_process() or _started()
                # A format of another package may have come since the process was started.
                connection.send([path or os.getcwd() for path in sys.path])
                connection.send((seconds, MAX_MEMORY_BYTES, folder, read, file, reading))
                self._busy_in = folder
                unpacked = Unpacked(file.path.stat().st_size)
                while isinstance(answer := _answer(process, connection, unpacked, seconds), list):
                    yield from answer
                self._busy_in = None
            finally:
                if self._busy_in == folder:
                    self._stop()
        if isinstance(answer, Exception):
            raise answer
        if file.head is not None and answer is not None:
            vars(file.head).update(vars(answer))

    def _stop(self) -> None:
        if self._process is not None:
            process, connection = self._process
            connection.close()
            process.kill()
            process.wait()
        self._process, self._busy_in = None, None


# A process that was forked off has no use of its parent's connections.
os.register_at_fork(after_in_child=ReaderProcess._idle.clear)


def _idle_process() -> _Process | None:
    while ReaderProcess._idle:
        process = ReaderProcess._idle.pop()
        if process[0].poll() is None:
            return process
    return None


def _started() -> _Process:
    # By its path: what it needs of the package, the request imports. It ends with this process, as the
    # connection does.
    worker = Path(__file__).with_name("bounded_worker.py")
    ours, of_worker = Pipe()
    with of_worker:
        number = of_worker.fileno()
        command = [sys.executable, "-P", str(worker), str(number)]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=[number])
    return process, ours


def _answer(
    process: subprocess.Popen[bytes],
    connection: Connection,
    unpacked: Unpacked,
    seconds: tuple[float, float],
) -> Any:
    try:
        data = connection.recv_bytes()
    except (EOFError, OSError):  # it has ended, or is about to
        code = process.wait()
        if code == -signal.SIGALRM:
            step, whole = seconds
            raise Unreadable(
                f"takes longer than {step:.0f} s a record or page, or {whole:.0f} s in all"
            ) from None
        raise Unreadable(
            f"its reader ended with exit code {code}; the file is damaged, or takes too much memory"
        ) from None
    unpacked.add(len(data))
    return pickle.loads(data)


def _not_here(*_: Any) -> Any:
    raise NotImplementedError("a format fetches references in its `rows`")
