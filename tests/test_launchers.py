"""Workloads are really launched, killed and counted: under a real Dagster instance, its CLI and torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from probe_workloads.definitions import defs, probe_job

from fullft_assets.checking import problems
from fullft_assets.errors import Interrupted, SettingsError
from fullft_assets.launch import Logs, local, machine
from fullft_assets.launch.supervisor import PID, Options, is_alive, num_killed_for_memory
from fullft_assets.progress import Progress, WorkloadFailure
from fullft_assets.registry import Registry
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.settings import LauncherSettings, launcher_kinds
from tests import other_package, project as projects
from tests.launch_scenes import process, wait_for

TESTS = Path(__file__).parent
SECONDS = 60.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the probe's pids; what is still alive at the end is killed, so that no test leaves
    anything.
    """
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("PROBE_FOLDER", str(tmp_path))
    monkeypatch.setenv("PROBE_PROCESSES", "1")
    monkeypatch.setenv("PROBE_GRACE", "20")
    yield tmp_path
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    for alive in [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]:
        if is_alive(alive):
            alive.kill()


@pytest.fixture
def instance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    home = folder / "home"
    projects.write_files(home, {"dagster.yaml": "telemetry: {enabled: false}\n"})
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def _supervisor_of(workload: psutil.Process) -> psutil.Process:
    return next(p for p in workload.parents() if "fullft_assets.launch.supervisor" in p.cmdline())


def _all_gone(processes: list[psutil.Process]) -> None:
    wait_for(lambda: not any(map(is_alive, processes)), f"{processes} ended")


#: The line that raises what `crashes` raises, as a traceback has it.
_RAISES = 'raise RuntimeError("the roof is on fire\\nsecond line")'


class TestUnderDagster:
    def _materialize(self, instance, monkeypatch, stage: str) -> dg.ExecuteInProcessResult:
        monkeypatch.setenv("PROBE_STAGE", stage)
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, raise_on_error=False
        )

    def _failure(self, result: dg.ExecuteInProcessResult, kind: str) -> str:
        assert not result.success
        (event,) = result.get_step_failure_events()
        failure = event.step_failure_data.user_failure_data
        assert failure.metadata["failure"].value == kind and failure.description.endswith(f"[{kind}]") is (
            kind != "unknown"
        )
        assert event.step_failure_data.error.cause is None, "its message may quote a document"
        return failure.description

    def test_result_is_the_manifest_and_progress_is_in_the_log(self, instance, monkeypatch, folder):
        result = self._materialize(instance, monkeypatch, "writes")
        assert result.success
        manifest = probe_job(folder, "writes")[1].find("probe", "writes", "k1")
        materializations = result.asset_materializations_for_node("probed")
        assert [m.metadata["ref"].value for m in materializations] == [manifest.ref]
        messages = [entry.user_message for entry in instance.all_logs(result.run_id)]
        assert "reading the rows" in messages and [m for m in messages if m.startswith("step ")] == [
            "step 1/1,000 (0%), loss 0.25"
        ]

    def test_error_that_the_user_can_fix_surfaces_as_its_one_line(self, instance, monkeypatch):
        message = self._failure(self._materialize(instance, monkeypatch, "refuses"), "data")
        assert message == "documents/a.csv:3: no field `label`; name it in examples.label [data]"

    def test_crash_surfaces_as_type_and_place_and_its_message_is_in_the_store_alone(
        self, instance, monkeypatch, folder, capfd
    ):
        result = self._materialize(instance, monkeypatch, "crashes")
        place, file = re.fullmatch(
            r"probe failed: RuntimeError at (.*); its message, which may quote a document, is in (.*)",
            self._failure(result, "unknown"),
        ).groups()
        # The probe is not of our package, whose frame before it is named.
        assert re.fullmatch(r"fullft_assets/launch/entry\.py:[0-9]+ \(run_job\)", place)
        assert "RuntimeError: the roof is on fire\nsecond line\n" in Path(file).read_text()
        assert Path(file).is_relative_to(folder / "store/failures/probe/tracebacks")
        output = capfd.readouterr()
        assert "in crashes\n" in output.err and "probe.py" in output.err, "the traceback without its messages"
        events = [entry.to_json() for entry in instance.all_logs(result.run_id)]
        written = [
            path.read_bytes().decode(errors="replace")
            for path in (folder / "home").rglob("*")
            if path.is_file()
        ]
        # The line of the program that raises it is in the traceback; what it says at that time is not.
        kept = [
            text
            for text in (output.out, output.err, *events, *written)
            if "second line" in text.replace(_RAISES, "")
        ]
        assert kept == []

    def test_missing_manifest_is_a_failure(self, instance, monkeypatch):
        message = self._failure(self._materialize(instance, monkeypatch, "forgets"), "unknown")
        assert re.search(" code 0 .*: no artifact probe/forgets/k1", message)

    @pytest.mark.fault("memory runs out", "local")
    def test_workload_that_ran_out_of_memory_says_what_to_do(self, instance, monkeypatch, tmp_path):
        (tmp_path / "count").write_text("oom_kill 0\n")
        monkeypatch.setenv("FULLFT_OOM_COUNT", str(tmp_path / "count"))
        message = self._failure(
            self._materialize(instance, monkeypatch, "runs_out_of_memory"), "out_of_memory"
        )
        assert re.fullmatch(
            r"workload probe .* launcher\.processes; see the step's stderr \[out_of_memory\]", message
        )


@pytest.mark.slow
class TestRunThatEnds:
    """The run's own process is started from Dagster's command line, then cancelled or killed."""

    @pytest.fixture
    def start(self, instance, folder, monkeypatch) -> Iterator[Callable[..., tuple]]:
        """Starts a run; returns it and its step process, supervisor, workload and the workload's helper."""
        runs = []

        def start(executor: str, stage: str = "works") -> tuple[subprocess.Popen, list[psutil.Process]]:
            monkeypatch.setenv("PROBE_STAGE", stage)
            command = ["-m", "dagster", "job", "execute", "-m", "probe_workloads.definitions", "-j"]
            with (folder / "output").open("wb") as output:
                run = subprocess.Popen([sys.executable, *command, executor], stdout=output, stderr=output)
            runs.append(run)
            workload = process(folder, "workload0")
            step = _supervisor_of(workload).parent()
            return run, [step, _supervisor_of(workload), workload, process(folder, "helper0")]

        yield start
        for run in runs:
            run.kill()
            run.wait()

    @pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
    @pytest.mark.fault("the run's process is killed", "local")
    def test_killed_run_leaves_no_process_but_a_checkpoint(self, start, folder, executor):
        run, processes = start(executor)
        line = processes[1].cmdline()
        options = json.loads(line[line.index("fullft_assets.launch.supervisor") + 1])
        assert set(options["watch"]) == {processes[0].pid, run.pid}
        arguments = processes[2].cmdline()[-4:]
        assert arguments[0::2] == ["--job", "--sha256"] and Path(arguments[1]).stem == arguments[3]
        run.kill()
        _all_gone(processes)
        assert (folder / "checkpoint0").read_text() == "complete"

    @pytest.mark.parametrize(
        ("executor", "number", "ranks"),
        [("multiprocess", signal.SIGTERM, 1), ("in_process", signal.SIGINT, 2)],
    )
    @pytest.mark.fault("a run is cancelled", "local")
    def test_cancelled_run_writes_its_checkpoints_and_leaves_no_process(
        self, start, instance, monkeypatch, folder, executor, number, ranks
    ):
        monkeypatch.setenv("PROBE_PROCESSES", str(ranks))
        run, processes = start(executor)
        processes += [process(folder, f"{name}{ranks - 1}") for name in ("workload", "helper")]
        # As the UI's cancel does before it sends the signal.
        instance.report_run_canceling(instance.get_runs()[0])
        run.send_signal(number)
        run.wait(SECONDS)
        _all_gone(processes)
        assert {path.name for path in folder.glob("checkpoint*")} == {f"checkpoint{n}" for n in range(ranks)}
        assert instance.get_runs()[0].status == dg.DagsterRunStatus.CANCELED

    def test_workload_that_ignores_a_cancel_is_killed_after_the_grace_time(self, start, monkeypatch, folder):
        monkeypatch.setenv("PROBE_GRACE", "2")
        run, processes = start("in_process", "ignores")
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        _all_gone(processes[1:])
        assert 2 <= time.monotonic() - began < 6 and not (folder / "checkpoint0").exists()
        run.wait(SECONDS)

    @pytest.mark.parametrize("killed", ["run", "supervisor"])
    @pytest.mark.fault("the machine or node is lost", "local")
    @pytest.mark.fault("nobody follows a job any more", "local")
    def test_ranks_under_torchrun_die_with_what_is_killed(self, start, monkeypatch, folder, killed):
        monkeypatch.setenv("PROBE_PROCESSES", "2")
        run, (step, supervisor, *ranks) = start("in_process", "works" if killed == "run" else "ignores")
        ranks += [process(folder, "workload1"), process(folder, "helper1")]
        {"run": run, "supervisor": supervisor}[killed].kill()
        _all_gone([supervisor, *ranks])
        assert len(list(folder.glob("checkpoint*"))) == (2 if killed == "run" else 0)
        if killed == "supervisor":
            assert run.wait(SECONDS) != 0
            output = (folder / "output").read_text()
            assert "lost its supervisor (killed" in output, output


class TestSupervisor:
    def _start(
        self, folder: Path, stage: str, grace: float = 20, watch: int | None = None
    ) -> subprocess.Popen:
        job, store = probe_job(folder, stage)
        options = Options(grace=grace, watch=[watch or os.getpid()])
        workload = [sys.executable, "-m", "probe_workloads.probe", "--job", job.write(store)]
        return subprocess.Popen(options.command(workload))

    @pytest.mark.parametrize(
        ("stage", "code"), [("writes", 0), ("refuses", 3), ("crashes", 1), ("is_killed", 128 + 9)]
    )
    def test_exit_code_is_the_commands(self, folder, stage, code):
        assert self._start(folder, stage).wait(SECONDS) == code

    def test_end_of_the_command_ends_its_helpers_too(self, folder):
        supervisor = self._start(folder, "works")
        helper = process(folder, "helper0")
        process(folder, "workload0").terminate()
        assert supervisor.wait(SECONDS) == 3 and not is_alive(helper)

    def test_death_of_a_watched_process_stops_the_command(self, folder):
        watched = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        supervisor = self._start(folder, "works", watch=watched.pid)
        processes = [process(folder, "workload0"), process(folder, "helper0")]
        watched.kill()  # not waited for: a zombie counts as dead
        assert supervisor.wait(SECONDS) == 3 and (folder / "checkpoint0").exists()
        assert not any(map(is_alive, processes))
        watched.wait()

    def test_nothing_starts_when_the_watched_process_is_gone(self, folder):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        assert self._start(folder, "works", watch=gone.pid).wait(
            SECONDS
        ) == 128 + signal.SIGTERM and not list(folder.glob("*.pid"))

    @pytest.mark.parametrize(
        "module",
        ["supervisor", "machine", "ssh", "local", "records", "kubernetes", "container", "aws", "ecs", "ray"],
    )
    def test_only_the_driver_needs_dagster_and_nothing_torch_or_a_cluster_s_client(self, module):
        code = (
            f"import sys, fullft_assets.launch.{module}; print({{'dagster', 'torch', 'kubernetes'}} &"
            " set(sys.modules))"
        )
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

    def test_killed_supervisor_takes_the_workload_along(self, folder):
        supervisor = self._start(folder, "ignores")
        workload = process(folder, "workload0")
        supervisor.kill()
        supervisor.wait()
        _all_gone([workload])


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("/system.slice/a.service", {"sys/system.slice/a.service/memory.events": 2}, 2),
        ("/kubepods/pod1/c1", {"sys/memory.events": 2}, 2),
        ("/user.slice/a.scope", {}, 9),
    ],
    ids=["service", "container", "nothing"],
)
def test_the_count_is_that_of_the_closest_control_group(tmp_path: Path, group, files, expected):
    events = {name: f"under_oom 0\noom_kill {count}\n" for name, count in {"proc/vmstat": 9, **files}.items()}
    projects.write_files(tmp_path, {**events, "proc/self/cgroup": f"0::{group}\n"})
    assert num_killed_for_memory(tmp_path / "proc", tmp_path / "sys") == expected


#: A wait for GPUs and a command, in each of which the kernel kills a process or does not.
SUPERVISED = """
import sys
from contextlib import contextmanager
from fullft_assets.launch import supervisor

@contextmanager
def leased(*_, **__):
    open(sys.argv[1], "w").write(f"oom_kill {sys.argv[3]}\\n")
    yield {}

supervisor.leased = leased
command = ["sh", "-c", f"echo oom_kill {sys.argv[4]} > {sys.argv[1]}; exit 1"]
raise SystemExit(supervisor.supervise(supervisor.Options(folder=sys.argv[2]), command))
"""


@pytest.mark.parametrize(
    ("during_wait", "during_work", "failure"), [(2, 2, "unknown"), (1, 2, "out_of_memory")]
)
def test_what_is_killed_during_the_wait_for_gpus_is_not_the_command(
    tmp_path: Path, during_wait: int, during_work: int, failure: str
):
    count = tmp_path / "count"
    count.write_text("oom_kill 1\n")
    subprocess.run(
        [sys.executable, "-c", SUPERVISED, *map(str, [count, tmp_path, during_wait, during_work])],
        env={**os.environ, "FULLFT_OOM_COUNT": str(count)},
        check=False,
        timeout=60,
    )
    assert machine.ended_status(tmp_path).failure == failure


class TestMachine:
    @pytest.mark.parametrize(
        ("said", "failure"),
        [
            (None, "out_of_memory"),
            ("data", "data"),
            ("infrastructure", "out_of_memory"),
            ("unknown", "out_of_memory"),
        ],
    )
    def test_what_a_workload_says_counts_unless_it_cannot_know_what_killed_its_process(
        self, tmp_path, said, failure
    ):
        (tmp_path / "exit").write_text('{"code": 1, "is_limit": false, "is_out_of_memory": true}')
        if said is not None:
            WorkloadFailure("a rank is gone", said).write(tmp_path / "error")
        status = machine.ended_status(tmp_path)
        assert status.failure == failure and ("a rank is gone" in status.reason) is (said is not None)

    @pytest.mark.parametrize(
        "lines",
        [["é" * 3, "12345", "é", "last, without an end"], ["a line that is longer than a block", "1", "2"]],
    )
    @pytest.mark.fault("output is lost, late or cut", "local", "ssh")
    def test_output_comes_in_blocks_of_whole_lines_and_all_of_it(self, tmp_path, monkeypatch, lines):
        monkeypatch.setattr(machine, "_MAX_BYTES", 12)
        projects.write_files(
            tmp_path / "j", {"stdout": "\n".join(lines), "exit": '{"code": 0, "is_limit": false}'}
        )
        jobs, logs, blocks = machine.Machine(tmp_path), Logs("", is_more=True), []
        while logs.is_more:
            logs = jobs.logs("j", logs.cursor)
            blocks.append(logs.stdout)
        assert "".join(blocks) == "\n".join(lines)
        if len(lines[0]) < 12:
            assert blocks[0] == "ééé\n" and blocks[1] == "12345\né\n"

    def test_a_job_gets_no_password_of_the_control_plane(self, tmp_path, monkeypatch):
        kept = ["DAGSTER_POSTGRES_PASSWORD", "PGPASSWORD", "FULLFT_LOGIN_KEY", "ALERT_URL", "TEAM_ALERTS"]
        for name in (*kept, "AWS_PROFILE", "MY_OWN"):
            monkeypatch.setenv(name, f"planted {name}")
        jobs = machine.Machine(tmp_path)
        code = "import os; print(*(value for value in os.environ.values() if 'planted' in value), sep='\\n')"
        jobs.start("j", ["-c", code], {}, grace_seconds=0)
        try:
            wait_for(lambda: jobs.poll("j").is_over, "the job ends")
            assert sorted(jobs.logs("j", "").stdout.split("\n")[:-1]) == [
                "planted AWS_PROFILE",
                "planted MY_OWN",
            ]
        finally:
            jobs.stop("j", 0)

    @pytest.mark.fault("clock skew of hours", "local", "ssh")
    def test_a_clock_that_was_set_ends_no_job_and_its_pid_of_another_process_does(
        self, tmp_path, monkeypatch
    ):
        first = machine.Machine(tmp_path)
        first.start(
            "j", ["-c", "import time; print('works', flush=True); time.sleep(300)"], {}, grace_seconds=0
        )
        try:
            wait_for(lambda: first.logs("j", "").stdout, "the job works")
            # psutil derives it from the machine's clock as it is now.
            create_time = psutil.Process.create_time
            monkeypatch.setattr(
                psutil.Process, "create_time", lambda process: create_time(process) + 2 * 3600
            )
            assert machine.Machine(tmp_path).poll("j").state == "running"
            (tmp_path / "j" / PID).write_text(str(os.getpid()))
            assert machine.Machine(tmp_path).poll("j").state == "failed"
        finally:
            first.stop("j", 0)


@pytest.mark.parametrize(
    ("workload", "sharding", "processes", "ranks"),
    [
        ("training", "none", 2, True),
        ("planning", "fsdp2", 2, True),
        ("planning", "none", 2, False),
        ("planning", "fsdp2", 1, False),
        ("evaluation", "fsdp2", 2, True),
        ("evaluation", "none", 2, False),
        ("monitoring", "fsdp2", 2, False),
    ],
)
def test_planning_and_evaluation_have_ranks_where_they_share_the_model(
    workload: str, sharding: str, processes: int, ranks: bool, tmp_path: Path
) -> None:
    arguments = _arguments(tmp_path, workload, sharding, processes)
    assert ("torch.distributed.run" in arguments) is ranks
    assert arguments[-3:] == [
        f"fullft_assets.launch.workloads.{workload}",
        "--job",
        "uri",
    ]


@pytest.mark.parametrize(("gpus", "ranks"), [([], True), (["a", "a"], True), (["a"], False)])
def test_planning_has_ranks_where_this_machine_has_a_gpu_for_each(
    gpus: list[str], ranks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "local_hardware", lambda: {"cpus": 8, "gpus": gpus})
    assert ("torch.distributed.run" in _arguments(tmp_path, "planning", "fsdp2", 2)) is ranks


def _arguments(folder: Path, workload: str, sharding: str, processes: int) -> list[str]:
    job, _ = probe_job(folder, "writes")
    training = job.settings.training.model_copy(update={"sharding": sharding})
    job = job.model_copy(update={"settings": job.settings.model_copy(update={"training": training})})
    launcher = local.LocalLauncher(LauncherSettings(processes=processes))
    return (
        LaunchDriver(lambda _: launcher).spec(launcher, workload, job, arguments=["--job", "uri"]).arguments
    )


THEIR_LAUNCHER = """
from fullft_assets.launch import Launcher
from fullft_assets.settings import LauncherSettings

class ClusterSettings(LauncherSettings):
    queue: str

class ClusterLauncher(Launcher):
    settings_class = ClusterSettings
    place = "their cluster"
    submit = poll = logs = stop = None
"""


class TestRegistration:
    """A launcher of another package, installed as pip does: a module, and metadata with an entry point."""

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "their_package"
        points = {"fullft_assets.launchers": {"cluster": "their_cluster:ClusterLauncher"}}
        other_package.install(folder, "their-cluster", {"their_cluster.py": THEIR_LAUNCHER}, points)
        monkeypatch.syspath_prepend(str(folder))
        registry = Registry(
            launcher_kinds.LAUNCHERS.kind, launcher_kinds.LAUNCHERS.group, launcher_kinds.LAUNCHERS._ours
        )
        for module in (problems, launcher_kinds):
            monkeypatch.setattr(module, "LAUNCHERS", registry)
        return folder

    def test_the_use_case_gets_it_with_its_own_settings(self, package, tmp_path):
        chosen = launcher_kinds.open_launcher(
            projects.create(tmp_path, launcher={"kind": "cluster", "queue": "a100", "grace_seconds": 7})
            .use_case()
            .settings.launcher
        )
        assert (chosen.place, chosen.settings.queue, chosen.settings.grace_seconds) == (
            "their cluster",
            "a100",
            7,
        )

    @pytest.mark.parametrize(
        ("section", "line"),
        [
            ({"kind": "cluster"}, r"launcher\.queue: Field required$"),
            (
                {"kind": "cluster", "queue": "a", "quue": 1},
                r"launcher\.quue: unknown key `quue`; did you mean `queue`\?$",
            ),
        ],
    )
    def test_its_own_settings_class_checks_its_keys(self, package, tmp_path, section, line):
        project = projects.create(tmp_path, launcher=section)
        with pytest.raises(SettingsError, match=line):
            project.use_case()

    def test_a_section_on_record_of_an_earlier_release_is_read(self):
        recorded = LauncherSettings(processes=2).model_dump() | {"spot_poll_seconds": 5.0}
        assert launcher_kinds.open_recorded(recorded).settings == LauncherSettings(processes=2)

    def test_an_unknown_kind_is_one_line_with_the_known_ones(self, package, tmp_path):
        project = projects.create(tmp_path, launcher={"kind": "clutser"})
        with pytest.raises(
            SettingsError,
            match=r": launcher\.kind: clutser .* local, ssh, kubernetes, .* `cluster`\?$",
        ):
            project.use_case()


class TestByHand:
    def _run(self, uri: str, *more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "probe_workloads.probe", "--job", uri, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    def test_workload_runs_without_dagster(self, folder):
        job, store = probe_job(folder, "writes")
        done = self._run(job.write(store))
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split("] ")[1] for line in done.stdout.splitlines()]
        assert lines == ["reading the rows", "step 1/1,000 (0%), loss 0.25"] and store.find(
            "probe", "writes", "k1"
        ).metadata == {"rank": None}

    def test_missing_job_file_is_one_line(self, folder):
        done = self._run(str(folder / "none.json"))
        assert (done.returncode, done.stderr.count("\n")) == (3, 1) and "none.json: not a job" in done.stderr

    def test_a_job_file_that_was_changed_after_it_was_written_is_refused(self, folder):
        job, store = probe_job(folder, "writes")
        arguments = job.arguments(store)
        changed = json.loads(Path(arguments[1]).read_text())
        changed["settings"]["trust_remote_code"] = True
        Path(arguments[1]).write_text(json.dumps(changed))
        done = self._run(*arguments[1:])
        assert (done.returncode, done.stderr.count("\n")) == (3, 1) and "was changed after" in done.stderr
        assert store.find("probe", "writes", "k1") is None

    @pytest.mark.parametrize(("presses", "code"), [(1, 3), (2, -signal.SIGINT)])
    def test_first_ctrl_c_writes_a_checkpoint_second_stops_at_once(self, folder, presses, code):
        job, store = probe_job(folder, "works")
        command = [sys.executable, "-m", "probe_workloads.probe", "--job", job.write(store)]
        with (folder / "stderr").open("wb") as stderr:
            run = subprocess.Popen(command, stderr=stderr)
        process(folder, "workload0")
        for _ in range(presses):
            run.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert run.wait(SECONDS) == code and "the next checkpoint" in (folder / "stderr").read_text()
        assert (folder / "checkpoint0").exists() == (presses == 1)


class TestProgress:
    def test_steps_are_rate_limited_and_end_with_an_eta(self, capsys, monkeypatch):
        monkeypatch.setattr("fullft_assets.progress.STEP_SECONDS", 0.2)
        progress = Progress()
        began = time.monotonic()
        for done in range(100, 160):
            progress.step(done, 200, loss=0.5, skipped=None, tokens_per_second=12345.6)
            time.sleep(0.01)
        num_windows = (time.monotonic() - began) / 0.2
        lines = capsys.readouterr().out.splitlines()
        assert 2 <= len(lines) <= num_windows + 1 and lines[0].endswith(
            "s] step 100/200 (50%), loss 0.5, tokens_per_second 12,346"
        )
        assert lines[-1].rsplit("ETA ", 1)[1] in ("0 s", "< 1 s", "1 s", "2 s")

    def test_time_left_counts_from_the_step_that_was_resumed(self, capsys, monkeypatch):
        clock = iter((0.0, 0.0, 0.0, 60.0, 60.0))
        monkeypatch.setattr("fullft_assets.progress.time.monotonic", lambda: next(clock))
        progress = Progress()
        progress.step(900, 1000)
        progress.step(901, 1000)
        assert capsys.readouterr().out.splitlines()[-1].endswith("ETA 1 h 39 min")

    def test_dagsters_log_gets_the_first_hundred_lines_then_few(self, capsys):
        reported = []
        progress = Progress(reported.append)
        for number in range(500):
            progress.say(f"line {number}")
        assert (
            reported == [f"line {number}" for number in range(100)]
            and len(capsys.readouterr().out.splitlines()) == 500
        )

    def test_work_without_checkpoint_ends_when_asked(self):
        progress = Progress()
        progress.raise_if_stopped()
        progress.stop_requested = True
        with pytest.raises(Interrupted):
            progress.raise_if_stopped()
