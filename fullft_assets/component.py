"""The component: one use case's YAML -> its assets, checks, jobs, sensors and schedules."""

from pathlib import Path

import dagster as dg
from dagster.components import Component, ComponentLoadContext, ComponentTypeSpec, scaffold_with
from pydantic import BaseModel

from fullft_assets import automation
from fullft_assets.assets import (
    chunks,
    documents,
    evaluation,
    examples,
    monitoring,
    planning,
    production,
    release,
    representation,
    snapshot,
    training,
)
from fullft_assets.assets.case import Case
from fullft_assets.config.validation import check_settings
from fullft_assets.samples import is_dormant
from fullft_assets.scaffold import UseCaseScaffolder
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase

DATA_STAGES = (documents, examples, chunks, snapshot)
MODEL_STAGES = (planning, training, evaluation, release)


@scaffold_with(UseCaseScaffolder)
class FullFineTune(Component):
    """Labelled documents in, a fully fine-tuned model that is worth having out: validated, split, planned, trained, judged, watched."""

    def __init__(self, use_case: UseCase | None):
        #: None for a demo whose model is not prepared: it has no definitions yet.
        self.use_case = use_case

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Plain pydantic, so a wrong key is reported with file, line and caret at any depth."""
        return UseCaseSettings

    @classmethod
    def get_spec(cls) -> ComponentTypeSpec:
        """Return the description that `dg list components` shows."""
        return ComponentTypeSpec(description=cls.__doc__)

    @classmethod
    def load(cls, attributes: BaseModel | None, context: ComponentLoadContext) -> "FullFineTune":
        """Check paths, model and schedules, and name the use case after its folder.

        Raises:
            SettingsError: one line for each problem, with file and line.
        """
        assert isinstance(attributes, UseCaseSettings), "the class that get_model_cls returns"
        path = Path(context.path) / "defs.yaml"
        # An error would keep every other use case from loading.
        return cls(None) if is_dormant(path) else cls(check_settings(attributes, path, Path(context.project_root)))

    def build_defs(self, context: ComponentLoadContext | None = None) -> dg.Definitions:
        """Return everything that this use case needs in Dagster."""
        if self.use_case is None:
            return dg.Definitions()
        case = Case(self.use_case)
        stages = [*DATA_STAGES, *MODEL_STAGES, *([production] if case.has_windows else []), *([monitoring] if case.is_monitored else [])]

        jobs = automation.build_jobs(case)
        return dg.Definitions(
            assets=[*(asset for stage in stages for asset in stage.build(case)), automation.decisions_asset(case)],
            asset_checks=representation.build(case) if case.is_monitored else [],
            jobs=jobs,
            sensors=[*automation.build_sensors(case, jobs), *automation.build_live_sensor(case), *automation.build_alert_sensor(case)],
            schedules=automation.build_schedules(case),
            resources=case.resources(),
        )
