"""retention: the weights and tables of what is older than the champions that a roll-back can return to.

One rule: what was made before the oldest kept champion's snapshot goes, unless a kept champion, the first
one, the newest artifact of an asset, or a training that may go on needs it. Of such an artifact the files go;
its manifest stays, and so do delivered documents, labels, the held-out ledger, reports and decisions. A stage
that finds an artifact without its files makes them again.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fullft_assets import release
from fullft_assets.artifacts import (
    BASELINE_MODEL,
    BATCH_PREDICTIONS,
    CHEAPER_BASELINES,
    FINETUNED_CHECKPOINT,
    GENERAL_DOCUMENTS,
    NEAR_DUPLICATE_INDEX,
    REPLAY_DOCUMENTS,
    SCREENED_EXAMPLES,
    TOKENIZED_CHUNKS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.erasure.checkpoints import remove_stored_unless_held, remove_unless_held
from fullft_assets.erasure.erased_documents import key_ref
from fullft_assets.job import is_running, read_jobs
from fullft_assets.launch.records import launches
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.ledger import FILE as LEDGER, load_if_there
from fullft_assets.store import MANIFEST, Store, checkpoints_ref

#: The stages whose files are weights and tables; a consumer before what it was made from. Old predictions
#: count for no champion's quality.
_REMOVABLE = (
    BATCH_PREDICTIONS,
    FINETUNED_CHECKPOINT,
    BASELINE_MODEL,
    CHEAPER_BASELINES,
    TRAINING_SNAPSHOT,
    GENERAL_DOCUMENTS,
    REPLAY_DOCUMENTS,
    SCREENED_EXAMPLES,
    NEAR_DUPLICATE_INDEX,
    TOKENIZED_CHUNKS,
)
#: Files of these artifacts that stay.
_KEPT = (LEDGER,)


@dataclass
class CleanUp:
    """What a clean-up removes.

    Attributes:
        artifacts: artifacts whose files go, with the bytes of these files.
        champions: past champions that leave the history, as their weights go.
        pointers: pointers to the checkpoints that trainings began with.
        folders: checkpoints of trainings that ended or were given up, with their bytes, on this machine.
        stored_folders: the same in a store on S3, by name.
        seen: the champion and the history that the clean-up was planned with.
        before: what nothing needs goes if it is older than this time, in seconds since the epoch.
    """

    artifacts: dict[str, int] = field(default_factory=dict)
    champions: list[release.Champion] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    folders: dict[Path, int] = field(default_factory=dict)
    stored_folders: dict[str, int] = field(default_factory=dict)
    seen: release.ReleaseState | None = field(default=None, compare=False)
    before: float = field(default=0.0, compare=False)

    @property
    def lines(self) -> list[str]:
        """Past champions that go, then what goes by kind and with its size; the largest first."""
        sizes: dict[str, list[int]] = defaultdict(list)
        for ref, size in self.artifacts.items():
            sizes[ref.split("/")[1]].append(size)
        sizes["checkpoints of unfinished trainings"] = [*self.folders.values(), *self.stored_folders.values()]
        rows = sorted(
            ((sum(group), len(group), kind) for kind, group in sizes.items() if group), reverse=True
        )
        rows.append((sum(row[0] for row in rows), sum(row[1] for row in rows), "in all"))
        return [
            *(
                f"no roll-back returns to {champion.checkpoint}, which leaves the history"
                for champion in self.champions
            ),
            *(f"{size / 1e6:12,.1f} MB  {count:7,} {kind}" for size, count, kind in rows),
        ]


def plan(store: Store, use_case: UseCase) -> CleanUp:
    """Return the plan of a clean-up: the things that it would remove.

    Raises:
        StoreError: a manifest, or the job of a training, cannot be read, so that nobody knows what it needs.
    """
    case = use_case.name
    state = release.read_state(store, case)
    num_past = use_case.settings.retention.keep_champions
    champions = release.kept_champions(state, num_past)
    snapshots = [load_if_there(store, champion.snapshot) for champion in champions[: num_past + 1]]
    before = min((snapshot.created_at for snapshot in snapshots if snapshot is not None), default=0.0)
    clean_up = CleanUp(seen=state, before=before)
    sizes = {ref: size for stage in _REMOVABLE for ref, size in _sizes(store, case, stage).items()}
    manifests = dict(zip(sizes, store.each(store.load, sizes), strict=True))
    unfinished_keys = _unfinished(store, case, clean_up)
    roots = [ref for champion in champions for ref in (champion.checkpoint, champion.snapshot)]
    roots += [*_latest(store, case), *_of_jobs(store, case, unfinished_keys)]
    needed_keys = _with_sources(store, roots)
    clean_up.artifacts = {
        ref: sizes[ref]
        for ref, manifest in manifests.items()
        if manifest.created_at < before and key_ref(ref) not in needed_keys
    }
    clean_up.champions = [
        past.champion
        for past in ([] if state is None else state.history)
        if not past.rolled_back
        and past.champion not in champions
        and past.champion.checkpoint in clean_up.artifacts
    ]
    clean_up.pointers = _starting_points(store, case, clean_up.artifacts)
    return clean_up


def clean(store: Store, use_case: UseCase, *, require_idle: Callable[[], None] = lambda: None) -> CleanUp:
    """Remove what `plan` names, and return it. No run of the use case may be in progress.

    Args:
        store, use_case: where.
        require_idle: raises a StoreError if a run is, or was since the clean-up began; asked before each
            removal.

    Raises:
        StoreError: see `plan`; the champion was changed, or a run began, meanwhile; or another clean-up took
            over. What was removed until then was not needed.
    """
    case = use_case.name
    with store.alone_with_artifacts(case) as lease:
        require_idle()
        clean_up = plan(store, use_case)

        def look_again() -> None:
            require_idle()
            lease.require()
            release.drop_from_history(store, case, clean_up.seen, clean_up.champions)

        # Whatever names an artifact goes before it.
        look_again()
        for name in clean_up.pointers:
            look_again()
            store.delete_pointer(name)
        for ref in clean_up.artifacts:
            look_again()
            store.remove_files(store.load(ref), _KEPT)
            if not store.is_local:
                shutil.rmtree(store.cache_folder / ref, ignore_errors=True)
        for stage in _REMOVABLE:
            for ref in store.unfinished(case, stage):
                store.discard(ref)
        for folder in list(clean_up.folders):
            look_again()
            if not remove_unless_held(
                folder, partial(_is_folder_given_up, store, case, folder, clean_up.before)
            ):
                del clean_up.folders[folder]
        for name in list(clean_up.stored_folders):
            look_again()
            if not remove_stored_unless_held(
                store, name, partial(_is_stored_given_up, store, case, name, clean_up.before)
            ):
                del clean_up.stored_folders[name]
    return clean_up


def _sizes(store: Store, case: str, stage: str) -> dict[str, int]:
    """Return the bytes of the files of a stage's finished artifacts that a clean-up may remove, by ref; those
    without such a file are not among them.
    """
    sizes: dict[str, int] = defaultdict(int)
    finished_refs = set(store.refs(case, stage))
    for name, size in store.sizes(f"{case}/{stage}").items():
        ref = "/".join(name.split("/")[:4])
        if ref in finished_refs and name.removeprefix(f"{ref}/") not in (MANIFEST, *_KEPT):
            sizes[ref] += size
    return sizes


def _with_sources(store: Store, refs: Iterable[str]) -> set[str]:
    """Return the keys of artifacts and of their sources: for a checkpoint, the snapshots that it and its
    predecessors learned from; for a snapshot, the chunks of its batches and its general and replay documents.
    """
    needed_keys: set[str] = set()
    refs_left = list(refs)
    while refs_left:
        ref = refs_left.pop()
        if key_ref(ref) in needed_keys:
            continue
        needed_keys.add(key_ref(ref))
        manifest = load_if_there(store, ref)
        if manifest is not None and manifest.stage in (
            FINETUNED_CHECKPOINT,
            BASELINE_MODEL,
            TRAINING_SNAPSHOT,
        ):
            sources = [manifest.metadata.get(name) for name in ("snapshot", "general", "replay")]
            sources += [part["chunks"] for part in manifest.metadata.get("parts", {}).values()]
            sources += [training["snapshot"] for training in manifest.metadata.get("lineage", [])]
            refs_left += [source for source in sources if source]
    return needed_keys


def _latest(store: Store, case: str) -> Iterator[str]:
    names = [
        f"latest/{case}/{asset}/{name}"
        for asset in store.names(f"pointers/latest/{case}")
        if asset != BATCH_PREDICTIONS
        for name in store.list_pointers(f"latest/{case}/{asset}")
    ]
    yield from (pointer["ref"] for pointer in store.each(store.read_pointer, names) if pointer is not None)


def _of_jobs(store: Store, case: str, unfinished_keys: Iterable[str]) -> Iterator[str]:
    """Yield the refs of the inputs of jobs that are on record as running, and of unfinished trainings. An
    erasure needs the inputs of a training to know whether it learned from erased documents.
    """
    jobs = [(launch.stage, launch.key) for launch in launches(store, case) if launch.ended_at is None]
    jobs += [(FINETUNED_CHECKPOINT, key) for key in unfinished_keys]
    for stage, key in jobs:
        for job in read_jobs(store, case, stage, key):
            yield from job.inputs.values()


def _unfinished(store: Store, case: str, clean_up: CleanUp) -> set[str]:
    unfinished_keys: set[str] = set()
    for folder in store.work_folders(case, FINETUNED_CHECKPOINT):
        if _is_folder_given_up(store, case, folder, clean_up.before):
            clean_up.folders[folder] = sum(
                path.stat().st_size for path in folder.rglob("*") if path.is_file()
            )
        else:
            unfinished_keys.add(folder.name)
    for key in store.stored_work(case, FINETUNED_CHECKPOINT):
        name = checkpoints_ref(case, FINETUNED_CHECKPOINT, key)
        if _is_stored_given_up(store, case, name, clean_up.before):
            clean_up.stored_folders[name] = sum(store.sizes(name).values())
        else:
            unfinished_keys.add(key)
    return unfinished_keys


def _is_folder_given_up(store: Store, case: str, folder: Path, before: float) -> bool:
    # Every look at a folder touches its lock.
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.name != ".lock"]
    return _is_given_up(store, case, folder.name, max(times, default=folder.stat().st_mtime) < before)


def _is_stored_given_up(store: Store, case: str, name: str, before: float) -> bool:
    return _is_given_up(store, case, name.rsplit("/", 1)[-1], store.last_written(name) < before)


def _is_given_up(store: Store, case: str, key: str, is_old: bool) -> bool:
    """Return whether the checkpoints of a training go: no job writes them, and they are old or their model is
    in the store, whole.
    """
    return not is_running(store, case, FINETUNED_CHECKPOINT, key) and (
        is_old or store.find(case, FINETUNED_CHECKPOINT, key) is not None
    )


def _starting_points(store: Store, case: str, removed_refs: Iterable[str]) -> list[str]:
    names = [f"{case}/starting_points/{name}" for name in store.list_pointers(f"{case}/starting_points")]
    pointers = zip(names, store.each(store.read_pointer, names), strict=True)
    return [
        name for name, pointer in pointers if pointer is not None and pointer["checkpoint"] in removed_refs
    ]
