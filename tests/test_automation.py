"""Sensors and schedules: evaluated directly on real artifacts, and driven by a real daemon."""

import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml

from fullft_assets import automation, chunks, documents, examples, release, retraining, snapshot
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import gather
from fullft_assets.automation.runs import REASONS_TAG, find_due
from fullft_assets.chunks import ingestion
from fullft_assets.component import FullFineTune
from fullft_assets.evaluation import CHAMPION
from fullft_assets.monitoring import Status
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.security import read_record
from fullft_assets.store import Manifest, Store
from tests import manifests, project as projects
from tests.asset_runs import run_assets
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import Prepared, prepare, write_tiny_model

SECONDS = 150.0
STARTED = dg.DagsterRunStatus.STARTED


class Bench:
    """A prepared project whose sensors are evaluated here, without a daemon."""

    def __init__(self, prepared: Prepared, instance: dg.DagsterInstance):
        self.prepared, self.instance, self.store = prepared, instance, prepared.store
        self.name = prepared.use_case.name

    @property
    def case(self) -> CaseGraph:
        return CaseGraph(self.prepared.project.use_case())

    def tick(self, sensor: str) -> Any:
        """Evaluate a sensor; what it logs is in `said`."""
        definition = next(s for s in automation.build_sensors(self.case) if s.name == f"{self.name}_{sensor}")
        context = dg.build_sensor_context(instance=self.instance, resources=self.case.resources())
        self.said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context.log, "info", self.said.append)
            return definition(context)

    def add_run(self, job_name: str, status: dg.DagsterRunStatus = STARTED, **tags: str) -> dg.DagsterRun:
        run = dg.DagsterRun(job_name=job_name, run_id=str(uuid.uuid4()), status=status, tags=tags)
        self.instance.add_run(run)
        return run

    def point(self, asset: str, manifest: Manifest, partition: str = "all") -> None:
        """Make an artifact the newest of its asset, as the IO manager does."""
        self.store.write_pointer(f"latest/{self.name}/{asset}/{partition}", {"ref": manifest.ref})

    def artifact(self, stage: str, key: str, **metadata: Any) -> Manifest:
        return manifests.write(self.store, self.name, stage, key, metadata)

    def ingest(self) -> None:
        """Read every batch that was cut, as the ingest job does."""
        for batch in documents.list_batches(self.store, self.name):
            raw = documents.keep(self.store, self.prepared.use_case, batch.name)
            labeled, _ = examples.validate(self.store, self.prepared.use_case, raw)
            self.point("labeled_examples", labeled, batch.name)
            self.point(
                "tokenized_chunks", chunks.tokenize(self.store, self.prepared.use_case, labeled), batch.name
            )
            ingestion.mark_done(self.store, self.prepared.use_case, batch.name)

    def deliver(self, file: str, *, skip: int, rows: int = 120) -> None:
        self.prepared.project.deliver(file, projects.licence_rows(rows, skip=skip))
        documents.cut_batches(
            self.store, self.name, self.prepared.project.documents, self.case.settings.documents
        )
        self.ingest()

    def train(self) -> Manifest:
        metadata = checkpoint_metadata(snapshot=self.prepared.snapshot.ref, training_seconds=60.0)
        checkpoint = self.artifact("finetuned_checkpoint", f"k{time.time_ns()}", **metadata)
        self.point("finetuned_checkpoint", checkpoint)
        return checkpoint

    def window(self, name: str, status: Status) -> None:
        self.point("drift_report", self.artifact("drift_report", name, **manifests.drift(status)), name)

    def champion(self, checkpoint: str, evaluation: str = "e", since: float | None = None) -> None:
        manifests.promote(
            self.store,
            self.name,
            checkpoint,
            evaluation=evaluation,
            promoted_at=(time.time() if since is None else since),
        )

    def live(self, key: str, **measured: Any) -> None:
        """Record what labels say of the champion in production."""
        metadata = {
            "num_windows": 1,
            "num_documents": 300,
            "num_labelled": 200,
            "num_right": 160,
            "accuracy": 0.8,
            "accuracy_low": 0.7,
            "accuracy_high": 0.85,
            "release_accuracy": 0.9,
            "release_accuracy_low": 0.87,
            "drop": 0.1,
            **measured,
        }
        self.point("live_quality", self.artifact("live_quality", key, **metadata))

    def decisions(self) -> list[retraining.RecordedDecision]:
        folder = f"{self.name}/retraining_decisions"
        return [
            retraining.RecordedDecision.model_validate(self.store.read_pointer(f"{folder}/{name}"))
            for name in self.store.list_pointers(folder)
        ]

    def count(self) -> None:
        """Take the snapshot that counts what was delivered, as its job does."""
        parts = [
            latest_by_partition(self.store, self.name, asset)
            for asset in ("labeled_examples", "tokenized_chunks")
        ]
        self.point("training_snapshot", snapshot.take(self.store, self.prepared.use_case, *parts))

    def run(self, request: dg.RunRequest, outcome: str, failure: str | None = None) -> None:
        """Let a run that was asked for end: a job of one op with the name and the tags that the daemon gives
        it.
        """

        @dg.op
        def stage() -> None:
            if outcome == "failed":
                raise dg.Failure("planted", metadata={} if failure is None else {"failure": failure})

        key = {"dagster/run_key": request.run_key} if request.run_key else {}
        job = dg.GraphDefinition(name=request.job_name, node_defs=[stage]).to_job(
            tags={"use_case": self.name, **request.tags, **key}
        )
        result = job.execute_in_process(instance=self.instance, raise_on_error=False)
        if outcome == "cancelled":
            self.instance.add_run(
                result.dagster_run.with_status(dg.DagsterRunStatus.CANCELED)._replace(
                    run_id=str(uuid.uuid4())
                )
            )
            self.instance.delete_run(result.run_id)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    quick = {
        "min_new_examples": 100,
        "cooldown_hours": 0.0,
        "min_new_examples_on_drift": 50,
    }
    return prepare(
        tmp_path_factory.mktemp("bench"),
        tiny=True,
        retraining=quick,
        monitoring={"path": "data/letters/production"},
    )


@pytest.fixture
def bench(template: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A copy of the prepared project, ingested, with an instance of its own."""
    monkeypatch.delenv("FULLFT_STORE", raising=False)
    shutil.copytree(template.project.root, tmp_path, dirs_exist_ok=True)
    project = projects.Project(tmp_path, template.project.name)
    prepared = Prepared(project, project.use_case(), Store(str(project.home / "store")), template.snapshot)
    with dg.DagsterInstance.from_config(str(prepared.project.home)) as instance:
        bench = Bench(prepared, instance)
        bench.ingest()
        bench.count()
        yield bench


class TestDeliverySensor:
    def test_each_batch_is_asked_for_until_it_is_done(self, bench):
        assert bench.tick("new_documents").skip_message.endswith("new in data/letters/documents")
        path = bench.prepared.project.deliver("a-late.jsonl", projects.licence_rows(30, skip=400))
        os.utime(path, (1e9, 1e9))  # sorts and dates before what is there
        first, again = bench.tick("new_documents"), bench.tick("new_documents")
        (request,) = first.run_requests
        assert request.run_key == again.run_requests[0].run_key
        assert request.run_key.startswith(request.partition_key)
        assert first.dynamic_partitions_requests[0].partition_keys == [request.partition_key]
        assert [
            file.path for file in documents.read_batch(bench.store, bench.name, request.partition_key).files
        ] == ["a-late.jsonl"]
        bench.ingest()
        assert isinstance(bench.tick("new_documents"), dg.SkipReason)

    def several(self, bench: Bench, count: int, **settings: int) -> list[str]:
        """Deliver files that become a batch each; return the batches' names."""
        bench.prepared.project.configure(base_model="model", documents={"max_batch_files": 1, **settings})
        for number in range(count):
            bench.prepared.project.deliver(
                f"more-{number}.jsonl", projects.licence_rows(3, skip=500 + 3 * number)
            )
        documents.look(bench.store, bench.prepared.project.use_case())
        return [batch.name for batch in documents.list_batches(bench.store, bench.name)][1:]

    def add_run(
        self,
        bench: Bench,
        request: dg.RunRequest,
        status: dg.DagsterRunStatus = STARTED,
        **tags: str,
    ) -> dg.DagsterRun:
        tags |= {"dagster/partition": request.partition_key, "dagster/run_key": request.run_key}
        return bench.add_run("letters_ingest", status, **request.tags, **tags)

    def asked(self, bench: Bench) -> list[str]:
        result = bench.tick("new_documents")
        return (
            []
            if isinstance(result, dg.SkipReason)
            else [request.partition_key for request in result.run_requests]
        )

    def test_a_tick_asks_for_so_many_runs_and_what_is_in_flight_takes_no_place(self, bench, monkeypatch):
        monkeypatch.setattr(documents, "MAX_RUNS_A_TICK", 2)
        names = self.several(bench, 5)
        for expected in (names[:2], names[2:4], names[4:]):
            requests = bench.tick("new_documents").run_requests
            assert [request.partition_key for request in requests] == expected
            for request in requests:
                self.add_run(bench, request)
        assert bench.tick("new_documents").skip_message.endswith("; 5 batch(es) in flight")

    def test_a_batch_whose_run_failed_comes_after_those_that_had_none(self, bench, monkeypatch):
        monkeypatch.setattr(documents, "MAX_RUNS_A_TICK", 2)
        names = self.several(bench, 4)
        for request in bench.tick("new_documents").run_requests:
            self.add_run(bench, request, dg.DagsterRunStatus.FAILURE)
        assert self.asked(bench) == names[2:]
        for request in bench.tick("new_documents").run_requests[:1]:
            self.add_run(bench, request)
        assert self.asked(bench) == [names[3]]
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert self.asked(bench) == [names[3], names[0]]

    def fail(self, bench: Bench, request: dg.RunRequest, failure: str | None) -> None:
        """Let a run that was asked for fail now; None: from outside, not by a step."""
        bench.instance.report_run_failed(
            self.add_run(bench, request, **({} if failure is None else {"delivery/failure": failure}))
        )

    @pytest.mark.parametrize(
        ("failure", "is_transient"), [(None, True), ("preemption", True), ("gate", False)]
    )
    def test_a_batch_whose_run_failed_is_asked_for_under_a_new_key_later_and_later(
        self, bench, monkeypatch, failure, is_transient
    ):
        """An outage of two days lost what was delivered during it until somebody asked."""
        _, name = self.several(bench, 1) and documents.list_batches(bench.store, bench.name)
        (request,) = bench.tick("new_documents").run_requests
        keys, clock = [request.run_key], time.time()
        for hours in (1, 2, 4, 8, 16, *([24, 24] if is_transient else [])):
            monkeypatch.setattr(time, "time", lambda now=clock: now)
            self.fail(bench, request, failure)
            clock += 3_600 * hours
            monkeypatch.setattr(time, "time", lambda now=clock: now - 60)
            assert "; 1 batch(es) whose run" in bench.tick("new_documents").skip_message
            monkeypatch.setattr(time, "time", lambda now=clock: now + 60)
            (request,) = bench.tick("new_documents").run_requests
            keys.append(request.run_key)
        assert len(set(keys)) == len(keys) and request.tags == {"delivery/run_key": keys[0]}
        if not is_transient:
            self.fail(bench, request, failure)
            monkeypatch.setattr(time, "time", lambda: clock + 1e7)
            named = f"batch {name.name} ({failure}): not started again by itself"
            assert named in bench.tick("new_documents").skip_message

    @pytest.mark.parametrize(
        ("failure", "is_asked_for"), [("data", False), ("settings", False), ("gate", True), (None, True)]
    )
    def test_what_fails_again_until_something_changes_is_not_asked_for(
        self, bench, monkeypatch, failure, is_asked_for
    ):
        self.several(bench, 1)
        (request,) = bench.tick("new_documents").run_requests
        tags = {**request.tags, "dagster/partition": str(request.partition_key)}
        bench.run(request._replace(job_name="letters_ingest", tags=tags), "failed", failure)
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        for _ in range(2):
            tick = bench.tick("new_documents")
            if is_asked_for:
                assert tick.run_requests[0].run_key == f"{request.run_key}-1"
            else:
                assert (
                    f"batch {request.partition_key} ({failure}): not started again by itself"
                    in tick.skip_message
                )
        (held,) = find_due(bench.case, bench.instance, bench.store, "batch", "letters_ingest").held or [None]
        assert (held is None) == is_asked_for

    def test_a_batch_that_was_done_and_is_not_in_a_restored_store_is_asked_for_again(
        self, bench, monkeypatch
    ):
        self.several(bench, 1)
        (request,) = bench.tick("new_documents").run_requests
        self.add_run(bench, request, dg.DagsterRunStatus.SUCCESS)
        # Its run may have ended just now.
        assert "asked for again" in bench.tick("new_documents").skip_message
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert bench.tick("new_documents").run_requests[0].run_key == f"{request.run_key}-1"

    def test_a_run_that_a_person_cancelled_is_not_asked_for_again_and_each_tick_says_so_in_one_line(
        self, bench, monkeypatch
    ):
        names = self.several(bench, 7)
        for request in bench.tick("new_documents").run_requests:
            self.add_run(bench, request, dg.DagsterRunStatus.CANCELED)
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        line = f"batch {', '.join(f'{name} (cancelled)' for name in names[:5])} and 2 more: not started again"
        held = find_due(bench.case, bench.instance, bench.store, "batch", "letters_ingest").held
        assert [request.partition_key for request in held] == names
        # Beside a run that is asked for, the log says it.
        bench.prepared.project.deliver("one-more.jsonl", projects.licence_rows(3, skip=600))
        (asked,) = bench.tick("new_documents").run_requests
        assert asked.partition_key not in names and bench.said[-1].startswith(line)
        for request in held:
            self.add_run(bench, request, dg.DagsterRunStatus.FAILURE)
        assert bench.tick("new_documents") and not [line for line in bench.said if "cancelled" in line]

    def test_a_run_that_a_dying_daemon_made_and_did_not_launch_is_asked_for_again(self, bench, monkeypatch):
        monkeypatch.setattr(documents, "MAX_RUNS_A_TICK", 1)
        names = self.several(bench, 2)
        (request,) = bench.tick("new_documents").run_requests
        self.add_run(bench, request, dg.DagsterRunStatus.NOT_STARTED)
        (again,) = bench.tick("new_documents").run_requests
        assert (again.run_key, again.partition_key) == (request.run_key, names[0])

    def test_a_batch_that_was_never_read_and_whose_files_are_gone_is_left_alone(self, bench):
        gone, kept = self.several(bench, 2)
        (bench.prepared.project.documents / "more-0.jsonl").unlink()
        assert self.asked(bench) == [kept]
        # Of one that was read the rows are still there, so that another setting reaches them.
        bench.point("raw_documents", documents.keep(bench.store, bench.prepared.use_case, kept), kept)
        (bench.prepared.project.documents / "more-1.jsonl").unlink()
        assert self.asked(bench) == [kept]

    def test_files_with_other_endings_are_reported_and_shown_by_a_check_once(self, bench):
        (bench.prepared.project.documents / "a.doc").write_text("x")
        first = bench.tick("new_documents")
        (event,) = first.asset_events
        assert (event.check_name, event.passed, event.severity) == (
            "delivered_files_are_read",
            False,
            dg.AssetCheckSeverity.WARN,
        )
        assert event.metadata["num_not_read"].value == 1 and first.cursor

    def test_a_materialisation_of_what_writes_the_folder_starts_the_ingestion(self, bench):
        """Between two materialisations no tick looks; after one, each does until all that was delivered is
        ingested.
        """
        bench.prepared.project.configure(base_model="model", documents={"deps": ["team/exports"]})
        sensor = automation.build_sensors(bench.case)[0]
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING, "without automation.enabled"

        def tick(cursor: str | None) -> Any:
            found = sensor(
                dg.build_sensor_context(bench.instance, cursor=cursor, resources=bench.case.resources())
            )
            return (
                found
                if isinstance(found, dg.SensorResult)
                else SimpleNamespace(skip_message=found.skip_message, cursor=cursor)
            )

        first = tick(None)
        bench.prepared.project.deliver("export.jsonl", projects.licence_rows(3, skip=500))
        assert tick(first.cursor).skip_message.startswith("no new materialization of team/exports")
        bench.instance.report_runless_asset_event(dg.AssetMaterialization(["team", "exports"]))
        asked = tick(first.cursor)
        (request,) = asked.run_requests
        self.add_run(bench, request)
        running = tick(asked.cursor)
        assert running.skip_reason.skip_message.endswith("; 1 batch(es) in flight")
        bench.ingest()
        done = tick(running.cursor)
        assert tick(done.cursor).skip_message.startswith("no new materialization of team/exports")
        bench.prepared.project.configure(
            base_model="model", documents={"deps": ["team/exports"]}, chunks={"max_tokens": 16}
        )
        (sensor, *_) = automation.build_sensors(CaseGraph(bench.prepared.project.use_case()))
        assert tick(done.cursor).run_requests, "what the edited YAML makes of it is due"

    def test_windows_wait_for_a_model(self, bench):
        for number in (1, 2):
            projects.write_rows(
                bench.prepared.project.production / f"w{number}.jsonl", projects.licence_rows(30)
            )
        assert bench.tick("new_production_documents").skip_message.startswith("no model yet")
        bench.train()
        requests = bench.tick("new_production_documents").run_requests
        assert len({request.run_key for request in requests}) == 2  # each file is a window
        bench.window(requests[0].partition_key, "ok")
        assert [r.run_key for r in bench.tick("new_production_documents").run_requests] == [
            requests[1].run_key
        ]

    def test_a_batch_between_two_steps_of_its_ingestion_waits_for_the_next_snapshot(self, bench):
        """A model run or the daily evaluation that came at that moment failed."""
        bench.deliver("more.jsonl", skip=400)
        before, arriving = (batch.name for batch in documents.list_batches(bench.store, bench.name))
        bench.store.delete_pointer(f"latest/letters/tokenized_chunks/{arriving}")
        bench.instance.add_dynamic_partitions("letters/batch", [before, arriving])

        def take() -> bool:
            return run_assets(bench.case.use_case, bench.instance, "training_snapshot").success

        assert not take()
        bench.add_run("letters_ingest", **{"dagster/partition": arriving})
        assert take()
        _, signals = gather(bench.case, bench.instance, bench.store, {}, time.time())
        assert (
            list(snapshot.SnapshotMetadata.of(latest(bench.store, "letters", "training_snapshot")).parts)
            == [before]
            and signals.num_uncounted > 0
        )

    def test_partitions_that_an_instance_has_lost_come_back(self, bench):
        (done,) = [batch.name for batch in documents.list_batches(bench.store, bench.name)]
        assert bench.instance.get_dynamic_partitions("letters/batch") == []
        bench.tick("new_documents")
        assert bench.instance.get_dynamic_partitions("letters/batch") == [done]


class TestRetrainingSensor:
    def test_examples_are_counted_by_a_snapshot_and_then_launch_a_run(self, bench):
        bench.train()
        bench.deliver("delivery-2.jsonl", skip=400, rows=250)
        counted = bench.tick("retraining")
        assert counted.job_name == "letters_snapshot" and counted.run_key == bench.tick("retraining").run_key
        bench.count()
        assert bench.tick("retraining").job_name == "letters_model"
        assert [found.decision.action for found in bench.decisions()] == ["wait", "retrain"]
        (entry,) = read_record(bench.store).entries
        assert (entry.action, entry.about) == ("retrain", bench.decisions()[-1].decision.evidence)

    def test_a_tick_without_a_run_costs_nothing_and_repeats_its_key(self, bench):
        """One that died after recording, a preview in the UI, a time-out of gRPC."""
        first, again = bench.tick("retraining"), bench.tick("retraining")
        assert first.job_name == again.job_name == "letters_model"
        assert first.run_key == again.run_key and len(bench.decisions()) == 1

    def test_one_that_failed_alerts_and_is_not_repeated_on_the_same_rows(self, bench):
        bench.run(bench.tick("retraining"), "failed", "data")
        assert re.match(r"alert: .* failed \(data\)", bench.tick("retraining").skip_message)
        assert re.match("wait: 0 .* attempt of", bench.tick("retraining").skip_message)
        bench.prepared.project.configure(base_model="model", seed=18, retraining={"min_new_examples": 100})
        assert "may start on" in bench.tick("retraining").skip_message, (
            "other settings, whose wait is the cooldown"
        )

    def test_one_that_was_preempted_is_resumed_within_the_hour(self, bench, monkeypatch):
        bench.run(bench.tick("retraining"), "failed", "preemption")
        assert "is resumed (1 of 3)" in bench.tick("retraining").skip_message
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3_700)
        assert bench.tick("retraining").job_name == "letters_model"

    def test_a_run_that_hangs_alerts_after_a_day_and_is_named(self, bench, monkeypatch):
        run = bench.add_run("letters_evaluate")
        assert bench.tick("retraining").skip_message.startswith("wait: ")
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 25 * 3_600)
        assert bench.tick("retraining").skip_message.startswith(f"alert: the run {run.run_id} ")
        assert bench.tick("retraining").skip_message.startswith("wait: ")

    def test_a_schedule_is_one_more_reason_in_the_time_zone_of_the_use_case(self, bench, monkeypatch):
        """Rows that are too few for a retrain of their own are learned when the calendar says so, once."""
        bench.train()
        bench.deliver("few.jsonl", skip=400, rows=30)
        bench.count()
        bench.prepared.project.configure(
            base_model="model",
            automation={"timezone": "Asia/Tokyo"},
            retraining={"min_new_examples": 100, "cooldown_hours": 0, "schedule": "30 3 * * *"},
        )
        assert isinstance(bench.tick("retraining"), dg.SkipReason)
        now = time.time()
        due = now - (now - 18.5 * 3_600) % 86_400 + 86_400
        monkeypatch.setattr(time, "time", lambda: due - 60)
        assert isinstance(bench.tick("retraining"), dg.SkipReason)
        monkeypatch.setattr(time, "time", lambda: due + 60)
        request = bench.tick("retraining")
        assert request.job_name == "letters_model"
        assert f"{datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M}" in request.tags[REASONS_TAG]

    def test_too_few_new_examples_wait_with_every_reason_on_record_once(self, bench):
        bench.train()
        assert re.match(
            "wait: 0 .* last training, .* min_new_examples", bench.tick("retraining").skip_message
        )
        bench.tick("retraining")
        (recorded,) = bench.decisions()
        assert len(recorded.decision.reasons) == 4
        shown = bench.instance.get_latest_materialization_event(
            dg.AssetKey(["letters", "retraining_decisions"])
        ).asset_materialization
        assert shown.metadata["action"].value == "wait" and shown.metadata["num_new_examples"].value == 0

    def test_drift_without_labels_asks_once_and_with_labels_since_then_launches(self, bench):
        bench.train()
        bench.champion("c")
        bench.deliver("before.jsonl", skip=400, rows=30)
        for name in ("w0", "w1", "w2"):
            bench.window(name, "ok" if name == "w0" else "confirmed")
        bench.count()
        assert bench.tick("retraining").skip_message.startswith("request_labels: drift ")
        assert "were asked for" in bench.tick("retraining").skip_message
        bench.deliver("after.jsonl", skip=500, rows=60)
        assert "not evaluated the 60" in bench.tick("retraining").skip_message
        # First it is wrong in the window before the drift, then in those since it began.
        for key, windows in (
            ("k1", {"w0": [80, 40], "w1": [40, 35]}),
            ("k2", {"w0": [80, 75], "w1": [40, 20], "w2": [40, 20]}),
        ):
            bench.live(key, checkpoint="c", drop=0.0, by_window=windows)
            asked = bench.tick("retraining")
            assert isinstance(asked, dg.SkipReason) == (key == "k1")
        assert asked.job_name == "letters_snapshot"
        bench.count()
        assert bench.tick("retraining").job_name == "letters_model"

    def test_a_lower_accuracy_on_production_counts_for_the_champion_that_it_is_of(self, bench):
        bench.train()
        bench.champion("c")
        bench.live("k1", checkpoint="another")
        assert bench.tick("retraining").skip_message.startswith("wait: ")
        bench.live("k2", checkpoint="c")
        assert "accuracy is 0.100 lower" in bench.tick("retraining").skip_message
        assert bench.decisions()[-1].decision.action == "request_labels"

    def test_a_freeze_by_hand_holds_it(self, bench):
        bench.champion("c")
        release.freeze(bench.store, bench.name, reason="audit of March", by="run-1")
        assert re.match(r"hold: .* \(run-1\): audit", bench.tick("retraining").skip_message)

    def test_a_ledger_that_is_cut_off_begins_anew_once(self, bench):
        bench.train()
        for name in ("w1", "w2"):
            bench.window(name, "confirmed")
        bench.tick("retraining")
        (Path(bench.store.url) / "pointers/letters/retraining.json").write_text('{"rai')
        assert bench.tick("retraining").skip_message.startswith("request_labels: ")
        assert bench.tick("retraining").skip_message.startswith("wait: ")

    def test_after_a_roll_back_a_report_on_the_champion_before_is_no_lower_score(self, bench):
        first, second, candidate = (bench.train() for _ in range(3))
        released = bench.artifact("evaluation_report", "e0", **manifests.evaluation())
        for checkpoint in (first, second):
            bench.champion(checkpoint.ref, evaluation=released.ref)
        about = manifests.evaluation(
            checkpoint=candidate.ref,
            incumbent=second.ref,
            measured={"macro_f1": 0.1},
            scores={CHAMPION: {"macro_f1": 0.7}},
        )
        bench.point("evaluation_report", bench.artifact("evaluation_report", "e1", **about))

        def drop() -> float | None:
            return gather(bench.case, bench.instance, bench.store, {}, time.time())[1].score_drop

        assert drop() == pytest.approx(0.2)
        release.rollback(bench.store, bench.name, reason="slower", by="run-1")
        assert drop() is None

    @pytest.mark.parametrize(
        ("job", "selection"),
        [("letters_model", None), ("__ASSET_JOB", frozenset({dg.AssetKey(["letters", "champion_model"])}))],
    )
    def test_the_evaluation_leaves_the_snapshot_of_a_run_in_flight_alone(self, bench, job, selection):
        bench.train()
        schedule = next(
            each
            for each in automation.build_schedules(bench.case)
            if each.name == "letters_evaluation_schedule"
        )
        with dg.build_schedule_context(instance=bench.instance, resources=bench.case.resources()) as context:
            assert isinstance(schedule(context), dg.RunRequest)
            bench.instance.add_run(dg.DagsterRun(job_name=job, status=STARTED, asset_selection=selection))
            assert isinstance(schedule(context), dg.SkipReason)

    def test_a_number_that_is_not_finite_is_one_line_and_no_action(self, bench):
        bench.champion("c", since=float("nan"))
        with pytest.raises(dg.Failure, match="champion_since is nan"):
            bench.tick("retraining")
        assert bench.decisions() == []

    def test_batch_with_a_red_gate_is_no_evidence(self, bench):
        bench.train()
        rows = [{**row, "kind": "no such label"} for row in projects.licence_rows(200, skip=400)]
        rows += projects.licence_rows(120, skip=700)
        bench.prepared.project.deliver("bad.jsonl", rows)
        documents.cut_batches(
            bench.store, bench.name, bench.prepared.project.documents, bench.case.settings.documents
        )
        batch = documents.list_batches(bench.store, bench.name)[-1].name
        labeled, _ = examples.validate(
            bench.store, bench.prepared.use_case, documents.keep(bench.store, bench.prepared.use_case, batch)
        )
        assert not all(check.passed for check in labeled.checks if check.severity == "error")
        bench.point("labeled_examples", labeled, batch)
        assert bench.tick("retraining").skip_message.startswith("wait: 0 new examples")

    def test_failed_read_raises_and_records_nothing(self, bench):
        pointer = bench.store.read_pointer(
            f"latest/{bench.name}/labeled_examples/{documents.list_batches(bench.store, bench.name)[0].name}"
        )
        manifest = Path(bench.store.url, pointer["ref"], "manifest.json")
        manifest.write_text(manifest.read_text()[:100])
        with pytest.raises(dg.Failure, match="unreadable"):
            bench.tick("retraining")
        manifest.unlink()
        with pytest.raises(dg.Failure, match="no such artifact"):
            automation.decide_and_record(bench.case, bench.instance, bench.store)
        assert bench.decisions() == []

    def test_a_snapshot_that_a_person_cancelled_is_not_asked_for_again(self, bench, monkeypatch):
        bench.train()
        bench.deliver("delivery-2.jsonl", skip=400, rows=250)
        bench.run(bench.tick("retraining"), "cancelled")
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert "as CANCELED: " in bench.tick("retraining").skip_message

    def test_one_that_a_person_cancelled_is_not_started_again(self, bench):
        bench.run(bench.tick("retraining"), "cancelled")
        assert "which was cancelled" in bench.tick("retraining").skip_message

    def test_a_ledger_that_is_deleted_forgets_no_attempt(self, bench):
        bench.run(bench.tick("retraining"), "succeeded")
        bench.store.delete_pointer("letters/retraining")
        for name in bench.store.list_pointers("letters/retraining_decisions"):
            bench.store.delete_pointer(f"letters/retraining_decisions/{name}")
        assert re.match("wait: 0 .* attempt of", bench.tick("retraining").skip_message)


def test_automation_is_turned_on_by_the_yaml(template: Prepared, tmp_path: Path) -> None:
    shutil.copytree(template.project.root, tmp_path, dirs_exist_ok=True)
    project = projects.Project(tmp_path, template.project.name)
    on = {"enabled": True, "timezone": "Europe/Berlin"}
    everything = {
        "base_model": "model",
        "monitoring": {"path": "data/letters/production"},
        "retention": {"schedule": "0 5 * * 6"},
    }

    of_documents = ("new_documents", "retraining", "evaluation_schedule")
    of_all = (*of_documents, "new_production_documents", "live_quality_when_due", "clean_schedule")
    for sections, names, status in (
        ({**everything, "automation": on}, of_all, "RUNNING"),
        (everything, of_all, "STOPPED"),
        ({"base_model": "model", "automation": on}, of_documents, "RUNNING"),
    ):
        project.configure(**sections)
        definitions = FullFineTune(project.use_case()).build_defs()
        triggers: list[Any] = [*(definitions.sensors or ()), *(definitions.schedules or ())]
        states = {each.name.removeprefix("letters_"): each.default_status.value for each in triggers}
        assert states == dict.fromkeys(names, status)
        zones = {each.execution_timezone for each in triggers if isinstance(each, dg.ScheduleDefinition)}
        assert zones == {"Europe/Berlin"} or status == "STOPPED"


class Daemon:
    """A real `dagster-daemon run` on a project's home."""

    def __init__(self, project: projects.Project):
        self.project = project
        self.log = project.root / "daemon.log"
        self.dagster("instance", "info")  # the first command makes the databases; two at once would race
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["dagster-daemon", "run", "-w", "workspace.yaml"],
                cwd=project.root,
                env=project.env(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def dagster(self, *arguments: str) -> None:
        subprocess.run(
            ["dagster", *arguments],
            cwd=self.project.root,
            env=self.project.env(),
            timeout=SECONDS,
            check=True,
        )

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.log.read_text()[-3_000:]
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log.read_text()[-3_000:]}"
            time.sleep(0.5)
        return found

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def ticks(instance: dg.DagsterInstance, name: str) -> list[Any]:
    for state in instance.all_instigator_state():
        if state.instigator_name == name:
            return list(instance.get_ticks(state.instigator_origin_id, state.selector_id))
    return []


def runs(instance: dg.DagsterInstance, job: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(job_name=job, statuses=list(statuses) or None)))


@pytest.mark.slow
def test_daemon_ingests_a_delivery_once_and_retrains_once_on_enough_new_data(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    quick = {"min_new_examples": 100, "cooldown_hours": 0.0}
    project = projects.create(tmp_path, base_model="model", documents={"poll_seconds": 4}, retraining=quick)
    done = dg.DagsterRunStatus.SUCCESS
    with (
        closing(Daemon(project)) as daemon,
        dg.DagsterInstance.from_config(str(project.home)) as instance,
    ):
        daemon.dagster("sensor", "start", "-w", "workspace.yaml", "letters_new_documents")
        daemon.wait_for(lambda: runs(instance, "letters_ingest", done), "delivery is ingested")
        daemon.dagster("sensor", "start", "-w", "workspace.yaml", "letters_retraining")
        (run,) = daemon.wait_for(lambda: runs(instance, "letters_model"), "model run is launched")
        daemon.wait_for(lambda: instance.get_run_by_id(run.run_id).is_finished, "model run ends", 400.0)
        before = len(ticks(instance, "letters_retraining"))
        daemon.wait_for(
            lambda: len(ticks(instance, "letters_retraining")) >= before + 2, "two more ticks", 200.0
        )
        assert [launched.run_id for launched in runs(instance, "letters_model")] == [run.run_id]
        assert len(runs(instance, "letters_ingest")) == 1


def test_runs_of_windows_go_one_after_the_other(template: Prepared) -> None:
    jobs = automation.build_jobs(CaseGraph(template.project.use_case()))
    tagged = [job.name for job in jobs if automation.IN_ORDER_TAG in (job.tags or {})]
    settings = yaml.safe_load((template.project.home / "dagster.yaml").read_text())
    limit = {"key": automation.IN_ORDER_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    assert tagged == ["letters_monitor"]
    assert settings["concurrency"]["runs"]["tag_concurrency_limits"] == [limit]
