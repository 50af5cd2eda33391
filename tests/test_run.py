"""`fullft run`: all that was delivered is in the ledger, a file that was just written to is waited for, and
no run stays in the queue.
"""

import io
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._daemon.types import DaemonHeartbeat

from fullft_assets import automation, documents
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.cli import run
from fullft_assets.cli.follower import FollowedRun, Follower, Terminal
from fullft_assets.resources import open_store
from tests import project as projects


@pytest.fixture
def instance(project: projects.Project) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        yield instance


def cut_all(project: projects.Project, instance: dg.DagsterInstance) -> tuple[list[str], str]:
    """Do what a run does first; return the files of the ledger, and what was printed."""
    use_case, terminal = project.use_case(), Terminal(io.StringIO())
    store = open_store(use_case, instance)
    run.cut_all(use_case, store, "batch", terminal)
    batches = documents.list_batches(store, "letters")
    return [file.path for batch in batches for file in batch.files], terminal.stream.getvalue()


def test_a_file_that_was_just_written_to_is_waited_for(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.configure(documents={"settle_seconds": 30})
    path = project.documents / "delivery-1.jsonl"
    path.touch()
    # The time passes at once, in this module alone: other threads sleep as well.
    monkeypatch.setattr(
        run, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: os.utime(path, (1e9, 1e9)))
    )
    files, printed = cut_all(project, instance)
    assert files == ["delivery-1.jsonl"]
    assert printed.endswith(
        f"{project.documents}: 1 file(s) were just written to; waiting until they are complete\n"
    )


def test_a_long_wait_is_left_to_the_next_run(project: projects.Project, instance: dg.DagsterInstance) -> None:
    project.configure(documents={"settle_seconds": 3_600})
    files, printed = cut_all(project, instance)
    assert files == []
    assert printed.endswith(
        f"{project.documents}: 1 file(s) are still being written to; run again for them\n"
    )


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals are heard, though a shell that started the tests in the background, or another test, had them
    ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_within_a_second_are_one_wish(heard: None, number: signal.Signals) -> None:
    with run.interrupted_by_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@dg.op
def nothing() -> None: ...


@dg.job(executor_def=dg.in_process_executor)
def quick() -> None:
    nothing()


def test_a_run_left_in_the_queue_by_a_daemon_that_ended_is_launched(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = time.time() - 58
    instance.add_daemon_heartbeat(
        DaemonHeartbeat(timestamp=ended, daemon_type="QUEUED_RUN_COORDINATOR", daemon_id=None, errors=[])
    )
    origin = RemoteRepositoryOrigin(
        GrpcServerCodeLocationOrigin(host="localhost", port=1), "repository"
    ).get_job_origin("quick")
    queued = instance.create_run_for_job(quick, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
    launched = []

    def launch(run_id: str, _: None) -> None:
        launched.append(run_id)
        instance.report_dagster_event(DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, "quick"), run_id)
        execute_run(InMemoryJob(quick), instance.get_run_by_id(run_id), instance)

    monkeypatch.setattr(instance, "launch_run", launch)
    location = run.CodeLocation.__new__(run.CodeLocation)  # without loading one, which takes seconds
    location.instance, location._new_request = instance, lambda: None
    location.launch_queued(queued.run_id)
    assert launched == [], "the daemon may yet take it"
    follower = Follower(instance, Terminal(io.StringIO()), "letters", location.launch_queued)
    assert follower.follow([FollowedRun(queued.run_id, "quick")]) and launched == [queued.run_id]


def test_all_of_many_files_are_cut(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents.batches, "MAX_CUTS", 2)
    project.configure(documents={"max_batch_files": 1})
    for number in range(2, 6):
        projects.write_rows(
            project.documents / f"delivery-{number}.jsonl", projects.licence_rows(1, skip=number)
        )
    files, printed = cut_all(project, instance)
    assert (len(files), printed) == (5, "")


def test_what_the_sensor_leaves_to_a_person_or_to_a_later_tick_is_launched(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_all(project, instance)
    store, case = open_store(project.use_case(), instance), CaseGraph(project.use_case())
    (request,) = automation.find_due(case, instance, store, "batch", "letters_ingest").requests
    tags = {
        **request.tags,
        "dagster/partition": str(request.partition_key),
        "dagster/run_key": str(request.run_key),
    }
    failed = {**tags, "delivery/failure": "data"}
    instance.add_run(
        dg.DagsterRun(
            job_name="letters_ingest", run_id=str(uuid4()), status=dg.DagsterRunStatus.FAILURE, tags=failed
        )
    )
    launched = []
    location = SimpleNamespace(
        tick=lambda _: {"runRequests": [], "skipReason": "nothing new"},
        launch_queued=None,
        launch=lambda job, tags: launched.append((job, tags)) or "run",
    )
    driver = run.Driver(
        project.use_case(), instance, store, cast(run.CodeLocation, location), Terminal(io.StringIO())
    )
    monkeypatch.setattr(driver.follower, "follow", lambda _: True)
    assert driver._deliver("letters_new_documents", "letters_ingest", "batch")
    ((job, given),) = launched
    assert (
        job == "letters_ingest"
        and given.items() >= {**request.tags, "dagster/partition": str(request.partition_key)}.items()
    )
    assert "dagster/run_key" not in given, "a person asked, not the sensor"
