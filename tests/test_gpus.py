"""GPUs are leased: each run has its own ones, with a fake nvidia-smi; and a process uses one, however many it
sees.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fullft_assets.launch import leases
from fullft_assets.launch.contract import RUN_ID
from fullft_assets.launch.leases import THREADS, VISIBLE, leased, shared_gpus
from fullft_assets.launch.machine import Machine
from fullft_assets.launch.supervisor import Options
from fullft_assets.models.hardware import NUM_GPUS
from fullft_assets.progress import ERROR_FILE, WorkloadFailure

#: A supervisor and a Python have so long to start on a slow machine that does other work.
SECONDS = 60.0


def always() -> bool:
    return True


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{n}, GPU-{name}'\n" for n, name in enumerate("abc")))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.02)
    monkeypatch.setenv(THREADS, "1")
    for name in (VISIBLE, NUM_GPUS):
        monkeypatch.delenv(name, raising=False)


def test_runs_at_the_same_time_have_gpus_of_their_own() -> None:
    with leased(1, always) as first, leased(2, always) as second:
        assert first == {VISIBLE: "GPU-a", NUM_GPUS: "3"}
        assert second == {
            VISIBLE: "GPU-b,GPU-c",
            NUM_GPUS: "3",
        }
    with leased(3, always) as all_of_them:
        assert all_of_them == {VISIBLE: "GPU-a,GPU-b,GPU-c", NUM_GPUS: "3"}


def test_a_run_waits_until_all_that_it_needs_are_free_and_keeps_none_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/srv/home")
    given: list[dict[str, str] | None] = []

    def wait_for_two() -> None:
        with leased(2, always) as variables:
            given.append(variables)

    with ThreadPoolExecutor(1) as pool, leased(1, always):
        with leased(1, always):
            waiting = pool.submit(wait_for_two)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            with leased(1, always) as third:
                assert third is not None and third[VISIBLE] == "GPU-c"
        waiting.result(60)
    assert given == [{VISIBLE: "GPU-b,GPU-c", NUM_GPUS: "3"}]
    held = f"job {os.getpid()} of /srv/home (`kill {os.getpid()}` ends it; a training keeps its checkpoint)"
    assert capsys.readouterr().out.splitlines()[0] == (
        f"waiting until 2 of 3 GPUs are free; held by {held}: wait, end it, or set FULLFT_CACHE to a folder"
        " of this project's own to compute beside it"
    )


def test_a_run_that_is_cancelled_waits_no_longer() -> None:
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    with leased(3, always), leased(1, lambda: not cancelled.is_set()) as variables:
        assert variables is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-a", "GPU-b", "GPU-c"]),
        ("2,0", ["GPU-c", "GPU-a"]),
        ("GPU-b", ["GPU-b"]),
        ("MIG-1", ["MIG-1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_what_the_environment_hides_is_not_used(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert shared_gpus() == expected


@pytest.mark.parametrize("code", [6, 9, 12, 255])
def test_a_tool_that_fails_twice_gives_no_run_the_gpus_of_another(code: int, tmp_path: Path) -> None:
    tool, calls = tmp_path / "bin" / "nvidia-smi", tmp_path / "calls"
    tool.write_text(f"#!/bin/sh\necho asked >> {calls}\necho 'Unknown Error'\nexit {code}\n")
    if code != 255:
        assert shared_gpus() == [], "no process can use a GPU"
        return
    done = subprocess.run(
        Options().command([sys.executable, "-c", "print('started')"]),
        env={**os.environ, ERROR_FILE: str(tmp_path / "error")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, calls.read_text()) == (3, "", "asked\nasked\n")
    failure = WorkloadFailure.read(tmp_path / "error")
    assert failure is not None and failure.failure == "infrastructure"
    assert (
        failure.line
        == f"nvidia-smi: Unknown Error; repair the GPUs of this machine, or set {VISIBLE}= to compute without"
    )


class TestSupervised:
    """Jobs of this machine that wait for its GPUs."""

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Iterator[Machine]:
        jobs = Machine(tmp_path / "launches")
        yield jobs
        for name in ("firstrun", "another", "waiting1", "waiting2"):
            jobs.stop(name, 0)

    def _start(self, jobs: Machine, name: str, line: str, max_seconds: float | None = None) -> None:
        jobs.start(
            name,
            ["-c", line],
            {RUN_ID: f"{name}-of-some-run", "DAGSTER_HOME": "/home/a/.home", VISIBLE: "0"},
            grace_seconds=1,
            watched=[os.getpid()],
            max_seconds=max_seconds,
        )

    def _until(self, jobs: Machine, name: str, state: str, output: str = "") -> str:
        deadline = time.monotonic() + SECONDS
        while (
            (status := jobs.poll(name)).state != state
            or (state == "pending" and not status.reason)
            or not jobs.logs(name, "").stdout.endswith(output)
        ):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status.reason

    def test_its_wait_is_no_time_of_work_and_can_be_cancelled(
        self, jobs: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VISIBLE, "0")
        with leased(1, always):
            self._start(jobs, "waiting1", "print('computes')", max_seconds=0.2)
            self._start(jobs, "waiting2", "print('computes')")
            self._until(jobs, "waiting1", "pending")
            self._until(jobs, "waiting2", "pending")
            time.sleep(0.5)
            began = time.monotonic()
            jobs.stop("waiting2", 30)
            assert time.monotonic() - began < 10 and jobs.poll("waiting1").state == "pending"


def test_a_run_on_a_gpu_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv(THREADS)
    with leased(1, always) as variables:
        assert variables == {VISIBLE: "GPU-a", NUM_GPUS: "3", THREADS: "4"}


@pytest.mark.parametrize(("torchrun", "visible"), [([], "GPU-b"), (["--nproc_per_node", "2"], "GPU-b,GPU-c")])
def test_a_supervised_workload_sees_no_gpu_of_another_run(torchrun: list[str], visible: str) -> None:
    command = [
        sys.executable,
        "-c",
        f"import os; print(os.environ['{VISIBLE}'], os.environ['{NUM_GPUS}'])",
        *torchrun,
    ]
    supervised = Options(watch=[os.getpid()]).command(command)
    with leased(1, always):
        done = subprocess.run(supervised, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{visible} 3\n"), done.stderr
