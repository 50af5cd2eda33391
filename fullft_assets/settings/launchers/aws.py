"""The keys of the kinds that run containers by a service of Amazon."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from fullft_assets.settings.launchers.base import LauncherSettings, Retries


class AwsLauncherSettings(LauncherSettings):
    """Keys of the kinds that run containers of an image by a service of Amazon, with a store on S3."""

    image: str = Field(
        max_length=255,
        pattern=r"^\S+@sha256:[0-9a-f]{64}$",
        description=(
            "Image in ECR by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version."
        ),
    )
    python: str = Field(default="python", description="Python in the image that has fullft_assets.")
    folder: str = Field(
        default=".",
        description=(
            "The project's folder in the image: where relative paths of this YAML start, such as"
            " `base_model`. Default: its working directory."
        ),
    )
    region: str | None = Field(default=None, description="AWS region. Default: that of the environment.")
    subnets: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="Subnets of your VPC. Default: the service's or host's own network.",
    )
    security_groups: list[str] = Field(
        default_factory=list,
        validate_default=True,
        max_length=5,
        description="Security groups in that VPC, which subnets need.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=49, description="Tags of the jobs, for cost reports and policies."
    )
    max_retries: Retries = 2

    @field_validator("security_groups")
    @classmethod
    def _belong_to_subnets(cls, groups: list[str], info: ValidationInfo) -> list[str]:
        if "subnets" in info.data and bool(groups) != bool(info.data["subnets"]):
            raise ValueError(
                "launcher.subnets and launcher.security_groups belong together; give both or none"
            )
        return groups
