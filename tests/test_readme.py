"""What the README promises, run as it is written: each command is run by a test, and the demo as a newcomer
runs it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.machine import ROOT, free_port

#: Where each command of the README's shell blocks is run.
RUN_BY = {
    "make run": "test_demo",
    "make ui": "test_demo",
    '.venv/bin/fullft predict licences "Licensed under the Apache License, Version 2.0"': "test_demo",
    '.venv/bin/fullft rollback licences --reason "too many false alarms"': "test_demo",
    '.venv/bin/fullft erase licences ids.txt --reason "request of 2026-11-20"': "test_demo",
    ".venv/bin/fullft clean licences": "test_demo",
    "make test": ".ci/run",
    "make test-all": ".ci/run",
    "make bench": "test_demo (one row), tests/test_benchmarks.py",
}


def shell_commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [
        line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")
    ]


def test_every_command_of_the_readme_is_run_somewhere():
    assert set(shell_commands((ROOT / "README.md").read_text())) == set(RUN_BY)
    assert "make test-all" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(params=["small", pytest.param("as shipped", marks=pytest.mark.long)])
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """This repository, or a copy whose demo trains on fewer and shorter rows: as shipped it takes long on a
    CPU without AMX.
    """
    if request.param == "as shipped":
        return ROOT
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "data", "build", "__pycache__"))
    (copy / ".venv").symlink_to(ROOT / ".venv")
    path = copy / "fullft_assets" / "defs" / "licences" / "defs.yaml"
    source = yaml.safe_load(path.read_text())
    source["attributes"]["chunks"] |= {"max_tokens": 32, "stride": 4}
    source["attributes"]["snapshot"] |= {
        "max_train_rows": 300,
        "max_validation_rows": 100,
        "test_share": 0.04,
        "validation_share": 0.04,
    }
    source["attributes"]["training"] |= {"epochs": 1.5, "learning_rate": 3e-4}
    # So small a pilot predicts no gain, which would stop the model job.
    source["attributes"]["planning"] = {"min_predicted_gain": -1}
    path.write_text(yaml.safe_dump(source))
    return copy


def _environment(checkout: Path) -> dict[str, str]:
    """With the package of this checkout; as shipped on all cores, as a newcomer has it, where other tests
    take one each.
    """
    left_out = "OMP_NUM_THREADS" if checkout == ROOT else ""
    return {
        **{name: value for name, value in os.environ.items() if name != left_out},
        "PYTHONPATH": str(checkout),
    }


def _make(checkout: Path, target: str, home: Path, *more: str, timeout: float = 3_600) -> str:
    done = subprocess.run(
        ["make", target, f"FULLFT_HOME={home}", *more],
        cwd=checkout,
        env=_environment(checkout),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _fullft(checkout: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / ".venv" / "bin" / "fullft"), *arguments],
        cwd=checkout,
        env={**_environment(checkout), "DAGSTER_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_demo(checkout: Path, tmp_path: Path):
    """The demo from nothing to a verdict, a second time, the model tried, and the UI on the same home."""
    home = tmp_path / "home"
    first = _make(checkout, "run", home)
    rows = re.search(r"rows in +([\d,]+) in 3 batches: ([\d,]+) valid, ([\d,]+) quarantined", first)
    total, valid, quarantined = (int(number.replace(",", "")) for number in rows.groups())
    assert total == valid + quarantined == 30_692
    assert quarantined >= 60, "the delivery's dirt; its copies are valid, and excluded from the snapshot"
    report = Path(re.search(r"report +(\S+report\.html)", first)[1])
    found = json.loads((report.parent / "evaluation.json").read_text())
    gain = found["justification"]["gain"]
    # The verdict must follow from the metrics, whatever they are.
    assert (
        "Promoted" in first
        and "is chosen" in first
        and ("fine-tuned model is chosen" in first) == (gain["low"] > 0)
    )
    assert (
        found["scores"]["macro_f1"]["finetuned"]["estimate"]
        > found["scores"]["macro_f1"]["majority"]["estimate"] + 0.3
    )
    assert re.findall(r"drift +\S+-\w+: (\w+);", first) == ["warming_up"] * 6 + ["alarm", "confirmed"], (
        "the last two weeks"
    )

    artifacts = sorted(path for path in (home / "store").rglob("manifest.json"))
    second = _make(checkout, "run", home)
    assert "new_documents: nothing new" in second
    assert sorted(path for path in (home / "store").rglob("manifest.json")) == artifacts, (
        "the second run wrote artifacts again"
    )
    assert str(report) in second

    answer = _fullft(checkout, home, "predict", "licences", "Licensed under the Apache License, Version 2.0")
    assert answer.returncode == 0, answer.stderr
    assert sum(float(line.split("%")[0]) for line in answer.stdout.splitlines()) == pytest.approx(
        100, abs=0.3
    )
    refused = _fullft(checkout, home, "rollback", "licences", "--reason", "too many false alarms")
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    cleaned = _fullft(checkout, home, "clean", "licences")
    assert cleaned.stdout.endswith("nothing was removed; `fullft clean licences --yes` does it\n"), (
        cleaned.stderr
    )
    _check_ui(checkout, home)
    _check_erasure(checkout, home, tmp_path / "ids.txt")
    assert "check" in _make(checkout, "bench", home, "ONLY=check", timeout=300)


def _check_erasure(checkout: Path, home: Path, ids: Path) -> None:
    (snapshot,) = (home / "store" / "licences" / "training_snapshot").glob("*/*/index.parquet")
    index = pq.read_table(snapshot)
    chosen = index["id"].to_pylist()[index["split"].to_pylist().index("train")]
    ids.write_text(f"{chosen}\n")
    done = _fullft(checkout, home, "erase", "licences", str(ids), "--reason", "request of 2026-11-20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 documents erased, 1 ids or groups listed")
    assert "learned from licences/finetuned_checkpoint/" in done.stdout
    (snapshot,) = (home / "store" / "licences" / "training_snapshot").glob("*/*/index.parquet")
    assert chosen not in pq.read_table(snapshot)["id"].to_pylist()


def _heed_signals() -> None:
    """Undo what a shell does to what it starts in the background: SIGINT is ignored there, and Dagster then
    ignores SIGTERM, too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _check_ui(checkout: Path, home: Path) -> None:
    port = free_port()
    ui = subprocess.Popen(
        ["make", "ui", f"FULLFT_HOME={home}"],
        cwd=checkout,
        env={**_environment(checkout), "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_heed_signals,
    )
    try:
        query = json.dumps(
            {"query": "{ runsOrError { ... on Runs { results { jobName status } } } }"}
        ).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", query, {"Content-Type": "application/json"}
        )
        runs: list[dict] = []
        for _ in range(120):
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    runs = json.load(answer)["data"]["runsOrError"]["results"]
                break
            except OSError:
                assert ui.poll() is None, "make ui ended"
        assert {run["jobName"] for run in runs} == {"licences_ingest", "licences_model", "licences_monitor"}
        assert {run["status"] for run in runs} == {"SUCCESS"}
    finally:
        os.killpg(ui.pid, signal.SIGTERM)
        ui.wait(60)
