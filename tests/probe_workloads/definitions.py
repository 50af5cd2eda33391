"""One asset that launches the probe, and a job for each executor. The environment chooses how it behaves."""

import json
import os
from pathlib import Path

import dagster as dg

from fullft_assets.job import Job
from fullft_assets.resources import one_line_errors
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.settings import LauncherSettings, UseCaseSettings
from fullft_assets.settings.launcher import launcher_section
from fullft_assets.settings.launcher_kinds import open_launcher
from fullft_assets.store import Store


def probe_job(folder: Path, stage: str, url: str | None = None) -> tuple[Job, Store]:
    """Return a job for the probe and the store that it writes to: below the folder by default."""
    settings = UseCaseSettings.model_validate(
        {"base_model": "none", "documents": {"path": "none"}, "examples": {"label": "none"}}
    )
    store = Store(url or str(folder / "store"))
    job = Job(
        case="probe",
        stage=stage,
        key="k1",
        project_root=str(folder),
        store_url=store.url,
        settings=settings,
        inputs={},
    )
    return job, store


def _launcher_settings() -> LauncherSettings:
    if "PROBE_LAUNCHER" in os.environ:
        return launcher_section(json.loads(os.environ["PROBE_LAUNCHER"]))
    return LauncherSettings(
        processes=int(os.environ["PROBE_PROCESSES"]), grace_seconds=float(os.environ["PROBE_GRACE"])
    )


@dg.asset
def probed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    settings = _launcher_settings()
    driver = LaunchDriver(lambda _: open_launcher(settings), package="probe_workloads")
    workload = "training" if settings.processes > 1 else "probe"
    job, store = probe_job(
        Path(os.environ["PROBE_FOLDER"]), os.environ["PROBE_STAGE"], os.environ.get("PROBE_STORE")
    )
    with one_line_errors(store, job.case):
        manifest = driver.run(context, workload, job, store)
    return dg.MaterializeResult(
        metadata={"ref": manifest.ref}, data_version=dg.DataVersion(manifest.content_digest)
    )


defs = dg.Definitions(
    assets=[probed],
    jobs=[
        dg.define_asset_job("in_process", ["probed"], executor_def=dg.in_process_executor),
        dg.define_asset_job("multiprocess", ["probed"], executor_def=dg.multiprocess_executor),
    ],
)
