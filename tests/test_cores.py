"""CPU cores are leased: all that runs on a machine has no more threads than it has cores, and a run that
waits says for whom.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.jobs import leases
from fullft_assets.jobs.cores import THREADS, usable_cores
from fullft_assets.jobs.gpus import NUM_GPUS, VISIBLE
from fullft_assets.jobs.launch import RUN_ID
from fullft_assets.jobs.leases import leased
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.launchers.machine import Machine
from fullft_assets.settings import LauncherSettings

FOUR = [0, 1, 2, 3]
#: A supervisor and a Python have so long to start on a slow machine that does other work.
SECONDS = 60.0


def always() -> bool:
    return True


@pytest.fixture(autouse=True)
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four cores and no GPU, on which nothing says how many threads a process has."""
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(leases, "usable_cores", lambda: FOUR)
    monkeypatch.setattr(leases, "allowed_cores", lambda: FOUR)
    monkeypatch.setattr(leases, "shared_gpus", lambda: [])
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.02)
    monkeypatch.delenv(THREADS, raising=False)


def num_free() -> int:
    """Return how many cores are free, by taking them one by one."""
    with ExitStack() as stack:
        for count in range(len(FOUR) + 1):
            looks = iter([True, False])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(THREADS, "1")
                if stack.enter_context(leased(1, lambda looks=looks: next(looks), lambda _: None)) is None:
                    return count
        raise AssertionError("more leases than cores")


@pytest.mark.parametrize(
    ("processes", "threads", "left", "variables"),
    [
        (1, None, 0, {}),
        (1, "1", 3, {}),
        (1, "3,2", 1, {}),
        (1, "none", 0, {}),
        (1, "64", 0, {}),
        (2, None, 2, {}),
        (2, "2", 0, {}),
        (8, None, 0, {}),
    ],
)
def test_a_run_holds_a_core_for_each_of_its_threads(
    processes: int, threads: str | None, left: int, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads is not None:
        monkeypatch.setenv(THREADS, threads)
    with leased(processes, always) as found:
        assert (found, num_free()) == (variables, left)
    assert num_free() == 4


def test_runs_on_gpus_share_the_cores_as_they_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "shared_gpus", lambda: ["a", "b"])
    with leased(1, always) as first, leased(1, always) as second:
        assert [first, second] == [{VISIBLE: gpu, NUM_GPUS: "2", THREADS: "2"} for gpu in "ab"]
    monkeypatch.setattr(leases, "shared_gpus", lambda: list("abcdefgh"))
    with ExitStack() as stack:
        found = [stack.enter_context(leased(1, always)) for _ in range(8)]
    assert [variables and variables[THREADS] for variables in found] == ["1"] * 8, (
        "more GPUs than cores: no GPU waits"
    )


def test_what_waits_for_cores_keeps_no_gpu_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool, ExitStack() as on_gpu:
        with leased(1, always):  # all cores, on no GPU
            monkeypatch.setattr(leases, "shared_gpus", lambda: ["a"])
            monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.02)
            said = threading.Event()
            waiting = pool.submit(lambda: on_gpu.enter_context(leased(1, always, lambda _: said.set())))
            assert said.wait(SECONDS)
            with leased(1, always, shares_cores=True) as other:
                assert other is not None and other[VISIBLE] == "a"
        assert waiting.result(SECONDS) is not None


def test_a_run_that_shares_cores_holds_and_waits_for_none() -> None:
    with leased(1, always, shares_cores=True) as alone:
        assert alone == {}
        assert not Path(os.environ["FULLFT_CACHE"], "cores").exists(), (
            "a pod leaves nothing on a disk that pods share"
        )
        assert num_free() == 4
    with leased(2, always), leased(1, always, shares_cores=True) as beside:
        assert (beside, num_free()) == ({THREADS: "2"}, 2)
    with leased(1, always), leased(1, always, shares_cores=True) as beside:
        assert beside == {THREADS: "1"}


def test_a_container_without_a_disk_computes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "file"))
    with leased(1, always) as first, leased(1, always, shares_cores=True) as second:
        assert (first, second) == ({}, {})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "9000000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_a_container_has_the_cores_of_its_limit(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    all_of_them = sorted(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == all_of_them[:expected]


@pytest.mark.parametrize(
    ("workload", "shares"),
    [("training", False), ("evaluation", False), ("prediction", True), ("monitoring", True)],
)
def test_what_a_long_training_must_not_hold_up_shares_cores(
    workload: str, shares: bool, tmp_path: Path
) -> None:
    chosen, (job, _) = LocalLauncher(LauncherSettings()), probe_job(tmp_path, "writes")
    assert LaunchDriver(lambda _: chosen).spec(chosen, workload, job).shares_cores is shares


class TestSupervised:
    @pytest.fixture
    def machine(self, tmp_path: Path) -> Iterator[Machine]:
        machine = Machine(tmp_path / "launches")
        yield machine
        for name in machine.names():
            machine.stop(name, 0)

    def _start(self, machine: Machine, name: str, line: str, max_seconds: float | None = None) -> None:
        machine.start(
            name,
            ["-c", line],
            {RUN_ID: f"{name}-of-some-run", "DAGSTER_HOME": "/home/a/.home"},
            grace_seconds=1,
            watched=[os.getpid()],
            max_seconds=max_seconds,
        )

    def _until(self, machine: Machine, name: str, state: str, output: str = "") -> str:
        deadline = time.monotonic() + SECONDS
        while (
            (status := machine.poll(name)).state != state
            or (state == "pending" and not status.reason)
            or not machine.logs(name, "").stdout.endswith(output)
        ):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status.reason

    def test_of_two_runs_that_take_all_cores_the_second_waits_until_the_first_is_dead(
        self, machine: Machine
    ) -> None:
        cores = len(usable_cores())
        self._start(machine, "firstrun", "import time; print('computes', flush=True); time.sleep(300)")
        self._until(machine, "firstrun", "running", "computes\n")
        self._start(machine, "another", "print('computes', flush=True)", max_seconds=5)
        supervisor = machine._supervisor("firstrun")
        assert supervisor is not None
        held = (
            f"held by run firstrun of /home/a/.home (`kill {supervisor.pid}` ends it; a training keeps its"
            " checkpoint): wait, "
        )
        line = self._until(machine, "another", "pending")
        assert (
            line.startswith(f"waiting until {cores} of {cores} CPU cores are free; {held}")
            and "FULLFT_CACHE" in line
        )
        supervisor.kill()
        self._until(machine, "another", "succeeded")
        assert machine.logs("another", "").stdout == f"{line}\ncomputes\n"

    def test_one_that_shares_cores_waits_for_none(self, machine: Machine) -> None:
        with leased(1, always):
            machine.start(
                "light",
                ["-c", "print('computes')"],
                {},
                grace_seconds=1,
                watched=[os.getpid()],
                shares_cores=True,
            )
            self._until(machine, "light", "succeeded")

    def test_its_wait_is_no_time_of_work_and_can_be_cancelled(self, machine: Machine) -> None:
        with leased(1, always) as variables:
            assert variables is not None
            self._start(machine, "waiting1", "print('computes')", max_seconds=0.2)
            self._start(machine, "waiting2", "print('computes')")
            self._until(machine, "waiting1", "pending")
            self._until(machine, "waiting2", "pending")
            time.sleep(0.5)
            began = time.monotonic()
            machine.stop("waiting2", 30)
            assert time.monotonic() - began < 10
            assert machine.poll("waiting1").state == "pending"
