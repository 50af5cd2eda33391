"""The whole graph of a language model on a real instance: promoted, found again, a worse candidate refused,
no text in the event log.
"""

import re
from pathlib import Path

import pytest

from fullft_assets import release
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.store import Store
from tests import prepared, project as projects, small_language_model, smollm2
from tests.test_graph import CASE, environment as environment

pytestmark = pytest.mark.slow


def create(root: Path, task: str) -> projects.Project:
    """A project whose base model is a narrow Llama with random weights: anything learned is a gain."""
    project = projects.create(root, CASE, rows=0)
    rows = prepared.conversations(160) if task == "sft" else projects.licence_rows(160)
    if task == "sft":
        smollm2.write_tiny_model(root / "model")
    else:
        small_language_model.write(root / "model", [row["text"] for row in rows])
    project.deliver("delivery-1.jsonl", rows)
    projects.write_rows(project.production / "w1.jsonl", rows[:40])
    configure(project, task, monitoring={"path": "data/letters/production", "min_window_rows": 20})
    return project


def configure(project: projects.Project, task: str = "language_modeling", **sections) -> None:
    training = {
        "epochs": 2,
        "learning_rate": 0.02,
        "batch_size": 4,
        "micro_batch_size": 4,
        **sections.pop("training", {}),
    }
    project.configure(
        base_model="model",
        examples={"task": task, "label": None, "labels": None},
        chunks={"max_tokens": 64, "max_chunks": None, "stride": 0},
        snapshot={"min_train_rows": 10, "max_train_rows": 60, "max_validation_rows": 10},
        training=training,
        **sections,
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, environment: None) -> tuple[projects.Project, str]:
    """The project after `fullft run`, and what that printed."""
    project = create(tmp_path_factory.mktemp("language"), "language_modeling")
    return project, project.succeed("run", CASE)


@pytest.fixture(scope="module")
def finished(first: tuple[projects.Project, str]) -> projects.Project:
    return first[0]


def test_documents_become_a_promoted_language_model(first: tuple[projects.Project, str]) -> None:
    finished, printed = first
    store = Store(str(finished.home / "store"))
    report = latest(store, CASE, "evaluation_report")
    assert report.metadata["promote"] and report.metadata["primary_metric"] == "token_probability"
    (window,) = latest_by_partition(store, CASE, "drift_report").values()
    assert window.metadata["status"] == "warming_up"
    assert release.read_champion(store, CASE).checkpoint == latest(store, CASE, "finetuned_checkpoint").ref
    card = (store.folder(latest(store, CASE, "champion_model")) / "README.md").read_text()
    assert "| base model, not fine-tuned |" in card
    assert "perplexity" in card
    assert "Labels" not in card
    isolation = "several documents each: documents that share a row of llama do not move one another ("
    assert f"| Rows | {isolation}" in card and isolation in (store.folder(report) / "report.md").read_text()
    metrics = report.metadata
    base = metrics["scores"]["base_model"]["perplexity"]
    for pattern in (
        (
            rf"test perplexity +{metrics['perplexity']:.3f} \[.+\] fine-tuned;"
            rf" {base:.3f} base_model"
        ),
        rf"gain +\+{metrics['gain_over_best_baseline']:.3f} .+ over base_model",
        r"verdict +Promoted: every gate passed\. It is the champion now\.",
        r"try it +\S+ predict letters",
    ):
        assert re.search(pattern, printed), (pattern, printed)


def test_no_document_and_nothing_written_is_in_the_event_log_or_the_run_log(
    finished: projects.Project,
) -> None:
    logged = finished.logged()
    assert "evaluation_report" in logged
    excerpts = {
        found[0]
        for row in projects.licence_rows(160)
        if (found := re.search(r"[A-Za-z ,.]{50}", row["text"]))
    }
    assert len(excerpts) > 15 and [excerpt for excerpt in excerpts if excerpt in logged] == []
    store = Store(str(finished.home / "store"))
    page = (store.folder(latest(store, CASE, "evaluation_report")) / "report.html").read_text()
    written = re.findall(
        r'<tr data-document="[^"]+">(?:<td[^>]*>[^<]*</td>){3}<td[^>]*>([^<]{20,})</td>', page
    )
    assert not [text for text in written if text in logged]


@pytest.mark.long
def test_conversations_become_a_promoted_assistant(tmp_path: Path, environment: None) -> None:
    project = create(tmp_path, "sft")
    assert "It is the champion now." in project.succeed("run", CASE)
    asked = ("Which kind of licence clue is this?", "--max-new-tokens", "8")
    assert "<|im_" not in project.succeed("predict", CASE, *asked)
