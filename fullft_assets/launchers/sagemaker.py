"""The launcher `sagemaker`: Training Jobs of Amazon SageMaker, which go on whatever becomes of the run.

A job gets nothing but the URI and the digest of the job file; inputs, checkpoints and the result are in the store on S3. Its name is never
used again, so that a name that exists already is the job of a submission whose answer was lost. Output is read from CloudWatch Logs.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args

from fullft_assets.errors import FailureClass, WorkloadError
from fullft_assets.jobs.launch import PROJECT_ROOT
from fullft_assets.launchers.base import Launcher, LaunchSpec, Logs, Status, Unreachable
from fullft_assets.launchers.machine import REACHED_LIMIT
from fullft_assets.launchers.sagemaker_container import LAST_LINE, VARIABLES
from fullft_assets.settings import SageMakerLauncherSettings

if TYPE_CHECKING:
    from fullft_assets.settings import PlanningSettings

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
#: Most characters of a hyperparameter.
_PART = 2500
_MAX_SECONDS = 28 * 86_400
#: Output arrives some seconds after it was written; so often it is looked for after a job's end, with a pause.
_LATE_LOOKS, _LATE_SECONDS = 15, 2.0
#: A stopped container has 120 s; then SageMaker saves its outputs.
_STOP_SECONDS, _STOP_LOOK_SECONDS = 300.0, 3.0
#: States before the container runs.
_BEFORE = frozenset({"Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Downloading", "DownloadingTrainingImage"})
_WAITING = _BEFORE | {"Interrupted", "Restarting"}
#: Another try of the same request may succeed. botocore itself has tried ten times.
_BUSY = frozenset({"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "ServiceUnavailable"})
#: What credentials or an account lack for now.
_FOR_NOW = frozenset({"ResourceLimitExceeded", "ExpiredTokenException", "ExpiredToken"})
_OWN_LINE = re.compile(rf"AlgorithmError: (.*) \[({'|'.join(get_args(FailureClass))})\]", re.DOTALL)
_HAS_GPUS = re.compile(r"ml\.[gp]\d")
_EXIT_CODE = re.compile(r"exit code: (\d+)")


class SageMakerLauncher(Launcher):
    """Runs workloads as Training Jobs."""

    settings: SageMakerLauncherSettings
    settings_class = SageMakerLauncherSettings
    look_seconds = (5.0, 90.0)

    def __init__(self, settings: SageMakerLauncherSettings):
        super().__init__(settings)
        #: Jobs whose container has run and whose end `poll` has seen: the rest of their output is waited for.
        self._ended: set[str] = set()

    @property
    def place(self) -> str:
        """Account and region."""
        return f"{self.settings.role_arn.split(':')[4]}/{self._region}"

    def submit(self, spec: LaunchSpec) -> None:
        """Create the job; one of this name that was created for the same work is left as it is."""
        request = self._request(spec)
        try:
            self._ask("sagemaker", "create_training_job", **request)
        except _Exists:
            self._require_same(spec.name, request["HyperParameters"])

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a job is."""
        time.sleep(wait_seconds)
        job = self._describe(name)
        status = Status("gone") if job is None else _status(job)
        if job is not None and status.is_over and "TrainingStartTime" in job:
            self._ended.add(name)
        return status

    def logs(self, name: str, cursor: str) -> Logs:
        """Return what the host of rank 0 wrote after a cursor: a stream for each start of its container, each with its own token.

        A stream is read to its end when it has the container's last line; after a job's end that is waited for a while.
        """
        state: dict[str, Any] = json.loads(cursor) if cursor else {"tokens": {}, "looks": 0}
        tokens: dict[str, str | None] = state["tokens"]  # None: read to its end
        text, is_more = "", False
        for stream in self._streams(name):
            if tokens.setdefault(stream, "") is None:
                continue
            lines, token = self._events(stream, tokens[stream])
            # One page a look is enough while the job runs, and half of the requests.
            is_more = is_more or (name in self._ended and token != tokens[stream])
            tokens[stream] = None if any(line.startswith(LAST_LINE) for line in lines) else token
            text += "".join(f"{line}\n" for line in lines if not line.startswith(LAST_LINE))
        is_complete = bool(tokens) and all(each is None for each in tokens.values())
        if name in self._ended and not is_more and not is_complete and state["looks"] < _LATE_LOOKS:
            time.sleep(_LATE_SECONDS)
            state["looks"] += 1
            is_more = True
        return Logs(json.dumps(state), stdout=text, is_more=is_more)

    def stop(self, name: str) -> None:
        """Stop a job, if it runs, and wait for its end. SageMaker keeps its description."""
        deadline = time.monotonic() + _STOP_SECONDS
        while (job := self._describe(name)) is not None and not _status(job).is_over:
            if time.monotonic() >= deadline:
                raise Unreachable(f"SageMaker {self.place}: {name} has not ended {_STOP_SECONDS:.0f} s after it was asked to stop")
            if job["TrainingJobStatus"] != "Stopping":
                try:
                    self._ask("sagemaker", "stop_training_job", TrainingJobName=name)
                except WorkloadError:  # a job that has ended meanwhile is refused
                    if not self.poll(name).is_over:
                        raise
            time.sleep(_STOP_LOOK_SECONDS)

    def list(self) -> list[str]:
        """Return the names of all jobs of this project in the account and region, ended ones included."""
        found, token = [], {}
        while True:
            page = self._ask("sagemaker", "list_training_jobs", NameContains="fullft-", MaxResults=100, **token)
            found += [each["TrainingJobName"] for each in page["TrainingJobSummaries"]]
            if not page.get("NextToken"):
                return sorted(name for name in found if name.startswith("fullft-"))
            token = {"NextToken": page["NextToken"]}

    def has_room(self, processes: int) -> bool:
        """Return whether all processes of a training run on one instance, where planning is one job of one instance."""
        return self.settings.nodes == 1

    def hourly_usd(self, planning: PlanningSettings, processes: int) -> float | None:
        """Return the price of the job's instances as EC2's, of which the plan has a table."""
        from fullft_assets.planning.targets import targets

        name = self.settings.instance_type.removeprefix("ml.")
        price = next((one.hourly_usd for one in targets(planning) if one.name == name), None)
        return None if price is None else price * self._num_nodes(processes)

    def _num_nodes(self, processes: int) -> int:
        return self.settings.nodes if processes > 1 else 1

    def _request(self, spec: LaunchSpec) -> dict[str, Any]:
        """Return what CreateTrainingJob is asked for."""
        settings, nodes = self.settings, self._num_nodes(spec.processes)
        seconds = math.ceil(min(settings.max_seconds or _MAX_SECONDS, _MAX_SECONDS))
        resources = {"InstanceType": settings.instance_type, "InstanceCount": nodes, "VolumeSizeInGB": settings.volume_gb}
        output = {"S3OutputPath": _output(spec)}
        request: dict[str, Any] = {
            "TrainingJobName": spec.name,
            "AlgorithmSpecification": {
                "TrainingImage": settings.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": [settings.python, "-m", "fullft_assets.launchers.sagemaker_container"],
            },
            "RoleArn": settings.role_arn,
            "HyperParameters": self._asked(spec, nodes),
            # SageMaker sets AWS_REGION, which botocore does not read. The disk is below /tmp and /opt/ml; all else is the image's.
            "Environment": {"AWS_DEFAULT_REGION": self._region, "FULLFT_CACHE": "/tmp/fullft", **settings.environment},
            "ResourceConfig": resources | ({"VolumeKmsKeyId": settings.volume_kms_key} if settings.volume_kms_key else {}),
            "OutputDataConfig": output | ({"KmsKeyId": settings.output_kms_key} if settings.output_kms_key else {}),
            "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
            # Costs nothing on one instance, so that a policy may ask for it.
            "EnableInterContainerTrafficEncryption": True,
            "EnableManagedSpotTraining": settings.spot,
            "Tags": [{"Key": key, "Value": value} for key, value in {**settings.tags, "fullft:run": spec.run_id}.items()],
        }
        if settings.spot:
            request["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + math.ceil(settings.max_wait_hours * 3600)
        if settings.subnets:
            request["VpcConfig"] = {"Subnets": settings.subnets, "SecurityGroupIds": settings.security_groups}
        return request

    def _asked(self, spec: LaunchSpec, nodes: int) -> dict[str, str]:
        """Return the hyperparameters, which the container reads: the variables of Pipes are too long for `Environment`."""
        variables = json.dumps({PROJECT_ROOT: self.settings.folder, **spec.environment})
        parts = [variables[first : first + _PART] for first in range(0, len(variables), _PART)]
        return {
            "module": spec.module,
            "job": json.dumps(spec.job),
            "processes": str(spec.processes // nodes),
            "gpus": str(spec.processes // nodes if _HAS_GPUS.match(self.settings.instance_type) else 0),
            "grace_seconds": str(self.settings.grace_seconds),
            "run_id": spec.run_id,
            "version": importlib.metadata.version("fullft-assets"),
            **{VARIABLES.format(f"{number:02}"): part for number, part in enumerate(parts)},
        }

    def _require_same(self, name: str, asked: dict[str, str]) -> None:
        """Check that the job of this name is the one that was asked for: of the same work, and running or of the same run."""
        job = self._describe(name)
        if job is None:
            raise Unreachable(f"SageMaker {self.place}: {name} exists, and cannot be described")
        found = job.get("HyperParameters", {})
        if any(found.get(key) != asked[key] for key in ("module", "job", "processes")):
            raise WorkloadError(
                f"SageMaker {self.place}: {name} exists, and does other work; wait for its end, then launch again", "settings"
            )
        if _status(job).is_over and found.get("run_id") != asked["run_id"]:
            raise WorkloadError(
                f"SageMaker {self.place}: {name} is the name of a job that has ended, of which the store knows nothing; launch again, which "
                "takes the next name",
                "infrastructure",
            )

    def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            return self._ask("sagemaker", "describe_training_job", TrainingJobName=name)
        except _Missing:
            return None

    def _streams(self, name: str) -> list[str]:
        """Return the log streams of the host of rank 0 in the order of their starts."""
        try:
            found = self._ask("logs", "describe_log_streams", logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/algo-1-")
        except _Missing:  # the group is made with the account's first job
            return []
        return sorted(each["logStreamName"] for each in found["logStreams"])

    def _events(self, stream: str, token: str | None) -> tuple[list[str], str]:
        """Return the lines of a stream from a token on, and the token to read on from; the same one at its end."""
        after = {"nextToken": token} if token else {}
        found = self._ask("logs", "get_log_events", logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **after)
        return [event["message"].rstrip("\n") for event in found["events"]], found["nextForwardToken"]

    @cached_property
    def _region(self) -> str:
        import boto3

        region = self.settings.region or boto3.Session().region_name
        if region is None:
            raise WorkloadError("launcher.kind: sagemaker needs a region; set launcher.region or AWS_DEFAULT_REGION", "settings")
        return region

    @cached_property
    def _clients(self) -> dict[str, Any]:
        import boto3
        from botocore.config import Config

        # Waits longer and asks more rarely the more the service throttles.
        retries = Config(retries={"mode": "adaptive", "total_max_attempts": 10}, connect_timeout=15, read_timeout=60)
        return {service: boto3.client(service, region_name=self._region, config=retries) for service in ("sagemaker", "logs")}

    def _ask(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            _Missing: there is no such job or stream.
            _Exists: a job has this name.
            Unreachable: the service does not answer, or not now.
            WorkloadError: it refuses.
        """
        from botocore import exceptions as aws

        try:
            return cast(dict[str, Any], getattr(self._clients[service], operation)(**request))
        except aws.ClientError as error:
            code, said = error.response["Error"]["Code"], " ".join(error.response["Error"].get("Message", "").split())
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            line = f"SageMaker {self.place}: {operation}: {said or code} ({code})"
            if code in ("ResourceNotFound", "ResourceNotFoundException") or "resource not found" in said:
                raise _Missing(line) from None
            if code == "ResourceInUse" or "already exists" in said:
                raise _Exists(line) from None
            if code in _BUSY or status >= 500:
                raise Unreachable(line) from None
            raise WorkloadError(line, "infrastructure" if code in _FOR_NOW else "settings") from None
        except (aws.ConnectionError, aws.HTTPClientError, aws.CredentialRetrievalError) as error:
            raise Unreachable(f"SageMaker {self.place}: {operation}: {' '.join(str(error).split())}") from None
        except aws.BotoCoreError as error:
            raise WorkloadError(f"SageMaker {self.place}: {operation}: {' '.join(str(error).split())}", "settings") from None


class _Missing(Exception):
    """SageMaker or CloudWatch has nothing of this name."""


class _Exists(Exception):
    """SageMaker has a job of this name."""


def _output(spec: LaunchSpec) -> str:
    """Return where SageMaker puts what it saves of a container, of which we use nothing: beside the store's own folders."""
    uri = spec.job[spec.job.index("--job") + 1]
    if not uri.startswith("s3://"):
        raise WorkloadError(
            f"launcher.kind: sagemaker needs a store on S3, which {uri} is not; set `store` to s3://bucket/prefix", "settings"
        )
    return f"{uri.rsplit('/jobs/', 1)[0]}/sagemaker"


def _status(job: dict[str, Any]) -> Status:
    """Return how far a described job is."""
    state, detail = job["TrainingJobStatus"], job["SecondaryStatus"]
    if state == "InProgress":
        return Status("pending" if detail in _WAITING else "running")
    if state not in ("Completed", "Failed", "Stopped"):
        return Status("running")
    reason, failure, is_own_line = _stopped(job) if state == "Stopped" else _failed(job.get("FailureReason", ""))
    billed = float(job.get("BillableTimeInSeconds", 0))
    if state == "Completed":
        return Status("succeeded", billed_seconds=billed)
    return Status("failed", reason, failure, is_own_line, billed)


def _stopped(job: dict[str, Any]) -> tuple[str, FailureClass, bool]:
    detail = job["SecondaryStatus"]
    if detail == "MaxRuntimeExceeded":
        return REACHED_LIMIT.reason, REACHED_LIMIT.failure, False
    if detail == "MaxWaitTimeExceeded":
        return "waited for spot instances longer than launcher.max_wait_hours", "preemption", False
    changes = [change["Status"] for change in job.get("SecondaryStatusTransitions", [])]
    if [each for each in changes if each in ("Interrupted", "Training")][-1:] == ["Interrupted"]:  # else it came back
        return "lost its spot instances", "preemption", False
    return "was stopped in SageMaker by somebody; run the same command again to resume", "unknown", False


def _failed(reason: str) -> tuple[str, FailureClass, bool]:
    """Return what a FailureReason says, its class, and whether it is the workload's own line."""
    own = _OWN_LINE.match(reason)
    if own is not None:
        return " ".join(own[1].split()), cast(FailureClass, own[2]), True
    said = " ".join(reason.split()).rstrip(".") or "no reason given"
    kind = said.partition(":")[0]
    classes: dict[str, FailureClass] = {
        "InternalServerError": "infrastructure",
        "CapacityError": "infrastructure",
        "ClientError": "settings",
    }
    code = _EXIT_CODE.search(said)
    is_killed = code is not None and int(code[1]) > 128  # by the kernel, or with its machine
    return f"failed in SageMaker ({said})", classes.get(kind, "infrastructure" if is_killed else "unknown"), False
