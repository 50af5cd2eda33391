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

from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.snapshot.near_text import engine
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
        rows = enumerate([*texts, *near])
        delivery = [{"text": text, "kind": "ab"[n % 2]} for n, text in rows if n % 3 == number]
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
    assert re.match(
        r"compute.data: \S+ of the Ray cluster has .*, and this machine .*3\.9\.0", told["refusal"]
    )


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    pytest.importorskip("ray")
    with pytest.raises(SettingsError, match="^compute.data.address: ray://127.0.0.1:9 .*refused"):
        engine._use("ray://127.0.0.1:9")


def test_a_search_is_made_again_where_a_machine_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.load_engine(), "get_or_infer_runner_type", lambda: "ray")
    answers = [ConnectionError("the node died"), 7]

    def search() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert engine.searched(search) == 7
    answers.extend(ConnectionError(f"lost\nnode {number} died") for number in range(9))
    with pytest.raises(WorkloadError, match="^compute.data: .* failed 3 times: node 2 died; "):
        engine.searched(search)
