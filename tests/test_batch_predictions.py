"""batch_predictions: what the champion predicts of each window of production, for any kind of task, in the
graph.
"""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from fullft_assets import documents, erasure
from fullft_assets.launch.workloads import prediction
from fullft_assets.monitoring import PREDICTIONS, PredictionsMetadata
from fullft_assets.resources import open_store
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.classification.task import Classification
from tests import manifests, project as projects
from tests.asset_runs import run_assets, run_workloads_here
from tests.checkpoint_metadata import checkpoint_metadata
from tests.machine import set_environment
from tests.test_predict import LABELS, TEXTS, write_model

pytestmark = pytest.mark.slow

CASE = "letters"
#: The last two have no text.
ROWS = [{"id": f"d{number}", "text": text} for number, text in enumerate([*TEXTS, " ", ""])]


@pytest.fixture
def instance(project: projects.Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    set_environment(monkeypatch, project.env())
    with dg.DagsterInstance.from_config(str(project.home)) as found:
        yield found


def deliver(project: projects.Project, task: str) -> None:
    target = {"task": task, "label": {"classification": "kind", "token_classification": "spans"}.get(task)}
    project.configure(
        monitoring={"path": "data/letters/production"},
        examples=target,
        chunks={"stride": 0},
    )
    projects.write_rows(project.production / "w1.jsonl", ROWS)


def promote(store: Store, task: str, key: str) -> Manifest:
    with store.create(CASE, "finetuned_checkpoint", key, version="1", seed=1) as draft:
        write_model(draft.path / "model", task)
        # Two of them are two models, though their weights are equal.
        (draft.path / "model" / "note.txt").write_text(key)
        made = draft.commit(
            settings={}, inputs={"training_snapshot": "s"}, metadata=checkpoint_metadata(labels=LABELS)
        )
    manifests.promote(store, CASE, made.ref)
    return made


def materialize(
    project: projects.Project, instance: dg.DagsterInstance, *assets: str
) -> dg.ExecuteInProcessResult:
    use_case = project.use_case()
    store = open_store(use_case, instance)
    documents.cut_batches(store, CASE, project.production, use_case.settings.documents, "window")
    [window] = documents.list_batches(store, CASE, "window")
    instance.add_dynamic_partitions(f"{CASE}/window", [window.name])
    result = run_assets(use_case, instance, *assets, partition=window.name)
    assert result.success
    return result


def predicted(
    project: projects.Project, instance: dg.DagsterInstance
) -> tuple[Manifest, list[dict[str, Any]]]:
    store = open_store(project.use_case(), instance)
    [made] = store.artifacts(CASE, "batch_predictions")
    return made, [
        json.loads(line)
        for line in (store.folder(made) / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize(
    "task",
    ["classification", pytest.param("token_classification", marks=pytest.mark.long), "language_modeling"],
)
def test_each_document_with_a_text_is_predicted_by_the_champion(
    project: projects.Project, instance: dg.DagsterInstance, task: str
) -> None:
    deliver(project, task)
    champion = promote(open_store(project.use_case(), instance), task, "first")
    materialize(project, instance, "production_documents", "batch_predictions")
    made, lines = predicted(project, instance)
    assert [(line["source"], line["row"], line["id"]) for line in lines] == [
        ("w1.jsonl", number, f"d{number - 1}") for number in range(1, 5)
    ]
    key = {"classification": "label", "token_classification": "spans", "language_modeling": "text"}[task]
    assert all(key in line for line in lines)
    found = PredictionsMetadata.of(made)
    assert (found.checkpoint, found.num_rows, found.num_without_text) == (champion.ref, 4, 2)
    mean = sum(line["probability"] for line in lines) / 4 if task == "classification" else None
    assert found.estimated_accuracy == (None if mean is None else pytest.approx(mean))
    assert found.rows_per_second and found.characters_per_second
    assert found.characters_per_second > found.rows_per_second
    # The same again is found, not computed.
    materialize(project, instance, "batch_predictions")
    assert predicted(project, instance)[0] == made


def test_a_large_window_is_predicted_in_blocks(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of two million documents do not fit into the memory of a machine that reads them."""
    deliver(project, "classification")
    promote(open_store(project.use_case(), instance), "classification", "first")
    asked = []
    predict = Classification.predict
    monkeypatch.setattr(prediction, "BLOCK_DOCUMENTS", 3)
    monkeypatch.setattr(
        Classification,
        "predict",
        lambda self, *given: (asked.append(len(given[3])), predict(self, *given))[1],
    )
    run_workloads_here(monkeypatch)
    materialize(project, instance, "production_documents", "batch_predictions")
    made, lines = predicted(project, instance)
    assert asked == [3, 1] and [line["row"] for line in lines] == [1, 2, 3, 4]
    assert PredictionsMetadata.of(made).num_rows == 4


def test_without_a_champion_the_window_is_kept_and_nothing_is_predicted(
    project: projects.Project, instance: dg.DagsterInstance
) -> None:
    deliver(project, "classification")
    result = materialize(project, instance, "production_documents", "batch_predictions")
    made = [event.asset_key for event in result.get_asset_materialization_events()]
    assert made == [dg.AssetKey([CASE, "production_documents"])]


def test_another_champion_predicts_anew_and_an_erasure_takes_predictions_along(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_workloads_here(monkeypatch)
    deliver(project, "classification")
    store = open_store(project.use_case(), instance)
    promote(store, "classification", "first")
    materialize(project, instance, "production_documents", "batch_predictions")
    promote(store, "classification", "second")
    materialize(project, instance, "batch_predictions")
    assert len(list(store.artifacts(CASE, "batch_predictions"))) == 2
    assert erasure.erase(store, CASE, ["d1"]).deleted["batch_predictions"] == 2
    materialize(project, instance, "production_documents", "batch_predictions")
    assert [line["id"] for line in predicted(project, instance)[1]] == ["d0", "d2", "d3"]
