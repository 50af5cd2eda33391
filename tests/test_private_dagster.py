"""The three imports of Dagster's private modules and one private attribute, as they are in Dagster 1.13.27.

A newer Dagster may move or change them: when one of these tests fails after an upgrade, look at what it
names.
"""

import ast
import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from fullft_assets.cli.run import LocationError, open_code_location
from fullft_assets.component import FullFineTune
from fullft_assets.launchers.run_workers import CODE_SERVER_TAG, LocalRunLauncher
from tests import project as projects

PACKAGE = Path(__file__).parents[1] / "fullft_assets"
PRIVATE = {
    ("cli/run.py", "dagster._cli.workspace.cli_target"),
    ("cli/webserver.py", "dagster._cli"),
    ("launchers/run_workers.py", "dagster._core.launcher"),
}
DEFINITIONS = """
import dagster as dg

@dg.op
def nothing(): ...

@dg.job
def letters_model():
    nothing()

@dg.sensor(job=letters_model)
def letters_new_documents(context):
    yield dg.RunRequest(run_key="a", tags={"delivery/run_key": "a"})

defs = dg.Definitions(jobs=[letters_model], sensors=[letters_new_documents])
"""


def private_modules(path: Path) -> set[str]:
    """Return the modules that a file imports and of whose names a part begins with an underscore."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if alias.name.startswith("_") else node.module
                for alias in node.names
            }
    return {name for name in found if name.startswith("dagster") and "._" in name}


def test_the_package_imports_no_other_private_module() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in private_modules(path)
    }
    assert found == PRIVATE


def test_dagster_is_the_release_that_these_imports_were_checked_with() -> None:
    assert dg.__version__.split(".")[:2] == ["1", "13"], (
        "check the private imports with this release, then change this line"
    )


@pytest.mark.slow
def test_a_workspace_is_loaded_as_in_dagster_1_13_27(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get_workspace_from_cli_opts` yields a request whose process context makes new requests."""
    (tmp_path / "letters_definitions.py").write_text(DEFINITIONS)
    module = {
        "module_name": "letters_definitions",
        "working_directory": str(tmp_path),
        "location_name": "letters",
    }
    workspace_file = tmp_path / "workspace.yaml"
    workspace_file.write_text(json.dumps({"load_from": [{"python_module": module}]}))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with dg.DagsterInstance.get() as instance:
        with open_code_location(instance, workspace_file, "letters_model") as location:
            (request,) = location.tick("letters_new_documents")["runRequests"]
            assert {"key": "delivery/run_key", "value": "a"} in request["tags"]
            run = instance.get_run_by_id(location.launch("letters_model", {"who": "test"}))
            assert run is not None and run.tags["who"] == "test"
            assert run.remote_job_origin is not None, "the UI can launch it again"
            assert run.remote_job_origin.repository_origin.code_location_origin.location_name == "letters"
        with (
            pytest.raises(LocationError, match="no job letters_ingest in them"),
            open_code_location(instance, workspace_file, "letters_ingest"),
        ):
            pass


def test_a_run_launcher_is_asked_as_in_dagster_1_13_27() -> None:
    """Run monitoring asks a launcher that supports it, and takes `NOT_FOUND` for a run that has ended."""
    result = CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process 1 ended")
    assert str(result) == "NOT_FOUND: 'its process 1 ended'"
    assert LocalRunLauncher().supports_check_run_worker_health
    assert CODE_SERVER_TAG == GRPC_INFO_TAG

    assert CODE_SERVER_TAG == GRPC_INFO_TAG


def test_ticks_of_all_sensors_share_one_instance_as_in_dagster_1_13_27(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SensorEvaluationContext` opens an instance only if its `_instance` is None."""
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9")
    hook = {"channels": {"webhook": {"url": "env:HOOK"}}}
    project = projects.create(
        tmp_path,
        rows=1,
        monitoring={"path": "data/letters/production"},
        alerts=hook,
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
