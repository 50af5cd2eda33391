"""The sections `launcher` and `compute`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

from fullft_assets.settings.base import Float, Settings


class LauncherSettings(Settings):
    """Where heavy work runs. These keys are those of every kind; a kind may have more of its own."""

    kind: str = Field(
        default="local",
        description="Where workloads run: `local` = supervised processes on this machine, `ssh` = another machine, or the name of a launcher that a package adds.",
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Number of training processes (one per GPU); torchrun starts them if there is more than one."
    )
    grace_seconds: Float = Field(
        default=30.0,
        ge=0,
        description="Time that a cancelled workload has to finish its optimizer step and write its checkpoint before it is killed; the "
        "plan says where it is too short.",
    )
    max_hours: Float | None = Field(
        default=None,
        gt=0,
        description="Time after which a workload is stopped as if it were cancelled; the same command resumes it. Default: none.",
    )
    max_retries: int = Field(
        default=0,
        ge=0,
        le=20,
        description="How often a workload that was preempted, or lost its machine, is launched again in the same run; it resumes from its "
        "checkpoint.",
    )
    spot_notice: Literal["none", "aws"] = Field(
        default="none",
        description="Where training looks for the interruption notice of a spot instance, on which it writes a checkpoint: `aws` = EC2's "
        "instance metadata. Kubernetes and ECS send SIGTERM, which training always handles.",
    )
    spot_poll_seconds: Float = Field(
        default=5.0, gt=0, le=30, description="Time between two looks for a spot notice, which comes two minutes before the interruption."
    )

    @property
    def max_seconds(self) -> float | None:
        """`max_hours` in seconds."""
        return None if self.max_hours is None else self.max_hours * 3600

    @property
    def target(self) -> dict[str, Any]:
        """What of the section names the machines: a plan is made for them. None of it depends on the machine that reads the YAML."""
        return {"kind": self.kind, **(self.model_extra or {})}


class SshLauncherSettings(LauncherSettings):
    """Keys of `kind: ssh`: a GPU machine of one's own, reached with the system's `ssh`."""

    kind: str = Field(default="ssh", description="Workloads run on another machine.")
    host: str = Field(pattern=r"^[^-\s]\S*$", description="Name or address of the machine, or a `Host` of your `~/.ssh/config`.")
    user: str | None = Field(
        default=None,
        description="User there. Default: what `~/.ssh/config` says, else your own name.",
    )
    port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of its SSH server. Default: what `~/.ssh/config` says, else 22."
    )
    key_file: str | None = Field(
        default=None,
        description="Private key without a passphrase: an absolute path, or one from `~`. Default: those that `ssh` finds, an agent's included.",
    )
    known_hosts: str | None = Field(
        default=None,
        description="File with the machine's host key, which is always checked: an absolute path, or one from `~`. Default: `~/.ssh/known_hosts`.",
    )
    python: str = Field(
        default="python3", description="Python there that has fullft_assets in the same version, such as `/srv/fullft/.venv/bin/python`."
    )
    folder: str | None = Field(
        default=None,
        description="The project's folder there: where relative paths of this YAML start, such as `base_model`. Default: the same path as here.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the workload there, such as AWS_ENDPOINT_URL or CUDA_VISIBLE_DEVICES; no secrets, which belong to that machine.",
    )
    max_retries: int = Field(
        default=2,
        ge=0,
        le=20,
        description="How often a workload that was preempted, or lost its machine, is launched again in the same run; it resumes from its "
        "checkpoint.",
    )

    @property
    def target(self) -> dict[str, Any]:
        """The machine; how it is reached from here is no part of a plan."""
        return {"kind": self.kind, "host": self.host}


class OtherLauncherSettings(LauncherSettings):
    """The section of a launcher from another package, whose own class checks its keys."""

    model_config = ConfigDict(extra="allow")


#: Sections by `kind`; any other kind is that of another package.
LAUNCHER_SECTIONS: dict[str, type[LauncherSettings]] = {"local": LauncherSettings, "ssh": SshLauncherSettings}


def launcher_section(given: Mapping[str, Any]) -> LauncherSettings:
    """Return the section `launcher` of the class that its `kind` chooses."""
    kind = given.get("kind", "local")
    return LAUNCHER_SECTIONS.get(kind if isinstance(kind, str) else "local", OtherLauncherSettings).model_validate(given)


class ByKind:
    """Marks a section whose class its key `kind` chooses; errors keep the place in the YAML, which those of pydantic's unions do not."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._choose,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        sections = [*LAUNCHER_SECTIONS.values(), OtherLauncherSettings]
        return {"anyOf": [handler(section.__pydantic_core_schema__) for section in sections]}

    @staticmethod
    def _choose(value: Any, handler: Any) -> Any:
        if isinstance(value, LauncherSettings):
            return value
        return launcher_section(value) if isinstance(value, Mapping) else handler(value)

    @staticmethod
    def _dump(value: LauncherSettings | None, info: SerializationInfo) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(mode=info.mode)


Elsewhere = Annotated[LauncherSettings | None, ByKind()]


class ComputeSettings(Settings):
    """Workloads that run elsewhere than `launcher` says, which is where training runs.

    Each has a section with the keys of `launcher`; if it is of the same kind, it needs only the keys that differ.
    """

    planning: Elsewhere = Field(default=None, description="Where plan, baselines and pilot run. They measure the machine that they run on.")
    evaluation: Elsewhere = Field(default=None, description="Where candidates are evaluated: one process.")
    prediction: Elsewhere = Field(default=None, description="Where production documents are predicted: one process.")
    monitoring: Elsewhere = Field(default=None, description="Where drift is tested: one process.")

    def of(self, workload: str) -> LauncherSettings | None:
        """Return the section of a workload; None where it runs where training does."""
        return getattr(self, workload) if workload in type(self).model_fields else None
