"""Process that reads files of any format but the streamed ones, for `bounded`: one request after the other
until its connection ends.

A file may be made (or damaged) so that reading it never ends or takes all memory. Here that ends this process
alone: an alarm and a limit of the address space see to it, whatever the parser is doing.

It is started by its path and imports nothing of the package by itself: a request names the function that
reads.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

#: Records, and about so many characters of text, that one message has.
_MESSAGE_RECORDS = 1_024
_MESSAGE_CHARACTERS = 2**20


def main() -> None:
    """Answer each request until the connection, whose number is the argument, ends."""
    connection = Connection(int(sys.argv[1]))
    with ExitStack() as stack:
        shared: dict[Any, Any] = {}

        def open_shared(kind: Any) -> Any:
            if kind not in shared:
                shared[kind] = stack.enter_context(kind())
            return shared[kind]

        while (request := _request(connection)) is not None:
            limits, tempfile.tempdir, records, file, reading = request
            alarm = _Alarm(*limits[:2])
            resource.setrlimit(resource.RLIMIT_AS, (limits[2], resource.getrlimit(resource.RLIMIT_AS)[1]))
            try:
                for message in _together(records(file, reading(open_shared, alarm.restart)), alarm):
                    connection.send(("records", message))
                answer: tuple[Any, ...] = ("end", file.head)
            except Exception as error:  # a parser of damaged files raises whatever it stumbles over
                answer = _failure(error)
            alarm.stop()
            connection.send(answer)


class _Alarm:
    """Ends this process where one step, or all of them together, take too long.

    Args:
        step_seconds: longest time between two calls of `restart`.
        file_seconds: longest time in all.
    """

    def __init__(self, step_seconds: float, file_seconds: float):
        self._step_seconds = step_seconds
        self._end = time.monotonic() + file_seconds
        self.restart()

    def restart(self) -> None:
        signal.setitimer(
            signal.ITIMER_REAL, max(0.001, min(self._step_seconds, self._end - time.monotonic()))
        )

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _request(connection: Connection) -> Any:
    """Return the next request; where its modules are found comes before it."""
    try:
        sys.path[:] = connection.recv()
        return connection.recv()
    except EOFError:
        return None


def _together(records: Iterator[Any], alarm: _Alarm) -> Iterator[list[Any]]:
    together: list[Any] = []
    characters = 0
    for numbered in records:
        alarm.restart()
        together.append(numbered)
        record = numbered[1]
        if isinstance(record, dict):
            characters += sum(
                len(value) for value in record.values() if isinstance(value, str | bytes | list)
            )
        if len(together) >= _MESSAGE_RECORDS or characters >= _MESSAGE_CHARACTERS:
            yield together
            together, characters = [], 0
    if together:
        yield together


def _failure(error: Exception) -> tuple[Any, ...]:
    """Return what is sent to the other process about an error; the message of an unexpected one may contain
    text and is dropped.
    """
    if type(error).__name__ == "Unreadable":
        return ("unreadable", str(error))
    if isinstance(error, UnicodeError):
        return ("undecodable",)
    if isinstance(error, OSError) and error.strerror:
        return ("system", error.errno, error.strerror)
    if isinstance(error, ModuleNotFoundError):
        return ("module", error.name)
    return ("memory",) if isinstance(error, MemoryError) else ("failed", type(error).__name__)


if __name__ == "__main__":
    main()
