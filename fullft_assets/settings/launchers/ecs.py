"""The keys of `kind: ecs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from fullft_assets.settings.base import Float
from fullft_assets.settings.launchers.aws import AwsLauncherSettings
from fullft_assets.settings.launchers.base import without_secret


class EcsLauncherSettings(AwsLauncherSettings):
    """Keys of `kind: ecs`: tasks of Amazon ECS on GPU instances, with a store on S3."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **AwsLauncherSettings.REMOVED,
        "launch_type": "a task runs on EC2 instances of the cluster; for machines of your own set kind: ssh",
        "nodes": "the processes of a training share one instance: remove the line",
        "shared_memory_gb": "/dev/shm may take half of memory_gb: remove the line",
    }

    kind: str = Field(default="ecs", description="Workloads run as tasks of Amazon ECS.")
    cluster: str = Field(
        default="fullft", pattern=r"^[A-Za-z0-9_-]{1,255}$", description="Name of the cluster."
    )
    capacity_provider: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,255}$",
        description=(
            "Capacity provider that starts instances for a task and takes them away after it, on spot"
            " capacity too. Default: instances that are in the cluster already."
        ),
    )
    instance_type: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$",
        description=(
            "Type of instance that a task needs, such as `g5.xlarge`, if the cluster has several. Its price"
            " is that of `fullft jobs`."
        ),
    )
    gpus: bool = Field(
        default=True,
        description="Whether a task asks for a GPU for each of its processes; `false`: the CPU alone.",
    )
    cpu: Float | None = Field(
        default=None,
        gt=0,
        le=192,
        description="CPUs that a task asks for. Default: none; it may use what is free.",
    )
    memory_gb: Float = Field(
        ge=0.5,
        le=4096,
        description=(
            "Memory in GiB that a task asks for and may use; an instance has some hundred MiB less to give"
            " than its type says."
        ),
    )
    task_role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$",
        description="Role of the container, which reads and writes the store.",
    )
    execution_role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$",
        description="Role with which ECS pulls the image, reads secrets and writes the log.",
    )
    log_group: str = Field(
        default="/ecs/fullft",
        pattern=r"^[.\-_/#A-Za-z0-9]{1,512}$",
        description="Group of CloudWatch Logs for the output; it has to be there.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the workload; no secrets: whoever may describe the task can read them.",
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Variables of the workload whose values ECS reads from Secrets Manager or the Parameter Store:"
            " the ARN of each."
        ),
    )
    pending_minutes: Float = Field(
        default=60.0,
        gt=0,
        description=(
            "Time that a task may wait for an instance and its image; after it the workload counts as one"
            " that lost its machine."
        ),
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description=(
            "Time after which the container stops a workload as if it were cancelled, also if nobody follows"
            " it; the same command resumes it. `null`: none."
        ),
    )

    @property
    def target(self) -> dict[str, Any]:
        """What an instance must be; a plan is made on one of them."""
        keys = {"capacity_provider", "instance_type", "gpus", "cpu", "memory_gb"}
        # Plans of stores from before are found by this key.
        return {"kind": self.kind, "launch_type": "EC2", **self.model_dump(include=keys)}

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        return without_secret(environment, "put it into Secrets Manager and name that in launcher.secrets")

    @field_validator("capacity_provider")
    @classmethod
    def _has_gpus(cls, provider: str | None) -> str | None:
        if provider is not None and provider.startswith("FARGATE"):
            raise ValueError("Fargate has no GPUs; name a capacity provider of EC2 instances")
        return provider
