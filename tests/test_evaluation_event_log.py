"""Labels that are sentences stay in the store: no word of one in the event log or the output of the run that
trains, judges and promotes.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
import pytest

from fullft_assets.assets.graph import outside_the_store
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.resources import latest
from fullft_assets.store import Store
from fullft_assets.store.metadata import Metadata, Private
from tests import project as projects
from tests.prepared import write_tiny_model
from tests.test_graph import CASE, environment as environment, events

WORD = "zoonomiastic"
SENTENCE = "A {} about the {} licence, its terms, its use and whoever reads it."


def planted_rows(count: int) -> list[dict[str, Any]]:
    """Return rows whose labels are sentences, and whose ids, texts, groups and domains have the word, too."""
    return [
        {
            "id": f"{WORD}-{n}",
            "text": f"{WORD} {row['text']} {WORD}",
            "kind": SENTENCE.format(row["kind"], WORD),
            "patient": f"{WORD} {row['expression']}",
            "ward": f"{WORD} {n % 3}",
        }
        for n, row in enumerate(projects.licence_rows(count))
    ]


@pytest.mark.slow
def test_no_word_of_a_label_leaves_the_store_when_a_model_is_judged_and_promoted(
    tmp_path: Path, environment: None
) -> None:
    own = {"label": "kind", "labels": None, "group": "patient", "domain": "ward"}
    gates = {
        "planning": {"min_predicted_gain": -1.0},
        "release": {"min_gain_over_baselines": -1, "min_effective_groups": 2},
    }
    write_tiny_model(tmp_path / "model")
    project = projects.create(
        tmp_path, CASE, rows=0, base_model="model", examples=own, training={"learning_rate": 5e-3}, **gates
    )
    project.deliver("delivery-1.jsonl", planted_rows(400))
    done = project.fullft("run", CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(str(project.home / "store"))
    report = latest(store, CASE, "evaluation_report")
    assert report is not None and latest(store, CASE, "champion_model") is not None
    folder = store.folder(report)
    assert SENTENCE.format("notice", WORD) in (folder / "report.html").read_text(), "the store has the labels"
    assert WORD in (folder / "report.md").read_text() and WORD not in (folder / "summary.md").read_text()
    slices = json.loads((folder / "evaluation.json").read_text())["slices"]["found"]
    assert {each["kind"] for each in slices} >= {"label", "domain", "length"}
    logged = project.logged()
    assert "labeled_examples" in logged and WORD not in logged + done.stdout + done.stderr
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        (judged,), (released,) = events(instance, "evaluation_report"), events(instance, "champion_model")
    assert "report" not in judged.metadata and "model_card" not in released.metadata
    assert "data:image" not in str(judged.metadata), "a picture shows the labels"
    assert "fullft report" in judged.metadata["summary"].value


@pytest.mark.parametrize(
    ("label", "is_named"), [("copyleft", True), (SENTENCE, False), ("x" * 41, False), ("x" * 40, True)]
)
def test_thresholds_are_shown_by_label_only_where_labels_may_be_named(label: str, is_named: bool) -> None:
    assert outside_the_store(CheckpointMetadata, {"label_thresholds": {label: 0.4}, "num_steps": 3}) == (
        {"label_thresholds": {label: 0.4}, "num_steps": 3} if is_named else {"num_steps": 3, "num_labels": 1}
    )


class NewStage(Metadata):
    """Metadata of a stage that is yet to be written."""

    num_rows: int
    seen: Annotated[dict[str, int], Private.LABELS]
    sources: Annotated[list[str], Private.FILES]


def test_what_a_new_field_is_marked_as_is_not_shown() -> None:
    metadata = NewStage(num_rows=2, seen={SENTENCE: 2}, sources=["planted/name.jsonl"]).as_dict()
    assert outside_the_store(NewStage, metadata) == {"num_rows": 2, "num_sources": 1, "num_labels": 1}
