"""A real instance whose runs are really killed: what they held is free again, and who waits for a living run
prints for which.
"""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.utils import make_new_run_id
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from fullft_assets.cli.follower import Terminal
from fullft_assets.cli.run import Driver, interrupted_by_signals, open_code_location
from fullft_assets.launch.supervisor import is_alive
from fullft_assets.resources import run_workers
from tests.machine import processes_with, set_environment, wait_for
from tests.project import write_files

TESTS = Path(__file__).parent
SECONDS = 90.0
STARTED, FAILURE, SUCCESS = (
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.SUCCESS,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the probe, and a home with the repository's settings; nothing that was started there
    outlives a test.
    """
    home = tmp_path / "home"
    write_files(home, {"dagster.yaml": (TESTS.parent / "dagster.yaml").read_bytes()})
    variables = {
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS])),
        "PROBE_FOLDER": str(tmp_path),
        "PROBE_STAGE": "works",
    }
    set_environment(monkeypatch, variables)
    yield tmp_path
    for process in processes_with("PROBE_FOLDER", tmp_path):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(folder / "home")) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        yield instance


def drive(folder: Path, stream: TextIO) -> bool:
    """Do what `fullft run` does around a use case's model job, with the probe's."""
    workspace_file = folder / "workspace.yaml"
    module = {
        "module_name": "probe_workloads.pooled",
        "working_directory": str(TESTS),
        "location_name": "probe",
    }
    workspace_file.write_text(json.dumps({"load_from": [{"python_module": module}]}))
    with (
        interrupted_by_signals(),
        dg.DagsterInstance.get() as instance,
        open_code_location(instance, workspace_file, "probe_model") as location,
    ):
        driver = Driver(SimpleNamespace(name="probe"), instance, None, location, Terminal(stream))
        driver.follower.settle()
        with driver.stopping():
            return driver.follower.follow([driver.launch("probe_model", {}, "model")])


def start(folder: Path, output: str, *, hears_ctrl_c: bool = True) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from tests.test_run_workers import drive; sys.exit(not"
        " drive(Path(sys.argv[1]), sys.stdout))"
    )
    command = [sys.executable, "-c", code, str(folder)]

    def hear() -> None:
        # The job of a shell in the background begins with Ctrl-C ignored, and so would its children; what an
        # earlier test of this process blocks or ignores, they would not hear, either.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL if hears_ctrl_c else signal.SIG_IGN)

    with (folder / output).open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, cwd=TESTS.parent, start_new_session=True, preexec_fn=hear
        )


def kill(first: subprocess.Popen) -> None:
    """SIGKILL a driver, its code server and its run's worker at once, but not the workload and its
    supervisor.
    """
    for process in (psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            if not re.search(r"supervisor|probe_workloads\.probe", " ".join(process.cmdline())):
                process.kill()
    first.wait()


def num_queued(instance: dg.DagsterInstance) -> int:
    return len(instance.event_log_storage.get_concurrency_info("gpu").pending_steps)


def messages(instance: dg.DagsterInstance, run: dg.DagsterRun, event: dg.DagsterEventType) -> list[str]:
    return [entry.message for entry in instance.all_logs(run.run_id, of_type=event)]


@pytest.mark.slow
@pytest.mark.fault("the daemon restarts")
def test_who_waits_for_a_living_run_prints_it_and_continues_when_that_dies(folder, instance, monkeypatch):
    first = start(folder, "first")
    wait_for((folder / "workload0.pid").exists, "the first run at work")
    (holder,) = instance.get_runs()
    monkeypatch.setenv("PROBE_STAGE", "writes")
    second = start(folder, "second")
    wait_for(
        lambda: "waits for a slot" in (folder / "second").read_text(),
        "the line that names what is waited for",
    )
    kill(first)
    assert second.wait(SECONDS) == 0
    lines = re.findall(r"^\[ *[\d.]+ s\] (.+)$", (folder / "second").read_text(), re.MULTILINE)
    (waits,) = [line for line in lines if " waits for " in line]
    assert re.fullmatch(
        rf"model: held waits .* `gpu`, held by run {holder.run_id[:8]} \(held\) of "
        rf"{re.escape(str(folder))}/home since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: .* \(Runs, Terminate\)",
        waits,
    )
    (gone,) = [line for line in lines if ", gone: " in line]
    assert re.match(rf"run {holder.run_id[:8]} \(probe_model, gone: .* \d+ ended ", gone)
    assert (folder / "checkpoint0").is_file(), "the workload had its time for a checkpoint"
    assert {run.run_id: run.status for run in instance.get_runs()}[holder.run_id] == FAILURE
    (message,) = messages(instance, holder, dg.DagsterEventType.RUN_FAILURE)
    assert message.endswith("another run. [infrastructure]") and num_queued(instance) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "hears_ctrl_c"),
    [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.long)],
)
def test_a_signal_to_the_command_alone_ends_its_run_and_what_that_launched(
    folder, instance, number, hears_ctrl_c
):
    first = start(folder, "first", hears_ctrl_c=hears_ctrl_c)
    wait_for((folder / "workload0.pid").exists, "the first run at work")
    workload = psutil.Process(int((folder / "workload0.pid").read_text()))
    first.send_signal(number)
    assert first.wait(SECONDS) not in (0, 1)
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.CANCELED and not is_alive(workload)
    assert (folder / "checkpoint0").is_file(), "the workload had its time for a checkpoint"
    assert num_queued(instance) == 0


@pytest.mark.slow
def test_a_signal_ends_a_run_that_waits_for_the_slot_of_another(folder, instance, monkeypatch):
    first = start(folder, "first")
    wait_for((folder / "workload0.pid").exists, "the first run at work")
    (holder,) = instance.get_runs()
    # Its worker and workload go on.
    first.kill()
    second = start(folder, "second", hears_ctrl_c=False)
    wait_for(
        lambda: "waits for a slot" in (folder / "second").read_text(),
        "the line that names what is waited for",
    )
    second.send_signal(signal.SIGTERM)
    assert second.wait(SECONDS) not in (0, 1)
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses.pop(holder.run_id) == STARTED, "it was launched by another command"
    assert list(statuses.values()) == [dg.DagsterRunStatus.CANCELED]
    assert [slot.run_id for slot in instance.event_log_storage.get_concurrency_info("gpu").pending_steps] == [
        holder.run_id
    ]


class TestRecords:
    """Runs as the log has them, of processes that really live or are dead."""

    @pytest.fixture
    def dead(self) -> int:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process.pid

    def hold(
        self, instance: dg.DagsterInstance, pid: int, status: dg.DagsterRunStatus = STARTED, **tags: str
    ) -> dg.DagsterRun:
        run = instance.add_run(dg.DagsterRun("letters_model", make_new_run_id(), status=status, tags=tags))
        instance.report_engine_event("Started process for run", run, EngineEventData.in_process(pid))
        instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "letters__finetuned_checkpoint")
        return run

    @pytest.mark.fault("the daemon restarts")
    def test_a_killed_run_is_marked_by_the_daemon_and_the_next_look_frees_its_slot(self, instance, dead):
        run = self.hold(instance, dead, **run_workers.host_tag(instance))
        (record,) = instance.get_run_records()
        monitor_started_run(instance, None, record, logging.getLogger("daemon"))
        assert instance.get_run_by_id(run.run_id).status == FAILURE
        (message,) = messages(instance, run, dg.DagsterEventType.RUN_FAILURE)
        assert re.search(r"process \d+ ended .* \[infrastructure\]", message)
        assert re.match(
            rf"run {run.run_id[:8]} \(letters_model, over: failure\); .* for letters/finetuned_checkpoint ",
            *run_workers.settle(instance),
        )
        assert num_queued(instance) == 0

    def test_a_run_that_was_to_be_canceled_is(self, instance, dead):
        run = self.hold(instance, dead, dg.DagsterRunStatus.CANCELING, **run_workers.host_tag(instance))
        waiting = self.hold(instance, os.getpid(), **run_workers.host_tag(instance))
        (line,) = run_workers.settle(instance)
        assert (
            "slot for letters/finetuned_checkpoint" in line
            and instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED
        )
        (message,) = messages(instance, run, dg.DagsterEventType.RUN_CANCELED)
        assert "run is gone: " in message and "infrastructure" not in message
        assert instance.get_run_by_id(waiting.run_id).status == STARTED and run_workers.settle(instance) == []

    @pytest.mark.parametrize(
        "tags",
        [
            {},
            {run_workers.HOST_TAG: "elsewhere"},
            {
                run_workers.HOST_TAG: socket.gethostname(),
                run_workers.CODE_SERVER_TAG: '{"host": "code-server"}',
            },
        ],
        ids=["unknown", "another machine", "another machine's code server"],
    )
    def test_what_runs_elsewhere_is_left_alone_and_named(self, instance, dead, tags):
        run = self.hold(instance, dead, **tags)
        waiting = self.hold(instance, os.getpid(), **run_workers.host_tag(instance))
        assert run_workers.settle(instance) == [] and instance.get_run_by_id(run.run_id).status == STARTED
        (line,) = run_workers.waits(instance, waiting.run_id)
        assert (
            re.search(r", on another machine: .* \(Deployment, Concurrency\)$", line)
            and run_workers.waits(instance, run.run_id) == []
        )

    def test_another_process_of_the_same_number_is_not_the_runs(self):
        began = psutil.Process().create_time()
        assert run_workers._is_running(os.getpid(), began + 1) and not run_workers._is_running(
            os.getpid(), began - 3_600
        )
