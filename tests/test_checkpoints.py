"""What a checkpoint survives: the order in which it reaches the disk, and a disk that damages it."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fullft_assets.errors import Interrupted, StoreError
from fullft_assets.progress import Progress
from fullft_assets.training import checkpoints
from fullft_assets.training.checkpoints import (
    ORIGIN,
    SEAL,
    STEP_LOG,
    Incident,
    RunHistory,
    all_checkpoints,
    latest_checkpoint,
    publish,
    retain,
)
from tests.optimizer_steps import Stopping
from tests.project import write_files
from tests.test_packed import KEEP_BEST, LLAMA, OVERFITTING, SETTINGS, fit, training

pytestmark = pytest.mark.numeric


def test_files_and_names_are_on_the_disk_before_what_they_are_needed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was synced: the log, each file, the seal and their names before the rename, that
    before the next step.
    """
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        sync(descriptor)
        events.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)))

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        events.append(("rename", os.path.relpath(target, tmp_path)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    name = f"checkpoint-{fit(LLAMA, training(8, marked=True), SETTINGS, tmp_path, resumable=True).num_steps}"
    aside = f"unfinished/{name}"
    files = [
        str(path.relative_to(tmp_path / name))
        for path in (tmp_path / name).rglob("*")
        if path.is_file() and path.name != SEAL
    ]
    assert len(files) >= 5
    published = events.index(("rename", name))
    before = events[:published]
    sealed = before.index(("sync", f"{aside}/{SEAL}"))
    assert {("sync", f"{aside}/{file}") for file in files} | {("sync", STEP_LOG)} <= set(before[:sealed])
    assert ("sync", aside) in before[sealed:] and events[published + 1] == ("sync", ".")


def test_a_kill_at_any_moment_of_a_replacement_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children kill themselves at their first, second, ... touch of the folder, until one comes to its
    end.
    """
    monkeypatch.setattr(checkpoints, "NUM_NEWEST", 1)
    seen, folder, touches = [], tmp_path / "work", 0
    while "end" not in seen:
        touches += 1
        shutil.rmtree(folder, ignore_errors=True)
        for kind, place in (
            ("before", "checkpoint-3"),
            ("old", "checkpoint-4"),
            ("new", "unfinished/checkpoint-4"),
        ):
            write_files(folder / place, {"inner/weights": kind})
            if kind != "new":
                (folder / place).rename(folder / "aside")
                publish(folder / "aside", folder / place, num_incidents=0, is_planned=True)
        child = os.fork()
        if child == 0:
            kill_at_touch(touches, folder)
            publish(
                folder / "unfinished" / "checkpoint-4",
                folder / "checkpoint-4",
                num_incidents=0,
                is_planned=True,
            )
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        whole = latest_checkpoint(folder)
        seen += [(whole.name, (whole / "inner" / "weights").read_text()), *(["end"] if status == 0 else [])]
        retain(folder, RunHistory(folder), best=None)
        assert all_checkpoints(folder) == [latest_checkpoint(folder)] == [whole]
    assert set(seen) == {
        ("checkpoint-3", "before"),
        ("checkpoint-4", "old"),
        ("checkpoint-4", "new"),
        "end",
    }


def kill_at_touch(number: int, folder: Path) -> None:
    left = number

    def touch(event: str, arguments: tuple) -> None:
        nonlocal left
        # Within a removal its paths are relative to the folder that is removed.
        if event in ("os.remove", "os.rmdir") or (
            event in ("open", "os.rename") and str(arguments[0]).startswith(str(folder))
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)


def test_what_is_written_beside_the_checkpoints_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        # A folder's sync keeps the names that it has by then.
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(
            {inner.name: inner.read_text() for inner in path.iterdir()} if path.is_dir() else path.read_text()
        )

    monkeypatch.setattr(os, "fsync", watched)
    RunHistory(tmp_path).add(Incident("out_of_memory", 3, 2, "too large", 1.0, micro_batch_size=2))
    history = (tmp_path / "run_history.json").read_text()
    assert synced == [history, {"run_history.json": history}]
    assert [incident.micro_batch_size for incident in RunHistory(tmp_path).incidents] == [2]


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_a_checkpoint_damaged_at_equal_size_is_passed_over(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    data, chosen = training(40, marked=True), SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Stopping(4))
    damage(tmp_path / "work" / "checkpoint-4" / name)
    done = fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Progress())
    assert f"checkpoint-4/{name} is damaged; " in capsys.readouterr().out and done.resumed_from_step == 2
    assert all(
        torch.equal(value, done.model.state_dict()[key])
        for key, value in fit(LLAMA, data, chosen, tmp_path / "whole").model.state_dict().items()
    )
    assert [line["step"] for line in done.history if "loss" in line] == list(range(1, done.num_steps + 1))


@pytest.mark.parametrize(
    ("name", "new_name"),
    [
        *((name, name) for name in ("optimizer.pt", "random_states.pt", "model.safetensors")),
        ("scheduler.pt", "moved.pt"),
    ],
)
def test_a_forged_checkpoint_runs_no_code_and_is_passed_over(
    tmp_path: Path, name: str, new_name: str, capsys: pytest.CaptureFixture
) -> None:
    data, chosen = training(40, marked=True), SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Stopping(4))
    forged = tmp_path / "work" / "checkpoint-4"
    (forged / name).rename(forged / new_name).write_text(f"cos\nmkdir\n(V{tmp_path}/ran\ntR.")  # a pickle
    for seal in (SEAL, checkpoints._DIGESTS):
        (forged / seal).unlink()
    publish(forged.rename(tmp_path / "aside"), forged, num_incidents=0, is_planned=True)
    done = fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Progress())
    assert done.resumed_from_step == 2
    assert f"checkpoint-4/{new_name} is damaged; " in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_a_whole_checkpoint_of_another_training_is_one_line(tmp_path: Path) -> None:
    data, chosen = training(40, marked=True), SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        fit(LLAMA, data, chosen, tmp_path, resumable=True, progress=Stopping(4))
    checkpoint = tmp_path / "checkpoint-4"
    torch.save({}, checkpoint / "scheduler.pt")
    for seal in (SEAL, checkpoints._DIGESTS):
        (checkpoint / seal).unlink()
    publish(checkpoint.rename(tmp_path / "aside"), checkpoint, num_incidents=0, is_planned=True)
    with pytest.raises(StoreError, match=rf"^{checkpoint}: .* no checkpoint .* \(KeyError\); remove"):
        fit(LLAMA, data, chosen, tmp_path, resumable=True)


def test_the_best_weights_are_not_taken_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Damaging(Progress):
        def step(self, done: int, total: int, **numbers: float | None) -> None:
            if done == total:
                for checkpoint in all_checkpoints(tmp_path):
                    damage(checkpoint / "model.safetensors")

    with pytest.raises(
        StoreError,
        match=r"best step \d+: .*/checkpoint-\d+/model.safetensors is ",
    ):
        fit(
            LLAMA,
            **OVERFITTING,
            chosen=KEEP_BEST,
            folder=tmp_path,
            resumable=True,
            evaluate_at=None,
            progress=Damaging(silent=True),
        )


def test_a_resume_under_other_versions_warns_in_the_step_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        fit(LLAMA, training(40, marked=True), chosen, tmp_path, resumable=True, progress=Stopping(4))
    versions = json.loads((tmp_path / "checkpoint-4" / ORIGIN).read_text())["versions"]
    # A build for CUDA names it behind a plus, in the module or in the package, too.
    assert (versions["torch"].partition("+")[0], versions["transformers"], versions["numpy"]) == (
        torch.__version__.partition("+")[0],
        transformers.__version__,
        np.__version__,
    )
    assert set(versions) - {"cuda"} == {"torch", "transformers", "accelerate", "tokenizers", "numpy"}
    monkeypatch.setattr(checkpoints, "library_versions", lambda: {**versions, "torch": "9.9"})
    done = fit(LLAMA, training(40, marked=True), chosen, tmp_path, resumable=True, progress=Progress())
    expected = [
        {
            "step": 4,
            "event": "other_versions",
            "action": "warn",
            "reason": f"torch {versions['torch']} -> 9.9: bits may differ",
        }
    ]
    assert [line for line in done.history if "event" in line] == expected
    assert [line["step"] for line in done.history if "loss" in line] == list(range(1, done.num_steps + 1))


def damage(path: Path) -> None:
    """Flip a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
