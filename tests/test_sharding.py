"""Two processes share a model from loading to export: `tests.shared_models`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each process of each scene returned."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.shared_models", str(tmp_path_factory.mktemp("scenes"))]
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    print(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["language_model", "classifier"])
def test_processes_load_their_parts_of_the_same_weights(played: dict[str, Any], name: str) -> None:
    [whole], shared = played[name]["whole"], played[name]["shared"]
    for each in shared:
        assert each["digests"] == whole["digests"]
        assert each["part"] <= 1.05 * whole["part"] / 2 + 64, "buffers are whole in each"


def test_they_write_their_parts_while_training_goes_on(played: dict[str, Any]) -> None:
    found = played["checkpoints"]
    planned = [pair for pair in found["straight"]["published"] if pair[0] % 2 == 0]
    assert planned and all(step < taken for step, taken in planned[:-1])
    assert [name for name in found["files"] if name.endswith(".safetensors")] == [
        "part-00000.safetensors",
        "part-00001.safetensors",
    ]


def test_as_many_go_on_with_equal_bits_and_more_take_the_same_steps(played: dict[str, Any]) -> None:
    found = played["checkpoints"]
    straight = found["straight"]
    assert "stopped at step 5 of " in found["stopped"]["stopped"]
    for name, step in (("again", 5), ("damaged", 4)):
        assert found[name]["from"] == step
        assert (found[name]["log"], found[name]["weights"]) == (straight["log"], straight["weights"])
    assert "part-00001.safetensors is damaged; continuing from the checkpoint before" in str(
        found["damaged"]["said"]
    )
    assert found["more"]["from"] == 5
    torch.testing.assert_close(
        torch.tensor(found["more"]["log"]), torch.tensor(straight["log"]), rtol=1e-3, atol=0
    )


def test_they_score_the_base_model_together(played: dict[str, Any]) -> None:
    [whole], shared = played["base_model"]["whole"], played["base_model"]["shared"]
    assert all(each == pytest.approx(whole, rel=1e-5) for each in shared)
