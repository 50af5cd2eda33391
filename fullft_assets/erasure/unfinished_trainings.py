"""Unfinished trainings: their weights learned too, and after an erasure nobody asks for their keys again."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Collection
from pathlib import Path

from fullft_assets.errors import StoreError
from fullft_assets.jobs import Job, read_jobs
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store

_STAGE = "finetuned_checkpoint"


def drop_unfinished(store: Store, case: str, trained_on: Collection[str]) -> tuple[int, int]:
    """Remove what trainings left in their work folders, where their snapshot has since lost rows, or they began with such a champion.

    Of a store on S3 only this machine's folders are seen.

    Returns:
        How many were removed, and how many are being trained and were left alone.
    """
    snapshots = store.artifacts(case, "training_snapshot")
    # The newest attempt at a snapshot has the last attempt that held erased rows.
    lost = {made.key: last for made in snapshots if (last := SnapshotMetadata.of(made).erased_up_to) is not None}
    num_removed = num_in_flight = 0
    for folder in store.work_folders(case, _STAGE):
        if not _learned(_jobs(store, case, folder.name), lost, trained_on):
            continue
        if _remove_unless_held(folder):
            num_removed += 1
        else:
            num_in_flight += 1
    return num_removed, num_in_flight


def _jobs(store: Store, case: str, key: str) -> list[Job]:
    try:
        return read_jobs(store, case, _STAGE, key)
    except StoreError:
        return []


def _learned(jobs: list[Job], lost: dict[str, str], trained_on: Collection[str]) -> bool:
    if not jobs:  # nobody knows what it learned from
        return bool(lost)
    return any(_began_with(job, lost, trained_on) for job in jobs)


def _began_with(job: Job, lost: dict[str, str], trained_on: Collection[str]) -> bool:
    *_, key, attempt = job.inputs["training_snapshot"].split("/")
    # Attempts are named by their time.
    return attempt <= lost.get(key, "") or job.inputs.get("champion") in trained_on


def _remove_unless_held(folder: Path) -> bool:
    """Remove a work folder unless a training holds it; return whether it is gone."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True
