"""What a checkpoint survives: the order in which it reaches the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fullft_assets.workloads.checkpoints import SEAL, STEP_LOG
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
