"""The launcher `ray`: jobs of a Ray cluster that exists, which go on whatever becomes of the run.

They are asked for by plain HTTP of the head's job server, so that nothing of Ray is needed here. Ray keeps an
ended job until it is removed, and mixes up two jobs of one name: no name is used again.
"""

import json
import os
import shlex
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from fullft_assets.errors import WorkloadError
from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable, awaited
from fullft_assets.launch.container import LAST_LINE, command, last_words, stop_seconds, variables
from fullft_assets.launch.machine import OUT_OF_MEMORY, ending
from fullft_assets.settings import RayLauncherSettings


class RayLauncher(Launcher):
    """Runs workloads as jobs of a Ray cluster."""

    settings: RayLauncherSettings
    settings_class = RayLauncherSettings

    @property
    def place(self) -> str:
        return urlsplit(self.settings.address).netloc

    def submit(self, spec: LaunchSpec) -> None:
        try:
            if self._ask("GET", spec.name) is None and not self._ask(
                "POST", "", request(spec, self.settings)
            ):
                raise WorkloadError(
                    f"Ray {self.place}: no job server; set launcher.address to that of the head's dashboard,"
                    " and install ray[default] there",
                    "settings",
                )
        except Unreachable:
            if self._ask("GET", spec.name) is None:  # else another run was first
                raise

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        return awaited(lambda: self._status(name), wait_seconds, look_seconds=2.0)

    def logs(self, name: str, cursor: str) -> Logs:
        num_read = int(cursor or 0)  # characters
        try:
            text = (self._ask("GET", f"{name}/logs") or {"logs": ""})["logs"][num_read:]
        except Unreachable as error:
            if not self._status(name).is_over:
                raise
            # Its machine, which had it, does not answer any more.
            return Logs(cursor, stderr=f"the last output is lost: {error}\n")
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        return Logs(
            str(num_read + len("".join(lines))),
            "".join(line for line in lines if not line.startswith(LAST_LINE)),
        )

    def stop(self, name: str) -> None:
        is_there = self._ask("POST", f"{name}/stop", {}) is not None
        seconds = stop_seconds(self.settings) + 30.0  # for Ray itself
        if is_there and not self.poll(name, seconds).is_over:
            raise Unreachable(
                f"Ray {self.place}: {name} has not ended {seconds:.0f} s after it was asked to stop; one that"
                " waits for a machine ends when it gets one, or after 15 minutes"
            )
        self._ask("DELETE", name)

    def _status(self, name: str) -> Status:
        return Status("gone") if (job := self._ask("GET", name)) is None else status_of(job)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Send a request to the job server and return the answer; None where it has no such job.

        Raises:
            Unreachable: it does not answer, or not now.
            WorkloadError: it refuses.
        """
        content = None if body is None else json.dumps(body).encode()
        token = os.environ.get("RAY_AUTH_TOKEN", "")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        url = f"{self.settings.address}/api/jobs/{path}"
        try:
            with urlopen(Request(url, content, headers, method=method), timeout=60) as response:
                return json.load(response)
        except HTTPError as error:
            if error.code == 404:
                return None
            line = f"Ray {self.place}: {_line(error.read().decode(errors='replace'))} ({error.code})"
            if error.code >= 500:
                raise Unreachable(line) from None
            fix = "; set RAY_AUTH_TOKEN to the cluster's token" if error.code in (401, 403) else ""
            raise WorkloadError(f"{line}{fix}", "settings") from None
        except (OSError, HTTPException, ValueError) as error:  # no connection, or its answer was cut off
            raise Unreachable(f"Ray {self.place}: {' '.join(str(error).split())}") from None


def request(spec: LaunchSpec, settings: RayLauncherSettings) -> dict[str, Any]:
    """Return what is asked of the job server for a workload."""
    gpus = spec.processes if settings.gpus else 0
    return {
        "submission_id": spec.name,
        "entrypoint": f"exec {shlex.join(command(settings.python, settings, gpus, spec.arguments))}",
        # Ray alone would kill a stopped job after 3 s.
        "runtime_env": {
            "env_vars": {**variables(spec, settings), "RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds(settings))}
        },
        # Without any, a job runs on the head.
        "entrypoint_num_cpus": settings.cpu or 1,
        "entrypoint_num_gpus": gpus,
        "entrypoint_memory": round((settings.memory_gb or 0) * 2**30),
    }


def status_of(job: dict[str, Any]) -> Status:
    """Return how far a job of Ray is."""
    message = job["message"] or ""
    line = _line(message)
    if job["status"] != "FAILED":
        by_somebody = Status("failed", "was stopped in Ray by somebody; run the same command again to resume")
        return {
            "PENDING": Status("pending", line),
            "STOPPED": by_somebody,
            "SUCCEEDED": Status("succeeded"),
        }.get(job["status"], Status("running"))
    if job["error_type"] == "JOB_ENTRYPOINT_COMMAND_ERROR":
        if (status := last_words(message.splitlines())) is not None:
            return status
        if job["driver_exit_code"] < 0:
            return Status("failed", *ending(128 - job["driver_exit_code"]))
        return Status(
            "failed",
            f"a machine of the Ray cluster cannot start it ({line}); set launcher.python to a Python there"
            " that has fullft_assets",
            "settings",
            is_own_line=True,
        )
    if "running low on memory" in message:
        return OUT_OF_MEMORY
    if job["error_type"] == "JOB_SUPERVISOR_ACTOR_DIED":
        return Status("failed", f"lost its machine of the Ray cluster ({line})", "preemption")
    return Status("failed", f"was not started by Ray ({line})", "infrastructure")


def _line(text: str) -> str:
    """Return the line of a message of Ray that says why: with a reason, or the last one."""
    # Ray writes its own first line before what the shell says, or after it.
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip(" .") and not line.startswith("Running entrypoint for job ")
    ]
    reasons = [line for line in lines if " because its " in line] or lines
    return reasons[-1][:400] if reasons else "no reason given"
