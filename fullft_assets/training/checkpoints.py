"""The work folder of a run: checkpoints that are complete or not there at all, the step log, and the history
of incidents, with what the next segment of training changes because of each. No torch here.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from xxhash import xxh3_128

from fullft_assets.errors import DiskError, is_disk_full
from fullft_assets.progress import Listener
from fullft_assets.store import sync
from fullft_assets.store.disk import replace_synced

#: In the folder of the unfinished work.
HISTORY_FILE = "run_history.json"

IncidentKind = Literal["roll_back", "out_of_memory", "early_stop"]


@dataclass(frozen=True)
class Incident:
    """An event after which a run continues differently from planned. It is recorded before the run acts on
    it.

    Attributes:
        kind: `roll_back`: back to `to_step` with a lower learning rate; `out_of_memory`: smaller
            micro-batches from `to_step` on; `early_stop`: `to_step` is the last step.
        to_step: the checkpoint that training continues from; 0 = the base model.
        seconds: training seconds up to then, over all segments.
        learning_rate: the peak rate from then on.
    """

    kind: IncidentKind
    step: int
    to_step: int
    reason: str
    seconds: float
    rule: str | None = None
    learning_rate: float | None = None
    micro_batch_size: int | None = None

    def line(self) -> dict[str, Any]:
        """Return it as an event of the step log."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return {"step": self.step, "event": fields.pop("kind"), **fields}


class RunHistory:
    """The incidents of a run so far, stored in its work folder.

    Args:
        is_writer: False on every rank but the first.
        stored_history: what other machines recorded; the longer history continues the other one.
        store: also writes each history where other machines find it; at once if that one is behind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_writer: bool = True,
        stored_history: bytes | None = None,
        store: Callable[[str], None] | None = None,
    ):
        self._path = folder / HISTORY_FILE
        self._is_writer = is_writer
        self._store = store
        there = json.loads(stored_history or b"[]")
        here = json.loads(self._path.read_bytes()) if self._path.is_file() else []
        self.incidents = [Incident(**fields) for fields in max(there, here, key=len)]
        if is_writer and store is not None and len(here) > len(there):
            store(self._text())  # it was recorded while the store did not answer

    def add(self, incident: Incident, *, is_local: bool = False) -> None:
        """Record an incident; it is on the disk before anything acts on it.

        Args:
            is_local: it happened on this rank alone, which therefore writes it.
        """
        self.incidents.append(incident)
        if self._is_writer or is_local:
            replace_synced(self._path, self._text())
            if self._store is not None:
                self._store(self._text())

    def _text(self) -> str:
        return json.dumps([asdict(incident) for incident in self.incidents], indent=1)

    @property
    def num_roll_backs(self) -> int:
        """Roll-backs so far."""
        return sum(incident.kind == "roll_back" for incident in self.incidents)

    @property
    def learning_rate(self) -> float | None:
        """The peak rate since the last roll-back, or None."""
        return next((i.learning_rate for i in reversed(self.incidents) if i.learning_rate is not None), None)

    @property
    def micro_batch_size(self) -> int | None:
        """Rows a forward pass since memory ran out last, or None."""
        return next(
            (i.micro_batch_size for i in reversed(self.incidents) if i.micro_batch_size is not None), None
        )

    @property
    def end_step(self) -> int | None:
        """The step at which training ended early, or None."""
        return next((i.to_step for i in self.incidents if i.kind == "early_stop"), None)

    def includes(self, step: int, num_incidents: int) -> bool:
        """Return whether a checkpoint of this step, written after so many incidents, is still valid: no later
        incident undid it.
        """
        return all(step <= incident.to_step for incident in self.incidents[num_incidents:])


#: Newest planned checkpoints that are kept, beside the best one by validation loss.
NUM_NEWEST = 2
SEAL = "complete.json"
STEP_LOG = "metrics.jsonl"
#: Inside a checkpoint: how many incidents came before it, whether it was planned, and versions of libraries.
ORIGIN = "origin.json"
#: Inside a checkpoint: the digest of each other file.
_DIGESTS = "digests.json"
_CHUNK_BYTES = 2**24
VERSIONS = "versions"
_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the bits of a training, CUDA's where torch has it."""
    from torch.version import cuda

    return {name: version(name) for name in _LIBRARIES} | ({} if cuda is None else {"cuda": cuda})


def changed_versions(checkpoint: Path) -> str | None:
    """Return which libraries had another version when a checkpoint was written, in words, or None."""
    before = (_object_in(checkpoint / ORIGIN) or {}).get(VERSIONS, {})
    now = library_versions()
    return (
        ", ".join(
            f"{name} {before.get(name)} -> {now.get(name)}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        )
        or None
    )


#: Digest and bytes of a file of a checkpoint, as the process that wrote it knows them.
WrittenFile = tuple[str, int]


def written_file(path: Path) -> WrittenFile:
    """Sync a file that was just written, and read it once."""
    sync(path)
    return _digest(path), path.stat().st_size


def complete(
    aside: Path, written_files: Mapping[str, WrittenFile], *, num_incidents: int, is_planned: bool
) -> None:
    """Seal a checkpoint that was written aside, with its origin and the digests of its files: the list of its
    files, which are synced, marks it as complete.

    Args:
        written_files: what is known of its files, which need not be on this host.
        is_planned: False if a request to stop or the clock caused it: such ones differ between runs.
    """
    (aside / ORIGIN).write_text(
        json.dumps({"num_incidents": num_incidents, "is_planned": is_planned, VERSIONS: library_versions()})
    )
    names = [str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()]
    digests = {name: digest for name, (digest, _) in written_files.items()}
    digests |= {name: _digest(aside / name) for name in names if name not in written_files}
    (aside / _DIGESTS).write_text(json.dumps(dict(sorted(digests.items()))))
    files = {str(path.relative_to(aside)): path for path in sorted(aside.rglob("*")) if path.is_file()}
    for path in files.values():
        sync(path)
    sizes = {name: num_bytes for name, (_, num_bytes) in written_files.items()}
    sizes |= {name: path.stat().st_size for name, path in files.items()}
    (aside / SEAL).write_text(json.dumps(sizes))
    for path in (aside / SEAL, *(inner for inner in aside.rglob("*") if inner.is_dir()), aside):
        sync(path)


def publish(
    aside: Path,
    target: Path,
    written_files: Mapping[str, WrittenFile] = MappingProxyType({}),
    *,
    num_incidents: int,
    is_planned: bool,
) -> None:
    """Complete a checkpoint that was written aside, see `complete`, and move it to its place; one that is
    there was undone by a roll-back, or is not complete.
    """
    complete(aside, written_files, num_incidents=num_incidents, is_planned=is_planned)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    sync(target.parent)


def first_damaged(checkpoint: Path, listener: Listener | None = None) -> str | None:
    """Return the name of the first file of a complete checkpoint whose content is not what was written, or
    cannot be loaded; or None.

    All files are read once: 16 bytes a trained weight in fp32.
    """
    digests = _object_in(checkpoint / _DIGESTS)
    if digests is None:
        return _DIGESTS
    return next(
        (
            name
            for name, digest in digests.items()
            if _digest(checkpoint / name, listener) != digest or not _is_loadable(checkpoint / name)
        ),
        None,
    )


def _is_loadable(path: Path) -> bool:
    """Return whether torch or safetensors can load a file of theirs; no weights are read."""
    import torch
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            safe_open(path, "pt")
        elif path.suffix == ".pt":
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # what they raise for a forged file is not defined
        return False
    return True


def identity_of(checkpoint: Path) -> str | None:
    """Return a digest of a checkpoint's content, or None if it is not complete."""
    return digest_of_all(checkpoint) if is_complete(checkpoint) else None


def digest_of_all(checkpoint: Path) -> str:
    """Return a digest of a sealed checkpoint's content, wherever its files are."""
    return _digest(checkpoint / _DIGESTS)


def _digest(path: Path, listener: Listener | None = None) -> str:
    """Return a digest that shows damage. It need not resist forgery, so it is a fast one."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if listener is not None:
                listener.raise_if_stopped()
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that the run may continue from.

    Attributes:
        name: of its folder, below the work folder or in the store.
        num_incidents: of the run before it was written.
        is_planned: False if a request to stop or the clock caused it.
    """

    name: str
    step: int
    num_incidents: int
    is_planned: bool


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint that training would continue from, or None."""
    checkpoints = complete_checkpoints(folder, RunHistory(folder))
    return folder / checkpoints[-1].name if checkpoints else None


def complete_checkpoints(folder: Path, history: RunHistory) -> list[Checkpoint]:
    """Return the checkpoints that are complete and that no roll-back undid, by step."""
    checkpoints = []
    for path in all_checkpoints(folder):
        origin = _object_in(path / ORIGIN) if is_complete(path) else None
        if origin is not None and history.includes(step_of(path), origin["num_incidents"]):
            checkpoints.append(
                Checkpoint(path.name, step_of(path), origin["num_incidents"], origin["is_planned"])
            )
    return checkpoints


def last_good(complete: Iterable[Checkpoint], trouble_since: int) -> int:
    """Return the step of the checkpoint to roll back to; 0 = the base model.

    A checkpoint is good if a healthy step was taken from its weights. Only planned ones count, so that the
    outcome does not depend on when a run was stopped and resumed.
    """
    return max(
        (
            checkpoint.step
            for checkpoint in complete
            if checkpoint.is_planned and checkpoint.step + 1 < trouble_since
        ),
        default=0,
    )


def kept_names(complete: Sequence[Checkpoint], *, best: int | None) -> set[str]:
    """Return the names of the checkpoints to keep: the newest planned ones, the newest of all and the best
    one.

    Args:
        complete: by step.
        best: step of the one with the lowest validation loss.
    """
    planned = [checkpoint for checkpoint in complete if checkpoint.is_planned]
    steps = {checkpoint.step for checkpoint in [*planned[-NUM_NEWEST:], *complete[-NUM_NEWEST:]]} | {best}
    return {checkpoint.name for checkpoint in complete if checkpoint.step in steps}


def retain(folder: Path, history: RunHistory, *, best: int | None, spared: Path | None = None) -> None:
    """Delete all checkpoints that are no longer kept, see `kept_names`, and those that a roll-back undid.

    Args:
        spared: is being read.
    """
    names = kept_names(complete_checkpoints(folder, history), best=best)
    for path in all_checkpoints(folder):
        if path != spared and path.name not in names:
            shutil.rmtree(path)


def all_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders, complete or not, by step."""
    return sorted(folder.glob("checkpoint-*"), key=step_of)


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is sealed and has all files that its seal lists."""
    files = _object_in(checkpoint / SEAL)
    return files is not None and all(
        (checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in files.items()
    )


def _object_in(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def room_needed(folder: Path, content: str) -> Iterator[None]:
    """Turn the many errors of a full disk into one line."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        reason = " ".join(str(error).split())[:120]
        latest = latest_checkpoint(folder)
        next_start = (
            f"the same command resumes at {latest.name}"
            if latest
            else "there is no checkpoint; the same command starts again"
        )
        raise DiskError(
            f"{folder}: no room for {content} ({free:.2f} GiB free; {reason}); free space or raise the quota;"
            f" {next_start}"
        ) from error


class StepLog:
    """The step metrics as JSON lines; on resume, lines after the checkpoint are dropped and new ones
    appended.

    Incidents stay, although the steps that they undid are dropped.

    Args:
        resumed_from: step of the checkpoint; 0 = a new start.
        is_writer: False on every rank but the first: the others only read.
        incidents: of the run so far; those not yet in the file are added.
    """

    def __init__(
        self, path: Path, resumed_from: int, *, is_writer: bool = True, incidents: Sequence[Incident] = ()
    ):
        self.path = path
        self.is_writer = is_writer
        lines = self.read()
        seconds = [
            *(line.get("seconds", 0.0) for line in lines),
            *(incident.seconds for incident in incidents),
        ]
        #: Training seconds of earlier segments, including work that a kill undid: it was paid for, too.
        self.seconds_before = max(seconds, default=0.0)
        incident_lines = [incident.line() for incident in incidents]
        lines = [
            line
            for line in lines
            if line in incident_lines or ("to_step" not in line and line["step"] <= resumed_from)
        ]
        self.lines = [*lines, *(line for line in incident_lines if line not in lines)]
        if is_writer:
            with room_needed(path.parent, "the step log"):
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_synced(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, Any]) -> None:
        """Append one line and pass it to the operating system."""
        self.lines.append(line)
        if self.is_writer:
            with room_needed(self.path.parent, "the step log"), self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Write the lines so far to the disk: the guards are shown them when the checkpoint is resumed."""
        if self.is_writer:
            sync(self.path)

    def best_step(self, max_general_rise: float | None = None) -> int | None:
        """Return the step with the lowest validation loss, the earliest of equals; None before the first
        validation.

        Args:
            max_general_rise: steps with a larger one do not count. Default: no limit.
        """
        scored = [
            line
            for line in self.lines
            if math.isfinite(line.get("validation_loss", math.nan))
            and (max_general_rise is None or line["general_rise"] <= max_general_rise)
        ]
        return min(scored, key=lambda line: line["validation_loss"])["step"] if scored else None

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; a last line that a kill cut short is dropped."""
        try:
            texts = self.path.read_text().splitlines()
        except FileNotFoundError:  # a new start; or the first rank is done and has removed the folder
            return []
        lines = []
        for text in texts:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines
