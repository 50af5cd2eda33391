"""Runs one command and leaves none of its processes behind.

`python -m fullft_assets.launch.supervisor OPTIONS COMMAND...`, with `Options` as JSON.

The command is stopped when the supervisor gets SIGTERM or SIGINT, when a watched process dies, even by
SIGKILL, and when its time is up. It then has the grace time to write its checkpoint. After it, or after the
command's own end, every descendant is killed, those in sessions of their own (torchrun's ranks) included.
When the supervisor itself is killed, the kernel kills the command. The exit code is the command's, 128 + N
when signal N ended it. A folder gets the supervisor's pid, what it waits for and, at the end, the exit code
and what the kernel knows of it, for processes that are not its parent.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fullft_assets.errors import WorkloadError
from fullft_assets.launch.contract import EXIT_FIXABLE, LAUNCH_ID, adopt_orphans, die_with_parent
from fullft_assets.launch.leases import leased
from fullft_assets.progress import ERROR_FILE, WorkloadFailure
from fullft_assets.store.disk import replace_synced

#: Time between two looks at the watched processes; the command's own end is noticed at once.
POLL_SECONDS = 0.5
#: How long killed processes may take to vanish; longer means an uninterruptible system call.
KILL_SECONDS = 10.0
#: Files of `--folder`: pid of the supervisor; what it waits for; and exit code of the command, with whether
#: its time was up or memory ran out.
PID = "pid"
WAITING = "waiting"
EXIT = "exit"
#: Environment variable with a file that has the kernel's count of processes that were killed as memory ran
#: out, for tests.
OOM_COUNT = "FULLFT_OOM_COUNT"


@dataclass(frozen=True)
class Options:
    """How a command is supervised.

    Attributes:
        grace: seconds that a stopped command has for its checkpoint.
        seconds: time after which it is stopped. Default: none.
        watch: processes whose death stops it. Default: none; it outlives its parent.
        folder: where pid and exit code are written. Default: nowhere.
    """

    grace: float = 30.0
    seconds: float | None = None
    watch: Sequence[int] = ()
    folder: str | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command under a supervisor."""
        return [
            sys.executable,
            "-m",
            "fullft_assets.launch.supervisor",
            json.dumps(asdict(self)),
            *command,
        ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line above and return the exit code."""
    options, *command = sys.argv[1:] if arguments is None else arguments
    return supervise(Options(**json.loads(options)), command)


def supervise(options: Options, command: list[str]) -> int:
    """Run a command to its end and return its exit code."""
    supervisor = Supervisor(options.grace, options.seconds)
    folder = None if options.folder is None else Path(options.folder)
    if folder is not None:
        replace_synced(folder / PID, str(os.getpid()))
    adopt_orphans()
    if options.watch:
        die_with_parent(signal.SIGTERM)
    try:
        # psutil's processes are distinguished by (pid, start time): a reused pid is not taken for the old
        # process.
        watched = [psutil.Process(pid) for pid in options.watch]
    except psutil.NoSuchProcess:
        code = 128 + signal.SIGTERM
    else:
        try:
            code = supervisor.run(command, watched, folder)
        except WorkloadError as error:  # as a workload ends that can say why
            print(error, file=sys.stderr)
            if (path := os.environ.get(ERROR_FILE)) is not None:
                WorkloadFailure(str(error), error.failure).write(Path(path))
            code = EXIT_FIXABLE
    if folder is not None:
        how = {"is_limit": supervisor.is_late, "is_out_of_memory": supervisor.is_out_of_memory}
        replace_synced(folder / EXIT, json.dumps({"code": code, **how}))
    return code


def num_killed_for_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes the kernel has killed as memory ran out, in the closest control group that
    counts them; None if it does not say.
    """
    own_group = proc / "self/cgroup"
    group = own_group.read_text().strip().rpartition(":")[2] if own_group.exists() else "/"
    # A container may see its own group as the root, and know it by its name on the host.
    paths = [Path(f"{groups}{group}/memory.events"), groups / "memory.events", proc / "vmstat"]
    for path in [Path(os.environ[OOM_COUNT])] if OOM_COUNT in os.environ else paths:
        with suppress(OSError):
            if (count := re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)) is not None:
                return int(count[1])
    return None


class Supervisor:
    """One supervised command."""

    _command: subprocess.Popen[bytes]

    def __init__(self, grace_seconds: float, max_seconds: float | None = None):
        self.grace_seconds = grace_seconds
        self.max_seconds = float("inf") if max_seconds is None else max_seconds
        self.stop_requested = False
        #: Whether the command was stopped because its time was up.
        self.is_late = False
        #: Whether the kernel killed a process of the command as memory ran out.
        self.is_out_of_memory = False
        self._wakeup, wakeup_writer = os.pipe()
        for end in (self._wakeup, wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._request_stop)

    def run(self, command: list[str], watched: list[psutil.Process], folder: Path | None = None) -> int:
        """Run a command while the watched processes live, on GPUs of its own, and return its exit code.

        Args:
            folder: where the line that says what it waits for is written.
        """

        def is_wanted() -> bool:
            return not self.stop_requested and all(map(is_alive, watched))

        def say(line: str) -> None:
            print(line, flush=True)
            if folder is not None:
                replace_synced(folder / WAITING, line)

        num_processes = (
            int(command[command.index("--nproc_per_node") + 1]) if "--nproc_per_node" in command else 1
        )
        with leased(num_processes, is_wanted, say) as variables:
            if variables is None:
                return 128 + signal.SIGTERM
            if folder is not None:
                (folder / WAITING).unlink(missing_ok=True)
            return self._run(command, is_wanted, variables)

    def _run(self, command: list[str], is_wanted: Callable[[], bool], variables: Mapping[str, str]) -> int:
        # Not before the wait for GPUs, in which others' processes may be killed.
        num_before = num_killed_for_memory()
        self._command = subprocess.Popen(
            command, env={**os.environ, **variables}, start_new_session=True, preexec_fn=die_with_parent
        )
        is_stopped = False
        try:
            limit = time.monotonic() + self.max_seconds
            self._wait(lambda: is_wanted() and time.monotonic() < limit)
            if self._command.returncode is None:
                self.is_late = not self.stop_requested and time.monotonic() >= limit
                is_stopped = True
                # The command and its orphans, not all descendants: a data-loading worker that dies of SIGTERM
                # takes its trainer down before the checkpoint. torchrun passes the signal on to its ranks.
                for child in psutil.Process().children():
                    with suppress(psutil.NoSuchProcess):
                        child.terminate()
                deadline = time.monotonic() + self.grace_seconds
                self._wait(lambda: time.monotonic() < deadline)
        finally:
            kill_until_gone(self._left)
        code = -signal.SIGKILL if self._command.returncode is None else self._command.returncode
        code = 128 - code if code < 0 else code
        if code != 0 and not is_stopped:
            num_after = num_killed_for_memory()
            # A signal that nobody sent is most likely the kernel's own.
            self.is_out_of_memory = (
                code == 128 + signal.SIGKILL
                if num_before is None or num_after is None
                else num_after > num_before
            )
        return code

    def _request_stop(self, *_) -> None:
        self.stop_requested = True

    def _wait(self, may_go_on: Callable[[], bool]) -> None:
        while self._command.returncode is None and may_go_on():
            if select.select([self._wakeup], [], [], POLL_SECONDS)[0]:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            self._reap()

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


def kill_until_gone(find: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL what `find` returns until it returns nothing: a process may fork while it is looked for."""
    deadline = time.monotonic() + KILL_SECONDS
    while (processes := find()) and time.monotonic() < deadline:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


def launched_processes(launch_id: str | None, variable: str = LAUNCH_ID) -> list[psutil.Process]:
    """Return the live processes, other than this one, that carry an id, of a launch or of a run, in this
    variable of their environment.

    Finds what the process tree no longer shows: a process whose parents are dead, in a session of its own.
    """
    if launch_id is None:
        return []
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if (
                process.pid != os.getpid()
                and process.environ().get(variable) == launch_id
                and is_alive(process)
            ):
                processes.append(process)
    return processes


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie, killed but not yet collected, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
