"""Runs of assets in one process: in that of a test, or all that a project needs by `python -m
tests.asset_runs ROOT NAME`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest

from fullft_assets import automation, documents
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.component import FullFineTune
from fullft_assets.job import Job
from fullft_assets.progress import Progress
from fullft_assets.resources import open_store
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from tests.project import Project

#: What the partitions of a job are.
KINDS: dict[str, documents.Kind] = {"ingest": "batch", "monitor": "window"}


def definitions(use_case: UseCase) -> dg.Definitions:
    """Return the definitions of a use case, which run in this process."""
    return dg.Definitions.merge(
        FullFineTune(use_case).build_defs(), dg.Definitions(executor=dg.in_process_executor)
    )


def run_assets(
    use_case: UseCase, instance: dg.DagsterInstance, *assets: str, partition: str | None = None
) -> dg.ExecuteInProcessResult:
    return (
        definitions(use_case)
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            asset_selection=[dg.AssetKey([use_case.name, asset]) for asset in assets],
            partition_key=partition,
            instance=instance,
            raise_on_error=False,
        )
    )


def run_workloads_here(patch: pytest.MonkeyPatch) -> None:
    """Have the workloads of assets run in this process, where what launches them is tested elsewhere: to load
    their libraries takes longer than most of them.
    """

    def run(_: LaunchDriver, __: Any, workload: str, job: Job, store: Store) -> Manifest | None:
        import_module(f"fullft_assets.launch.workloads.{workload}").work(job, store, Progress(silent=True))
        return store.find(job.case, job.stage, job.key)

    patch.setattr(LaunchDriver, "run", run)


def run_jobs(project: Project, *jobs: Literal["ingest", "snapshot", "model", "monitor"]) -> None:
    """Run jobs of a project in this process, those of batches and windows for each that is due; all
    succeed.
    """
    use_case = project.use_case()
    with (
        pytest.MonkeyPatch.context() as patch,
        dg.DagsterInstance.from_config(str(project.home)) as instance,
    ):
        run_workloads_here(patch)
        store = open_store(use_case, instance)
        for short_name in jobs:
            name = f"{use_case.name}_{short_name}"
            partitions: list[str | None] = [None]
            if kind := KINDS.get(short_name):
                documents.look(store, use_case, kind, whole=True)
                due = automation.find_due(CaseGraph(use_case), instance, store, kind, name)
                partitions = [request.partition_key for request in due.requests]
                instance.add_dynamic_partitions(f"{use_case.name}/{kind}", partitions)
            for key in partitions:
                assert (
                    definitions(use_case)
                    .resolve_job_def(name)
                    .execute_in_process(instance=instance, partition_key=key)
                    .success
                ), name


if __name__ == "__main__":
    run_jobs(Project(Path(sys.argv[1]), sys.argv[2]), "ingest", "model", "monitor")
