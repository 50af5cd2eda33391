"""Amazon SageMaker's Training Jobs and CloudWatch Logs on this machine: requests are checked as AWS checks them, and containers really run.

A container is a process of this machine under the variables and folders that SageMaker gives: `FULLFT_OPT_ML` names its /opt/ml, and
/tmp/fullft, the launcher's cache, is a folder of its own. Nothing is known of a registry: the image is this environment.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

ROOT = Path(__file__).parents[1]
ROLE = "arn:aws:iam::111122223333:role/fullft-container"
IMAGE = f"111122223333.dkr.ecr.us-east-1.amazonaws.com/fullft@sha256:{'0' * 64}"
#: A page of GetLogEvents.
_PAGE = 50


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


class Refused(Exception):
    def __init__(self, code: str, message: str, status: int = 400):
        super().__init__(message)
        self.code, self.status = code, status


class SageMaker(ThreadingHTTPServer):
    """The two services.

    Args:
        folder: for the containers.
        environment: variables of each container beside those of its job: what the image and the role give, which is no AWS_DEFAULT_REGION.
    """

    daemon_threads = True

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.environment = {name: value for name, value in environment.items() if name != "AWS_DEFAULT_REGION"}
        self.jobs: dict[str, TrainingJob] = {}
        #: Streams of the log group: when a line arrived, and the line.
        self.streams: dict[str, list[tuple[float, str]]] = {}
        self.calls: Counter[str] = Counter()
        #: Faults, by operation and how often: answers with ThrottlingException, with 500, and requests that are done but not answered.
        self.throttled: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        #: Jobs for which there are no instances.
        self.num_without_capacity = 0
        #: Seconds after which a line of output can be read.
        self.late_seconds = 0.0
        #: Whether spot instances come back after an interruption, before the job has waited too long.
        self.spot_returns = False
        self.grace_seconds = 20.0
        self.host_names: Callable[[int], list[str]] = lambda count: [f"algo-{number + 1}" for number in range(count)]
        models = botocore.session.get_session()
        self.models = {"SageMaker": models.get_service_model("sagemaker"), "Logs_20140328": models.get_service_model("logs")}

    @property
    def env(self) -> dict[str, str]:
        """Variables that make clients of both services talk to this server."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return {"AWS_ENDPOINT_URL_SAGEMAKER": url, "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url}

    def answer(self, target: str, request: dict[str, Any]) -> dict[str, Any]:
        service, _, operation = target.partition(".")
        self.calls[operation] += 1
        for faults, code, status in ((self.throttled, "ThrottlingException", 400), (self.broken, "InternalFailure", 500)):
            if faults[operation] > 0:
                faults[operation] -= 1
                raise Refused(code, "Rate exceeded", status)
        shape = self.models[service].operation_model(operation).input_shape
        problems = [*ParamValidator().validate(request, shape)._errors, *_problems(request, shape, operation)]
        if problems:
            raise Refused("ValidationException", f"{len(problems)} validation errors detected: {problems}")
        return getattr(self, f"_{operation}")(request)

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

    def _DescribeLogStreams(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self.streams:
            raise Refused("ResourceNotFoundException", "The specified log group does not exist.")
        found = [name for name in self.streams if name.startswith(request["logStreamNamePrefix"]) and self._arrived(name)]
        return {"logStreams": [{"logStreamName": name} for name in sorted(found)]}

    def _GetLogEvents(self, request: dict[str, Any]) -> dict[str, Any]:
        lines = self._arrived(request["logStreamName"])
        first = int(request.get("nextToken", "f/0").removeprefix("f/"))
        events = [{"timestamp": int(at * 1000), "message": line} for at, line in lines[first : first + _PAGE]]
        return {"events": events, "nextForwardToken": f"f/{first + len(events)}", "nextBackwardToken": "b/0"}

    def interrupt(self, name: str) -> None:
        """Take the spot instances of a job away."""
        self._end_containers(self.jobs[name], "Interrupted")

    def close(self) -> None:
        """End every container and the server."""
        for job in self.jobs.values():
            for process in job.processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self.shutdown()
        self.server_close()

    def _job(self, request: dict[str, Any]) -> TrainingJob:
        if request["TrainingJobName"] not in self.jobs:
            raise Refused("ValidationException", "Requested resource not found.")
        return self.jobs[request["TrainingJobName"]]

    def _arrived(self, stream: str) -> list[tuple[float, str]]:
        return [event for event in self.streams.get(stream, []) if event[0] <= time.time() - self.late_seconds]

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
                self._signal(job, signal.SIGTERM)
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
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AWS_REGION": "us-east-1",
            "TRAINING_JOB_NAME": name,
            "FULLFT_OPT_ML": str(root),
        }
        program = job.request["AlgorithmSpecification"]
        process = subprocess.Popen(
            [*program["ContainerEntrypoint"], *program.get("ContainerArguments", ["train"])],
            env={**self.environment, **given, **own},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        stream = f"{name}/algo-{number + 1}-{int(time.time() * 1000)}"
        threading.Thread(target=self._collect, args=(stream, process), daemon=True).start()
        return process

    def _collect(self, stream: str, process: subprocess.Popen[str]) -> None:
        lines = self.streams.setdefault(stream, [])
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.time(), line.rstrip("\n")))

    def _end_containers(self, job: TrainingJob, why: str) -> None:
        job.wanted = why
        self._signal(job, signal.SIGTERM)
        stopped = job.processes  # those of the next start are others

        def kill() -> None:
            with suppress(subprocess.TimeoutExpired):
                for process in stopped:
                    process.wait(self.grace_seconds)
            for process in stopped:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    def _signal(self, job: TrainingJob, number: signal.Signals) -> None:
        for process in job.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _opt_ml(self, name: str, start: int, number: int) -> Path:
        return self.folder / name / str(start) / f"algo-{number + 1}"


@contextmanager
def serve(folder: Path, environment: Mapping[str, str]) -> Iterator[SageMaker]:
    """Serve both services until the block ends; no container outlives it."""
    folder.mkdir()
    server = SageMaker(folder, {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1", **environment})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    server: SageMaker
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        target = self.headers["X-Amz-Target"]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 "):
                raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
            status, answer = 200, self.server.answer(target, body)
        except Refused as refused:
            status, answer = refused.status, {"__type": refused.code, "message": str(refused)}
        operation = target.partition(".")[2]
        if status == 200 and self.server.lost[operation] > 0:
            self.server.lost[operation] -= 1
            self.close_connection = True
            return
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


def _problems(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """Yield what botocore does not check before it sends: lengths, patterns and choices."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _problems(each, shape.members[name], f"{place}.{name}")
    elif shape.type_name == "list":
        for each in value:
            yield from _problems(each, shape.member, place)
    elif shape.type_name == "map":
        for key, each in value.items():
            yield from _problems(key, shape.key, place)
            yield from _problems(each, shape.value, f"{place}.{key}")
    size = value if isinstance(value, int) else len(value) if isinstance(value, str | list | dict) else 0
    if size < limits.get("min", size) or size > limits.get("max", size):
        yield f"{place}: {size} is not within {limits.get('min')} and {limits.get('max')}"
    if isinstance(value, str):
        if (choices := limits.get("enum")) and value not in choices:
            yield f"{place}: {value} is not one of its choices"
        pattern = limits.get("pattern", "").replace(r"\p{L}\p{Z}\p{N}", r"\w ")
        if pattern and re.fullmatch(pattern, value) is None:
            yield f"{place}: {value} does not match {pattern}"


def _arn(name: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{name}"
