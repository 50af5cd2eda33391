"""The whole graph of a small use case, which has nothing but its defs.yaml and data, on a real instance: run
twice, gates, promotion.
"""

import base64
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets import release
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.model import base_model_revision, planning_key
from fullft_assets.planning import refusal
from fullft_assets.release.model_card import loading_lines
from fullft_assets.resources import latest, open_store
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.asset_runs import run_assets, run_workloads_here
from tests.machine import printed_by
from tests.prepared import write_tiny_model

pytestmark = pytest.mark.slow

CASE = "letters"
INGEST = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")
PLANNING = ("feasibility_plan", "cheaper_baselines", "pilot_run")
ASSETS = (
    *INGEST,
    "tokenizer_audit",
    "training_snapshot",
    *PLANNING,
    "finetuned_checkpoint",
    "evaluation_report",
    "champion_model",
)


class Graph:
    """A project's definitions on the instance in its home; each call is a run of its own."""

    def __init__(self, project: projects.Project, instance: dg.DagsterInstance):
        self.project, self.instance = project, instance

    @property
    def store(self) -> Store:
        return open_store(self.project.use_case(), self.instance)

    def latest(self, asset: str) -> Manifest:
        return latest(self.store, CASE, asset)

    def materialize(self, *assets: str, batch: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialise these assets alone, as a click on them in the UI does."""
        return run_assets(self.project.use_case(), self.instance, *assets, partition=batch)

    def approve(self) -> None:
        """Record the green plan and pilot as those of the current settings: planning takes minutes, and is
        tested elsewhere.
        """
        graph = CaseGraph(self.project.use_case())
        key = planning_key(graph, self.latest("training_snapshot"), base_model_revision(graph))
        for stage in PLANNING:
            old = self.latest(stage)
            with self.store.create(CASE, stage, key, version=old.version, seed=old.seed) as draft:
                shutil.copytree(
                    self.store.folder(old),
                    draft.path,
                    ignore=shutil.ignore_patterns("manifest.json"),
                    dirs_exist_ok=True,
                )
                new = draft.commit(
                    settings=old.settings, inputs=old.inputs, metadata=old.metadata, checks=old.checks
                )
            self.store.write_pointer(f"latest/{CASE}/{stage}/all", {"ref": new.ref})

    def refusal(self, *assets: str, batch: str | None = None) -> str:
        """Materialise, and return the line that the failed step shows first; its kind is gate, and nothing
        may have been written.
        """
        before = attempts(self.project)
        (failed,) = [
            event for event in self.materialize(*assets, batch=batch).all_events if event.is_step_failure
        ]
        assert attempts(self.project) == before
        failure = failed.event_specific_data.user_failure_data
        assert failure.metadata["failure"].value == "gate"
        line = failure.description
        assert "\n" not in line
        return line


def attempts(project: projects.Project) -> set[str]:
    """Every attempt in the store, committed or not."""
    return {str(path.relative_to(project.home)) for path in (project.home / "store" / CASE).glob("*/*/*")}


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
            patch.setenv(name, "1")
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, environment: None) -> tuple[projects.Project, str]:
    """The project after `fullft run`, and what that printed."""
    root = tmp_path_factory.mktemp("graph")
    made = projects.create(root, CASE)
    write_tiny_model(root / "model")
    configure(made)
    return made, made.succeed("run", CASE)


def configure(project: projects.Project, **sections: dict[str, Any]) -> None:
    """Write the YAML with a base model of 1 MB, whose rate is higher; sections replace keys."""
    training = {"learning_rate": 5e-3, **sections.pop("training", {})}
    # A tiny pilot need not promise a gain: what follows is to run.
    planning = {"min_predicted_gain": -1.0, **sections.pop("planning", {})}
    project.configure(base_model="model", training=training, planning=planning, **sections)


@pytest.fixture(scope="module")
def finished(first: tuple[projects.Project, str]) -> projects.Project:
    return first[0]


@pytest.fixture
def graph(finished: projects.Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """A copy of the finished project, its instance included, to change at will."""
    run_workloads_here(monkeypatch)
    shutil.copytree(finished.root, tmp_path / "copy")
    copy = projects.Project(tmp_path / "copy", CASE)
    with dg.DagsterInstance.from_config(str(copy.home)) as instance:
        yield Graph(copy, instance)


def champion(graph: Graph) -> str | None:
    found = release.read_champion(graph.store, CASE)
    return found and found.checkpoint


def events(instance: dg.DagsterInstance, asset: str) -> list[dg.AssetMaterialization]:
    found = instance.fetch_materializations(dg.AssetKey([CASE, asset]), limit=10).records
    return [record.asset_materialization for record in found]


def test_one_command_materialises_every_asset_with_metadata_and_data_version(finished):
    with dg.DagsterInstance.from_config(str(finished.home)) as instance:
        for asset in ASSETS:
            made = events(instance, asset)
            if asset == "champion_model":
                assert not made, "a weak model was promoted"
                continue
            event, *_ = made  # another test runs the project a second time, which finds the same artifacts
            assert {"path", "made_in_seconds"} <= set(event.metadata), asset
            assert len(event.metadata) > 3, asset
            assert Path(event.metadata["path"].value, "manifest.json").is_file()
            assert event.tags["dagster/data_version"], asset
        trained, *_ = events(instance, "finetuned_checkpoint")
        loss = trained.metadata["validation_loss"]
        assert isinstance(loss, dg.FloatMetadataValue) and math.isfinite(loss.value)
        curve = trained.metadata["loss_curve"]
        assert isinstance(curve, dg.MarkdownMetadataValue) and curve.value.startswith("training loss: ")
        picture = base64.b64decode(
            re.search(r"data:image/svg\+xml;base64,([^)]+)\)", curve.value)[1]
        ).decode()
        assert len(re.search(r'points="([^"]+)"', picture)[1].split()) > 2
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        assert {run.job_name for run in instance.get_runs()} == {"letters_ingest", "letters_model"}
    folders = [finished.home / path for path in attempts(finished)]
    assert all((folder / "manifest.json").is_file() for folder in folders)


def test_the_model_is_read_by_the_lines_of_its_card(finished):
    """In a process that does not import this package: what is trained here is not tied to it."""
    with dg.DagsterInstance.from_config(str(finished.home)) as instance:
        trained, *_ = events(instance, "finetuned_checkpoint")
    lines = loading_lines("classification", is_pooled=True)
    code = (
        f"import sys\n{lines}\nassert not any(name.startswith('fullft_assets') for name in"
        " sys.modules)\nprint(logits.shape)"
    )
    folder = f"{trained.metadata['path'].value}/model"
    assert printed_by("-c", code, cwd=Path(folder)).splitlines()[-1] == "(1, 4)"


def test_a_weak_model_is_not_promoted_and_the_run_succeeds(first):
    finished, printed = first
    assert release.read_champion(Store(str(finished.home / "store")), CASE) is None
    assert re.search(r"verdict +Not promoted.*: gain over .+ \(release\.min_gain_over_baselines\)", printed)
    assert "check beats_baselines is yellow" in printed


def test_the_second_run_finds_the_work_and_the_recorded_decision(first):
    finished, printed = first
    before = attempts(finished)
    said = finished.succeed("run", CASE)
    assert attempts(finished) == before
    assert "letters_new_documents: nothing new" in said
    for line in ("split", "test macro-F1", "gain", "verdict", "report"):
        pattern = rf"^  {line} +(.+)$"
        assert re.search(pattern, said, re.MULTILINE)[1] == re.search(pattern, printed, re.MULTILINE)[1]
    with dg.DagsterInstance.from_config(str(finished.home)) as instance:
        for asset in ("training_snapshot", *PLANNING, "finetuned_checkpoint", "evaluation_report"):
            made = events(instance, asset)
            assert len({event.metadata["path"].value for event in made}) == 1, asset
            assert len({event.tags["dagster/data_version"] for event in made}) == 1, asset


def test_a_restored_dagster_of_before_the_runs_finds_what_they_made(finished, tmp_path):
    """$DAGSTER_HOME goes back to a copy that knows none of the runs, and the store is today's."""
    shutil.copytree(
        finished.root,
        tmp_path / "copy",
        ignore=shutil.ignore_patterns("history", "schedules", "storage", "run.log"),
    )
    copy = projects.Project(tmp_path / "copy", CASE)
    before = attempts(copy)
    said = copy.succeed("run", CASE)
    assert attempts(copy) == before, "nothing is trained anew"
    assert "letters_new_documents: nothing new" in said


def test_promotion_a_worse_candidate_another_one_and_rollback(graph):
    """The decisions of a champion's life, each recorded by the gates of the YAML at that time."""
    lenient = {"min_gain_over_baselines": -1, "min_gain_over_champion": -1}
    judge = ("evaluation_report", "champion_model")
    old = graph.latest("finetuned_checkpoint")
    nothing = graph.project.fullft("rollback", CASE, "--reason", "worse")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("letters: no champion ")

    configure(graph.project, release=lenient)
    assert graph.materialize(*judge).success
    assert champion(graph) == old.ref
    card = (graph.store.folder(graph.latest("champion_model")) / "README.md").read_text()
    assert old.ref in card and graph.latest("training_snapshot").ref in card

    configure(graph.project, release={"min_gain_over_baselines": -1}, training={"learning_rate": "1e-6"})
    graph.approve()
    result = graph.materialize("finetuned_checkpoint", *judge)
    assert result.success
    assert [event.asset_key.path[-1] for event in result.get_asset_materialization_events()] == [
        "finetuned_checkpoint",
        "evaluation_report",
    ]
    (check,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "beats_champion"]
    assert not check.passed
    assert champion(graph) == old.ref

    configure(graph.project, release=lenient, training={"retry_epoch": 1})
    graph.approve()
    assert graph.materialize("finetuned_checkpoint", *judge).success
    assert champion(graph) == graph.latest("finetuned_checkpoint").ref != old.ref

    back = graph.project.fullft("rollback", CASE, "--reason", "worse")
    assert back.returncode == 0, back.stderr
    assert f" is again {old.ref} " in back.stdout
    assert champion(graph) == old.ref
    refused = graph.project.fullft("rollback", CASE, "--reason", "worse")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "is the first champion" in refused.stderr


def test_everything_below_a_snapshot_with_too_few_rows_refuses(graph):
    configure(graph.project, snapshot={"min_train_rows": 5_000})
    graph.materialize("training_snapshot")
    consumers = {
        PLANNING: "feasibility_plan",
        ("finetuned_checkpoint",): "",
        ("evaluation_report",): "",
        ("champion_model",): "",
    }
    for assets, refused in consumers.items():
        assert graph.refusal(*assets).startswith(
            f"{refused or assets[0]} refused: training_snapshot.training_rows_suffice is red: "
        )


def test_training_refuses_a_plan_over_its_budget(graph):
    configure(graph.project, planning={"max_hours": 1e-6})
    graph.materialize(*PLANNING)
    line = graph.refusal("finetuned_checkpoint")
    assert line.startswith("finetuned_checkpoint refused: feasibility_plan.within_budget is red: ")
    assert "lower training.epochs or snapshot.max_train_rows" in line


def test_the_pilot_decides_whether_training_starts(graph):
    configure(graph.project, planning={"min_predicted_gain": 0.9}, training={"epochs": 2})
    graph.materialize(*PLANNING)
    assert graph.latest("feasibility_plan").check("within_budget").passed
    before = graph.latest("finetuned_checkpoint")
    # A refusal is an answer: the run succeeds, and makes nothing below.
    result = graph.materialize("finetuned_checkpoint", "evaluation_report", "champion_model")
    assert result.success and not result.get_asset_materialization_events()
    assert graph.latest("finetuned_checkpoint").ref == before.ref
    refused = refusal(graph.latest("pilot_run"))
    assert refused is not None and refused.startswith("not trained: pilot_run.pilot_predicts_gain is red: ")
    assert "required +0.900" in refused


def test_a_plan_for_other_settings_or_another_snapshot_is_refused(graph):
    configure(graph.project, training={"epochs": 50})
    assert re.fullmatch(
        "finetuned_checkpoint refused: .*; materialise feasibility_plan again",
        graph.refusal("finetuned_checkpoint"),
    )


def test_what_is_below_a_checkpoint_that_did_not_learn_refuses(graph):
    # A rate that changes no weight.
    configure(graph.project, training={"epochs": 0.2, "learning_rate": "1e-12"})
    graph.approve()
    graph.materialize("finetuned_checkpoint")
    for asset in ("evaluation_report", "champion_model"):
        assert graph.refusal(asset).startswith(
            f"{asset} refused: finetuned_checkpoint.loss_is_falling is red: training loss "
        )
