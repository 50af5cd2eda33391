"""Jobs that no run follows any more, real processes of this machine: found, ended in time, and never one that
a run has attached to.
"""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets.automation import orphans
from fullft_assets.cli.summary import job_lines
from fullft_assets.component import FullFineTune
from fullft_assets.errors import WorkloadError
from fullft_assets.launchers import LaunchSpec, Unreachable, records
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.launchers.orphans import (
    Orphan,
    Suspect,
    due,
    due_unrecorded,
    end_orphan,
    find_orphans,
    find_unrecorded,
    note_unrecorded,
    suspects,
    waiting_line,
)
from fullft_assets.launchers.records import Launch
from fullft_assets.resources import open_store
from fullft_assets.settings import LauncherSettings
from fullft_assets.store import Store
from tests import project as projects
from tests.s3_server import S3Server, serve

LAUNCHER = LocalLauncher(LauncherSettings(grace_seconds=0))
NOW = time.time()
HOUR = 3600.0


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Launch]]:
    """Records a launch and starts its job, a process that waits; all that still runs is ended after
    the test.
    """
    # As of a launcher whose jobs outlive their runs.
    monkeypatch.setattr(LocalLauncher, "ends_with_run", False)
    (tmp_path / "idle.py").write_text("import time; time.sleep(300)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)]))
    started = []

    def launch(store: Store, *, runs: bool = True, **changes: Any) -> Launch:
        given = {
            "case": "letters",
            "stage": "finetuned_checkpoint",
            "key": "k",
            "workload": "training",
            "place": LAUNCHER.place,
        }
        given |= {
            "launcher": LAUNCHER.settings.model_dump(mode="json"),
            "run_id": "first",
            "job": [],
            "submitted_at": time.time() - 5 * HOUR,
        }
        found = Launch(**{**given, **changes})
        records.claim(store, found, lambda _: False)
        if runs:
            name = found.name_in(store)
            LAUNCHER.submit(LaunchSpec(name, "idle", (), watched=(os.getpid(),)))
            started.append(name)
        return found

    yield launch
    for name in started:
        LAUNCHER.stop(name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def recorded(store: Store) -> Launch:
    (found,) = records.launches(store, "letters")
    return found


def suspected(store: Store, hours: float | None) -> list[Suspect]:
    """What is suspected so many hours after the end of the run; None: it goes on."""
    return list(suspects(store, "letters", lambda _: None if hours is None else NOW - hours * HOUR, NOW))


def find(store: Store, hours: float | None) -> list[Orphan]:
    """What is found of those that are due."""
    return list(find_orphans(store, due(suspected(store, hours), NOW)))


def not_answering(*_: Any) -> None:
    raise Unreachable("it does not answer")


def runs(store: Store, launch: Launch) -> bool:
    return not LAUNCHER.poll(launch.name_in(store)).is_over


def test_a_job_whose_run_goes_on_is_not_suspected(store, launch):
    launch(store)
    assert suspected(store, None) == []


@pytest.mark.fault("nobody follows a job any more", "ssh", "kubernetes", "ecs", "sagemaker")
def test_a_job_is_ended_so_long_after_its_run_and_not_before(store, launch):
    made = launch(store, hourly_usd=2.0)
    (early,) = suspected(store, 0.5)
    assert find(store, 0.5) == []
    assert waiting_line(early, store, NOW).endswith(
        "ended 0.50 h ago; it is left alone for 0.50 h more, or until a run attaches"
    )
    (found,) = find(store, 1.5)
    assert (found.state, found.names) == ("running", (made.name_in(store),)) and found.line.endswith(
        ", after 5.00 h and 10.00 USD"
    )
    assert end_orphan(store, found)
    assert not runs(store, made) and made.name_in(store) not in LAUNCHER.list()
    assert (recorded(store).state, recorded(store).failure, recorded(store).is_cleared) == (
        "stopped",
        "preemption",
        True,
    )
    assert suspected(store, 1.5) == []


@pytest.mark.fault("clock skew of hours", "ssh", "kubernetes", "ecs", "sagemaker")
def test_where_the_clock_of_a_run_was_ahead_its_job_is_left_so_much_longer_and_never_costs_less_than_nothing(
    store, launch
):
    made = launch(store, hourly_usd=2.0, submitted_at=time.time() + 2 * HOUR)
    (found,) = suspected(store, -2.0)
    assert waiting_line(found, store, NOW).endswith(
        "ended 0.00 h ago; it is left alone for 3.00 h more, or until a run attaches"
    )
    assert (made.hours, made.usd) == (0.0, 0.0)
    assert find(store, 0.9) == [] and len(find(store, 1.1)) == 1
    assert records.end(store, made, "stopped", "", "preemption")
    again = made.model_copy(update={"submitted_at": time.time(), "run_id": "second"})
    following, _, is_new = records.claim(store, again, lambda _: False)
    assert (following.attempt, following.earlier_hours, is_new) == (2, 0.0, True)


def test_null_leaves_it(store, launch):
    launch(store, launcher={"kind": "local", "orphan_hours": None})
    (found,) = suspected(store, 100.0)
    assert find(store, 100.0) == []
    assert waiting_line(found, store, NOW).endswith("it is left alone until a run attaches to it")


def test_an_end_that_nobody_recorded_is_recorded(store, launch):
    launch(store, runs=False)
    (found,) = find(store, 2.0)
    assert (found.state, found.names) == ("over", ())
    assert end_orphan(store, found)
    assert (recorded(store).state, recorded(store).failure) == ("failed", "infrastructure")


def test_a_job_that_a_run_attaches_to_meanwhile_runs_on(store, launch):
    made = launch(store)
    (found,) = find(store, 2.0)
    records.claim(store, made.model_copy(update={"run_id": "second", "submitted_at": NOW}), lambda _: False)
    assert not end_orphan(store, found)
    assert runs(store, made) and (recorded(store).run_id, recorded(store).ended_at) == ("second", None)


def test_a_backend_that_does_not_answer_leaves_it_on_record_as_running_and_is_asked_once(
    store, launch, monkeypatch
):
    launch(store)
    launch(store, key="later", runs=False)
    found, _ = find(store, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, "stop", not_answering)
        with pytest.raises(WorkloadError, match="does not answer"):
            end_orphan(store, found)
    assert [launch.ended_at for launch in records.launches(store, "letters")] == [None, None]
    calls = []
    monkeypatch.setattr(LocalLauncher, "poll", lambda *given: (calls.append(given), not_answering()))
    unknown = find(store, 2.0)
    assert [orphan.state for orphan in unknown] == ["unknown", "unknown"] and len(calls) == 1
    assert all(orphan.line.endswith("cannot be asked for: it does not answer") for orphan in unknown)


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.fault("nobody follows a job any more", "ssh", "kubernetes", "ecs", "sagemaker")
def test_an_attempt_that_is_over_on_record_and_runs_is_ended(store, launch, attempt):
    """Whoever replaced it, or recorded its end, was killed before it ended the job."""
    made = launch(store)
    records.end(store, made, "failed", "was killed by SIGKILL", "infrastructure")
    if attempt == 2:
        records.claim(
            store, made.model_copy(update={"run_id": "second", "submitted_at": NOW - HOUR}), lambda _: False
        )
    else:
        assert find(store, 2.0) == [], "its run may be ending it"
        change = {"ended_at": NOW - HOUR}
        store.change_pointer(made.record, lambda old: {**old, **change})
    (found,) = find(store, 2.0)
    assert (found.state, found.names) == ("running", (made.name_in(store),))
    assert end_orphan(store, found) and not runs(store, made)
    assert (recorded(store).attempt, recorded(store).is_cleared) == (attempt, True)
    assert suspected(store, 2.0) == []


def test_a_run_that_follows_for_another_one_takes_the_job_over_once_that_is_gone(store, launch):
    made = launch(store)
    assert not records.adopt(store, made, "second", lambda _: True)
    assert records.adopt(store, made, "second", lambda _: False) and recorded(store).run_id == "second"
    assert not records.adopt(store, made, "third", lambda run_id: run_id != "first")


def test_a_job_of_a_store_at_another_endpoint_is_not_taken_for_one_without_a_record(s3_env, launch, tmp_path):
    with serve(tmp_path) as other:
        for server in (s3_env, other):
            server.make_bucket("team")
        ours, theirs = (Store("s3://team/fullft", _options(server)) for server in (s3_env, other))
        made = launch(theirs)
        assert find_unrecorded(ours, made.case, [LAUNCHER.settings], NOW) == ([], [])
        assert made.name_in(Store(theirs.url, theirs.options)) == made.name_in(theirs), (
            "another process knows it by the same name"
        )
        theirs.delete_pointer(made.record)
        (found,), _ = find_unrecorded(theirs, made.case, [LAUNCHER.settings], NOW)
        assert found.name == made.name_in(theirs)


def _options(server: S3Server) -> dict[str, Any]:
    return {"endpoint_url": server.endpoint, "key": server.access_key, "secret": server.secret_key}


@pytest.mark.fault("the record of a job is lost", "ssh", "kubernetes", "ecs", "sagemaker")
def test_a_job_that_no_record_names_is_found_by_its_name_and_ended_like_an_orphan(
    project, launch, monkeypatch
):
    use_case = project.use_case()
    with dg.DagsterInstance.ephemeral() as instance:
        store = open_store(use_case, instance)
    known, lost = launch(store), launch(store, key="lost")
    launch(store, case="another")
    store.delete_pointer(lost.record)
    name = lost.name_in(store)
    (found,), silent = find_unrecorded(store, "letters", [LAUNCHER.settings], NOW)
    assert (found.name, found.since, found.due_at, silent) == (name, NOW, NOW + HOUR, [])
    assert found.line == f"letters: {name} at {LAUNCHER.place} runs, and no record names it; seen 0.00 h ago"
    assert found.line in list(job_lines(use_case, store, with_ended=False))
    note_unrecorded(store, "letters", [found], is_complete=True)
    assert due_unrecorded(store, "letters", NOW + 0.9 * HOUR) == {}
    assert due_unrecorded(store, "letters", NOW + 1.1 * HOUR) == {name: NOW + HOUR}
    (again,), _ = find_unrecorded(store, "letters", [LAUNCHER.settings], NOW + 2 * HOUR)
    assert (again.since, again.line.endswith("seen 2.00 h ago")) == (NOW, True)
    again.launcher.stop(name)
    assert runs(store, known) and find_unrecorded(store, "letters", [LAUNCHER.settings], NOW) == ([], [])
    note_unrecorded(store, "letters", [], is_complete=False)
    assert store.list_pointers("unrecorded/letters") == [name], "a place that did not answer may have it"
    note_unrecorded(store, "letters", [], is_complete=True)
    assert store.list_pointers("unrecorded/letters") == []
    monkeypatch.setattr(LocalLauncher, "list", not_answering)
    assert find_unrecorded(store, "letters", [LAUNCHER.settings], NOW) == (
        [],
        ["letters: jobs without a record at local cannot be looked for: it does not answer"],
    )


@dg.op
def nothing_done() -> None:
    pass


@dg.job
def nothing() -> None:
    nothing_done()


class TestInDagster:
    @pytest.fixture
    def defs(self, project: projects.Project) -> dg.Definitions:
        project.configure(launcher={"kind": "ssh", "host": "127.0.0.1", "options": {"Port": 1}})
        return FullFineTune(project.use_case()).build_defs()

    def test_local_jobs_end_with_their_runs_and_need_no_schedule(self, project: projects.Project):
        defs = FullFineTune(project.use_case()).build_defs()
        assert "letters_orphans_schedule" not in {schedule.name for schedule in defs.schedules}

    def test_the_schedule_launches_the_job_that_ends_what_a_dead_run_left(
        self, project, defs, launch, monkeypatch
    ):
        schedule = next(
            schedule for schedule in defs.schedules if schedule.name == "letters_orphans_schedule"
        )
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            store = open_store(project.use_case(), instance)
            run = instance.create_run_for_job(nothing)
            made = launch(
                store, run_id=run.run_id, launcher={"kind": "local", "orphan_hours": 0.0, "grace_seconds": 0}
            )

            def tick(hour: int = 5) -> Any:
                at = datetime(2026, 11, 28, hour, 17, tzinfo=UTC)
                context = dg.build_schedule_context(
                    instance=instance, resources=defs.resources, scheduled_execution_time=at
                )
                return schedule.evaluate_tick(context)

            assert tick().skip_message == "a run follows each job"
            instance.report_run_failed(run)
            (request,) = tick().run_requests
            assert (
                request.tags["orphans/jobs"] == made.name_in(store)
                and request.run_key == tick().run_requests[0].run_key
            )
            lost = launch(store, key="lost")
            store.delete_pointer(lost.record)
            places = [LauncherSettings(grace_seconds=0)]
            monkeypatch.setattr(orphans, "sections", lambda _: places)
            job = defs.resolve_job_def("letters_end_orphans")
            done = job.execute_in_process(instance=instance)
            assert not runs(store, made) and recorded(store).state == "stopped"
            assert instance.get_run_by_id(done.run_id).tags["orphans/stopped"] == "1" and runs(store, lost), (
                "its hour has begun"
            )
            assert store.list_pointers("unrecorded/letters") == [lost.name_in(store)]
            places[:] = [LauncherSettings(grace_seconds=0, orphan_hours=0)]
            done = job.execute_in_process(instance=instance)
            assert instance.get_run_by_id(done.run_id).tags["orphans/stopped"] == "1" and not runs(
                store, lost
            )
            assert store.list_pointers("unrecorded/letters") == []
            assert tick().skip_message == "a run follows each job"
            looks = [hour for hour in range(8) if tick(hour).run_requests]
            assert looks == [0, 6], "backends are asked for jobs without a record"
            store.write_pointer("unrecorded/letters/fullft-lost", {"since": NOW - HOUR, "due_at": NOW})
            assert tick().run_requests[0].tags["orphans/jobs"] == "fullft-lost"
            store.delete_pointer("unrecorded/letters/fullft-lost")
            launch(
                store,
                key="elsewhere",
                run_id=run.run_id,
                place="elsewhere",
                launcher={"kind": "local", "orphan_hours": 0.0},
                runs=False,
            )
            failed = defs.resolve_job_def("letters_end_orphans").execute_in_process(
                instance=instance, raise_on_error=False
            )
            (failure,) = [event for event in failed.all_events if event.is_step_failure]
            assert (
                "elsewhere cannot be asked for: the section on record leads to"
                in failure.event_specific_data.user_failure_data.description
            )
