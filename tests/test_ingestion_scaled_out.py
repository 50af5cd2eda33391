"""Batches that are made elsewhere, several at once: by Dagster's run launcher on Kubernetes, and as jobs of
each launcher.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.jobs import INGEST
from fullft_assets.chunks import ingestion
from fullft_assets.component import FullFineTune
from fullft_assets.documents.delivery import source_of
from fullft_assets.launchers.records import launches
from fullft_assets.resources import latest_by_partition, open_store
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests import s3_server as s3_servers
from tests.kubernetes_double import IMAGE as POD_IMAGE
from tests.kubernetes_double import NAMESPACE, Cluster
from tests.launch_scenes import TESTS, wait_for
from tests.test_launch_demo import place

pytestmark = pytest.mark.long

#: Rights of Dagster's own account, which may create Jobs.
RULES = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list"]}]
ONE_FILE_EACH = {"documents": {"max_batch_files": 1}}


def deliver(project: projects.Project, num_files: int) -> None:
    for file in range(num_files):
        project.deliver(f"delivery-{file + 1}.jsonl", projects.licence_rows(20, skip=20 * file))


def cut(use_case: UseCase, store: Store) -> list[str]:
    """Cut what is delivered, and return the names of the batches."""
    source = source_of(use_case, "batch")
    return [
        batch.name
        for batch in documents.cut_batches(store, use_case.name, source, use_case.settings.documents)
    ]


def snapshot_of(use_case: UseCase, store: Store) -> Manifest:
    """Take the snapshot of the batches that were ingested."""
    made = [
        latest_by_partition(store, use_case.name, name) for name in ("labeled_examples", "tokenized_chunks")
    ]
    return snapshot.take(store, use_case, *made)


def snapshot_on_one_machine(use_case: UseCase, store: Store) -> Manifest:
    labeled, tokenized = {}, {}
    for batch in cut(use_case, store):
        labeled[batch], _ = examples.validate(store, use_case, documents.keep(store, use_case, batch))
        tokenized[batch] = chunks.tokenize(store, use_case, labeled[batch])
    return snapshot.take(store, use_case, labeled, tokenized)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [tmp_path / "project", TESTS.parent])),
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    }
    (tmp_path / "cluster").mkdir()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with Cluster(tmp_path / "cluster", environment, RULES).serving() as cluster:
        yield cluster


def test_a_backfill_over_20_batches_on_4_pods_gives_the_snapshot_of_one_machine(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.num_places = 4
    project = projects.create(tmp_path / "project", rows=1, **ONE_FILE_EACH)
    deliver(project, 20)
    launcher = {
        "service_account_name": "dagster",
        "job_image": POD_IMAGE,
        "job_namespace": NAMESPACE,
        "dagster_home": str(project.home),
        "instance_config_map": "dagster-instance",
        "load_incluster_config": False,
        "kubeconfig_file": str(cluster.kubeconfig),
        # Else a run that fails is a pod that succeeds.
        "fail_pod_on_run_failure": True,
    }
    chosen = {
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher},
        # All runs are launched at once; the cluster lets them wait until there is a place.
        "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
        "telemetry": {"enabled": False},
    }
    (project.home / "dagster.yaml").write_text(yaml.safe_dump(chosen))
    use_case = project.use_case()
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        store = open_store(use_case, instance)
        names = cut(use_case, store)
        instance.add_dynamic_partitions(f"{use_case.name}/batch", names)
        command = [
            "job",
            "backfill",
            "--job",
            f"{use_case.name}_ingest",
            "--all",
            "--noprompt",
            "--workspace",
            "workspace.yaml",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "dagster", *command],
            cwd=project.root,
            env=project.env(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ended = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
        wait_for(
            lambda: len(names) == len([run for run in instance.get_runs() if run.status in ended]),
            "all runs ended",
            3600,
        )
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        assert (len(names), len(cluster.created), cluster.most_at_once) == (20, 20, 4)
    assert ingestion.done(store, use_case) == set(names)
    there = snapshot_of(use_case, store)
    assert (
        there.content_digest == snapshot_on_one_machine(use_case, Store(str(tmp_path / "one"))).content_digest
    )


def ingest_there(
    project: projects.Project, section: dict[str, Any], s3: s3_servers.S3Server, bucket: str
) -> tuple[UseCase, Store, list[str]]:
    """Run the job `ingest` for each batch of a project whose documents and store are in a bucket, with its
    workload where the section says.

    Returns:
        The use case, its store, and the names of the batches; each is what the job made there, and the run
        only found.
    """
    project.configure(
        documents={**ONE_FILE_EACH["documents"], "path": f"s3://{bucket}/documents"},
        compute={"ingestion": {**section, "folder": str(project.root)}},
        # Of so few rows.
        snapshot={"min_rows_per_label": 1},
        store=f"s3://{bucket}/store",
    )
    # What is in the folder of a bucket's name is in the bucket.
    shutil.copytree(project.documents, s3.make_bucket(bucket) / "documents")
    use_case = project.use_case()
    with dg.DagsterInstance.local_temp(str(project.home)) as instance:
        store = open_store(use_case, instance)
        names = cut(use_case, store)
        instance.add_dynamic_partitions(f"{use_case.name}/batch", names)
        defs = FullFineTune(use_case).build_defs()
        assets = [each for each in defs.assets or () if isinstance(each, dg.AssetsDefinition)]
        chosen = [each for each in assets if each.keys & {CaseGraph(use_case).key(name) for name in INGEST}]
        resources = dict(defs.resources or {})
        assert all(
            dg.materialize(chosen, instance=instance, resources=resources, partition_key=batch).success
            for batch in names
        )
    found = list(launches(store, use_case.name))
    assert {(launch.launcher["kind"], launch.workload, launch.state) for launch in found} == {
        (section["kind"], "ingestion", "succeeded")
    }
    assert len(found) == len(names)
    for batch in names:
        (one,) = [
            each
            for each in store.artifacts(use_case.name, "tokenized_chunks")
            if each.metadata["batch"] == batch
        ]
        signs = [
            each for each in store.artifacts(use_case.name, ingestion.STAGE) if each.inputs["batch"] == batch
        ]
        assert [sign.metadata["made"]["tokenized_chunks"] for sign in signs] == [one.ref], (
            "made there, and found by the run"
        )
    return use_case, store, names


@pytest.mark.parametrize("kind", ["ssh", "kubernetes", "ecs"])
def test_a_batch_as_a_job_of_each_other_launcher_gives_the_snapshot_of_one_machine(
    kind: str, s3_env: s3_servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = projects.create(tmp_path / "project", rows=1)
    deliver(project, 1)
    bucket = f"ingestion-{kind}-{os.getpid()}"
    with place(kind, tmp_path, s3_env, monkeypatch) as section:
        use_case, store, names = ingest_there(project, section, s3_env, bucket)
        assert len(names) == 1
        there = snapshot_of(use_case, store)
        assert (
            there.content_digest
            == snapshot_on_one_machine(use_case, Store(f"s3://{bucket}/one")).content_digest
        )
