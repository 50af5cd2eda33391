"""Amazon SageMaker's Training Jobs and CloudWatch Logs on this machine: requests are checked as AWS checks them, and containers really run.

A container is a process of this machine under the variables and folders that SageMaker gives: `FULLFT_OPT_ML` names its /opt/ml, and
/tmp/fullft, the launcher's cache, is a folder of its own. Nothing is known of a registry: the image is this environment.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.aws_double import AwsDouble, Refused


@dataclass
class TrainingJob:
    """A job, and the processes that are its containers."""

    request: dict[str, Any]
    created: float
    status: str = "InProgress"
    secondary: str = "Starting"
    reason: str = ""
    transitions: list[dict[str, Any]] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None
    #: Why its containers are to stop: Stopped, MaxRuntimeExceeded or Interrupted.
    wanted: str | None = None
    num_starts: int = 0

    def enter(self, secondary: str, status: str | None = None) -> None:
        self.secondary, self.status = secondary, status or self.status
        self.transitions.append({"Status": secondary, "StartTime": time.time()})


class SageMaker(AwsDouble):
    """The two services."""

    target, endpoint, model = "SageMaker", "SAGEMAKER", "sagemaker"

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        super().__init__(folder, environment)
        self.jobs: dict[str, TrainingJob] = {}
        #: Jobs for which there are no instances.
        self.num_without_capacity = 0
        #: Whether spot instances come back after an interruption, before the job has waited too long.
        self.spot_returns = False
        self.grace_seconds = 20.0
        self.host_names: Callable[[int], list[str]] = lambda count: [f"algo-{number + 1}" for number in range(count)]

    def _CreateTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        name, stopping = request["TrainingJobName"], request["StoppingCondition"]
        if name in self.jobs:
            raise Refused(
                "ResourceInUse", "Training job names must be unique within an AWS account and region, and one with this name already exists"
            )
        is_spot = request.get("EnableManagedSpotTraining", False)
        if (
            is_spot != ("MaxWaitTimeInSeconds" in stopping)
            or stopping.get("MaxWaitTimeInSeconds", math.inf) < stopping["MaxRuntimeInSeconds"]
        ):
            raise Refused(
                "ValidationException", "Invalid MaxWaitTimeInSeconds: not below MaxRuntimeInSeconds, and with managed spot training alone"
            )
        self.jobs[name] = job = TrainingJob(request, time.time())
        job.enter("Starting")
        threading.Thread(target=self._run, args=(name, job), daemon=True).start()
        return {"TrainingJobArn": _arn(name)}

    def _DescribeTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        given = {key: value for key, value in job.request.items() if key != "Tags"}
        times = {"TrainingStartTime": job.started, "TrainingEndTime": job.ended}
        seconds = None if job.started is None or job.ended is None else max(1, round(job.ended - job.started))
        return given | {key: value for key, value in times.items() if value is not None} | {
            "TrainingJobArn": _arn(request["TrainingJobName"]),
            "ModelArtifacts": {"S3ModelArtifacts": ""},
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.secondary,
            "SecondaryStatusTransitions": job.transitions,
            "CreationTime": job.created,
            **({"FailureReason": job.reason[:1024]} if job.reason else {}),
            **({} if seconds is None else {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}),
        }  # fmt: skip

    def _StopTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        if job.status != "InProgress":
            raise Refused("ValidationException", f"The request was rejected because the training job is in status {job.status}.")
        job.enter("Stopping", "Stopping")
        self._end_containers(job, "Stopped")
        return {}

    def _ListTrainingJobs(self, request: dict[str, Any]) -> dict[str, Any]:
        names = sorted(name for name in self.jobs if request.get("NameContains", "") in name)
        first, count = int(request.get("NextToken", 0)), request.get("MaxResults", 10)
        found = [
            {"TrainingJobName": name, "TrainingJobArn": _arn(name), "CreationTime": self.jobs[name].created, "TrainingJobStatus": self.jobs[name].status}
            for name in names[first : first + count]
        ]  # fmt: skip
        return {"TrainingJobSummaries": found, **({"NextToken": str(first + count)} if first + count < len(names) else {})}

    def interrupt(self, name: str) -> None:
        """Take the spot instances of a job away."""
        self._end_containers(self.jobs[name], "Interrupted")

    def _job(self, request: dict[str, Any]) -> TrainingJob:
        if request["TrainingJobName"] not in self.jobs:
            raise Refused("ValidationException", "Requested resource not found.")
        return self.jobs[request["TrainingJobName"]]

    def _run(self, name: str, job: TrainingJob) -> None:
        if self.num_without_capacity > 0:
            self.num_without_capacity -= 1
            job.reason = (
                "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
            )
            job.enter("Failed", "Failed")
            return
        while True:
            codes = self._run_containers(name, job)
            job.ended = time.time()
            if job.wanted == "Interrupted" and self.spot_returns:
                job.wanted = None
                job.enter("Interrupted")
                continue
            break
        if job.wanted is not None:
            if job.wanted == "Interrupted":
                job.enter("Interrupted")
            job.enter({"Interrupted": "MaxWaitTimeExceeded"}.get(job.wanted, job.wanted), "Stopped")
        elif any(codes):
            first = next(number for number, code in enumerate(codes) if code)
            said = self._opt_ml(name, job.num_starts, first) / "output/failure"
            code = codes[first] if codes[first] >= 0 else 128 - codes[first]
            job.reason = f"AlgorithmError: {said.read_text() if said.exists() else ''}, exit code: {code}"
            job.enter("Failed", "Failed")
        else:
            job.enter("Completed", "Completed")

    def _run_containers(self, name: str, job: TrainingJob) -> list[int]:
        resources = job.request["ResourceConfig"]
        hosts = self.host_names(resources["InstanceCount"])
        job.num_starts += 1
        job.started = job.started or time.time()
        job.enter("Training")
        job.processes = [self._start(name, job, hosts, number) for number in range(len(hosts))]
        deadline = time.time() + job.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while any(process.poll() is None for process in job.processes):
            if any(process.returncode for process in job.processes) and job.wanted is None:
                time.sleep(2)  # the others notice it themselves, or are ended
                for process in job.processes:
                    if process.poll() is None:
                        process.send_signal(signal.SIGTERM)
            if time.time() >= deadline and job.wanted is None:
                self._end_containers(job, "MaxRuntimeExceeded")
            time.sleep(0.05)
        return [process.wait() for process in job.processes]

    def _start(self, name: str, job: TrainingJob, hosts: list[str], number: int) -> subprocess.Popen[str]:
        root = self._opt_ml(name, job.num_starts, number)
        for path in ("input/config", "output/data", "model", "tmp"):
            (root / path).mkdir(parents=True)
        config = {"current_host": hosts[number], "hosts": hosts[::-1], "network_interface_name": "lo"}
        (root / "input/config/resourceconfig.json").write_text(json.dumps(config))
        (root / "input/config/hyperparameters.json").write_text(json.dumps(job.request.get("HyperParameters", {})))
        given = {key: f"{root}/tmp" if value == "/tmp/fullft" else value for key, value in job.request.get("Environment", {}).items()}
        own = {"AWS_REGION": "us-east-1", "TRAINING_JOB_NAME": name, "FULLFT_OPT_ML": str(root)}
        program = job.request["AlgorithmSpecification"]
        command = [*program["ContainerEntrypoint"], *program.get("ContainerArguments", ["train"])]
        return self.start_container(command, {**given, **own}, f"{name}/algo-{number + 1}-{int(time.time() * 1000)}")

    def _end_containers(self, job: TrainingJob, why: str) -> None:
        job.wanted = why
        self.end_containers(job.processes, self.grace_seconds)  # those of the next start are others

    def _opt_ml(self, name: str, start: int, number: int) -> Path:
        return self.folder / name / str(start) / f"algo-{number + 1}"


def _arn(name: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{name}"
