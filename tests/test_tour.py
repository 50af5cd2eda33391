"""`fullft tour`: its project, the whole tour as a newcomer sees it, and that Ctrl-C leaves no process
behind.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fullft_assets.checking.validation import load_use_case
from fullft_assets.demos.tour import CASE, NUM_USUAL, TourProject
from fullft_assets.errors import SettingsError
from tests.machine import ROOT, processes_with

#: What the tour says, in this order; times and numbers of rows are left out.
LINES = (
    r"Dagster's UI is open: http://127.0.0.1:\d+",
    "STEP 1 of 7: 600 labelled documents are there",
    "release: a new champion: ",
    "STEP 2 of 7: 6 windows of 60 production documents were read",
    "their verdicts: " + ", ".join(["warming_up"] * NUM_USUAL),
    "STEP 3 of 7: ",
    "the verdicts now: .*, alarm, confirmed",
    "STEP 4 of 7: ",
    "decision: request_labels: drift is confirmed since .* but only 0 of 40 new labelled examples",
    "STEP 5 of 7: 200 labelled tags arrive",
    r"decision: retrain: drift is confirmed since .* and \d+ new labelled examples are there to learn from",
    "STEP 6 of 7: The sensor launched a training",
    "release: a new champion: ",
    "STEP 7 of 7: ",
    "That was the loop",
    "No process of the tour is left. To remove it: rm -r ",
)


def start(folder: Path) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DAGSTER_HOME": str(folder.parent / "of_the_user"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fullft_assets.cli", "tour", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )


def test_project_is_valid_and_never_overwrites_a_folder(tmp_path: Path) -> None:
    project = TourProject(tmp_path / "a tour: 'mine'")
    project.write()
    load_use_case(project.defs / CASE / "defs.yaml")
    assert len(list((project.root / "data" / "production").iterdir())) == NUM_USUAL
    with pytest.raises(SettingsError, match="is already there"):
        project.write()


@pytest.mark.long
def test_tour_takes_every_step_and_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "tour"
    tour = start(folder)
    output, _ = tour.communicate(timeout=3_600)
    assert tour.returncode == 0, output
    at = 0
    for line in LINES:
        found = re.search(line, output[at:])
        assert found, f"not said, or not in this order: {line}\n{output}"
        at += found.end()
    assert {"drift", "decision_needed"} <= set(re.findall(r"ALERT received: (\w+):", output))
    assert processes_with("DAGSTER_HOME", folder / "home") == [] and not (tmp_path / "of_the_user").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_stopped_tour_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "tour"
    tour = start(folder)
    # By then the services run, and `fullft run` has launched the first run.
    while "raw_documents done" not in (line := tour.stdout.readline()):
        assert line, "the tour ended"
    assert len(processes_with("DAGSTER_HOME", folder / "home")) > 3
    os.kill(tour.pid, number)
    rest, _ = tour.communicate(timeout=300)
    assert tour.returncode == 130 and "The tour was stopped." in rest, rest
    time.sleep(1)
    assert processes_with("DAGSTER_HOME", folder / "home") == []
