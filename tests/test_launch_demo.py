"""The licences, small, through every launcher: the snapshot, the weights and the scores are those that
`local` makes.

Control plane, store and workloads are real. Clusters and AWS are doubles that execute, the SSH server and the
S3 server are real ones.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets.component import FullFineTune
from fullft_assets.launch import kubernetes, records
from fullft_assets.launch.ecs import EcsLauncher
from fullft_assets.launch.sagemaker import SageMakerLauncher
from fullft_assets.resources import driver, latest, open_store
from tests import kubernetes_double as pods, project as projects, test_launch_ecs, test_launch_sagemaker
from tests.ecs_double import Ecs
from tests.launch_scenes import serving
from tests.machine import ARITHMETIC, set_environment
from tests.prepared import write_tiny_model
from tests.s3_server import S3Server
from tests.sagemaker_double import SageMaker
from tests.ssh_server import SshServer
from tests.test_graph import CASE, INGEST, PLANNING

pytestmark = pytest.mark.long

#: `isolated` = SageMaker's containers without a network.
KINDS = ("local", "ssh", "kubernetes", "sagemaker", "isolated", "ecs")
TRAINING = {"learning_rate": 1e-3, "precision": "fp32"}


@contextmanager
def place(kind: str, root: Path, s3: S3Server, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Start what a launcher needs, and yield its section of the YAML."""
    patch.setattr(driver, "RETRY_SECONDS", 0.1)
    variables = {
        **s3.env,
        "FULLFT_CACHE": str(root / "their_cache"),
        "HF_HUB_OFFLINE": "1",
        **ARITHMETIC,
    }
    with ExitStack() as stack:
        if kind == "local":
            yield {}
        elif kind == "ssh":
            (root / "ssh").mkdir(mode=0o700)
            server = SshServer(root / "ssh", variables)
            server.start()
            stack.callback(server.cut)
            yield server.settings()
        elif kind == "kubernetes":
            patch.setattr(kubernetes, "_LOOK_SECONDS", 0.1)
            (root / "cluster").mkdir()
            environment = {
                **variables,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "HOME": str(root),
            }
            cluster = stack.enter_context(pods.Cluster(root / "cluster", environment, pods.role()).serving())
            patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
            chosen = {
                "namespace": pods.NAMESPACE,
                "context": "double",
                "image": pods.IMAGE,
                "python": sys.executable,
                "gpus": False,
            }
            yield {"kind": kind, "folder": str(root), "grace_seconds": 20, **chosen}
        else:
            sagemaker = (SageMaker, SageMakerLauncher, test_launch_sagemaker)
            double, launcher, module = {
                "sagemaker": sagemaker,
                "isolated": sagemaker,
                "ecs": (Ecs, EcsLauncher, test_launch_ecs),
            }[kind]
            # Its name is a bucket of the server that all tests of a process share.
            service = root / f"service-{kind}-{secrets.token_hex(4)}"
            service.mkdir()
            stack.enter_context(serving(double, launcher, s3, service, patch))
            yield {**module.SETTINGS, "folder": str(root)} | (
                {"network_isolation": True} if kind == "isolated" else {}
            )


def made(kind: str, root: Path, s3: S3Server) -> dict[str, Any]:
    """Run the whole graph of a project whose workloads run there; return what must not depend on where they
    ran.
    """
    with pytest.MonkeyPatch.context() as patch, place(kind, root, s3, patch) as launcher:
        # An evaluation that reads what another machine made must fetch it from the store.
        patch.setenv("FULLFT_CACHE", str(root / "our_cache"))
        write_tiny_model(root / "model")
        project = projects.create(
            root,
            CASE,
            base_model="model",
            store=f"s3://{s3.make_bucket(f'demo-{kind}').name}/fullft",
            **{"planning": {"min_predicted_gain": -1}, "training": TRAINING, "launcher": launcher},
        )
        loaded = FullFineTune(project.use_case()).build_defs()
        job = dg.Definitions.merge(
            loaded, dg.Definitions(executor=dg.in_process_executor)
        ).resolve_implicit_global_asset_job_def()
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            context = dg.build_sensor_context(instance=instance, resources=loaded.resources)
            (request,) = loaded.resolve_sensor_def(f"{CASE}_new_documents")(context).run_requests
            instance.add_dynamic_partitions(f"{CASE}/batch", [request.partition_key])
            whole = (
                "training_snapshot",
                *PLANNING,
                "finetuned_checkpoint",
                "evaluation_report",
                "champion_model",
            )
            for assets, batch in ((INGEST, request.partition_key), (whole, None)):
                keys = [dg.AssetKey([CASE, asset]) for asset in assets]
                assert job.execute_in_process(
                    asset_selection=keys, partition_key=batch, instance=instance
                ).success
            store = open_store(project.use_case(), instance)
        found = {asset: latest(store, CASE, asset) for asset in (*whole[:-1],)}
        launched = list(records.launches(store, CASE))
        assert {each.launcher["kind"] for each in launched} == {launcher.get("kind", "local")}
        assert {each.workload for each in launched} == {
            "planning",
            "training",
            "evaluation",
        }
        weights = store.folder(found["finetuned_checkpoint"]) / "model/model.safetensors"
        report = found["evaluation_report"].metadata
        return {
            "snapshot": found["training_snapshot"].content_digest,
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "scores": {
                **{name: report[name] for name in ("macro_f1", "accuracy")},
                "tfidf": report["scores"]["tfidf"]["macro_f1"],
            },
        }


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, s3_server.env)
        return made("local", tmp_path_factory.mktemp("local"), s3_server)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_demo_makes_there_what_it_makes_here(
    kind: str, local: dict[str, Any], tmp_path: Path, s3_env: S3Server
) -> None:
    assert made(kind, tmp_path, s3_env) == local
