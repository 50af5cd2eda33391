"""Amazon ECS and CloudWatch Logs on this machine: requests are checked as AWS checks them, and the containers
of tasks really run.

moto's ECS starts a second task for the same client token, accepts task definitions that AWS refuses, and has
no times, exit codes and instances that join later. Here the one instance is this machine, and its one image
this environment.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.aws_double import IMAGE, AwsDouble, Refused

CLUSTER = "fullft"
PROVIDER = "gpus"
SECRET = "arn:aws:secretsmanager:us-east-1:111122223333:secret:tracking"
_ARN = f"arn:aws:ecs:us-east-1:111122223333:{{}}/{CLUSTER}/{{}}"


@dataclass
class Task:
    """A task, and the process that is its container."""

    request: dict[str, Any]
    definition: dict[str, Any]
    arn: str
    created: float = field(default_factory=time.time)
    last_status: str = "PROVISIONING"
    desired_status: str = "RUNNING"
    started: float | None = None
    stop_code: str = ""
    reason: str = ""
    exit_code: int | None = None
    container_reason: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def container(self) -> dict[str, Any]:
        return self.definition["containerDefinitions"][0]

    def end(self, code: str, reason: str, container_reason: str = "") -> None:
        """Stop for a reason, unless there is one already."""
        if not self.stop_code:
            self.stop_code, self.reason, self.container_reason = code, reason, container_reason
        self.desired_status = "STOPPED"

    def described(self) -> dict[str, Any]:
        ended = {"name": self.container["name"], "reason": self.container_reason}
        ended |= {} if self.exit_code is None else {"exitCode": self.exit_code}
        found: dict[str, Any] = {
            "taskArn": self.arn,
            "taskDefinitionArn": self.definition["taskDefinitionArn"],
            "startedBy": self.request.get("startedBy", ""),
            "createdAt": self.created,
            "startedAt": self.started,
            "lastStatus": self.last_status,
            "desiredStatus": self.desired_status,
            "stopCode": self.stop_code,
            "stoppedReason": self.reason,
            "containers": [ended],
        }
        return {name: value for name, value in found.items() if value not in (None, "")}


class Ecs(AwsDouble):
    """The two services, with one cluster and one capacity provider."""

    target, endpoint, model = "AmazonEC2ContainerServiceV20141113", "ECS", "ecs"

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        super().__init__(folder, environment)
        self.definitions: dict[str, dict[str, Any]] = {}
        self.tasks: list[Task] = []
        self.tokens: dict[str, tuple[dict[str, Any], Task]] = {}
        self.secrets: dict[str, str] = {}
        #: Whether an instance is free: without one a task of the capacity provider waits, and another one is
        #: refused.
        self.has_room = True
        #: A new task is not listed or described for so long.
        self.unseen_seconds = 0.0

    def _RegisterTaskDefinition(self, request: dict[str, Any]) -> dict[str, Any]:
        if re.fullmatch(r"[A-Za-z0-9_-]{1,255}", request["family"]) is None:
            raise Refused("ClientException", "Family contains invalid characters.")
        revision = 1 + sum(each["family"] == request["family"] for each in self.definitions.values())
        arn = f"arn:aws:ecs:us-east-1:111122223333:task-definition/{request['family']}:{revision}"
        self.definitions[arn] = {**request, "taskDefinitionArn": arn, "revision": revision}
        return {"taskDefinition": self.definitions[arn]}

    def _RunTask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._require_cluster(request)
        definition, token = self.definitions[request["taskDefinition"]], request["clientToken"]
        if (
            re.fullmatch(r"[!-~]{1,64}", token) is None
            or re.fullmatch(r"[A-Za-z0-9/_-]{1,128}", request["startedBy"]) is None
        ):
            raise Refused("InvalidParameterException", "clientToken or startedBy is not valid.")
        if token in self.tokens:
            asked, task = self.tokens[token]
            if asked != request:
                raise Refused(
                    "ConflictException", "The provided clientToken is already in use.", resourceIds=[task.arn]
                )
            return {"tasks": [task.described()], "failures": []}
        if ("launchType" in request) == ("capacityProviderStrategy" in request):
            raise Refused(
                "InvalidParameterException", "Specify either a launch type or a capacity provider strategy."
            )
        if (definition["networkMode"] == "awsvpc") != ("networkConfiguration" in request):
            raise Refused(
                "InvalidParameterException",
                "Network Configuration is not valid for the given networkMode of this task definition.",
            )
        if "launchType" in request and not self.has_room:
            return {
                "tasks": [],
                "failures": [{"arn": _ARN.format("container-instance", "0"), "reason": "RESOURCE:GPU"}],
            }
        task = Task(request, definition, _ARN.format("task", f"{len(self.tasks):032x}"))
        self.tasks.append(task)
        self.tokens[token] = request, task
        threading.Thread(target=self._run, args=(task,), daemon=True).start()
        return {"tasks": [task.described()], "failures": []}

    def _ListTasks(self, request: dict[str, Any]) -> dict[str, Any]:
        self._require_cluster(request)
        family, desired = request.get("family"), request.get("desiredStatus", "RUNNING")
        found = [
            task.arn
            for task in self._seen()
            if task.desired_status == desired and family in (None, task.definition["family"])
        ]  # fmt: skip
        return {"taskArns": found}

    def _DescribeTasks(self, request: dict[str, Any]) -> dict[str, Any]:
        self._require_cluster(request)
        found = {task.arn: task for task in self._seen()}
        missing = [{"arn": arn, "reason": "MISSING"} for arn in request["tasks"] if arn not in found]
        return {
            "tasks": [found[arn].described() for arn in request["tasks"] if arn in found],
            "failures": missing,
        }

    def _StopTask(self, request: dict[str, Any]) -> dict[str, Any]:
        (task,) = [each for each in self.tasks if each.arn == request["task"]]
        task.end("UserInitiated", request["reason"])
        if task.process is not None:
            self.end_containers([task.process], task.container["stopTimeout"])
        return {"task": task.described()}

    def lose_host(self, code: str, reason: str) -> None:
        """Take the instance of the newest task away, and every process on it."""
        task = self.tasks[-1]
        task.end(code, reason)
        os.killpg(task.process.pid, signal.SIGKILL)  # the supervisor's command dies with it

    def _seen(self) -> list[Task]:
        return [task for task in self.tasks if time.time() - task.created >= self.unseen_seconds]

    def _require_cluster(self, request: dict[str, Any]) -> None:
        if request["cluster"] != CLUSTER:
            raise Refused("ClusterNotFoundException", "Cluster not found.")

    def _run(self, task: Task) -> None:
        while not self.has_room and task.desired_status == "RUNNING":
            time.sleep(0.05)
        task.last_status = "PENDING"
        problem = self._problem(task)
        if problem:
            task.end("TaskFailedToStart", f"TaskFailedToStart: {problem}", problem)
        if task.desired_status == "RUNNING":
            self._run_container(task)
        task.last_status = "STOPPED"

    def _run_container(self, task: Task) -> None:
        given = {each["name"]: each["value"] for each in task.container["environment"]}
        given |= {each["name"]: self.secrets[each["valueFrom"]] for each in task.container.get("secrets", ())}
        options, task_id = task.container["logConfiguration"]["options"], task.arn.rpartition("/")[2]
        given = {
            "FULLFT_CACHE": str(self.folder / "cache" / task_id),
            **given,
        }  # another instance has another disk
        stream = f"{options['awslogs-stream-prefix']}/{task.container['name']}/{task_id}"
        try:
            task.process = self.start_container(task.container["command"], given, stream)
        except FileNotFoundError as error:
            task.end(
                "EssentialContainerExited",
                "Essential container in task exited",
                f'CannotStartContainerError: exec: "{error.filename}": no such file',
            )
            return
        task.started, task.last_status = time.time(), "RUNNING"
        code = task.process.wait()
        if task.stop_code not in ("SpotInterruption", "TerminationNotice"):  # nobody is left to say it
            task.exit_code = code if code >= 0 else 128 - code
        task.end("EssentialContainerExited", "Essential container in task exited")

    def _problem(self, task: Task) -> str:
        if task.container["image"] != IMAGE:
            return (
                "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve"
                f" ref {task.container['image']}: not found"
            )
        absent = [
            each["valueFrom"]
            for each in task.container.get("secrets", ())
            if each["valueFrom"] not in self.secrets
        ]
        return (
            f"ResourceInitializationError: unable to pull secrets: secret {absent[0]} does not exist"
            if absent
            else ""
        )
