"""Files of a store: a local folder or a bucket, reached in one way."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fullft_assets.errors import NO_ROOM, DiskError, StoreError
from fullft_assets.store.buckets import SCHEMES, Bucket, FileVersion
from fullft_assets.store.disk import PRIVATE_FOLDER, Folder, make_folder
from fullft_assets.store.hashing import digest

A = TypeVar("A")
B = TypeVar("B")
#: Requests to a bucket at the same time: what takes the time is waiting.
_PARALLEL_REQUESTS = 16


class DamagedError(StoreError, ValueError):
    """A file that should have a JSON object has none."""


class Files:
    """Files by name below a local folder or a bucket's prefix.

    Args:
        url: the folder, or `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        kms_key: key of AWS KMS that encrypts each object on S3; None: what the bucket is set to.
        own_mode: rights of the folders that are made where the folder was not opened to a group for writing.
    """

    def __init__(self, url: str, kms_key: str | None = None, own_mode: int = PRIVATE_FOLDER):
        self.is_local = not url.startswith(SCHEMES)
        self.url = str(Path(url).absolute()) if self.is_local else url.rstrip("/")
        self.kms_key = kms_key
        self._folder = Folder(Path(self.url), own_mode)
        self._storage = self._folder if self.is_local else Bucket(self.url, kms_key)

    @property
    def bucket(self) -> Bucket:
        """The bucket of a store that is in one."""
        assert isinstance(self._storage, Bucket), "a local store has no bucket"
        return self._storage

    @property
    def folder_mode(self) -> int:
        """Rights of folders of the store, or of this machine's copies of it."""
        return self._folder.folder_mode

    @property
    def file_mode(self) -> int:
        """Rights of files of the store, or of this machine's copies of it."""
        return self._folder.file_mode

    def make_folder(self, path: Path) -> Path:
        """Make a folder of the store, or of this machine's copies of it, and return it."""
        make_folder(path, self.folder_mode)
        return path

    @property
    def cache_folder(self) -> Path:
        """Folder on this machine for copies of a remote store's files, and for unfinished work on them."""
        return Path(
            os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets", digest(self.url)
        )

    def read_bytes(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file."""
        try:
            return self._storage.read(name)
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a file in one atomic step.

        Raises:
            DiskError: there is no room for it.
        """
        try:
            self._storage.write(name, data)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise DiskError(
                f"{self.url}: no room for {name} ({error.strerror}); free space or raise the quota, then run"
                " the same command again: nothing half-written is left"
            ) from error

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of this name, and return whether it was written."""
        if self.is_local:
            return self._folder.write_new(name, data)
        # An object that is there may be this one: the answer was lost, and the request repeated.
        return self.write_if_version(name, data, None) or self.read_bytes(name) == data

    def write_if_version(self, name: str, data: bytes, version: FileVersion | None) -> bool:
        """Write a file in a bucket if it still has this version (None: if there is none), and return whether
        it was written.
        """
        if self.bucket.write_where(name, data, version):
            return True
        if version is None or version.e_tag is None or self.bucket.version_of(name) != version:
            return False
        # Ceph's gateway and services built on it compare the ETag without the quotes around it.
        return self.bucket.write_where(name, data, version._replace(e_tag=version.e_tag.strip('"')))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, or None if there is no such file."""
        data = self.read_bytes(name)
        return None if data is None else self.parsed(name, data)

    def parsed(self, name: str, data: bytes) -> dict[str, Any]:
        """Return the JSON object in a file's content.

        Raises:
            DamagedError: it is damaged.
        """
        with suppress(ValueError, RecursionError):
            if isinstance(content := json.loads(data), dict):
                return content
        raise DamagedError(
            f"{self.url}/{name}: damaged, no JSON object; put a copy of it back, or remove it and run the"
            " same command again"
        )

    def write_json(self, name: str, value: Mapping[str, Any]) -> str:
        """Write or replace a JSON file and return its URI."""
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())
        return f"{self.url}/{name}"

    def upload(self, folder: Path, ref: str, names: list[str]) -> None:
        """Copy files of a folder of this machine below `ref`."""
        for name in names:
            self._storage.upload(folder / name, f"{ref}/{name}")

    def download(self, name: str, path: Path) -> None:
        """Copy a file of a bucket to this machine.

        Raises:
            FileNotFoundError: there is no such file.
        """
        self.make_folder(path.parent)
        self.bucket.download(name, path)

    def remove(self, name: str) -> None:
        """Remove a file; nothing where there is none."""
        self._storage.remove([name])

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it; nothing where there is none."""
        self._storage.remove_folder(name)

    def names(self, folder: str) -> list[str]:
        """Return the names of what is directly in a folder, sorted."""
        return self._storage.names(folder)

    def versions(self, folder: str) -> dict[str, str]:
        """Return the files directly in a folder, each with what changes when it is replaced."""
        return {entry.name: entry.version for entry in self._storage.entries(folder, is_deep=False)}

    def each(self, do: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield the result of `do` for each item; where that means requests to a bucket, several are made at
        a time.
        """
        if self.is_local:
            yield from map(do, items)
            return
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            yield from pool.map(do, items)

    def last_written(self, folder: str) -> float:
        """Return when a file below a folder was written last, in seconds since the epoch; 0 where there is
        none.
        """
        return max((entry.modified_at for entry in self._storage.entries(folder)), default=0.0)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file below a folder, by its name within the store."""
        return {f"{folder}/{entry.name}": entry.bytes for entry in self._storage.entries(folder)}
