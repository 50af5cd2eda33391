"""A folder of a disk: a power cut leaves the old content or the new one, and locks end with their process."""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fullft_assets.store.manifest import MANIFEST

#: Rights of what the store makes: documents and weights are for the user who runs it.
PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
#: A folder younger than this may not be locked by its writer yet.
_LOCK_SECONDS = 1.0


def sync(path: Path) -> None:
    """Write a file's content, or the names in a folder, to the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Make a folder, and those above it that are missing, with these rights; their names are on the disk when
    this returns.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            with suppress(FileExistsError):  # another process was faster
                path.mkdir(mode)
                path.chmod(mode)  # whatever the umask
                sync(path.parent)


def replace_synced(path: Path, content: str | bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace a file in one atomic step, with these rights; its content is on the disk when this returns."""
    # Two processes, or threads, may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            os.fchmod(file.fileno(), mode)
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
    """Hold a folder's lock: it shows that a process is writing there, and ends with that process, however it
    ends.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path, mode: int = PRIVATE_FILE) -> Iterator[None]:
    """Wait until no other process or thread holds this lock file, whose folder exists, and hold it for the
    block; the lock ends with its process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        with suppress(PermissionError):  # another user of the group made it
            os.fchmod(descriptor, mode)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_unlocked(folder: Path) -> bool:
    """Remove the folder of an attempt unless it has a manifest or its writer may be alive; return whether it
    is gone.
    """
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


class Entry(NamedTuple):
    """A file below a folder or a prefix.

    Attributes:
        name: its name below that folder, with `/` between its parts.
        bytes: its size.
        modified_at: seconds since the epoch at which it was written.
        version: what changes when it is replaced. On a disk that is inode, size and time, in a bucket the
            ETag, which two files of equal content may share.
    """

    name: str
    bytes: int
    modified_at: float
    version: str


class Folder:
    """A folder of this machine.

    Args:
        own_mode: rights of the folders that are made where the folder was not opened to a group for writing.
    """

    def __init__(self, path: Path, own_mode: int = PRIVATE_FOLDER):
        self.path = path
        self._own_mode = own_mode

    @property
    def folder_mode(self) -> int:
        """Rights of folders that are made here: its user's alone, or those of the folder where that was
        opened to a group for writing.
        """
        mode = self.path.stat().st_mode & 0o7777 if self.path.is_dir() else 0
        return mode if mode & 0o020 else self._own_mode

    @property
    def file_mode(self) -> int:
        """Rights of files that are made here, as `folder_mode`."""
        return PRIVATE_FILE if (mode := self.folder_mode) == PRIVATE_FOLDER else mode & 0o666

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one atomic step."""
        make_folder((self.path / name).parent, self.folder_mode)
        replace_synced(self.path / name, data, self.file_mode)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a file in one atomic step unless there is one of this name; return whether it was written."""
        path = self.path / name
        make_folder(path.parent, self.folder_mode)
        with one_at_a_time(path.parent / ".lock", self.file_mode):
            if path.exists():
                return False
            self.write(name, data)
        return True

    def upload(self, path: Path, name: str) -> None:
        """Copy a file."""
        make_folder((self.path / name).parent, self.folder_mode)
        shutil.copyfile(path, self.path / name)

    def copy(self, name: str, target: str) -> None:
        """Copy a file within the folder."""
        self.upload(self.path / name, target)

    def names(self, folder: str) -> list[str]:
        """Return the names of what is directly in a folder."""
        try:
            return sorted(os.listdir(self.path / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, folder: str, *, is_deep: bool = True) -> Iterator[Entry]:
        """Yield the files in a folder, and in those below it where `is_deep`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path / folder) as children:
            for child in sorted(children, key=lambda child: child.name):
                if child.is_dir():
                    if is_deep:
                        yield from (
                            entry._replace(name=f"{child.name}/{entry.name}")
                            for entry in self.entries(f"{folder}/{child.name}")
                        )
                else:
                    with suppress(FileNotFoundError):  # an unfinished file that was renamed meanwhile
                        state = child.stat()
                        version = f"{state.st_ino}-{state.st_size}-{state.st_mtime_ns}"
                        yield Entry(child.name, state.st_size, state.st_mtime, version)

    def remove(self, names: Collection[str]) -> None:
        """Remove files; nothing where there is none."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; nothing where there is none."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path / folder)
