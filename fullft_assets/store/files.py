"""Files of a store: a local folder or a bucket, reached in one way."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fullft_assets.errors import is_cut_answer
from fullft_assets.extras import require
from fullft_assets.store.disk import PRIVATE_FILE, PRIVATE_FOLDER, make_folder, replace_synced
from fullft_assets.store.hashing import digest

A = TypeVar("A")
B = TypeVar("B")
#: Requests to S3 at the same time: what takes the time is waiting.
_PARALLEL_REQUESTS = 16
#: Before a read whose answer was cut is tried again.
_PAUSES = (0.2, 1.0, 3.0)
#: Answers of S3 to a write whose condition does not hold.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Files:
    """Files by name below a local folder or `s3://bucket/prefix`.

    Args:
        url: the folder or prefix.
        options: fsspec options of a remote store (endpoint, encryption); never secrets, those come
            from the environment.
        own_mode: rights of the folders that are made where the folder was not opened to a group for writing.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, own_mode: int = PRIVATE_FOLDER):
        import fsspec.core

        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._own_mode = own_mode
        self.is_local = "://" not in url
        if self.is_local:
            self.url = str(Path(url).absolute())
        elif self.url.startswith("s3://"):
            require("s3fs", f"store {self.url}")
        self._fs, self._root = fsspec.core.url_to_fs(self.url, **self.options)

    @property
    def folder_mode(self) -> int:
        """Rights of folders that the store makes: its user's alone, or those of its root where that was
        opened to a group for writing.
        """
        root = Path(self.url)
        mode = root.stat().st_mode & 0o7777 if self.is_local and root.is_dir() else 0
        return mode if mode & 0o020 else self._own_mode

    @property
    def file_mode(self) -> int:
        """Rights of files that the store makes, as `folder_mode`."""
        return PRIVATE_FILE if (mode := self.folder_mode) == PRIVATE_FOLDER else mode & 0o666

    def make_folder(self, path: Path) -> Path:
        """Make a folder of the store, or of this machine's copies of it, and return it."""
        make_folder(path, self.folder_mode)
        return path

    @property
    def cache_folder(self) -> Path:
        """Folder on this machine for copies of a remote store's files, and for unfinished work on them."""
        root = Path(os.environ.get("FULLFT_CACHE") or Path.home() / ".cache" / "fullft_assets")
        return root / digest(self.url)

    def read_bytes(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file."""
        # Left alone, s3fs asks for the size first, to fetch a large file in parts.
        in_one = {} if self.is_local else {"max_concurrency": 1}
        try:
            return whole(lambda: self._fs.cat_file(f"{self._root}/{name}", **in_one))
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a file in one atomic step."""
        if not self.is_local:
            self._fs.pipe_file(f"{self._root}/{name}", data)
            return
        path = Path(self.url, name)
        self.make_folder(path.parent)
        replace_synced(path, data, self.file_mode)

    def signed_link(self, name: str, seconds: int, content_type: str) -> str:
        """Return a link to a file in a bucket that whoever has it can open for so long (of a local store, the
        file's URI).
        """
        if self.is_local:
            return Path(self.url, name).as_uri()
        import fsspec.core

        # Left alone, botocore signs links by version 2, which new regions and encrypted buckets refuse.
        config = {**self.options.get("config_kwargs", {}), "signature_version": "s3v4"}
        fs, root = fsspec.core.url_to_fs(self.url, **{**self.options, "config_kwargs": config})
        return fs.sign(f"{root}/{name}", expiration=seconds, ResponseContentType=content_type)

    def version_of(self, name: str) -> str | None:
        """Return the ETag of a file in a bucket, or None if there is no such file."""
        try:
            return self._fs.info(f"{self._root}/{name}", refresh=True)["ETag"]
        except FileNotFoundError:
            return None

    def write_if_version(self, name: str, data: bytes, version: str | None) -> bool:
        """Write a file in a bucket if it still has this version (None: if there is none), and return whether
        it was written.
        """
        if version is None:
            return self._write_where(name, data, IfNoneMatch="*")
        if self._write_where(name, data, IfMatch=version):
            return True
        # Ceph's gateway and services built on it compare the ETag without the quotes around it.
        return self.version_of(name) == version and self._write_where(name, data, IfMatch=version.strip('"'))

    def _write_where(self, name: str, data: bytes, **condition: str) -> bool:
        try:
            self._fs.pipe_file(f"{self._root}/{name}", data, **condition)
        except FileNotFoundError:  # it was deleted meanwhile
            return False
        except OSError as error:
            answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if answer not in _CHANGED:
                raise
            return False
        return True

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, or None if there is no such file."""
        data = self.read_bytes(name)
        return None if data is None else json.loads(data)

    def write_json(self, name: str, value: Mapping[str, Any]) -> str:
        """Write or replace a JSON file and return its URI."""
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())
        return f"{self.url}/{name}"

    def upload(self, folder: Path, ref: str, names: list[str]) -> None:
        """Copy files of a local folder below `ref`."""
        for name in names:
            self._fs.put_file(str(folder / name), f"{self._root}/{ref}/{name}")

    def download(self, name: str, path: Path) -> None:
        """Copy a file of a bucket to this machine.

        Raises:
            FileNotFoundError: there is no such file.
        """
        self.make_folder(path.parent)
        whole(lambda: self._fs.get_file(f"{self._root}/{name}", str(path)))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{name}", recursive=True)

    def names(self, folder: str) -> list[str]:
        """Return the names of what is directly in a folder."""
        return [PurePosixPath(path).name for path in self._entries(folder, detail=False)]

    def _entries(self, folder: str, *, detail: bool) -> list[Any]:
        self._fs.invalidate_cache()
        try:
            return self._fs.ls(f"{self._root}/{folder}", detail=detail)
        except FileNotFoundError:
            return []

    def versions(self, folder: str) -> dict[str, str]:
        """Return the files directly in a folder, each with what changes when it is replaced; a bucket answers
        for 1,000 at a time.

        On a disk that is inode, size and time, in a bucket the ETag, which two files of equal content may
        share.
        """
        if self.is_local:
            return dict(_on_disk(Path(self.url, folder)))
        entries = self._entries(folder, detail=True)
        return {info["name"].rpartition("/")[2]: info["ETag"] for info in entries if info["type"] == "file"}

    def each(self, do: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield what `do` returns for each item; where that means requests to a bucket, several are made at a
        time.
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
        self._fs.invalidate_cache()
        entries = self._fs.find(f"{self._root}/{folder}", detail=True).values()
        return max(
            (info["mtime"] if self.is_local else info["LastModified"].timestamp() for info in entries),
            default=0.0,
        )

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file below a folder, by its name within the store."""
        self._fs.invalidate_cache()
        entries = self._fs.find(f"{self._root}/{folder}", detail=True)
        return {path.removeprefix(f"{self._root}/"): info["size"] for path, info in entries.items()}


def whole(read: Callable[[], B]) -> B:
    """Return what a read of a bucket returns; one whose answer was cut is begun anew.

    s3fs goes on where it was cut, and botocore then compares the rest with the checksum of the whole.
    """
    for pause in _PAUSES:
        try:
            return read()
        except Exception as error:
            if not is_cut_answer(error):
                raise
            time.sleep(pause)
    return read()


def _on_disk(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # an unfinished file that was renamed meanwhile
                    state = entry.stat()
                    if stat.S_ISREG(state.st_mode):
                        yield entry.name, f"{state.st_ino}-{state.st_size}-{state.st_mtime_ns}"
    except FileNotFoundError:
        return
