"""The launcher `ssh` against a real sshd: followed, cut off, attached to again, cancelled, refused."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.errors import WorkloadError
from fullft_assets.launchers import LaunchSpec, Status, Unreachable, driver, records
from fullft_assets.launchers.ssh import SshLauncher, _quoted
from fullft_assets.settings import SshLauncherSettings
from tests import machine
from tests.launch_scenes import NAME, SECONDS, AnotherProcess, Place, run_probe, wait_for
from tests.prepared import prepare
from tests.ssh_server import SshServer, free_port
from tests.test_launch_kubernetes import assert_same, trained


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server with a cache of its own; nothing that was started through it outlives a test."""
    (tmp_path / "ssh").mkdir(mode=0o700)
    server = SshServer(tmp_path / "ssh", {"FULLFT_CACHE": str(tmp_path / "cache")})
    server.start()
    yield server
    server.cut()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and process.environ().get("FULLFT_CACHE") == str(
                tmp_path / "cache"
            ):
                process.kill()


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
    assert ssh.names("fullft-") == []


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


@pytest.fixture
def place(server: SshServer, tmp_path: Path) -> Place:
    ssh = launcher(server, grace_seconds=20)
    store = probe_job(tmp_path, "")[1]

    def num_running() -> int:
        names = [launch.name_in(store) for launch in records.launches(store, "probe")]
        return sum(ssh.poll(name).state != "gone" for name in names)

    return Place(ssh.settings, tmp_path, num_jobs=lambda: 1, num_running=num_running)


@pytest.mark.slow
@pytest.mark.fault("the run's process is killed", "ssh")
@pytest.mark.fault("a run is cancelled", "ssh")
@pytest.mark.fault("nobody follows a job any more", "ssh")
class TestAnotherProcess(AnotherProcess):
    """The machine goes on without it."""


class Scripted(SshLauncher):
    """Two machines that answer what a test says, instead of by `ssh`.

    Attributes:
        answers: by the number of the machine and the request; an exception is raised.
        asked: what was asked for, in this order.
    """

    def __init__(self, answers: dict[tuple[int, str], Any]):
        super().__init__(
            SshLauncherSettings(
                host=["gpu1", "gpu2"], processes=4, options={"User": "me"}, rendezvous="10.0.0.1"
            )
        )
        self.answers, self.asked = answers, []

    def _ask(self, number: int, do: str, seconds: float = 0.0, **request: Any) -> Any:
        self.asked.append((number, do, request.get("name")))
        self.answers.get((number, do, "request"), lambda _: None)(request)
        answer = self.answers.get((number, do))
        if isinstance(answer, Exception):
            raise answer
        return answer


def said(state: str, reason: str = "", failure: str = "unknown") -> dict[str, Any]:
    return {"state": state, "reason": reason, "failure": failure}


class TestSeveralHosts:
    SPEC = LaunchSpec(NAME, "probe_workloads.probe", ("--job", "uri"), processes=4)

    def test_the_first_one_is_started_last_and_each_gets_its_rank(self):
        requests = []
        ssh = Scripted({(number, "start", "request"): requests.append for number in (0, 1)})
        ssh.submit(self.SPEC)
        assert [each[0] for each in ssh.asked] == [1, 0] and [each["name"] for each in requests] == [
            f"{NAME}-host1",
            NAME,
        ]
        lines = [" ".join(each["arguments"]) for each in requests]
        assert (
            "--nnodes 2 --node_rank 1 --nproc_per_node 2 --master_addr 10.0.0.1 --master_port 29500 "
            in lines[0]
        )
        assert "--node_rank 0 " in lines[1] and lines[1].endswith("-m probe_workloads.probe --job uri")
        ssh.submit(LaunchSpec(NAME, "probe_workloads.probe", ()))
        assert [each[0] for each in ssh.asked[2:]] == [0], "one process has one machine"
        assert ssh.place == "me@gpu1+gpu2" and not ssh.has_room(4)

    def test_where_the_first_one_refuses_the_others_are_stopped(self):
        ssh = Scripted({(0, "start"): WorkloadError("no such Python", "settings")})
        with pytest.raises(WorkloadError, match="no such Python"):
            ssh.submit(self.SPEC)
        assert ssh.asked[-1] == (1, "stop", f"{NAME}-host1")

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            (said("running"), said("running"), Status("running")),
            (said("running"), said("gone"), Status("running")),
            (said("running"), Unreachable("cut"), Status("running")),
            (said("succeeded"), said("running"), Status("succeeded")),
            (said("gone"), said("running"), Status("gone")),
            (said("running"), said("failed", "no GPU", "settings"), Status("failed", "no GPU", "settings")),
            (
                said("failed", "lost a rank", "infrastructure"),
                said("failed", "a.csv", "data"),
                Status("failed", "a.csv", "data"),
            ),
            (
                said("failed", "a.csv", "data"),
                said("failed", "no GPU", "settings"),
                Status("failed", "a.csv", "data"),
            ),
            (said("failed", "lost a rank"), Unreachable("cut"), Status("failed", "lost a rank")),
        ],
    )
    def test_a_failure_of_any_is_one_of_all_and_the_cause_comes_before_what_followed(
        self, first, second, expected
    ):
        assert Scripted({(0, "num_hosts"): 2, (0, "poll"): first, (1, "poll"): second}).poll(NAME) == expected

    @pytest.mark.parametrize(("num_hosts", "stopped"), [(2, [0, 1]), (1, [0]), (None, [0, 1])])
    def test_all_that_may_have_it_are_stopped_and_one_that_does_not_answer_is_said(self, num_hosts, stopped):
        ssh = Scripted({(0, "num_hosts"): num_hosts})
        ssh.stop(NAME)
        assert sorted(number for number, do, _ in ssh.asked if do == "stop") == stopped
        ssh = Scripted({(0, "num_hosts"): 2, (0, "stop"): Unreachable("cut")})
        with pytest.raises(Unreachable, match="cut"):
            ssh.stop(NAME)
        assert (1, "stop", f"{NAME}-host1") in ssh.asked

    @pytest.mark.slow
    @pytest.mark.fault("a run is cancelled", "ssh")
    def test_two_real_ones_work_until_they_are_stopped_and_write_their_checkpoints(self, tmp_path):
        (tmp_path / "ssh").mkdir(mode=0o700)
        server = SshServer(
            tmp_path / "ssh",
            {"FULLFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            ["127.0.0.1", "127.0.0.2"],
        )
        server.start()
        ssh = launcher(server, processes=2, rendezvous=f"127.0.0.1:{free_port()}", grace_seconds=60)
        job, store = probe_job(tmp_path, "works")
        try:
            ssh.submit(LaunchSpec(NAME, "probe_workloads.probe", tuple(job.arguments(store)), processes=2))
            wait_for(
                lambda: all((tmp_path / f"workload{rank}.pid").exists() for rank in (0, 1)), "both ranks work"
            )
            assert (ssh.poll(NAME).state, ssh.names(NAME)) == ("running", [NAME])
            assert "working" in ssh.logs(NAME, "").stdout
        finally:
            ssh.stop(NAME)
            server.cut()
        assert [(tmp_path / f"checkpoint{rank}").read_text() for rank in (0, 1)] == ["complete"] * 2
        assert not list((tmp_path / "cache/launches").iterdir()), "nothing is kept there"

    @pytest.mark.long
    def test_two_hosts_with_a_network_of_their_own_train_to_the_weights_of_two_processes(
        self, tmp_path, monkeypatch
    ):
        training = {"learning_rate": 1e-3, "precision": "fp32", "micro_batch_size": 4}
        prepared = prepare(tmp_path / "project", tiny=True, training=training)
        (tmp_path / "ssh").mkdir(mode=0o700)
        with machine.two_hosts() as hosts:
            befores, addresses, (wire, _) = zip(*hosts, strict=True)
            variables = {
                "FULLFT_CACHE": str(tmp_path / "cache"),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            }
            server = SshServer(tmp_path / "ssh", variables, addresses, befores)
            # The only way to them leads through one of them.
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin/ssh").write_text(
                f'#!/bin/sh\nexec {shlex.join(befores[0])} {shutil.which("ssh")} "$@"\n'
            )
            (tmp_path / "bin/ssh").chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
            server.start()
            ssh = launcher(
                server,
                processes=2,
                folder=str(prepared.project.root),
                grace_seconds=60,
                environment={"GLOO_SOCKET_IFNAME": wire},
            )
            try:
                wait_for(lambda: not _is_silent(ssh), "both SSH servers answer")
                found = trained(prepared, "two", ssh)
            finally:
                server.cut()
        assert_same(prepared, "two", found, processes=2)


def _is_silent(ssh: SshLauncher) -> bool:
    try:
        return ssh.poll("fullft-unknown").state != "gone"
    except Unreachable:
        return True


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

    def test_a_job_is_stopped_when_its_time_is_up(self, server, tmp_path):
        ssh = launcher(server, max_hours=2 / 3600, grace_seconds=20)
        ssh.submit(spec(tmp_path, "works"))
        status = ssh.poll(NAME, SECONDS)
        assert (
            status.reason.startswith("reached launcher.max_hours and was stopped")
            and status.failure == "settings"
        )
        ssh.stop(NAME)
