"""The whole graph of the tasks with several labels a row, or labelled spans, on a real instance: trained,
judged, promoted, used.
"""

import json
import re
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
from tests import licence_labels, own_code, prepared, project as projects
from tests.test_graph import ASSETS, CASE, attempts, environment as environment, events

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
    "chunks": {"max_tokens": 32, "max_chunks": None, "stride": 8},
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
    assert all((project.home / path / "manifest.json").is_file() for path in attempts(project))
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
    return project, project.succeed("run", CASE)


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
    assert re.search(r"Of \d+ true spans it finds \d+ exactly", card)
    rows = pq.read_table(store.folder(report) / "predictions.parquet").to_pydict()
    assert sum(rows["num_spans"]) == report.metadata["num_test_spans"]
    assert sum(rows["num_right"]) == report.metadata["num_right"]
    text = "Licensed under the MIT license, see https://spdx.org/licenses/MIT"
    assert all(
        re.fullmatch(r" *\d+ to \d+ +(phrase|url): .+", line)
        for line in project.succeed("predict", CASE, text).splitlines()
    )


@pytest.mark.parametrize("examples", [MULTI_LABEL, SPANS])
def test_production_is_watched_by_its_texts_alone(tmp_path: Path, examples: dict[str, Any]) -> None:
    rows = licence_labels.spanned_rows(5) if examples is SPANS else licence_labels.labelled_rows(5)
    project = create(tmp_path, examples, rows, monitoring={"path": "data/letters/production"})
    graph = FullFineTune(load_use_case(project.yaml_path)).build_defs().resolve_asset_graph()
    names = {key.path[-1] for key in graph.get_all_asset_keys()}
    assert "drift_report" in names and "live_quality" not in names
    project.configure(**{**OPEN, "examples": examples, "monitoring": {"drift_tests": ["predicted_labels"]}})
    assert "monitoring.drift_tests: names no test of texts" in project.fullft("check", CASE).stderr
