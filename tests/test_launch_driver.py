"""The one driver of all launchers, on a backend that a test plays: attach or submit, lost answers, retries,
records.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.launch import Launcher, LaunchSpec, Logs, Status, Unreachable, records
from fullft_assets.launch.ssh import SshLauncher
from fullft_assets.resources import driver
from fullft_assets.settings import LauncherSettings, SshLauncherSettings
from fullft_assets.store import Store
from tests import manifests
from tests.launch_scenes import recorded, run_probe


class Backend(Launcher):
    """A backend whose jobs end as the test says, each submission by the next entry of `ends`."""

    place = "the test"

    def __init__(self, store: Store, ends: list[Status], **settings: Any) -> None:
        super().__init__(LauncherSettings(**settings))
        self.store, self.ends = store, ends
        self.jobs: dict[str, Status] = {}
        self.calls: list[str] = []
        #: Calls, by their number, that get no answer; a submission is done all the same.
        self.lost: set[int] = set()

    def submit(self, spec: LaunchSpec) -> None:
        self.jobs[spec.name] = self.ends.pop(0)
        if self.jobs[spec.name].state == "succeeded":
            manifests.write(self.store, "probe", "writes")
        self._answer("submit")

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        self._answer("poll")
        return self.jobs.get(name, Status("gone"))

    def logs(self, name: str, cursor: str) -> Logs:
        self._answer("logs")
        return Logs("1", "" if cursor else "a line of output\n")

    def stop(self, name: str) -> None:
        self._answer("stop")
        self.jobs.pop(name, None)

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) in self.lost:
            raise Unreachable("the backend does not answer")


DONE = Status("succeeded")
PREEMPTED = Status("failed", "stopped at step 7 of 9", "preemption", is_own_line=True)
LOST = Status("failed", "was killed by SIGKILL", "infrastructure")
WRONG = Status("failed", "a.csv:3: no label", "data", is_own_line=True)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(driver, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return probe_job(tmp_path, "writes")[1]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def run(tmp_path: Path, instance: dg.DagsterInstance) -> Callable[[Launcher], str | None]:
    """Runs the probe's job on a launcher; returns None, or the line of the failure."""

    def run(launcher: Launcher) -> str | None:
        return run_probe(launcher, *probe_job(tmp_path, "writes"), instance, workload="training")[0]

    return run


@pytest.fixture
def abandoned(run, store, monkeypatch) -> Callable[..., Backend]:
    """Returns a backend with the job of a run that lost it at its first look, and is over."""

    def abandoned(*ends: Status) -> Backend:
        monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.0)
        backend = Backend(store, list(ends))
        backend.lost = {2}
        assert run(backend) == "the backend does not answer [infrastructure]"
        backend.lost = set()
        return backend

    return abandoned


def test_what_a_job_waits_for_is_said_once_in_the_log_of_the_run(run, store, instance, monkeypatch):
    held = Status("pending", "held by run a")
    waits = [Status("pending"), held, held, Status("running")]
    backend = Backend(store, [DONE])
    done = Backend.poll
    monkeypatch.setattr(
        Backend, "poll", lambda self, name, seconds=0.0: waits.pop(0) if waits else done(self, name, seconds)
    )
    assert run(backend) is None
    (made,) = instance.get_runs()
    assert [entry.user_message for entry in instance.all_logs(made.run_id)].count("held by run a") == 1


@pytest.mark.parametrize(
    ("ends", "max_retries", "line", "attempt"),
    [
        ([DONE], 0, None, 1),
        ([PREEMPTED, DONE], 1, None, 2),
        ([LOST, PREEMPTED, DONE], 2, None, 3),
        ([PREEMPTED, PREEMPTED, DONE], 1, "stopped at step 7 of 9 [preemption]", 2),
        ([LOST], 0, "workload training was killed by SIGKILL; see the step's stderr [infrastructure]", 1),
        ([WRONG, DONE], 5, "a.csv:3: no label [data]", 1),
    ],
)
@pytest.mark.fault("the machine or node is lost")
def test_preemption_and_lost_machines_are_tried_again_within_a_bound(
    run, store, ends, max_retries, line, attempt
):
    backend = Backend(store, list(ends), max_retries=max_retries)
    assert run(backend) == line
    launch = recorded(store)
    assert (launch.attempt, launch.state, backend.jobs) == (
        attempt,
        "succeeded" if line is None else "failed",
        {},
    )
    assert line is None or line.startswith(launch.reason)


@pytest.mark.parametrize("lost", [{1}, {2}, {3}, {4}, {2, 3, 5}])
@pytest.mark.fault(
    "the backend throttles, fails or does not answer", "ssh", "kubernetes", "ecs", "sagemaker", "ray"
)
@pytest.mark.fault("the answer to a submission is lost", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
def test_lost_answers_neither_fail_a_run_nor_start_a_second_job(run, store, lost):
    backend = Backend(store, [DONE])
    # Submission, look, output: the answer is lost, and what was asked for has happened.
    backend.lost = lost
    assert run(backend) is None and backend.calls.count("submit") == 1
    assert recorded(store).attempt == 1


@pytest.mark.fault("the run's process is killed", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
def test_a_run_attaches_to_the_job_that_an_earlier_one_left(run, store, abandoned):
    backend, first = abandoned(DONE), recorded(store)
    assert (first.state, sorted(backend.jobs)) == ("running", [first.name_in(store)]) and run(backend) is None
    launch = recorded(store)
    assert backend.calls.count("submit") == 1
    assert (launch.state, launch.attempt, launch.submitted_at) == (
        "succeeded",
        1,
        first.submitted_at,
    )
    assert launch.run_id != first.run_id


@pytest.mark.parametrize(
    ("end", "line", "num_submitted"), [(PREEMPTED, None, 2), (WRONG, "a.csv:3: no label [data]", 1)]
)
def test_how_the_job_of_an_earlier_run_ended_decides_whether_it_is_started_again(
    run, abandoned, end, line, num_submitted
):
    backend = abandoned(end, DONE)
    assert run(backend) == line and backend.calls.count("submit") == num_submitted


def test_who_only_follows_starts_the_next_attempt_though_the_first_run_never_records_an_end(
    run, store, abandoned, monkeypatch
):
    backend = abandoned(PREEMPTED, DONE)
    monkeypatch.setattr(driver, "_is_active", lambda instance, run_id: True)
    assert run(backend) is None and (recorded(store).attempt, recorded(store).state) == (2, "succeeded")


def test_a_job_of_an_earlier_run_that_is_gone_is_submitted_again(run, abandoned):
    backend = abandoned(WRONG, DONE)
    backend.jobs.clear()
    assert run(backend) is None


@pytest.mark.fault("two runs launch the same")
def test_a_job_that_another_run_has_recorded_is_waited_for_and_submitted_once(
    run, store, abandoned, monkeypatch
):
    backend = abandoned(DONE)
    submitted = dict(backend.jobs)
    backend.jobs.clear()  # as if the first run were between its record and its submission
    monkeypatch.setattr(driver, "_is_active", lambda instance, run_id: True)
    monkeypatch.setattr(driver.time, "sleep", lambda _: backend.jobs.update(submitted))
    assert run(backend) is None and backend.calls.count("submit") == 1
    assert recorded(store).state == "succeeded"


def test_an_error_here_leaves_the_job_to_the_next_run_and_a_cancel_ends_it(run, store, monkeypatch):
    backend = Backend(store, [DONE])
    for error, calls in (
        (ValueError("a message that is no JSON"), 0),
        (dg.DagsterExecutionInterruptedError(), 1),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(backend, "logs", lambda *_, error=error: (_ for _ in ()).throw(error))
            with suppress(dg.DagsterExecutionInterruptedError):
                run(backend)
        assert (recorded(store).state, backend.calls.count("stop")) == (
            "stopped" if calls else "running",
            calls,
        )
    assert backend.calls.count("submit") == 1, "the second run attached"


@pytest.mark.parametrize(("end", "lost"), [(LOST, {4, 5}), (PREEMPTED, {4})])
def test_a_job_that_may_still_run_is_ended_before_the_next_one_starts(run, store, monkeypatch, end, lost):
    backend, beside = Backend(store, [end, DONE], max_retries=1), []
    submit = backend.submit
    monkeypatch.setattr(backend, "submit", lambda spec: (beside.append(sorted(backend.jobs)), submit(spec)))
    backend.lost = lost  # answers to `stop`
    assert run(backend) is None and (beside, recorded(store).attempt) == ([[], []], 2)


def test_a_job_that_cannot_be_ended_stays_on_record_for_the_next_run(run, store, monkeypatch):
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.0)
    backend = Backend(store, [LOST, DONE], max_retries=1)
    backend.lost = {4}
    line = run(backend)
    launch = recorded(store)
    name = launch.name_in(store)
    assert f"; {name} may still run, " in line
    assert (launch.state, launch.ended_at, sorted(backend.jobs), backend.calls.count("submit")) == (
        "running",
        None,
        [name],
        1,
    )
    backend.lost = set()
    assert run(backend) is None and (recorded(store).attempt, sorted(backend.jobs)) == (2, [])


def test_only_a_run_that_dagster_cancels_stops_its_job_where_nobody_can_press_ctrl_c(
    run, instance, store, monkeypatch
):
    monkeypatch.setattr(driver, "_is_by_hand", lambda run: False)
    backend = Backend(store, [DONE, DONE])

    def interrupt(is_asked: bool) -> Logs:
        if is_asked:
            instance.report_run_canceling(instance.get_runs(limit=1)[0])
        raise dg.DagsterExecutionInterruptedError

    # The last one also makes sure that the attempt before it has been ended.
    for ends_with_run, is_asked, state, num_stops in (
        (False, False, "running", 0),
        (False, True, "stopped", 1),
        (True, False, "stopped", 3),
    ):
        monkeypatch.setattr(backend, "ends_with_run", ends_with_run)
        monkeypatch.setattr(backend, "logs", lambda *_, is_asked=is_asked: interrupt(is_asked))
        with suppress(dg.DagsterExecutionInterruptedError):
            run(backend)
        assert (recorded(store).state, backend.calls.count("stop")) == (state, num_stops)
    assert backend.calls.count("submit") == 2, "the second run attached"


@pytest.mark.fault("a run is cancelled", "ssh", "kubernetes", "ecs", "sagemaker", "ray")
def test_a_cancelled_run_asks_again_where_the_backend_does_not_answer(run, store, monkeypatch):
    def cancel(*_: str) -> Logs:
        raise dg.DagsterExecutionInterruptedError

    backend = Backend(store, [DONE])
    monkeypatch.setattr(backend, "logs", cancel)
    backend.lost = {3, 4}
    with suppress(dg.DagsterExecutionInterruptedError):
        run(backend)
    assert (recorded(store).state, sorted(backend.jobs)) == ("stopped", [])


def test_a_place_that_does_not_answer_yet_is_asked_again(run, store, monkeypatch):
    places = [Unreachable("the backend does not answer"), "the test"]

    def place(_: Backend) -> str:
        if isinstance(found := places.pop(0) if len(places) > 1 else places[0], Unreachable):
            raise found
        return found

    monkeypatch.setattr(Backend, "place", property(place))
    assert run(Backend(store, [DONE])) is None and places == ["the test"]


def test_a_job_of_another_machine_is_not_said_to_have_ended(run, store, monkeypatch, capfd):
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.0)
    elsewhere = Backend(store, [DONE])
    elsewhere.place, elsewhere.lost = "elsewhere", {2}
    elsewhere.settings = SshLauncherSettings(host="gpu1")
    run(elsewhere)
    stopped = []
    monkeypatch.setattr(SshLauncher, "stop", lambda self, name: stopped.append(name))
    assert run(Backend(store, [DONE])) is None and "at elsewhere cannot be ended: " in capfd.readouterr().err
    assert stopped == [] and recorded(store).attempt == 2


def test_a_refused_submission_is_one_line_and_leaves_no_record_of_a_running_job(run, store, monkeypatch):
    def refuse(spec: LaunchSpec) -> None:
        raise driver.WorkloadError("ssh gpu1: Permission denied", "settings")

    backend = Backend(store, [])
    monkeypatch.setattr(backend, "submit", refuse)
    assert run(backend) == "ssh gpu1: Permission denied [settings]"
    assert (
        recorded(store).state,
        backend.calls,
    ) == ("failed", [])


def wanted(**changes: Any) -> records.Launch:
    given = {
        "case": "c",
        "stage": "s",
        "key": "k",
        "workload": "training",
        "launcher": {},
        "place": "a",
        "run_id": "r1",
        "job": [],
        "submitted_at": 1.0,
    }
    return records.Launch(**{**given, **changes})


class TestRecords:
    @pytest.mark.fault("two runs launch the same")
    def test_of_two_runs_one_launches_and_the_other_follows(self, store):
        first, is_new = records.claim(store, wanted(), lambda _: True)
        assert is_new and first.attempt == 1
        assert records.claim(store, wanted(run_id="r2", submitted_at=2.0), lambda _: True) == (first, False)
        assert records.claim(store, wanted(run_id="r2", submitted_at=2.0), lambda _: None) == (first, False)

    def test_an_ended_attempt_is_followed_by_the_next_under_another_name(self, store):
        first, _ = records.claim(store, wanted(), lambda _: True)
        records.end(store, first, "failed", "why", "data")
        second, is_new = records.claim(store, wanted(submitted_at=2.0), lambda _: True)
        assert is_new
        assert second.attempt == 2
        assert first.name_in(store) != second.name_in(store)
        records.end(store, first, "succeeded", "", "unknown")
        assert records.read(store, second) == second, "the end of an older attempt changes nothing"

    def test_another_place_waits_for_a_living_run_and_replaces_a_dead_one(self, store):
        records.claim(store, wanted(), lambda _: True)
        with pytest.raises(driver.WorkloadError, match="run r1 has s .* at a; "):
            records.claim(store, wanted(run_id="r2", place="b", submitted_at=2.0), lambda _: True)
        second, is_new = records.claim(
            store, wanted(run_id="r2", place="b", submitted_at=2.0), lambda _: False
        )
        assert (second.place, second.attempt, is_new) == ("b", 2, True)
        # A run that goes on in another container is its own successor.
        third, is_new = records.claim(store, wanted(run_id="r2", submitted_at=3.0), lambda _: True)
        assert (third.place, third.attempt, is_new) == ("a", 3, True)

    def test_names_differ_between_stores_and_fit_every_backend(self, store, tmp_path):
        names = {
            wanted().name_in(store),
            wanted().name_in(Store(str(tmp_path / "other"))),
            wanted(key="l").name_in(store),
        }
        assert len(names) == 3 and all(len(name) <= 63 and name.replace("-", "").isalnum() for name in names)

    def test_cost_is_hours_times_the_price_where_there_is_one(self):
        assert wanted(submitted_at=0.0, ended_at=5400.0, hourly_usd=4.0).usd == 6.0
        assert wanted(submitted_at=0.0, ended_at=5400.0, hourly_usd=4.0, earlier_hours=0.5).usd == 8.0
        assert wanted(submitted_at=0.0, ended_at=5400.0, hourly_usd=4.0, billed_seconds=900.0).usd == 1.0
        assert wanted(submitted_at=0.0, ended_at=5400.0).usd is None


def test_who_attached_takes_the_job_over_once_its_run_is_gone(run, store, abandoned, monkeypatch):
    """Else it would count as a job that nobody follows, and be ended under a run that waits for it."""
    monkeypatch.setattr(Backend, "look_seconds", (0.0, 0.0))
    lives, followed_by = [True], []
    monkeypatch.setattr(driver, "_is_active", lambda instance, run_id: lives[0])
    backend = abandoned(Status("running"))

    def logs(name: str, cursor: str) -> Logs:
        followed_by.append(recorded(store).run_id)
        lives[0] = False
        if len(followed_by) == 3:
            backend.jobs[name] = WRONG
        return Logs("1")

    monkeypatch.setattr(backend, "logs", logs)
    assert (
        run(backend) == "a.csv:3: no label [data]"
        and followed_by[0] != followed_by[1] == followed_by[2] == recorded(store).run_id
    )
    assert sorted(backend.jobs) == []
