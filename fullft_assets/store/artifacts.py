"""The artifact store: immutable folders named by digest, the manifest written last.

An artifact lives at `<case>/<stage>/<key>/<attempt>/`. Its key is a digest of everything that
determines its content, so work that was done is found, not repeated. Files come first and
`manifest.json` last: a folder without a manifest does not exist, and a killed step leaves nothing
half-valid. Of several attempts the first valid one wins. Pointers (the champion, the latest output
of an asset) are small JSON files replaced in one atomic write.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.errors import DiskError, GateError, StoreError, is_disk_full

MANIFEST = "manifest.json"
#: Files below this folder of an artifact are kept and checked, but are not part of its content digest.
VOLATILE = "logs/"
#: An attempt on S3 without a manifest that nobody wrote to for so long is nobody's any more.
ABANDONED_SECONDS = 3600.0
#: On a disk a lock tells; an attempt younger than this may not have taken it yet.
_LOCK_SECONDS = 1.0


def digest(value: Any) -> str:
    """Return the first 20 hex digits of the sha256 of a JSON-serialisable value, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def artifact_key(stage: str, version: str, settings: Any, inputs: Mapping[str, Any], seed: int) -> str:
    """Return the key of an artifact.

    Args:
        stage: the asset's name.
        version: the stage's code version.
        settings: what of the settings determines the content (JSON-serialisable).
        inputs: content digest (or any JSON value that pins the content) of each input, by name.
        seed: the use case's seed.
    """
    return digest({"stage": stage, "version": version, "settings": settings, "inputs": dict(inputs), "seed": seed})


class CheckOutcome(BaseModel):
    """The verdict of one check, kept with the artifact that it judged."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    severity: Literal["error", "warn"] = "error"
    description: str = ""
    metadata: dict[str, Any] = {}


#: What a stage says of what it wrote: metadata and check outcomes.
Outcome = tuple[Mapping[str, Any], list[CheckOutcome]]


class FileEntry(BaseModel):
    """Size in bytes and sha256 of one file of an artifact."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Identity(BaseModel):
    """What makes the content of an artifact, where that is less than its key and all its files.

    Attributes:
        files: names of the files that count, whole.
        values: what else counts (JSON-serialisable).
    """

    model_config = ConfigDict(frozen=True)

    files: list[str]
    values: dict[str, Any] = {}


class Manifest(BaseModel):
    """What an artifact is, what made it, and what was found about it."""

    model_config = ConfigDict(frozen=True)

    case: str
    stage: str
    key: str
    attempt: str
    version: str
    seed: int
    created_at: float
    seconds: float
    settings: dict[str, Any]
    inputs: dict[str, Any]
    files: dict[str, FileEntry]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]
    #: None: the key and all files make the content.
    identity: Identity | None = None

    @property
    def ref(self) -> str:
        """The artifact's path within its store."""
        return f"{self.case}/{self.stage}/{self.key}/{self.attempt}"

    @property
    def content_digest(self) -> str:
        """Digest of the content: the data version in Dagster, the input of downstream keys.

        Two artifacts with one `identity` have one digest, however they came about: consumers may take either.
        """
        if self.identity is not None:
            files = {name: self.files[name].sha256 for name in self.identity.files}
            return digest({"stage": self.stage, "version": self.version, "files": files, "values": self.identity.values})
        content = {name: entry.sha256 for name, entry in self.files.items() if not name.startswith(VOLATILE)}
        return digest({"key": self.key, "files": content})

    def check(self, name: str) -> CheckOutcome:
        """Return the outcome of the named check.

        Raises:
            StoreError: the artifact has no such check.
        """
        for outcome in self.checks:
            if outcome.name == name:
                return outcome
        raise StoreError(f"{self.ref}: no check `{name}` in its manifest")

    def require_green(self, consumer: str) -> None:
        """Refuse to build on this artifact while one of its error checks is red.

        Dagster's blocking checks only stop the run they fail in; a consumer materialised alone
        re-reads the verdict here.

        Raises:
            GateError: names the check, its description and the consumer.
        """
        for outcome in self.checks:
            if not outcome.passed and outcome.severity == "error":
                raise GateError(f"{consumer} refused: {self.stage}.{outcome.name} is red: {outcome.description}")


class Store:
    """A local folder or `s3://bucket/prefix`.

    Args:
        url: where artifacts live.
        options: fsspec options of a remote store (endpoint, encryption); never secrets, those come
            from the environment.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        import fsspec

        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self.is_local = "://" not in url
        if self.is_local:
            self.url = str(Path(url).absolute())
        self._fs, self._root = fsspec.core.url_to_fs(self.url, **self.options)

    def find(self, case: str, stage: str, key: str) -> Manifest | None:
        """Return the valid attempt at an artifact that was committed first, or None.

        An attempt whose manifest cannot be read, or with a file that is missing or cut short, is passed over:
        what made it can be run again.
        """
        folder = f"{case}/{stage}/{key}"
        # A listing cache would hide what another process wrote meanwhile.
        self._fs.invalidate_cache()
        sizes = {
            path.removeprefix(f"{self._root}/"): info["size"] for path, info in self._fs.find(f"{self._root}/{folder}", detail=True).items()
        }
        refs = [path.removesuffix(f"/{MANIFEST}") for path in sizes if path.count("/") == 4 and path.endswith(f"/{MANIFEST}")]
        sound = [m for m in self._readable(refs) if all(sizes.get(f"{m.ref}/{name}") == entry.bytes for name, entry in m.files.items())]
        return min(sound, key=lambda manifest: (manifest.created_at, manifest.attempt), default=None)

    def _readable(self, refs: list[str]) -> Iterator[Manifest]:
        for ref in refs:
            try:
                yield self.load(ref)
            except StoreError:
                continue

    def load(self, ref: str) -> Manifest:
        """Return the manifest of an artifact; of one that is gone that of another attempt at it.

        Raises:
            StoreError: there is no such artifact, or its manifest cannot be read.
        """
        data = self._read(f"{ref}/{MANIFEST}")
        if data is None:
            again = self.find(*ref.split("/")[:3]) if ref.count("/") == 3 else None
            if again is not None:
                return again
            raise StoreError(f"{self.url}/{ref}: no such artifact; materialise its asset again")
        try:
            return Manifest.model_validate_json(data)
        except ValueError as error:
            raise StoreError(f"{self.url}/{ref}/{MANIFEST}: unreadable ({str(error).splitlines()[0]})") from error

    def folder(self, manifest: Manifest) -> Path:
        """Return a local folder with the artifact's files; a remote one is fetched once and verified.

        Where files are missing or cut short, another attempt with the same content stands in: what was
        materialised again also mends the artifacts that refer to the broken attempt.

        Raises:
            StoreError: a file is missing, cut short or (remote) differs from its digest.
        """
        try:
            return self._local_folder(manifest) if self.is_local else self._fetched_folder(manifest)
        except StoreError:
            again = self.find(manifest.case, manifest.stage, manifest.key)
            if again is None or again.ref == manifest.ref or again.content_digest != manifest.content_digest:
                raise
            return self.folder(again)

    def _local_folder(self, manifest: Manifest) -> Path:
        folder = Path(self.url, manifest.ref)
        for name, entry in manifest.files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != entry.bytes:
                raise StoreError(f"{folder / name}: missing or cut short; materialise {manifest.stage} again")
        return folder

    def _fetched_folder(self, manifest: Manifest) -> Path:
        folder = _cache_root() / digest(self.url) / manifest.ref
        if (folder / MANIFEST).is_file():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, entry in manifest.files.items():
                self._fetch(f"{manifest.ref}/{name}", aside / name, entry, manifest.stage)
            (aside / MANIFEST).write_text(manifest.model_dump_json())
            aside.rename(folder)
        except OSError:
            if not (folder / MANIFEST).is_file():  # else another process fetched it meanwhile
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return folder

    def _fetch(self, name: str, path: Path, entry: FileEntry, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fs.get_file(f"{self._root}/{name}", str(path))
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{name}: missing; materialise {stage} again") from None
        if _sha256(path) != entry.sha256:
            raise StoreError(f"{self.url}/{name}: differs from its digest; delete it and materialise {stage} again")

    @contextmanager
    def create(self, case: str, stage: str, key: str, *, version: str, seed: int) -> Iterator[Draft]:
        """Open a new attempt at an artifact; whatever is not committed is removed.

        Raises:
            DiskError: there was no room for its files.
        """
        attempt = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        ref = f"{case}/{stage}/{key}/{attempt}"
        path = Path(self.url, ref) if self.is_local else Path(tempfile.mkdtemp(prefix="fullft-"))
        path.mkdir(parents=True, exist_ok=True)
        draft = Draft(self, path, case, stage, key, attempt, version, seed)
        with _being_written(path):
            try:
                yield draft
            except Exception as error:
                if not is_disk_full(error):
                    raise
                reason = " ".join(str(error).split())[:120]
                raise DiskError(
                    f"{self.url}: no room for {case}/{stage} ({reason}); free space or raise the quota: nothing half-written is left, and the "
                    "same command goes on from what is whole"
                ) from error
            finally:
                if draft.manifest is None or not self.is_local:
                    shutil.rmtree(path, ignore_errors=True)

    def ensure(
        self,
        case: str,
        stage: str,
        write: Callable[[Draft], Outcome],
        *,
        version: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        seed: int,
    ) -> Manifest:
        """Return the artifact that these arguments determine: found if it exists, else written now.

        Args:
            case: the use case.
            stage: the asset's name.
            write: fills a draft's folder and returns the metadata and check outcomes.
            version, settings, inputs, seed: see `artifact_key`.
        """
        key = artifact_key(stage, version, settings, inputs, seed)
        found = self.find(case, stage, key)
        if found is not None:
            return found
        with self.create(case, stage, key, version=version, seed=seed) as draft:
            metadata, checks = write(draft)
            made = draft.commit(settings=settings, inputs=inputs, metadata=metadata, checks=checks)
        # Somebody else may have committed meanwhile: everybody goes on with the same attempt.
        return self.find(case, stage, key) or made

    def artifacts(self, case: str, stage: str) -> list[Manifest]:
        """Return every readable attempt at every artifact of a stage, oldest first."""
        self._fs.invalidate_cache()
        paths = self._fs.find(f"{self._root}/{case}/{stage}")
        refs = [path.removeprefix(f"{self._root}/").removesuffix(f"/{MANIFEST}") for path in paths if path.endswith(f"/{MANIFEST}")]
        return sorted(self._readable([ref for ref in refs if ref.count("/") == 3]), key=lambda m: (m.created_at, m.attempt))

    def delete(self, manifest: Manifest) -> None:
        """Remove an attempt: its manifest before its files, so that a removal cut short leaves nothing half-valid.

        A fetched copy goes first: once the manifest is gone, nobody would look for it.
        """
        folder = f"{self._root}/{manifest.ref}"
        copy = _cache_root() / digest(self.url) / manifest.ref
        if not self.is_local and copy.is_dir():
            shutil.rmtree(copy)
        self._fs.rm_file(f"{folder}/{MANIFEST}")
        self._fs.invalidate_cache()
        # On S3 there is no folder without a file.
        if self.is_local or self._fs.find(folder):
            self._fs.rm(folder, recursive=True)

    def unfinished(self, case: str, stage: str) -> list[str]:
        """Return the refs of the attempts without a manifest: being written, or left by a process that was killed."""
        self._fs.invalidate_cache()
        names = [path.removeprefix(f"{self._root}/").split("/") for path in self._fs.find(f"{self._root}/{case}/{stage}")]
        finished = {"/".join(parts[:4]) for parts in names if len(parts) == 5 and parts[4] == MANIFEST}
        return sorted({"/".join(parts[:4]) for parts in names if len(parts) > 4} - finished)

    def discard(self, ref: str) -> bool:
        """Remove an attempt without a manifest unless it may be being written; return whether it is gone.

        On a disk its writer holds a lock, which ends with the process. On S3 there is none: there it counts as abandoned
        when nothing was written to it for ABANDONED_SECONDS.
        """
        if self.is_local:
            return _remove_unlocked(Path(self.url, ref))
        self._fs.invalidate_cache()
        # Objects are uploaded one after the other, the manifest last.
        written = [self._fs.modified(path).timestamp() for path in self._fs.find(f"{self._root}/{ref}")]
        if time.time() - max(written, default=0.0) < ABANDONED_SECONDS or self._read(f"{ref}/{MANIFEST}") is not None:
            return False
        self._fs.rm(f"{self._root}/{ref}", recursive=True)
        return True

    def rewrite(
        self,
        manifest: Manifest,
        edit: Callable[[Path], Mapping[str, Any]],
        inputs: Mapping[str, Any] | None = None,
        checks: list[CheckOutcome] | None = None,
        identity: Identity | None = None,
    ) -> Manifest:
        """Replace an artifact by an edited copy under the same key; who names the old attempt finds the new one.

        Args:
            manifest: the artifact.
            edit: changes the copied files below a folder and returns the metadata that changed with them.
            inputs: replaces the recorded inputs. Default: as they were.
            checks: replaces the recorded outcomes. Default: as they were.
            identity: replaces what makes the content. Default: as it was.
        """
        with self.create(manifest.case, manifest.stage, manifest.key, version=manifest.version, seed=manifest.seed) as draft:
            shutil.copytree(self.folder(manifest), draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            draft.identity = identity or manifest.identity
            # Content digests of what this replaces: whoever recorded one as an input can still be matched.
            replaces = [*manifest.metadata.get("replaces", []), manifest.content_digest]
            metadata = {**manifest.metadata, **edit(draft.path), "replaces": replaces}
            made = draft.commit(
                settings=manifest.settings,
                inputs=manifest.inputs if inputs is None else inputs,
                metadata=metadata,
                checks=manifest.checks if checks is None else checks,
            )
        self.delete(manifest)
        return made

    def work_folder(self, case: str, stage: str, key: str) -> Path:
        """Return the local folder of unfinished work on an artifact (checkpoints); a later attempt finds it."""
        folder = self._work_root / case / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_folders(self, case: str, stage: str) -> list[Path]:
        """Return the folders of unfinished work on artifacts of a stage that lie on this machine; each is called after the key."""
        root = self._work_root / case / stage
        return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []

    @property
    def _work_root(self) -> Path:
        return Path(self.url, "work") if self.is_local else _cache_root() / digest(self.url) / "work"

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object under `pointers/<name>.json`, or None."""
        data = self._read(f"pointers/{name}.json")
        return None if data is None else json.loads(data)

    def write_pointer(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace the JSON object under `pointers/<name>.json` in one atomic write."""
        self._write(f"pointers/{name}.json", json.dumps(value, indent=1, sort_keys=True).encode())

    def list_pointers(self, folder: str) -> list[str]:
        """Return the names (without `.json`) of the pointers in a folder, sorted."""
        return sorted(name.removesuffix(".json") for name in self._list(f"pointers/{folder}") if name.endswith(".json"))

    def write_json(self, name: str, value: Mapping[str, Any]) -> str:
        """Write a JSON file (a job) and return its URI."""
        self._write(name, json.dumps(value, indent=1, sort_keys=True).encode())
        return f"{self.url}/{name}"

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file that `write_json` wrote, or None."""
        found = self._read(name)
        return None if found is None else json.loads(found)

    def _list(self, folder: str) -> list[str]:
        # A listing cache would hide what another process wrote meanwhile.
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return [PurePosixPath(path).name for path in paths]

    def _read(self, name: str) -> bytes | None:
        try:
            return self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        if not self.is_local:
            self._fs.pipe_file(f"{self._root}/{name}", data)
            return
        path = Path(self.url, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def _upload(self, path: Path, ref: str, names: list[str]) -> None:
        for name in names:
            self._fs.put_file(str(path / name), f"{self._root}/{ref}/{name}")


class Draft:
    """An artifact being written: put files below `path`, then call `commit` once.

    Set `identity` before, where the content is less than the key and all files.
    """

    def __init__(self, store: Store, path: Path, case: str, stage: str, key: str, attempt: str, version: str, seed: int):
        self.path = path
        self.manifest: Manifest | None = None
        self.identity: Identity | None = None
        self._store = store
        self._identity = {
            "case": case,
            "stage": stage,
            "key": key,
            "attempt": attempt,
            "version": version,
            "seed": seed,
        }
        self._started = time.monotonic()

    def commit(
        self,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        metadata: Mapping[str, Any],
        checks: list[CheckOutcome] | None = None,
    ) -> Manifest:
        """Make the artifact exist: sync its files, then write the manifest."""
        names = sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
        files = {}
        for name in names:
            files[name] = FileEntry(bytes=(self.path / name).stat().st_size, sha256=_sha256(self.path / name))
            sync(self.path / name)
        manifest = Manifest(
            **self._identity,
            created_at=time.time(),
            seconds=time.monotonic() - self._started,
            settings=dict(settings),
            inputs=dict(inputs),
            files=files,
            metadata=dict(metadata),
            checks=checks or [],
            identity=self.identity,
        )
        if not self._store.is_local:
            self._store._upload(self.path, manifest.ref, names)
        self._store._write(f"{manifest.ref}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
        self.manifest = manifest
        return manifest


@contextmanager
def _being_written(path: Path) -> Iterator[None]:
    """Hold a folder's lock: it says that somebody is writing there, and ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_unlocked(path: Path) -> bool:
    begun = path.name.split("-")[0]
    age = time.time() - int(begun) / 1e9 if begun.isdecimal() else _LOCK_SECONDS
    time.sleep(min(max(0.0, _LOCK_SECONDS - age), _LOCK_SECONDS))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held; or a file system without locks, where nobody can tell
            return False
        if (path / MANIFEST).is_file():
            return False
        shutil.rmtree(path)
    finally:
        os.close(descriptor)
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cache_root() -> Path:
    return Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets")
