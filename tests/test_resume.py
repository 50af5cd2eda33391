"""Training is killed with SIGKILL at several moments and started again with the same command: in forks of a
server, and once as the command that a person runs.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fullft_assets.launch.contract import EXIT_FIXABLE
from fullft_assets.progress import ERROR_FILE, WorkloadFailure
from fullft_assets.store import Manifest
from fullft_assets.training.checkpoints import SEAL, STEP_LOG, latest_checkpoint
from fullft_assets.training.finetuning import exclusive
from tests import machine, metadata_server
from tests.forked_training import ForkedTraining
from tests.prepared import Prepared, command, prepare

EVERY = 3
SECONDS = 180.0
STAGE = "finetuned_checkpoint"
TRAINING = {"checkpoint_every_steps": EVERY, "learning_rate": 1e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("resume"), tiny=True, training=TRAINING)


class Run:
    """One piece of training work that may be launched several times."""

    def __init__(
        self,
        prepared: Prepared,
        key: str,
        processes: int = 1,
        *,
        is_launched: bool = False,
        **sections: object,
    ):
        job = prepared.job(STAGE, key, **sections)
        self.prepared, self.key, self.is_launched = prepared, key, is_launched or processes > 1
        self.grace_seconds = job.settings.launcher.grace_seconds
        self.uri = job.write(prepared.store)
        self.command = command("training", self.uri, processes)
        self.folder = prepared.store.work_folder(job.case, STAGE, key)

    def start(self) -> subprocess.Popen[str] | ForkedTraining:
        env = self.prepared.project.env()
        if not self.is_launched:
            return ForkedTraining(self.uri, env, self.prepared.project.root / "printed" / self.key)
        return subprocess.Popen(
            self.command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> str:
        """Launch to the end and return what was printed."""
        process = self.start()
        output, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        return output

    def kill_when(self, condition: Callable[[], bool]) -> bool:
        """Launch, kill the whole session as the condition holds; return whether it was still at work."""
        process = self.start()
        wait_for(lambda: condition() or process.poll() is not None)
        alive = process.poll() is None
        kill(process)
        return alive

    def step(self) -> int:
        try:
            lines = (self.folder / STEP_LOG).read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def manifest(self) -> Manifest:
        return self.prepared.store.find(self.prepared.use_case.name, STAGE, self.key)

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.model() / "model.safetensors")

    def model(self) -> Path:
        return self.prepared.store.folder(self.manifest()) / "model"

    def log(self) -> list[dict]:
        path = self.prepared.store.folder(self.manifest()) / "logs" / STEP_LOG
        return [json.loads(line) for line in path.read_text().splitlines()]


#: Looks often enough to see a step between two others.
wait_for = partial(machine.wait_for, what="the moment of the test", seconds=SECONDS, poll_seconds=0.002)


def is_stopped(pid: int) -> bool:
    """Return whether a signal holds a process, which its state after its name tells: `pid (name) T ...`."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def kill(process: subprocess.Popen[str] | ForkedTraining) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def straight(prepared: Prepared) -> Run:
    run = Run(prepared, "straight")
    run.finish()
    return run


def assert_same_as(straight: Run, run: Run) -> None:
    expected, found = straight.weights(), run.weights()
    assert set(found) == set(expected)
    assert len({(each.model() / "config.json").read_text() for each in (straight, run)}) == 1
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    steps = [line["step"] for line in run.log() if "loss" in line]
    assert steps == sorted(set(steps))
    assert [(line["step"], line["validation_loss"]) for line in run.log() if "validation_loss" in line] == [
        (line["step"], line["validation_loss"]) for line in straight.log() if "validation_loss" in line
    ]


def test_uninterrupted_run_leaves_an_artifact_and_no_work_folder(straight: Run) -> None:
    manifest = straight.manifest()
    assert manifest.metadata["resumed_from_step"] == 0
    assert manifest.metadata["num_trained_parameters"] == manifest.metadata["num_parameters"]
    assert manifest.metadata["snapshot"] == straight.prepared.snapshot.ref
    assert not straight.folder.exists()


def test_same_command_after_the_end_trains_nothing(straight: Run) -> None:
    before = straight.manifest()
    assert "exists already" in straight.finish()
    assert straight.manifest() == before


@pytest.mark.numeric
def test_killed_at_seeded_moments_it_resumes_to_the_same_weights(prepared: Prepared, straight: Run) -> None:
    run = Run(prepared, "killed")
    last = straight.manifest().metadata["num_steps"]
    resumed_at = []
    for moment in sorted(random.Random(4).sample(range(EVERY + 2, last - 6), 2)):
        assert run.kill_when(lambda moment=moment: run.step() >= moment)
        resumed_at.append(int(latest_checkpoint(run.folder).name.split("-")[1]))
    assert f"resuming at step {resumed_at[-1]} of {last}" in run.finish()
    assert EVERY <= resumed_at[0] <= resumed_at[-1] < last
    assert run.manifest().metadata["resumed_from_step"] == resumed_at[-1] > 0
    assert_same_as(straight, run)
    # The segments before the kills are paid for, too.
    assert run.manifest().metadata["training_seconds"] > run.log()[-2]["seconds"] - run.log()[0]["seconds"]


@pytest.mark.parametrize(
    ("name", "kills", "changes", "spoiled"),
    [
        pytest.param("plain", 20, {}, 0, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("rolled back", 8, {"keep_best": True}, 15, marks=pytest.mark.slow),
        pytest.param(
            "two in parts",
            7,
            {"processes": 2, "micro_batch_size": 2, "sharding": "fsdp2"},
            0,
            marks=[pytest.mark.slow, pytest.mark.long],
        ),
    ],
)
def test_killed_again_and_again_also_inside_saves_it_ends_with_the_same_weights(
    prepared: Prepared, name, kills, changes, spoiled
) -> None:
    changes = dict(changes)
    processes = changes.pop("processes", 1)
    sections = {"training": changes, "launcher": {"processes": processes}}
    straight, killed = (
        Run(prepared, f"{kind} {name}".replace(" ", "-"), **sections) for kind in ("straight", "killed")
    )
    how = (straight.command[-1], killed.command[-1], kills, 11, spoiled, processes)
    environment = prepared.project.env()
    printed = machine.printed_by("-m", "tests.killed_trainings", *how, env=environment, timeout=SECONDS)
    moments = [json.loads(line) for line in printed.splitlines()]
    assert len(moments) == kills
    assert sum(moment["saving"] for moment in moments) >= kills // 7 and any(
        moment["checkpoints"] for moment in moments
    )
    assert_same_as(straight, killed)
    rolled = [
        [
            (row["event"], row["step"], row["continued_from_step"])
            for row in run.manifest().metadata["incidents"]
        ]
        for run in (straight, killed)
    ]
    assert rolled[0] == rolled[1] == ([("roll_back", 15, 12)] if spoiled else [])


@pytest.mark.parametrize("by", [pytest.param("sigterm", marks=pytest.mark.slow), "spot_notice"])
@pytest.mark.fault("spot capacity is taken away", "local", "ssh")
def test_a_request_to_stop_writes_a_checkpoint_and_says_how_to_continue(
    prepared: Prepared, straight: Run, by: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "reason"))
    launcher = {"spot_notice": "aws"} if by == "spot_notice" else {}
    run = Run(
        prepared,
        by,
        is_launched=by == "sigterm",
        training={"checkpoint_every_steps": 1_000},
        launcher=launcher,
    )
    with metadata_server.serve() as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        process = run.start()
        wait_for(lambda: run.step() >= 1)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: is_stopped(process.pid))
        at_step, asked_at = run.step(), time.time()
        process.terminate() if by == "sigterm" else metadata.announce()
        process.send_signal(signal.SIGCONT)
        said, errors = process.communicate(timeout=SECONDS)
    assert ('spot notice: {"action": "terminate"' in said) == (by == "spot_notice")
    assert process.returncode == EXIT_FIXABLE
    last = errors.strip().splitlines()[-1]
    checkpoint = latest_checkpoint(run.folder)
    # Written last. What runs longer than that is killed.
    assert (checkpoint / SEAL).stat().st_mtime - asked_at < run.grace_seconds
    step = int(checkpoint.name.split("-")[1])
    # After the step under way, or the next one if that step was over but not yet recorded; notices are
    # polled.
    assert by == "spot_notice" or step <= at_step + 2
    assert (
        last
        == f"stopped at step {step} of {straight.manifest().metadata['num_steps']}; run the same command to"
        " resume there"
    )
    assert "Traceback" not in errors
    assert WorkloadFailure.read(tmp_path / "reason").failure == "preemption"
    with metadata_server.serve() as metadata:  # of another machine, without a notice
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        assert f"resuming at step {step} " in run.finish()
    assert_same_as(straight, run)


def test_second_process_at_the_same_work_is_refused(prepared: Prepared) -> None:
    run = Run(prepared, "twice")
    with exclusive(run.folder):
        second = run.start()
        _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == EXIT_FIXABLE
    assert errors.strip().splitlines() == [
        f"{run.folder}: another process works in this folder; wait for it or stop it"
    ]
