"""The data stages of a batch as one workload: what it writes is what the assets find, and would make
themselves.
"""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from fullft_assets import documents
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.jobs import INGEST
from fullft_assets.chunks import ingestion
from fullft_assets.component import FullFineTune
from fullft_assets.errors import SettingsError
from fullft_assets.job import Job
from fullft_assets.launch.records import launches
from fullft_assets.launch.workloads import ingestion as workload
from fullft_assets.progress import Progress
from fullft_assets.resources import open_store
from fullft_assets.store import Manifest, Store
from tests import prepared, project as projects
from tests.s3_server import S3Server
from tests.test_launch_demo import place


class InThisProcess:
    """In place of the driver of launchers: runs the one workload that is asked for."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, _: object, name: str, job: Job, store: Store) -> Manifest:
        assert name == "ingestion"
        self.jobs.append(job)
        workload.work(job, store, Progress(silent=True))
        return store.find(job.case, job.stage, job.key)


def ingest(project: projects.Project, driver: InThisProcess | None = None) -> tuple[Store, bool]:
    """Run the job `ingest` for the one batch of a project, in place of its launchers by a driver, and return
    its store and whether that went well.
    """
    use_case = project.use_case()
    with dg.DagsterInstance.local_temp(str(project.home)) as instance:
        store = open_store(use_case, instance)
        source = documents.source_of(use_case)
        (batch,) = documents.cut_batches(store, use_case.name, source, use_case.settings.documents)
        defs = FullFineTune(use_case).build_defs()
        resources = dict(defs.resources or {})
        if driver is not None:
            resources[CaseGraph(use_case).launcher_key] = dg.ResourceDefinition.hardcoded_resource(driver)
        assets = [each for each in defs.assets or () if isinstance(each, dg.AssetsDefinition)]
        chosen = [each for each in assets if each.keys & {CaseGraph(use_case).key(name) for name in INGEST}]
        instance.add_dynamic_partitions(f"{use_case.name}/batch", [batch.name])
        done = dg.materialize(
            chosen, instance=instance, resources=resources, partition_key=batch.name, raise_on_error=False
        )
        return store, done.success


def made_here(project: projects.Project) -> Store:
    """Make the one batch of a project without a workload, in a store of its own, and return that."""
    use_case, store = project.use_case(), Store(str(project.home / "another_store"))
    prepared.ingest(store, use_case)
    return store


@pytest.mark.slow
def test_what_it_writes_is_what_the_assets_find_and_would_make_themselves(tmp_path: Path):
    project = projects.create(tmp_path, rows=60, compute={"ingestion": {"kind": "ssh", "host": "gpu1"}})
    driver = InThisProcess()
    store, is_well = ingest(project, driver)
    (job,) = driver.jobs
    assert is_well and job.stage == ingestion.STAGE
    (sign,) = store.artifacts("letters", ingestion.STAGE)
    plain = made_here(project)
    for stage in INGEST:
        (made,) = store.artifacts("letters", stage)
        assert made.created_at < sign.created_at and sign.metadata["made"][stage] == made.ref, (
            f"{stage} was made again in the run"
        )
        assert [made.content_digest] == [each.content_digest for each in plain.artifacts("letters", stage)]
    assert len(ingestion.done(store, project.use_case())) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ssh", "kubernetes"])
def test_a_job_of_another_launcher_makes_a_batch(
    kind: str, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = projects.create(tmp_path / "project", rows=60)
    bucket = f"ingestion-{kind}-{os.getpid()}"
    shutil.copytree(project.documents, s3_env.make_bucket(bucket) / "documents")
    with place(kind, tmp_path, s3_env, monkeypatch) as section:
        project.configure(
            documents={"path": f"s3://{bucket}/documents"},
            compute={"ingestion": {**section, "folder": str(project.root)}},
            store=f"s3://{bucket}/store",
        )
        store, is_well = ingest(project)
    (launch,) = launches(store, "letters")
    assert is_well and (launch.workload, launch.state) == ("ingestion", "succeeded")
    (made,) = store.artifacts("letters", "tokenized_chunks")
    (sign,) = store.artifacts("letters", ingestion.STAGE)
    assert sign.metadata["made"]["tokenized_chunks"] == made.ref, "made there, and found by the run"


@pytest.mark.slow
@pytest.mark.parametrize("section", [{}, {"ingestion": {"kind": "local"}}])
def test_a_batch_that_is_held_back_ends_well_and_without_the_workload_nothing_is_launched(
    tmp_path: Path, section: dict[str, object]
):
    project = projects.create(tmp_path, rows=5, compute=section, examples={"label": "no_such_field"})
    driver = InThisProcess()
    store, _ = ingest(project, driver)
    assert len(driver.jobs) == len(section)
    assert store.artifacts("letters", "labeled_examples")[0].red_gates and not store.artifacts(
        "letters", "tokenized_chunks"
    )
    assert len(ingestion.done(store, project.use_case())) == 1


def test_what_retention_has_removed_since_is_made_by_the_workload_again(tmp_path: Path):
    project = projects.create(tmp_path, rows=60, compute={"ingestion": {"kind": "local"}})
    case, driver, store = CaseGraph(project.use_case()), InThisProcess(), Store(str(tmp_path / "store"))
    (batch,) = documents.cut_batches(store, case.name, project.documents, case.settings.documents)
    context: Any = SimpleNamespace(
        partition_key=batch.name,
        resources=SimpleNamespace(**{case.store_key: store, case.launcher_key: driver}),
    )
    for launched in (1, 1):
        case.ingest(context)
        assert len(driver.jobs) == launched
    (tokens,) = store.artifacts(case.name, "tokenized_chunks")
    store.delete(tokens)
    for launched in (2, 2):
        case.ingest(context)
        assert len(driver.jobs) == launched and len(store.artifacts(case.name, "tokenized_chunks")) == 1


def test_an_image_with_another_tokenizer_makes_nothing_that_nobody_would_find(tmp_path: Path):
    project = projects.create(tmp_path, rows=60, compute={"ingestion": {"kind": "local"}})
    case, store = CaseGraph(project.use_case()), Store(str(tmp_path / "store"))
    (batch,) = documents.cut_batches(store, case.name, project.documents, case.settings.documents)
    job = case.job(ingestion.STAGE, "of another tokenizer", store, {}, batch.name)
    with pytest.raises(
        SettingsError,
        match=f"{batch.name}: the tokenizer, .* is another ",
    ):
        workload.work(job, store, Progress(silent=True))
    assert not any(store.artifacts(case.name, stage) for stage in (*INGEST, ingestion.STAGE))
