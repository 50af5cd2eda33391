"""retention: what in a use case's store nobody needs any more, and its removal.

Needed are what is in use, what is young, and everything that these were made from, by the references and
digests in their manifests. Documents, labels and all records (decisions, launches, champions) stay anyway. An
artifact goes manifest first, consumers before what they were made from: a clean-up that is cut short leaves
nothing half-valid, and the next one finishes it.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fullft_assets import release
from fullft_assets.errors import StoreError
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION, SEED_RUN
from fullft_assets.jobs import is_running, read_jobs
from fullft_assets.launchers.records import launches
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.ledger import read_history
from fullft_assets.store import MANIFEST, Manifest, Store, checkpoints_ref

DAY_SECONDS = 24 * 3600.0
#: A machine that is gone is known by then.
_PATIENCE_SECONDS = 60.0
#: Looked for by the content of what they are made from, and needed as long as that is: a batch's sketches, a
#: champion's card.
_MADE_FOR = (
    "near_duplicate_index",
    "screened_examples",
    "feasibility_plan",
    "cheaper_baselines",
    "pilot_run",
    "drift_scale",
    "champion_model",
)
_CHECKPOINT, _PREDICTIONS, _REPORT, _DRIFT = (
    "finetuned_checkpoint",
    "batch_predictions",
    "evaluation_report",
    "drift_report",
)
#: What a report and a decision name that a candidate was compared with.
_COMPARED = (CHAMPION, ANCHOR, SEED_RUN, "incumbent", "anchor", "seed_runs")
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
    _DRIFT,
    "live_quality",
)


@dataclass
class CleanUp:
    """What a clean-up removes.

    Attributes:
        artifacts: the youngest first.
        champions: past ones that leave the history, as something goes that they need.
        pointers: of old windows' predictions, and of where trainings began.
        folders: checkpoints of trainings that ended or were given up, with their bytes: here, and (by name)
            in a store on S3.
        copies: on this machine, of artifacts that go or have gone.
        seen: champion and history that this was decided by.
    """

    artifacts: list[Manifest] = field(default_factory=list)
    champions: list[release.Champion] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    folders: dict[Path, int] = field(default_factory=dict)
    stored_folders: dict[str, int] = field(default_factory=dict)
    copies: dict[Path, int] = field(default_factory=dict)
    seen: release.ReleaseState | None = field(default=None, compare=False)

    @property
    def lines(self) -> list[str]:
        """Past champions that go, then what goes by kind and with its size; the largest first."""
        sizes: dict[str, list[int]] = defaultdict(list)
        for manifest in self.artifacts:
            sizes[manifest.stage].append(sum(entry.bytes for entry in manifest.files.values()))
        sizes["checkpoints of unfinished trainings"] = [*self.folders.values(), *self.stored_folders.values()]
        sizes["copies on this machine"] = [*self.copies.values()]
        rows = sorted(((sum(each), len(each), name) for name, each in sizes.items() if each), reverse=True)
        total = sum(size for size, _, _ in rows)
        left = [
            f"no roll-back returns to {champion.checkpoint}, which leaves the history"
            for champion in self.champions
        ]
        return left + [
            f"{size / 1e6:12,.1f} MB  {count:7,} {name}"
            for size, count, name in [*rows, (total, sum(row[1] for row in rows), "in all")]
        ]


def plan(store: Store, use_case: UseCase, now: float | None = None) -> CleanUp:
    """Return what a clean-up would remove.

    Args:
        now: seconds since the epoch. Default: the clock's.

    Raises:
        StoreError: a manifest, or the job of a training, cannot be read, so that nobody knows what it needs.
    """
    case, settings = use_case.name, use_case.settings.retention
    before = _horizon(use_case, now)
    graph = _Graph(store, case)
    state = release.read_state(store, case)
    champions = release.kept_champions(state, settings.keep_champions)
    pointers = _latest(store, case)
    found = CleanUp(seen=state)
    unfinished = set()
    for folder in store.work_folders(case, _CHECKPOINT):
        if _is_given_up(store, case, folder.name, _last_written(folder) < before):
            found.folders[folder] = _size(folder)
        else:
            unfinished.add(folder.name)
    for key in store.stored_work(case, _CHECKPOINT):
        stored = checkpoints_ref(case, _CHECKPOINT, key)
        if _is_given_up(store, case, key, store.last_written(stored) < before):
            found.stored_folders[stored] = sum(store.sizes(stored).values())
        else:
            unfinished.add(key)
    old_windows = _old_predictions(graph, pointers, champions, before)
    shown = [ref for name, ref in pointers.items() if name not in old_windows]
    shown += [ref for champion in champions for ref in _refs(champion)]
    roots = [*_of_running_jobs(store, case), *_of_seed_runs(store, case), *_of_history(store, case, graph)]
    # What it began with tells an erasure whether an unfinished training learned from erased documents.
    roots += [
        ref
        for key in unfinished
        for job in read_jobs(store, case, _CHECKPOINT, key)
        for ref in job.inputs.values()
    ]
    young = {
        node
        for node, attempts in graph.attempts.items()
        if any(made.created_at >= before for made in attempts)
    }
    compared = young | set(graph.named_in(shown))
    needed = graph.needed(compared | set(graph.named_in(roots)), compared)
    removed = [
        made
        for node in graph.attempts.keys() - needed
        for made in graph.attempts[node]
        if made.stage in _REMOVABLE
    ]
    found.artifacts = sorted(removed, key=lambda made: made.created_at, reverse=True)
    gone = {made.ref for made in found.artifacts}
    found.champions = [
        past.champion
        for past in ([] if state is None else state.history)
        if not past.rolled_back
        and past.champion not in champions
        and not needed.issuperset(graph.named_in(_refs(past.champion)))
    ]
    found.pointers = sorted(name for name in old_windows if pointers[name] in gone) + _starting_points(
        store, case, gone
    )
    there = {made.ref for attempts in graph.attempts.values() for made in attempts}
    for copy in _copies(store, case):
        ref = str(copy.relative_to(store.cache_folder))
        # One that was made since may be in use.
        if ref in gone or (ref not in there and _last_written(copy) < before):
            found.copies[copy] = _size(copy)
    return found


def clean(
    store: Store,
    use_case: UseCase,
    now: float | None = None,
    *,
    require_idle: Callable[[], None] = lambda: None,
) -> CleanUp:
    """Remove what `plan` names, and return it. No run of the use case may be in progress.

    Args:
        require_idle: raises a StoreError if a run is, or was since the clean-up began; asked before each
            removal.

    Raises:
        StoreError: see `plan`; the champion was changed, or a run began, meanwhile; or another clean-up took
            over. What was removed until then was not needed.
    """
    case = use_case.name
    with store.alone_with_artifacts(case) as lease:
        require_idle()
        found = plan(store, use_case, now)
        gone = {made.ref for made in found.artifacts}

        def look_again() -> None:
            require_idle()
            lease.require()
            release.drop_from_history(store, case, found.seen, found.champions)

        # Whatever names an artifact goes before it.
        look_again()
        release.forget_runs(store, case, gone)
        for name in found.pointers:
            look_again()
            store.delete_pointer(name)
        for manifest in found.artifacts:
            look_again()
            store.delete(manifest)
        for stage in _REMOVABLE:
            for ref in store.unfinished(case, stage):
                store.discard(ref)
        before = _horizon(use_case, now)
        for folder in list(found.folders):
            look_again()
            if not _remove_unless_held(store, case, folder, before):
                del found.folders[folder]
        for name in list(found.stored_folders):
            look_again()
            if not _remove_stored_unless_held(store, case, name, before):
                del found.stored_folders[name]
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
        """Yield the artifacts that a JSON value names, by a reference (or a path below one) or by the digest
        of their content.
        """
        if isinstance(value, Mapping):
            value = value.values()
        if isinstance(value, str):
            node = "/".join(value.split("/", 3)[:3])
            yield from [node] if node in self.attempts else self._by_digest.get(value, ())
        elif isinstance(value, Iterable):
            for inner in value:
                yield from self.named_in(inner)

    def needed(self, nodes: set[str], compared: set[str]) -> set[str]:
        """Return these artifacts with all that they were made from or name, and what was made for those.

        Args:
            compared: those of which what they were compared with is needed. Of others it is not: else each
                champion would need the one before.
        """
        found: set[str] = set()
        new = set(nodes)
        while new:
            while new:
                node = new.pop()
                found.add(node)
                new |= set(self._neighbours(node, node in compared)) - found
            new = {
                node
                for node in self.attempts.keys() - found
                if node.split("/")[1] in _MADE_FOR and self._is_made_for(node, found)
            }
        return found

    def _neighbours(self, node: str, is_compared: bool) -> Iterator[str]:
        for made in self.attempts[node]:
            if (
                made.stage == "drift_scale"
            ):  # windows of later champions are read on it, without what it was fitted on
                continue
            named = [made.inputs, made.metadata]
            if made.stage == _CHECKPOINT:
                yield from self.named_in(named)
                # Evaluated again, it is compared with what it was compared with.
                named = [self._store.read_pointer(f"{self._case}/decisions/{made.key}") or {}]
            if made.stage in (_CHECKPOINT, _REPORT) and not is_compared:
                named = [
                    {name: value for name, value in each.items() if not name.startswith(_COMPARED)}
                    for each in named
                ]
            # A verdict on a window is read without the model that the window was compared under.
            yield from (
                each
                for each in self.named_in(named)
                if made.stage != _DRIFT or each.split("/")[1] != _CHECKPOINT
            )

    def _is_made_for(self, node: str, needed: set[str]) -> bool:
        made_from = {each for made in self.attempts[node] for each in self.named_in(made.inputs)}
        return bool(made_from) and made_from <= needed


def _horizon(use_case: UseCase, now: float | None) -> float:
    """Return the time before which what is not needed goes."""
    return (time.time() if now is None else now) - use_case.settings.retention.keep_days * DAY_SECONDS


def _refs(champion: release.Champion) -> list[str]:
    return [champion.checkpoint, champion.snapshot, champion.evaluation]


def _is_given_up(store: Store, case: str, key: str, is_old: bool) -> bool:
    """Return whether the checkpoints of a training go: no job writes them, and they are old or their model is
    in the store, whole.
    """
    return not is_running(store, case, _CHECKPOINT, key) and (
        is_old or store.find(case, _CHECKPOINT, key) is not None
    )


def _latest(store: Store, case: str) -> dict[str, str]:
    """Return the refs of the newest artifacts of all assets and partitions, by the name of the pointer."""
    names = [
        f"latest/{case}/{asset}/{name}"
        for asset in store.names(f"pointers/latest/{case}")
        for name in store.list_pointers(f"latest/{case}/{asset}")
    ]
    found = zip(names, store.each(store.read_pointer, names), strict=True)
    return {name: pointer["ref"] for name, pointer in found if pointer is not None}


def _old_predictions(
    graph: _Graph, pointers: Mapping[str, str], champions: list[release.Champion], before: float
) -> set[str]:
    """Return the pointers of the predictions of old windows: those of the champion in use count for its
    quality, and stay.
    """
    in_use = {node for champion in champions[:1] for node in graph.named_in(champion.checkpoint)}
    found = set()
    for name, ref in pointers.items():
        attempts = (
            [made for node in graph.named_in(ref) for made in graph.attempts[node]]
            if f"/{_PREDICTIONS}/" in name
            else []
        )
        if attempts and all(
            made.created_at < before and not in_use & {*graph.named_in(made.inputs)} for made in attempts
        ):
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
    """Yield the refs of the snapshots that remember on which side of the split each group is, for every seed
    that was used.
    """
    for seed in {
        made.seed
        for attempts in graph.attempts.values()
        for made in attempts
        if made.stage == "training_snapshot"
    }:
        for snapshot in read_history(store, case, seed).newest:
            yield snapshot.ref


def _starting_points(store: Store, case: str, gone: set[str]) -> list[str]:
    """Return the pointers of trainings that began with a checkpoint that goes: done again, they begin with
    the champion of that day.
    """
    names = [f"{case}/starting_points/{name}" for name in store.list_pointers(f"{case}/starting_points")]
    found = zip(names, store.each(store.read_pointer, names), strict=True)
    return [name for name, pointer in found if pointer is not None and pointer["checkpoint"] in gone]


def _copies(store: Store, case: str) -> list[Path]:
    """Return the folders of this machine with copies of artifacts of a store on S3."""
    folder = store.cache_folder / case
    found = [] if store.is_local else [path.parent for path in sorted(folder.glob(f"*/*/*/{MANIFEST}"))]
    return [path for path in found if not path.name.startswith(".")]  # one that is being fetched


def _last_written(folder: Path) -> float:
    """Return when anything in a folder was last written, except the lock, which every look at the folder
    touches.
    """
    return max(
        (path.stat().st_mtime for path in folder.rglob("*") if path.name != ".lock"),
        default=folder.stat().st_mtime,
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_unless_held(store: Store, case: str, folder: Path, before: float) -> bool:
    """Remove a work folder unless a training holds it, or went on with it; return whether it is gone."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _is_given_up(store, case, folder.name, _last_written(folder) < before):
            return False
        shutil.rmtree(folder)
    return True


def _remove_stored_unless_held(store: Store, case: str, name: str, before: float) -> bool:
    """Remove a training's checkpoints in the store unless a machine holds their lease, or went on with them;
    return whether they are gone.
    """
    try:
        with store.alone(name, _PATIENCE_SECONDS) as lease:
            if not _is_given_up(store, case, name.rsplit("/", 1)[-1], store.last_written(name) < before):
                return False
            lease.require()
            store.remove(name)
    except StoreError:
        return False
    return True
