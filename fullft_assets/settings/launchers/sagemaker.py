"""The keys of `kind: sagemaker`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fullft_assets.settings.base import Float
from fullft_assets.settings.launchers.aws import AwsLauncherSettings
from fullft_assets.settings.launchers.base import without_secret

#: Limits of Processing Jobs: hours, and characters of a variable's value.
_PROCESSING_HOURS, _PROCESSING_CHARACTERS = 216, 256


class SageMakerLauncherSettings(AwsLauncherSettings):
    """Keys of `kind: sagemaker`: Training Jobs or Processing Jobs of Amazon SageMaker, with a store on S3."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **AwsLauncherSettings.REMOVED,
        "max_wait_hours": "SageMaker waits 24 hours for spot instances: remove the line",
        "output_kms_key": "set $FULLFT_KMS_KEY, the store's own key",
    }

    kind: str = Field(default="sagemaker", description="Workloads run as Training Jobs of Amazon SageMaker.")
    jobs: Literal["training", "processing"] = Field(
        default="training",
        description=(
            "Kind of SageMaker's jobs: `training` = Training Jobs, `processing` = Processing Jobs, which a"
            " section of `compute` may choose, such as that of `ingestion`: one instance, never a spot one."
        ),
    )
    instance_type: str = Field(
        pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$",
        description="Type of the instances, such as `ml.g5.xlarge` or `ml.p4d.24xlarge`.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Instances that share a training; each starts as many of launcher.processes as the others. Other"
            " workloads take one."
        ),
    )
    role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$",
        description="Role of the container, which reads and writes the store.",
    )
    volume_gb: int = Field(
        default=100,
        ge=1,
        le=16_384,
        description=(
            "Disk of each instance in GB for inputs and checkpoints; instance types with local NVMe disks"
            " have those."
        ),
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description=(
            "Time after which SageMaker stops a workload as if it were cancelled; the same command resumes"
            " it. `null`: SageMaker's maximum, 28 days, of a Processing Job 9."
        ),
    )
    grace_seconds: Float = Field(
        default=100.0,
        ge=0,
        description=(
            "Time that a stopped workload has to finish its optimizer step and write its checkpoint;"
            " SageMaker kills a container after 120 s, so that more is refused."
        ),
    )
    spot: bool = Field(
        default=False,
        description=(
            "Whether to train on spot instances. SageMaker starts an interrupted job again in its time."
        ),
    )
    network_isolation: bool = Field(
        default=False,
        description=(
            "Whether containers reach no network at all, the store neither: SageMaker mounts it for them to"
            " read and saves what they write. One instance, and Training Jobs alone."
        ),
    )
    volume_kms_key: str | None = Field(
        default=None,
        description=(
            "KMS key of the instances' disks. Instance types with local NVMe disks refuse one: their hardware"
            " encrypts."
        ),
    )
    environment: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict,
        max_length=90,
        description="Variables of the workload; no secrets: whoever may describe the job can read them.",
    )

    @property
    def target(self) -> dict[str, Any]:
        """The type of the instances; a plan is made on one of them."""
        return {"kind": self.kind, "instance_type": self.instance_type}

    @field_validator("environment")
    @classmethod
    def _is_public_and_fits(cls, environment: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name, value in environment.items():
            if info.data.get("jobs") == "processing" and len(value) > _PROCESSING_CHARACTERS:
                raise ValueError(
                    f"{name}: a variable of a Processing Job has {_PROCESSING_CHARACTERS} characters at most"
                )
        return without_secret(environment, "give launcher.role_arn the right to what it opens")

    @field_validator("network_isolation")
    @classmethod
    def _is_of_one_training_job(cls, is_isolated: bool, info: ValidationInfo) -> bool:
        if is_isolated and (info.data.get("jobs") == "processing" or info.data.get("nodes", 1) > 1):
            raise ValueError(
                "needs nodes: 1 and jobs: training; set it to false in this section, or change them"
            )
        return is_isolated

    @model_validator(mode="after")
    def _ends_in_time(self) -> SageMakerLauncherSettings:
        if self.jobs == "processing" and self.max_hours is not None and self.max_hours > _PROCESSING_HOURS:
            raise ValueError(f"max_hours: SageMaker gives a Processing Job {_PROCESSING_HOURS} at most")
        return self

    @field_validator("grace_seconds", "max_hours")
    @classmethod
    def _is_within_limits(cls, value: float | None, info: ValidationInfo) -> float | None:
        limit = {"grace_seconds": 120, "max_hours": 672}[str(info.field_name)]
        if value is not None and value > limit:
            raise ValueError(f"SageMaker gives {limit} at most")
        return value

    @field_validator("nodes")
    @classmethod
    def _divides_processes(cls, nodes: int, info: ValidationInfo) -> int:
        processes = info.data.get("processes", nodes)
        if processes % nodes:
            raise ValueError(
                f"launcher.processes ({processes}) must be a multiple of it, as every instance starts as many"
            )
        return nodes
