"""Writing to a disk so that a power cut leaves the old content or the new one, and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fullft_assets.store.manifest import MANIFEST

#: A folder younger than this may not be locked by its writer yet.
_LOCK_SECONDS = 1.0


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_synced(path: Path, content: str | bytes) -> None:
    """Replace a file in one atomic step; its content is on the disk when this returns."""
    # Two processes, or threads, may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        # On a full disk it would go on taking room.
        partial.unlink(missing_ok=True)
        raise
    # Syncing a file does not sync its name.
    sync(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: it shows that a process is writing there, and ends with that process, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is in such a block for this lock file, which is made; the lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_unlocked(folder: Path) -> bool:
    """Remove the folder of an attempt unless it has a manifest or its writer may be alive; return whether it is gone."""
    begun = folder.name.split("-")[0]
    age = time.time() - int(begun) / 1e9 if begun.isdecimal() else _LOCK_SECONDS
    time.sleep(min(max(0.0, _LOCK_SECONDS - age), _LOCK_SECONDS))
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or a file system without locks, where the writer may be alive
            return False
        if (folder / MANIFEST).is_file():
            return False
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)
    return True
