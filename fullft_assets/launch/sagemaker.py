"""The launcher `sagemaker`: Training Jobs of Amazon SageMaker, which go on whatever becomes of the run.

A job gets nothing but the URI and the digest of the job file; inputs, checkpoints and the result are in the
store on S3. Its name is never used again, so that a name that exists already is the job of a submission whose
answer was lost. Output is read from CloudWatch Logs.
"""

import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast, get_args

from fullft_assets.errors import FailureClass, WorkloadError
from fullft_assets.launch import aws
from fullft_assets.launch.base import LaunchSpec, Status, Unreachable
from fullft_assets.launch.contract import PROJECT_ROOT
from fullft_assets.launch.machine import REACHED_LIMIT
from fullft_assets.launch.sagemaker_container import CHECKPOINTS, JOB_CHANNEL, STORE_CHANNEL, VARIABLES
from fullft_assets.settings import SageMakerLauncherSettings
from fullft_assets.store import checkpoints_ref

#: Most characters of a hyperparameter.
_PART = 2500
#: Longest time of a job.
_MAX_SECONDS = 28 * 86_400
#: Folder of a store with what SageMaker itself writes, with a folder for each job.
_FOLDER = "sagemaker"
#: A stopped container has 120 s; then SageMaker saves its outputs.
_STOP_SECONDS = 300.0
#: SageMaker may wait so long for spot instances, beside the time of the job.
_SPOT_WAIT_HOURS = 24
#: States before the container runs.
_BEFORE = frozenset(
    {
        "Starting",
        "Pending",
        "LaunchingMLInstances",
        "PreparingTrainingStack",
        "Downloading",
        "DownloadingTrainingImage",
    }
)
_OWN_LINE = re.compile(rf"AlgorithmError: (.*) \[({'|'.join(get_args(FailureClass))})\]", re.DOTALL)
_BY_SOMEBODY = "was stopped in SageMaker by somebody; run the same command again to resume"


class SageMakerLauncher(aws.AwsLauncher):
    """Runs workloads as Training Jobs."""

    settings: SageMakerLauncherSettings
    settings_class = SageMakerLauncherSettings
    title = "SageMaker"

    @property
    def place(self) -> str:
        return f"{self.settings.role_arn.split(':')[4]}/{self.region}"

    @property
    def log_group(self) -> str:
        return "/aws/sagemaker/TrainingJobs"

    def stream_prefix(self, name: str) -> str:
        return f"{name}/algo-1-"

    def submit(self, spec: LaunchSpec) -> None:
        with suppress(aws.Exists):
            self.ask("sagemaker", "create_training_job", **self._request(spec))

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        time.sleep(wait_seconds)
        job = self._describe(name)
        if job is None:
            return Status("gone")
        status = _status(job)
        self._settle(job, status)
        if status.is_over and "TrainingStartTime" in job:
            self._ended.add(name)
        return status

    def _settle(self, job: dict[str, Any], status: Status) -> None:
        """Move what an isolated container wrote to its place in the store once it has succeeded, and remove
        its checkpoints.

        What one wrote that ended otherwise is removed: nobody reads it, and it may quote documents. Nothing
        where that was done before.
        """
        from fullft_assets.job import read_job

        if not status.is_over or not job.get("EnableNetworkIsolation"):
            return
        arguments = json.loads(job["HyperParameters"]["job"])
        folder = f"{_FOLDER}/{job['TrainingJobName']}"
        try:
            work = read_job(_job_uri(arguments), arguments[arguments.index("--sha256") + 1])
            store = work.open_store()
            if status.state != "succeeded":
                store.remove_folder(folder)
            # Not those of a later attempt, if this one was looked at before.
            elif store.adopt(f"{folder}/output/model", work.case):
                store.remove_folder(_checkpoints(work.case, work.stage, work.key))
        except OSError as error:
            raise Unreachable(
                f"SageMaker {self.place}: what {job['TrainingJobName']} wrote cannot be moved: {error}"
            ) from None

    def stop(self, name: str) -> None:
        """Stop a job, if it runs, and wait for its end. SageMaker keeps its description."""
        deadline = time.monotonic() + _STOP_SECONDS
        while (job := self._describe(name)) is not None and not _status(job).is_over:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"SageMaker {self.place}: {name} has not ended {_STOP_SECONDS:.0f} s after it was asked"
                    " to stop"
                )
            if job["TrainingJobStatus"] != "Stopping":
                try:
                    self.ask("sagemaker", "stop_training_job", TrainingJobName=name)
                except WorkloadError:  # a job that has ended meanwhile is refused
                    if (job := self._describe(name)) is not None and not _status(job).is_over:
                        raise
            time.sleep(aws.STOP_LOOK_SECONDS)
        if job is not None:
            self._settle(job, _status(job))

    def has_room(self, processes: int) -> bool:
        return self.settings.nodes == 1

    def _request(self, spec: LaunchSpec) -> dict[str, Any]:
        settings = self.settings
        store, job_file = _store_of(spec)
        seconds = math.ceil(min(settings.max_seconds or _MAX_SECONDS, _MAX_SECONDS))
        resources = {
            "InstanceType": settings.instance_type,
            "InstanceCount": self.settings.nodes_of(spec.processes),
            "VolumeSizeInGB": settings.volume_gb,
            **({"VolumeKmsKeyId": settings.volume_kms_key} if settings.volume_kms_key else {}),
        }
        kms_key = os.environ.get("FULLFT_KMS_KEY")
        output = {"S3OutputPath": f"{store}/{_FOLDER}", **({"KmsKeyId": kms_key} if kms_key else {})}
        network = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_groups}
        request: dict[str, Any] = {
            "TrainingJobName": spec.name,
            "RoleArn": settings.role_arn,
            "AlgorithmSpecification": {
                "TrainingImage": settings.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": [
                    settings.python,
                    "-m",
                    "fullft_assets.launch.sagemaker_container",
                ],
            },
            "HyperParameters": self._parameters(spec),
            # SageMaker sets AWS_REGION, which botocore does not read. The disk is below /tmp and /opt/ml; all
            # else is the image's.
            "Environment": {
                "AWS_DEFAULT_REGION": self.region,
                "FULLFT_CACHE": "/tmp/fullft",
                **settings.environment,
            },
            "ResourceConfig": resources,
            "OutputDataConfig": output,
            "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
            "EnableManagedSpotTraining": settings.spot,
            # Said in each request, so that a policy may ask for it; encryption costs one instance nothing.
            "EnableInterContainerTrafficEncryption": True,
            "EnableNetworkIsolation": settings.network_isolation,
            "Tags": [
                {"Key": key, "Value": value}
                for key, value in {**settings.tags, "fullft:run": spec.run_id}.items()
            ],
            **({"VpcConfig": network} if settings.subnets else {}),
        }
        if settings.spot:
            request["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + _SPOT_WAIT_HOURS * 3600
        if settings.network_isolation:
            case, stage, key, _ = job_file.split("/")
            output["CompressionType"] = "NONE"
            request["InputDataConfig"] = [
                # Of the whole use case, since artifacts name others; what nobody opens is not fetched.
                _channel(STORE_CHANNEL, f"{store}/{case}/", "FastFile"),
                _channel(JOB_CHANNEL, f"{store}/jobs/{case}/{stage}/{key}/", "File"),
            ]
            # The same for each attempt, so that the next one finds them.
            request["CheckpointConfig"] = {
                "S3Uri": f"{store}/{_checkpoints(case, stage, key)}",
                "LocalPath": CHECKPOINTS,
            }
        return request

    def _parameters(self, spec: LaunchSpec) -> dict[str, str]:
        """Return the hyperparameters, which the container reads: `Environment` has no room for Pipes."""
        processes = spec.processes // self.settings.nodes_of(spec.processes)
        variables = json.dumps({PROJECT_ROOT: self.settings.folder or ".", **spec.environment})
        parts = [variables[first : first + _PART] for first in range(0, len(variables), _PART)]
        return {
            "module": spec.module,
            "job": json.dumps(spec.job),
            "processes": str(processes),
            "gpus": str(processes if re.match(r"ml\.[gp]\d", self.settings.instance_type) else 0),
            "grace_seconds": str(self.settings.grace_seconds),
            "run_id": spec.run_id,
            "version": importlib.metadata.version("fullft-assets"),
            **{VARIABLES.format(f"{number:02}"): part for number, part in enumerate(parts)},
        }

    def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            return self.ask("sagemaker", "describe_training_job", TrainingJobName=name)
        except aws.Missing:
            return None


def _job_uri(job: Sequence[str]) -> str:
    return job[job.index("--job") + 1]


def _store_of(spec: LaunchSpec) -> tuple[str, str]:
    """Return the URI of the store, and the path of the job file in the store's folder of jobs:
    case/stage/key/file.

    Raises:
        WorkloadError: SageMaker cannot reach the store.
    """
    uri = _job_uri(spec.job)
    if not uri.startswith("s3://"):
        raise WorkloadError(
            f"launcher.kind: sagemaker needs a store on S3, which {uri} is not; set `store` to"
            " s3://bucket/prefix",
            "settings",
        )
    store, _, job_file = uri.rpartition("/jobs/")
    return store, job_file


def _channel(name: str, uri: str, mode: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _checkpoints(case: str, stage: str, key: str) -> str:
    return f"{checkpoints_ref(case, stage, key)}/{_FOLDER}"


def _status(job: dict[str, Any]) -> Status:
    state = job["TrainingJobStatus"]
    if state == "InProgress":
        return Status(
            "pending" if job["SecondaryStatus"] in {*_BEFORE, "Interrupted", "Restarting"} else "running"
        )
    if state not in ("Completed", "Failed", "Stopped"):
        return Status("running")
    billed_seconds = float(job.get("BillableTimeInSeconds", 0))
    if state == "Completed":
        return Status("succeeded", billed_seconds=billed_seconds)
    failure = _stopped(job) if state == "Stopped" else _failed(job.get("FailureReason", ""))
    return Status("failed", *failure, billed_seconds)


def _stopped(job: dict[str, Any]) -> tuple[str, FailureClass, bool]:
    detail = job["SecondaryStatus"]
    if detail == "MaxRuntimeExceeded":
        return REACHED_LIMIT.reason, REACHED_LIMIT.failure, False
    if detail == "MaxWaitTimeExceeded":
        return f"waited for spot instances longer than {_SPOT_WAIT_HOURS} hours", "preemption", False
    states = [change["Status"] for change in job.get("SecondaryStatusTransitions", [])]
    if [state for state in states if state in ("Interrupted", "Training")][-1:] == ["Interrupted"]:
        # With another last state, the job had got instances again.
        return "lost its spot instances", "preemption", False
    return _BY_SOMEBODY, "unknown", False


def _failed(reason: str) -> tuple[str, FailureClass, bool]:
    own_line = _OWN_LINE.match(reason)
    if own_line is not None:
        return " ".join(own_line[1].split()), cast(FailureClass, own_line[2]), True
    line = " ".join(reason.split()).rstrip(".") or "no reason given"
    kind = line.partition(":")[0]
    code = re.search(r"exit code: (\d+)", line, re.IGNORECASE)
    # The first process of a container has nobody above it who would kill it but the kernel.
    if (code is not None and int(code[1]) == 137) or re.search(
        r"OutOfMemory|instance type with more memory", line, flags=re.IGNORECASE
    ):
        return (
            (
                "was killed: memory ran out; set launcher.instance_type to one with more memory, or lower"
                " launcher.processes"
            ),
            "out_of_memory",
            False,
        )
    classes: dict[str, FailureClass] = {
        "InternalServerError": "infrastructure",
        "CapacityError": "infrastructure",
        "ClientError": "settings",
    }
    is_killed = code is not None and int(code[1]) > 128  # by the kernel, or with its machine
    return (
        f"failed in SageMaker ({line})",
        classes.get(kind, "infrastructure" if is_killed else "unknown"),
        False,
    )
