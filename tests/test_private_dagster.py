"""What this project takes from private modules of Dagster, as it is in Dagster 1.13.27."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from fullft_assets.component import FullFineTune
from fullft_assets.resources.run_workers import CODE_SERVER_TAG, LocalRunLauncher
from tests import project as projects


def test_dagster_is_the_release_that_these_imports_were_checked_with() -> None:
    assert dg.__version__.split(".")[:2] == ["1", "13"], (
        "check the private imports with this release, then change this line"
    )


def test_a_run_launcher_is_asked_as_in_dagster_1_13_27() -> None:
    """Run monitoring asks a launcher that supports it, and takes `NOT_FOUND` for a run that has ended."""
    result = CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process 1 ended")
    assert str(result) == "NOT_FOUND: 'its process 1 ended'"
    assert LocalRunLauncher().supports_check_run_worker_health and CODE_SERVER_TAG == GRPC_INFO_TAG


def test_ticks_of_all_sensors_share_one_instance_as_in_dagster_1_13_27(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SensorEvaluationContext` opens an instance only if its `_instance` is None."""
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9")
    project = projects.create(
        tmp_path,
        rows=1,
        monitoring={"path": "data/letters/production"},
        alerts={"channels": {"webhook": {"url": "env:HOOK"}}},
        documents={"settle_seconds": 86_400},
    )
    definitions = FullFineTune(project.use_case()).build_defs()
    sensors = [
        sensor
        for sensor in definitions.get_repository_def().sensor_defs
        if not sensor.sensor_type.is_handled_by_asset_daemon
    ]
    assert len(sensors) == 4
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        ref = instance.get_ref()
    opened, open_one = [], dg.DagsterInstance.from_ref
    monkeypatch.setattr(dg.DagsterInstance, "from_ref", lambda ref: opened.append(ref) or open_one(ref))
    for sensor in [*sensors, *sensors]:
        with dg.build_sensor_context(instance_ref=ref, resources=definitions.resources) as context:
            assert sensor.evaluate_tick(context).skip_message
    assert opened == [ref]
