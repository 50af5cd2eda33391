"""Snapshots whose rows are compared on a Ray cluster."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fullft_assets import ray_clusters
from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.snapshot.near_text import engine
from tests import kubernetes_double
from tests.project import Project
from tests.snapshot_on_ray import KubeRay
from tests.test_erasure_batches import Batches


def retake(*arguments: object) -> dict[str, Any]:
    """Return what a process prints that takes two snapshots again."""
    command = [sys.executable, "-m", "tests.snapshot_on_ray", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_snapshot_is_the_same_on_any_number_of_workers_and_without_one_of_them(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    draw = random.Random(1)
    words = [f"word{number}" for number in range(2_000)]
    texts = [" ".join(draw.choices(words, k=40)) for _ in range(900)]
    near = [f"{text} indeed" for text in texts[:200]]
    batches = Batches(tmp_path)
    for number in range(3):
        delivery = [
            {"text": text, "kind": "ab"[n % 2]} for n, text in enumerate([*texts, *near]) if n % 3 == number
        ]
        batches.deliver(f"delivery-{number}.jsonl", delivery)
    native = batches.take()
    assert native.metadata["left_out"]["train rows near a test row"] > 10
    batches.deliver("more.jsonl", [{"text": f"{text} again", "kind": "a"} for text in texts[:40]])
    native_digests = [native.content_digest, batches.take().content_digest]
    told, of_made = (retake(batches.project.root, *options) for options in ((), ("made",)))
    assert list(told["digests"].values()) == 4 * [native_digests]
    assert of_made["digest"] == native_digests[0]
    (job,) = of_made["created"]
    assert job["spec"]["shutdownAfterJobFinishes"] and of_made["code"] == -signal.SIGKILL
    assert re.match(
        r"compute.data.address: RayJob \S+/fullft-\w+: Forbidden; .*fullft-ray", of_made["refusal"]
    )
    first, second = told["num_pairs"]
    assert second < 0.3 * first, "the second snapshot compares what is new"
    assert told["is_silent"]
    line, others = told["loss"]
    assert line.startswith("compute.data: the Ray cluster failed 3 times: the connection to it was lost; ")
    assert not others, "a cluster was started in place of the lost one"
    assert re.match(
        r"compute.data: \S+ of the Ray cluster has .*, and this machine .*3\.9\.0", told["refusal"]
    )


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    pytest.importorskip("ray")
    with pytest.raises(SettingsError, match="^compute.data.address: ray://127.0.0.1:9 .*refused"):
        engine._use("ray://127.0.0.1:9")


def test_a_search_is_made_again_where_a_machine_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.load_engine(), "get_or_infer_runner_type", lambda: "ray")
    monkeypatch.setattr(ray_clusters, "is_connected", lambda: True)
    answers = [ConnectionError("the node died"), 7]

    def search() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert engine.searched(search) == 7
    answers.extend(ConnectionError(f"lost\nnode {number} died") for number in range(9))
    with pytest.raises(WorkloadError, match="^compute.data: .* failed 3 times: lost node 2 died; "):
        engine.searched(search)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("kind: Deployment\nmetadata: {namespace: jobs}\nspec: {replicas: 1}", "kind: Deployment"),
        ("kind: RayCluster\nspec: {}", "'metadata'"),
        ("kind: RayCluster\nmetadata: {namespace: }\nspec: {}", "kind: RayCluster"),
        ("a: {\nb: [", "while parsing a flow"),
    ],
)
def test_a_file_that_is_no_cluster_is_one_line_of_the_check(
    content: str | None, reason: str, tmp_path: Path
) -> None:
    pytest.importorskip("dagster_ray")
    project = Project(tmp_path, "letters")
    project.configure(compute={"data": {"engine": "ray", "address": str(tmp_path / "cluster.yaml")}})
    if content is not None:
        (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(
        SettingsError, match=f"defs.yaml:.*compute.data.address: .*cluster.yaml is no RayCluster .*{reason}"
    ) as refused:
        project.use_case()
    assert str(refused.value).count("\n") == 0


def test_a_cluster_that_cannot_be_removed_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dagster_ray")
    # As in a process that used Kubernetes before: this module reads KUBECONFIG as it is imported.
    pytest.importorskip("kubernetes.config")

    class Ready(KubeRay):
        def _make(self, body: dict[str, Any]) -> tuple[int, Any]:
            return 201, body

        def _state(self) -> dict[str, Any]:
            ports = {"client": "10001", "dashboard": "8265"}
            return {
                "head": {"serviceIP": "10.0.0.7", "serviceName": "head"},
                "endpoints": ports,
                "state": "ready",
            }

        def _remove(self, name: str) -> tuple[int, Any]:
            return 500, {"message": "etcd is full"}

    manifest = tmp_path / "cluster.yaml"
    manifest.write_text(
        f"kind: RayCluster\nmetadata: {{namespace: {kubernetes_double.NAMESPACE}}}\nspec: {{rayVersion: '2'}}"
    )
    with Ready(tmp_path, {}, kubernetes_double.role("fullft-ray")).serving() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        with ray_clusters.made_cluster(manifest) as address:
            assert address == "ray://10.0.0.7:10001"
    assert "was not removed" in caplog.text and "ends after a day" in caplog.text
