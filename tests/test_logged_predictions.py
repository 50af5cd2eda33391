"""Predictions from the user's own log: only the champion's count, nothing else takes their place, and nothing
of a row is shown.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from fullft_assets import documents, monitoring, release
from fullft_assets.component import FullFineTune
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.monitoring import (
    PREDICTIONS,
    DriftMetadata,
    LiveMetadata,
    PredictionsMetadata,
    Scale,
    Sums,
    predictions,
)
from fullft_assets.resources import open_store
from fullft_assets.settings import LogSettings
from fullft_assets.store import Manifest, Store
from fullft_assets.workloads import monitoring as workload
from tests import project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.test_live_quality import CASE, Live, snapshot_of
from tests.test_monitoring import draw

LABELS = ["notice", "reference", "text"]
BY_MODEL = {"prediction": "answer", "score": "p", "model": "version"}
BY_TIME = {"prediction": "answer", "time": "at"}
#: When the champion came into use: 2026-03-01T00:00:00Z.
SINCE = 1_772_323_200.0


def rows(version: str) -> list[dict[str, Any]]:
    """Return documents of which the champion, `version`, answered the first three."""
    about = [
        {"answer": "notice", "p": 0.9, "version": version, "at": "2026-03-01T01:00:00+00:00"},
        {"answer": "Text", "p": "0.5", "version": f"registry/{version}-a1", "at": SINCE + 60},
        {"answer": "text", "p": 55, "version": version, "at": "2026-03-02"},
        {"answer": "text", "p": 0.1, "version": "another", "at": "2026-02-28T23:00:00+00:00"},
        {"answer": "secret of Mrs Zorblax", "p": 0.1, "version": version, "at": 1000 * (SINCE + 60)},
        {"answer": None, "version": version, "at": "2026-03-02"},
        {"answer": "notice", "p": 0.2},
    ]
    texts = projects.licence_rows(len(about))
    return [
        {"id": f"d{n}", "text": text["text"], **row}
        for n, (text, row) in enumerate(zip(texts, about, strict=True))
    ]


class Logged:
    """A window of production whose rows have what models answered, and a champion without a model."""

    def __init__(self, project: projects.Project, log: dict[str, str]):
        project.configure(monitoring={"path": "data/letters/production", "log": log})
        self.project, self.store = project, Store(str(project.home / "store"))
        with self.store.create(CASE, "finetuned_checkpoint", "c0ffee", version="1", seed=1) as draft:
            self.champion = draft.commit(settings={}, inputs={}, metadata=checkpoint_metadata(labels=LABELS))

    def see(self, file: str, delivered: list[dict[str, Any]]) -> Manifest:
        projects.write_rows(self.project.production / file, delivered)
        cut = documents.cut_batches(
            self.store, CASE, self.project.production, self.project.use_case().settings.documents, "window"
        )
        return documents.keep(self.store, self.project.use_case(), cut[-1].name, "window")

    def read(self, window: Manifest) -> Manifest:
        log = self.project.use_case().settings.monitoring.log
        assert log is not None
        return monitoring.read_log(
            self.store,
            CASE,
            log=log,
            documents=window,
            champion=self.champion,
            since=SINCE,
            labels=LABELS,
            seed=1,
        )

    def lines(self, made: Manifest) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.store.folder(made) / PREDICTIONS).read_text().splitlines()]


@pytest.mark.parametrize("log", [BY_MODEL, BY_TIME], ids=["model", "time"])
def test_only_what_the_champion_answered_counts(project: projects.Project, log: dict[str, str]) -> None:
    logged = Logged(project, log)
    made = logged.read(logged.see("w1.jsonl", rows("c0ffee")))
    assert [(line["id"], line["label"]) for line in logged.lines(made)] == [
        ("d0", "notice"),
        ("d1", "text"),
        ("d2", "text"),
    ]
    found = PredictionsMetadata.of(made)
    other = {"not known to be the champion's": 2, "none of the champion's labels": 1, "no prediction": 1}
    assert (found.num_rows, found.left_out) == (3, other)
    # A score of 55 is no probability; without a field of scores nothing is estimated.
    assert found.estimated_accuracy == (pytest.approx(0.7) if "score" in log else None)
    [check] = made.checks
    assert not check.passed and check.severity == "warn"
    assert check.description.startswith(
        "3 of 7 documents have a prediction of the champion in the log; of the others 1 no prediction, 1 none"
        " of the champion's labels, 2 not "
    )
    assert "Zorblax" not in made.model_dump_json()


@pytest.mark.parametrize(
    ("at", "counts"),
    [
        (str(SINCE + 60), True),
        (f"{SINCE + 60:.0f}000", True),
        (f"{SINCE + 60:.0f}000000", True),
        (f"{SINCE - 60:.0f}000000", False),
        (f"{SINCE - 60:.0f}000000000", False),
        ("20260302", True),
        ("20260227", False),
        ("inf", False),
        ("1e400", False),
        ("nan", False),
        ("yesterday", False),
    ],
)
def test_a_time_is_read_in_any_unit(at: str, counts: bool) -> None:
    champion = Manifest.model_construct(key="c0ffee")
    assert (
        predictions._answered_by(champion, LogSettings.model_validate(BY_TIME), SINCE)({"predicted_at": at})
        is counts
    )


def test_a_label_in_another_case_is_one_only_where_no_other_is_like_it(project: projects.Project) -> None:
    labels = ["IT", "it", "Sales"]
    found = Logged(project, BY_MODEL)
    texts = projects.licence_rows(4)
    answers = ("It", "it", "IT", "SALES")
    window = found.see(
        "w1.jsonl",
        [
            {"id": a, "text": row["text"], "answer": a, "version": "c0ffee"}
            for a, row in zip(answers, texts, strict=True)
        ],
    )
    log = LogSettings.model_validate(BY_MODEL)
    made = monitoring.read_log(
        found.store,
        CASE,
        log=log,
        documents=window,
        champion=found.champion,
        since=SINCE,
        labels=labels,
        seed=1,
    )
    assert [(line["id"], line["label"]) for line in found.lines(made)] == [
        ("it", "it"),
        ("IT", "IT"),
        ("SALES", "Sales"),
    ]


def test_another_log_is_another_artifact_and_batches_have_no_such_columns(project: projects.Project) -> None:
    logged = Logged(project, BY_MODEL)
    window = logged.see("w1.jsonl", rows("c0ffee"))
    first = logged.read(window)
    assert logged.read(window).ref == first.ref
    project.configure(monitoring={"path": "data/letters/production", "log": BY_TIME})
    [batch] = documents.list_batches(logged.store, CASE, "window")
    again = documents.keep(logged.store, project.use_case(), batch.name, "window")
    assert again.ref != window.ref and logged.read(again).ref != first.ref
    [cut] = documents.cut_batches(
        logged.store, CASE, project.documents, project.use_case().settings.documents
    )
    raw = documents.keep(logged.store, project.use_case(), cut.name)
    assert "log" not in raw.settings
    import pyarrow.parquet as pq

    assert not {"predicted", "score"} & set(
        pq.read_schema(logged.store.folder(raw) / "documents.parquet").names
    )


def test_drift_compares_the_documents_that_the_champion_answered_by_its_answers(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(project, BY_MODEL)
    texts = projects.licence_rows(120, skip=100)
    delivered = [
        {
            "id": row["id"],
            "text": row["text"],
            "answer": LABELS[n % 2],
            "version": "c0ffee" if n < 100 else "another",
        }
        for n, row in enumerate(texts)
    ]
    window = logged.see("w1.jsonl", delivered)
    rng = np.random.default_rng(1)

    class Reader:
        @staticmethod
        def open(*_: Any) -> Reader:
            return Reader()

        def read(self, texts: list[str], _: Any) -> monitoring.Features:
            return draw(rng, len(texts), predicted=2)

    monkeypatch.setattr(workload, "Reader", Reader)
    monkeypatch.setattr(
        workload,
        "_load_scale",
        lambda *_: (Scale.fit(draw(rng, 200), len(LABELS)), None, "c/drift_scale/k/a"),
    )
    monkeypatch.setattr(workload, "label_names", lambda _: LABELS)

    def job(key: str, least: int, **more: Manifest) -> Job:
        settings = project.use_case().settings
        changed = settings.monitoring.model_copy(update={"min_window_rows": least})
        inputs = {
            "production_documents": window,
            "training_snapshot": window,
            "finetuned_checkpoint": logged.champion,
            **more,
        }
        return Job(
            case=CASE,
            stage="drift_report",
            key=key,
            project_root=str(project.root),
            store_url=logged.store.url,
            settings=settings.model_copy(update={"monitoring": changed}),
            inputs={name: made.ref for name, made in inputs.items()},
        )

    def report(key: str, least: int, **more: Manifest) -> Manifest:
        workload.work(job(key, least, **more), logged.store, Progress(silent=True))
        made = logged.store.find(CASE, "drift_report", key)
        assert made is not None
        return made

    made = report("k1", 20, batch_predictions=logged.read(window))
    found, counts = (
        DriftMetadata.of(made),
        Sums.load(logged.store.folder(made) / monitoring.SUMS).counts.tolist(),
    )
    assert sum(counts) == found.num_rows <= 100 and counts[2] == 0 and min(counts[:2]) > 20
    assert found.num_unreadable == 0 and found.num_related_left_out == 100 - found.num_rows
    # The words of a reference window are those of the documents that its sums are of.
    compared = workload._texts(logged.store, made, job("k1", 20))
    assert len(compared) == found.num_rows and {*compared} <= {row["text"] for row in delivered[:100]}
    # Without the log the model itself predicts, all documents alike.
    alone = Sums.load(logged.store.folder(report("k2", 20)) / monitoring.SUMS).counts.tolist()
    assert alone[:2] == [0, 0] and alone[2] > sum(counts)
    few = report("k3", 110, batch_predictions=logged.read(window))
    assert DriftMetadata.of(few).status == "insufficient_data"
    assert "20 more have no prediction of the champion in the log" in DriftMetadata.of(few).summary


def test_live_quality_never_mixes_a_log_with_what_the_champion_predicts_anew(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in project.env().items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        seen = Live(project, open_store(project.use_case(), instance))
        labelled = [{**row, "expression": row["id"]} for row in projects.licence_rows(60, skip=2_000)]
        seen.promote(snapshot_of(seen.store, seen.label("learned.jsonl", labelled[:5])))
        # Predicted anew, all of it right.
        seen.see("w0.jsonl", labelled[5:20], predicted={row["id"]: row["kind"] for row in labelled})
        seen.label("late.jsonl", labelled[5:])
        before = LiveMetadata.of(seen.measure(instance)[0])
        assert before.num_labelled == before.num_right > 0
        # The log has wrong answers, and of every other document none of the champion.
        wrong = {"notice": "text"}
        answered = [
            {
                "id": row["id"],
                "text": row["text"],
                "answer": wrong.get(row["kind"], "notice"),
                "version": ("k1", "old")[n % 2],
            }
            for n, row in enumerate(labelled[20:])
        ]
        log = LogSettings(prediction="answer", model="version")
        project.configure(monitoring={"path": "data/letters/production", "log": log.model_dump()})
        projects.write_rows(project.production / "w1.jsonl", answered)
        use_case = project.use_case()
        cut = documents.cut_batches(
            seen.store, CASE, project.production, use_case.settings.documents, "window"
        )
        window = documents.keep(seen.store, use_case, cut[-1].name, "window")
        made = monitoring.read_log(
            seen.store,
            CASE,
            log=log,
            documents=window,
            champion=seen.checkpoint,
            since=0,
            labels=LABELS,
            seed=1,
        )
        seen.point("production_documents", cut[-1].name, window)
        seen.point("batch_predictions", cut[-1].name, made)
        after = LiveMetadata.of(seen.measure(instance)[0])
        assert (after.num_windows, after.num_right) == (1, 0)
        assert 0 < after.num_documents <= 20
        project.configure(monitoring={"path": "data/letters/production"})
        assert LiveMetadata.of(seen.measure(instance)[0]) == before


def test_after_a_roll_back_the_champion_is_in_use_since_then(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for checkpoint, at in (("c1", 10.0), ("c2", 20.0)):
        release.promote(
            store,
            CASE,
            release.Champion(
                checkpoint=checkpoint, snapshot="s", evaluation="e", score=1, promoted_at=at, run_id="r"
            ),
        )
    began = time.time()
    release.rollback(store, CASE, reason="slower", by="ann")
    state = release.read_state(store, CASE)
    assert state is not None and (state.checkpoint, state.promoted_at) == ("c1", 10.0)
    assert began <= state.in_use_since <= time.time()


def test_the_assets_take_them_from_the_log(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in project.env().items():
        monkeypatch.setenv(name, value)
    logged = Logged(project, {**BY_TIME, "score": "p"})
    (project.home / "run.log").touch()
    projects.write_rows(project.production / "w1.jsonl", rows("c0ffee"))
    champion = release.Champion(
        checkpoint=logged.champion.ref, snapshot="s", evaluation="e", score=0.9, promoted_at=SINCE, run_id="r"
    )
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        store = open_store(project.use_case(), instance)
        release.promote(store, CASE, champion)
        [window] = documents.cut_batches(
            store, CASE, project.production, project.use_case().settings.documents, "window"
        )
        defs = dg.Definitions.merge(
            FullFineTune(project.use_case()).build_defs(), dg.Definitions(executor=dg.in_process_executor)
        )
        instance.add_dynamic_partitions(f"{CASE}/window", [window.name])
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[
                dg.AssetKey([CASE, name]) for name in ("production_documents", "batch_predictions")
            ],
            partition_key=window.name,
            instance=instance,
        )
        [made] = store.artifacts(CASE, "batch_predictions")
        assert result.success and len(logged.lines(made)) == 3
        checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
        assert checks[monitoring.LOG_CHECK.name] is False
    assert "Zorblax" not in project.logged()
