"""Jobs that no run follows any more, real processes of this machine: found, ended in time, and never one that a run has attached to."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets.component import FullFineTune
from fullft_assets.errors import WorkloadError
from fullft_assets.launchers import LaunchSpec, Unreachable, records
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.launchers.orphans import Orphan, end_orphan, find_orphans
from fullft_assets.launchers.records import Launch
from fullft_assets.resources import open_store
from fullft_assets.settings import LauncherSettings
from fullft_assets.store import Store
from tests import project as projects

LAUNCHER = LocalLauncher(LauncherSettings(grace_seconds=0))
NOW = time.time()
HOUR = 3600.0


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Launch]]:
    """Records a launch and starts its job, a process that waits; all that still runs is ended after the test."""
    (tmp_path / "idle.py").write_text("import time; time.sleep(300)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)]))
    started = []

    def launch(store: Store, *, runs: bool = True, **changes: Any) -> Launch:
        given = {"case": "letters", "stage": "finetuned_checkpoint", "key": "k", "workload": "training", "place": LAUNCHER.place}
        given |= {"launcher": LAUNCHER.settings.model_dump(mode="json"), "run_id": "first", "job": [], "submitted_at": NOW - 5 * HOUR}
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


def find(store: Store, hours: float | None) -> list[Orphan]:
    """What is found so many hours after the end of the run; None: it goes on."""
    return list(find_orphans(store, "letters", lambda _: None if hours is None else NOW - hours * HOUR, NOW))


def not_answering(*_: Any) -> None:
    raise Unreachable("it does not answer")


def runs(store: Store, launch: Launch) -> bool:
    return not LAUNCHER.poll(launch.name_in(store)).is_over


def test_a_job_whose_run_goes_on_is_no_orphan(store, launch):
    launch(store)
    assert find(store, None) == []


@pytest.mark.fault("nobody follows a job any more", "ssh", "kubernetes", "ecs", "sagemaker")
def test_a_job_is_ended_so_long_after_its_run_and_not_before(store, launch):
    made = launch(store, hourly_usd=2.0)
    (early,) = find(store, 0.5)
    assert (early.state, early.is_due) == ("running", False) and "it is ended in 0.50 h unless a run attaches to it" in early.line
    (due,) = find(store, 1.5)
    assert (due.state, due.is_due) == ("running", True) and "runs 1.50 h after the end of its run, after 5.00 h and 10.00 USD" in due.line
    assert end_orphan(store, due)
    assert not runs(store, made) and made.name_in(store) not in LAUNCHER.list()
    assert (recorded(store).state, recorded(store).failure) == ("stopped", "preemption")
    assert find(store, 1.5) == []


def test_null_leaves_it(store, launch):
    launch(store, launcher={"kind": "local", "orphan_hours": None})
    (found,) = find(store, 100.0)
    assert not found.is_due and "it runs on until a run attaches to it" in found.line


def test_an_end_that_nobody_recorded_is_recorded(store, launch):
    launch(store, runs=False)
    (found,) = find(store, 0.0)
    assert (found.state, found.is_due) == ("over", True)
    assert end_orphan(store, found)
    assert (recorded(store).state, recorded(store).failure) == ("failed", "infrastructure")


def test_a_job_that_a_run_attaches_to_meanwhile_runs_on(store, launch):
    made = launch(store)
    (found,) = find(store, 2.0)
    records.claim(store, made.model_copy(update={"run_id": "second", "submitted_at": NOW}), lambda _: False)
    assert not end_orphan(store, found)
    assert runs(store, made) and (recorded(store).run_id, recorded(store).ended_at) == ("second", None)


def test_a_backend_that_does_not_answer_leaves_it_on_record_as_running(store, launch, monkeypatch):
    launch(store)
    (found,) = find(store, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, "stop", not_answering)
        with pytest.raises(WorkloadError, match="does not answer"):
            end_orphan(store, found)
    assert recorded(store).ended_at is None
    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, "list", not_answering)
        (unknown,) = find(store, 2.0)
    assert (unknown.state, unknown.is_due) == ("unknown", False) and unknown.line.endswith("cannot be asked for: it does not answer")


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.fault("nobody follows a job any more", "ssh", "kubernetes", "ecs", "sagemaker")
def test_an_attempt_that_is_over_on_record_and_runs_is_ended(store, launch, attempt):
    """Whoever replaced it, or recorded its end, was killed before it ended the job."""
    made = launch(store)
    records.end(store, made, "failed", "was killed by SIGKILL", "infrastructure")
    if attempt == 2:
        records.claim(store, made.model_copy(update={"run_id": "second", "submitted_at": NOW - HOUR}), lambda _: False)
    else:
        assert find(store, None) == [], "its run may be ending it"
        change = {"ended_at": NOW - HOUR}
        store.change_pointer(made.record, lambda old: {**old, **change})
    (found,) = find(store, None)
    assert (found.state, found.is_due, found.name) == ("replaced", True, made.name_in(store))
    assert end_orphan(store, found) and not runs(store, made)
    assert recorded(store).attempt == attempt


@dg.op
def nothing_done() -> None:
    pass


@dg.job
def nothing() -> None:
    nothing_done()


class TestInDagster:
    @pytest.fixture
    def defs(self, project: projects.Project) -> dg.Definitions:
        project.configure(launcher={"kind": "ssh", "host": "gpu1"})
        return FullFineTune(project.use_case()).build_defs()

    def test_local_jobs_end_with_their_runs_and_need_no_schedule(self, project: projects.Project):
        defs = FullFineTune(project.use_case()).build_defs()
        assert "letters_orphans_schedule" not in {schedule.name for schedule in defs.schedules}

    def test_the_schedule_launches_the_job_that_ends_what_a_dead_run_left(self, project, defs, launch):
        schedule = next(schedule for schedule in defs.schedules if schedule.name == "letters_orphans_schedule")
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            store = open_store(project.use_case(), instance)
            run = instance.create_run_for_job(nothing)
            made = launch(store, run_id=run.run_id, launcher={"kind": "local", "orphan_hours": 0.0, "grace_seconds": 0})

            def tick() -> Any:
                context = dg.build_schedule_context(instance=instance, resources=defs.resources)
                return schedule.evaluate_tick(context)

            assert tick().skip_message == "each job that runs is followed by a run"
            instance.report_run_failed(run)
            (request,) = tick().run_requests
            assert made.name_in(store) in request.tags["orphans"]
            assert defs.resolve_job_def("letters_end_orphans").execute_in_process(instance=instance).success
            assert not runs(store, made) and recorded(store).state == "stopped"
            assert tick().skip_message == "each job that runs is followed by a run"
