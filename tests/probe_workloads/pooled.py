"""A job with a step that needs a slot of the pool `gpu` and one that needs none, under the name of a use
case's model job.
"""

import os
from pathlib import Path

import dagster as dg
from probe_workloads.definitions import probe_job

from fullft_assets.launch.local import LocalLauncher
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.settings import LauncherSettings


@dg.asset(pool="gpu")
def held(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    driver = LaunchDriver(
        lambda _: LocalLauncher(LauncherSettings(grace_seconds=20)), package="probe_workloads"
    )
    driver.run(context, "probe", *probe_job(Path(os.environ["PROBE_FOLDER"]), os.environ["PROBE_STAGE"]))
    return dg.MaterializeResult()


@dg.asset
def light() -> None:
    """Take no slot: it starts while the other step waits for one."""


defs = dg.Definitions(
    assets=[held, light],
    jobs=[dg.define_asset_job("probe_model", ["held", "light"], executor_def=dg.in_process_executor)],
)
