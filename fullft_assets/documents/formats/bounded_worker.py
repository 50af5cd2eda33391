"""Process that reads files of any format but the streamed ones, for `bounded`: one request after the other
until stdin ends.

A file may be made (or damaged) so that reading it never ends or takes all memory. Here that ends this process
alone: an alarm and a limit of the address space see to it, whatever the parser is doing.

It is started by its path and imports nothing of the package by itself: a request names the function that
reads.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

#: Size of a message, before it.
LENGTH = struct.Struct(">Q")
#: Records, and about so many characters of text, that one message has.
_MESSAGE_RECORDS = 1_024
_MESSAGE_CHARACTERS = 2**20


def main() -> None:
    """Answer each request until stdin ends."""
    # What a parser prints must not come among the answers.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with ExitStack() as stack:
        shared: dict[Any, Any] = {}

        def open_shared(kind: Any) -> Any:
            if kind not in shared:
                shared[kind] = stack.enter_context(kind())
            return shared[kind]

        while (request := _request(requests)) is not None:
            limits, tempfile.tempdir, records, file, reading = request
            alarm = Alarm(*limits[:2])
            resource.setrlimit(resource.RLIMIT_AS, (limits[2], resource.getrlimit(resource.RLIMIT_AS)[1]))
            try:
                for message in _together(records(file, reading(open_shared, alarm.restart)), alarm):
                    _send(answers, ("records", message))
                answer: tuple[Any, ...] = ("end", file.head)
            except Exception as error:  # a parser of damaged files raises whatever it stumbles over
                answer = _failure(error)
            alarm.stop()
            _send(answers, answer)


class Alarm:
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
        """Begin the next step."""
        signal.setitimer(
            signal.ITIMER_REAL, max(0.001, min(self._step_seconds, self._end - time.monotonic()))
        )

    def stop(self) -> None:
        """Give all the time there is."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def _request(requests: BinaryIO) -> Any:
    """Return the next request; where its modules are found comes before it."""
    try:
        sys.path[:] = pickle.load(requests)
        return pickle.load(requests)
    except EOFError:
        return None


def _together(records: Iterator[Any], alarm: Alarm) -> Iterator[list[Any]]:
    """Yield numbered records, several together."""
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


def _send(answers: BinaryIO, message: tuple[Any, ...]) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    answers.write(LENGTH.pack(len(data)))
    answers.write(data)
    answers.flush()


if __name__ == "__main__":
    main()
