"""resources: where the store is, and other stores and launchers in its place."""

import errno
import re
from pathlib import Path

import dagster as dg
import pytest

from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation import INGEST
from fullft_assets.component import FullFineTune
from fullft_assets.errors import DataError
from fullft_assets.launch.local import LocalLauncher
from fullft_assets.resources import latest, one_line_errors, open_store
from fullft_assets.store import Store
from tests import project as projects
from tests.prepared import write_tiny_model
from tests.s3_server import S3Server


def test_the_yaml_wins_over_the_environment_and_the_home_is_the_default(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch, s3_env: S3Server
) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(project.home)) as instance:
        assert open_store(project.use_case(), instance).url == str(Path(instance.root_directory) / "store")
        monkeypatch.setenv("FULLFT_STORE", "s3://shared/prefix/")
        assert open_store(project.use_case(), instance).url == "s3://shared/prefix"
        project.configure(store="artifacts")
        assert open_store(project.use_case(), instance).url == str(project.root / "artifacts")


def test_an_error_that_the_user_can_fix_is_a_failure_of_one_line_that_is_not_retried(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(dg.Failure) as raised, one_line_errors(store, "letters"):
        raise DataError("a.csv:3: no label; fix it")
    assert (raised.value.description, raised.value.allow_retries) == ("a.csv:3: no label; fix it", False)
    assert store.delete_tracebacks("letters") == 0


def test_of_another_error_the_failure_has_type_and_place_and_the_store_the_message(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(dg.Failure) as raised, one_line_errors(store, "letters"):
        raise KeyError("what a letter says")
    line, file = raised.value.description.split(" is in ")
    assert re.match(r"KeyError at fullft_assets/resources/io_manager\.py:[0-9]+ \(.*\); its message, ", line)
    assert "KeyError: 'what a letter says'" in Path(file).read_text()
    assert raised.value.metadata["failure"].value == "unknown"
    with pytest.raises(dg.Failure) as raised, one_line_errors(store, "letters"):
        raise OSError(errno.ENOSPC, "No space left on device", "a letter of Ann")
    assert (raised.value.description or "").startswith("OSError (No space left on device) at ")
    assert "Ann" not in (raised.value.description or "")
    with pytest.raises(dg.Failure, match="as it is"), one_line_errors(store, "letters"):
        raise dg.Failure("as it is")
    assert (store.delete_tracebacks("mails"), store.delete_tracebacks("letters")) == (0, 2)


class TestSwappedResources:
    """Another store than that of the YAML, injected as a test or a deployment does."""

    @pytest.fixture
    def small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> projects.Project:
        monkeypatch.delenv("FULLFT_STORE", raising=False)
        write_tiny_model(tmp_path / "model")
        return projects.create(tmp_path, base_model="model", planning={"min_predicted_gain": -1})

    def swap(self, project: projects.Project, **resources: object) -> dg.Definitions:
        """Return the project's definitions with other resources; their keys begin with the use case's
        name.
        """
        loaded = FullFineTune(project.use_case()).build_defs()
        replaced = {f"{project.name}_{key}": resource for key, resource in resources.items()}
        assert replaced.keys() <= (loaded.resources or {}).keys()
        return dg.Definitions(
            assets=loaded.assets,
            asset_checks=loaded.asset_checks,
            jobs=loaded.jobs,
            sensors=loaded.sensors,
            schedules=loaded.schedules,
            resources={**(loaded.resources or {}), **replaced},
            executor=dg.in_process_executor,
        )

    def test_sensors_schedules_and_assets_use_the_injected_store(
        self, small: projects.Project, tmp_path: Path
    ) -> None:
        store = Store(str(tmp_path / "elsewhere"))
        definitions = self.swap(small, store=store)
        job = definitions.resolve_implicit_global_asset_job_def()
        with dg.DagsterInstance.from_config(str(small.home)) as instance:
            context = dg.build_sensor_context(instance=instance, resources=definitions.resources)
            (request,) = definitions.resolve_sensor_def("letters_new_documents")(context).run_requests
            instance.add_dynamic_partitions("letters/batch", [request.partition_key])
            for assets, batch in [(INGEST, request.partition_key), (("training_snapshot",), None)]:
                keys = [dg.AssetKey(["letters", asset]) for asset in assets]
                assert job.execute_in_process(
                    asset_selection=keys, partition_key=batch, instance=instance
                ).success
            context = dg.build_schedule_context(instance=instance, resources=definitions.resources)
            skipped = definitions.resolve_schedule_def("letters_evaluation_schedule")(context)
            assert isinstance(skipped, dg.SkipReason)
            assert str(skipped.skip_message).startswith("no checkpoint yet")
        taken = latest(store, "letters", "training_snapshot")
        assert taken is not None and (store.folder(taken) / "manifest.json").is_file()
        assert not (small.home / "store").exists()

    def test_the_choice_of_the_yaml_is_injected_otherwise(self, small: projects.Project) -> None:
        resources = CaseGraph(small.use_case()).resources()
        with (
            dg.DagsterInstance.from_config(str(small.home)) as instance,
            dg.build_resources(resources, instance=instance) as built,
        ):
            assert built.letters_store.url == str(small.home / "store") == built.letters_artifacts.store.url
            assert isinstance(built.letters_launcher.launcher_of("training"), LocalLauncher)
