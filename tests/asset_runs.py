"""Runs of assets in the process of a test."""

from importlib import import_module
from typing import Any

import dagster as dg
import pytest

from fullft_assets.component import FullFineTune
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store


def run_assets(
    use_case: UseCase, instance: dg.DagsterInstance, *assets: str, partition: str | None = None
) -> dg.ExecuteInProcessResult:
    """Materialise assets of a use case in this process."""
    defs = dg.Definitions.merge(
        FullFineTune(use_case).build_defs(), dg.Definitions(executor=dg.in_process_executor)
    )
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey([use_case.name, asset]) for asset in assets],
        partition_key=partition,
        instance=instance,
        raise_on_error=False,
    )


def run_workloads_here(patch: pytest.MonkeyPatch) -> None:
    """Have the workloads of assets run in this process, where what launches them is tested elsewhere: to load
    their libraries takes longer than most of them.
    """

    def run(_: LaunchDriver, __: Any, workload: str, job: Job, store: Store) -> Manifest | None:
        import_module(f"fullft_assets.workloads.{workload}").work(job, store, Progress(silent=True))
        return store.find(job.case, job.stage, job.key)

    patch.setattr(LaunchDriver, "run", run)
