"""What two ranks of a training must agree on, shown where one of them is behind or finds something else:
`tests.two_ranks`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank of each scene returned; None of one that failed or waited for ever."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.two_ranks", str(tmp_path_factory.mktemp("scenes"))]
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    print(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ranks_roll_back_to_the_same_checkpoint_whenever_the_history_is_written(played: dict) -> None:
    for found in played["roll_back"]:
        assert (
            found["segments"] == [0, 2] and found["incidents"] == [["roll_back", 5, 2]] and found["steps"] > 5
        )


@pytest.mark.slow
def test_a_stop_that_one_rank_hears_ends_the_scoring_of_all_and_a_checkpoint_is_written(played: dict) -> None:
    for found in played["stop_while_scoring"]:
        assert found["said"].startswith("stopped at step 2 of ") and found["left"] == ["checkpoint-2"]
        assert found["from"] == 2 and found["steps"][0] == 2 and len(found["steps"]) == 2
    first, second = played["stop_while_scoring"]
    assert (first["scored"], second["scored"]) == (["begun", *["begun", "done"] * 2], [])


@pytest.mark.slow
def test_the_first_rank_alone_scores_and_loads_the_best_checkpoint(played: dict) -> None:
    """It alone has the trained model; another one's host may not have that checkpoint, or the folder may be
    gone by then.
    """
    scores = {"best": 1, "scores": [2.0] * 5}
    assert played["keep_best"] == [{**scores, "loaded": ["checkpoint-1"]}, {**scores, "loaded": []}]


@pytest.mark.slow
def test_ranks_that_see_different_checkpoints_do_not_wait_for_each_other(played: dict) -> None:
    for said in played["own_disks"]:
        assert (
            "do not see the same checkpoints (not all of them that of step 1, which the first one sees); put"
            " the store on a disk" in said
        )


@pytest.mark.slow
def test_the_first_rank_interpolates_alone_and_all_know_what_was_chosen(played: dict) -> None:
    first, second = played["wise_ft"]
    assert (first["alone"], second["alone"]) == (["score", "load", "score", "score"], [])
    assert (first["alpha"], first["scores"]) == (second["alpha"], second["scores"])
    assert (
        first["said"] == second["said"] == "stopped on request; run the same command to start this part again"
    )
