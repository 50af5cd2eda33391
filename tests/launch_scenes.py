"""What the tests of all launchers share: the probe run by the driver, and a control plane that is killed or
cancelled.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.job import Job
from fullft_assets.launch import Launcher, LaunchSpec, aws, records
from fullft_assets.resources import driver, one_line_errors
from fullft_assets.store import Manifest, Store
from tests.aws_double import Double, serve
from tests.machine import set_environment, wait_for
from tests.prepared import Prepared
from tests.s3_server import S3Server

TESTS = Path(__file__).parent
SECONDS = 240.0
#: Of the jobs that tests submit by hand. Of each process its own: what is left of a job is found, and killed,
#: by its name in the environment.
NAME = f"fullft-test-{os.getpid()}"


def process(folder: Path, name: str) -> psutil.Process:
    """Return a process that the probe has started, once it has."""
    wait_for((folder / f"{name}.pid").exists, f"{name} started")
    return psutil.Process(int((folder / f"{name}.pid").read_text()))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store in the bucket that `serving` makes."""
    return f"s3://{tmp_path.name}/fullft"


def probe_at(where: Path | str, stage: str) -> tuple[Job, Store]:
    """Return a job for the probe and its store, in this folder or at this URL."""
    return probe_job(where, stage) if isinstance(where, Path) else probe_job(Path("/nowhere"), stage, where)


def spec(where: Path | str, stage: str, name: str = NAME, **changes: Any) -> LaunchSpec:
    """Return what a launcher gets for the probe of this stage."""
    job, store = probe_at(where, stage)
    return LaunchSpec(
        name, "probe_workloads.probe", tuple(job.arguments(store)), **{"run_id": "r1", **changes}
    )


def run_stage(launcher: Launcher, stage: str, where: Path | str) -> tuple[str | None, list[str]]:
    return run_probe(launcher, *probe_at(where, stage))


def run_probe(
    launcher: Launcher,
    job: Job,
    store: Store,
    instance: dg.DagsterInstance | None = None,
    *,
    workload: str = "probe",
) -> tuple[str | None, list[str]]:
    """Run the probe from this process; return the line of its failure and the messages of its run."""
    if instance is None:
        with dg.DagsterInstance.ephemeral() as instance:
            return run_probe(launcher, job, store, instance, workload=workload)

    @dg.asset
    def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with one_line_errors(store, "probe"):
            driver.LaunchDriver(lambda _: launcher, package="probe_workloads").run(
                context, workload, job, store
            )
        return dg.MaterializeResult()

    done = dg.materialize([made], instance=instance, raise_on_error=False)
    messages = [entry.user_message for entry in instance.all_logs(done.run_id)]
    if done.success:
        return None, messages
    failure = done.get_step_failure_events()[0].step_failure_data
    return (
        failure.error.message if failure.user_failure_data is None else failure.user_failure_data.description,
        messages,
    )


def recorded(store: Store, case: str = "probe") -> records.Launch:
    """Return the one launch of a use case that a store has a record of."""
    (launch,) = records.launches(store, case)
    return launch


def trained_in_bucket(
    launcher: Launcher, prepared: Prepared, stage: str, bucket: Path, name: str, /, **sections: Any
) -> bytes:
    """Train through a launcher, with a store of its own in a bucket, and return the file of the weights.

    Args:
        bucket: folder with the bucket's objects.
        name: of the store.
        sections: of the YAML that differ.
    """
    shutil.copytree(prepared.store.url, bucket / name)
    store = Store(f"s3://{bucket.name}/{name}")
    job = prepared.job(stage, **sections).model_copy(update={"store_url": store.url})
    return (store.folder(train(launcher, job, store)) / "model/model.safetensors").read_bytes()


def train(launcher: Launcher, job: Job, store: Store) -> Manifest:
    """Train through a launcher, and return the checkpoint."""

    @dg.asset
    def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        driver.LaunchDriver(lambda _: launcher).run(context, "training", job, store)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([made], instance=instance)
    return store.find(job.case, job.stage, job.key)


@contextmanager
def serving(
    double: type[Double],
    launcher: type[aws.AwsLauncher],
    s3: S3Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Double]:
    """Serve a double to clients in this process, with a bucket of the folder's name; nobody waits longer than
    a test needs.
    """
    monkeypatch.setattr(aws, "LATE_SECONDS", 0.2)
    monkeypatch.setattr(aws, "STOP_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "look_seconds", (0.2, 0.2))
    monkeypatch.setattr(driver, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(driver, "_PAUSE_SECONDS", 0.1)
    s3.make_bucket(folder.name)
    with serve(double, folder / "containers", s3.env) as service:
        set_environment(monkeypatch, service.env)
        yield service
