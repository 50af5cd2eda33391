"""planning: training_snapshot -> feasibility_plan, cheaper_baselines, pilot_run (one workload)."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from fullft_assets import checkpoint as checkpoint_key
from fullft_assets import planning
from fullft_assets.assets.case import Case
from fullft_assets.base_model import find_base_model, read_header, resolve_base_model
from fullft_assets.evaluation import external
from fullft_assets.models.hardware import local_hardware
from fullft_assets.resources import one_line_errors
from fullft_assets.settings import LauncherSettings
from fullft_assets.store import Manifest, artifact_key

_ASSETS = {
    "feasibility_plan": (
        "Does it fit and what will it cost: memory, time and price, measured on this machine."
    ),
    "cheaper_baselines": (
        "What baselines score on the same rows: majority label, TF-IDF, a probe on the frozen model; or the"
        " base model as it is."
    ),
    "pilot_run": (
        "A small fine-tuning on growing subsets: does its learning curve predict a gain worth its price."
    ),
}


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""
    version = case.code_version(f"{planning.VERSION}.{case.settings.primary_metric}", "planning", "training")
    checks = [
        *case.checks("feasibility_plan", planning.PLAN_CHECKS),
        *case.checks("pilot_run", planning.PILOT_CHECKS),
    ]

    @dg.multi_asset(
        name=f"{case.name}__planning",
        outs={
            name: dg.AssetOut(
                key=case.key(name),
                description=description,
                code_version=version,
                kinds={"pytorch"} if name != "cheaper_baselines" else {"scikitlearn", "pytorch"},
                io_manager_key=case.io_key,
            )
            for name, description in _ASSETS.items()
        },
        ins={"training_snapshot": dg.AssetIn(case.key("training_snapshot"), input_manager_key=case.io_key)},
        group_name=case.name,
        check_specs=checks,
        pool=case.settings.launcher_of("planning").pool,
        required_resource_keys=case.shared(launches=True)["required_resource_keys"],
    )
    def plan_baselines_and_pilot(
        context: dg.AssetExecutionContext, training_snapshot: Manifest
    ) -> Iterator[dg.MaterializeResult]:
        store = case.store(context)
        with one_line_errors(store, case.name):
            training_snapshot.require_green("feasibility_plan")
            # What is missing, or another one, is refused before anything costs time.
            brought = external.keep(store, case.name, case.settings, case.use_case.project_root)
            if external.PREDICTIONS in brought:
                external.require_complete(store, brought[external.PREDICTIONS], training_snapshot)
            key = planning_key(case, training_snapshot, base_model_revision(case))
            manifests = {name: store.find(case.name, name, key) for name in _ASSETS}
            if None in manifests.values():
                job = case.job("pilot_run", key, store, {"training_snapshot": training_snapshot})
                case.launcher(context).run(context, "planning", job, store)
                manifests = {name: store.find(case.name, name, key) for name in _ASSETS}
        for name, manifest in manifests.items():
            assert manifest is not None, "the pilot is written last, and the launcher found it"
            yield case.result(manifest, name, store)

    return [plan_baselines_and_pilot]


def base_model_revision(case: Case) -> str:
    """Return what pins the content of the base model."""
    return read_header(find_base_model(case.settings, case.use_case.project_root)).revision


def planning_key(case: Case, snapshot: Manifest, revision: str) -> str:
    """Return the key that the three planning artifacts share; `revision` is the base model's."""
    settings = case.settings.model_dump(include={"planning"}, mode="json")
    settings["primary_metric"] = case.settings.primary_metric
    settings["training"] = checkpoint_key.plan_settings(case.settings)
    settings["processes"] = case.settings.launcher.processes
    inputs = {
        "training_snapshot": snapshot.content_digest,
        "base_model": revision,
        "hardware": _hardware(case.settings.launcher_of("planning")),
    }
    if case.settings.planning.smaller_model is not None:
        inputs["smaller_model"] = read_header(
            resolve_base_model(case.settings.planning.smaller_model, case.use_case.project_root)
        ).revision
    return artifact_key("planning", planning.VERSION, settings, inputs, case.settings.seed)


def _hardware(launcher: LauncherSettings) -> dict[str, Any]:
    """Return what a plan is made for: this machine, or the machines that the YAML declares."""
    return local_hardware() if launcher.kind == "local" else launcher.target
