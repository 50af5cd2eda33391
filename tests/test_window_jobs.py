"""Predictions and drift report of a window, by one process, and the windows that it is compared with."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import numpy as np
import pytest

from fullft_assets import documents, monitoring, release
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.production import read_history
from fullft_assets.component import FullFineTune
from fullft_assets.errors import DataError
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.monitoring import DriftMetadata, Features, PredictionsMetadata, Scale
from fullft_assets.resources import latest, open_store
from fullft_assets.resources.store import set_latest
from fullft_assets.settings.monitoring import DRIFT_TESTS
from fullft_assets.store import Manifest, Store
from fullft_assets.workloads import monitoring as report_workload
from fullft_assets.workloads import prediction as prediction_workload
from tests import other_package
from tests import project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.test_live_quality import CASE, snapshot_of
from tests.test_monitoring import draw

pytestmark = pytest.mark.slow

LABELS = ["notice", "reference", "text"]
WORKLOADS: dict[str, ModuleType] = {"prediction": prediction_workload, "monitoring": report_workload}
MONITORING = {"path": "data/letters/production", "min_window_rows": 20}
#: Windows; the second one has too few independent documents, and the last two have other texts than those
#: before them.
NUM_WINDOWS = 9


class Reader:
    """Draws features by the texts, in place of models."""

    @staticmethod
    def open(*_: Any) -> Reader:
        return Reader()

    def read(self, texts: list[str], _: Any) -> Features:
        rng = np.random.default_rng(zlib.crc32("".join(texts).encode()))
        return draw(rng, len(texts), moved=9.0 if texts[0].isupper() else 0.0)


def load_scale(job: Job, store: Store, inputs: dict[str, Manifest], __: Any) -> tuple[Scale, None, str]:
    """Return a scale of each checkpoint's own, which is kept."""
    key, tests = inputs["finetuned_checkpoint"].key, job.settings.monitoring.drift_tests
    if (made := store.find(CASE, "drift_scale", key)) is None:
        with store.create(CASE, "drift_scale", key, version="1", seed=1) as draft:
            held_out = draw(np.random.default_rng(zlib.crc32(key.encode())), 200)
            Scale.fit(held_out, len(LABELS), tests).save(draft.path / monitoring.SCALE)
            made = draft.commit(settings={}, inputs={}, metadata={})
    return Scale.load(store.folder(made) / monitoring.SCALE, tests), None, made.ref


def write_window(job: Job, store: Store, progress: Progress) -> None:
    """Predict nothing."""
    inputs = job.load_inputs(store)
    with store.create(job.case, job.stage, job.key, version=monitoring.PREDICTIONS_VERSION, seed=1) as draft:
        (draft.path / monitoring.PREDICTIONS).write_text("")
        metadata = PredictionsMetadata(
            checkpoint=inputs["finetuned_checkpoint"].ref, num_rows=0, num_without_text=0
        ).as_dict()
        digests = {
            name: inputs[name].content_digest for name in ("production_documents", "finetuned_checkpoint")
        }
        draft.commit(settings={}, inputs=digests, metadata=metadata)


class Production:
    """Windows of a project with a champion; workloads run in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.project = projects.create(root, monitoring=MONITORING)
        for name, value in self.project.env().items():
            monkeypatch.setenv(name, value)
        self.instance = dg.DagsterInstance.from_config(str(self.project.home))
        self.store = open_store(self.project.use_case(), self.instance)
        defs = dg.Definitions.merge(
            FullFineTune(self.project.use_case()).build_defs(),
            dg.Definitions(executor=dg.in_process_executor),
        )
        self.job = defs.resolve_implicit_global_asset_job_def()
        #: The workloads that were launched.
        self.launched: list[str] = []
        monkeypatch.setattr(LaunchDriver, "run", lambda _, __, workload, job, ___: self.run(workload, job))
        learned = documents.cut_batches(
            self.store, CASE, self.project.documents, self.project.use_case().settings.documents
        )[0]
        self._snapshot = snapshot_of(
            self.store, documents.keep(self.store, self.project.use_case(), learned.name)
        )
        self.promote("k1")
        settings = self.project.use_case().settings.documents
        for number in range(NUM_WINDOWS):
            rows = projects.licence_rows(30, skip=30 * number)
            rows = (
                [{**row, "text": row["text"].upper()} for row in rows] if number >= NUM_WINDOWS - 2 else rows
            )
            path = projects.write_rows(self.project.production / f"w{number}.jsonl", rows)
            os.utime(path, (1_000 + number, 1_000 + number))
            documents.cut_batches(self.store, CASE, self.project.production, settings, "window")
        self.windows = [window.name for window in documents.list_batches(self.store, CASE, "window")]
        self.instance.add_dynamic_partitions(f"{CASE}/window", self.windows)

    def promote(self, key: str) -> None:
        """Release a checkpoint."""
        with self.store.create(CASE, "finetuned_checkpoint", key, version="1", seed=1) as draft:
            (draft.path / "model").write_text(key)
            checkpoint = draft.commit(
                settings={},
                inputs={},
                metadata=checkpoint_metadata(labels=LABELS, snapshot=self._snapshot.ref),
            )
        set_latest(self.store, CASE, "finetuned_checkpoint", checkpoint)
        champion = release.Champion(
            checkpoint=checkpoint.ref,
            snapshot=self._snapshot.ref,
            evaluation="e",
            score=1,
            promoted_at=1.0,
            run_id="r",
        )
        release.promote(self.store, CASE, champion)

    def run(self, workload: str, job: Job) -> Manifest:
        self.launched.append(workload)
        WORKLOADS[workload].work(job, self.store, Progress(silent=True))
        made = self.store.find(job.case, job.stage, job.key)
        assert made is not None
        return made

    def read(self, window: str) -> bool:
        """Make the assets of a window; return whether that succeeded."""
        names = ("production_documents", "batch_predictions", "drift_report")
        result = self.job.execute_in_process(
            asset_selection=[dg.AssetKey([CASE, name]) for name in names],
            partition_key=window,
            instance=self.instance,
            raise_on_error=False,
        )
        return result.success

    def write_report(self, window: str) -> Manifest:
        """Write the drift report of a window as its run does, without Dagster's steps, which take long."""
        graph = CaseGraph(self.project.use_case())
        champion = release.read_champion(self.store, CASE)
        assert champion is not None
        checkpoint = self.store.load(champion.checkpoint)
        seen = documents.keep(self.store, graph.use_case, window, "window")
        history = read_history(graph, self.store, window, seen, checkpoint, {})
        inputs = {"production_documents": seen, "finetuned_checkpoint": checkpoint, **history.as_inputs()}
        key = monitoring.report_key(graph.settings, inputs)
        inputs["training_snapshot"] = self._snapshot
        report = self.run("monitoring", graph.job("drift_report", key, self.store, inputs))
        set_latest(self.store, CASE, "drift_report", report, window)
        return report


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Production]:
    monkeypatch.setattr(report_workload, "Reader", Reader)
    monkeypatch.setattr(report_workload, "_load_scale", load_scale)
    monkeypatch.setattr(report_workload, "label_names", lambda _: LABELS)
    monkeypatch.setattr(prediction_workload, "write_window", write_window)
    found = Production(tmp_path, monkeypatch)
    with found.instance:
        yield found


def test_one_process_makes_predictions_and_drift_report_of_a_window(production: Production) -> None:
    assert production.read(production.windows[0])
    assert production.launched == ["prediction"]
    for stage in ("batch_predictions", "drift_report"):
        assert latest(production.store, CASE, stage, production.windows[0]) is not None


def test_the_first_windows_under_the_next_champion_are_compared_with_calm_ones_before(
    production: Production,
) -> None:
    *calm, moved, last = production.windows
    reports = [production.write_report(window) for window in calm]
    statuses = [DriftMetadata.of(report).status for report in reports]
    assert statuses == ["warming_up", "insufficient_data", *["warming_up"] * 5]
    production.promote("k2")
    found = [DriftMetadata.of(production.write_report(window)) for window in (moved, last)]
    assert [about.status for about in found] == ["alarm", "confirmed"]
    # The second one has too few documents.
    assert (
        found[0].kept_reference == [reports[number].ref for number in (0, 2, 3, 4, 5, 6)]
        and not found[0].reference
    )
    assert found[0].scale == found[1].scale == DriftMetadata.of(reports[0]).scale
    assert {name for name in found[1].measured if name.startswith("p_")} == {"p_embeddings"}
    production.promote("k3")
    begins_anew = DriftMetadata.of(production.write_report(last))
    assert begins_anew.status == "warming_up", "it was released while windows alarmed"


def test_a_report_that_fails_beside_the_predictions_fails_in_its_own_step_alone(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = production.windows[:2]

    def fail(*_: Any) -> None:
        raise DataError("it cannot be read")

    with monkeypatch.context() as failing:
        failing.setattr(report_workload, "work", fail)
        assert not production.read(first)
    assert production.launched == ["prediction", "monitoring"]
    assert latest(production.store, CASE, "batch_predictions", first) is not None
    assert production.read(second) and production.read(first)
    assert latest(production.store, CASE, "drift_report", first) is not None


def test_a_drift_test_of_another_package_runs_through_the_report_of_a_window(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_package.install(
        tmp_path,
        "their-drift",
        {"their_drift.py": other_package.DRIFT_TEST},
        {"fullft_assets.drift_tests": {"longer": "their_drift:Longer"}},
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    vars(DRIFT_TESTS).pop("_theirs", None)
    try:
        names = ["embeddings", "longer"]
        production.project.configure(monitoring={**MONITORING, "drift_tests": names})
        reports = [production.write_report(window) for window in production.windows[:8]]
        first, last = (DriftMetadata.of(reports[number]) for number in (0, -1))
        sums = monitoring.Sums.load(production.store.folder(reports[-1]) / monitoring.SUMS)
        page = (production.store.folder(reports[-1]) / "report.md").read_text()
    finally:
        vars(DRIFT_TESTS).pop("_theirs", None)
        DRIFT_TESTS._loaded.pop("longer", None)
    assert first.status == "warming_up" and last.status == "alarm"
    assert {name for name in last.measured if name.startswith("p_")} == {"p_embeddings", "p_longer"}
    assert last.measured["p_longer"] == 0.001 and sums.means["longer"].shape == (1,)
    assert "texts are longer than the held-out rows" in last.summary and "| longer | 1 | **0.001** |" in page
