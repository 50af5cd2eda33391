"""The component: one use case's YAML -> its assets, checks, jobs, sensors and schedules; and how the use
cases of a project are loaded, those whose YAML is wrong as an asset that says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components import Component, ComponentLoadContext, ComponentTypeSpec, scaffold_with
from dagster.components.core import decl
from pydantic import BaseModel, RootModel, ValidationError

from fullft_assets import automation
from fullft_assets.assets import ingestion, model, production, security
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.checking.project import (
    Place,
    find_defs,
    find_use_cases,
    fitting_name,
    name_at,
    require_own_name,
)
from fullft_assets.checking.validation import load_use_case, unreadable
from fullft_assets.checking.yaml_source import read_source
from fullft_assets.demos import is_dormant
from fullft_assets.errors import SettingsError
from fullft_assets.extras import require_names
from fullft_assets.scaffold import UseCaseScaffolder
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import digest

YAML_CHECK = "defs_yaml_is_right"
#: Dagster's function, in the module `decl`, that returns the YAML of a folder, or None.
_FINDS_YAML = "find_defs_or_component_yaml"
require_names(decl, (_FINDS_YAML,))


def build_wrong(location: Place, defs_folder: Path, problem: str) -> dg.Definitions:
    """Return an asset for a use case whose YAML is wrong, its check, and the sensor that reports the check.

    Args:
        location: where the use case is written.
        defs_folder: the folder with all use cases.
        problem: one line for each mistake.
    """
    # Not by the name of the use case: that may be wrong as well, and the same as another one's.
    parts = [fitting_name(folder) for folder in location.path.parent.relative_to(defs_folder).parts]
    parts.append("defs_yaml" + (f"_{location.document + 1}" if location.document else ""))
    key = dg.AssetKey(parts)
    asset = dg.AssetSpec(
        key,
        group_name=name_at(location),
        kinds={"yaml"},
        description=f"Not loaded, because its YAML is wrong:\n\n{problem}",
    )

    @dg.asset_check(asset=key, name=YAML_CHECK, description="The YAML of the use case has no mistake.")
    def is_right() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description=problem)

    # A run would need somebody who starts it.
    @dg.sensor(
        name="_".join([*parts, "report"]),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports what is wrong with the YAML of the use case.",
    )
    def report(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=YAML_CHECK,
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=problem,
            metadata={},
        )
        return dg.SensorResult(
            skip_reason=problem,
            asset_events=[] if context.cursor == digest(problem) else [evaluation],
            cursor=digest(problem),
        )

    return dg.Definitions(assets=[asset], asset_checks=[is_right], sensors=[report])


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
        if path is None:
            raise SettingsError(f"{folder}: a use case is written in a defs.yaml")
        if is_dormant(path):
            return cls(None)
        number = context.component_path.instance_key
        location = Place(path, number if isinstance(number, int) else 0)
        try:
            use_case = load_use_case(*location)
            require_own_name(use_case.name, location, context.defs_module_path)
        except SettingsError as error:
            # Raised, it would keep every other use case from loading.
            dg.get_dagster_logger("fullft_assets").error(str(error))
            return cls(None, build_wrong(location, context.defs_module_path, str(error)))
        return cls(use_case)

    def build_defs(self, context: ComponentLoadContext | None = None) -> dg.Definitions:
        """Return everything that this use case needs in Dagster."""
        if self.use_case is None:
            return self._instead
        graph = CaseGraph(self.use_case)
        jobs = automation.build_jobs(graph)
        return dg.Definitions(
            assets=[
                *ingestion.build(graph),
                *model.build(graph),
                *production.build(graph),
                automation.decisions_asset(graph),
            ],
            asset_checks=production.build_checks(graph) if graph.has_live_quality else [],
            jobs=jobs,
            sensors=[
                *automation.build_sensors(graph, jobs),
                *automation.build_live_sensor(graph),
                *automation.build_alert_sensor(graph),
            ],
            schedules=automation.build_schedules(graph),
            resources=self.resources(graph),
        )

    def resources(self, graph: CaseGraph) -> Mapping[str, Any]:
        """Return the resources of the use case's definitions. A subclass may replace some."""
        return graph.resources()


def load_use_cases(path_within_project: Path) -> dg.Definitions:
    """Return the definitions that `dg.load_from_defs_folder` returns, and the asset `security_audit`. A use
    case whose file Dagster cannot read is an asset with a failing check.
    """
    return dg.Definitions.merge(
        _load_use_cases(path_within_project), security.build(find_defs(path_within_project))
    )


def _load_use_cases(path_within_project: Path) -> dg.Definitions:
    try:
        return dg.load_from_defs_folder(path_within_project=path_within_project)
    except Exception:
        folder = find_defs(path_within_project)
        locations = find_use_cases(folder)
        problems: dict[Place, str] = {}
        # To load each use case alone takes longer, so it is tried where the files alone do not explain it.
        for problem_of in (
            lambda location: unreadable(location.path),
            lambda location: unloadable(location, locations),
        ):
            results = {location: problem_of(location) for location in locations if location not in problems}
            problems |= {location: problem for location, problem in results.items() if problem is not None}
            try:
                with _without(problems):
                    definitions = dg.load_from_defs_folder(path_within_project=path_within_project)
            except Exception:
                continue  # another use case is wrong, too; where nothing explains it, the first error stands
            return dg.Definitions.merge(
                definitions,
                *(build_wrong(location, folder, problem) for location, problem in problems.items()),
            )
        raise


def unloadable(location: Place, locations: Iterable[Place]) -> str | None:
    """Return why Dagster cannot load a use case without the others, or None."""
    with _without(other for other in locations if other.path != location.path):
        try:
            dg.load_from_defs_folder(path_within_project=location.path)
        except Exception as error:
            while isinstance(error.__cause__, Exception):
                error = error.__cause__
            if isinstance(error, ValidationError):
                # Of a section that may have one of several forms, the nearest form is meant.
                problem = max(error.errors(), key=lambda problem: len(problem["loc"]))
                message = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            else:
                # Dagster's message of a template ends with what went wrong.
                message = str(error).strip().rpartition("\n")[2].strip() or type(error).__name__
                message += "; look at its templates, {{ ... }}"
            source = read_source(*location)
            # What this package has not checked is there, or nowhere in the file.
            return source.located(
                source.lines.get(("post_processing",), source.lines[()]),
                f"Dagster cannot load it ({message})",
            )
    return None


@contextmanager
def _without(locations: Iterable[Place]) -> Iterator[None]:
    """Have Dagster see no YAML at some locations. The other files in the same folders are still loaded."""
    find = vars(decl)[_FINDS_YAML]
    folders = {location.path.parent.resolve() for location in locations}

    def find_others(path: Path) -> Path | None:
        return None if path.resolve() in folders else find(path)

    setattr(decl, _FINDS_YAML, find_others)
    try:
        yield
    finally:
        setattr(decl, _FINDS_YAML, find)
