"""How long a command takes with every process that it starts: wall and CPU seconds.

The command runs below a small process of its own (this module's command line), which adopts what the
command leaves behind, so that the CPU time of each descendant is counted, and nothing else's.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
#: Time for background processes (code servers) to end after the command did; their CPU time counts.
_LINGER_SECONDS = 20.0
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Timing:
    """Seconds of one command: `wall` until it returned, `cpu` of it and all of its descendants."""

    wall: float
    cpu: float


def timed(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Timing:
    """Run a command, its output going to a file, and measure it.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder, log.open("w") as output:
        result = Path(folder, "timing.json")
        # This module's file, not its name: the command's folder need not be the repository.
        wrapped = [sys.executable, __file__, str(result), *command]
        subprocess.run(
            wrapped,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
        found = json.loads(result.read_text())
    if found["status"] != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        raise RuntimeError(f"{' '.join(command)}: exit status {found['status']}; the end of {log}:\n{last}")
    return Timing(found["wall"], found["cpu"])


def _main(result: str, *command: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.perf_counter()
    status = subprocess.call(command)
    wall = time.perf_counter() - started
    _reap_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(result).write_text(
        json.dumps({"status": status, "wall": wall, "cpu": used.ru_utime + used.ru_stime})
    )


def _reap_descendants() -> None:
    end = time.monotonic() + _LINGER_SECONDS
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        except ChildProcessError:
            return


if __name__ == "__main__":
    _main(*sys.argv[1:])
