"""What `fullft run` prints: plain lines in a log; in a terminal also a progress bar."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

#: Environment variable with `Terminal.began` of the command that started this one in the same terminal: both
#: print by one clock.
BEGAN = "FULLFT_BEGAN"


class Terminal:
    """Prints lines with the elapsed time, and one bar that is redrawn in place.

    Args:
        stream: where to.
        worded: makes of a line what is printed.
    """

    def __init__(self, stream: TextIO, worded: Callable[[str], str] = str) -> None:
        self.stream, self.worded = stream, worded
        self.is_interactive = stream.isatty()
        self.began = float(os.environ.get(BEGAN, time.monotonic()))
        self._bar_is_open = False

    def line(self, text: str) -> None:
        """Print one line with the elapsed time."""
        if self._bar_is_open:
            self.stream.write("\r\033[K")
            self._bar_is_open = False
        print(f"[{time.monotonic() - self.began:6.1f} s] {self.worded(text)}", file=self.stream, flush=True)

    def bar(self, title: str, done: int, total: int, message: str) -> None:
        """Redraw the bar."""
        width = 24
        filled = round(width * done / max(1, total))
        print(
            f"\r\033[K{title} [{'#' * filled}{'.' * (width - filled)}] {message}"[:160],
            end="",
            file=self.stream,
            flush=True,
        )
        self._bar_is_open = True


@contextmanager
def own_terminal(log: Path, worded: Callable[[str], str] = str) -> Iterator[Terminal]:
    """Keep the terminal for our lines, `worded` as it says: what Dagster's processes print of each event goes
    to a file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with os.fdopen(os.dup(1), "w") as terminal, log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Terminal(terminal, worded)
        finally:
            for descriptor, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, descriptor)
                os.close(saved)
