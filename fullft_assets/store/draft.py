"""A draft: an artifact while its files are being written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullft_assets.store.disk import sync
from fullft_assets.store.files import Files
from fullft_assets.store.hashing import file_digest
from fullft_assets.store.manifest import MANIFEST, CheckOutcome, FileEntry, Identity, Manifest


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
        files = {}
        for name in names:
            files[name] = FileEntry(
                bytes=(self.path / name).stat().st_size, sha256=file_digest(self.path / name)
            )
        self._settle()
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

    def _settle(self) -> None:
        """Have all files, and their names in all folders, on the disk, with the store's rights: whatever
        wrote them used the process's.
        """
        for path in self.path.rglob("*"):
            if not path.is_symlink():
                path.chmod(self._files.folder_mode if path.is_dir() else self._files.file_mode)
            sync(path)
        sync(self.path)
