"""The sections `launcher` and `compute`, whose `kind` chooses the class of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

from fullft_assets.settings.base import Settings
from fullft_assets.settings.launchers.base import LauncherSettings
from fullft_assets.settings.launchers.ecs import EcsLauncherSettings
from fullft_assets.settings.launchers.kubernetes import KubernetesLauncherSettings
from fullft_assets.settings.launchers.sagemaker import SageMakerLauncherSettings
from fullft_assets.settings.launchers.ssh import SshLauncherSettings


class OtherLauncherSettings(LauncherSettings):
    """The section of a launcher from another package, whose own class checks its keys."""

    model_config = ConfigDict(extra="allow")


#: Sections by `kind`; any other kind is that of another package.
LAUNCHER_SECTIONS: dict[str, type[LauncherSettings]] = {
    "local": LauncherSettings,
    "ssh": SshLauncherSettings,
    "kubernetes": KubernetesLauncherSettings,
    "sagemaker": SageMakerLauncherSettings,
    "ecs": EcsLauncherSettings,
}


def launcher_section(values: Mapping[str, Any]) -> LauncherSettings:
    """Return the section `launcher` of the class that its `kind` chooses."""
    return _section_class(values).model_validate(values)


def recorded_section(values: Mapping[str, Any]) -> LauncherSettings:
    """Return a section `launcher` as a store has it, which may have been written by an earlier release."""
    section = _section_class(values)
    # A launcher of another package knows its own keys.
    is_other = section is OtherLauncherSettings
    return section.model_validate(values) if is_other else section.from_manifest(values)


def _section_class(values: Mapping[str, Any]) -> type[LauncherSettings]:
    kind = values.get("kind", "local")
    return LAUNCHER_SECTIONS.get(kind if isinstance(kind, str) else "local", OtherLauncherSettings)


class ByKind:
    """Marks a section whose class its key `kind` chooses; errors keep the place in the YAML, which those of
    pydantic's unions do not.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._choose,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
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

    Each has a section with the keys of `launcher`; if it is of the same kind, it needs only the keys that
    differ.
    """

    ingestion: Elsewhere = Field(
        default=None,
        description=(
            "Where documents, examples and chunks of a batch are made: one process, which reads"
            " documents.path itself. Default: in the run, wherever `launcher` is."
        ),
    )
    planning: Elsewhere = Field(
        default=None,
        description="Where plan, baselines and pilot run. They measure the machine that they run on.",
    )
    evaluation: Elsewhere = Field(default=None, description="Where candidates are evaluated: one process.")
    prediction: Elsewhere = Field(
        default=None, description="Where production documents are predicted: one process."
    )
    monitoring: Elsewhere = Field(default=None, description="Where drift is tested: one process.")

    def of(self, workload: str) -> LauncherSettings | None:
        """Return the section of a workload; None where it runs where training does."""
        return getattr(self, workload) if workload in type(self).model_fields else None
