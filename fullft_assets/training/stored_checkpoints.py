"""Checkpoints on their way from the processes of a training to where it would continue from, and those in the
bucket of its store, where every machine finds them.

There each is in a folder of its own, named by its step and its content; its seal, the list of its files
with their sizes, is uploaded last and removed first. So a machine that was taken for dead and is not (a
lease passed to its successor) can never overwrite a file of another one. That it neither adds nor removes a
checkpoint is what the lease is for, which is checked right before each seal is written or removed: for 20 s
after its last renewal, while a successor waits for 40 s. What this does not protect against is a single
request that is under way for longer than the 20 s between; it could leave one more checkpoint of this
training there, which is complete, or gone.
"""

import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fullft_assets.errors import StoreError, without_secrets
from fullft_assets.progress import Listener, Progress
from fullft_assets.ranks import is_first_local_rank, is_first_rank
from fullft_assets.store import Store, checkpoints_ref
from fullft_assets.store.disk import one_at_a_time
from fullft_assets.store.manifest import is_inside
from fullft_assets.store.pointers import Lease
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import (
    HISTORY_FILE,
    ORIGIN,
    SEAL,
    STEP_LOG,
    Checkpoint,
    RunHistory,
    WrittenFile,
    checkpoint_of,
    complete,
    complete_checkpoints,
    digest_of_all,
    first_damaged,
    identity_of,
    kept_names,
    publish,
    retain,
    room_needed,
    step_of,
    written_file,
)
from fullft_assets.training.recorder import MLFLOW_RUN

#: Inside a checkpoint: copies of what is beside the checkpoints and led to it.
_BESIDE = "beside"
_COPIED = (MLFLOW_RUN, STEP_LOG)
#: Another training of the same artifact that is alive is not waited for; one that is gone is known by then.
_PATIENCE_SECONDS = 60.0
#: Before what failed is tried again at the end: a stop leaves 30 s by default.
_PAUSES = (1.0, 2.0, 4.0)


#: Of processes that write nothing.
_NO_LEASE = Lease()


@dataclass(frozen=True)
class _Offer:
    """Checkpoints that are to be uploaded, and what those that are kept follow from."""

    checkpoints: list[Path]
    history: RunHistory
    best: int | None


class StoredCheckpoints:
    """The checkpoints of one training in its store.

    Args:
        lease: of the first process, which alone uploads and removes; the others have none.
    """

    def __init__(
        self, store: Store, case: str, stage: str, key: str, progress: Progress, lease: Lease = _NO_LEASE
    ):
        self._store = store
        self._root = checkpoints_ref(case, stage, key)
        self._progress = progress
        self._lease = lease
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._last: Future[bool] | None = None
        self._offer: _Offer | None = None
        #: Is being uploaded, and must not be deleted.
        self.uploading: Path | None = None
        self._listed: list[Checkpoint] | None = None

    def complete(self, history: RunHistory) -> list[Checkpoint]:
        """Return those that are complete and that no roll-back undid, by step; only the first process's list
        is up to date.
        """
        valid = [
            checkpoint
            for checkpoint in self._sealed()
            if history.includes(checkpoint.step, checkpoint.num_incidents)
        ]
        # Of two of one step, the planned one: a stop wrote the other.
        return list(
            {
                checkpoint.step: checkpoint
                for checkpoint in sorted(
                    valid, key=lambda checkpoint: (checkpoint.step, checkpoint.is_planned)
                )
            }.values()
        )

    def _sealed(self) -> list[Checkpoint]:
        if self._listed is None:
            folders: dict[str, dict[str, int]] = defaultdict(dict)
            for path, size in self._store.sizes(self._root).items():
                folder, _, name = path.removeprefix(f"{self._root}/").partition("/")
                folders[folder][name] = size
            checkpoints = [self._look(folder, sizes) for folder, sizes in folders.items() if SEAL in sizes]
            self._listed = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
        return self._listed

    def _look(self, folder: str, sizes: Mapping[str, int]) -> Checkpoint | None:
        try:
            seal, origin = (
                json.loads(self._store.read_bytes(f"{self._root}/{folder}/{name}") or b"null")
                for name in (SEAL, ORIGIN)
            )
            damaged_file = next((name for name, size in seal.items() if sizes.get(name) != size), None)
            if damaged_file is None:
                return Checkpoint(folder, _step_of(folder), origin["num_incidents"], origin["is_planned"])
        except (ValueError, KeyError, AttributeError, TypeError):
            damaged_file = SEAL
        self._progress.say(f"{self.place(folder)}/{damaged_file} is damaged; this checkpoint is skipped")
        return None

    def place(self, name: str) -> str:
        """Return the URI of a checkpoint."""
        return f"{self._store.url}/{self._root}/{name}"

    def fetch(self, name: str, folder: Path) -> str | None:
        """Copy a checkpoint into the work folder of this machine; return the first file that is not what was
        written, or None.

        Of several processes that share the folder, one copies.
        """
        target = checkpoint_of(folder, _step_of(name))
        with one_at_a_time(folder / ".fetching"):
            if not _has_name(target, name) or first_damaged(target):
                for leftover in folder.glob(".fetched-*"):
                    shutil.rmtree(leftover)
                partial = Path(tempfile.mkdtemp(prefix=".fetched-", dir=folder))
                try:
                    # What a disk or a transfer damaged once may arrive whole the next time.
                    if damaged_file := self._fetch(name, partial) and self._fetch(name, partial):
                        return damaged_file
                    shutil.rmtree(target, ignore_errors=True)
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return None

    def _fetch(self, name: str, partial: Path) -> str | None:
        seal = self._store.read_bytes(f"{self._root}/{name}/{SEAL}")
        if seal is None:
            return SEAL
        for file in json.loads(seal):
            if not is_inside(file):  # whoever can write into the store must not write elsewhere
                return file
            try:
                self._store.download(f"{self._root}/{name}/{file}", partial / file)
            except FileNotFoundError:
                return file
        (partial / SEAL).write_bytes(seal)
        return first_damaged(partial) if _has_name(partial, name) else SEAL

    def copy_beside(self, folder: Path, aside: Path) -> None:
        """Copy what is beside the checkpoints into one that is not sealed yet: another machine continues the
        step log with it.
        """
        (aside / _BESIDE).mkdir()
        for name in _COPIED:
            _copy(folder / name, aside / _BESIDE / name)

    def offer(self, checkpoints: Sequence[Path], history: RunHistory, *, best: int | None) -> None:
        """Let a thread upload these checkpoints, in this order, and then remove the checkpoints that are no
        longer kept.

        An upload that fails is said, and tried again with the next offer and by `finish`. An offer replaces
        what the one before has not begun.

        Args:
            best: see `checkpoints.retain`.

        Raises:
            StoreError: another machine has taken over this training.
        """
        if self._lease.is_lost:
            raise StoreError(
                f"{self._store.url}: another machine has taken over this training; this one stops, and leaves"
                " its checkpoints alone"
            )
        self._offer = _Offer(list(checkpoints), history, best)
        self._last = self._thread.submit(self._upload_offered, self._offer)

    def _upload_offered(self, offer: _Offer) -> bool:
        """Return whether all of it was done; a checkpoint that cannot be copied holds no other one up."""
        has_failed = False
        for path in offer.checkpoints:
            self.uploading = path
            if offer is not self._offer:
                break
            try:
                self.upload(path)
            except Exception as error:
                # Training may have deleted one that has waited for long.
                if path.exists():
                    has_failed = True
                    self._say_failed(f"{path.name} could not be copied to", error)
        self.uploading = None
        try:
            self._retain(offer.history, offer.best)
        except Exception as error:
            self._say_failed("the checkpoints could not be updated in", error)
            return False
        return not has_failed

    def _retain(self, history: RunHistory, best: int | None) -> None:
        self._remove_all_but(kept_names(self.complete(history), best=best))

    def _say_failed(self, step: str, error: Exception) -> None:
        # A bucket may fail in any way; training itself need not end for this.
        reason = without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__
        self._progress.say(f"warning: {step} {self._store.url} ({reason}); this is tried again")

    def upload(self, path: Path) -> None:
        """Upload a checkpoint, unless it is there."""
        name = _name_of(path)
        seal = (path / SEAL).read_bytes()
        # Those that a roll-back has undone meanwhile are among them: they are not uploaded again.
        if name in {checkpoint.name for checkpoint in self._sealed()}:
            return
        self._lease.require()
        self.upload_files(path, name, list(json.loads(seal)))
        if not _has_name(path, name):
            raise StoreError("it was replaced meanwhile")
        self._add(path, name, seal)

    def upload_files(self, path: Path, name: str, files: list[str]) -> None:
        """Upload files of a checkpoint that is not sealed in the store, where its name is this; each host of
        a training uploads its own.
        """
        self._store.upload(path, f"{self._root}/{name}", files)

    def add(self, path: Path, name: str, history: RunHistory, best: int | None) -> None:
        """Seal a checkpoint whose files all hosts have uploaded, and remove those that are no longer kept."""
        self._add(path, name, (path / SEAL).read_bytes())
        self._retain(history, best)

    def _add(self, path: Path, name: str, seal: bytes) -> None:
        self._lease.require()
        self._store.write_bytes(f"{self._root}/{name}/{SEAL}", seal)
        origin = json.loads((path / ORIGIN).read_text())
        self._sealed().append(Checkpoint(name, step_of(path), origin["num_incidents"], origin["is_planned"]))

    def finish(self) -> None:
        """Wait until what was offered is uploaded; what failed is tried a few times more, for a process that
        ends makes no other offer.
        """
        if self._last is None:
            return
        for pause in _PAUSES:
            if self._last.result() or self._lease.is_lost or self._offer is None:
                return
            time.sleep(pause)
            self._last = self._thread.submit(self._upload_offered, self._offer)
        if not self._last.result():
            self._progress.say(
                f"warning: the newest checkpoint is not in {self._store.url}; another machine continues from"
                " an earlier one"
            )

    def skip(self, name: str) -> None:
        """Count a checkpoint as not there: it arrives damaged on this machine.

        It may be whole, so it stays in the store until the next one of this machine is complete there; or is
        replaced by the same one.
        """
        self._listed = [checkpoint for checkpoint in self._listed or [] if checkpoint.name != name]

    def remove_all(self) -> None:
        """Remove all checkpoints and what is kept beside them: the training's artifact is in the store."""
        self._offer = None
        self.finish()
        self._lease.require()
        self._remove_all_but(set())
        self._store.remove_folder(self._root)

    def _remove_all_but(self, names: set[str]) -> None:
        # Also the folders of uploads that were killed.
        for folder in self._store.names(self._root):
            if folder not in (*names, HISTORY_FILE):
                self._lease.require()
                self._store.remove(f"{self._root}/{folder}/{SEAL}")
                self._store.remove_folder(f"{self._root}/{folder}")
        self._listed = [checkpoint for checkpoint in self._listed or [] if checkpoint.name in names]

    def read_history(self) -> bytes | None:
        """Return the history of the run as the machine that recorded the last incident wrote it, or None."""
        return self._store.read_bytes(f"{self._root}/{HISTORY_FILE}")

    def write_history(self, text: str) -> None:
        """Write the history of the run; a process whose memory ran out does so without the lease, which is
        the first one's.
        """
        self._lease.require()
        self._store.write_bytes(f"{self._root}/{HISTORY_FILE}", text.encode())


@contextmanager
def stored_checkpoints(
    store: Store, case: str, stage: str, key: str, progress: Progress
) -> Iterator[StoredCheckpoints | None]:
    """Give the checkpoints of a training in its store, for this process alone among all machines; None of a
    store on a disk.

    At the end it waits for the uploads: a process that was asked to stop has its last checkpoint there.

    Raises:
        StoreError: another machine trains the same.
    """
    if store.is_local or not is_first_rank():
        yield None if store.is_local else StoredCheckpoints(store, case, stage, key, progress)
        return
    with store.alone(checkpoints_ref(case, stage, key), _PATIENCE_SECONDS) as lease:
        checkpoints = StoredCheckpoints(store, case, stage, key, progress, lease)
        try:
            yield checkpoints
        finally:
            checkpoints.finish()


def publish_everywhere(
    aside: Path,
    history: RunHistory,
    best: int | None,
    checkpoints: StoredCheckpoints | None,
    files: Mapping[str, WrittenFile] = MappingProxyType({}),
    *,
    is_planned: bool,
) -> None:
    """Move a checkpoint that was written aside to its place in the work folder, delete those that are no
    longer kept, and offer it to the store, if there is one.

    Args:
        aside: the checkpoint's folder, in a folder of its own inside the work folder.
        best: step of the checkpoint with the lowest validation loss.
        files: what is known of its files.
        is_planned: whether every run over the same rows writes it.
    """
    folder = aside.parent.parent
    target = folder / aside.name
    if checkpoints is not None:
        checkpoints.copy_beside(folder, aside)
    publish(aside, target, files, num_incidents=len(history.incidents), is_planned=is_planned)
    retain(folder, history, best=best, spared=None if checkpoints is None else checkpoints.uploading)
    if checkpoints is not None:
        # The best one first: who finds the newest one there finds all that it needs.
        best_checkpoints = [
            folder / checkpoint.name
            for checkpoint in complete_checkpoints(folder, history)
            if checkpoint.step == best
        ]
        checkpoints.offer([*best_checkpoints, target], history, best=best)


def stored_name(step: int, identity: str | None) -> str:
    """Return the name of a checkpoint's folder in the store: it names the content, by
    `checkpoints.identity_of`.
    """
    return f"{step:08d}-{identity}"


def _step_of(name: str) -> int:
    return int(name.split("-")[0])


def _name_of(checkpoint: Path) -> str:
    return stored_name(step_of(checkpoint), identity_of(checkpoint))


def _has_name(checkpoint: Path, name: str) -> bool:
    return stored_name(_step_of(name), identity_of(checkpoint)) == name


def restore_beside(checkpoint: Path, folder: Path) -> None:
    """Put the step log, and what else led to a checkpoint, in place of the folder's own, unless that log
    includes it already.
    """
    beside = checkpoint / _BESIDE
    if _lines(beside / STEP_LOG) <= _lines(folder / STEP_LOG):
        return
    for name in _COPIED:  # the log last: a kill before that repeats all of it
        (folder / name).unlink(missing_ok=True)
        _copy(beside / name, folder / name)


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        shutil.copy(source, target)


def _lines(log: Path) -> set[str]:
    return set(log.read_text().splitlines()) if log.is_file() else set()


def newest_checkpoint(
    folder: Path, history: RunHistory, checkpoints: StoredCheckpoints | None, progress: Progress
) -> Path | None:
    """Return the checkpoint that training continues from, whole and in this host's work folder, or None; all
    processes must call this.

    It is the newest undamaged one of the first process's work folder and of the store.

    Raises:
        StoreError: hosts have work folders of their own, and no store to copy it from.
    """
    if not ranks.from_first(is_first_rank() and any(_newest(folder, history, checkpoints))):
        return None
    name = ranks.run_on_first(
        lambda listener: _choose(folder, history, checkpoints, progress, listener), progress
    )
    if name is None:
        return None
    path = checkpoint_of(folder, _step_of(name))
    if checkpoints is not None and sum(ranks.of_all(is_first_local_rank())) > 1:
        # The other hosts fetch it from there.
        ranks.by_first(partial(checkpoints.upload, path), progress)
    problems: list[str | None] = []

    def verify() -> None:
        if not is_first_rank():  # it has verified its own
            problems.append(first_damaged(path) if checkpoints is None else checkpoints.fetch(name, folder))

    ranks.run_on_each_host(verify, progress)
    if not ranks.any_rank(any(problems) or not _has_name(path, name)):
        return path
    if checkpoints is None:
        raise StoreError(
            f"{folder}: the hosts of this training do not see the same checkpoints (not all of them that of"
            f" step {step_of(path):,}, which the first one sees); put the store on a disk that all of them"
            " see, or on S3"
        )
    raise StoreError(
        f"{checkpoints.place(name)}: a host of this training read it damaged; check the hosts' disks, and"
        " remove it there if it stays so"
    )


def checkpoint_of_step(
    step: int, folder: Path, history: RunHistory, checkpoints: StoredCheckpoints | None, listener: Listener
) -> Path:
    """Return the checkpoint of a step that no roll-back undid, whole and in the work folder; the first
    process alone calls this.

    Raises:
        StoreError: it is missing or damaged, here and in the store.
    """
    path = checkpoint_of(folder, step)
    problem = f"{path} is missing"
    if any(checkpoint.step == step for checkpoint in complete_checkpoints(folder, history)):
        if (damaged_file := first_damaged(path, listener)) is None:
            return path
        problem = f"{path / damaged_file} is damaged"
    if checkpoints is None:
        raise StoreError(problem)
    for name in [checkpoint.name for checkpoint in checkpoints.complete(history) if checkpoint.step == step]:
        if (damaged_file := ranks.attended(partial(checkpoints.fetch, name, folder), listener)) is None:
            return path
        problem = f"{checkpoints.place(name)}/{damaged_file} is damaged"
    raise StoreError(problem)


def _newest(
    folder: Path, history: RunHistory, checkpoints: StoredCheckpoints | None
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    return complete_checkpoints(folder, history)[-1:], (
        checkpoints.complete(history)[-1:] if checkpoints is not None else []
    )


def _choose(
    folder: Path,
    history: RunHistory,
    checkpoints: StoredCheckpoints | None,
    progress: Progress,
    listener: Listener,
) -> str | None:
    while True:
        here, there = _newest(folder, history, checkpoints)
        if not here and not there:
            return None
        is_here = not there or bool(here and here[0].step >= there[0].step)
        newest = here[0] if is_here else there[0]
        path = checkpoint_of(folder, newest.step)
        if is_here or checkpoints is None:
            damaged_file = first_damaged(path, listener)
            uri = str(path)
        else:
            damaged_file = ranks.attended(partial(checkpoints.fetch, newest.name, folder), listener)
            uri = checkpoints.place(newest.name)
        if damaged_file is None:
            # It may have been copied here for another process, or a kill came between it and its log.
            restore_beside(path, folder)
            return _name_of(path)
        if is_here or checkpoints is None:
            (path / SEAL).unlink()  # training never continues from it
        else:
            checkpoints.skip(newest.name)
        progress.say(
            f"{uri}/{damaged_file} is damaged; continuing from the checkpoint before, if there is one"
        )


#: What a thread of each process does next; it is sent the results of all of them.
_Stages = Generator[Callable[[], Any], list[Any], None]


class Saver:
    """Saves one checkpoint after the other, in a thread of each process; all processes call the same methods.

    On a disk that all hosts see the first process moves a checkpoint to its place when all have written their
    files. Hosts with disks of their own upload them, and the checkpoint is in the store alone.

    Attributes:
        saved_step: of the last checkpoint that is complete; None: there is none yet.
    """

    def __init__(self, history: RunHistory, checkpoints: StoredCheckpoints | None):
        self.saved_step: int | None = None
        self._history = history
        self._stored = checkpoints
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
        work = self._work
        self._work = None
        error = work.exception()
        if ranks.any_rank(error is not None):
            self._stages.close()
            raise error or StoreError(
                "another process of this training could not write its part of a checkpoint; its output says"
                " why"
            )
        with suppress(StopIteration):
            self._work = self._thread.submit(self._stages.send(ranks.of_all(work.result())))

    def _save(
        self, aside: Path, write: Callable[[], list[str]], best: int | None, is_planned: bool
    ) -> _Stages:
        step = step_of(aside)
        try:
            of_processes: list[dict[str, WrittenFile]] = yield partial(_written, aside, write)
            files = {name: file for files in of_processes for name, file in files.items()}
            with room_needed(aside.parent.parent, f"the checkpoint of step {step:,}"):
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
        checkpoints = self._stored
        if checkpoints is None:
            raise StoreError(
                f"{aside.parent.parent}: the hosts of this training have disks of their own, and each has a"
                " part of its checkpoints; put the store on a disk that all of them see, or on S3"
            )
        name = ""
        names = list(own_files)
        if is_first_rank():
            checkpoints.copy_beside(aside.parent.parent, aside)
            complete(aside, files, num_incidents=len(self._history.incidents), is_planned=is_planned)
            name = stored_name(step_of(aside), digest_of_all(aside))
            files_here = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
            names = sorted(files_here - (files.keys() - own_files.keys()) - {SEAL})
        name = ranks.from_first(name)
        yield partial(checkpoints.upload_files, aside, name, names)
        if is_first_rank():
            checkpoints.add(aside, name, self._history, best)
        ranks.wait()


def _written(aside: Path, write: Callable[[], list[str]]) -> dict[str, WrittenFile]:
    with room_needed(aside.parent.parent, f"the checkpoint of step {step_of(aside):,}"):
        return {name: written_file(aside / name) for name in write()}
