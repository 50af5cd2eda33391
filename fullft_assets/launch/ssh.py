"""The launcher `ssh`: supervised processes of another machine, which go on when the connection is lost.

Nothing is copied but the URI of the job file: the store is on S3, or a folder that both machines mount under
one path. Each question is one `ssh` that runs `fullft_assets.launch.machine` there, with the request on
stdin, so that nothing is quoted for two shells.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from fullft_assets.errors import WorkloadError
from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable
from fullft_assets.launch.contract import PROJECT_ROOT
from fullft_assets.launch.machine import PATIENCE_SECONDS
from fullft_assets.launch.supervisor import KILL_SECONDS
from fullft_assets.settings import SshLauncherSettings

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


class SshLauncher(Launcher):
    """Runs workloads on a machine of one's own."""

    settings: SshLauncherSettings
    settings_class = SshLauncherSettings

    @property
    def place(self) -> str:
        options = self.settings.options
        user = f"{options['User']}@" if "User" in options else ""
        return f"{user}{self.settings.host}" + (f":{options['Port']}" if "Port" in options else "")

    def submit(self, spec: LaunchSpec) -> None:
        self._ask(
            "start",
            name=spec.name,
            arguments=spec.arguments,
            environment={
                **self.settings.environment,
                **({} if self.settings.folder is None else {PROJECT_ROOT: "."}),
                **spec.environment,
            },
            grace_seconds=self.settings.grace_seconds,
            max_seconds=self.settings.max_seconds,
        )

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        return Status(**self._ask("poll", wait_seconds, name=name, wait_seconds=wait_seconds))

    def logs(self, name: str, cursor: str) -> Logs:
        return Logs(**self._ask("logs", name=name, cursor=cursor))

    def stop(self, name: str) -> None:
        grace = self.settings.grace_seconds
        self._ask("stop", grace + PATIENCE_SECONDS + KILL_SECONDS, name=name, grace_seconds=grace)

    def _ask(self, do: str, seconds: float = 0.0, **request: Any) -> Any:
        """Send a request to the machine and return the answer.

        Args:
            seconds: that the other machine may take its time.

        Raises:
            Unreachable: there is no connection, it was lost, or a question about a job that may run has no
                answer.
            WorkloadError: `ssh` refused, or the machine refused to start a job.
        """
        try:
            process = subprocess.run(
                self._command(),
                input=json.dumps({"do": do, **request}),
                capture_output=True,
                text=True,
                errors="replace",  # a banner may be in any encoding
                timeout=seconds + _ANSWER_SECONDS,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"ssh {self.place}: no answer within {seconds + _ANSWER_SECONDS:.0f} s"
            ) from None
        except FileNotFoundError:
            raise WorkloadError(
                "launcher.kind: ssh needs the program `ssh`, which is not installed here", "settings"
            ) from None
        if process.returncode == 0:
            try:
                return json.loads(process.stdout.splitlines()[-1])["answer"]
            except (IndexError, KeyError, TypeError, ValueError):
                raise Unreachable(f"ssh {self.place}: its answer to `{do}` cannot be read") from None
        reason = next(
            (line for line in reversed(process.stderr.splitlines()) if line.strip()),
            f"exit code {process.returncode}",
        ).strip()
        # Exit code of `ssh` for its own errors.
        if process.returncode == 255:
            for sign, what_to_do in _REFUSED.items():
                if sign in process.stderr:
                    raise WorkloadError(f"ssh {self.place}: {reason.rstrip('.')}; {what_to_do}", "settings")
            raise Unreachable(f"ssh {self.place}: {reason}")
        line = (
            f"ssh {self.place}: {self.settings.python} -m fullft_assets.launch.machine failed ({reason});"
            " set launcher.python and launcher.folder to where fullft_assets is there"
        )
        if do != "start":  # the machine may be short of memory for a moment, while the job runs on
            raise Unreachable(line)
        raise WorkloadError(line, "settings")

    def _command(self) -> list[str]:
        options: dict[str, object] = {**_OPTIONS, **self.settings.options}
        if "IdentityFile" in options:
            options["IdentitiesOnly"] = "yes"
        for name in ("IdentityFile", "UserKnownHostsFile"):
            if name in options:
                # Without quotes, a space begins another file.
                options[name] = f'"{Path(str(options[name])).expanduser()}"'
        arguments = (part for name, value in options.items() for part in ("-o", f"{name}={value}"))
        return ["ssh", "-T", *arguments, "--", self.settings.host, self._remote()]

    def _remote(self) -> str:
        python = _quoted(self.settings.python)
        go = "" if self.settings.folder is None else f"cd {_quoted(self.settings.folder)} && "
        return f"{go}exec {python} -m fullft_assets.launch.machine"


def _quoted(path: str) -> str:
    home, slash, below = path.partition("/")
    return (
        f"{home}{slash}{shlex.quote(below) if below else ''}"
        if re.fullmatch(r"~([A-Za-z0-9_][\w.-]*)?", home, re.ASCII)
        else shlex.quote(path)
    )
