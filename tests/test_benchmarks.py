"""The benchmarks: their table, their clock, and that each step of the graph is counted."""

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.demo import STAGES
from benchmarks.table import Goal, Row, Score
from benchmarks.tick import measure_tick
from benchmarks.timing import timed
from fullft_assets.demos import prepare

FAST = Row("fast", 1.0, "another way", 10.0, Goal("ratio", 0.125), 2.0, 8.0, ["a note"], {"num_texts": 3})


def test_a_row_is_met_only_with_each_of_its_scores() -> None:
    for value, met in ((0.95, "yes"), (0.94, "NO")):
        row = replace(FAST, scores=[Score("recall", value, 0.95), Score("precision", 1.0, 0.97)])
        assert row.cells()[-2:] == (
            f"ratio <= 0.125, recall {value:.3f} >= 0.95, precision 1.000 >= 0.97",
            met,
        )


def test_cpu_time_counts_what_a_command_leaves_behind(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 1.0: pass"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spin!r}])"
    assert timed([sys.executable, "-c", leave], tmp_path / "log").cpu >= 1.0


def test_every_step_of_the_graph_belongs_to_a_stage() -> None:
    from fullft_assets.definitions import defs

    prepare(Path(__file__).parents[1] / "fullft_assets" / "defs" / "licences" / "defs.yaml")
    jobs = [defs().resolve_job_def(f"licences_{name}") for name in ("ingest", "model", "monitor")]
    steps = {node.name.removeprefix("licences__") for job in jobs for node in job.nodes}
    assert steps == {step for names in STAGES.values() for step in names}


def test_a_tick_cuts_every_file_and_then_nothing(tmp_path: Path) -> None:
    row = measure_tick(tmp_path / "scratch", tmp_path, num_files=60)
    assert row.details["num_requests"] == 1
    assert set(row.details["ticks"]["ours"]) == {"all new", "all cut", "quiet"}
    assert row.ours == max(row.details["ticks"]["ours"].values())
