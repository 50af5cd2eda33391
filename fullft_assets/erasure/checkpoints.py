"""Which checkpoints learned from erased documents; unfinished ones are removed.

The weights of unfinished trainings learned too, and after an erasure nobody asks for their keys again.
"""

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from fullft_assets import release
from fullft_assets.artifacts import FINETUNED_CHECKPOINT, MODELS, TRAINING_SNAPSHOT
from fullft_assets.checkpoint.lineage import learned_what_was_erased, trainings
from fullft_assets.erasure.erased_documents import key_ref
from fullft_assets.errors import StoreError
from fullft_assets.job import Job, is_running, read_jobs
from fullft_assets.store import Store, checkpoints_ref


def name_checkpoints(store: Store, case: str) -> tuple[list[str], list[str]]:
    """Name every checkpoint that learned from an erased document, whichever erasure took it out; and those of
    them that are or were champion.
    """
    snapshots = {key_ref(snapshot.ref): snapshot for snapshot in store.artifacts(case, TRAINING_SNAPSHOT)}
    trained_on = [
        checkpoint.ref
        for stage in MODELS
        for checkpoint in store.artifacts(case, stage)
        if any(
            learned_what_was_erased(store, snapshots[key_ref(training.snapshot)], training)
            for training in trainings(checkpoint)
            if key_ref(training.snapshot) in snapshots
        )
    ]
    current = release.read_champion(store, case)
    champions = {retired.champion.checkpoint for retired in release.read_history(store, case)}
    champions |= {current.checkpoint} if current else set()
    return trained_on, [ref for ref in trained_on if ref in champions]


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
    # An erasure rewrites a snapshot: a training on another attempt than today's learned from what is gone.
    current = {snapshot.ref for snapshot in store.artifacts(case, TRAINING_SNAPSHOT)}
    folders = {folder.name: folder for folder in store.work_folders(case, FINETUNED_CHECKPOINT)}
    stored_checkpoints = store.stored_work(case, FINETUNED_CHECKPOINT)
    num_removed = num_left = 0
    for key in sorted({*folders, *stored_checkpoints}):
        jobs: list[Job] = []
        with suppress(StoreError):
            jobs = read_jobs(store, case, FINETUNED_CHECKPOINT, key)
        # What one without a job learned from, nobody knows.
        if jobs and all(
            job.inputs[TRAINING_SNAPSHOT] in current and job.inputs.get("champion") not in trained_on
            for job in jobs
        ):
            continue
        is_gone = key not in folders or remove_unless_held(folders[key], lambda: True)
        if key in stored_checkpoints:
            name = checkpoints_ref(case, FINETUNED_CHECKPOINT, key)
            # Without a network it can hold no lease.
            is_idle = partial(lambda key: not is_running(store, case, FINETUNED_CHECKPOINT, key), key)
            is_gone = remove_stored_unless_held(store, name, is_idle) and is_gone
        num_removed += is_gone
        num_left += not is_gone
    return num_removed, num_left


def remove_unless_held(folder: Path, goes: Callable[[], bool]) -> bool:
    """Remove a training's work folder unless a process holds it, or it does not go then; return whether it is
    gone.
    """
    try:
        with FileLock(folder / ".lock", blocking=False):
            if is_gone := goes():
                shutil.rmtree(folder)
    except Timeout:
        return False
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
