"""`fullft jobs`: what is on record, and what the backends say of it."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fullft_assets.cli import main
from fullft_assets.cli.summary import job_lines
from fullft_assets.launchers import LaunchSpec, records
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.launchers.records import Launch
from fullft_assets.settings import LauncherSettings, UseCaseSettings
from fullft_assets.store import Store
from tests.machine import lacks
from tests.project import Project

SETTINGS = {"base_model": "none", "documents": {"path": "none"}, "examples": {"label": "none"}}


def launched(store: Store, stage: str, hours_ago: float, **changes: Any) -> Launch:
    given = {
        "case": "letters",
        "stage": stage,
        "key": "k",
        "workload": "training",
        "launcher": {"kind": "local"},
        "place": "elsewhere",
    }
    launch = Launch(
        **{
            **given,
            "run_id": "0123456789",
            "job": [],
            "submitted_at": time.time() - hours_ago * 3600,
            **changes,
        }
    )
    records.claim(store, launch, lambda _: True)
    return launch


def lines(store: Store, *, with_ended: bool = False) -> list[list[str]]:
    return [
        line.split("  ")
        for line in job_lines(
            SimpleNamespace(name="letters", settings=UseCaseSettings.model_validate(SETTINGS)),
            store,
            with_ended=with_ended,
        )
    ]


def test_time_rest_of_it_and_cost_of_what_runs_are_shown_newest_first(tmp_path: Path):
    store = Store(str(tmp_path))
    first = launched(
        store, "finetuned_checkpoint", 2.0, launcher={"kind": "local", "max_hours": 8.0}, hourly_usd=3.0
    )
    launched(store, "evaluation_report", 0.5)
    ended = launched(store, "pilot_run", 4.0)
    records.end(store, ended, "failed", "a.csv:3: no label", "data")
    evaluation, training = lines(store)
    assert evaluation[0] == "letters/evaluation_report" and evaluation[4] == "0.50 h, price unknown"
    assert training[:3] == ["letters/finetuned_checkpoint", "running (on record)", "local elsewhere"]
    assert training[4:] == [
        "2.00 h, at most 6.00 h more beside its wait for GPUs, 6.00 USD",
        "run 01234567",
        first.name_in(store),
    ]
    assert [line[1] for line in lines(store, with_ended=True)] == ["running (on record)"] * 2 + [
        "failed (a.csv:3: no label [data])"
    ]
    launched(store, "pilot_run", 1.0, hourly_usd=2.0)
    again = next(line for line in lines(store) if line[0] == "letters/pilot_run")
    assert again[4] == "1.00 h, 4.00 h in attempts before it, 10.00 USD"


def test_the_backend_says_whether_a_job_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, launcher = Store(str(tmp_path / "store")), LocalLauncher(LauncherSettings(grace_seconds=0))
    launch = launched(store, "finetuned_checkpoint", 0.0, place=launcher.place)
    assert lines(store)[0][1] == "ended, gone (nobody follows it)"
    (tmp_path / "idle.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)]))
    launcher.submit(LaunchSpec(launch.name_in(store), "idle", (), watched=(os.getpid(),)))
    assert lines(store)[0][1] in ("pending", "running")
    launcher.stop(launch.name_in(store))
    unreachable = {"kind": "ssh", "host": "127.0.0.1", "options": {"Port": 1}}
    launched(store, "pilot_run", 0.0, launcher=unreachable, place="127.0.0.1:1")
    launched(store, "baselines", 0.0, launcher={"kind": "local", "grace_seconds": -1})
    said = [line[1] for line in lines(store)]
    assert any(
        line.startswith("unknown (launcher.grace_seconds on record is not one of this version: ")
        for line in said
    )
    if shutil.which("ssh") is None:
        lacks("install Debian's `openssh-client`")
    assert any(line.startswith("unknown (ssh 127.0.0.1:1: ") for line in said)


def test_the_command_of_a_use_case_that_has_not_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DAGSTER_HOME", str(project.home))
    assert main(["jobs", "letters", "--defs", str(project.yaml_path.parents[1])]) == 0
    assert capsys.readouterr().out == "letters: nothing runs; --all lists what has ended\n"
