"""The launcher `ecs`: tasks of Amazon ECS on GPU instances, which go on whatever becomes of the run.

Each job is a task of a task definition of its own name; `startedBy` of the task and the token of its request
are that name as well, so that a request whose answer was lost, or that is sent by two runs, starts one task.
ECS forgets an ended task after an hour. Output is read from CloudWatch Logs; its last line says how the
workload ended, since ECS keeps no more than an exit code.
"""

import math
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any

from fullft_assets.errors import WorkloadError
from fullft_assets.launch import aws
from fullft_assets.launch.base import LaunchSpec, Status, Unreachable
from fullft_assets.launch.container import command, last_words, stop_seconds, variables
from fullft_assets.launch.contract import PROJECT_ROOT
from fullft_assets.launch.machine import ending
from fullft_assets.settings import EcsLauncherSettings

CONTAINER = "workload"
#: So often is a task looked for before it counts as gone, with a pause: two lists a moment apart may both
#: lack one that changes its state.
_GONE_LOOKS = 3
#: A task that was stopped has so long beyond the time of its container.
_STOP_SECONDS = 120.0
_BEFORE = frozenset({"PROVISIONING", "PENDING", "ACTIVATING"})
#: Why a task was stopped that lost its instance.
_PREEMPTED = frozenset({"SpotInterruption", "TerminationNotice", "InfrastructureHealth"})
#: Reasons of a container that no other try changes, and the keys that may be wrong.
_WRONG = re.compile(
    r"not found|no such file|manifest unknown|unauthorized|denied|forbidden|no basic auth|invalid"
    r" reference|does not exist"
    r"|ResourceNotFound|can't find|not authorized",
    re.IGNORECASE,
)
_KEYS = {
    "logging driver": "launcher.execution_role_arn, and make the log group /ecs/ with launcher.cluster",
    "Fetching secret data": "launcher.secrets and launcher.execution_role_arn",
    "CannotPull": "launcher.image and launcher.execution_role_arn",
    "ResourceInitializationError": "launcher.secrets and launcher.execution_role_arn",
    "CannotStartContainerError": "launcher.python and launcher.image",
}
_MAX_CHARACTERS = 400


class EcsLauncher(aws.AwsLauncher):
    """Runs workloads as tasks of ECS."""

    settings: EcsLauncherSettings
    settings_class = EcsLauncherSettings
    title = "ECS"

    def __init__(self, settings: EcsLauncherSettings):
        super().__init__(settings)
        #: When tasks were started by this process, which may not be seen yet.
        self._started: dict[str, float] = {}

    @property
    def place(self) -> str:
        return f"{self.settings.task_role_arn.split(':')[4]}/{self.region}/{self.settings.cluster}"

    @property
    def log_group(self) -> str:
        return f"/ecs/{self.settings.cluster}"

    def stream_prefix(self, name: str) -> str:
        return f"{name}/{CONTAINER}/"

    def submit(self, spec: LaunchSpec) -> None:
        if self._task(spec.name) is not None:
            return
        answer = self.ask(
            "ecs", "register_task_definition", **task_definition(spec, self.settings, self.region)
        )
        arn = answer["taskDefinition"]["taskDefinitionArn"]
        with suppress(aws.Exists):  # by another run, whose environment is another one
            answer = self.ask("ecs", "run_task", **self._request(spec, arn))
            if not answer["tasks"]:
                why = "; ".join(
                    f"{failure.get('reason', '')} {failure.get('detail', '')}".strip()
                    for failure in answer["failures"]
                )
                raise WorkloadError(
                    f"ECS {self.place}: no instance takes {spec.name} ({why or 'no reason given'}); wait"
                    " until one is free, or set launcher.capacity_provider to one that starts instances",
                    "infrastructure",
                )
        self._started[spec.name] = time.monotonic()

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        time.sleep(wait_seconds)
        task = self._find(name)
        if task is None:
            return Status("gone" if self._is_known_to_all(name) else "pending")
        if task["lastStatus"] == "STOPPED" and "startedAt" in task:
            self._ended.add(name)
        words = self._last_words(name) if _container(task).get("exitCode") else None
        return status_of(task, words, self._age_seconds(task), self.settings)

    def stop(self, name: str) -> None:
        """Stop a task, if it runs, and wait for its end. ECS keeps its description for an hour, and its task
        definition.
        """
        limit = stop_seconds(self.settings) + _STOP_SECONDS
        deadline = time.monotonic() + limit
        while (
            running := [task for task in self._tasks(name) if task["lastStatus"] != "STOPPED"]
        ) or not self._is_known_to_all(name):
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"ECS {self.place}: {name} has not ended {limit:.0f} s after it was asked to stop"
                )
            for task in running:
                if task["desiredStatus"] != "STOPPED":
                    self.ask(
                        "ecs",
                        "stop_task",
                        cluster=self.settings.cluster,
                        task=task["taskArn"],
                        reason="ended by fullft",
                    )
            time.sleep(aws.STOP_LOOK_SECONDS)

    def _request(self, spec: LaunchSpec, definition: str) -> dict[str, Any]:
        settings = self.settings
        provider = {"capacityProvider": settings.capacity_provider, "weight": 1}
        network = {
            "subnets": settings.subnets,
            "securityGroups": settings.security_groups,
            "assignPublicIp": "DISABLED",
        }
        return {
            "cluster": settings.cluster,
            "taskDefinition": definition,
            "count": 1,
            "startedBy": spec.name,
            "clientToken": spec.name,
            "tags": [
                {"key": key, "value": value}
                for key, value in {**settings.tags, "fullft:run": spec.run_id}.items()
            ],
            **(
                {"launchType": "EC2"}
                if settings.capacity_provider is None
                else {"capacityProviderStrategy": [provider]}
            ),
            **(
                {
                    "placementConstraints": [
                        {
                            "type": "memberOf",
                            "expression": f"attribute:ecs.instance-type == {settings.instance_type}",
                        }
                    ]
                }
                if settings.instance_type is not None
                else {}
            ),
            **({"networkConfiguration": {"awsvpcConfiguration": network}} if settings.subnets else {}),
        }

    def _find(self, name: str) -> dict[str, Any] | None:
        for look in range(_GONE_LOOKS):
            if (task := self._task(name)) is not None:
                return task
            if look < _GONE_LOOKS - 1 and self._is_known_to_all(name):
                time.sleep(aws.LATE_SECONDS)
        return None

    def _task(self, name: str) -> dict[str, Any] | None:
        """Return the task of a name: of several, which the same token prevents for a day, the newest that
        runs.
        """
        return max(
            self._tasks(name),
            key=lambda task: (task["lastStatus"] != "STOPPED", -self._age_seconds(task)),
            default=None,
        )

    def _tasks(self, name: str) -> list[dict[str, Any]]:
        # By the definition's name: `startedBy` finds running ones alone.
        # A task that ends between the two lists is in both.
        cluster = self.settings.cluster
        lists = [
            self.ask("ecs", "list_tasks", cluster=cluster, family=name, desiredStatus=status)["taskArns"]
            for status in ("RUNNING", "STOPPED")
        ]
        arns = list(dict.fromkeys(chain.from_iterable(lists)))
        if not arns:
            return []
        answer = self.ask("ecs", "describe_tasks", cluster=cluster, tasks=arns)
        # By the service's clock, as all times of its tasks.
        self._now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        if answer["tasks"]:
            self._started.pop(name, None)
        return answer["tasks"]

    def _age_seconds(self, task: dict[str, Any]) -> float:
        return (self._now - task["createdAt"]).total_seconds() if "createdAt" in task else 0.0

    def _is_known_to_all(self, name: str) -> bool:
        # A task may not be seen by another request for so long after it was started: ECS is eventually
        # consistent.
        return time.monotonic() - self._started.get(name, -math.inf) >= 60.0

    def _last_words(self, name: str) -> Status | None:
        for _ in range(aws.LATE_LOOKS):
            for stream in self.streams(name)[-1:]:
                if (status := last_words(self.lines(stream)[0])) is not None:
                    return status
            time.sleep(aws.LATE_SECONDS)
        return None


def task_definition(spec: LaunchSpec, settings: EcsLauncherSettings, region: str) -> dict[str, Any]:
    """Return the task definition of a workload."""
    values = {"AWS_DEFAULT_REGION": region, PROJECT_ROOT: ".", **variables(spec, settings)}
    memory = round(settings.memory_gb * 1024)
    gpus = spec.processes if settings.gpus else 0
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "essential": True,
        "command": command(settings.python, settings, gpus, spec.arguments),
        "environment": [{"name": name, "value": value} for name, value in values.items()],
        "secrets": [{"name": name, "valueFrom": arn} for name, arn in settings.secrets.items()],
        "memory": memory,
        "stopTimeout": stop_seconds(settings),
        "linuxParameters": {
            "sharedMemorySize": memory // 2,
            "capabilities": {"drop": ["ALL"]},
        },
        "logConfiguration": {
            "logDriver": "awslogs",
            # A training must not stand still because its output cannot be written.
            "options": {
                "awslogs-group": f"/ecs/{settings.cluster}",
                "awslogs-region": region,
                "awslogs-stream-prefix": spec.name,
                "mode": "non-blocking",
                "max-buffer-size": "25m",
            },
        },
        **({"resourceRequirements": [{"type": "GPU", "value": str(gpus)}]} if gpus else {}),
        **({"cpu": round(settings.cpu * 1024)} if settings.cpu is not None else {}),
    }
    return {
        "family": spec.name,
        "taskRoleArn": settings.task_role_arn,
        "executionRoleArn": settings.execution_role_arn,
        "networkMode": "awsvpc" if settings.subnets else "bridge",
        "requiresCompatibilities": ["EC2"],
        "containerDefinitions": [container],
    }


def status_of(
    task: dict[str, Any], own_words: Status | None, seconds: float, settings: EcsLauncherSettings
) -> Status:
    """Return how far a task is.

    Args:
        own_words: how the container's first process says that the workload ended.
        seconds: since the task was created.
    """
    state = task["lastStatus"]
    if state in _BEFORE:
        if seconds <= settings.pending_minutes * 60:
            return Status("pending")
        why = (
            "no instance for it has joined the cluster"
            if state == "PROVISIONING"
            else "its image was not there"
        )
        return Status(
            "failed",
            f"waited longer than launcher.pending_minutes ({settings.pending_minutes:g}): {why}",
            "infrastructure",
        )
    if state == "STOPPED" and _container(task).get("exitCode") != 0:
        return _failure(task, own_words)
    return Status("succeeded" if state == "STOPPED" else "running")


def _failure(task: dict[str, Any], own_words: Status | None) -> Status:
    container = _container(task)
    code = task.get("stopCode", "")
    why = _line(task.get("stoppedReason", "no reason given"))
    reason = _line(container.get("reason", ""))
    if reason.startswith("OutOfMemory"):
        return Status("failed", "was killed: it took more than launcher.memory_gb; raise it", "out_of_memory")
    if code == "UserInitiated":
        return Status(
            "failed",
            f"was stopped in ECS by somebody ({why}); run the same command again to resume",
            "unknown",
        )
    if own_words is not None and own_words.is_own_line:
        return own_words
    if code in _PREEMPTED or re.search(
        r"Host EC2 .*(terminated|stopped)|instance draining|deregist", why, flags=re.IGNORECASE
    ):
        return Status("failed", f"was preempted: {why}", "preemption")
    if code == "TaskFailedToStart" or reason.startswith("Cannot"):
        return _not_started(reason or why)
    if own_words is not None:
        return own_words
    if "exitCode" not in container:
        return Status("failed", f"lost its container ({reason or why})", "infrastructure")
    return Status("failed", *ending(container["exitCode"]))


def _not_started(reason: str) -> Status:
    line = f"the task could not start: {reason}"
    keys = next((keys for kind, keys in _KEYS.items() if kind in reason), None)
    if keys is None or not _WRONG.search(reason):  # no room, a registry that is busy, an instance that is new
        return Status("failed", line, "infrastructure", is_own_line=True)
    return Status("failed", f"{line}; set {keys}", "settings", is_own_line=True)


def _container(task: dict[str, Any]) -> dict[str, Any]:
    return task["containers"][0] if task.get("containers") else {}


def _line(text: str) -> str:
    return " ".join(text.split())[:_MAX_CHARACTERS]
