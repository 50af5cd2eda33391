"""The variants of dagster.yaml, each loaded as a real instance: embedded (SQLite), and shared by several
machines (PostgreSQL and S3).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import postgres_server
from tests.machine import ROOT, lacks
from tests.project import write_files
from tests.s3_server import S3Server

EMBEDDED = ROOT / "dagster.yaml"
SHARED = ROOT / "deploy/dagster/postgres-s3.yaml"

#: What a machine that runs a step does.
WORKER = """
import sys
import dagster as dg

@dg.asset(pool="gpu")
def noisy():
    print("a line of a step's stdout")
    print("a line of its stderr", file=sys.stderr)

with dg.DagsterInstance.get() as instance:
    log = instance.event_log_storage
    print("STORAGE", type(instance.run_storage).__name__, log.supports_global_concurrency_limits)
    result = dg.materialize([noisy], instance=instance)
    events = [event for event in result.all_events if event.event_type_value == "LOGS_CAPTURED"]
    [key] = [event.logs_captured_data.file_key for event in events]
    print("KEY", result.run_id, key)
"""

#: What the webserver, on another machine, knows of it.
READER = """
import sys
import dagster as dg

with dg.DagsterInstance.get() as instance:
    data = instance.compute_log_manager.get_log_data([sys.argv[1], "compute_logs", sys.argv[2]])
    print(type(instance.compute_log_manager).__name__, data.stdout.decode(), data.stderr.decode())
    run = instance.get_run_by_id(sys.argv[1])
    print("RUN", None if run is None else run.status.value)
    print("MATERIALIZED", instance.get_latest_materialization_event(dg.AssetKey("noisy")) is not None)
"""


@pytest.fixture
def postgres() -> Iterator[postgres_server.PostgresServer]:
    if postgres_server.programs() is None:
        lacks("PostgreSQL is missing: apt-get install postgresql")
    if find_spec("dagster_postgres") is None:
        pytest.skip("dagster-postgres is missing: pip install '.[postgres]'")
    with postgres_server.serve() as server:
        yield server


def call(
    program: str, home: Path, settings: dict[str, Any], env: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a program on a machine of its own: with its own Dagster home, which has these settings."""
    write_files(home, {"dagster.yaml": yaml.safe_dump(settings)})
    env = {**os.environ, **env, "DAGSTER_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True
    )


def run_on_two_machines(folder: Path, settings: dict[str, Any], env: dict[str, str]) -> tuple[str, str]:
    """Return what the machine that ran a step printed, and what one that looks at it afterwards did."""
    worker = call(WORKER, folder / "worker", settings, env)
    assert worker.returncode == 0, worker.stderr
    reader = call(READER, folder / "webserver", settings, env, *worker.stdout.split("KEY ")[1].split())
    assert reader.returncode == 0, reader.stderr
    return worker.stdout, reader.stdout


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


class TestShared:
    def test_it_differs_from_the_embedded_settings_only_in_what_machines_share(self) -> None:
        shared = read_yaml(SHARED)
        assert shared.pop("storage").keys() == {"postgres"}
        logs = shared.pop("compute_logs")
        assert logs["class"] == "S3ComputeLogManager" and logs["config"]["local_dir"] == {
            "env": "FULLFT_CACHE"
        }
        assert shared == read_yaml(EMBEDDED)

    def test_another_machine_sees_runs_and_logs(
        self, postgres: postgres_server.PostgresServer, s3_server: S3Server, tmp_path: Path
    ) -> None:
        s3_server.make_bucket("shared-logs")
        env = {**s3_server.env, **postgres.env, "FULLFT_LOGS_BUCKET": "shared-logs"}
        worker, reader = run_on_two_machines(tmp_path, read_yaml(SHARED), env)
        assert "STORAGE PostgresRunStorage True" in worker
        assert "RUN SUCCESS" in reader
        assert "MATERIALIZED True" in reader
        assert "a line of a step's stdout" in reader
        assert not list((tmp_path / "worker").rglob("*.db"))
        refused = call(
            READER,
            tmp_path / "stranger",
            read_yaml(SHARED),
            {**env, "DAGSTER_POSTGRES_PASSWORD": "guessed"},
            "run",
            "key",
        )
        assert "password authentication failed" in refused.stderr and refused.returncode
