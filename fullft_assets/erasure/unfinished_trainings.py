"""Unfinished trainings: their weights learned too, and after an erasure nobody asks for their keys again."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Collection
from pathlib import Path

from fullft_assets.errors import StoreError
from fullft_assets.jobs import Job, is_running, read_jobs
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store, checkpoints_ref

_STAGE = "finetuned_checkpoint"
#: A machine that is gone is known by then.
_PATIENCE_SECONDS = 60.0


def drop_unfinished(store: Store, case: str, trained_on: Collection[str]) -> tuple[int, int]:
    """Remove the checkpoints of unfinished trainings, where their snapshot has since lost rows, or they began
    with such a champion.

    Of a store on S3 those in the store are, and the copies on this machine; other machines' copies are not
    seen.

    Returns:
        How many were removed, and how many are being trained and were left alone.
    """
    snapshots = store.artifacts(case, "training_snapshot")
    # The newest attempt at a snapshot has the last attempt that held erased rows; "" where it lost none.
    lost = {snapshot.key: SnapshotMetadata.of(snapshot).erased_up_to or "" for snapshot in snapshots}
    folders = {folder.name: folder for folder in store.work_folders(case, _STAGE)}
    stored = store.stored_work(case, _STAGE)
    learned = [
        key for key in sorted({*folders, *stored}) if _learned(_jobs(store, case, key), lost, trained_on)
    ]
    removed = [
        all(
            [
                key not in folders or _remove_unless_held(folders[key]),
                key not in stored or _remove_stored_unless_held(store, case, key),
            ]
        )
        for key in learned
    ]
    return sum(removed), len(removed) - sum(removed)


def _jobs(store: Store, case: str, key: str) -> list[Job]:
    try:
        return read_jobs(store, case, _STAGE, key)
    except StoreError:
        return []


def _learned(jobs: list[Job], lost: dict[str, str], trained_on: Collection[str]) -> bool:
    if not jobs:  # nobody knows what it learned from
        return any(lost.values())
    return any(_began_with(job, lost, trained_on) for job in jobs)


def _began_with(job: Job, lost: dict[str, str], trained_on: Collection[str]) -> bool:
    *_, key, attempt = job.inputs["training_snapshot"].split("/")
    # Attempts are named by their time. What a snapshot that is gone held, nobody knows.
    return key not in lost or attempt <= lost[key] or job.inputs.get("champion") in trained_on


def _remove_unless_held(folder: Path) -> bool:
    """Remove a work folder unless a training holds it; return whether it is gone."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True


def _remove_stored_unless_held(store: Store, case: str, key: str) -> bool:
    """Remove a training's checkpoints in the store unless one is on record as running or holds their lease;
    return whether they are gone.
    """
    if is_running(store, case, _STAGE, key):  # without a network it can hold no lease
        return False
    ref = checkpoints_ref(case, _STAGE, key)
    try:
        with store.alone(ref, _PATIENCE_SECONDS) as lease:
            lease.require()
            store.remove_folder(ref)
    except StoreError:
        return False
    return True
