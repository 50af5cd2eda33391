"""The component: one use case's YAML -> its assets, checks, jobs, sensors and schedules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components import Component, ComponentLoadContext, ComponentTypeSpec, scaffold_with
from pydantic import BaseModel, RootModel

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
from fullft_assets.checking.project import Place, require_own_name
from fullft_assets.checking.validation import check_settings, load_use_case
from fullft_assets.demos import is_dormant
from fullft_assets.errors import SettingsError
from fullft_assets.scaffold import UseCaseScaffolder
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase

DATA_STAGES = (documents, examples, chunks, snapshot)
MODEL_STAGES = (planning, training, evaluation, release)


class Attributes(RootModel[dict[str, Any]]):
    """What a YAML has below `attributes`: any keys, so that a wrong one is found in `load`. The JSON schema
    has the right ones.
    """

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return the schema that `dg check yaml` compares a file with."""
        return UseCaseSettings.model_json_schema(*arguments, **options)


@scaffold_with(UseCaseScaffolder)
class FullFineTune(Component):
    """Labelled documents in, a fully fine-tuned model that is worth having out: validated, split, planned,
    trained, judged, watched.
    """

    def __init__(self, use_case: UseCase | None, instead: dg.Definitions | None = None):
        #: None for a demo whose model is not prepared, which has no definitions yet, and where `instead` has
        #: them.
        self.use_case = use_case
        self._instead = instead or dg.Definitions()

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the class of `attributes`, with which Dagster refuses nothing."""
        return Attributes

    @classmethod
    def get_spec(cls) -> ComponentTypeSpec:
        """Return the description that `dg list components` shows."""
        return ComponentTypeSpec(description=cls.__doc__)

    @classmethod
    def load(cls, attributes: BaseModel | None, context: ComponentLoadContext) -> "FullFineTune":
        """Check settings and model, and name the use case after its folder. Where something is wrong, a check
        says so.
        """
        folder = Path(context.path)
        path = next((folder / name for name in ("defs.yaml", "defs.yml") if (folder / name).is_file()), None)
        if path is None:  # a component in Python
            values = attributes.root if isinstance(attributes, Attributes) else {}
            return cls(
                check_settings(UseCaseSettings.model_validate(values), folder, Path(context.project_root))
            )
        if is_dormant(path):
            return cls(None)
        number = context.component_path.instance_key
        place = Place(path, number if isinstance(number, int) else 0)
        try:
            use_case = load_use_case(*place)
            require_own_name(use_case.name, place, context.defs_module_path)
        except SettingsError as error:
            # Raised, it would keep every other use case from loading.
            dg.get_dagster_logger("fullft_assets").error(str(error))
            return cls(None, automation.build_wrong(place, context.defs_module_path, str(error)))
        return cls(use_case)

    def build_defs(self, context: ComponentLoadContext | None = None) -> dg.Definitions:
        """Return everything that this use case needs in Dagster."""
        if self.use_case is None:
            return self._instead
        case = Case(self.use_case)
        stages = [
            *DATA_STAGES,
            *MODEL_STAGES,
            *([production] if case.has_windows else []),
            *([monitoring] if case.is_monitored else []),
        ]

        jobs = automation.build_jobs(case)
        return dg.Definitions(
            assets=[
                *(asset for stage in stages for asset in stage.build(case)),
                automation.decisions_asset(case),
            ],
            asset_checks=representation.build(case) if case.is_monitored else [],
            jobs=jobs,
            sensors=[
                *automation.build_sensors(case, jobs),
                *automation.build_live_sensor(case),
                *automation.build_alert_sensor(case),
            ],
            schedules=automation.build_schedules(case),
            resources=self.resources(case),
        )

    def resources(self, case: Case) -> Mapping[str, Any]:
        """Return what the use case's definitions are given; a subclass puts others in the place of some."""
        return case.resources()
