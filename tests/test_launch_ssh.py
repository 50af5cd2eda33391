"""The launcher `ssh` against a real sshd: followed, cut off, attached to again, cancelled, refused."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.errors import WorkloadError
from fullft_assets.launch import LaunchSpec, Unreachable, records
from fullft_assets.launch.ssh import SshLauncher, _quoted
from fullft_assets.launch.supervisor import is_alive
from fullft_assets.resources import driver
from fullft_assets.settings import SshLauncherSettings
from tests.launch_scenes import NAME, SECONDS, process, run_stage, spec
from tests.machine import processes_with
from tests.ssh_server import SshServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server with a cache of its own; nothing that was started through it outlives a test."""
    (tmp_path / "ssh").mkdir(mode=0o700)
    server = SshServer(tmp_path / "ssh", {"FULLFT_CACHE": str(tmp_path / "cache")})
    server.start()
    yield server
    server.cut()
    for running in processes_with("FULLFT_CACHE", tmp_path / "cache"):
        with suppress(psutil.NoSuchProcess):
            running.kill()


def launcher(server: SshServer, **changes: object) -> SshLauncher:
    return SshLauncher(SshLauncherSettings.model_validate(server.settings(**changes)))


@pytest.mark.slow
def test_a_workload_runs_there_and_its_progress_output_and_failures_arrive(server, tmp_path, capfd):
    ssh = launcher(server)
    failure, messages = run_stage(ssh, "writes", tmp_path)
    assert failure is None
    assert "reading the rows" in messages
    assert "step 1/1,000 (0%), loss 0.25" in messages
    assert "] reading the rows\n" in capfd.readouterr().out
    failure, _ = run_stage(ssh, "refuses", tmp_path)
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
    failure, _ = run_stage(ssh, "runs_out_of_memory", tmp_path)
    assert failure.endswith(" launcher.processes; see the step's stderr [out_of_memory]")
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
    failure, messages = run_stage(ssh, "waits", tmp_path)
    assert failure is None and said == ["cut"]
    assert [m for m in messages if m in ("waiting", "reading the rows")] == [
        "waiting",
        "reading the rows",
    ], "each message once"
    assert (
        "cut by the test; asking again for 30 minutes" in messages
        and (tmp_path / "starts").read_text() == "started\n"
    )


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
    failure, messages = run_stage(launcher(server, python=str(python)), "writes", tmp_path)
    assert failure is None and len(number.read_text()) > 4
    assert any(
        f"{python} -m fullft_assets.launch.machine failed (exit code 1)" in message for message in messages
    )


@pytest.mark.fault("a run is cancelled", "ssh")
def test_a_stopped_job_writes_its_checkpoint_and_leaves_no_process(server, tmp_path):
    ssh = launcher(server, grace_seconds=20)
    ssh.submit(spec(tmp_path, "works"))
    processes = [process(tmp_path, name) for name in ("workload0", "helper0")]
    # As another run does that attaches to it.
    launcher(server).stop(NAME)
    assert (tmp_path / "checkpoint0").read_text() == "complete"
    assert not any(map(is_alive, processes)) and ssh.poll(NAME).state == "gone"


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
                    r"ssh \S+: /nowhere/python -m fullft_assets\.launch\.machine failed \(.*\); set"
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
        assert raised.value.failure == "settings"
        assert not isinstance(raised.value, Unreachable)
        assert "\n" not in str(raised.value)

    def test_a_path_with_a_space_is_one_path_and_anybodys_home_is_found(self, server, tmp_path):
        (tmp_path / "a b").mkdir()
        for name in ("user_key", "known_hosts"):
            (server.folder / name).rename(tmp_path / "a b" / name)
        files = {
            "IdentityFile": str(tmp_path / "a b/user_key"),
            "UserKnownHostsFile": str(tmp_path / "a b/known_hosts"),
        }
        assert launcher(server, options=server.settings()["options"] | files).poll(NAME).state == "gone"
        assert _quoted("~john-doe/a b") == "~john-doe/'a b'"
        assert _quoted("~/x") == "~/x"
        assert _quoted("~;x/y") == "'~;x/y'"
