"""A use case: all sections of its YAML, its name, and where its relative paths start."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from fullft_assets.settings.alerts import AlertsSettings
from fullft_assets.settings.base import Settings
from fullft_assets.settings.documents import DocumentsSettings
from fullft_assets.settings.evaluation import EvaluationSettings, PlanningSettings
from fullft_assets.settings.examples import ExamplesSettings
from fullft_assets.settings.launcher import ByKind, ComputeSettings, LauncherSettings
from fullft_assets.settings.production import (
    AutomationSettings,
    MonitoringSettings,
    ReleaseSettings,
    RetentionSettings,
    RetrainingSettings,
)
from fullft_assets.settings.snapshot import ChunksSettings, SnapshotSettings
from fullft_assets.settings.training import EPOCHS, MOST_EPOCHS, TrainingSettings
from fullft_assets.store.buckets import SCHEMES
from fullft_assets.task import TASKS, task_of


class UseCaseSettings(Settings):
    """One use case: documents in, a fully fine-tuned model out."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "owners": (
            "set post_processing: {assets: [{target: '*', attributes: {owners: [...]}}]} beside `attributes`"
        ),
    }

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="Name of the use case. Default: the folder's name.",
    )
    base_model: str = Field(
        description=(
            "Folder of the pretrained model (config.json, safetensors, tokenizer.json), `package:NAME/FOLDER`"
            " inside an installed Python package, or `ORG/NAME@COMMIT` in the cache of the Hugging Face hub."
        )
    )
    trust_remote_code: bool = Field(
        default=False,
        description=(
            "Whether the Python files in the base model's folder may run, with all the rights of the runs."
            " Read them first: they are part of the model's revision, and a changed file counts as another"
            " model. Needed if transformers does not support the architecture."
        ),
    )
    seed: int = Field(default=17, ge=0, le=2**31 - 1, description="Seed of everything random.")
    store: str | None = Field(
        default=None,
        description=(
            "Where artifacts are stored: a folder or s3://bucket/prefix (or gs://, az://). Default:"
            " $FULLFT_STORE, else `store` in Dagster's home."
        ),
    )
    documents: DocumentsSettings
    examples: ExamplesSettings
    chunks: ChunksSettings = ChunksSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    planning: PlanningSettings = PlanningSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    release: ReleaseSettings = ReleaseSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    automation: AutomationSettings = AutomationSettings()
    retention: RetentionSettings = RetentionSettings()
    launcher: Annotated[LauncherSettings, ByKind()] = LauncherSettings()
    compute: ComputeSettings = ComputeSettings()
    alerts: AlertsSettings = AlertsSettings()

    @model_validator(mode="before")
    @classmethod
    def _compute_begins_with_the_launcher(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("compute"), Mapping):
            return data
        base = data.get("launcher", {})
        base = base.model_dump() if isinstance(base, LauncherSettings) else base
        if not isinstance(base, Mapping):
            return data
        kind = base.get("kind", "local")
        return {
            **data,
            "compute": {
                name: (
                    {**base, **section}
                    if name in ComputeSettings.WORKLOADS
                    and isinstance(section, Mapping)
                    and section.get("kind", kind) == kind
                    else section
                )
                for name, section in data["compute"].items()
            },
        }

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        examples = data.get("examples")
        task = examples.get("task") if isinstance(examples, Mapping) else getattr(examples, "task", None)
        defaults = TASKS.get(task).defaults if isinstance(task, str) and task in TASKS else {}
        sections = {
            name: {**defaults[name], **section}
            for name in defaults
            if isinstance(section := data.get(name, {}), Mapping)
        }
        return {**data, **sections}

    @field_validator("store")
    @classmethod
    def _is_folder_or_bucket(cls, store: str | None) -> str | None:
        if store is not None and "://" in store and not store.startswith(SCHEMES):
            raise ValueError("must be a folder, or s3://, gs:// or az:// with a bucket and a prefix")
        return store

    @property
    def primary_metric(self) -> str:
        """Name of the metric that decides: the one asked for, or the task's first."""
        return self.evaluation.primary_metric or task_of(self.examples).metrics[0]

    def with_epochs(self, num_rows: int) -> Self:
        """Return the settings with the passes that a training over so many rows makes, where the YAML gives
        none.

        Three passes over a few hundred rows are some eighty steps, which teach a new head little. Few rows
        take more passes instead (Mosbach et al. 2021, On the Stability of Fine-tuning BERT, take 20).
        """
        training = self.training
        if training.epochs is not None:
            return self
        min_epochs = math.ceil(task_of(self.examples).min_rows_read / max(1, num_rows))
        epochs = min(max(EPOCHS, float(min_epochs)), MOST_EPOCHS)
        return self.model_copy(update={"training": training.model_copy(update={"epochs": epochs})})

    def launcher_of(self, workload: str) -> LauncherSettings:
        """Return where a workload runs."""
        return self.compute.of(workload) or self.launcher

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines: those asked for, or the task's own."""
        return tuple(dict.fromkeys(self.planning.baselines or task_of(self.examples).baselines))

    @model_serializer(mode="wrap")
    def _as_keys_have_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys are made of it: a default, and the same metric or baselines asked for, are one decision.
        sections = handler(self)
        if "primary_metric" in sections.get("evaluation", {}):
            sections["evaluation"]["primary_metric"] = self.primary_metric
        if "baselines" in sections.get("planning", {}):
            sections["planning"]["baselines"] = list(self.baselines)
        if not self.evaluation.external:
            sections.get("evaluation", {}).pop("external", None)
        # At its default it changes nothing, and stays out of keys.
        if not self.trust_remote_code:
            sections.pop("trust_remote_code", None)
        return sections


@dataclass(frozen=True)
class UseCase:
    """A use case whose settings hold; what its paths name may be missing."""

    name: str
    settings: UseCaseSettings
    yaml_path: Path
    project_root: Path
    #: Number of its document in the YAML file.
    document: int = 0

    def resolve(self, path: str) -> Path:
        """Return a path of the YAML as an absolute one; relative ones start at the project root. Documents:
        `open_source`.
        """
        return locate(path, self.project_root)


def locate(path: str, root: Path) -> Path:
    """Return a path of a YAML below the project's root, unless it is absolute or begins at a user's home.

    Where there is no such user, `~data/x` is a name like any other.
    """
    try:
        return root / Path(path).expanduser()
    except RuntimeError:
        return root / path
