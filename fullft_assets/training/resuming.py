"""Where a training segment begins: the first process chooses the checkpoint, and every host gets it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from fullft_assets.errors import StoreError
from fullft_assets.jobs.progress import Listener
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import (
    Checkpoint,
    checkpoint_of,
    complete_checkpoints,
    discard,
    first_damaged,
    identity_of,
    step_of,
)
from fullft_assets.training.run_history import RunHistory
from fullft_assets.training.stored_checkpoints import (
    StoredCheckpoint,
    StoredCheckpoints,
    restore_beside,
    stored_name,
)

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress


class _Chosen(NamedTuple):
    step: int
    identity: str | None


def newest_checkpoint(
    folder: Path, history: RunHistory, stored: StoredCheckpoints | None, progress: Progress
) -> Path | None:
    """Return the checkpoint that training continues from, whole and in this host's work folder, or None; all
    processes must call this.

    It is the newest undamaged one of the first process's work folder and of the store.

    Raises:
        StoreError: hosts have work folders of their own, and no store to copy it from.
    """
    if not ranks.from_first(is_first_rank() and any(_newest(folder, history, stored))):
        return None
    chosen = ranks.run_on_first(
        lambda listener: _choose(folder, history, stored, progress, listener), progress
    )
    if chosen is None:
        return None
    path = checkpoint_of(folder, chosen.step)
    lacking = [path] if identity_of(path) != chosen.identity else []

    def verify() -> None:
        # The first process has verified its own.
        if not lacking and not is_first_rank() and first_damaged(path):
            lacking.append(path)

    ranks.run_on_each_host(verify, progress)
    if ranks.any_rank(bool(lacking)):
        _spread(folder, chosen, stored, progress)
    return checkpoint_of(folder, chosen.step)


def checkpoint_of_step(
    step: int, folder: Path, history: RunHistory, stored: StoredCheckpoints | None, listener: Listener
) -> Path:
    """Return the checkpoint of a step that no roll-back undid, whole and in the work folder; the first
    process alone calls this.

    Raises:
        StoreError: it is missing or damaged, here and in the store.
    """
    problem = f"{folder / f'checkpoint-{step}'} is missing"
    for path in [
        checkpoint.path for checkpoint in complete_checkpoints(folder, history) if checkpoint.step == step
    ]:
        if (damaged := first_damaged(path, listener) or _unloadable(path)) is None:
            return path
        problem = f"{path / damaged} is damaged"
    if stored is None:
        raise StoreError(problem)
    for name in [checkpoint.name for checkpoint in stored.complete(history) if checkpoint.step == step]:
        if (damaged := ranks.attended(partial(stored.fetch, name, folder), listener)) is None:
            return checkpoint_of(folder, step)
        problem = f"{stored.place(name)}/{damaged} is damaged"
    raise StoreError(problem)


def _newest(
    folder: Path, history: RunHistory, stored: StoredCheckpoints | None
) -> tuple[list[Checkpoint], list[StoredCheckpoint]]:
    """Return the newest checkpoint on this machine and the newest one in the store, where there is one."""
    return complete_checkpoints(folder, history)[-1:], (
        stored.complete(history)[-1:] if stored is not None else []
    )


def _choose(
    folder: Path,
    history: RunHistory,
    stored: StoredCheckpoints | None,
    progress: Progress,
    listener: Listener,
) -> _Chosen | None:
    while True:
        here, there = _newest(folder, history, stored)
        if not here and not there:
            return None
        if stored is None or not there or (here and here[0].step >= there[0].step):
            path = here[0].path
            damaged = first_damaged(path, listener) or _unloadable(path)
            if damaged is None:
                # It may have been copied here for another process, or a kill came between it and its log.
                restore_beside(path, folder)
                return _Chosen(here[0].step, identity_of(path))
            place = path / damaged
            discard(path)
        else:
            damaged = ranks.attended(partial(stored.fetch, there[0].name, folder), listener)
            path = checkpoint_of(folder, there[0].step)
            if damaged is None and (damaged := _unloadable(path)) is not None:
                discard(path)
            if damaged is None:
                restore_beside(path, folder)
                return _Chosen(there[0].step, identity_of(path))
            place = f"{stored.place(there[0].name)}/{damaged}"
            stored.skip(there[0].name)
        progress.say(f"{place} is damaged; continuing from the checkpoint before, if there is one")


def _unloadable(checkpoint: Path) -> str | None:
    """Return the name of the first file of a checkpoint that cannot be loaded, or None; no tensor is read."""
    for path in sorted(checkpoint.iterdir()):
        is_state = path.name == TRAINER_STATE_NAME
        try:
            if path.suffix == ".pt":
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif is_state and TrainerState.load_from_json(str(path)).global_step != step_of(checkpoint):
                return path.name
        except (OSError, MemoryError):
            raise  # of the machine, not of the file
        except Exception:  # each of the three libraries has errors of its own for what it cannot read
            return path.name
    return None


def _spread(folder: Path, chosen: _Chosen, stored: StoredCheckpoints | None, progress: Progress) -> None:
    """Copy the first process's checkpoint to the hosts that lack it, through the store."""
    if stored is None:
        raise StoreError(
            f"{folder}: the hosts of this training do not see the same checkpoints (not all of them that of"
            f" step {chosen.step:,}, which the first one sees); put the store on a disk that all of them see,"
            " or on S3"
        )
    path, name = checkpoint_of(folder, chosen.step), stored_name(chosen.step, chosen.identity)
    damaged: list[str] = []

    def fetch() -> None:
        damaged.extend(filter(None, [stored.fetch(name, folder)]))

    for _ in range(2):
        ranks.run_on_first(lambda listener: ranks.attended(lambda: stored.upload(path), listener), progress)
        damaged.clear()
        ranks.run_on_each_host(fetch, progress)
        if not ranks.any_rank(bool(damaged)):
            return
        # It may be damaged in the store: the first process uploads its own once more.
        stored.skip(name)
    raise StoreError(
        f"{stored.place(name)}: a host of this training read it damaged, also after it was uploaded again;"
        " check the hosts' disks, and run the same command again"
    )
