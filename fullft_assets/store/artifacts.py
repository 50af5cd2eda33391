"""Artifacts: written as drafts; found by key, read, copied to this machine, listed and removed."""

import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fullft_assets.errors import StoreError
from fullft_assets.store.disk import remove_unlocked, sync
from fullft_assets.store.files import Files
from fullft_assets.store.hashing import file_digest
from fullft_assets.store.manifest import MANIFEST, CheckOutcome, FileEntry, Identity, Manifest, is_inside

#: An attempt on S3 without a manifest counts as abandoned when nothing was written to it for so long: an
#: object can be seen only once it is whole, and a large one may take hours.
ABANDONED_SECONDS = 6 * 3600.0


class Artifacts(Files):
    """Artifacts by key; of several attempts at one, the valid one that was committed first."""

    def find(self, case: str, stage: str, key: str) -> Manifest | None:
        """Return the valid attempt at an artifact that was committed first, or None.

        An attempt whose manifest cannot be read, or with a file that is missing or cut short, is skipped:
        its stage can be run again.
        """
        sizes = self.sizes(f"{case}/{stage}/{key}")
        complete = [
            m
            for m in self._readable(sizes)
            if all(sizes.get(f"{m.ref}/{name}") == entry.bytes for name, entry in m.files.items())
        ]
        return min(complete, key=_age, default=None)

    def load(self, ref: str) -> Manifest:
        """Return the manifest of an artifact; if it is gone, that of another attempt at it.

        Raises:
            StoreError: there is no such artifact, or its manifest cannot be read.
        """
        data = self.read_bytes(f"{ref}/{MANIFEST}")
        if data is None:
            other_attempt = self.find(*ref.split("/")[:3]) if ref.count("/") == 3 else None
            if other_attempt is not None:
                return other_attempt
            raise StoreError(f"{self.url}/{ref}: no such artifact; materialise its asset again")
        try:
            return Manifest.model_validate_json(data)
        except ValueError as error:
            raise StoreError(
                f"{self.url}/{ref}/{MANIFEST}: unreadable ({str(error).splitlines()[0]})"
            ) from error

    def folder(self, manifest: Manifest) -> Path:
        """Return a local folder with the artifact's files; a remote one is fetched once and verified.

        Where files are missing or cut short, another attempt with the same content is used: materialising an
        artifact again also repairs those that refer to the broken attempt.

        Raises:
            StoreError: a file is missing, cut short or, when it is fetched, differs from its digest.
        """
        try:
            return self._local_folder(manifest) if self.is_local else self._fetched_folder(manifest)
        except StoreError:
            copy = self.find(manifest.case, manifest.stage, manifest.key)
            if copy is None or copy.ref == manifest.ref or copy.content_digest != manifest.content_digest:
                raise
            return self.folder(copy)

    def _local_folder(self, manifest: Manifest) -> Path:
        folder = Path(self.url, manifest.ref)
        if (name := _damaged(folder, manifest)) is not None:
            raise StoreError(f"{folder / name}: missing or cut short; materialise {manifest.stage} again")
        return folder

    def _fetched_folder(self, manifest: Manifest) -> Path:
        folder = self.cache_folder / manifest.ref
        if (folder / MANIFEST).is_file():
            if _damaged(folder, manifest) is None:
                return folder
            shutil.rmtree(folder)
        self.make_folder(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, entry in manifest.files.items():
                self._fetch(f"{manifest.ref}/{name}", partial / name, entry, manifest.stage)
            (partial / MANIFEST).write_text(manifest.model_dump_json())
            partial.rename(folder)
        except OSError:
            if not (folder / MANIFEST).is_file():  # else another process fetched it meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _fetch(self, name: str, path: Path, entry: FileEntry, stage: str) -> None:
        try:
            self.download(name, path)
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{name}: missing; materialise {stage} again") from None
        if file_digest(path) != entry.sha256:
            raise StoreError(
                f"{self.url}/{name}: differs from its digest; delete it and materialise {stage} again"
            )

    def adopt(self, folder: str, case: str) -> bool:
        """Move what a folder of a bucket has of a use case to its place in the store: manifests last, so that
        no artifact is there before its files.

        Cut short, it can be done again. Return whether there was anything.

        Raises:
            StoreError: a file has a name that leads elsewhere.
        """
        targets = {name: name.removeprefix(f"{folder}/") for name in self.sizes(folder)}
        for name, target in sorted(targets.items(), key=lambda item: item[1].endswith(f"/{MANIFEST}")):
            if not is_inside(target) or not target.startswith((f"{case}/", f"failures/{case}/")):
                raise StoreError(f"{self.url}/{name}: is no file of the use case {case}; delete it")
            self._storage.copy(name, target)
        self.remove_folder(folder)
        return bool(targets)

    def artifacts(self, case: str, stage: str) -> list[Manifest]:
        """Return every readable attempt at every artifact of a stage, oldest first."""
        return sorted(self._readable(self.sizes(f"{case}/{stage}")), key=_age)

    def refs(self, case: str, stage: str) -> list[str]:
        """Return the refs of the finished attempts at the artifacts of a stage, without reading one; the last
        that was begun comes first.
        """
        return sorted(
            _finished(self.sizes(f"{case}/{stage}")),
            key=lambda ref: ref.rsplit("/", 1)[-1],
            reverse=True,
        )

    def _readable(self, names: Iterable[str]) -> Iterator[Manifest]:
        for ref in _finished(names):
            with suppress(StoreError):
                yield self.load(ref)

    def delete(self, manifest: Manifest) -> None:
        """Remove an attempt: its manifest before its files, so that a removal cut short leaves nothing
        half-valid. Nothing where it is gone.

        A fetched copy goes first: once the manifest is gone, nobody would look for it.
        """
        if not self.is_local:
            shutil.rmtree(self.cache_folder / manifest.ref, ignore_errors=True)
        self.remove(f"{manifest.ref}/{MANIFEST}")
        self.remove_folder(manifest.ref)

    def remove_files(self, manifest: Manifest, but: Collection[str] = ()) -> None:
        """Remove the files of an artifact but for some; its manifest stays, and says what there was. Its
        stage can be run again.
        """
        for name in manifest.files:
            if name not in but:
                self.remove(f"{manifest.ref}/{name}")

    def unfinished(self, case: str, stage: str) -> list[str]:
        """Return the refs of the attempts without a manifest: being written, or left by a process that was
        killed.
        """
        names = list(self.sizes(f"{case}/{stage}"))
        attempts = {"/".join(name.split("/")[:4]) for name in names if name.count("/") > 3}
        return sorted(attempts.difference(_finished(names)))

    def discard(self, ref: str) -> bool:
        """Remove an attempt without a manifest unless it may be being written; return whether it is gone.

        On a disk its writer holds a lock, which ends with the process. On S3 there are no locks: an attempt
        counts as abandoned there when nothing was written to it for ABANDONED_SECONDS.
        """
        if self.is_local:
            return remove_unlocked(Path(self.url, ref))
        # Objects are uploaded one after the other, the manifest last.
        if (
            time.time() - self.last_written(ref) < ABANDONED_SECONDS
            or self.read_bytes(f"{ref}/{MANIFEST}") is not None
        ):
            return False
        self.remove_folder(ref)
        return True


def _finished(names: Iterable[str]) -> list[str]:
    manifests = [name for name in names if name.count("/") == 4 and name.endswith(f"/{MANIFEST}")]
    return [name.removesuffix(f"/{MANIFEST}") for name in manifests]


def _damaged(folder: Path, manifest: Manifest) -> str | None:
    names = (
        name
        for name, entry in manifest.files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry.bytes
    )
    return next(names, None)


def _age(manifest: Manifest) -> tuple[float, str]:
    return manifest.created_at, manifest.attempt


class Draft:
    """An artifact being written: put files below `path`, then call `commit` once.

    Set `identity` before, where less than the key and all files determines the content, or `kept_digest`.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        *,
        case: str,
        stage: str,
        key: str,
        attempt: str,
        version: str,
        seed: int,
    ):
        self.path = path
        self.manifest: Manifest | None = None
        self.identity: Identity | None = None
        self.kept_digest: str | None = None
        self._files = files
        self._named: dict[str, Any] = {
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
        files = {
            name: FileEntry(bytes=(self.path / name).stat().st_size, sha256=file_digest(self.path / name))
            for name in names
        }
        # All files, and their names in all folders, are on the disk before the manifest is, with the store's
        # rights: whatever wrote them used the process's.
        for path in self.path.rglob("*"):
            if not path.is_symlink():
                path.chmod(self._files.folder_mode if path.is_dir() else self._files.file_mode)
            sync(path)
        sync(self.path)
        manifest = Manifest(
            **self._named,
            created_at=time.time(),
            seconds=time.monotonic() - self._started,
            settings=dict(settings),
            inputs=dict(inputs),
            files=files,
            metadata=dict(metadata),
            checks=checks or [],
            identity=self.identity,
            kept_digest=self.kept_digest,
        )
        if not self._files.is_local:
            self._files.upload(self.path, manifest.ref, names)
        self._files.write_bytes(f"{manifest.ref}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
        self.manifest = manifest
        return manifest
