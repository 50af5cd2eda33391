"""Jobs of one machine: each is a supervised process, with a folder that any later process can read.

Used in this process by the launcher `local`. The launcher `ssh` runs this module on the other machine:
`python -m fullft_assets.launch.machine` reads one request (a JSON object) from stdin and prints the answer
as the last line.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fullft_assets.errors import FailureClass
from fullft_assets.launch.base import Logs, Status, awaited
from fullft_assets.launch.contract import LAUNCH_ID
from fullft_assets.launch.supervisor import (
    EXIT,
    PID,
    WAITING,
    Options,
    is_alive,
    kill_until_gone,
    launched_processes,
)
from fullft_assets.progress import ERROR_FILE, WorkloadFailure
from fullft_assets.security.environment import environment_for_others

#: What the supervisor needs beyond the grace time to notice, kill and collect.
PATIENCE_SECONDS = 5.0
#: Time between two looks at a job whose end is waited for.
_LOOK_SECONDS = 0.05
#: Most bytes of one stream in one answer.
_MAX_BYTES = 1_000_000
_STREAMS = ("stdout", "stderr", "messages")
#: File of torchrun itself, by the variable that names it, with why it failed.
_TORCHRUN = "torchrun"
#: Of a job whose time is up.
REACHED_LIMIT = Status(
    "failed",
    "reached launcher.max_hours and was stopped; raise it, and run the same command again to resume",
    "settings",
)
#: Of a job that the kernel has killed, or a process of it.
OUT_OF_MEMORY = Status(
    "failed",
    "was killed: memory ran out; use a machine with more memory, or lower launcher.processes",
    "out_of_memory",
)
#: What a workload takes a process of its own that was killed for: another rank that it lost, or nothing that
#: it knows.
FOR_KILLED: frozenset[FailureClass] = frozenset({"infrastructure", "unknown"})


class Machine:
    """The jobs of this machine.

    Args:
        root: folder with a folder for each job.
    """

    def __init__(self, root: Path):
        self.root = root
        #: Supervisors that this process started, which Python collects once they have ended.
        self._children: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        grace_seconds: float,
        max_seconds: float | None = None,
        watched: Sequence[int] = (),
    ) -> None:
        """Start Python with these arguments under a supervisor, unless a job of this name runs; an ended one
        is replaced.

        Args:
            watched: processes that the job must not outlive. Default: none; it outlives this process as well.
        """
        from dagster_pipes import DAGSTER_PIPES_MESSAGES_ENV_VAR, encode_param

        folder = self.root / name
        if folder.is_dir() and self._status(name).is_over:
            self.stop(name, 0)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            folder.mkdir(mode=0o700)  # only one process can make it
        except FileExistsError:
            return
        options = Options(grace_seconds, max_seconds, watched, str(folder))
        variables = {
            **environment_for_others(with_accounts=True),
            **environment,
            LAUNCH_ID: name,
            **error_files(folder),
            **patient_torchrun(grace_seconds),
        }
        if DAGSTER_PIPES_MESSAGES_ENV_VAR in variables:
            # A file of their own keeps messages whole, whatever else is printed.
            variables[DAGSTER_PIPES_MESSAGES_ENV_VAR] = encode_param({"path": str(folder / "messages")})
        with (folder / "stdout").open("ab") as stdout, (folder / "stderr").open("ab") as stderr:
            # A session of its own: Ctrl-C in a terminal reaches Dagster alone, which cancels in an orderly
            # way.
            supervisor = subprocess.Popen(
                options.command([sys.executable, *arguments]),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._children = [child for child in self._children if child.poll() is None] + [supervisor]

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a job is; wait for its end for so long at most."""
        return awaited(partial(self._status, name), wait_seconds, _LOOK_SECONDS)

    def logs(self, name: str, cursor: str) -> Logs:
        """Return a job's output after a cursor."""
        offsets = (
            dict(zip(_STREAMS, map(int, cursor.split(",")), strict=True))
            if cursor
            else dict.fromkeys(_STREAMS, 0)
        )
        is_over = self._status(name).is_over
        texts = {}
        is_more = False
        for stream in _STREAMS:
            data, is_full = _read(self.root / name / stream, offsets[stream], whole_lines=not is_over)
            offsets[stream] += len(data)
            is_more = is_more or is_full
            texts[stream] = data.decode(errors="replace")
        return Logs(",".join(str(offsets[stream]) for stream in _STREAMS), **texts, is_more=is_more)

    def stop(self, name: str, grace_seconds: float) -> None:
        """End a job if it runs, wait until none of its processes is left, and remove its folder."""
        supervisor = self._supervisor(name)
        try:
            if supervisor is not None:
                with suppress(psutil.NoSuchProcess):
                    supervisor.terminate()
                self.poll(name, grace_seconds + PATIENCE_SECONDS)
        finally:
            # Usually nothing is left to kill, unless the supervisor was killed or a second interrupt cut the
            # wait short.
            kill_until_gone(lambda: launched_processes(name))
            shutil.rmtree(self.root / name, ignore_errors=True)

    def _status(self, name: str) -> Status:
        folder = self.root / name
        if not folder.is_dir():
            return Status("gone")
        if self._may_run(folder) and _end(folder) is None:
            if not (folder / PID).exists():
                return Status("pending")
            with suppress(FileNotFoundError):
                return Status("pending", (folder / WAITING).read_text())
            return Status("running")
        return ended_status(folder)

    def _may_run(self, folder: Path) -> bool:
        if (folder / PID).exists():
            return self._supervisor(folder.name) is not None
        with suppress(FileNotFoundError):
            # A job whose supervisor has not begun after this long never will.
            return time.time() - folder.stat().st_mtime < 60.0
        return False

    def _supervisor(self, name: str) -> psutil.Process | None:
        try:
            process = psutil.Process(int((self.root / name / PID).read_text()))
            # A pid is used again, a folder outlives the machine's boot, and a process's start is known by a
            # clock that may be set meanwhile.
            return process if process.environ().get(LAUNCH_ID) == name and is_alive(process) else None
        except (OSError, psutil.Error):  # a process that is ending may have no environment any more
            return None


def this_machine() -> Machine:
    """Return the jobs of this machine and this user."""
    return Machine(
        Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets") / "launches"
    )


def patient_torchrun(grace_seconds: float) -> dict[str, str]:
    """Return the variable that has torchrun wait for a checkpoint: it kills its ranks after 30 s by default,
    whatever our grace time is.
    """
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(grace_seconds + PATIENCE_SECONDS))}


def error_files(folder: Path) -> dict[str, str]:
    """Return the variables with the files of a job's folder in which the workload, or torchrun, writes why it
    failed.
    """
    # Ranks get other files from torchrun.
    return {ERROR_FILE: str(folder / "error"), "TORCHELASTIC_ERROR_FILE": str(folder / _TORCHRUN)}


def ended_status(folder: Path) -> Status:
    """Return how the supervised command of a folder ended."""
    end = _end(folder)
    if end is not None and end["code"] == 0:
        return Status("succeeded")
    if end is not None and end["is_limit"]:
        return REACHED_LIMIT
    failure = WorkloadFailure.read(folder / "error")
    if end is not None and end.get("is_out_of_memory"):
        if failure is None:
            return OUT_OF_MEMORY
        if failure.failure in FOR_KILLED:
            reason = f"{failure.line}; while it ran, a process {OUT_OF_MEMORY.reason}"
            return replace(OUT_OF_MEMORY, reason=reason, is_own_line=True)
    if failure is not None:
        return Status("failed", failure.line, failure.failure, is_own_line=True)
    if end is None:
        return Status(
            "failed",
            "lost its supervisor (killed, out of memory, or the machine went down)",
            "infrastructure",
        )
    if (torchrun := folder / _TORCHRUN).exists() and re.search(
        r"\bDist(?:Network|Store)Error\b", torchrun.read_text()
    ):
        return Status("failed", "could not reach the other hosts of its training", "infrastructure")
    return Status("failed", *ending(end["code"]))


def _end(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / EXIT).read_text())
    except FileNotFoundError:
        return None


def _read(path: Path, offset: int, *, whole_lines: bool) -> tuple[bytes, bool]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return b"", False
    is_full = len(data) == _MAX_BYTES
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if (is_full and end == 0) or not (is_full or whole_lines):
        end = len(data)
    return data[:end], is_full


def ending(code: int) -> tuple[str, FailureClass]:
    """Return a sentence on an exit code, and the class of the failure."""
    if code <= 128:
        return f"ended with exit code {code}", "unknown"
    # Killed from outside: by the kernel, the machine's owner or a node that went away.
    number = code - 128
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}", "infrastructure"


def main() -> int:
    """Answer the request on stdin; see the top of this file."""
    request = json.load(sys.stdin)
    answer = getattr(this_machine(), request.pop("do"))(**request)
    print(json.dumps({"answer": asdict(answer) if isinstance(answer, Status | Logs) else answer}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
