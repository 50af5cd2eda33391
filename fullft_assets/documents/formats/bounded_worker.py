"""Process that reads files of any format but the streamed ones, for `bounded`: one request after the other
until its connection ends.

A file may be made (or damaged) so that reading it never ends or takes all memory. Here that ends this process
alone: an alarm and a limit of the address space see to it, whatever the parser is doing.

It is started by its path and imports nothing of the package before the first request: a request names the
function that reads.
"""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Answer each request until the connection, whose number is the argument, ends.

    An answer is lists of records, then the error, or else what was read of the file's head.
    """
    connection = Connection(int(sys.argv[1]))
    while (request := _request(connection)) is not None:
        (step_seconds, file_seconds, max_bytes), records, file, reading = request
        alarm = _Alarm(step_seconds, file_seconds)
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            for message in _messages(records(file, replace(reading, advance=alarm.restart)), alarm):
                connection.send(message)
            answer = file.head
        except Exception as error:  # a parser of damaged files raises whatever it stumbles over
            answer = _shown(error, file.name, max_bytes)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


class _Alarm:
    """Ends this process where one step, or all of them together, take too long."""

    def __init__(self, step_seconds: float, file_seconds: float):
        self._step_seconds = step_seconds
        self._end = time.monotonic() + file_seconds
        self.restart()

    def restart(self) -> None:
        """Begin a step."""
        signal.setitimer(
            signal.ITIMER_REAL, max(0.001, min(self._step_seconds, self._end - time.monotonic()))
        )


def _request(connection: Connection) -> Any:
    try:
        # Where its modules are found comes before it.
        sys.path[:] = connection.recv()
        return connection.recv()
    except EOFError:
        return None


def _messages(records: Iterator[Any], alarm: _Alarm) -> Iterator[list[Any]]:
    message: list[Any] = []
    characters = 0
    for number, record in records:
        alarm.restart()
        message.append((number, record))
        if isinstance(record, dict):
            characters += sum(
                len(value) for value in record.values() if isinstance(value, str | bytes | list)
            )
        # Records, and about so many characters of text, that one message has.
        if len(message) >= 1_024 or characters >= (2**20):
            yield message
            message = []
            characters = 0
    if message:
        yield message


def _shown(error: Exception, file: str, max_bytes: int) -> Exception:
    from fullft_assets.documents.formats.delivered import Unreadable
    from fullft_assets.errors import SettingsError
    from fullft_assets.extras import EXTRAS, needs

    # The message of an unexpected one may contain text, and is dropped.
    match error:
        case Unreadable():
            return error
        case UnicodeError():
            return UnicodeError("not in this encoding")
        case OSError() if error.strerror:
            return OSError(error.errno, error.strerror)
        case ModuleNotFoundError(name=str(name)) if name in EXTRAS:
            return SettingsError(f"{file} {needs(name)}")
        case MemoryError():
            return Unreadable(f"takes more than {max_bytes // 2**30} GiB of memory; split it")
    return Unreadable(f"its reader failed ({type(error).__name__})")


if __name__ == "__main__":
    main()
