"""What a run keeps in its work folder so that nothing is lost: checkpoints that exist whole or not at all, and the step log."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from fullft_assets.engine.guards import Course, Incident
from fullft_assets.errors import DiskError, SettingsError, is_disk_full
from fullft_assets.store import sync
from fullft_assets.store.disk import replace_synced

if TYPE_CHECKING:
    from fullft_assets.engine.recipe import Listener

SEAL = "complete.json"
STEP_LOG = "metrics.jsonl"
#: Inside a checkpoint: how many incidents came before it, and whether the plan asked for it.
_ORIGIN = "origin.json"
#: Inside a checkpoint: the digest of each other file.
_DIGESTS = "digests.json"
#: Before the name of a checkpoint whose place another of the same step takes.
_REPLACED = "replaced-"
_CHUNK_BYTES = 2**24
#: Beside the checkpoints: what the work was begun with.
_BEGUN_WITH = "begun_with.json"


def claim(folder: Path, inputs: Mapping[str, str]) -> None:
    """Write down what the work in a folder is begun with; work that was begun with something else is not gone on with.

    Args:
        folder: of the unfinished work.
        inputs: what tells each input apart, by its name.

    Raises:
        SettingsError: its checkpoints are another work's.
    """
    path = folder / _BEGUN_WITH
    if path.is_file():
        begun_with = json.loads(path.read_text())
        for name in sorted({*begun_with, *inputs}):
            if begun_with.get(name) != inputs.get(name):
                raise SettingsError(
                    f"{folder}: the checkpoints there are of a training with another {name}; give this job a key of its own, or delete that folder"
                )
        return
    with room_needed(folder, "a new training"):
        replace_synced(path, json.dumps(dict(inputs)))


def seal(folder: Path) -> None:
    """Sync a checkpoint's files and write the list of them that marks it as whole."""
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    with (folder / SEAL).open("w") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(inner)


def publish(aside: Path, target: Path, *, num_incidents: int, is_planned: bool) -> None:
    """Seal a checkpoint that was written aside and put it in its place.

    A whole one that is there stays, under another name, until the new one has its own: no rename is needed that replaces a folder.

    Args:
        aside: the written folder.
        target: where it belongs; one that is there is replaced.
        num_incidents: incidents of the run so far.
        is_planned: False if a request to stop made it: whether it exists then depends on the moment.
    """
    (aside / _ORIGIN).write_text(json.dumps({"num_incidents": num_incidents, "is_planned": is_planned}))
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    (aside / _DIGESTS).write_text(json.dumps({str(path.relative_to(aside)): _digest(path) for path in files}))
    seal(aside)
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if _is_whole(target):
        if replaced.exists():
            shutil.rmtree(replaced)
        target.rename(replaced)
        sync(target.parent)
    elif target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    sync(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def first_damaged(checkpoint: Path, listener: Listener) -> str | None:
    """Return the name of the first file of a whole checkpoint that is no longer what was written, or None.

    All is read once: 16 bytes a trained weight in fp32.

    Args:
        checkpoint: its folder; one of an earlier version without digests is taken as it is.
        listener: asked between chunks whether to stop.
    """
    digests = checkpoint / _DIGESTS
    if not digests.is_file():
        return None
    known = json.loads(digests.read_text())
    return next((name for name, digest in known.items() if _digest(checkpoint / name, listener) != digest), None)


def give_up(checkpoint: Path) -> None:
    """Have a checkpoint count as not whole."""
    (checkpoint / SEAL).unlink()


def _digest(path: Path, listener: Listener | None = None) -> str:
    """Return what tells a file from a damaged one: not from one that was forged, which a disk does not do, so it may be a fast one."""
    found = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
            if listener is not None:
                listener.raise_if_stopped()
    return found.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on a run's present course."""

    path: Path
    step: int
    is_planned: bool


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint that training would go on from, or None."""
    found = whole_checkpoints(folder, Course(folder))
    return found[-1].path if found else None


def whole_checkpoints(folder: Path, course: Course) -> list[Checkpoint]:
    """Return the checkpoints that are whole and that no roll-back left behind, by step."""
    found: dict[int, Checkpoint] = {}
    for path in all_checkpoints(folder):
        if not _is_whole(path):
            continue
        origin_file = path / _ORIGIN
        origin = json.loads(origin_file.read_text()) if origin_file.is_file() else {"num_incidents": 0, "is_planned": True}
        if course.is_on(step_of(path), origin["num_incidents"]):
            found[step_of(path)] = Checkpoint(path, step_of(path), origin["is_planned"])
    return list(found.values())


def last_good(folder: Path, course: Course, trouble_since: int) -> int:
    """Return the step of the checkpoint to roll back to; 0 = the base model.

    A checkpoint is good if a healthy step was taken from its weights. Only planned ones count, so that the
    outcome does not depend on when a run was stopped and resumed.
    """
    steps = [found.step for found in whole_checkpoints(folder, course) if found.is_planned and found.step + 1 < trouble_since]
    return max(steps, default=0)


def retain(folder: Path, course: Course, *, newest: int, best: int | None) -> None:
    """Delete all checkpoints but the newest planned ones, the best one and the newest of all.

    Args:
        folder: of the work.
        course: its incidents.
        newest: number of planned checkpoints kept.
        best: step of the one with the lowest validation loss.
    """
    whole = whole_checkpoints(folder, course)
    kept = {found.step for found in [found for found in whole if found.is_planned][-newest:] + whole[-1:]}
    for path in all_checkpoints(folder):
        if step_of(path) not in {*kept, best} or path != checkpoint_of(folder, step_of(path)):
            shutil.rmtree(path)


def all_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders, whole or not, by step; of two of a step the one that is or was being replaced comes first."""
    return sorted([*folder.glob(f"{_REPLACED}checkpoint-*"), *folder.glob("checkpoint-*")], key=step_of)


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return the checkpoint of a step: the one that was being replaced, where a kill left only that whole."""
    target = folder / f"checkpoint-{step}"
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    return replaced if _is_whole(replaced) and not _is_whole(target) else target


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_whole(checkpoint: Path) -> bool:
    seal_file = checkpoint / SEAL
    if not seal_file.is_file():
        return False
    files = json.loads(seal_file.read_text())
    return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in files.items())


@contextmanager
def room_needed(folder: Path, what: str) -> Iterator[None]:
    """Turn the many ways to say that a disk is full into one line.

    Args:
        folder: where it is written.
        what: what is written.

    Raises:
        DiskError: there is no room.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        reason = " ".join(str(error).split())[:120]
        whole = latest_checkpoint(folder)
        left = (
            f"{whole.name} is whole and the same command resumes there" if whole else "no checkpoint is whole; the same command begins anew"
        )
        raise DiskError(
            f"{folder}: no room for {what} ({free:.2f} GiB free; {reason}); free space, raise the quota or lower "
            f"training.keep_checkpoints; {left}"
        ) from error


class StepLog:
    """The step metrics as JSON lines; on resume, lines after the checkpoint are dropped and new ones appended.

    Incidents stay: the steps that they undid are gone, that they happened is not.

    Args:
        path: the file.
        resumed_from: step of the checkpoint; 0 = a new start.
        is_writer: False on every rank but the first, which only reads.
        incidents: of the run so far; those not yet in the file are added.
    """

    def __init__(self, path: Path, resumed_from: int, *, is_writer: bool = True, incidents: Sequence[Incident] = ()):
        self.path, self.is_writer = path, is_writer
        lines = self.read()
        #: Training seconds of the legs before this one, work that a kill undid included: it was paid for, too.
        self.seconds_before = max((line.get("seconds", 0.0) for line in lines), default=0.0)
        self.seconds_before = max([self.seconds_before, *(incident.seconds for incident in incidents)])
        kept = [incident.line() for incident in incidents]
        lines = [line for line in lines if line in kept or ("to_step" not in line and line["step"] <= resumed_from)]
        self.lines = [*lines, *(line for line in kept if line not in lines)]
        if is_writer:
            with room_needed(path.parent, "the step log"):
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_synced(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        self.lines.append(line)
        if self.is_writer:
            with room_needed(self.path.parent, "the step log"), self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Have the lines so far on the disk: a checkpoint's rules are shown them when it is resumed."""
        if self.is_writer:
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def best_step(self, max_general_rise: float | None = None) -> int | None:
        """Return the step with the lowest validation loss, the earliest of equals; None before the first validation.

        Args:
            max_general_rise: steps with a larger one do not count. Default: no limit.
        """
        scored = [line for line in self.lines if math.isfinite(line.get("validation_loss", math.nan))]
        if max_general_rise is not None:
            scored = [line for line in scored if line["general_rise"] <= max_general_rise]
        return min(scored, key=lambda line: line["validation_loss"])["step"] if scored else None

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; one torn by a kill is left out."""
        try:
            written = self.path.read_text()
        except FileNotFoundError:  # a new start; or the first rank is done and has tidied up
            return []
        lines = []
        for text in written.splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines
