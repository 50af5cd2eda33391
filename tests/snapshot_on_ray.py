"""Takes two snapshots again on Ray clusters of several sizes: `python -m tests.snapshot_on_ray ROOT`; or the
first on one that is made for it: `python -m tests.snapshot_on_ray ROOT made`.

A process of its own, as a process keeps the engine that it began with. Prints a line of JSON.
"""

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from fullft_assets import snapshot
from fullft_assets.artifacts import LABELED_EXAMPLES, TOKENIZED_CHUNKS, TRAINING_SNAPSHOT
from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.settings import ComputeSettings, DataEngineSettings
from fullft_assets.snapshot.near_text.engine import _use, load_engine, searched
from fullft_assets.snapshot.near_text.pairs import Texts
from fullft_assets.store import Store
from tests import kubernetes_double
from tests.machine import free_port
from tests.project import Project

PORT = 23_791
CASE = "letters"
ON_RAY = DataEngineSettings(engine="ray", address=f"ray://127.0.0.1:{PORT}")


class KubeRay(kubernetes_double.Cluster):
    """An API server with KubeRay, whose clusters are of this machine."""

    def _answers(self) -> dict[tuple[str, str], Any]:
        job = {"rayClusterName": "cluster", "jobDeploymentStatus": "Running"}
        return {
            ("rayjobs", "create"): lambda _, __, body: self._make(body),
            ("rayjobs/status", "get"): lambda *_: (200, {"status": job}),
            ("rayclusters", "get"): lambda *_: (200, {}),
            ("rayclusters/status", "get"): lambda *_: (200, {"status": self._state()}),
            ("rayjobs", "delete"): lambda name, *_: self._remove(name),
        }

    def _make(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.created.append(body)
        (workers,) = body["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        command = [
            f"{Path(sys.executable).parent}/ray",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
        ]
        command += [f"--ray-client-server-port={PORT}", f"--num-cpus={workers['replicas']}"]
        self.head = subprocess.Popen(
            [*command, f"--port={free_port()}"], start_new_session=True, stdout=sys.stderr
        )
        return 201, body

    def _state(self) -> dict[str, Any]:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", PORT)).close()
            ports = {"client": f"{PORT}", "dashboard": "8265"}
            return {
                "head": {"serviceIP": "127.0.0.1", "serviceName": "head"},
                "endpoints": ports,
                "state": "ready",
            }
        return {"state": "pending"}

    def _remove(self, name: str) -> tuple[int, Any]:
        assert name == self.created[-1]["metadata"]["name"]
        os.killpg(self.head.pid, signal.SIGKILL)
        self.head.wait()
        return 200, {}


class Cluster:
    """A head without cores, and workers of one core each, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": PORT}
        self.nodes = RayCluster(initialize_head=True, head_node_args={**head, "object_store_memory": 2**27})
        self.workers: list[Any] = []

    def grow_to(self, num_workers: int) -> None:
        while len(self.workers) < num_workers:
            self.workers.append(self.nodes.add_node(num_cpus=1, object_store_memory=2**27))

    def kill_all_but_one(self) -> None:
        while len(self.workers) > 1:
            self.nodes.remove_node(self.workers.pop(0), allow_graceful=False)


def take_again(project: Project, store: Store, engine: DataEngineSettings = ON_RAY) -> Iterator[str]:
    """Take the snapshot without the last batch, then the one with it, and yield the digest of each."""
    shutil.rmtree(project.home / "store" / CASE / TRAINING_SNAPSHOT)
    use_case = project.use_case()
    settings = use_case.settings.model_copy(update={"compute": ComputeSettings(data=engine)})
    parts = [
        {part.metadata["batch"]: part for part in store.artifacts(CASE, stage)}
        for stage in (LABELED_EXAMPLES, TOKENIZED_CHUNKS)
    ]
    use_case = replace(use_case, settings=settings)
    yield snapshot.take(store, use_case, *(dict(sorted(part.items())[:-1]) for part in parts)).content_digest
    yield snapshot.take(store, use_case, *parts).content_digest


def is_silent() -> bool:
    """Return whether the engine sends nothing on a machine of the cluster, on which rows were compared."""
    import ray

    @ray.remote
    def sends_nothing() -> bool:
        from daft import scarf_telemetry

        return scarf_telemetry.opted_out()

    return load_engine().get_or_infer_runner_type() == "ray" and ray.get(sends_nothing.remote())


def refusal() -> str:
    """Return what is said of a cluster whose machines have another Python than this one."""
    platform.python_version = lambda: "3.9.0"
    try:
        _use(str(ON_RAY.address))
    except SettingsError as error:
        return str(error)
    return ""


def loss() -> tuple[str, list[str]]:
    """Return what is said of a search on a cluster that is gone, and the processes of one that was started in
    its place.
    """
    try:
        searched(lambda: load_engine().from_pydict({"a": [1]}).to_pydict())
    except WorkloadError as error:
        return str(error), [child.name() for child in psutil.Process().children()]
    raise AssertionError("a search without a cluster")


def take_on_a_made_cluster(project: Project, store: Store) -> dict[str, Any]:
    """Return the first snapshot's digest, what KubeRay was asked for, and what is refused without rights."""
    manifest = {
        "kind": "RayCluster",
        "metadata": {"namespace": kubernetes_double.NAMESPACE},
        "spec": {"workerGroupSpecs": [{"replicas": 2}]},
    }
    (project.root / "cluster.yaml").write_text(json.dumps(manifest))
    snapshots = take_again(project, store, DataEngineSettings(engine="ray", address="cluster.yaml"))
    with KubeRay(project.root, {}, kubernetes_double.role("fullft-ray")).serving() as api:
        os.environ["KUBECONFIG"] = str(api.kubeconfig)
        facts = {"digest": next(snapshots), "created": api.created, "code": api.head.poll()}
        api.rules = []
        try:
            next(snapshots)
        except WorkloadError as error:
            return {**facts, "refusal": str(error)}
    raise AssertionError("an account without rights made a cluster")


def main(root: Path, *options: str) -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "2"}
    project = Project(root, CASE)
    store = Store(str(project.home / "store"))
    if options:
        print(json.dumps(take_on_a_made_cluster(project, store)))
        return
    cluster = Cluster()
    digests: dict[str, list[str]] = {}
    num_pairs = [0]
    propose_near = Texts._propose_near

    def lose_workers(self: Texts, reference: Any, candidates: Any, *more: Any) -> Any:
        num_pairs[-1] += len(reference) * len(candidates)
        pairs = propose_near(self, reference, candidates, *more)
        cluster.kill_all_but_one()
        return pairs

    try:
        for num_workers in (1, 2, 4):
            cluster.grow_to(num_workers)
            digests[f"{num_workers} workers"] = [*take_again(project, store)]
        Texts._propose_near = lose_workers
        snapshots = take_again(project, store)
        digests["three workers lost"] = [next(snapshots)]
        num_pairs.append(0)
        digests["three workers lost"] += snapshots
        facts = {"num_pairs": num_pairs, "is_silent": is_silent(), "refusal": refusal()}
    finally:
        cluster.nodes.shutdown()
    print(json.dumps({"digests": digests, **facts, "loss": loss()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
