"""Amazon SageMaker's Training Jobs and CloudWatch Logs on this machine: requests are checked as AWS checks
them, and containers really run.

A container is a process of this machine under the variables and folders that SageMaker gives: `FULLFT_OPT_ML`
names its /opt/ml, and /tmp/fullft, the launcher's cache, is a folder of its own. Nothing is known of a
registry: the image is this environment. A container that is isolated has neither a network, where this
machine lets one be taken away, nor an address or credentials of the bucket.
"""

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from tests.aws_double import AwsDouble, Refused

#: Start of a command that has no network, where the kernel and this user's rights allow that.
_WITHOUT_NETWORK = (
    ["unshare", "--map-root-user", "--net"]
    if os.system("unshare --map-root-user --net true 2> /dev/null") == 0
    else []
)


_CONSOLIDATION = "AnnotationConsolidationConfig"


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

    @property
    def channels(self) -> dict[str, str]:
        return {
            each["ChannelName"]: each["DataSource"]["S3DataSource"]["S3Uri"]
            for each in self.request.get("InputDataConfig", [])
        }

    @property
    def command(self) -> list[str]:
        program = self.request["AlgorithmSpecification"]
        return [*program["ContainerEntrypoint"], *program.get("ContainerArguments", ["train"])]

    def write_config(self, root: Path, resources: dict[str, Any]) -> None:
        """Write what the container of a host finds below /opt/ml."""
        for path in ("input/config", "output/data", "model"):
            (root / path).mkdir(parents=True)
        (root / "input/config/resourceconfig.json").write_text(json.dumps(resources))
        (root / "input/config/hyperparameters.json").write_text(
            json.dumps(self.request.get("HyperParameters", {}))
        )

    def described(self, name: str) -> dict[str, Any]:
        """Return what is said of it beside its request."""
        times = {"TrainingStartTime": self.started, "TrainingEndTime": self.ended}
        seconds = (
            None if self.started is None or self.ended is None else max(1, round(self.ended - self.started))
        )
        return {key: value for key, value in times.items() if value is not None} | {
            "TrainingJobArn": _arn(name),
            "ModelArtifacts": {"S3ModelArtifacts": ""},
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            "SecondaryStatusTransitions": self.transitions,
            **({"FailureReason": self.reason[:1024]} if self.reason else {}),
            **(
                {}
                if seconds is None
                else {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}
            ),
        }


class SageMaker(AwsDouble):
    """The two services, and Ground Truth."""

    target, endpoint, model = "SageMaker", "SAGEMAKER", "sagemaker"

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        super().__init__(folder, environment)
        self.jobs: dict[str, TrainingJob] = {}
        #: Requests for labelling jobs, by name.
        self.labelling: dict[str, dict[str, Any]] = {}
        #: Jobs for which there are no instances.
        self.num_without_capacity = 0
        #: Whether spot instances come back after an interruption, before the job has waited too long.
        self.spot_returns = False
        self.grace_seconds = 20.0
        self.host_names: Callable[[int], list[str]] = lambda count: [
            f"algo-{number + 1}" for number in range(count)
        ]

    def _CreateTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        name, stopping = request["TrainingJobName"], request["StoppingCondition"]
        if name in self.jobs:
            raise Refused(
                "ResourceInUse",
                "Training job names must be unique within an AWS account and region, and one with this name"
                " already exists",
            )
        if (
            request.get("EnableManagedSpotTraining", False) != ("MaxWaitTimeInSeconds" in stopping)
            or stopping.get("MaxWaitTimeInSeconds", math.inf) < stopping["MaxRuntimeInSeconds"]
        ):
            raise Refused(
                "ValidationException",
                "Invalid MaxWaitTimeInSeconds: not below MaxRuntimeInSeconds, and with managed spot training"
                " alone",
            )
        self.jobs[name] = job = TrainingJob(request, time.time())
        job.enter("Starting")
        threading.Thread(target=self._run, args=(name, job), daemon=True).start()
        return {"TrainingJobArn": _arn(name)}

    def _DescribeTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        asked = {key: value for key, value in job.request.items() if key != "Tags"}
        return asked | job.described(request["TrainingJobName"]) | {"CreationTime": job.created}

    def _StopTrainingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        if job.status != "InProgress":
            raise Refused(
                "ValidationException",
                f"The request was rejected because the training job is in status {job.status}.",
            )
        job.enter("Stopping", "Stopping")
        self._end_containers(job, "Stopped")
        return {}

    def _CreateLabelingJob(self, request: dict[str, Any]) -> dict[str, Any]:
        name, people, inputs = request["LabelingJobName"], request["HumanTaskConfig"], request["InputConfig"]
        if name in self.labelling:
            raise Refused("ResourceInUse", "Labeling job names must be unique, and this one already exists")
        uris = [
            inputs["DataSource"]["S3DataSource"]["ManifestS3Uri"],
            request["LabelCategoryConfigS3Uri"],
            *people["UiConfig"].values(),
        ]
        missing = [uri for uri in uris if uri.startswith("s3://") and not _names(uri)]
        # Which account has the functions in a region is known from the documentation alone.
        shapes = [self.models["SageMaker"].shape_for(shape) for shape in ("HumanTaskConfig", _CONSOLIDATION)]
        documented = "".join(member.documentation for shape in shapes for member in shape.members.values())
        functions = [people["PreHumanTaskLambdaArn"], *people[_CONSOLIDATION].values()]
        missing += [arn for arn in functions if f"{arn}<" not in documented]
        for_the_public = {"PublicWorkforceTaskPrice" in people, "DataAttributes" in inputs}
        if missing or for_the_public != {":workteam/public-crowd/" in people["WorkteamArn"]}:
            raise Refused("ValidationException", f"missing: {missing}, or not what the workforce takes")
        self.labelling[name] = request
        return {"LabelingJobArn": _arn(name)}

    def label(self, name: str, value: Any, about: dict[str, Any]) -> None:
        """Write what Ground Truth writes where each document of a labelling job has this label and metadata
        (docs.aws.amazon.com/sagemaker/latest/dg/sms-data-output.html).
        """
        label, folder = self.labelling[name]["LabelAttributeName"], self.labelling[name]["OutputConfig"]
        bucket, key = _bucket(
            self.labelling[name]["InputConfig"]["DataSource"]["S3DataSource"]["ManifestS3Uri"]
        )
        about = {**about, "job-name": f"labeling-job/{name}", "human-annotated": "yes"}
        lines = bucket.Object(key).get()["Body"].read().splitlines()
        labelled = [{**json.loads(line), label: value, f"{label}-metadata": about} for line in lines]
        _, folder = _bucket(f"{folder['S3OutputPath']}/{name}")
        for path in ("worker-response/iteration-1/0/a", "consolidated-annotation/output/b", "intermediate/c"):
            bucket.put_object(Key=f"{folder}/annotations/{path}.json", Body=json.dumps(labelled).encode())
        output = "".join(f"{json.dumps(line)}\n" for line in labelled).encode()
        bucket.put_object(Key=f"{folder}/manifests/output/output.manifest", Body=output)

    def interrupt(self, name: str) -> None:
        """Take the spot instances of a job away."""
        self._end_containers(self.jobs[name], "Interrupted")

    def _job(self, request: dict[str, Any]) -> TrainingJob:
        job = self.jobs.get(request["TrainingJobName"])
        if job is None:
            raise Refused("ValidationException", "Requested resource not found.")
        return job

    def _run(self, name: str, job: TrainingJob) -> None:
        if self.num_without_capacity > 0:
            self.num_without_capacity -= 1
            job.reason = (
                "CapacityError: Unable to provision requested ML compute capacity. Please retry using a"
                " different ML instance type."
            )
            job.enter("Failed", "Failed")
            return
        empty = [channel for channel, uri in job.channels.items() if not _names(uri)]
        if empty:
            job.reason = (
                f"ClientError: Data download failed: No S3 objects found under S3 URL for channel {empty[0]}"
            )
            job.enter("Failed", "Failed")
            return
        while True:
            codes = self._run_containers(name, job)
            self._upload(name, job)
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
            code = codes[first] if codes[first] >= 0 else 128 - codes[first]
            failure = self._opt_ml(name, job.num_starts, first) / "output/failure"
            said = failure.read_text() if failure.exists() else ""
            job.reason = f"AlgorithmError: {said}, exit code: {code}"
            job.enter("Failed", "Failed")
        else:
            job.enter("Completed", "Completed")

    def _run_containers(self, name: str, job: TrainingJob) -> list[int]:
        hosts = self.host_names(job.request["ResourceConfig"]["InstanceCount"])
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
        job.write_config(
            root, {"current_host": hosts[number], "hosts": hosts[::-1], "network_interface_name": "lo"}
        )
        (root / "tmp").mkdir()
        for channel, uri in job.channels.items():
            _download(uri, root / "input/data" / channel)
        if "CheckpointConfig" in job.request:
            assert job.request["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
            _download(job.request["CheckpointConfig"]["S3Uri"], root / "checkpoints")
        given = {
            key: f"{root}/tmp" if value == "/tmp/fullft" else value
            for key, value in job.request.get("Environment", {}).items()
        }
        own = {"AWS_REGION": "us-east-1", "FULLFT_OPT_ML": str(root), "TRAINING_JOB_NAME": name}
        command, stream = job.command, f"{name}/algo-{number + 1}-{int(time.time() * 1000)}"
        if job.request.get("EnableNetworkIsolation"):
            own |= {name: "" for name in self.environment if name.startswith("AWS_")} | {
                "AWS_EC2_METADATA_DISABLED": "true"
            }
            command = [*_WITHOUT_NETWORK, *command]
        return self.start_container(command, {**given, **own}, stream)

    def _upload(self, name: str, job: TrainingJob) -> None:
        """Save what a container has left: checkpoints, and what it has in /opt/ml/model where that is not to
        be packed.
        """
        root = self._opt_ml(name, job.num_starts, 0)
        if "CheckpointConfig" in job.request:
            _upload(root / "checkpoints", job.request["CheckpointConfig"]["S3Uri"])
        output = job.request.get("OutputDataConfig", {})
        if output.get("CompressionType") == "NONE":
            _upload(root / "model", f"{output['S3OutputPath']}/{name}/output/model")

    def _end_containers(self, job: TrainingJob, why: str) -> None:
        job.wanted = why
        self.end_containers(job.processes, self.grace_seconds)  # those of the next start are others

    def _opt_ml(self, name: str, start: int, number: int) -> Path:
        return self.folder / name / str(start) / f"algo-{number + 1}"


def _names(uri: str) -> list[str]:
    bucket, prefix = _bucket(uri)
    return [each.key for each in bucket.objects.filter(Prefix=prefix)]


def _download(uri: str, folder: Path) -> None:
    """Copy what is below a prefix, for reading alone where it is an input."""
    bucket, prefix = _bucket(uri)
    folder.mkdir(parents=True)
    for name in _names(uri):
        target = folder / name.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(name, str(target))
        if "input" in folder.parts:
            target.chmod(0o444)


def _upload(folder: Path, uri: str) -> None:
    """Copy all files to a prefix, in no order of ours; a link is followed, as SageMaker does."""
    bucket, prefix = _bucket(uri)
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.upload_file(str(file), f"{prefix}/{file.relative_to(folder)}")


def _bucket(uri: str) -> tuple[Any, str]:
    name, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
    return boto3.Session().resource("s3").Bucket(name), prefix


def _arn(name: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{name}"
