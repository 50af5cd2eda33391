"""Which checkpoints learned from erased documents, or were measured on them; unfinished ones are removed.

The weights of unfinished trainings learned too, and after an erasure nobody asks for their keys again.
"""

import fcntl
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from fullft_assets import release
from fullft_assets.artifacts import MODELS
from fullft_assets.checkpoint.lineage import erased_since, learned_what_was_erased, trainings
from fullft_assets.erasure.erased_documents import key_ref
from fullft_assets.errors import StoreError
from fullft_assets.jobs import Job, is_running, read_jobs
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Store, checkpoints_ref


def name_checkpoints(store: Store, case: str) -> tuple[list[str], list[str], list[str]]:
    """Name every checkpoint whose snapshot held an erased document, whichever erasure took it out: those that
    were trained on it, those that were only measured on it, and those of the first that are or were champion.
    """
    snapshots = {
        key_ref(snapshot.ref): snapshot
        for snapshot in store.artifacts(case, "training_snapshot")
        if SnapshotMetadata.of(snapshot).erasures
    }
    trained_on, measured_on = [], []
    for checkpoint in (each for stage in MODELS for each in store.artifacts(case, stage)):
        on_erased = [
            (snapshots[key_ref(training.snapshot)], training)
            for training in trainings(checkpoint)
            if key_ref(training.snapshot) in snapshots
        ]
        # Of those before, one that it went on from learned; what they were measured on left nothing in it.
        if any(learned_what_was_erased(store, snapshot, training) for snapshot, training in on_erased):
            trained_on.append(checkpoint.ref)
        elif any(
            training.checkpoint == checkpoint.ref and erased_since(snapshot, training)
            for snapshot, training in on_erased
        ):
            measured_on.append(checkpoint.ref)
    current = release.read_champion(store, case)
    champions = {retired.champion.checkpoint for retired in release.read_history(store, case)}
    champions |= {current.checkpoint} if current else set()
    return trained_on, measured_on, [ref for ref in trained_on if ref in champions]


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
                key not in folders or remove_unless_held(folders[key], lambda: True),
                # Without a network it can hold no lease.
                key not in stored
                or remove_stored_unless_held(
                    store,
                    checkpoints_ref(case, _STAGE, key),
                    lambda key=key: not is_running(store, case, _STAGE, key),
                ),
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
    for job in jobs:
        *_, key, attempt = job.inputs["training_snapshot"].split("/")
        # Attempts are named by their time. What a snapshot that is gone held, nobody knows.
        if key not in lost or attempt <= lost[key] or job.inputs.get("champion") in trained_on:
            return True
    return False


def remove_unless_held(folder: Path, goes: Callable[[], bool]) -> bool:
    """Remove a training's work folder unless a process holds it, or it does not go then; return whether it is
    gone.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if is_gone := goes():
            shutil.rmtree(folder)
    return is_gone


def remove_stored_unless_held(store: Store, name: str, goes: Callable[[], bool]) -> bool:
    """Remove a training's checkpoints in the store unless a machine holds their lease, or they do not go
    then; return whether they are gone.
    """
    try:
        with store.alone(name, _PATIENCE_SECONDS) as lease:
            is_gone = goes()
            lease.require()
            if is_gone:
                store.remove_folder(name)
    except StoreError:
        return False
    return is_gone
