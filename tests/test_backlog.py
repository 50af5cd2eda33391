"""A backlog of windows is read by one workload, with the artifacts that each window's own run would make."""

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
from fullft_assets.assets.case import Case
from fullft_assets.assets.windows import read_history
from fullft_assets.component import FullFineTune
from fullft_assets.errors import DataError, WorkloadError
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.monitoring import DriftMetadata, Features, PredictionsMetadata, Scale
from fullft_assets.resources import latest, open_store
from fullft_assets.resources.pointers import set_latest
from fullft_assets.store import Manifest, Store
from fullft_assets.workloads import monitoring as report_workload
from fullft_assets.workloads import prediction as prediction_workload
from tests import project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.test_live_quality import CASE, snapshot_of
from tests.test_monitoring import draw

pytestmark = pytest.mark.slow

LABELS = ["notice", "reference", "text"]
WORKLOADS: dict[str, ModuleType] = {"prediction": prediction_workload, "monitoring": report_workload}
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


def load_scale(_: Job, store: Store, inputs: dict[str, Manifest], __: Any) -> tuple[Scale, None, str]:
    """Return a scale of each checkpoint's own, which is kept."""
    key = inputs["finetuned_checkpoint"].key
    if (made := store.find(CASE, "drift_scale", key)) is None:
        with store.create(CASE, "drift_scale", key, version="1", seed=1) as draft:
            Scale.fit(draw(np.random.default_rng(zlib.crc32(key.encode())), 200), len(LABELS)).save(
                draft.path / monitoring.SCALE
            )
            made = draft.commit(settings={}, inputs={}, metadata={})
    return Scale.load(store.folder(made) / monitoring.SCALE), None, made.ref


def write_window(job: Job, store: Store, progress: Progress) -> None:
    """Predict nothing."""
    inputs = job.load_inputs(store)
    with store.create(job.case, job.stage, job.key, version=monitoring.PREDICTIONS_VERSION, seed=1) as draft:
        (draft.path / monitoring.PREDICTIONS).write_text("")
        metadata = PredictionsMetadata(
            checkpoint=inputs["finetuned_checkpoint"].ref, num_rows=0, num_without_text=0
        ).as_dict()
        draft.commit(
            settings={},
            inputs={name: made.content_digest for name, made in inputs.items()},
            metadata=metadata,
        )


class Production:
    """Windows of a project with a champion; workloads run in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.project = projects.create(
            root,
            monitoring={"path": "data/letters/production", "min_window_rows": 20, "reference_windows": 6},
        )
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

    def find_report(self, window: str) -> Manifest:
        """Return the drift report that the run of a window would ask for, and go on as behind that run."""
        case = Case(self.project.use_case())
        champion = release.read_champion(self.store, CASE)
        assert champion is not None
        checkpoint, seen = (
            self.store.load(champion.checkpoint),
            documents.keep(self.store, case.use_case, window, "window"),
        )
        history = read_history(case, self.store, window, seen, checkpoint, {})
        inputs = {"production_documents": seen, "finetuned_checkpoint": checkpoint, **history.as_inputs()}
        found = self.store.find(CASE, "drift_report", monitoring.report_key(case.settings, inputs))
        assert found is not None
        set_latest(self.store, CASE, "drift_report", found, window)
        return found

    def made(self) -> list[tuple[str, ...]]:
        """Return window, key of the predictions, key and verdict of the drift report of each window that was
        read.
        """
        found = []
        for window in self.windows:
            predictions, report = (
                latest(self.store, CASE, stage, window) for stage in ("batch_predictions", "drift_report")
            )
            if predictions is not None and report is not None:
                found.append((window, predictions.key, report.key, DriftMetadata.of(report).status))
        return found


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Production]:
    monkeypatch.setattr(report_workload, "Reader", Reader)
    monkeypatch.setattr(report_workload, "_load_scale", load_scale)
    monkeypatch.setattr(report_workload, "label_names", lambda _: LABELS)
    monkeypatch.setattr(prediction_workload, "write_window", write_window)
    found = Production(tmp_path, monkeypatch)
    with found.instance:
        yield found


def test_one_workload_makes_of_a_backlog_what_the_windows_own_runs_ask_for(production: Production) -> None:
    first, second, *rest = production.windows
    assert production.read(first) and production.read(second)
    assert production.launched == ["prediction"]
    statuses = [status for *_, status in production.made()]
    for window in rest:  # without Dagster's steps, which take long
        statuses.append(DriftMetadata.of(production.find_report(window)).status)
    assert statuses == ["warming_up", "insufficient_data", *["warming_up"] * 5, "alarm", "confirmed"]


def test_the_first_windows_under_the_next_champion_are_compared_with_calm_ones_before(
    production: Production,
) -> None:
    *calm, moved, last = production.windows
    assert production.read(calm[0])
    reports = [production.find_report(window) for window in calm]
    production.promote("k2")
    assert production.read(moved)
    found = [DriftMetadata.of(production.find_report(window)) for window in (moved, last)]
    assert [about.status for about in found] == ["alarm", "confirmed"]
    # The second one has too few documents.
    assert (
        found[0].kept_reference == [reports[number].ref for number in (0, 2, 3, 4, 5, 6)]
        and not found[0].reference
    )
    assert found[0].scale == found[1].scale == DriftMetadata.of(reports[0]).scale
    assert {name for name in found[1].measured if name.startswith("p_")} == {"p_embeddings"}
    production.promote("k3")
    assert production.read(last)
    assert [status for *_, status in production.made()][-1] == "warming_up", (
        "it was released while windows alarmed"
    )


def test_a_window_that_fails_ahead_fails_in_its_own_run_alone(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = production.windows[:3]

    def write(job: Job, store: Store, progress: Progress) -> None:
        if job.load_inputs(store)["production_documents"].metadata["batch"] == second:
            raise DataError("it cannot be read")
        write_window(job, store, progress)

    monkeypatch.setattr(prediction_workload, "write_window", write)
    assert production.read(first)
    assert not production.read(second)
    assert production.read(third)
    assert [window for window, *_ in production.made()] == [first, third]
    # Its drift report does not need its predictions, and is made by a workload of its own, with those behind
    # it.
    assert production.launched == ["prediction", "prediction", "monitoring", "prediction"]
    assert all(latest(production.store, CASE, "drift_report", window) for window in (first, second, third))


def test_what_was_made_before_its_process_died_ahead_counts(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = production.run

    def killed(workload: str, job: Job) -> Manifest:
        run(workload, job)
        raise WorkloadError("was killed", "out_of_memory")

    monkeypatch.setattr(production, "run", killed)
    assert production.read(production.windows[0])
    assert [window for window, *_ in production.made()] == production.windows[:1]


def test_a_window_that_comes_late_changes_nothing(production: Production) -> None:
    late, first, second = production.windows[3:6]
    assert production.read(first)
    made = production.made()
    assert production.read(late) and production.read(second)
    # Neither reads ahead of the one that was read; what that one has made ahead still counts.
    assert production.launched == ["prediction", "prediction"]
    assert set(made) < set(production.made())
