"""The whole graph of the tasks with several labels a row, or labelled spans, on a real instance: trained,
judged, promoted, used.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from fullft_assets import release
from fullft_assets.checking.validation import load_use_case
from fullft_assets.component import FullFineTune
from fullft_assets.resources import latest
from fullft_assets.store import Store
from tests import licence_labels, own_code, prepared
from tests import project as projects
from tests.test_graph import ASSETS, CASE, Graph, events, without_manifest
from tests.test_graph import environment as environment

LABELS = ["copyleft", "notice", "permissive", "reference"]
#: A base model of 1 MB with random weights learns little: the gates are open, and what passes them is what is
#: tested.
OPEN: dict[str, Any] = {
    "base_model": "model",
    "planning": {"min_predicted_gain": -1},
    "release": {"min_gain_over_baselines": -1},
    "training": {"epochs": 2, "learning_rate": 5e-3},
    "snapshot": {
        "min_train_rows": 20,
        "max_validation_rows": 60,
        "test_share": 0.25,
        "validation_share": 0.2,
    },
}
SPANS = {"task": "token_classification", "label": "spans", "labels": ["phrase", "url"], "group": "expression"}
#: Its model brings code of its own: what plans, trains, judges and predicts has to load it.
SPAN_SECTIONS: dict[str, Any] = {
    "chunks": {"max_tokens": 32, "max_windows": None, "stride": 8},
    "trust_remote_code": True,
}
MULTI_LABEL = {"task": "multi_label", "label": "labels", "labels": LABELS, "group": "expression"}


def create(
    root: Path, examples: dict[str, Any], rows: list[dict[str, Any]], **sections: Any
) -> projects.Project:
    project = projects.create(root, CASE, rows=0, **{**OPEN, "examples": examples, **sections})
    (own_code.write if sections.get("trust_remote_code") else prepared.write_tiny_model)(root / "model")
    project.deliver("delivery-1.jsonl", rows)
    return project


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, environment: None) -> tuple[projects.Project, str]:
    """The multi-label project after `fullft run`, and what that printed."""
    rows = licence_labels.labelled_rows(260, known=set(LABELS))
    rows += [
        {**rows[0], "id": "odd", "text": "A text of a label that nobody knows.", "labels": ["poem", "notice"]}
    ]
    project = create(tmp_path_factory.mktemp("labelled"), MULTI_LABEL, rows)
    done = project.fullft("run", CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout


def assert_whole(project: projects.Project, printed: str, metric: str, kind: str) -> Store:
    """What holds of any task: every asset materialised with metadata, promoted, summarised, and no text in
    the event log.
    """
    store = Store(str(project.home / "store"))
    report = latest(store, CASE, "evaluation_report")
    assert report.metadata["promote"] and report.metadata["primary_metric"] == metric
    assert release.read_champion(store, CASE).checkpoint == latest(store, CASE, "finetuned_checkpoint").ref
    metrics = report.metadata
    name = metric.replace("_f1", "-F1")
    best = metrics["best_baseline"]
    for pattern in (
        (
            rf"test {name} +{metrics[metric]:.3f} \[{metrics[f'{metric}_low']:.3f}, .+\] fine-tuned;"
            rf" .*{metrics['scores'][best][metric]:.3f} {best}"
        ),
        r"verdict +Promoted: every gate passed\. It is the champion now\.",
        r"try it +\S+ predict letters",
    ):
        assert re.search(pattern, printed), (pattern, printed)
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        for asset in ASSETS:
            (event,) = events(instance, asset)
            assert {"path", "made_in_seconds"} <= set(event.metadata), asset
        (event,) = events(instance, "evaluation_report")
    assert event.metadata["systems"].value.splitlines()[0].split(" | ")[1] == "macro_f1"
    assert event.metadata["report"].value.count("data:image/png;base64,") >= 3
    assert not without_manifest(project)
    folder = store.folder(report)
    assert json.loads((folder / "evaluation.json").read_text())["primary_metric"] == metric
    texts = [
        row["text"]
        for path in project.documents.glob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    ]
    excerpts = {found[0] for text in texts if (found := re.search(r"[A-Za-z ,.]{50}", text))}
    logged = project.logged() + "".join(
        (folder / name).read_text() for name in ("report.md", "evaluation.json")
    )
    assert len(excerpts) > 15 and [excerpt for excerpt in excerpts if excerpt in logged] == []
    return store


@pytest.mark.long
def test_texts_with_several_labels_become_a_promoted_model(labelled: tuple[projects.Project, str]) -> None:
    project, printed = labelled
    store = assert_whole(project, printed, "macro_f1", "multi_label")
    assert re.search(r"rows in +261 in 1 batches: 260 valid, 1 quarantined", printed)
    metrics = latest(store, CASE, "evaluation_report").metadata
    for system in ("label_shares", "tfidf", "frozen_probe"):
        assert {"macro_f1", "micro_f1", "subset_accuracy"} <= set(metrics["scores"][system])
    checkpoint = latest(store, CASE, "finetuned_checkpoint")
    assert list(checkpoint.metadata["label_thresholds"]) == LABELS
    card = (store.folder(latest(store, CASE, "champion_model")) / "README.md").read_text()
    assert (
        "| label | threshold | precision | recall | F1 | given | test rows |" in card
        and "subset accuracy" in card
    )
    assert re.search(r"\| copyleft \| 0\.\d{3} \| ", card)
    rows = pq.read_table(store.folder(latest(store, CASE, "evaluation_report")) / "predictions.parquet")
    systems = ("label_shares", "tfidf", "frozen_probe")
    assert rows.column_names == [
        "id",
        "labels",
        "group",
        "predicted",
        *(f"{name}.predicted" for name in systems),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "examples", "metric"), [("labelled", MULTI_LABEL, "macro_f1"), ("spanned", SPANS, "micro_f1")]
)
def test_a_second_candidate_is_judged_against_the_champion(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, examples: dict[str, Any], metric: str
) -> None:
    shutil.copytree(request.getfixturevalue(name)[0].root, tmp_path / "copy")
    copy = projects.Project(tmp_path / "copy", CASE)
    sections = SPAN_SECTIONS if examples is SPANS else {}
    copy.configure(
        **{**OPEN, "examples": examples, **sections, "training": {"epochs": 1, "learning_rate": 2e-3}}
    )
    with dg.DagsterInstance.from_config(str(copy.home)) as instance:
        graph = Graph(copy, instance)
        graph.approve()
        assert graph.materialize("finetuned_checkpoint", "evaluation_report", "champion_model").success
        metrics = graph.latest("evaluation_report").metadata
    of_champion = metrics["scores"]["champion"][metric]
    assert of_champion > 0
    assert metrics["gain_over_champion"] == pytest.approx(metrics[metric] - of_champion)


@pytest.fixture(scope="module")
def spanned(tmp_path_factory: pytest.TempPathFactory, environment: None) -> tuple[projects.Project, str]:
    """The project with spans after `fullft run`, and what that printed."""
    rows = licence_labels.spanned_rows(300)
    beyond = {"start": 5, "end": 400, "label": "url"}
    rows += [
        {"id": "none", "text": "A text in which nothing is marked.", "spans": [], "expression": "none"},
        {
            "id": "beyond",
            "text": "A span that ends behind its text.",
            "spans": [beyond],
            "expression": "none",
        },
        {
            "id": "odd",
            "text": "A span with a label that nobody knows.",
            "spans": [{**beyond, "end": 9, "label": "poem"}],
            "expression": "none",
        },
    ]
    project = create(tmp_path_factory.mktemp("spanned"), SPANS, rows, **SPAN_SECTIONS)
    done = project.fullft("run", CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout


@pytest.mark.slow
def test_texts_with_spans_become_a_promoted_model(spanned: tuple[projects.Project, str]) -> None:
    project, printed = spanned
    store = assert_whole(project, printed, "micro_f1", "spans")
    assert re.search(r"rows in +303 in 1 batches: 301 valid, 2 quarantined", printed)
    report = latest(store, CASE, "evaluation_report")
    for system in ("no_spans", "dictionary", "token_probe"):
        assert {"macro_f1", "micro_f1"} <= set(report.metadata["scores"][system])
    assert report.metadata["scores"]["no_spans"]["micro_f1"] == 0.0
    card = (store.folder(latest(store, CASE, "champion_model")) / "README.md").read_text()
    assert "| label | precision | recall | F1 | test spans |" in card
    assert re.search(r"Of \d+ true spans it finds \d+ exactly", card)
    rows = pq.read_table(store.folder(report) / "predictions.parquet").to_pydict()
    assert sum(rows["num_spans"]) == report.metadata["num_test_spans"]
    assert sum(rows["num_right"]) == report.metadata["num_right"]
    done = project.fullft(
        "predict", CASE, "Licensed under the MIT license, see https://spdx.org/licenses/MIT"
    )
    assert done.returncode == 0, done.stderr
    assert all(re.fullmatch(r" *\d+ to \d+ +(phrase|url): .+", line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("examples", [MULTI_LABEL, SPANS])
def test_production_is_predicted_but_drift_stays_off_and_says_so(
    tmp_path: Path, examples: dict[str, Any]
) -> None:
    rows = licence_labels.spanned_rows(5) if examples is SPANS else licence_labels.labelled_rows(5)
    project = create(tmp_path, examples, rows, monitoring={"path": "data/letters/production"})
    names = {job.name for job in FullFineTune(load_use_case(project.yaml_path)).build_defs().jobs or ()}
    assert names == {
        f"letters_{name}" for name in ("ingest", "snapshot", "model", "evaluate", "monitor", "by_hand")
    }
    said = project.fullft("check", CASE)
    assert "predictions only: drift is watched for the task classification alone" in said.stdout
