"""Takes two snapshots again on Ray clusters of several sizes: `python -m tests.snapshot_on_ray ROOT`.

A process of its own, as a process keeps the engine that it began with. Prints a line of JSON.
"""

import json
import os
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullft_assets import snapshot
from fullft_assets.artifacts import LABELED_EXAMPLES, TOKENIZED_CHUNKS, TRAINING_SNAPSHOT
from fullft_assets.errors import SettingsError
from fullft_assets.settings import ComputeSettings, DataEngineSettings
from fullft_assets.snapshot.near_text.engine import load_engine, use_engine
from fullft_assets.snapshot.near_text.pairs import Texts
from fullft_assets.store import Store
from tests.project import Project

PORT = 23_791
CASE = "letters"
ON_RAY = DataEngineSettings(engine="ray", address=f"ray://127.0.0.1:{PORT}")


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


def take_again(project: Project, store: Store) -> list[str]:
    """Take the snapshot without the last batch, then the one with it, and return their digests."""
    shutil.rmtree(project.home / "store" / CASE / TRAINING_SNAPSHOT)
    use_case = project.use_case()
    settings = use_case.settings.model_copy(update={"compute": ComputeSettings(data=ON_RAY)})
    parts = [
        {part.metadata["batch"]: part for part in store.artifacts(CASE, stage)}
        for stage in (LABELED_EXAMPLES, TOKENIZED_CHUNKS)
    ]
    use_case = replace(use_case, settings=settings)
    first = snapshot.take(store, use_case, *(dict(sorted(part.items())[:-1]) for part in parts))
    return [first.content_digest, snapshot.take(store, use_case, *parts).content_digest]


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
        use_engine(ON_RAY)
    except SettingsError as error:
        return str(error)
    return ""


def main(root: Path) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    project = Project(root, CASE)
    store = Store(str(project.home / "store"))
    cluster = Cluster()
    digests: dict[str, list[str]] = {}
    num_candidates: list[int] = []
    propose_near = Texts._propose_near

    def lose_workers(self: Texts, reference: Any, candidates: Any, similarity: float) -> Any:
        num_candidates.append(len(candidates))
        pairs = propose_near(self, reference, candidates, similarity)
        cluster.kill_all_but_one()
        return pairs

    try:
        for num_workers in (1, 2, 4):
            cluster.grow_to(num_workers)
            digests[f"{num_workers} workers"] = take_again(project, store)
        Texts._propose_near = lose_workers
        digests["three workers lost"] = take_again(project, store)
        facts = {"num_candidates": num_candidates, "is_silent": is_silent(), "refusal": refusal()}
        print(json.dumps({"digests": digests, **facts}))
    finally:
        cluster.nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
