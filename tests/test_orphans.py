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

from fullft_assets.component import FullFineTune
from fullft_assets.launch import LaunchSpec, Unreachable, records
from fullft_assets.launch.local import LocalLauncher
from fullft_assets.resources import open_store
from fullft_assets.settings import LauncherSettings
from fullft_assets.store import Store
from tests import project as projects
from tests.launch_scenes import recorded

LAUNCHER = LocalLauncher(LauncherSettings(grace_seconds=0))
NOW = time.time()
HOUR = 3600.0


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., records.Launch]]:
    """Records a launch and starts its job, a process that waits; all that still runs is ended after
    the test.
    """
    # As of a launcher whose jobs outlive their runs.
    monkeypatch.setattr(LocalLauncher, "ends_with_run", False)
    (tmp_path / "idle.py").write_text("import time; time.sleep(300)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)]))
    started = []

    def launch(store: Store, *, runs: bool = True, **changes: Any) -> records.Launch:
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
        found = records.Launch(**{**given, **changes})
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


def suspected(store: Store, hours: float | None, now: float = float("inf")) -> list[records.Launch]:
    """Return what is due by now, so many hours after the end of the run; None: it goes on."""
    found = records.orphans(store, "letters", lambda _: None if hours is None else NOW - hours * HOUR)
    return [launch for launch, due_at in found if due_at <= now]


def ended(store: Store, hours: float) -> list[tuple[str, bool | None]]:
    """End those that are due; return the lines, and what was done."""
    return list(records.end_orphans(store, suspected(store, hours, NOW)))


def not_answering(*_: Any) -> None:
    raise Unreachable("it does not answer")


def runs(store: Store, launch: records.Launch) -> bool:
    return not LAUNCHER.poll(launch.name_in(store)).is_over


def test_a_job_whose_run_goes_on_is_not_suspected(store, launch):
    launch(store)
    assert suspected(store, None) == []


@pytest.mark.fault("nobody follows a job any more", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
def test_a_job_is_ended_so_long_after_its_run_and_not_before(store, launch):
    made = launch(store, hourly_usd=2.0)
    assert suspected(store, 0.5) == [made] and ended(store, 0.5) == []
    ((line, is_stopped),) = ended(store, 1.5)
    assert is_stopped
    assert line.endswith(", after 5.00 h and 10.00 USD")
    assert not runs(store, made)
    assert (recorded(store, "letters").state, recorded(store, "letters").failure) == (
        "stopped",
        "preemption",
    ) and suspected(store, 1.5) == []


@pytest.mark.fault("clock skew of hours", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
def test_where_the_clock_of_a_run_was_ahead_its_job_is_left_so_much_longer_and_never_costs_less_than_nothing(
    store, launch
):
    made = launch(store, hourly_usd=2.0, submitted_at=time.time() + 2 * HOUR)
    assert suspected(store, -2.0) == [made] and (made.hours, made.usd) == (0.0, 0.0)
    assert suspected(store, 0.9, NOW) == [] and suspected(store, 1.1, NOW) == [made]
    assert records.end(store, made, "stopped", "", "preemption")
    again = made.model_copy(update={"submitted_at": time.time(), "run_id": "second"})
    following, is_new = records.claim(store, again, lambda _: False)
    assert (following.attempt, following.earlier_hours, is_new) == (2, 0.0, True)


def test_an_end_that_nobody_recorded_is_recorded(store, launch):
    launch(store, runs=False)
    assert [is_stopped for _, is_stopped in ended(store, 2.0)] == [False]
    assert (recorded(store, "letters").state, recorded(store, "letters").failure) == (
        "failed",
        "infrastructure",
    )


def test_a_job_that_a_run_attaches_to_meanwhile_runs_on(store, launch):
    made = launch(store)
    due = suspected(store, 2.0)
    records.claim(store, made.model_copy(update={"run_id": "second", "submitted_at": NOW}), lambda _: False)
    assert [is_stopped for _, is_stopped in records.end_orphans(store, due)] == [False]
    assert runs(store, made) and (recorded(store, "letters").run_id, recorded(store, "letters").ended_at) == (
        "second",
        None,
    )


def test_a_backend_that_does_not_answer_leaves_it_on_record_as_running_and_is_asked_once(
    store, launch, monkeypatch
):
    launch(store)
    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, "stop", not_answering)
        assert [is_stopped for _, is_stopped in ended(store, 2.0)] == [None]
    launch(store, key="later", runs=False)
    calls = []
    monkeypatch.setattr(LocalLauncher, "poll", lambda *given: (calls.append(given), not_answering()))
    unknown = ended(store, 2.0)
    assert [is_stopped for _, is_stopped in unknown] == [None, None] and len(calls) == 1
    assert all(line.endswith("does not answer") for line, _ in unknown)
    assert [launch.ended_at for launch in records.launches(store, "letters")] == [None, None]


class TestInDagster:
    @pytest.fixture
    def defs(self, project: projects.Project) -> dg.Definitions:
        project.configure(launcher={"kind": "ssh", "host": "127.0.0.1", "options": {"Port": 1}})
        return FullFineTune(project.use_case()).build_defs()

    def test_local_jobs_end_with_their_runs_and_need_no_schedule(self, project: projects.Project):
        assert "letters_orphans_schedule" not in {
            schedule.name for schedule in FullFineTune(project.use_case()).build_defs().schedules
        }

    def test_the_schedule_launches_the_job_that_ends_what_a_dead_run_left(
        self, project, defs, launch, monkeypatch
    ):
        schedule = next(
            schedule for schedule in defs.schedules if schedule.name == "letters_orphans_schedule"
        )
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            store = open_store(project.use_case(), instance)
            run = instance.create_run_for_job(dg.GraphDefinition("nothing").to_job())
            made = launch(store, run_id=run.run_id, launcher={"kind": "local", "grace_seconds": 0})

            def tick(hour: int = 5) -> Any:
                at = datetime(2026, 11, 28, hour, 17, tzinfo=UTC)
                context = dg.build_schedule_context(
                    instance=instance, resources=defs.resources, scheduled_execution_time=at
                )
                return schedule.evaluate_tick(context)

            assert tick().skip_message
            instance.report_run_failed(run)
            assert tick().skip_message
            monkeypatch.setattr(records, "_ATTACH_SECONDS", 0.0)
            (request,) = tick().run_requests
            assert request.tags["orphans/jobs"] == made.name_in(store)
            done = defs.resolve_job_def("letters_end_orphans").execute_in_process(instance=instance)
            assert not runs(store, made) and recorded(store, "letters").state == "stopped"
            assert instance.get_run_by_id(done.run_id).tags["orphans/stopped"] == "1"
            launch(
                store,
                key="elsewhere",
                run_id=run.run_id,
                place="elsewhere",
                launcher={"kind": "local"},
                runs=False,
            )
            failed = defs.resolve_job_def("letters_end_orphans").execute_in_process(
                instance=instance, raise_on_error=False
            )
            (failure,) = [event for event in failed.all_events if event.is_step_failure]
            assert "elsewhere cannot be ended" in failure.event_specific_data.user_failure_data.description
