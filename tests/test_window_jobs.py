"""Drift reports of windows, and the windows that each is compared with."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.production import read_history
from fullft_assets.job import Job
from fullft_assets.launch.workloads import monitoring as report_workload
from fullft_assets.progress import Progress
from fullft_assets.resources import open_store
from fullft_assets.resources.store import set_latest
from fullft_assets.store import Manifest, Store
from tests import licence_labels, manifests, prepared, project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.machine import set_environment
from tests.test_monitoring import draw

pytestmark = pytest.mark.slow

CASE = "letters"
LABELS = ["notice", "reference", "text"]
MONITORING = {"path": "data/letters/production", "min_window_rows": 20}
#: Windows; the second one has too few independent documents, and the last two have other texts than those
#: before them.
NUM_WINDOWS = 9


class Reader:
    """Draws features by the texts, in place of models."""

    @staticmethod
    def open(*_: Any) -> Reader:
        return Reader()

    def read(self, texts: list[str], _: Any) -> monitoring.Features:
        rng = np.random.default_rng(zlib.crc32("".join(texts).encode()))
        return draw(rng, len(texts), moved=9.0 if texts[0].isupper() else 0.0)


def load_scale(
    job: Job, store: Store, inputs: dict[str, Manifest], __: Any
) -> tuple[monitoring.Scale, None, str]:
    """Return a scale of each checkpoint's own, which is kept."""
    key, tests = inputs["finetuned_checkpoint"].key, job.settings.monitoring.drift_tests
    if (made := store.find(CASE, "drift_scale", key)) is None:
        with store.create(CASE, "drift_scale", key, version="1", seed=1) as draft:
            held_out = draw(np.random.default_rng(zlib.crc32(key.encode())), 200)
            monitoring.Scale.fit(held_out, len(LABELS), tests).save(draft.path / monitoring.SCALE)
            made = draft.commit(settings={}, inputs={}, metadata={})
    return monitoring.Scale.load(store.folder(made) / monitoring.SCALE, tests), None, made.ref


class Production:
    """Windows of a project with a champion; workloads run in this process."""

    def __init__(self, project: projects.Project, snapshot: Manifest, monkeypatch: pytest.MonkeyPatch):
        self.project = project
        set_environment(monkeypatch, project.env())
        self.instance = dg.DagsterInstance.from_config(str(project.home))
        self.store = open_store(project.use_case(), self.instance)
        self._snapshot = snapshot
        self.promote("k1")

    def deliver(self, *windows: list[dict[str, Any]]) -> list[str]:
        """Deliver windows, one after the other, and return the names of all."""
        settings = self.project.use_case().settings.documents
        for number, rows in enumerate(windows):
            path = projects.write_rows(self.project.production / f"w{number}.jsonl", rows)
            os.utime(path, (1_000 + number, 1_000 + number))
            documents.cut_batches(self.store, CASE, self.project.production, settings, "window")
        return [window.name for window in documents.list_batches(self.store, CASE, "window")]

    def promote(self, key: str) -> None:
        about = checkpoint_metadata(labels=LABELS, snapshot=self._snapshot.ref)
        checkpoint = manifests.write(
            self.store, CASE, "finetuned_checkpoint", key, about, files={"model": key}
        )
        set_latest(self.store, CASE, "finetuned_checkpoint", checkpoint)
        manifests.promote(self.store, CASE, checkpoint.ref, snapshot=self._snapshot.ref)

    def write_report(self, window: str) -> Manifest:
        """Write the drift report of a window as its run does, without Dagster's steps, which take long."""
        graph = CaseGraph(self.project.use_case())
        checkpoint = self.store.load(release.read_champion(self.store, CASE).checkpoint)
        seen = documents.keep(self.store, graph.use_case, window, "window")
        history = read_history(graph, self.store, window, seen, checkpoint)
        inputs = {"production_documents": seen, "finetuned_checkpoint": checkpoint, **history.as_inputs()}
        key = monitoring.report_key(graph.settings, inputs)
        inputs["training_snapshot"] = self._snapshot
        report_workload.work(
            graph.job("drift_report", key, self.store, inputs), self.store, Progress(silent=True)
        )
        report = self.store.find(CASE, "drift_report", key)
        assert report is not None
        set_latest(self.store, CASE, "drift_report", report, window)
        return report


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Production]:
    monkeypatch.setattr(report_workload, "Reader", Reader)
    monkeypatch.setattr(report_workload, "_load_scale", load_scale)
    monkeypatch.setattr(report_workload, "label_names", lambda _: LABELS)
    project = projects.create(tmp_path, monitoring=MONITORING)
    case = prepared.take(project)
    with (found := Production(project, case.snapshot, monkeypatch)).instance:
        yield found


def test_the_first_windows_under_the_next_champion_are_compared_with_calm_ones_before(
    production: Production,
) -> None:
    usual = [projects.licence_rows(30, skip=30 * number) for number in range(NUM_WINDOWS)]
    for row in (row for rows in usual[-2:] for row in rows):
        row["text"] = row["text"].upper()
    *calm, moved, last = production.deliver(*usual)
    reports = [production.write_report(window) for window in calm]
    assert [monitoring.DriftMetadata.of(report).status for report in reports] == [
        "warming_up",
        "insufficient_data",
        *["warming_up"] * 5,
    ]
    production.promote("k2")
    found = [monitoring.DriftMetadata.of(production.write_report(window)) for window in (moved, last)]
    assert [about.status for about in found] == ["alarm", "confirmed"]
    # The second one has too few documents.
    assert (
        found[0].kept_reference == [reports[number].ref for number in (0, 2, 3, 4, 5, 6)]
        and not found[0].reference
    )
    assert found[0].scale == found[1].scale == monitoring.DriftMetadata.of(reports[0]).scale
    assert {name for name in found[1].measured if name.startswith("p_")} == {"p_embeddings"}
    production.promote("k3")
    assert monitoring.DriftMetadata.of(production.write_report(last)).status == "warming_up", (
        "it was released while windows alarmed"
    )


def of_texts(texts: list[str], answer: str = "It is a licence.") -> list[dict[str, Any]]:
    """Return rows as every task reads them, without labels; of a conversation the answer is a model's."""
    return [
        {
            "text": text,
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
        }
        for text in texts
    ]


@pytest.mark.parametrize("task", ["multi_label", "token_classification", "language_modeling", "sft"])
def test_the_texts_of_every_task_are_watched_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    if task in ("language_modeling", "sft"):
        case = prepared.prepare_language_model(tmp_path, task, monitoring=MONITORING)
    else:
        column, rows = {
            "multi_label": ("labels", licence_labels.labelled_rows(120)),
            "token_classification": ("spans", licence_labels.spanned_rows(120)),
        }[task]
        target = {"task": task, "label": column, "labels": None}
        case = prepared.prepare(tmp_path, tiny=True, delivered=rows, examples=target, monitoring=MONITORING)
    texts = [row["text"][:1_000] for row in projects.licence_rows(13 * 40, skip=600)]
    modules = prepared.write_general(tmp_path, 80, 1_000)
    usual = [of_texts(texts[number : number + 40]) for number in range(0, 12 * 40, 40)]
    unchanged = of_texts(texts[-40:], "An assistant that was trained again answers otherwise.")
    production = Production(case.project, case.snapshot, monkeypatch)
    with production.instance:
        names = production.deliver(*usual, unchanged, of_texts(modules[:40]), of_texts(modules[40:]))
        reports = [monitoring.DriftMetadata.of(production.write_report(name)) for name in names]
    assert [report.status for report in reports[-3:]] == ["ok", "alarm", "confirmed"]
    names = reports[-1].measured.keys()
    assert "p_embeddings" in names and not names & {"p_predicted_labels", "mean_entropy"}
