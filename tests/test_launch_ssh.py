"""The launcher `ssh` against a real sshd: followed, cut off, attached to again, cancelled, refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.errors import WorkloadError
from fullft_assets.launchers import LaunchSpec, Unreachable, driver, records
from fullft_assets.launchers.ssh import SshLauncher, _quoted
from fullft_assets.launchers.supervisor import is_alive
from fullft_assets.settings import SshLauncherSettings
from tests.launch_scenes import NAME, SECONDS, TESTS, process, recorded, run_probe, wait_for
from tests.ssh_server import SshServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server with a cache of its own; nothing that was started through it outlives a test."""
    (tmp_path / "ssh").mkdir(mode=0o700)
    server = SshServer(tmp_path / "ssh", {"FULLFT_CACHE": str(tmp_path / "cache")})
    server.start()
    yield server
    server.cut()
    for running in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if running.pid != os.getpid() and running.environ().get("FULLFT_CACHE") == str(
                tmp_path / "cache"
            ):
                running.kill()


def launcher(server: SshServer, **changes: object) -> SshLauncher:
    return SshLauncher(SshLauncherSettings.model_validate(server.settings(**changes)))


def spec(folder: Path, stage: str) -> LaunchSpec:
    job, store = probe_job(folder, stage)
    return LaunchSpec(NAME, "probe_workloads.probe", tuple(job.arguments(store)))


def run(folder: Path, ssh: SshLauncher, stage: str) -> tuple[str | None, list[str]]:
    return run_probe(ssh, *probe_job(folder, stage))


@pytest.mark.slow
def test_a_workload_runs_there_and_its_progress_output_and_failures_arrive(server, tmp_path, capfd):
    ssh = launcher(server)
    failure, messages = run(tmp_path, ssh, "writes")
    assert failure is None
    assert "reading the rows" in messages and "step 1/1,000 (0%), loss 0.25" in messages
    assert "] reading the rows\n" in capfd.readouterr().out
    failure, _ = run(tmp_path, ssh, "refuses")
    assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
    store = probe_job(tmp_path, "writes")[1]
    assert {launch.stage: (launch.state, launch.place) for launch in records.launches(store, "probe")} == {
        "writes": ("succeeded", ssh.place),
        "refuses": ("failed", ssh.place),
    }
    names = [launch.name_in(store) for launch in records.launches(store, "probe")]
    assert {ssh.poll(name).state for name in names} == {"gone"}, "nothing is kept there"


def test_paths_start_at_the_folder_there_and_variables_are_set(server, tmp_path):
    (tmp_path / "a project there").mkdir()
    ssh = launcher(
        server, folder=str(tmp_path / "a project there"), environment={"PROBE_VARIABLE": "it's $HOME"}
    )
    ssh.submit(spec(tmp_path, "looks"))
    assert ssh.poll(NAME, SECONDS).state == "succeeded"
    found = probe_job(tmp_path, "looks")[1].find("probe", "looks", "k1")
    assert found.metadata == {"root": str(tmp_path / "a project there"), "variable": "it's $HOME"}


@pytest.mark.fault("memory runs out", "ssh")
def test_a_workload_that_ran_out_of_memory_is_not_tried_again_and_says_what_to_do(server, tmp_path):
    (tmp_path / "count").write_text("oom_kill 0\n")
    ssh = launcher(server, max_retries=2, environment={"FULLFT_OOM_COUNT": str(tmp_path / "count")})
    failure, _ = run(tmp_path, ssh, "runs_out_of_memory")
    assert (
        failure == "workload probe was killed: memory ran out; use a machine with more memory, or lower"
        " launcher.processes; see the step's stderr [out_of_memory]"
    )
    assert [launch.attempt for launch in records.launches(probe_job(tmp_path, "writes")[1], "probe")] == [1]


@pytest.mark.fault("output is lost, late or cut", "ssh")
def test_lost_connection_is_no_end_and_output_is_read_on_from_the_cursor(server, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_PAUSE_SECONDS", 0.2)
    ssh = launcher(server)
    said = []

    def cut_once(name: str, wait_seconds: float = 0.0):
        status = SshLauncher.poll(ssh, name, min(wait_seconds, 0.5))
        if not said and "waiting" in SshLauncher.logs(ssh, name, "").stdout:
            said.append("cut")
            server.cut()
            with pytest.raises(Unreachable, match=r"ssh .*: .*(refused|reset|closed)"):
                SshLauncher.poll(ssh, name)
            server.start()
            (tmp_path / "go").touch()
            raise Unreachable("cut by the test")
        return status

    monkeypatch.setattr(ssh, "poll", cut_once)
    failure, messages = run(tmp_path, ssh, "waits")
    assert failure is None and said == ["cut"]
    assert [m for m in messages if m in ("waiting", "reading the rows")] == [
        "waiting",
        "reading the rows",
    ], "each message once"
    assert "cut by the test; asking again for 30 minutes" in messages
    assert (tmp_path / "starts").read_text() == "started\n"


@pytest.mark.fault("the backend throttles, fails or does not answer", "ssh")
def test_a_python_that_fails_once_and_answers_that_cannot_be_read_are_asked_for_again(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "_PAUSE_SECONDS", 0.0)
    python, number = tmp_path / "python", tmp_path / "number"
    number.write_text("")
    # After the submission: a machine that cannot start Python, one that says nothing, and one whose words are
    # in another encoding.
    python.write_text(
        f'#!/bin/sh\nprintf . >> "{number}"\ncase $(wc -c < "{number}") in\n2) exit 1;;\n3) exit 0;;\n4)'
        f' printf "\\351\\n"; exit 0;;\nesac\nprintf "\\351\\n"; exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    failure, messages = run(tmp_path, launcher(server, python=str(python)), "writes")
    assert failure is None and len(number.read_text()) > 4
    assert any(
        f"{python} -m fullft_assets.launchers.machine failed (exit code 1)" in message for message in messages
    )


@pytest.mark.slow
class TestAnotherProcess:
    """The control plane is a process of its own, which is killed or cancelled; the machine goes on."""

    @pytest.fixture
    def start(
        self, server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[str], subprocess.Popen[Any]]]:
        home = tmp_path / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        for name, value in {
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS])),
            "PROBE_FOLDER": str(tmp_path),
            "PROBE_LAUNCHER": launcher(server, grace_seconds=20).settings.model_dump_json(),
        }.items():
            monkeypatch.setenv(name, value)
        runs: list[subprocess.Popen[Any]] = []

        def start(stage: str) -> subprocess.Popen[Any]:
            monkeypatch.setenv("PROBE_STAGE", stage)
            command = ["dagster", "job", "execute", "-m", "probe_workloads.definitions", "-j", "in_process"]
            # As a run launcher of ours tags it: so a later run knows that this one is gone.
            command += ["--tags", f'{{"worker/host": "{os.uname().nodename}"}}']
            with (tmp_path / "output").open("ab") as output:
                runs.append(subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=output))
            return runs[-1]

        yield start
        for run in runs:
            run.kill()
            run.wait()

    @pytest.mark.fault("the run's process is killed", "ssh")
    def test_killed_control_plane_leaves_the_job_and_the_next_run_attaches(self, start, tmp_path):
        first = start("waits")
        workload = process(tmp_path, "workload0")
        first.kill()
        first.wait()
        second = start("waits")
        wait_for(
            lambda: "attaching to fullft-" in (tmp_path / "output").read_text(), "the second run attaches"
        )
        assert is_alive(workload)
        (tmp_path / "go").touch()
        assert second.wait(SECONDS) == 0, (tmp_path / "output").read_text()
        assert (tmp_path / "starts").read_text() == "started\n"
        launch = recorded(probe_job(tmp_path, "")[1])
        assert (launch.state, launch.attempt) == ("succeeded", 1)

    @pytest.mark.fault("a run is cancelled", "ssh")
    def test_cancelled_run_stops_the_job_there_with_its_checkpoint_and_every_process(
        self, start, server, tmp_path
    ):
        first = start("works")
        workload, helper = process(tmp_path, "workload0"), process(tmp_path, "helper0")
        first.send_signal(signal.SIGINT)
        assert first.wait(SECONDS) != 0
        assert (tmp_path / "checkpoint0").read_text() == "complete"
        assert not is_alive(workload) and not is_alive(helper)
        store = probe_job(tmp_path, "")[1]
        launch = recorded(store)
        assert (launch.state, launcher(server).poll(launch.name_in(store)).state) == ("stopped", "gone")


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            (
                {"IdentityFile": "other_key"},
                (
                    r"ssh \S+: \S+: Permission denied \([a-z,-]+\); set User and IdentityFile of"
                    r" launcher\.options to "
                ),
            ),
            (
                {"UserKnownHostsFile": "authorized_keys"},
                r"ssh \S+: Host key verification failed; compare the machine's host key and add it to ",
            ),
            (
                {"python": "/nowhere/python"},
                (
                    r"ssh \S+: /nowhere/python -m fullft_assets\.launchers\.machine failed \(.*\); set"
                    r" launcher\.python "
                ),
            ),
        ],
    )
    @pytest.mark.fault("the image, version or Python is another one", "ssh")
    def test_it_is_one_line_at_once(self, server, changes, line):
        if "python" not in changes:
            files = {name: str(server.folder / file) for name, file in changes.items()}
            changes = {"options": server.settings()["options"] | files}
        with pytest.raises(WorkloadError, match=line) as raised:
            launcher(server, **changes).submit(LaunchSpec(NAME, "probe_workloads.probe", ()))
        assert (
            raised.value.failure == "settings"
            and not isinstance(raised.value, Unreachable)
            and "\n" not in str(raised.value)
        )

    def test_a_path_with_a_space_is_one_path_and_anybodys_home_is_found(self, server, tmp_path):
        (tmp_path / "a b").mkdir()
        for name in ("user_key", "known_hosts"):
            (server.folder / name).rename(tmp_path / "a b" / name)
        files = {
            "IdentityFile": str(tmp_path / "a b/user_key"),
            "UserKnownHostsFile": str(tmp_path / "a b/known_hosts"),
        }
        ssh = launcher(server, options=server.settings()["options"] | files)
        assert ssh.poll(NAME).state == "gone"
        assert (
            _quoted("~john-doe/a b") == "~john-doe/'a b'"
            and _quoted("~/x") == "~/x"
            and _quoted("~;x/y") == "'~;x/y'"
        )
