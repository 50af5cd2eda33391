"""The launcher `ray` on a real cluster: followed, attached to, stopped, a machine lost, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.automation.jobs import INGEST
from fullft_assets.chunks import ingestion
from fullft_assets.errors import WorkloadError
from fullft_assets.launch import LaunchSpec, Unreachable, ray
from fullft_assets.launch.container import LAST_LINE
from fullft_assets.launch.supervisor import is_alive
from fullft_assets.resources import driver
from fullft_assets.settings import RayLauncherSettings
from tests import project as projects
from tests.launch_scenes import TESTS, process, recorded, run_stage, spec
from tests.machine import ARITHMETIC, free_port, wait_for
from tests.test_ingestion_workload import ingest

PATHS = os.pathsep.join(map(str, [TESTS.parent, TESTS]))
TOKEN = "0123456789abcdef" * 4


class Cluster:
    """A head with a job server and without cores, and workers of one core each, all on this machine."""

    def __init__(self, folder: str, **variables: str) -> None:
        self.env = {**os.environ, **variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self.head, self.job_server, clients = (free_port() for _ in range(3))
        ports = [f"--port={self.head}", f"--dashboard-port={self.job_server}"]
        ports.append(f"--ray-client-server-port={clients}")
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", f"--temp-dir={folder}", "--num-cpus=0", *ports)

    def add(self, *options: str) -> None:
        command = [f"{Path(sys.executable).parent}/ray", "start", "--block", "--disable-usage-stats"]
        command += ["--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
        options = options or (f"--address=127.0.0.1:{self.head}", "--num-cpus=1")
        self.nodes.append(subprocess.Popen([*command, *options], env=self.env, start_new_session=True))

    def lose(self, number: int) -> None:
        """Kill a node and all that it has started in its session, as where its power fails."""
        os.killpg(self.nodes[number].pid, signal.SIGKILL)
        self.nodes.pop(number).wait()

    def is_ready(self) -> bool:
        assert self.nodes[0].poll() is None
        with suppress(OSError):
            return urlopen(f"http://127.0.0.1:{self.job_server}").status == 200
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
    cache = str(tmp_path_factory.mktemp("cache"))
    # The paths of its sockets have to be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(folder, **ARITHMETIC, PYTHONPATH=PATHS, FULLFT_CACHE=cache)
        try:
            wait_for(cluster.is_ready, "the job server answers", poll_seconds=0.5)
            cluster.add()
            yield cluster
        finally:
            while cluster.nodes:
                cluster.lose(-1)


@pytest.fixture
def section(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(driver, "RETRY_SECONDS", 0.0)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return {
        "kind": "ray",
        "address": f"http://127.0.0.1:{cluster.job_server}",
        "python": sys.executable,
        "gpus": False,
    }


def launcher(section: dict[str, Any], **changes: Any) -> ray.RayLauncher:
    return ray.RayLauncher(RayLauncherSettings.model_validate({**section, **changes}))


@pytest.mark.slow
def test_two_batches_made_on_the_cluster_are_those_made_here(section, tmp_path):
    digests = []
    for name, compute in (("here", {}), ("there", {"ingestion": section})):
        project = projects.create(tmp_path / name, rows=30, compute=compute)
        for number in range(2):
            file = f"delivery-{number + 1}.jsonl"
            os.utime(project.deliver(file, projects.licence_rows(30, skip=30 * number)), (number, number))
            store, is_well = ingest(project)
            assert is_well
        digests.append(
            [made.content_digest for stage in INGEST for made in store.artifacts("letters", stage)]
        )
    assert digests[0] == digests[1] and len(digests[1]) == 2 * len(INGEST)
    assert len([*store.artifacts("letters", ingestion.STAGE)]) == 2


@pytest.mark.slow
@pytest.mark.fault("output is lost, late or cut", "ray")
@pytest.mark.fault("the run's process is killed", "ray")
def test_a_run_takes_up_the_job_of_one_that_was_killed(section, tmp_path):
    variables = {"PROBE_LAUNCHER": json.dumps(section), "PROBE_FOLDER": str(tmp_path), "PROBE_STAGE": "waits"}
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "probe_workloads.definitions"]
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    env = {**os.environ, **variables, "PYTHONPATH": PATHS, "DAGSTER_HOME": str(tmp_path)}
    with subprocess.Popen([*command, "-j", "in_process"], env=env) as run:
        workload = process(tmp_path, "workload0")
        run.kill()
    assert is_alive(workload)
    (tmp_path / "go").touch()
    failure, messages = run_stage(launcher(section), "waits", tmp_path)
    assert failure is None and messages.count("waiting") == messages.count("reading the rows") == 1
    assert (
        any(line.startswith("attaching to fullft-") for line in messages)
        and (tmp_path / "starts").read_text() == "started\n"
    )


@pytest.mark.slow
@pytest.mark.fault("a run is cancelled", "ray")
def test_a_job_that_is_stopped_writes_its_checkpoint_and_the_next_run_goes_on(section, tmp_path, monkeypatch):
    chosen = launcher(section)
    poll = chosen.poll

    def stop_once(name: str, wait_seconds: float = 0.0):
        if not (tmp_path / "checkpoint0").exists():
            processes[:] = [process(tmp_path, each) for each in ("workload0", "helper0")]
            urlopen(
                Request(
                    f"{section['address']}/api/jobs/{name}/stop", b"{}", {"Authorization": f"Bearer {TOKEN}"}
                )
            ).close()
            wait_for((tmp_path / "checkpoint0").exists, "its checkpoint")
        return poll(name, wait_seconds)

    processes = []
    monkeypatch.setattr(chosen, "poll", stop_once)
    failure, _ = run_stage(chosen, "works", tmp_path)
    assert re.search(
        r"^workload probe was stopped in Ray by somebody; run the same command again", str(failure)
    )
    assert not any(map(is_alive, processes)) and run_stage(launcher(section), "writes", tmp_path)[0] is None
    chosen.submit(spec(tmp_path, "ignores", "stopped-here"))
    chosen.stop("stopped-here")
    assert poll("stopped-here").state == "gone"


@pytest.mark.slow
@pytest.mark.fault("spot capacity is taken away", "ray")
@pytest.mark.fault("the machine or node is lost", "ray")
def test_what_a_lost_machine_did_is_done_again_on_another_one(section, cluster, tmp_path):
    chosen = launcher(section)
    poll = chosen.poll

    def lose_once(name: str, wait_seconds: float = 0.0):
        if not (tmp_path / "go").exists():
            workload = process(tmp_path, "workload0")
            cluster.add()
            cluster.lose(1)
            wait_for(lambda: not is_alive(workload), "nothing of the job is left")
            (tmp_path / "go").touch()
        return poll(name, wait_seconds)

    chosen.poll = lose_once
    failure, messages = run_stage(chosen, "waits", tmp_path)
    assert failure is None and recorded(probe_job(tmp_path, "waits")[1]).attempt == 2
    assert any("lost its machine of the Ray cluster" in line for line in messages)


@pytest.mark.slow
@pytest.mark.fault("the image, version or Python is another one", "ray")
def test_what_the_cluster_refuses_is_one_line(section, tmp_path, monkeypatch):
    failure, _ = run_stage(launcher(section, python="/nowhere/python"), "writes", tmp_path)
    assert re.match(r".*/nowhere/python.*not found\); set launcher.python .* \[settings\]$", str(failure))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "9.9.9")
        failure, _ = run_stage(launcher(section), "writes", tmp_path)
    assert re.match(r"there is fullft_assets \S+, and 9\.9\.9 launched it; .* \[settings\]$", str(failure))
    failure, _ = run_stage(launcher(section), "refuses", tmp_path)
    assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(WorkloadError, match=r"^Ray \S+: Forbidden.* \(403\); set RAY_AUTH_TOKEN "):
        launcher(section).poll("any")


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(Unreachable, match=r"^Ray 127.0.0.1:9: .*refused"):
        launcher({"address": "http://127.0.0.1:9"}).submit(LaunchSpec("any", "module", ()))


@pytest.mark.parametrize(
    ("kind", "code", "message", "reason", "failure"),
    [
        ("COMMAND_ERROR", -9, "lines of output", "was killed by SIGKILL (out of memory?)", "infrastructure"),
        ("COMMAND_ERROR", 3, f'{LAST_LINE} {{"state": "failed", "reason": "no label", "failure": "data"}}',
         "no label", "data"),
        ("DIED", None, "the node was running low on memory", ray.OUT_OF_MEMORY.reason, "out_of_memory"),
        ("START_TIMEOUT", None, "failed to start within 900.0 seconds.",
         "was not started by Ray (failed to start within 900.0 seconds.)", "infrastructure"),
    ],
)  # fmt: skip
@pytest.mark.fault("memory runs out", "ray")
def test_why_a_job_failed_is_known_from_what_ray_says(kind, code, message, reason, failure):
    job = {
        "status": "FAILED",
        "error_type": {"COMMAND_ERROR": "JOB_ENTRYPOINT_COMMAND_ERROR"}.get(
            kind, f"JOB_SUPERVISOR_ACTOR_{kind}"
        ),
    }
    status = ray.status_of({**job, "driver_exit_code": code, "message": f"Job failed:\n{message}\n"})
    assert (status.state, status.reason, status.failure) == ("failed", reason, failure)


def test_a_job_asks_for_what_the_yaml_says_and_a_secret_is_refused() -> None:
    section = {"address": "http://head:8265", "cpu": 4, "memory_gb": 8, "processes": 2, "folder": "/srv"}
    asked = ray.request(LaunchSpec("n", "m", ("--job", "s3://b/j"), 2), launcher(section).settings)
    resources = [asked[f"entrypoint_{name}"] for name in ("num_cpus", "num_gpus", "memory")]
    assert (
        resources == [4, 2, 8 * 2**30] and asked["runtime_env"]["env_vars"]["FULLFT_PROJECT_ROOT"] == "/srv"
    )
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY is a secret.* `ray start`"):
        launcher(section, environment={"AWS_SECRET_ACCESS_KEY": "x"})
