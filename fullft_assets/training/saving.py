"""Checkpoints on their way from the processes of a training to where it would continue from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fullft_assets.errors import StoreError
from fullft_assets.jobs.ranks import is_first_local_rank, is_first_rank
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import (
    SEAL,
    RunHistory,
    WrittenFile,
    complete,
    digest_of_all,
    room_needed,
    step_of,
    written_file,
)
from fullft_assets.training.stored_checkpoints import StoredCheckpoints, publish_everywhere, stored_name

#: What a thread of each process does next; it is sent the results of all of them.
_Stages = Generator[Callable[[], Any], list[Any], None]


class Saver:
    """Saves one checkpoint after the other, in a thread of each process; all processes call the same methods.

    On a disk that all hosts see the first process moves a checkpoint to its place when all have written their
    files. Hosts with disks of their own upload them, and the checkpoint is in the store alone.

    Attributes:
        saved_step: of the last checkpoint that is complete; None: there is none yet.
    """

    def __init__(self, history: RunHistory, stored: StoredCheckpoints | None):
        self.saved_step: int | None = None
        self._history = history
        self._stored = stored
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._work: Future[Any] | None = None
        self._stages: _Stages | None = None

    def begin(
        self, aside: Path, write: Callable[[], list[str]], *, best: int | None, is_planned: bool
    ) -> None:
        """Begin to save a checkpoint; the one before must be finished.

        Args:
            aside: a folder of its own inside the work folder, to which all but its weights and moments are
                written.
            write: see `Loop.save`.
            best: step of the checkpoint with the lowest validation loss.
            is_planned: whether every run over the same rows writes it.
        """
        self._stages = self._save(aside, write, best, is_planned)
        self._work = self._thread.submit(next(self._stages))

    def look(self) -> None:
        """Go on with the checkpoint that is being saved, if all processes are done with their part."""
        if self._work is not None and not ranks.any_rank(not self._work.done()):
            self._go_on()

    def finish(self) -> None:
        """Wait until the checkpoint that is being saved is complete."""
        while self._work is not None:
            self._go_on()

    def _go_on(self) -> None:
        assert self._work is not None and self._stages is not None
        error, work, self._work = self._work.exception(), self._work, None
        if ranks.any_rank(error is not None):
            self._stages.close()
            raise error or StoreError(
                "another process of this training could not write its part of a checkpoint; its output says"
                " why"
            )
        try:
            self._work = self._thread.submit(self._stages.send(ranks.of_all(work.result())))
        except StopIteration:
            return

    def _save(
        self, aside: Path, write: Callable[[], list[str]], best: int | None, is_planned: bool
    ) -> _Stages:
        step, folder = step_of(aside), aside.parent.parent
        try:
            of_processes: list[dict[str, WrittenFile]] = yield partial(_written, aside, write)
            files = {name: file for each in of_processes for name, file in each.items()}
            with room_needed(folder, f"the checkpoint of step {step:,}"):
                if ranks.from_first(all((aside / name).is_file() for name in files)):
                    if is_first_rank():
                        publish_everywhere(
                            aside, self._history, best, self._stored, files, is_planned=is_planned
                        )
                    ranks.wait()
                else:
                    yield from self._upload(aside, files, of_processes[ranks.number()], best, is_planned)
        finally:
            # Frees the room that an incomplete checkpoint took.
            if is_first_local_rank():
                shutil.rmtree(aside.parent, ignore_errors=True)
        self.saved_step = step

    def _upload(
        self,
        aside: Path,
        files: dict[str, WrittenFile],
        own_files: dict[str, WrittenFile],
        best: int | None,
        is_planned: bool,
    ) -> _Stages:
        stored = self._stored
        if stored is None:
            raise StoreError(
                f"{aside.parent.parent}: the hosts of this training have disks of their own, and each has a"
                " part of its checkpoints; put the store on a disk that all of them see, or on S3"
            )
        name, names = "", list(own_files)
        if is_first_rank():
            stored.copy_beside(aside.parent.parent, aside)
            complete(aside, files, num_incidents=len(self._history.incidents), is_planned=is_planned)
            name = stored_name(step_of(aside), digest_of_all(aside))
            others = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
            names = sorted(others - (files.keys() - own_files.keys()) - {SEAL})
        name = ranks.from_first(name)
        yield partial(stored.upload_files, aside, name, names)
        if is_first_rank():
            stored.add(aside, name, self._history, best)
        ranks.wait()


def _written(aside: Path, write: Callable[[], list[str]]) -> dict[str, WrittenFile]:
    folder = aside.parent.parent
    with room_needed(folder, f"the checkpoint of step {step_of(aside):,}"):
        return {name: written_file(aside / name) for name in write()}
