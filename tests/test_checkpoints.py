"""What a checkpoint survives: the order in which it reaches the disk, and a disk that damages it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fullft_assets.errors import Interrupted, StoreError
from fullft_assets.workloads.checkpoints import SEAL, STEP_LOG, all_checkpoints
from fullft_assets.workloads.entry import Progress
from tests.optimizer_steps import Stopping
from tests.test_packed import LLAMA, SETTINGS, fit, training


def test_files_and_names_are_on_the_disk_before_what_they_are_needed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was synced: the log, each file, the seal and their names before the rename, that before the next step."""
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
    done = fit(LLAMA, training(8, marked=True), SETTINGS, tmp_path, resumable=True)
    name = f"checkpoint-{done.num_steps}"
    aside = f"unfinished/{name}"
    files = [str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file() and path.name != SEAL]
    assert len(files) >= 5
    published = events.index(("rename", name))
    before = events[:published]
    sealed = before.index(("sync", f"{aside}/{SEAL}"))
    assert {("sync", f"{aside}/{file}") for file in files} | {("sync", STEP_LOG)} <= set(before[:sealed])
    assert ("sync", aside) in before[sealed:]
    assert events[published + 1] == ("sync", ".")


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_a_checkpoint_damaged_at_equal_size_is_passed_over(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    data, chosen = training(40, marked=True), SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(Interrupted):
        fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Stopping(4))
    damage(tmp_path / "work" / "checkpoint-4" / name)
    done = fit(LLAMA, data, chosen, tmp_path / "work", resumable=True, progress=Progress())
    assert f"checkpoint-4/{name} is damaged; going on from the checkpoint before" in capsys.readouterr().out
    assert done.resumed_from_step == 2
    whole = fit(LLAMA, data, chosen, tmp_path / "whole")
    assert all(torch.equal(value, done.model.state_dict()[key]) for key, value in whole.model.state_dict().items())
    assert [line["step"] for line in done.history if "loss" in line] == list(range(1, done.num_steps + 1))


def test_the_best_weights_are_not_taken_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Damaging(Progress):
        def step(self, done: int, total: int, **numbers: float | None) -> None:
            if done == total:
                for checkpoint in all_checkpoints(tmp_path):
                    damage(checkpoint / "model.safetensors")

    chosen = SETTINGS.model_copy(update={"epochs": 6, "learning_rate": 0.3, "keep_best": True, "scheduler": "constant_with_warmup"})
    with pytest.raises(StoreError, match=r"checkpoint-\d+/model.safetensors, of the best step, is damaged; delete .* to train again"):
        fit(LLAMA, training(), chosen, tmp_path, resumable=True, evaluate_at=None, progress=Damaging(silent=True))


def damage(path: Path) -> None:
    """Flip a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
