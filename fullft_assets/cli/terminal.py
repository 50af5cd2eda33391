"""What `fullft run` prints: lines with the elapsed time."""

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
    """Prints lines with the elapsed time.

    Args:
        stream: where to.
        worded: makes of a line what is printed.
    """

    def __init__(self, stream: TextIO, worded: Callable[[str], str] = str) -> None:
        self.stream, self.worded = stream, worded
        self.began = float(os.environ.get(BEGAN, time.monotonic()))

    def line(self, text: str) -> None:
        """Print one line with the elapsed time."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {self.worded(text)}", file=self.stream, flush=True)


@contextmanager
def own_terminal(log: Path, worded: Callable[[str], str] = str) -> Iterator[Terminal]:
    """Keep the terminal for our lines, `worded` as it says: what Dagster's processes print of each event goes
    to a file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with os.fdopen(os.dup(1), "w") as terminal, log.open("ab") as file:
        try:
            for descriptor in saved:
                os.dup2(file.fileno(), descriptor)
            yield Terminal(terminal, worded)
        finally:
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
