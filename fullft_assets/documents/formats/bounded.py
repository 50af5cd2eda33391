"""Bounds of reading: time, memory and unpacked size. Files of formats that are not streamed are read by a
process of its own.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, ClassVar

from fullft_assets.documents.formats.delivered import Delivered, Record, Unpacked, Unreadable
from fullft_assets.documents.formats.registered import Reading
from fullft_assets.security.environment import environment_for_others

#: Longest time for one record (of a PDF, for one page).
STEP_SECONDS = 20.0
#: Longest time for all of a file.
FILE_SECONDS = 600.0
MAX_MEMORY_BYTES = 4 * 2**30
#: A process that reads files, and the connection to it.
_Process = tuple[subprocess.Popen[bytes], Connection]


class ReaderProcess:
    """A process that reads files one after the other, started at the first and used for all of a batch, and
    by the next batch.
    """

    #: Processes without work: starting one takes as long as reading hundreds of pages.
    _idle: ClassVar[list[_Process]] = []

    def __init__(self) -> None:
        self._process: _Process | None = None
        self._is_busy = False

    def close(self) -> None:
        """Keep the process for whoever reads next, or end it where it is at work."""
        if self._process is not None and not self._is_busy and not self._idle:
            self._idle.append(self._process)
            self._process = None
        self._stop()

    def records(
        self,
        read: Callable[[Delivered, Reading], Iterator[tuple[int, Record]]],
        file: Delivered,
        reading: Reading,
    ) -> Iterator[tuple[int, Record]]:
        """Yield the records that `read` yields of a file.

        Raises:
            Unreadable: `read` raises it or anything unexpected, or takes more time, memory or bytes than it
                may.
            UnicodeError: the text is in another encoding.
            OSError: the system says so.
            SettingsError: the extra that reads the file is not installed.
        """
        if self._is_busy:
            self._stop()  # whoever asked last did not want all of it, and has not said so yet
        process, connection = current = self._process or _idle_process() or _started()
        self._process = current
        self._is_busy = True
        try:
            # A format of another package may have come since the process was started.
            connection.send([path or os.getcwd() for path in sys.path])
            connection.send(((STEP_SECONDS, FILE_SECONDS, MAX_MEMORY_BYTES), read, file, reading))
            unpacked_bytes = Unpacked(file.path.stat().st_size)
            while isinstance(answer := _answer(process, connection, unpacked_bytes), list):
                yield from answer
            self._is_busy = False
        finally:
            if self._is_busy and self._process is current:
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
        self._process = None
        self._is_busy = False


# A process that was forked off has no use of its parent's connections.
os.register_at_fork(after_in_child=ReaderProcess._idle.clear)


def _idle_process() -> _Process | None:
    while ReaderProcess._idle:
        if (process := ReaderProcess._idle.pop())[0].poll() is None:
            return process
    return None


def _started() -> _Process:
    # By its path: what it needs of the package, the request imports. It ends with this process, as the
    # connection does.
    connection, of_worker = Pipe()
    with of_worker:
        number = of_worker.fileno()
        worker = str(Path(__file__).with_name("bounded_worker.py"))
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-P", worker, str(number)],
            env=environment_for_others(with_accounts=False),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            pass_fds=[number],
        )
    return process, connection


def _answer(process: subprocess.Popen[bytes], connection: Connection, unpacked_bytes: Unpacked) -> Any:
    try:
        data = connection.recv_bytes()
    except (EOFError, OSError):  # it has ended, or is about to
        code = process.wait()
        why = f"its reader ended with exit code {code}; the file is damaged, or takes too much memory"
        if code == -signal.SIGALRM:
            why = f"takes longer than {STEP_SECONDS:.0f} s a record or page, or {FILE_SECONDS:.0f} s in all"
        raise Unreadable(why) from None
    unpacked_bytes.add(len(data))
    return pickle.loads(data)
