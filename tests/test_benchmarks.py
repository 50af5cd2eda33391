"""The benchmarks: their table, their clock, and that both sides of the demo still do the same work."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import near_duplicates
from benchmarks import preparation as preparation_bench
from benchmarks.demo import BETWEEN, STAGES, Demo, Side, Subject, covered, measure_demo, measure_second_run
from benchmarks.frozen import freeze
from benchmarks.packing import measure_packing
from benchmarks.preparation import Preparation
from benchmarks.table import Goal, Row, Score, render, write
from benchmarks.tick import measure_tick
from benchmarks.timing import timed
from fullft_assets import documents, examples
from fullft_assets.demos import licences, prepare
from tests import project as projects

FAST = Row("fast", 1.0, "another way", 10.0, Goal("ratio", 0.125), 2.0, 8.0, ["a note"], {"num_texts": 3})
SLOW = Row("slow", 61.0, "the first run", 600.0, Goal("ours", 60))


def test_table_shows_times_goal_and_notes() -> None:
    header, _, fast, note, slow = render([FAST, SLOW]).splitlines()
    assert header.split() == [
        "name",
        "ours",
        "instead",
        "of",
        "theirs",
        "ratio",
        "CPU",
        "ratio",
        "goal",
        "met",
    ]
    assert fast.split() == [
        "fast",
        "1.000",
        "s",
        "another",
        "way",
        "10.0",
        "s",
        "0.1",
        "0.25",
        "ratio",
        "<=",
        "0.125",
        "yes",
    ]
    assert note.strip() == "a note"
    assert slow.split() == [
        "slow",
        "61.0",
        "s",
        "the",
        "first",
        "run",
        "600.0",
        "s",
        "0.102",
        "ours",
        "<=",
        "60",
        "s",
        "NO",
    ]


def test_a_row_is_met_only_with_each_of_its_scores() -> None:
    for value, met in ((0.95, "yes"), (0.94, "NO")):
        row = replace(FAST, scores=[Score("recall", value, 0.95), Score("precision", 1.0, 0.97)])
        assert row.cells()[-2:] == (
            f"ratio <= 0.125, recall {value:.3f} >= 0.95, precision 1.000 >= 0.97",
            met,
        )


def test_json_has_the_rows_of_the_table(tmp_path: Path) -> None:
    write([FAST, SLOW], tmp_path / "build" / "bench.json")
    fast, slow = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert (
        fast["name"] == "fast"
        and fast["ratio"] == 0.1
        and fast["cpu_ratio"] == 0.25
        and fast["met"]
        and fast["num_texts"] == 3
    )
    assert slow["goal"] == "ours <= 60 s" and not slow["met"] and slow["cpu_ratio"] is None


def test_cpu_time_counts_what_a_command_leaves_behind(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 1.0: pass"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spin!r}])"
    assert timed([sys.executable, "-c", leave], tmp_path / "log").cpu >= 1.0


def test_failing_command_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit status 3.*(?s:.*)no such model"):
        timed([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], tmp_path / "log")


def test_steps_side_by_side_count_once() -> None:
    assert covered([(10.0, 14.0), (0.0, 3.0), (2.0, 5.0), (2.5, 4.0)]) == 9.0
    assert covered([]) == 0.0


def test_every_step_of_the_graph_belongs_to_a_stage() -> None:
    from fullft_assets.definitions import defs

    prepare(Path(__file__).parents[1] / "fullft_assets" / "defs" / "licences" / "defs.yaml")
    jobs = [defs().resolve_job_def(f"licences_{name}") for name in ("ingest", "model", "monitor")]
    steps = {node.name.removeprefix("licences__") for job in jobs for node in job.nodes}
    assert steps == {step for names in STAGES.values() for step in names}


def test_both_ways_find_the_same_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "NUM_REFERENCE", 400)
    monkeypatch.setattr(near_duplicates, "NUM_CANDIDATES", 1_200)
    reference, candidates = near_duplicates.texts()
    ours, theirs = (way(reference, candidates) for way in near_duplicates.SIDES.values())
    assert len(ours) > 20
    assert len(ours ^ theirs) <= 2  # each way misses a pair in a hundred


def test_both_ways_pack_into_as_many_rows(tmp_path: Path) -> None:
    row = measure_packing(tmp_path, num_lengths=3_000)
    assert row.details["num_rows"]["ours"] == row.details["num_rows"]["loop"] > 500
    assert row.details["fill"] > 0.995
    assert str(row.goal) == "ours <= 2 s"


def test_a_tick_cuts_every_file_and_then_nothing(tmp_path: Path) -> None:
    row = measure_tick(tmp_path / "scratch", tmp_path, num_files=60)
    assert row.details["num_requests"] == 1
    assert set(row.details["ticks"]["ours"]) == {"all new", "all cut", "quiet"}
    assert row.ours == max(row.details["ticks"]["ours"].values())


@pytest.fixture(scope="module")
def preparation(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    root = tmp_path_factory.mktemp("preparation")
    return Preparation(
        root / "scratch", root / "logs", num_documents=1_000, num_in_memory_test=1_200, repeats=1
    )


def test_documents_are_the_same_each_time_and_hold_copies_and_dirt() -> None:
    rows = list(preparation_bench.documents(1_500))
    assert rows == list(preparation_bench.documents(1_500))
    texts = [row.get("text") for row in rows]
    assert 20 < len(texts) - len(set(texts)) < 100
    assert 500 < sum(len(text or "") for text in texts) / len(texts) < 900
    assert sum(row["kind"] not in licences.KINDS or not (row.get("text") or "").strip() for row in rows) > 0


@pytest.mark.slow
@pytest.mark.long
def test_preparation_goes_through_every_stage(preparation: Preparation) -> None:
    row = preparation.measure()
    assert list(row.details["stages"]) == ["cut", "documents", "examples", "chunks", "snapshot"]
    assert row.details["num_documents"] == 1_000
    counts = row.details["counts"]
    assert counts["num_batches"] == 5
    assert 900 < counts["num_valid"] < 1_000, "broken rows are set aside"
    assert counts["num_train_rows"] + counts["num_test_rows"] < counts["num_valid"]
    assert str(row.goal) == "ratio <= 1.3" and row.ratio == row.ours / row.theirs


@pytest.mark.long
def test_one_percent_more_is_measured_against_the_whole(preparation: Preparation) -> None:
    if not preparation.runs:
        preparation.measure()
    row = preparation.measure_one_percent_more()
    assert row.theirs == preparation.runs[0]["full"]["seconds"]
    assert preparation.runs[0]["more"]["num_rows"] == 10
    assert row.ours < row.theirs
    assert not (preparation.documents / "more.jsonl").exists(), "the next run starts from the same files"


@pytest.mark.slow
@pytest.mark.long
def test_preparation_with_rules_on_texts_and_in_memory(preparation: Preparation) -> None:
    checked = preparation.measure_pii_and_language()
    assert str(checked.goal) == "ratio <= 2.2"
    memory, more = preparation.measure_memory()
    assert 0.1 < memory.ours < 2 and memory.as_json()["ours_gib"] == memory.ours
    assert "GiB" in render([memory])
    assert 0 < more.ours < more.theirs and str(more.goal) == "ratio <= 0.05"
    assert not (preparation.scratch / "many").exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Both sides' use case: a small delivery like the demo's, with its dirt."""
    root = tmp_path_factory.mktemp("bench")
    project = projects.create(root, "rules", rows=0)
    shutil.rmtree(root / "data" / "rules")
    licences.write(root / "data" / "rules", max_rules=1_000)
    project.configure(
        documents={"path": "data/rules/documents", "max_batch_files": 2},
        examples={"label": "license-kind", "group": "license-expression", "labels": list(licences.KINDS)},
        snapshot={"max_train_rows": 320, "max_validation_rows": 60},
        # So small a pilot predicts no gain, which would stop our side.
        planning={"min_predicted_gain": -1},
        monitoring={"path": "data/rules/production", "min_window_rows": 20},
    )
    made = Demo(Subject("rules", root / "my_project" / "defs", root), root / "scratch", root / "logs")
    made.environment["OMP_NUM_THREADS"] = "1"
    return made


@pytest.fixture(scope="module")
def plain(demo: Demo) -> Side:
    return demo.run_plain("--rows", "80")


@pytest.mark.slow
def test_plain_script_does_the_stages(demo: Demo, plain: Side) -> None:
    assert set(plain.stages) == set(STAGES) - {"release"}
    assert sum(plain.with_rest().values()) == pytest.approx(plain.timing.wall)
    assert plain.with_rest()[BETWEEN] > 0
    assert plain.num_rows["train"] == 80
    assert 0 < plain.macro_f1 <= plain.accuracy + 0.2
    (output,) = demo.scratch.glob("plain-*")
    assert (output / "report.html").read_text().count("data:image/png") == 5
    assert (output / "model" / "model.safetensors").stat().st_size > 50e6
    verdicts = json.loads((output / "result.json").read_text())["drift"]
    assert {week: len(verdict["p_values"]) for week, verdict in verdicts.items()} == {
        f"week-{number}": 6 for number in range(1, 9)
    }


@pytest.mark.slow
@pytest.mark.long
def test_plain_script_tests_on_the_rows_of_the_snapshot(demo: Demo, plain: Side) -> None:
    settings = projects.load_use_case(demo.subject.yaml_path).settings
    source = documents.Folder(demo.subject.root / settings.documents.path)
    batch = documents.Batch(name="all", files=source.files())
    raw = documents.read_documents(source, batch, settings.documents, settings.examples).table
    valid = examples.examine(raw, settings.examples, "all").valid
    delivered = {file.path: file.mtime_ns for file in batch.files}
    frozen = freeze({"all": valid}, {"all": delivered}, settings.snapshot, settings.seed)
    ours = {row["id"] for row in frozen.index.to_pylist() if row["split"] == "test"}
    (output,) = demo.scratch.glob("plain-*")
    theirs = set(pq.read_table(output / "predictions.parquet")["id"].to_pylist())
    # Of equal texts each side keeps another id.
    assert len(ours ^ theirs) <= 0.03 * len(ours)


@pytest.mark.slow
@pytest.mark.long
def test_demo_row_compares_the_same_work(demo: Demo) -> None:
    row = measure_demo(demo)
    assert row.details["num_rows"]["ours"] == row.details["num_rows"]["plain script"]
    assert list(row.details["stages"]) == [*STAGES, BETWEEN]
    assert sum(stage["ours_seconds"] for stage in row.details["stages"].values()) == pytest.approx(row.ours)
    assert row.cpu_ratio > 0
    again = measure_second_run(demo)
    assert again.theirs == row.ours and again.ours < row.ours
