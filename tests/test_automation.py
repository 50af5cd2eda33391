"""Sensors and schedules: evaluated directly on real artifacts, and driven by a real daemon."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from fullft_assets import automation, chunks, documents, examples, release, retraining, snapshot
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.model import IS_BETTER_TAG
from fullft_assets.automation import sensors
from fullft_assets.automation.decision import gather, name_of
from fullft_assets.automation.runs import IN_FLIGHT, REASONS_TAG, SCORE_FELL_TAG, find_due, typical_hours
from fullft_assets.chunks import ingestion
from fullft_assets.component import FullFineTune
from fullft_assets.evaluation import CHAMPION
from fullft_assets.monitoring import LiveMetadata, Status
from fullft_assets.resources import latest, latest_by_partition
from fullft_assets.store import Manifest, Store
from tests import manifests
from tests import project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import Prepared, prepare, write_tiny_model
from tests.test_live_quality import Live, snapshot_of

SECONDS = 150.0


class Bench:
    """A prepared project whose sensors are evaluated here, without a daemon."""

    def __init__(self, prepared: Prepared, instance: dg.DagsterInstance):
        self.prepared, self.instance, self.store = prepared, instance, prepared.store
        self.name = prepared.use_case.name

    @property
    def case(self) -> CaseGraph:
        return CaseGraph(self.prepared.project.use_case())

    def tick(self, sensor: str) -> Any:
        definition = next(s for s in automation.build_sensors(self.case) if s.name == f"{self.name}_{sensor}")
        return definition(dg.build_sensor_context(instance=self.instance, resources=self.case.resources()))

    def point(self, asset: str, manifest: Manifest, partition: str = "all") -> None:
        """Make an artifact the newest of its asset, as the IO manager does."""
        self.store.write_pointer(f"latest/{self.name}/{asset}/{partition}", {"ref": manifest.ref})

    def artifact(self, stage: str, key: str, **metadata: Any) -> Manifest:
        with self.store.create(self.name, stage, key, version="1", seed=17) as draft:
            return draft.commit(settings={}, inputs={}, metadata=metadata)

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

    def train(self, *, seconds: float = 60.0) -> Manifest:
        """Record a checkpoint on the present snapshot."""
        made = checkpoint_metadata(snapshot=self.prepared.snapshot.ref, training_seconds=seconds)
        checkpoint = self.artifact("finetuned_checkpoint", f"k{time.time_ns()}", **made)
        self.point("finetuned_checkpoint", checkpoint)
        return checkpoint

    def window(self, name: str, status: Status) -> None:
        self.point("drift_report", self.artifact("drift_report", name, **manifests.drift(status)), name)

    def champion(self, checkpoint: str, evaluation: str = "e") -> None:
        """Make a checkpoint the champion."""
        champion = release.Champion(
            checkpoint=checkpoint,
            snapshot="s",
            evaluation=evaluation,
            score=0.9,
            promoted_at=time.time(),
            run_id="r",
        )
        release.promote(self.store, self.name, champion)

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

        job = dg.GraphDefinition(name=request.job_name, node_defs=[stage]).to_job(
            tags={"use_case": self.name, **request.tags}
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
        assert bench.tick("new_documents").skip_message == "nothing new in data/letters/documents"
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

    def add_run(self, bench: Bench, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        tags = {
            **request.tags,
            "dagster/partition": request.partition_key,
            "dagster/run_key": request.run_key,
        }
        bench.instance.add_run(
            dg.DagsterRun(job_name="letters_ingest", run_id=str(uuid.uuid4()), status=status, tags=tags)
        )

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
                self.add_run(bench, request, dg.DagsterRunStatus.STARTED)
        assert (
            bench.tick("new_documents").skip_message
            == "nothing new in data/letters/documents; 5 batch(es) in flight"
        )

    def test_a_batch_whose_run_failed_comes_after_those_that_had_none(self, bench, monkeypatch):
        monkeypatch.setattr(documents, "MAX_RUNS_A_TICK", 2)
        names = self.several(bench, 4)
        for request in bench.tick("new_documents").run_requests:
            self.add_run(bench, request, dg.DagsterRunStatus.FAILURE)
        assert self.asked(bench) == names[2:]
        for request in bench.tick("new_documents").run_requests[:1]:
            self.add_run(bench, request, dg.DagsterRunStatus.STARTED)
        assert self.asked(bench) == [names[3]]
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert self.asked(bench) == [names[3], names[0]]

    def fail(self, bench: Bench, request: dg.RunRequest, failure: str | None) -> None:
        """Let a run that was asked for fail now; None: from outside, not by a step."""
        tags = {
            **request.tags,
            "dagster/partition": request.partition_key,
            "dagster/run_key": request.run_key,
        }
        tags |= {} if failure is None else {"delivery/failure": failure}
        run = dg.DagsterRun(
            job_name="letters_ingest", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED, tags=tags
        )
        bench.instance.add_run(run)
        bench.instance.report_run_failed(run)

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
            early = bench.tick("new_documents").skip_message
            assert early.startswith(
                "nothing new in data/letters/documents; 1 batch(es) whose run failed are asked for again, the"
                " first at "
            )
            monkeypatch.setattr(time, "time", lambda now=clock: now + 60)
            (request,) = bench.tick("new_documents").run_requests
            keys.append(request.run_key)
        assert len(set(keys)) == len(keys)
        assert request.tags == {"delivery/run_key": keys[0]}
        if not is_transient:
            self.fail(bench, request, failure)
            monkeypatch.setattr(time, "time", lambda: clock + 1e7)
            how = "launch letters_ingest for it, or `fullft run letters` once what its error names is fixed"
            named = f"batch {name.name} ({failure}): the run failed and is not started again by itself; {how}"
            assert (
                bench.tick("new_documents").skip_message == f"nothing new in data/letters/documents; {named}"
            )

    @pytest.mark.parametrize(
        ("failure", "is_asked_for"), [("data", False), ("settings", False), ("gate", True), (None, True)]
    )
    def test_what_fails_again_until_something_changes_is_not_asked_for(
        self, bench, monkeypatch, failure, is_asked_for
    ):
        self.several(bench, 1)
        (request,) = bench.tick("new_documents").run_requests
        tags = {"dagster/partition": str(request.partition_key), "dagster/run_key": request.run_key}
        bench.run(
            request._replace(job_name="letters_ingest", tags={**request.tags, **tags}), "failed", failure
        )
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        for _ in range(2):
            tick = bench.tick("new_documents")
            if is_asked_for:
                assert tick.run_requests[0].run_key == f"{request.run_key}-1"
            else:
                assert (
                    f"batch {request.partition_key} ({failure}): the run failed and is not started again by"
                    " itself" in tick.skip_message
                )
        (held,) = find_due(bench.case, bench.instance, bench.store, "batch", "letters_ingest").held or [None]
        assert (held is None) == is_asked_for

    def test_a_batch_that_was_done_and_is_not_in_a_restored_store_is_asked_for_again(
        self, bench, monkeypatch
    ):
        self.several(bench, 1)
        (request,) = bench.tick("new_documents").run_requests
        self.add_run(bench, request, dg.DagsterRunStatus.SUCCESS)
        assert (
            "are asked for again" in bench.tick("new_documents").skip_message
        )  # its run may have ended just now
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert bench.tick("new_documents").run_requests[0].run_key == f"{request.run_key}-1"

    def test_a_run_that_a_person_cancelled_is_not_asked_for_again_and_each_tick_says_so_in_one_line(
        self, bench, monkeypatch
    ):
        names = self.several(bench, 7)
        for request in bench.tick("new_documents").run_requests:
            self.add_run(bench, request, dg.DagsterRunStatus.CANCELED)
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        how = (
            "a person cancelled the run, so it is not started again by itself; launch letters_ingest for it,"
            " or `fullft run letters`"
        )
        line = f"batch {', '.join(names[:5])} and 2 more: {how}"
        assert bench.tick("new_documents").skip_message == f"nothing new in data/letters/documents; {line}"
        held = find_due(bench.case, bench.instance, bench.store, "batch", "letters_ingest").held
        assert [request.partition_key for request in held] == names
        # Beside a run that is asked for, the log says it.
        bench.prepared.project.deliver("one-more.jsonl", projects.licence_rows(3, skip=600))
        (asked,), said = self.tick_and_log(bench)
        assert asked.partition_key not in names and line in said
        for request in held:
            self.add_run(bench, request, dg.DagsterRunStatus.FAILURE)
        assert not [line for line in self.tick_and_log(bench)[1] if "cancelled" in line]

    def tick_and_log(self, bench: Bench) -> tuple[list[dg.RunRequest], list[str]]:
        definition = next(
            s for s in automation.build_sensors(bench.case) if s.name == "letters_new_documents"
        )
        said: list[str] = []
        context = dg.build_sensor_context(instance=bench.instance, resources=bench.case.resources())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context.log, "info", said.append)
            requests = definition(context).run_requests
        return requests, said

    def test_a_run_that_a_dying_daemon_made_and_did_not_launch_is_asked_for_again(self, bench, monkeypatch):
        monkeypatch.setattr(documents, "MAX_RUNS_A_TICK", 1)
        names = self.several(bench, 2)
        (request,) = bench.tick("new_documents").run_requests
        self.add_run(bench, request, dg.DagsterRunStatus.NOT_STARTED)
        (again,) = bench.tick("new_documents").run_requests
        assert (again.run_key, again.partition_key) == (request.run_key, names[0])

    def test_what_a_dead_tick_has_cut_is_asked_for_by_the_next_and_by_another_instance(
        self, bench, monkeypatch
    ):
        with monkeypatch.context() as dying:
            dying.setattr(sensors, "find_due", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            bench.prepared.project.deliver("more.jsonl", projects.licence_rows(3, skip=500))
            with pytest.raises(KeyboardInterrupt):
                bench.tick("new_documents")
        _, cut = documents.list_batches(bench.store, bench.name)
        assert self.asked(bench) == [cut.name]

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
        said = "1 file(s) are left in place because their endings are not read: 1 .doc"
        first = bench.tick("new_documents")
        assert first.skip_reason.skip_message == f"nothing new in data/letters/documents; {said}"
        (event,) = first.asset_events
        assert (event.check_name, event.passed, event.severity) == (
            "delivered_files_are_read",
            False,
            dg.AssetCheckSeverity.WARN,
        )
        assert event.metadata["num_not_read"].value == 1
        assert first.cursor

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
        assert first.skip_reason.skip_message == "nothing new in data/letters/documents"
        bench.prepared.project.deliver("export.jsonl", projects.licence_rows(3, skip=500))
        assert tick(first.cursor).skip_message == "no new materialization of team/exports"
        bench.instance.report_runless_asset_event(dg.AssetMaterialization(["team", "exports"]))
        asked = tick(first.cursor)
        (request,) = asked.run_requests
        self.add_run(bench, request, dg.DagsterRunStatus.STARTED)
        running = tick(asked.cursor)
        assert running.skip_reason.skip_message.endswith("; 1 batch(es) in flight")
        bench.ingest()
        done = tick(running.cursor)
        assert tick(done.cursor).skip_message == "no new materialization of team/exports"

    def test_windows_wait_for_a_model(self, bench):
        for number in (1, 2):
            projects.write_rows(
                bench.prepared.project.production / f"w{number}.jsonl", projects.licence_rows(30)
            )
        assert (
            bench.tick("new_production_documents").skip_message
            == "no model yet to read it with; run the model job first"
        )
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
        definitions = dg.Definitions.merge(
            FullFineTune(bench.case.use_case).build_defs(), dg.Definitions(executor=dg.in_process_executor)
        )

        def take() -> bool:
            job = definitions.resolve_implicit_global_asset_job_def()
            keys = [bench.case.key("training_snapshot")]
            return job.execute_in_process(
                asset_selection=keys, instance=bench.instance, raise_on_error=False
            ).success

        assert not take()
        run = dg.DagsterRun(
            job_name="letters_ingest",
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/partition": arriving},
        )
        bench.instance.add_run(run)
        assert take()
        _, signals = gather(bench.case, bench.instance, bench.store, {}, time.time())
        taken = latest(bench.store, "letters", "training_snapshot")
        assert list(snapshot.SnapshotMetadata.of(taken).parts) == [before] and signals.num_uncounted > 0

    def test_a_folder_that_was_emptied_or_removed_is_the_reason_of_a_skip(self, bench):
        before = f"nothing new in data/{bench.name}/documents; "
        shutil.rmtree(bench.prepared.project.documents)
        removed = bench.tick("new_documents").skip_message
        assert removed == before + "there is no such folder; deliver the documents there, or fix the path"
        bench.prepared.project.documents.mkdir()
        assert bench.tick("new_documents").skip_message == before + "there is no document that can be read"

    def test_whatever_fails_is_asked_for_at_most_once_a_day_in_the_end(self, bench, monkeypatch):
        names = self.several(bench, 2)
        clock, asked = time.time(), []
        for hour in range(0, 24 * 9, 6):
            monkeypatch.setattr(time, "time", lambda hour=hour: clock + 3_600 * hour)
            tick = bench.tick("new_documents")
            for request in [] if isinstance(tick, dg.SkipReason) else tick.run_requests:
                self.fail(bench, request, None)
                asked.append((request.partition_key, hour))
        for name in names:
            late = [hour for of, hour in asked if of == name][6:]
            assert len(late) >= 5 and all(after - before >= 24 for before, after in itertools.pairwise(late))

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
        request = bench.tick("retraining")
        assert request.job_name == "letters_model"
        assert (
            "new examples since the last training, enough for min_new_examples = 100"
            in request.tags["retraining/reasons"]
        )
        assert [found.decision.action for found in bench.decisions()] == ["wait", "retrain"]

    def test_a_snapshot_that_failed_is_asked_for_again_under_a_new_key_later_and_later(
        self, bench, monkeypatch
    ):
        bench.train()
        bench.deliver("delivery-2.jsonl", skip=400, rows=250)
        clock, keys = time.time(), list[str]()
        for number, hours in enumerate((0, 1, 3, 7, 15, 31)):
            monkeypatch.setattr(
                time, "time", lambda number=number, hours=hours: clock + 3_600 * hours + 60 * number
            )
            request = bench.tick("retraining")
            assert (request.job_name, request.run_key) == (
                "letters_snapshot",
                bench.tick("retraining").run_key,
            )
            keys.append(request.run_key)
            bench.run(request._replace(tags={**request.tags, "dagster/run_key": request.run_key}), "failed")
            ended = bench.tick("retraining").skip_message
            assert "that was to count them ended on " in ended and ended.endswith(
                "as FAILURE: a later tick may ask for it again, or launch letters_snapshot by hand"
            )
        assert len(set(keys)) == 6
        monkeypatch.setattr(time, "time", lambda: clock + 3_600 * 10_000)
        assert isinstance(bench.tick("retraining"), dg.SkipReason), "five times, and then no more"

    def test_a_tick_without_a_run_costs_nothing_and_repeats_its_key(self, bench):
        """One that died after recording, a preview in the UI, a time-out of gRPC."""
        first, again = bench.tick("retraining"), bench.tick("retraining")
        assert first.job_name == again.job_name == "letters_model"
        assert first.run_key == again.run_key
        assert len(bench.decisions()) == 1

    def test_one_that_failed_alerts_and_is_not_repeated_on_the_same_rows(self, bench):
        bench.run(bench.tick("retraining"), "failed", "data")
        alert = bench.tick("retraining")
        assert (
            alert.skip_message.startswith("alert: the attempt of ") and "failed (data)" in alert.skip_message
        )
        assert bench.tick("retraining").skip_message.startswith("wait: 0 new examples since the attempt of")
        bench.prepared.project.configure(base_model="model", seed=18, retraining={"min_new_examples": 100})
        assert "the next may start on" in bench.tick("retraining").skip_message, (
            "other settings, whose wait is the cooldown"
        )

    def test_one_that_was_preempted_is_resumed_within_the_hour(self, bench, monkeypatch):
        bench.run(bench.tick("retraining"), "failed", "preemption")
        assert "is resumed (1 of 3)" in bench.tick("retraining").skip_message
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3_700)
        assert bench.tick("retraining").job_name == "letters_model"

    @pytest.mark.parametrize("failure", ["preemption", "data"])
    def test_one_that_failed_and_that_a_person_made_up_for_is_neither_resumed_nor_told_again(
        self, bench, failure
    ):
        trained_itself = bench.train()
        bench.run(self.asked(bench), "failed", failure)
        (attempt,) = self.attempts(bench)
        assert trained_itself.created_at < attempt.ended_at
        said = bench.tick("retraining").skip_message
        assert ("is resumed" in said) if failure == "preemption" else said.startswith("alert: ")
        bench.train()
        said = bench.tick("retraining").skip_message
        assert said.startswith("wait: 0 new examples") and "resumed" not in said and "alerted" not in said

    def asked(self, bench: Bench) -> dg.RunRequest:
        """Deliver enough, and return the retrain that is asked for."""
        bench.deliver("delivery-2.jsonl", skip=400, rows=250)
        bench.count()
        return bench.tick("retraining")

    def attempts(self, bench: Bench) -> list[retraining.Attempt]:
        return gather(bench.case, bench.instance, bench.store, {}, time.time())[0].attempts

    def test_a_run_that_hangs_alerts_after_a_day_and_is_named(self, bench, monkeypatch):
        run = dg.DagsterRun(
            job_name="letters_evaluate", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED
        )
        bench.instance.add_run(run)
        assert bench.tick("retraining").skip_message.startswith("wait: ")
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 25 * 3_600)
        said = bench.tick("retraining").skip_message
        assert said.startswith(f"alert: the run {run.run_id} of letters_evaluate, asked for on ")
        assert said.endswith(
            "has not ended in 24 h and holds retrains back; open it, and terminate it if it hangs"
        )
        assert bench.tick("retraining").skip_message.startswith("wait: ")

    @pytest.mark.parametrize("place", ["disk", "bucket"])
    def test_of_two_dagsters_that_share_a_store_one_decides(
        self, bench, tmp_path, monkeypatch, request, place
    ):
        url = bench.store.url
        if place == "bucket":
            bucket = f"shared-{time.time_ns()}"
            shutil.copytree(url, request.getfixturevalue("s3_env").make_bucket(bucket) / "store")
            url = f"s3://{bucket}/store"
        bench.prepared.project.configure(base_model="model", store=url, retraining={"min_new_examples": 100})
        bench.store, home, now = Store(url), tmp_path / "other", time.time()
        home.mkdir()
        shutil.copy(bench.prepared.project.home / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            other = Bench(bench.prepared, instance)

            def ask(dagster: Bench, minutes: int) -> str:
                monkeypatch.setattr(time, "time", lambda: now + 60 * minutes)
                request = dagster.tick("retraining")
                return request.job_name if isinstance(request, dg.RunRequest) else request.skip_message

            assert ask(bench, 0) == "letters_model"
            decisions = bench.decisions()
            ours, theirs = (
                f"wait: the Dagster {name_of(dagster)}, which" for dagster in (bench.instance, instance)
            )
            assert ours != theirs and ask(other, 1).startswith(ours)
            assert ask(bench, 6) == "letters_model"
            assert ask(other, 12).startswith(ours), "each tick of the decider renews what is half over"
            assert bench.decisions() == decisions, "who does not decide writes no decision"
            assert ask(other, 17) == "letters_model"
            assert ask(bench, 18).startswith(theirs)

    def test_of_two_dagsters_that_ask_at_one_moment_one_launches(self, bench, tmp_path):
        home = tmp_path / "other"
        home.mkdir()
        shutil.copy(bench.prepared.project.home / "dagster.yaml", home)
        together = threading.Barrier(2)

        def ask(dagster: Bench) -> Any:
            together.wait()
            return dagster.tick("retraining")

        with dg.DagsterInstance.from_config(str(home)) as instance, ThreadPoolExecutor(2) as pool:
            asked = list(pool.map(ask, [bench, Bench(bench.prepared, instance)]))
        assert sorted(type(each).__name__ for each in asked) == ["RunRequest", "SkipReason"]

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
        at = f"{datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M UTC}"
        assert request.job_name == "letters_model"
        assert request.tags[REASONS_TAG] == f"scheduled retraining is due since {at}"

    def test_too_few_new_examples_wait_with_every_reason_on_record_once(self, bench):
        bench.train()
        assert bench.tick("retraining").skip_message.startswith(
            "wait: 0 new examples since the last training, fewer than min_new_examples"
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
        assert bench.tick("retraining").skip_message.startswith(
            "request_labels: drift is confirmed since the window of "
        )
        assert "labels were asked for on" in bench.tick("retraining").skip_message
        bench.deliver("after.jsonl", skip=500, rows=60)
        assert (
            "live_quality has not evaluated the 60 labelled examples yet"
            in bench.tick("retraining").skip_message
        )
        live = {
            "num_windows": 3,
            "num_documents": 900,
            "num_labelled": 160,
            "num_right": 110,
            "accuracy": 0.7,
            "accuracy_low": 0.6,
        }
        live |= {"accuracy_high": 0.8, "release_accuracy": 0.75, "release_accuracy_low": 0.7, "drop": 0.0}
        # First it is wrong in the window before the drift, then in those since it began.
        for key, windows in (
            ("k1", {"w0": [80, 40], "w1": [40, 35]}),
            ("k2", {"w0": [80, 75], "w1": [40, 20], "w2": [40, 20]}),
        ):
            bench.point(
                "live_quality", bench.artifact("live_quality", key, checkpoint="c", **live, by_window=windows)
            )
            asked = bench.tick("retraining")
            if key == "k1":
                assert (
                    "40 of 60 labelled examples are of its windows" in asked.skip_message
                    and "fewer than 150 are" in asked.skip_message
                )
        assert asked.job_name == "letters_snapshot"
        bench.count()
        assert bench.tick("retraining").job_name == "letters_model"

    def test_a_lower_accuracy_on_production_counts_for_the_champion_that_it_is_of(self, bench):
        bench.train()
        bench.champion("c")
        live = {
            "num_windows": 1,
            "num_documents": 300,
            "num_labelled": 200,
            "num_right": 160,
            "accuracy": 0.8,
            "accuracy_low": 0.7,
        }
        live |= {"accuracy_high": 0.85, "release_accuracy": 0.9, "release_accuracy_low": 0.87, "drop": 0.1}
        bench.point("live_quality", bench.artifact("live_quality", "k1", checkpoint="another", **live))
        assert bench.tick("retraining").skip_message.startswith("wait: ")
        bench.point("live_quality", bench.artifact("live_quality", "k2", checkpoint="c", **live))
        assert (
            "accuracy is 0.100 lower on labelled production documents"
            in bench.tick("retraining").skip_message
        )
        assert bench.decisions()[-1].decision.action == "request_labels"

    def test_a_freeze_by_hand_holds_it(self, bench):
        bench.champion("c")
        release.freeze(bench.store, bench.name, reason="audit of March", by="run-1")
        assert bench.tick("retraining").skip_message.startswith(
            "hold: Frozen by hand (run-1): audit of March"
        )

    def test_a_ledger_that_is_cut_off_begins_anew_and_says_so_once(self, bench):
        bench.train()
        for name in ("w1", "w2"):
            bench.window(name, "confirmed")
        bench.tick("retraining")
        (Path(bench.store.url) / "pointers/letters/retraining.json").write_text('{"rai')
        again = bench.tick("retraining").skip_message
        assert again.startswith("request_labels: ")
        assert again.endswith(
            "the ledger letters/retraining.json could not be read and begins anew: what lasts is raised again"
        )
        assert bench.tick("retraining").skip_message.startswith("wait: ")

    def test_after_a_roll_back_a_report_on_the_champion_before_is_no_lower_score(self, bench):
        first, second, candidate = (bench.train() for _ in range(3))
        released = bench.artifact("evaluation_report", "e0", **manifests.evaluation())
        for checkpoint in (first, second):
            bench.champion(checkpoint.ref, evaluation=released.ref)
        measured = {"macro_f1": 0.1, f"{CHAMPION}_macro_f1": 0.7}
        about = manifests.evaluation(checkpoint=candidate.ref, incumbent=second.ref, measured=measured)
        bench.point("evaluation_report", bench.artifact("evaluation_report", "e1", **about))

        def drop() -> float | None:
            return gather(bench.case, bench.instance, bench.store, {}, time.time())[1].score_drop

        assert drop() == pytest.approx(0.2)
        release.rollback(bench.store, bench.name, reason="slower", by="run-1")
        assert drop() is None

    def test_a_run_says_whether_labels_confirmed_what_it_learned(self, bench):
        (request,) = [bench.tick("retraining")]
        assert request.tags[SCORE_FELL_TAG] == "False"
        bench.run(
            request._replace(tags={**request.tags, SCORE_FELL_TAG: "True", IS_BETTER_TAG: "False"}),
            "succeeded",
        )
        bench.run(request, "succeeded")
        first, second = gather(bench.case, bench.instance, bench.store, {}, time.time())[0].attempts
        assert (first.score_fell, first.is_better) == (True, False)
        assert (second.score_fell, second.is_better) == (False, None)

    def test_the_evaluation_leaves_the_snapshot_of_a_run_in_flight_alone(self, bench):
        bench.train()
        schedule = next(
            each
            for each in automation.build_schedules(bench.case)
            if each.name == "letters_evaluation_schedule"
        )
        with dg.build_schedule_context(instance=bench.instance, resources=bench.case.resources()) as context:
            assert isinstance(schedule(context), dg.RunRequest)
            run = dg.DagsterRun(
                job_name="letters_model", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED
            )
            bench.instance.add_run(run)
            assert schedule(context).skip_message.startswith(
                "a run of the model or of its snapshot is in flight"
            )

    def test_the_evaluation_waits_where_the_month_has_no_room_for_one_more(self, bench):
        bench.train()
        bench.run(
            dg.RunRequest(
                job_name="letters_evaluate", tags={"dagster/schedule_name": "letters_evaluation_schedule"}
            ),
            "succeeded",
        )
        (record,) = bench.instance.get_run_records(dg.RunsFilter(job_name="letters_evaluate"))
        took = (record.end_time - record.start_time) / 3600

        def tick(**limits: float) -> dg.RunRequest | dg.SkipReason:
            settings = bench.case.settings
            planning = settings.planning.model_copy(update={"hourly_usd": 2.0})
            settings = settings.model_copy(
                update={"retraining": settings.retraining.model_copy(update=limits), "planning": planning}
            )
            graph = CaseGraph(replace(bench.case.use_case, settings=settings))
            schedule = next(
                each
                for each in automation.build_schedules(graph)
                if each.name == "letters_evaluation_schedule"
            )
            with dg.build_schedule_context(instance=bench.instance, resources=graph.resources()) as context:
                return schedule(context)

        assert isinstance(tick(max_hours_per_month=2.5 * took), dg.RunRequest)
        over = tick(max_hours_per_month=1.6 * took)
        assert (
            "with one more evaluation the month has 125% of retraining.max_hours_per_month"
            in over.skip_message
        )
        over = tick(max_usd_per_month=2.0 * took)
        assert (
            "with one more evaluation the month has 200% of retraining.max_usd_per_month" in over.skip_message
        )

    def test_a_number_that_is_not_finite_is_one_line_and_no_action(self, bench):
        since = float("nan")
        champion = release.Champion(
            checkpoint="c", snapshot="s", evaluation="e", score=0.9, promoted_at=since, run_id="r"
        )
        release.promote(bench.store, bench.name, champion)
        with pytest.raises(dg.Failure, match="no retraining decision, as champion_since is nan"):
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
        batch = documents.list_batches(bench.store, bench.name)[0].name
        pointer = bench.store.read_pointer(f"latest/{bench.name}/labeled_examples/{batch}")
        manifest = Path(bench.store.url, pointer["ref"], "manifest.json")
        manifest.write_text(manifest.read_text()[:100])
        with pytest.raises(dg.Failure, match="unreadable"):
            bench.tick("retraining")
        manifest.unlink()
        with pytest.raises(dg.Failure, match="no such artifact; materialise its asset again"):
            automation.decide_and_record(bench.case, bench.instance, bench.store)
        assert bench.decisions() == []

    def test_the_month_has_what_evaluations_windows_snapshots_and_live_quality_took_that_nobody_launched(
        self, bench
    ):
        by_itself = [
            ("evaluate", "succeeded", "dagster/schedule_name"),
            ("monitor", "failed", "dagster/sensor_name"),
            ("snapshot", "succeeded", "dagster/sensor_name"),
        ]
        # As the condition's sensor asks for it, and as a person does.
        for tags in (
            {"dagster/sensor_name": "letters_live_quality_when_due"},
            {},
            {"dagster/sensor_name": "another"},
        ):
            bench.run(dg.RunRequest(job_name="__ASSET_JOB", tags=tags), "succeeded")
        for job, outcome, tag in [
            *by_itself,
            ("monitor", "succeeded", "by"),
            ("ingest", "succeeded", "dagster/sensor_name"),
        ]:
            bench.run(dg.RunRequest(job_name=f"letters_{job}", tags={tag: "x"}), outcome)
        booked = {f"letters_{job}" for job, *_ in by_itself}
        took = [
            record.end_time - record.start_time
            for record in bench.instance.get_run_records()
            if record.dagster_run.job_name in booked
            and "by" not in record.dagster_run.tags
            or record.dagster_run.tags.get("dagster/sensor_name") == "letters_live_quality_when_due"
        ]

        def hours(now: float) -> float:
            return gather(bench.case, bench.instance, bench.store, {}, now)[1].hours_beside

        assert len(took) == 4 and sum(took) > 0
        assert hours(time.time()) == pytest.approx(sum(took) / 3600)
        assert hours(time.time() + 32 * 86_400) == 0, "another month"

    @pytest.mark.parametrize(
        ("runs", "hours"),
        [
            ([], 0.0),
            ([[(0, 3)], [(0, 3)], [(0, 500)]], 3.0),
            # A recipe that was made shorter counts at once.
            ([[(0, 500)], [(0, 500)], [(0, 3)]], 3.0),
            ([[(0, 9)], [(0, 5)], [(0, 6)], [(0, 7)]], 6.0),
            # It waited for a slot from 1 to 90, and two steps overlapped.
            ([[(0, 1), (90, 93), (91, 92), (92, 95), (None, None)]], 6.0),
        ],
    )
    def test_the_next_run_takes_as_long_as_the_last_ones_without_what_they_waited(self, runs, hours):
        steps = [
            [
                SimpleNamespace(
                    start_time=a if a is None else a * 3_600.0, end_time=b if b is None else b * 3_600.0
                )
                for a, b in run
            ]
            for run in runs
        ]
        records = [SimpleNamespace(dagster_run=SimpleNamespace(run_id=number)) for number in range(len(runs))]
        assert typical_hours(records, SimpleNamespace(get_run_step_stats=steps.__getitem__)) == pytest.approx(
            hours
        )

    def test_a_snapshot_that_a_person_cancelled_is_not_asked_for_again(self, bench, monkeypatch):
        bench.train()
        bench.deliver("delivery-2.jsonl", skip=400, rows=250)
        request = bench.tick("retraining")
        bench.run(request._replace(tags={**request.tags, "dagster/run_key": request.run_key}), "cancelled")
        monkeypatch.setattr(time, "time", lambda now=time.time(): now + 7_200)
        assert "as CANCELED: " in bench.tick("retraining").skip_message

    def test_one_that_a_person_cancelled_is_not_started_again(self, bench):
        bench.run(bench.tick("retraining"), "cancelled")
        assert (
            "which was cancelled and is not started again by itself" in bench.tick("retraining").skip_message
        )

    def test_a_ledger_that_is_deleted_forgets_no_attempt(self, bench):
        bench.run(bench.tick("retraining"), "succeeded")
        bench.store.delete_pointer("letters/retraining")
        for name in bench.store.list_pointers("letters/retraining_decisions"):
            bench.store.delete_pointer(f"letters/retraining_decisions/{name}")
        assert bench.tick("retraining").skip_message.startswith("wait: 0 new examples since the attempt of")

    @pytest.mark.long
    @pytest.mark.parametrize("part", ["tick", "daemon", "run"])
    def test_a_tick_a_daemon_or_a_run_killed_anywhere_loses_and_doubles_no_retrain(
        self, bench, tmp_path, monkeypatch, part
    ):
        """Each of 100 dies by SIGKILL at one of the files that it opens or renames; later ticks train once.

        The daemon is what it does with a request: it makes a run of a key that has none, and launches it.
        What the next one finds is what Dagster's monitoring leaves: runs whose process is gone have failed.
        """

        @dg.op
        def trains() -> None:
            pass

        graph = dg.GraphDefinition(name=f"{bench.name}_model", node_defs=[trains])
        job = graph.to_job(tags={"use_case": bench.name}, executor_def=dg.in_process_executor)
        of_model = dg.RunsFilter(job_name=job.name)
        running, touched = "tick", dict.fromkeys(("tick", "daemon", "run"), 0)

        def serve() -> bool:
            """Tick, and do what the tick asks for; return whether it asked."""
            nonlocal running
            running = "tick"
            request = automation.decide_and_record(bench.case, bench.instance, bench.store)
            if not isinstance(request, dg.RunRequest):
                return False
            running = "daemon"
            key = {"dagster/run_key": request.run_key}
            made = bench.instance.get_runs(dg.RunsFilter(tags=key))
            if made and made[0].status != dg.DagsterRunStatus.NOT_STARTED:
                return True
            run = (
                made[0]
                if made
                else bench.instance.create_run_for_job(job, tags={**job.tags, **request.tags, **key})
            )
            running = "run"
            execute_run(InMemoryJob(job), run, bench.instance)
            return True

        def die(at: int | None) -> None:
            def hook(event: str, arguments: tuple) -> None:
                if event in ("open", "os.rename", "sqlite3.connect") and str(arguments[0]).startswith(
                    str(bench.prepared.project.home)
                ):
                    touched[running] += 1
                    if running == part and touched[part] == at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            serve()
            (tmp_path / "touched.json").write_text(json.dumps(touched))

        def forked(at: int | None = None) -> int:
            if not (child := os.fork()):
                with suppress(BaseException):
                    die(at)
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        def forget() -> None:
            for run in bench.instance.get_runs():
                bench.instance.delete_run(run.run_id)
            for folder in (bench.name, f"{bench.name}/retraining_decisions"):
                for name in bench.store.list_pointers(folder):
                    if folder != bench.name or name.startswith("retraining"):
                        bench.store.delete_pointer(f"{folder}/{name}")

        for _ in range(2):  # the first one also stores what Dagster stores once
            forget()
            assert forked() == 0
        total, chance, began, seen = (
            json.loads((tmp_path / "touched.json").read_text())[part],
            random.Random(1),
            time.time(),
            set(),
        )
        for _ in range(100):
            forget()
            at = chance.randint(1, total)
            assert forked(at) == -signal.SIGKILL, (part, at, total)
            for run in bench.instance.get_runs(of_model):
                seen.add(run.status)
                if run.status in IN_FLIGHT:
                    bench.instance.report_run_failed(run)
            with monkeypatch.context() as later:
                # A run that failed from outside is resumed after an hour, then two, then four.
                for hours in (2, 5, 10):
                    later.setattr(time, "time", lambda hours=hours: began + 3600 * hours)
                    serve()
                assert not serve(), (part, at)
            done = [
                run for run in bench.instance.get_runs(of_model) if run.status == dg.DagsterRunStatus.SUCCESS
            ]
            assert len(done) == 1, (part, at)
        assert (dg.DagsterRunStatus.STARTED in seen) == (part == "run")


def test_a_restored_older_copy_of_dagsters_storage_loses_and_doubles_nothing(bench, tmp_path):
    """$DAGSTER_HOME goes back to yesterday's copy while the store is today's."""
    home = bench.prepared.project.home
    bench.train()
    for sensor in ("new_documents", "retraining"):
        bench.tick(sensor)
    parts = [path.name for path in home.iterdir() if path.is_dir() and path.name != "store"]
    for part in parts:
        shutil.copytree(home / part, tmp_path / "yesterday" / part)
    bench.prepared.project.deliver("more.jsonl", projects.licence_rows(300, skip=500))
    (ingest,) = bench.tick("new_documents").run_requests
    bench.ingest()
    bench.instance.add_dynamic_partitions("letters/batch", [str(ingest.partition_key)])
    bench.count()
    request = bench.tick("retraining")
    assert isinstance(request, dg.RunRequest) and request.job_name == "letters_model"

    def tick_restored(sensor: str) -> Any:
        """Tick on yesterday's copy; what that leaves is of no later tick."""
        for part in parts:
            shutil.rmtree(home / part)
            shutil.copytree(tmp_path / "yesterday" / part, home / part)
        with dg.DagsterInstance.from_config(str(home)) as restored:
            found = Bench(bench.prepared, restored).tick(sensor)
            known = restored.get_dynamic_partitions("letters/batch")
        return found, known

    # What was launched since, and has left nothing in the store, is asked for again.
    again, _ = tick_restored("retraining")
    assert (again.job_name, again.run_key) == (request.job_name, request.run_key)
    # What is ingested stays so, and its partition comes back.
    found, known = tick_restored("new_documents")
    assert isinstance(found, dg.SkipReason) and ingest.partition_key in known
    # What has its checkpoint in the store is not.
    snapshot = latest(bench.store, "letters", "training_snapshot")
    made = checkpoint_metadata(snapshot=snapshot.ref, training_seconds=60.0)
    bench.point("finetuned_checkpoint", bench.artifact("finetuned_checkpoint", "after the copy", **made))
    found, _ = tick_restored("retraining")
    assert isinstance(found, dg.SkipReason) and found.skip_message.startswith("wait: ")


def test_automation_is_turned_on_by_the_yaml(template: Prepared, tmp_path: Path) -> None:
    shutil.copytree(template.project.root, tmp_path, dirs_exist_ok=True)
    project = projects.Project(tmp_path, template.project.name)
    on = {"enabled": True, "timezone": "Europe/Berlin"}
    everything = {
        "base_model": "model",
        "monitoring": {"path": "data/letters/production"},
        "retention": {"schedule": "0 5 * * 6"},
    }

    def triggers(**sections: Any) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
        """Return the status of each sensor and schedule by name, and the time zones of the schedules."""
        project.configure(**sections)
        found = FullFineTune(project.use_case()).build_defs()
        sensors, schedules = list(found.sensors or ()), list(found.schedules or ())
        assert all(isinstance(each, dg.SensorDefinition) for each in sensors)
        assert all(isinstance(each, dg.ScheduleDefinition) for each in schedules)
        return (
            {each.name.removeprefix("letters_"): each.default_status.value for each in sensors},
            {each.name.removeprefix("letters_"): each.default_status.value for each in schedules},
            {str(each.execution_timezone) for each in schedules},
        )

    sensors = {"new_documents", "new_production_documents", "live_quality_when_due", "retraining"}
    schedules = {"evaluation_schedule", "clean_schedule"}
    of_sensors, of_schedules, zones = triggers(**everything, automation=on)
    assert of_sensors == dict.fromkeys(sensors, "RUNNING")
    assert of_schedules == dict.fromkeys(schedules, "RUNNING") and zones == {"Europe/Berlin"}
    of_sensors, of_schedules, _ = triggers(**everything)
    assert of_sensors == dict.fromkeys(sensors, "STOPPED") and of_schedules == dict.fromkeys(
        schedules, "STOPPED"
    )
    of_sensors, of_schedules, _ = triggers(base_model="model", automation=on)
    assert of_sensors == dict.fromkeys({"new_documents", "retraining"}, "RUNNING")
    assert of_schedules == {"evaluation_schedule": "RUNNING"}


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
        done = subprocess.run(
            ["dagster", *arguments],
            cwd=self.project.root,
            env=self.project.env(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def turn_on(self, kind: str, name: str) -> None:
        self.dagster(kind, "start", "-w", "workspace.yaml", name)

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.log.read_text()[-3_000:]
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log.read_text()[-3_000:]}"
            time.sleep(0.5)
        return found

    def stop(self) -> None:
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


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    write_tiny_model(tmp_path / "model")
    every_minute = {"evaluation_schedule": "* * * * *", "min_new_examples": 500}
    project = projects.create(
        tmp_path, base_model="model", documents={"poll_seconds": 2}, retraining=every_minute
    )
    daemon = Daemon(project)
    yield daemon
    daemon.stop()


@pytest.mark.slow
def test_daemon_ingests_each_delivery_once_and_schedules_tick(daemon: Daemon) -> None:
    daemon.turn_on("sensor", "letters_new_documents")
    daemon.turn_on("schedule", "letters_evaluation_schedule")
    daemon.turn_on("sensor", "letters_retraining")
    done = dg.DagsterRunStatus.SUCCESS
    with dg.DagsterInstance.from_config(str(daemon.project.home)) as instance:
        store = Store(str(daemon.project.home / "store"))
        daemon.wait_for(
            lambda: len(runs(instance, "letters_ingest", done)) == 1, "first delivery is ingested"
        )
        late = daemon.project.deliver("a-late.jsonl", projects.licence_rows(60, skip=400))
        os.utime(late, (1e9, 1e9))
        daemon.wait_for(lambda: len(runs(instance, "letters_ingest", done)) == 2, "late delivery is ingested")
        batches = store.list_pointers("latest/letters/tokenized_chunks")
        assert [batch.files[0].path for batch in documents.list_batches(store, "letters")] == [
            "delivery-1.jsonl",
            "a-late.jsonl",
        ]
        assert sorted(run.tags["dagster/partition"] for run in runs(instance, "letters_ingest")) == batches
        seen = len(ticks(instance, "letters_new_documents"))
        daemon.wait_for(lambda: len(ticks(instance, "letters_new_documents")) >= seen + 3, "sensor ticks on")
        assert len(runs(instance, "letters_ingest")) == 2
        for name, reason in (
            ("letters_evaluation_schedule", "no checkpoint yet; run the model job first"),
            ("letters_retraining", "fewer than min_new_examples = 500"),
        ):
            skipped = daemon.wait_for(
                lambda name=name: [tick for tick in ticks(instance, name) if tick.skip_reason],
                f"{name} ticks",
            )
            assert reason in skipped[0].skip_reason
        assert runs(instance, "letters_model") == []
        last = store.list_pointers("letters/retraining_decisions")[-1]
        assert store.read_pointer(f"letters/retraining_decisions/{last}")["decision"]["action"] == "wait"


@pytest.mark.slow
def test_daemon_retrains_once_on_enough_new_data(daemon: Daemon) -> None:
    quick = {"min_new_examples": 100, "cooldown_hours": 0.0}
    daemon.stop()
    daemon.project.configure(base_model="model", documents={"poll_seconds": 2}, retraining=quick)
    daemon = Daemon(daemon.project)
    try:
        daemon.turn_on("sensor", "letters_new_documents")
        done = dg.DagsterRunStatus.SUCCESS
        with dg.DagsterInstance.from_config(str(daemon.project.home)) as instance:
            daemon.wait_for(lambda: runs(instance, "letters_ingest", done), "delivery is ingested")
            daemon.turn_on("sensor", "letters_retraining")
            (run,) = daemon.wait_for(lambda: runs(instance, "letters_model"), "model run is launched")
            assert "enough for min_new_examples = 100" in run.tags["retraining/reasons"]
            daemon.wait_for(lambda: instance.get_run_by_id(run.run_id).is_finished, "model run ends", 400.0)
            seen = len(ticks(instance, "letters_retraining"))
            daemon.wait_for(lambda: len(ticks(instance, "letters_retraining")) >= seen + 2, "sensor ticks on")
            assert [found.run_id for found in runs(instance, "letters_model")] == [run.run_id]
    finally:
        daemon.stop()


@pytest.mark.slow
def test_daemon_measures_live_quality_once_when_labels_come(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    project = projects.create(tmp_path, rows=20)
    seen = Live(project, Store(str(project.home / "store")))
    project.configure(
        base_model="model", documents={"poll_seconds": 2}, monitoring={"path": "data/letters/production"}
    )
    rows = projects.licence_rows(60, skip=2_000)
    seen.promote(snapshot_of(seen.store, seen.take_labels()))
    for batch in documents.list_batches(seen.store, "letters"):
        ingestion.mark_done(seen.store, project.use_case(), batch.name)
    seen.see("w0.jsonl", rows, predicted={row["id"]: row["kind"] for row in rows})
    daemon = Daemon(project)

    def measured(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
        asset = dg.AssetKey(["letters", "live_quality"])
        return [run for run in instance.get_runs() if asset in (run.asset_selection or ())]

    try:
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(dg.AssetKey(["letters", "champion_model"]))
            )
            for sensor in ("letters_new_documents", "letters_live_quality_when_due"):
                daemon.turn_on("sensor", sensor)
            daemon.wait_for(
                lambda: len(ticks(instance, "letters_live_quality_when_due")) >= 1, "the sensor ticks"
            )
            for number, part in enumerate((rows[:10], rows[10:30]), start=1):
                project.deliver(f"labels-{number}.jsonl", part)
                daemon.wait_for(
                    lambda number=number: len(measured(instance)) == number, f"labels {number} are measured"
                )
                run, *_ = measured(instance)
                daemon.wait_for(
                    lambda run=run: instance.get_run_by_id(run.run_id).is_finished, "the run ends"
                )
                assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.SUCCESS
                found = LiveMetadata.of(
                    seen.store.load(seen.store.read_pointer("latest/letters/live_quality/all")["ref"])
                )
                assert found.num_labelled == found.num_right >= (10, 30)[number - 1] - 2, (
                    "of related documents one counts"
                )
            count = len(ticks(instance, "letters_live_quality_when_due"))
            daemon.wait_for(
                lambda: len(ticks(instance, "letters_live_quality_when_due")) >= count + 2,
                "the sensor ticks on",
                200.0,
            )
            assert len(measured(instance)) == 2
    finally:
        daemon.stop()


#: A job with the tags of the given one, and a sensor that asks for four runs of it at once, once.
_FOUR_AT_ONCE = """
import dagster as dg

@dg.op
def wait():
    import time
    time.sleep(5)

@dg.job(tags={tags!r})
def read():
    wait()

@dg.sensor(job=read, default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=1)
def new_windows():
    return [dg.RunRequest(run_key=name, tags={{"window": name}}) for name in "abcd"]

defs = dg.Definitions(jobs=[read], sensors=[new_windows], executor=dg.in_process_executor)
"""


@pytest.mark.slow
def test_runs_of_windows_that_one_tick_asked_for_go_one_after_the_other(
    template: Prepared, tmp_path: Path
) -> None:
    project = projects.Project(tmp_path, "letters")
    graph = CaseGraph(template.project.use_case())
    (monitor,) = [job for job in automation.build_jobs(graph) if job.name == "letters_monitor"]
    assert [
        job.name for job in automation.build_jobs(graph) if automation.IN_ORDER_TAG in (job.tags or {})
    ] == ["letters_monitor"]
    (tmp_path / "four.py").write_text(_FOUR_AT_ONCE.format(tags=dict(monitor.tags or {})))
    (tmp_path / "workspace.yaml").write_text("load_from: [{python_file: four.py}]\n")
    project.home.mkdir()
    shutil.copy(template.project.home / "dagster.yaml", project.home)
    daemon = Daemon(project)
    try:
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            ended = dg.RunsFilter(job_name="read", statuses=[dg.DagsterRunStatus.SUCCESS])
            daemon.wait_for(lambda: instance.get_runs_count(ended) == 4, "four runs end")
            records = sorted(instance.get_run_records(ended), key=lambda record: record.start_time or 0)
    finally:
        daemon.stop()
    assert [record.dagster_run.tags["window"] for record in records] == list("abcd")
    assert all(
        (later.start_time or 0.0) >= (earlier.end_time or 0.0)
        for earlier, later in itertools.pairwise(records)
    )
