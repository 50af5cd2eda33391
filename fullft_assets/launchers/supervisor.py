"""Runs one command and leaves none of its processes behind.

`python -m fullft_assets.launchers.supervisor --watch PID[,PID] --grace SECONDS -- COMMAND...`

The command is stopped when the supervisor gets SIGTERM or SIGINT and when a watched process dies, even
by SIGKILL. It then has the grace time to write its checkpoint. After it, or after the command's own
end, every descendant is killed, those in sessions of their own (torchrun's ranks) included. When the
supervisor itself is killed, the kernel kills the command. The exit code is the command's, 128 + N when
signal N ended it.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

from fullft_assets.jobs.gpus import leased
from fullft_assets.jobs.launch import LAUNCH_ID, adopt_orphans, die_with_parent

#: Time between two looks at the watched processes; the command's own end is noticed at once.
POLL_SECONDS = 0.5
#: How long killed processes may take to vanish; longer means an uninterruptible system call.
KILL_SECONDS = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line above and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fullft_assets.launchers.supervisor", description=__doc__)
    parser.add_argument("--watch", required=True, metavar="PID[,PID]", help="processes whose death stops the command")
    parser.add_argument("--grace", type=float, default=30.0, metavar="SECONDS", help="time for a checkpoint")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    chosen = parser.parse_args(arguments)
    supervisor = Supervisor(chosen.grace)
    adopt_orphans()
    die_with_parent(signal.SIGTERM)
    try:
        # psutil's processes are distinguished by (pid, start time): a reused pid is not taken for the old process.
        watched = [psutil.Process(int(pid)) for pid in chosen.watch.split(",")]
    except psutil.NoSuchProcess:
        return 128 + signal.SIGTERM
    return supervisor.run(chosen.command, watched)


class Supervisor:
    """One supervised command."""

    _command: subprocess.Popen[bytes]

    def __init__(self, grace_seconds: float):
        self.grace_seconds = grace_seconds
        self.stop_requested = False
        self._wakeup, wakeup_writer = os.pipe()
        for end in (self._wakeup, wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._request_stop)

    def run(self, command: list[str], watched: list[psutil.Process]) -> int:
        """Run a command while the watched processes live, on GPUs of its own, and return its exit code."""
        with leased(_num_processes(command), lambda: not self.stop_requested and all(map(is_alive, watched))) as variables:
            return 128 + signal.SIGTERM if variables is None else self._run(command, watched, variables)

    def _run(self, command: list[str], watched: list[psutil.Process], variables: Mapping[str, str]) -> int:
        self._command = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True, preexec_fn=die_with_parent)
        try:
            self._wait(lambda: not self.stop_requested and all(map(is_alive, watched)))
            if self._command.returncode is None:
                self._terminate()
                deadline = time.monotonic() + self.grace_seconds
                self._wait(lambda: time.monotonic() < deadline)
        finally:
            kill_until_gone(self._left)
        code = -signal.SIGKILL if self._command.returncode is None else self._command.returncode
        return 128 - code if code < 0 else code

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _wait(self, may_go_on: Callable[[], bool]) -> None:
        """Wait for the command's end while the condition holds."""
        while self._command.returncode is None and may_go_on():
            if select.select([self._wakeup], [], [], POLL_SECONDS)[0]:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            self._reap()

    def _terminate(self) -> None:
        """Ask the command, and orphans of it, to stop.

        Not all descendants: a data-loading worker that dies of SIGTERM takes its trainer down before the
        checkpoint. torchrun passes the signal on to its ranks.
        """
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()

    def _left(self) -> list[psutil.Process]:
        self._reap()
        return [*psutil.Process().children(recursive=True), *launched_processes(os.environ.get(LAUNCH_ID))]

    def _reap(self) -> None:
        # As the adopting parent it collects every child, not the command alone; Popen must not wait as well.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._command.pid:
                self._command.returncode = os.waitstatus_to_exitcode(status)


def _num_processes(command: list[str]) -> int:
    """Return how many processes a command starts on this machine: as many as it asks torchrun for, else one."""
    after = command[command.index("--nproc_per_node") + 1 :] if "--nproc_per_node" in command else ["1"]
    return int(after[0])


def kill_until_gone(find: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL what `find` returns until it returns nothing: a process may fork while it is looked for."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := find()) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


def launched_processes(launch_id: str | None, variable: str = LAUNCH_ID) -> list[psutil.Process]:
    """Return the live processes, other than this one, that carry an id, of a launch or of a run, in this variable of their environment.

    Finds what the process tree no longer shows: a process whose parents are dead, in a session of its own.
    """
    if launch_id is None:
        return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get(variable) == launch_id and is_alive(process):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie, killed but not yet collected, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
