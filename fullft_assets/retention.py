"""retention: what in a use case's store nobody needs any more, and its removal.

Needed are what is in use, what is young, and everything that these were made from, by the references and digests in their manifests. Documents,
labels and all records (decisions, launches, champions) stay anyway. An artifact goes manifest first, consumers before what they were made from: a
clean-up that is cut short leaves nothing half-valid, and the next one finishes it.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fullft_assets import release
from fullft_assets.jobs import read_jobs
from fullft_assets.launchers.records import launches
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.ledger import read_history
from fullft_assets.store import MANIFEST, Manifest, Store

DAY_SECONDS = 24 * 3600.0
#: Looked for by the content of what they are made from, and needed as long as that is: a batch's sketches, a champion's card.
_MADE_FOR = (
    "near_duplicate_index",
    "screened_examples",
    "feasibility_plan",
    "cheaper_baselines",
    "pilot_run",
    "drift_scale",
    "champion_model",
)
_CHECKPOINT, _PREDICTIONS, _REPORT = "finetuned_checkpoint", "batch_predictions", "evaluation_report"
#: Stages of which anything is removed: not documents, nor their labels, nor what another package writes.
_REMOVABLE = (
    *_MADE_FOR,
    _CHECKPOINT,
    _PREDICTIONS,
    _REPORT,
    "tokenizer_audit",
    "tokenized_chunks",
    "training_snapshot",
    "general_documents",
    "replay_documents",
    "drift_report",
    "live_quality",
)


@dataclass
class CleanUp:
    """What a clean-up removes.

    Attributes:
        artifacts: the youngest first.
        pointers: of old windows' predictions, and of where trainings began.
        folders: checkpoints of trainings that ended or were given up, with their bytes: here, and (by name) in a store on S3.
        copies: on this machine, of artifacts that go or have gone.
    """

    artifacts: list[Manifest] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    folders: dict[Path, int] = field(default_factory=dict)
    stored_folders: dict[str, int] = field(default_factory=dict)
    copies: dict[Path, int] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """What goes, by kind and with its size; the largest first."""
        sizes: dict[str, list[int]] = defaultdict(list)
        for manifest in self.artifacts:
            sizes[manifest.stage].append(sum(entry.bytes for entry in manifest.files.values()))
        sizes["checkpoints of unfinished trainings"] = [*self.folders.values(), *self.stored_folders.values()]
        sizes["copies on this machine"] = [*self.copies.values()]
        rows = sorted(((sum(each), len(each), name) for name, each in sizes.items() if each), reverse=True)
        total = sum(size for size, _, _ in rows)
        return [
            f"{size / 1e6:12,.1f} MB  {count:7,} {name}" for size, count, name in [*rows, (total, sum(row[1] for row in rows), "in all")]
        ]


def plan(store: Store, use_case: UseCase, now: float | None = None) -> CleanUp:
    """Return what a clean-up would remove.

    Args:
        now: seconds since the epoch. Default: the clock's.

    Raises:
        StoreError: a manifest cannot be read, so that nobody knows what it needs.
    """
    case, settings = use_case.name, use_case.settings.retention
    before = (time.time() if now is None else now) - settings.keep_days * DAY_SECONDS
    graph = _Graph(store, case)
    champions = release.kept_champions(release.read_state(store, case), settings.keep_champions)
    pointers = _latest(store, case)
    old_windows = _old_predictions(graph, pointers, champions, before)
    roots = [ref for name, ref in pointers.items() if name not in old_windows]
    roots += [ref for champion in champions for ref in (champion.checkpoint, champion.snapshot, champion.evaluation)]
    roots += [*_of_running_jobs(store, case), *_of_seed_runs(store, case), *_of_history(store, case, graph)]
    young = {node for node, attempts in graph.attempts.items() if any(made.created_at >= before for made in attempts)}
    needed = graph.needed(young | {node for ref in roots for node in graph.named_in(ref)})
    removed = [made for node in graph.attempts.keys() - needed for made in graph.attempts[node] if made.stage in _REMOVABLE]
    found = CleanUp(artifacts=sorted(removed, key=lambda made: made.created_at, reverse=True))
    gone = {made.ref for made in found.artifacts}
    found.pointers = sorted(name for name in old_windows if pointers[name] in gone) + _starting_points(store, case, gone)
    finished = {made.key for attempts in graph.attempts.values() for made in attempts if made.stage == _CHECKPOINT}
    running = {launch.key for launch in launches(store, case) if launch.ended_at is None}
    for folder in store.work_folders(case, _CHECKPOINT):
        if folder.name not in running and (folder.name in finished or _last_written(folder) < before):
            found.folders[folder] = _size(folder)
    for name in [] if store.is_local else store.names(f"checkpoints/{case}/{_CHECKPOINT}"):
        stored = f"checkpoints/{case}/{_CHECKPOINT}/{name}"
        if name not in running and (name in finished or store.last_written(stored) < before):
            found.stored_folders[stored] = sum(store.sizes(stored).values())
    there = {made.ref for attempts in graph.attempts.values() for made in attempts}
    for copy in _copies(store, case):
        ref = str(copy.relative_to(store.cache_folder))
        # One that was made since may be in use.
        if ref in gone or (ref not in there and _last_written(copy) < before):
            found.copies[copy] = _size(copy)
    return found


def clean(store: Store, use_case: UseCase, now: float | None = None) -> CleanUp:
    """Remove what `plan` names, and return it. No run of the use case may be in progress.

    Raises:
        StoreError: see `plan`; or another clean-up took over.
    """
    case = use_case.name
    with store.alone(f"{case}/clean") as lease:
        found = plan(store, use_case, now)
        gone = {made.ref for made in found.artifacts}
        lease.require()
        # Whatever names an artifact goes before it.
        release.keep_in_history(store, case, use_case.settings.retention.keep_champions)
        release.forget_runs(store, case, gone)
        for name in found.pointers:
            store.delete_pointer(name)
        for manifest in found.artifacts:
            lease.require()
            store.delete(manifest)
        for stage in _REMOVABLE:
            for ref in store.unfinished(case, stage):
                store.discard(ref)
        for folder in found.folders:
            _remove_unless_held(folder)
        for name in found.stored_folders:
            with store.alone(name):
                store.remove(name)
        for copy in found.copies:
            shutil.rmtree(copy, ignore_errors=True)
    return found


class _Graph:
    """The artifacts of a use case by their key, and which of them each was made from or names."""

    def __init__(self, store: Store, case: str):
        self._store, self._case = store, case
        self.attempts: dict[str, list[Manifest]] = defaultdict(list)
        self._by_digest: dict[str, set[str]] = defaultdict(set)
        for stage in store.names(case):
            for made in store.each(store.load, store.refs(case, stage)):
                node = f"{case}/{stage}/{made.key}"
                self.attempts[node].append(made)
                for content in (made.content_digest, *made.replaces):
                    self._by_digest[content].add(node)

    def named_in(self, value: Any) -> Iterator[str]:
        """Yield the artifacts that a JSON value names, by a reference (or a path below one) or by the digest of their content."""
        if isinstance(value, Mapping):
            value = value.values()
        if isinstance(value, str):
            node = "/".join(value.split("/", 3)[:3])
            yield from [node] if node in self.attempts else self._by_digest.get(value, ())
        elif isinstance(value, Iterable):
            for inner in value:
                yield from self.named_in(inner)

    def needed(self, nodes: set[str]) -> set[str]:
        """Return these artifacts with all that they were made from or name, and what was made for those."""
        found: set[str] = set()
        new = set(nodes)
        while new:
            while new:
                node = new.pop()
                found.add(node)
                new |= set(self._neighbours(node)) - found
            new = {node for node in self.attempts.keys() - found if node.split("/")[1] in _MADE_FOR and self._is_made_for(node, found)}
        return found

    def _neighbours(self, node: str) -> Iterator[str]:
        for made in self.attempts[node]:
            yield from self.named_in([made.inputs, made.metadata])
            if made.stage == _CHECKPOINT:
                # Evaluated again, it is compared with what it was compared with.
                yield from self.named_in(self._store.read_pointer(f"{self._case}/decisions/{made.key}"))

    def _is_made_for(self, node: str, needed: set[str]) -> bool:
        made_from = {each for made in self.attempts[node] for each in self.named_in(made.inputs)}
        return bool(made_from) and made_from <= needed


def _latest(store: Store, case: str) -> dict[str, str]:
    """Return the refs of the newest artifacts of all assets and partitions, by the name of the pointer."""
    names = [
        f"latest/{case}/{asset}/{name}"
        for asset in store.names(f"pointers/latest/{case}")
        for name in store.list_pointers(f"latest/{case}/{asset}")
    ]
    found = zip(names, store.each(store.read_pointer, names), strict=True)
    return {name: pointer["ref"] for name, pointer in found if pointer is not None}


def _old_predictions(graph: _Graph, pointers: Mapping[str, str], champions: list[release.Champion], before: float) -> set[str]:
    """Return the pointers of the predictions of old windows: those of the champion in use count for its quality, and stay."""
    in_use = {node for champion in champions[:1] for node in graph.named_in(champion.checkpoint)}
    found = set()
    for name, ref in pointers.items():
        attempts = [made for node in graph.named_in(ref) for made in graph.attempts[node]] if f"/{_PREDICTIONS}/" in name else []
        if attempts and all(made.created_at < before and not in_use & {*graph.named_in(made.inputs)} for made in attempts):
            found.add(name)
    return found


def _of_running_jobs(store: Store, case: str) -> Iterator[str]:
    """Yield the refs of the inputs of jobs that have not ended on record."""
    for launch in launches(store, case):
        if launch.ended_at is None:
            for job in read_jobs(store, case, launch.stage, launch.key):
                yield from job.inputs.values()


def _of_seed_runs(store: Store, case: str) -> list[str]:
    """Return the refs of the reports that the noise of seeds is taken from."""
    return [ref for refs in release.seed_runs(store, case).values() for ref in refs]


def _of_history(store: Store, case: str, graph: _Graph) -> Iterator[str]:
    """Yield the refs of the snapshots that remember on which side of the split each group is, for every seed that was used."""
    for seed in {made.seed for attempts in graph.attempts.values() for made in attempts if made.stage == "training_snapshot"}:
        for snapshot in read_history(store, case, seed).newest:
            yield snapshot.ref


def _starting_points(store: Store, case: str, gone: set[str]) -> list[str]:
    """Return the pointers of trainings that began with a checkpoint that goes: done again, they begin with the champion of that day."""
    names = [f"{case}/starting_points/{name}" for name in store.list_pointers(f"{case}/starting_points")]
    found = zip(names, store.each(store.read_pointer, names), strict=True)
    return [name for name, pointer in found if pointer is not None and pointer["checkpoint"] in gone]


def _copies(store: Store, case: str) -> list[Path]:
    """Return the folders of this machine with copies of artifacts of a store on S3."""
    folder = store.cache_folder / case
    found = [] if store.is_local else [path.parent for path in sorted(folder.glob(f"*/*/*/{MANIFEST}"))]
    return [path for path in found if not path.name.startswith(".")]  # one that is being fetched


def _last_written(folder: Path) -> float:
    return max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_unless_held(folder: Path) -> None:
    """Remove a work folder unless a training holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder)
