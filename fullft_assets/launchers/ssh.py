"""The launcher `ssh`: supervised processes of another machine, which go on when the connection is lost.

Nothing is copied but the URI of the job file: the store is on S3, or a folder that both machines mount under
one path. Each question is one `ssh` that runs `fullft_assets.launchers.machine` there, with the request on
stdin, so that nothing is quoted for two shells.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fullft_assets.errors import WorkloadError
from fullft_assets.jobs.launch import PROJECT_ROOT
from fullft_assets.jobs.ranks import torchrun_of_hosts
from fullft_assets.launchers.base import Launcher, LaunchSpec, Logs, Status, Unreachable
from fullft_assets.launchers.machine import FOR_KILLED, PATIENCE_SECONDS
from fullft_assets.launchers.supervisor import KILL_SECONDS
from fullft_assets.settings import SshLauncherSettings

#: Exit code of `ssh` for its own errors.
_SSH_ERROR = 255
#: What `ssh` says where another try gives the same answer, and what to do.
_REFUSED = {
    "Permission denied": (
        "set User and IdentityFile of launcher.options to a user and a key that the machine accepts"
    ),
    "Host key verification failed": (
        "compare the machine's host key and add it to ~/.ssh/known_hosts, or to UserKnownHostsFile of"
        " launcher.options"
    ),
    "Bad configuration": "fix ~/.ssh/config",
}
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    # A connection that is silent for a minute is lost.
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
}
#: What a request takes there beside the time that it waits.
_ANSWER_SECONDS = 120.0
#: Of the first machine, on which the processes of the others find its own.
_PORT = 29_500
#: Of several machines, the one that failed first may need so long to say why.
_CAUSE_SECONDS = 15.0
_OUTPUT = ("stdout", "stderr")

T = TypeVar("T")


class SshLauncher(Launcher):
    """Runs workloads on a machine of one's own; a training may be shared by several."""

    settings: SshLauncherSettings
    settings_class = SshLauncherSettings

    def __init__(self, settings: SshLauncherSettings):
        super().__init__(settings)
        self._hosts = settings.hosts
        #: How many of the machines share a job, of those that are known.
        self._num_hosts: dict[str, int] = {}

    @property
    def place(self) -> str:
        return "+".join([self._place_of(self._hosts[0]), *self._hosts[1:]])

    def submit(self, spec: LaunchSpec) -> None:
        """Start the job there under a supervisor of its own; of a training that several machines share, one
        on each.
        """
        hosts = self._hosts if spec.processes > 1 else self._hosts[:1]
        root = {} if self.settings.folder is None else {PROJECT_ROOT: "."}  # where the shell there has gone
        # The first machine is the last one: where it has the job, each has it.
        for number in reversed(range(len(hosts))):
            try:
                self._ask(
                    number,
                    "start",
                    name=_name(spec.name, number),
                    arguments=self._arguments(spec, number) if len(hosts) > 1 else spec.arguments,
                    environment={**self.settings.environment, **root, **spec.environment},
                    grace_seconds=self.settings.grace_seconds,
                    max_seconds=self.settings.max_seconds,
                    num_hosts=len(hosts),
                )
            except Unreachable:
                raise  # whoever asks again starts what is not there yet
            except WorkloadError:
                for started in range(number + 1, len(hosts)):
                    with suppress(WorkloadError):  # it ends by itself as nobody joins it
                        self._stop(started, spec.name)
                raise

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a job is: as far as on the first machine, unless another one has failed."""
        statuses = [self._status(0, name, wait_seconds)]
        if statuses[0].state in ("gone", "succeeded"):
            return statuses[0]
        statuses += self._each([*self._others(name)], lambda number: self._status(number, name))
        if all(status.state != "failed" for status in statuses):
            return statuses[0]
        # Who lost another machine may end before that one has said why.
        working = [number for number, status in enumerate(statuses) if not status.is_over]
        statuses += self._each(working, lambda number: self._status(number, name, _CAUSE_SECONDS))
        return min(
            (status for status in statuses if status.state == "failed"),
            key=lambda status: status.failure in FOR_KILLED,
        )

    def logs(self, name: str, cursor: str) -> Logs:
        """Return what a job wrote after a cursor; lines of other machines than the first one begin with its
        name.
        """
        if len(self._hosts) == 1:
            return self._logs(0, name, cursor)
        cursors: dict[str, str] = json.loads(cursor or "{}")
        numbers = [0, *self._others(name)]
        logs = dict(
            zip(
                numbers,
                self._each(numbers, lambda number: self._logs(number, name, cursors.get(str(number), ""))),
                strict=True,
            )
        )
        stdout, stderr = (
            "".join(_marked(getattr(one, stream), self._hosts[n] if n else "") for n, one in logs.items())
            for stream in _OUTPUT
        )
        read_on = json.dumps({str(number): one.cursor for number, one in logs.items()})
        return Logs(read_on, stdout, stderr, logs[0].messages, any(one.is_more for one in logs.values()))

    def stop(self, name: str) -> None:
        self._each([0, *self._others(name)], lambda number: self._stop(number, name))

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._ask(0, "names", prefix=prefix) if "-host" not in name]

    def has_room(self, processes: int) -> bool:
        return len(self._hosts) == 1

    def _place_of(self, host: str) -> str:
        options = self.settings.options
        user = f"{options['User']}@" if "User" in options else ""
        port = f":{options['Port']}" if "Port" in options else ""
        return f"{user}{host}{port}"

    def _arguments(self, spec: LaunchSpec, number: int) -> Sequence[str]:
        first, *other_hosts = self._hosts
        address, _, port = (self.settings.rendezvous or first).partition(":")
        names = [address, *other_hosts]
        torchrun = torchrun_of_hosts(names, number, spec.processes // len(names), int(port or _PORT))
        return [*torchrun, "-m", spec.module, *spec.job]

    def _others(self, name: str) -> range:
        """Return the numbers of the machines that share a job with the first one; of all of them where that
        one does not know the job.
        """
        if len(self._hosts) > 1 and name not in self._num_hosts:
            num_hosts = self._ask(0, "num_hosts", name=name)
            if num_hosts is None:
                return range(1, len(self._hosts))
            self._num_hosts[name] = num_hosts
        return range(1, self._num_hosts.get(name, 1))

    def _each(self, numbers: Sequence[int], ask: Callable[[int], T]) -> Sequence[T]:
        """Ask machines by their numbers, all at once, and return their answers; the first error is raised
        when each has been asked.
        """
        if not numbers:
            return []
        with ThreadPoolExecutor(len(numbers)) as pool:
            answers = [pool.submit(ask, number) for number in numbers]
        return [each.result() for each in answers]

    def _status(self, number: int, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a job is on one machine; another one than the first that does not answer is taken to
        work.
        """
        try:
            return Status(
                **self._ask(number, "poll", wait_seconds, name=_name(name, number), wait_seconds=wait_seconds)
            )
        except Unreachable:
            if number == 0:
                raise
            return Status("running")  # where it does not, the first one loses it, and fails

    def _logs(self, number: int, name: str, cursor: str) -> Logs:
        try:
            return Logs(**self._ask(number, "logs", name=_name(name, number), cursor=cursor))
        except Unreachable:
            if number == 0:
                raise
            return Logs(cursor)

    def _stop(self, number: int, name: str) -> None:
        grace = self.settings.grace_seconds
        self._ask(
            number,
            "stop",
            grace + PATIENCE_SECONDS + KILL_SECONDS,
            name=_name(name, number),
            grace_seconds=grace,
        )

    def _ask(self, number: int, do: str, seconds: float = 0.0, **request: Any) -> Any:
        """Send a request to a machine and return the answer.

        Args:
            number: of the machine; 0 is the first one.
            seconds: that the other machine may take its time.

        Raises:
            Unreachable: there is no connection, it was lost, or a question about a job that may run has no
                answer.
            WorkloadError: `ssh` refused, or the machine refused to start a job.
        """
        said, place = json.dumps({"do": do, **request}), self._place_of(self._hosts[number])
        try:
            done = subprocess.run(
                self._command(self._hosts[number]),
                input=said,
                capture_output=True,
                text=True,
                errors="replace",  # a banner may be in any encoding
                timeout=seconds + _ANSWER_SECONDS,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"ssh {place}: no answer within {seconds + _ANSWER_SECONDS:.0f} s") from None
        except FileNotFoundError:
            raise WorkloadError(
                "launcher.kind: ssh needs the program `ssh`, which is not installed here", "settings"
            ) from None
        if done.returncode == 0:
            try:
                return json.loads(done.stdout.splitlines()[-1])["answer"]
            except (IndexError, KeyError, TypeError, ValueError):
                raise Unreachable(f"ssh {place}: its answer to `{do}` cannot be read") from None
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()),
            f"exit code {done.returncode}",
        ).strip()
        if done.returncode == _SSH_ERROR:
            for sign, what_to_do in _REFUSED.items():
                if sign in done.stderr:
                    raise WorkloadError(f"ssh {place}: {reason.rstrip('.')}; {what_to_do}", "settings")
            raise Unreachable(f"ssh {place}: {reason}")
        line = (
            f"ssh {place}: {self.settings.python} -m fullft_assets.launchers.machine failed ({reason}); set"
            " launcher.python and launcher.folder to where fullft_assets is there"
        )
        if (
            do != "start"
        ):  # the machine may be short of memory, disk or processes for a moment, while the job runs on
            raise Unreachable(line)
        raise WorkloadError(line, "settings")

    def _command(self, host: str) -> list[str]:
        options: dict[str, object] = {**_OPTIONS, **self.settings.options}
        if "IdentityFile" in options:
            options["IdentitiesOnly"] = "yes"
        for name in ("IdentityFile", "UserKnownHostsFile"):
            if name in options:
                # Without quotes, a space begins another file.
                options[name] = f'"{Path(str(options[name])).expanduser()}"'
        arguments = (part for name, value in options.items() for part in ("-o", f"{name}={value}"))
        return ["ssh", "-T", *arguments, "--", host, self._remote()]

    def _remote(self) -> str:
        python = _quoted(self.settings.python)
        go = "" if self.settings.folder is None else f"cd {_quoted(self.settings.folder)} && "
        return f"{go}exec {python} -m fullft_assets.launchers.machine"


def _name(name: str, number: int) -> str:
    """Return the name of a job on one of several machines: processes are told by it, also where two of them
    are one.
    """
    return f"{name}-host{number}" if number else name


def _marked(text: str, host: str) -> str:
    return "".join(f"[{host}] {line}" for line in text.splitlines(keepends=True)) if host else text


def _quoted(path: str) -> str:
    home, slash, below = path.partition("/")
    return (
        f"{home}{slash}{shlex.quote(below) if below else ''}"
        if re.fullmatch(r"~([A-Za-z0-9_][\w.-]*)?", home, re.ASCII)
        else shlex.quote(path)
    )
