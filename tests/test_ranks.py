"""What two ranks of a training must agree on, shown where one of them is behind or finds something else: `tests.two_ranks`."""

from __future__ import annotations

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
def test_ranks_roll_back_to_the_same_checkpoint_whenever_the_course_is_written(played: dict) -> None:
    for found in played["roll_back"]:
        assert found["legs"] == [0, 2] and found["incidents"] == [["roll_back", 5, 2]] and found["steps"] > 5
