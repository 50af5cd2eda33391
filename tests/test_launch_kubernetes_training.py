"""Real trainings through the launcher `kubernetes` make what they make through `local`: in one pod, in two,
and after an eviction.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file

from fullft_assets.launchers import Launcher, driver, kubernetes
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.launchers.kubernetes import KubernetesLauncher
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.settings import KubernetesLauncherSettings, LauncherSettings
from fullft_assets.store import Manifest
from tests.kubernetes_double import IMAGE, NAMESPACE, Cluster
from tests.prepared import Prepared, prepare
from tests.test_launch_kubernetes import role

STAGE = "finetuned_checkpoint"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    training = {
        "checkpoint_every_steps": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "micro_batch_size": 4,
    }
    return prepare(tmp_path_factory.mktemp("kubernetes"), tiny=True, training=training)


@pytest.fixture
def cluster(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(kubernetes, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(driver, "RETRY_SECONDS", 0.1)
    environment = {**prepared.project.env(), "PYTHONUNBUFFERED": "1", "FULLFT_CACHE": str(tmp_path / "cache")}
    with Cluster(tmp_path, environment, role()).serving() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


def there(**changes: object) -> KubernetesLauncher:
    settings = {
        "kind": "kubernetes",
        "namespace": NAMESPACE,
        "context": "double",
        "image": IMAGE,
        "python": sys.executable,
    }
    return KubernetesLauncher(
        KubernetesLauncherSettings.model_validate(settings | {"gpus": False, "grace_seconds": 60} | changes)
    )


def trained(prepared: Prepared, key: str, chosen: Launcher) -> Manifest:
    job = prepared.job(STAGE, key)
    job = job.model_copy(update={"settings": job.settings.model_copy(update={"launcher": chosen.settings})})
    made: list[Manifest] = []

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        made.append(LaunchDriver(lambda _: chosen).run(context, "training", job, prepared.store))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([checkpoint], instance=instance)
    return made[0]


def assert_same(prepared: Prepared, key: str, found: Manifest, processes: int = 1) -> None:
    """Compare the weights with those of a training through `local`."""
    expected = trained(prepared, f"{key}-here", LocalLauncher(LauncherSettings(processes=processes)))
    weights = [
        load_file(prepared.store.folder(each) / "model" / "model.safetensors") for each in (expected, found)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert [name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])] == []


@pytest.mark.slow
def test_training_in_a_pod_makes_the_weights_that_it_makes_here(cluster, prepared):
    assert_same(prepared, "one", trained(prepared, "one", there()))
    assert cluster.jobs == {} and len(cluster.created) == 1


@pytest.mark.long
def test_training_in_two_pods_makes_the_weights_of_two_processes(cluster, prepared):
    found = trained(prepared, "two", there(processes=2, nodes=2))
    assert_same(prepared, "two", found, processes=2)
    (job,) = cluster.created
    assert (job["spec"]["completions"], job["spec"]["template"]["spec"]["subdomain"]) == (2, "fullft-pods")


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.fault("spot capacity is taken away", "kubernetes")
def test_an_evicted_training_goes_on_from_its_checkpoint(cluster, prepared, nodes):
    chosen, key, evicted = there(processes=nodes, nodes=nodes), f"evicted-{nodes}", []
    folder = prepared.store.work_folder(prepared.use_case.name, STAGE, key)

    def poll(name: str, wait_seconds: float = 0.0):
        if not evicted and list(folder.glob("checkpoint-*")):
            evicted.append(name)
            cluster.evict(name)
        return KubernetesLauncher.poll(chosen, name, min(wait_seconds, 0.2))

    chosen.poll = poll
    found = trained(prepared, key, chosen)
    assert found.metadata["resumed_from_step"] > 0 and len(evicted) == 1 and len(cluster.created) == 2
    assert_same(prepared, key, found, processes=nodes)
