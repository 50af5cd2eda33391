"""Where documents come from: a local folder, or the objects below an S3 prefix."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fullft_assets.aws import aws_client
from fullft_assets.documents.formats import is_readable
from fullft_assets.documents.names import alias, is_about
from fullft_assets.errors import DataError, SourceError, classify
from fullft_assets.settings.use_case import locate

#: Endings of files that are still being written.
_PARTIAL = (".partial", ".part", ".tmp", ".temp", ".crdownload", ".filepart")
_LEAVES = "a link that leaves the folder; deliver the file itself"
_NOT_REGULAR = "not a regular file"
#: Codes of S3's errors that refuse.
_DENIED = {"403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"}
#: Requests to S3 at the same time: most documents are small, so that waiting is what takes the time.
_PARALLEL_REQUESTS = 16


class SourceFile(NamedTuple):
    """One delivered file as it was when its batch was cut.

    S3 gives times in full seconds; the ETag distinguishes two writes within one second.
    """

    path: str
    bytes: int
    mtime_ns: int
    etag: str = ""


def open_source(path: str, project_root: Path, *, any_ending: bool = False) -> "Source":
    """Return the source that a path of the YAML names.

    Args:
        path: a folder or s3://bucket/prefix.
        project_root: where relative paths start.
        any_ending: files are read whatever their ending.

    An s3:// one is reached as every AWS client is, through AWS_ENDPOINT_URL, AWS_PROFILE and so on. Reading
    needs no
    options: what is encrypted with a KMS key comes decrypted to a role that may use the key.
    """
    return (
        S3Prefix(path, any_ending=any_ending)
        if path.startswith("s3://")
        else Folder(locate(path, project_root), any_ending=any_ending)
    )


class Folder:
    """A local folder: its regular files. A dangling link is a file as well: reading it reports what is wrong.

    Args:
        folder: the folder.
        any_ending: files are read whatever their ending.
    """

    #: Whether a file may be seen half-written. An S3 object appears complete.
    may_be_growing = True

    def __init__(self, folder: Path, *, any_ending: bool = False):
        self.folder = folder
        #: The folder's absolute path, or s3://bucket/prefix: the prefix of a path in a message.
        self.uri = str(folder.absolute())
        #: Paths that the last listing met and left alone because their endings are not read; hidden and
        #: partial ones are not among them.
        self.others: list[str] = []
        #: Why the last listing skipped other entries that it met, by path: links that leave the folder,
        #: pipes, folders that may not be listed.
        self.skipped: dict[str, str] = {}
        self._any_ending = any_ending
        self._root = str(folder)
        self._real = os.path.realpath(folder)

    def files(self) -> list[SourceFile]:
        """Return the files whose endings are read, sorted by path, without hidden and partial files.

        Raises:
            DataError: there is no such folder, or it cannot be listed.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: folder not found; deliver the documents there or fix documents.path"
            )
        return sorted(self.walk())

    def walk(self) -> Iterator[SourceFile]:
        """Yield the files of `files` as they are found; of a folder that several links lead to the first path
        by name counts.
        """
        self.others = []
        self.skipped = {}
        # A link to a folder above would be walked for ever.
        entered = {_identity(self._root)}
        for directory, folders, names in os.walk(self._root, onerror=self._not_listed, followlinks=True):
            prefix = f"{directory[len(self._root) :]}/".lstrip("/")
            for name in names:
                path = f"{prefix}{name}"
                if name.startswith(".") or is_about(path):
                    continue
                if not _is_document(name, self._any_ending):
                    self.others += [path] * _is_other(name)
                elif (file := self._listed(path)) is not None:
                    yield file
            folders[:] = [name for name in sorted(folders) if self._is_entered(f"{prefix}{name}", entered)]

    def _not_listed(self, error: OSError) -> None:
        if error.filename == self._root:
            raise DataError(
                f"{self.folder}: folder cannot be listed ({error.strerror}); fix its permissions"
            ) from error
        self.skipped[f"{error.filename[len(self._root) :]}/".lstrip("/")] = (
            f"folder cannot be listed: {error.strerror}"
        )

    def _is_entered(self, path: str, entered: set[tuple[int, int]]) -> bool:
        full = f"{self._root}/{path}"
        if os.path.basename(path).startswith("."):
            return False
        if os.path.islink(full) and not self._may_follow(full):
            self.skipped[path] = _LEAVES
            return False
        try:
            identity = _identity(full)
        except OSError as error:
            self.skipped[f"{path}/"] = _why(error)
            return False
        is_new = identity not in entered
        entered.add(identity)
        return is_new

    def _listed(self, path: str) -> SourceFile | None:
        full = f"{self._root}/{path}"
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                if not self._may_follow(full):
                    self.skipped[path] = _LEAVES
                    return None
                with suppress(FileNotFoundError):  # a dangling link stays one
                    status = os.stat(full)
        except FileNotFoundError:  # removed meanwhile
            return None
        except OSError as error:
            self.skipped[path] = _why(error)
            return None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            self.skipped[path] = _NOT_REGULAR
            return None
        return _source_file(path, status)

    def _may_follow(self, path: str) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._real]) == self._real

    def status(self, path: str) -> SourceFile | None:
        """Return a file as it is now, or None where there is none; a dangling link is one."""
        full = self.folder / path
        try:
            return _source_file(path, full.stat() if full.exists() else full.lstat())
        except OSError:
            return None

    def statuses(self, paths: Iterable[str]) -> dict[str, SourceFile | None]:
        """Return `status` of each path."""
        return {path: self.status(path) for path in paths}

    def digest(self, file: SourceFile) -> str:
        """Return a file's sha256, or `unreadable: why`."""
        try:
            with self.local(file.path) as path, path.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            return f"unreadable: {error.strerror}"

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Return the file itself.

        Raises:
            OSError: it is no regular file (opening a pipe would wait for ever), or outside of the folder.
        """
        full = self.folder / path
        if not self._may_follow(str(full)):
            raise OSError(errno.EPERM, _LEAVES)
        mode = full.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, _NOT_REGULAR)
        yield full

    @contextmanager
    def fetched(self, files: Sequence[SourceFile]) -> Iterator[None]:
        """Do nothing: a folder's files are at hand."""
        yield


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _source_file(path: str, status: os.stat_result) -> SourceFile:
    return SourceFile(path, status.st_size, status.st_mtime_ns)


def _is_document(name: str, any_ending: bool) -> bool:
    return _has_known_ending(_end_of(name)) or (any_ending and _is_other(name))


def _is_other(name: str) -> bool:
    # Neither half-written nor a note that some program made for itself.
    return not (_has_known_ending(_end_of(name)) or name.startswith("_") or name.lower().endswith(_PARTIAL))


def _end_of(name: str) -> str:
    return name[name.find(".", max(0, len(name) - 20)) :]


@lru_cache(maxsize=4096)
def _has_known_ending(ending: str) -> bool:
    return is_readable(f"x{ending}")


class S3Prefix:
    """The objects below `s3://bucket/prefix`.

    Args:
        url: the prefix.
        any_ending: objects are read whatever their ending.
    """

    may_be_growing = False

    def __init__(self, url: str, *, any_ending: bool = False):
        self.uri = url.rstrip("/")
        self._bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._any_ending = any_ending
        self._copies: dict[str, Path | OSError] = {}
        self.others: list[str] = []
        self.skipped: dict[str, str] = {}

    def files(self) -> list[SourceFile]:
        """Return the readable-by-ending objects, sorted by path; one request lists 1,000.

        Raises:
            DataError: the bucket is not there or may not be listed.
            SourceError: it cannot be reached now.
        """
        return sorted(self.listed()[0])

    def listed(self, after: str = "", most_pages: int | None = None) -> tuple[list[SourceFile], str]:
        """Return the readable-by-ending objects on the next pages of the listing, and the path to go on
        after.

        Args:
            after: the path to go on after; empty: from the beginning.
            most_pages: pages of 1,000 keys to list. Default: all.

        Returns:
            The objects, and the last path that was listed; it is empty where the end of the prefix is
            reached.

        Raises:
            DataError: the bucket is not there or may not be listed.
            SourceError: it cannot be reached now.
        """
        files: list[SourceFile] = []
        self.others = []
        for number in count(1):
            entries, is_last = self._page(after)
            for entry in entries:
                path = entry["Key"][len(self._prefix) :]
                name = path.rpartition("/")[2]
                if not name or path.startswith(".") or "/." in path or is_about(path):
                    continue
                if not _is_document(name, self._any_ending):
                    self.others += [path] * _is_other(name)
                else:
                    files.append(_object(path, entry, entry["Size"]))
            # Not by the server's token: it is good for minutes, and the next look may come later.
            after = "" if is_last or not entries else entries[-1]["Key"][len(self._prefix) :]
            if not after or number == most_pages:
                break
        return files, after

    def _page(self, after: str) -> tuple[list[dict[str, Any]], bool]:
        position = {"StartAfter": self._prefix + after} if after else {}
        try:
            answer = self._ask("list_objects_v2", Prefix=self._prefix, **position)
        except FileNotFoundError as error:
            raise DataError(f"{self.uri}: bucket not found; create it or fix documents.path") from error
        except PermissionError as error:
            raise DataError(
                f"{self.uri}: access denied ({error}); let the role list the bucket and get its objects"
            ) from error
        return answer.get("Contents", []), not answer.get("IsTruncated")

    def status(self, path: str) -> SourceFile | None:
        """Return an object as it is now, or None where there is none or it may not be read.

        Raises:
            SourceError: the bucket cannot be reached now.
        """
        try:
            answer = self._ask("head_object", Key=self._prefix + path)
        except (FileNotFoundError, PermissionError):
            return None
        return _object(path, answer, answer["ContentLength"])

    def statuses(self, paths: Iterable[str]) -> dict[str, SourceFile | None]:
        """Return `status` of each path, several requests at a time."""
        paths = list(paths)
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return dict(zip(paths, pool.map(self.status, paths), strict=True))

    def digest(self, file: SourceFile) -> str:
        """Return an object's ETag as it was cut: another content has another one."""
        return f"etag:{file.etag}"

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Return the fetched object; one that was not fetched yet comes into a temporary file."""
        with tempfile.TemporaryDirectory(prefix="fullft-") as folder:
            copy = self._copies.get(path) or self._fetch(path, Path(folder))
            if isinstance(copy, OSError):
                raise copy
            yield copy

    @contextmanager
    def fetched(self, files: Sequence[SourceFile]) -> Iterator[None]:
        """Fetch objects into a temporary folder, several requests at a time, and remove them at the end.

        Raises:
            DataError: an object that is there may not be read.
            SourceError: one could not be fetched: the run fails, and a later one may succeed.
        """
        with tempfile.TemporaryDirectory(prefix="fullft-") as folder:
            with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
                copies = pool.map(
                    lambda n: self._fetch(files[n].path, Path(folder, str(n))), range(len(files))
                )
                self._copies = dict(zip((file.path for file in files), copies, strict=True))
            try:
                yield
            finally:
                self._copies = {}

    def _fetch(self, path: str, folder: Path) -> Path | OSError:
        folder.mkdir(exist_ok=True)
        # The key may be longer than a local name; its end has the format's ending.
        copy = folder / PurePosixPath(path).name[-100:]
        try:
            self._ask("download_file", Key=self._prefix + path, Filename=str(copy))
        except FileNotFoundError:
            return FileNotFoundError(errno.ENOENT, "no such object")
        except PermissionError as error:
            if self.status(path) is None:
                return PermissionError(errno.EACCES, str(error))
            # Once the key may be used the object looks the same: an artifact without it would pass as
            # complete.
            raise DataError(
                f"{self.uri}: {alias(path)} may not be read ({error}); let the role use the key that encrypts"
                " it"
            ) from error
        return copy

    def _ask(self, request: str, **arguments: str) -> Any:
        """Return what S3 answers to a request of its client.

        Raises:
            FileNotFoundError: there is no such object, or bucket.
            PermissionError: it may not be used.
            SourceError: S3 did not answer, or not completely, or has no time.
            DataError: any other error.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(aws_client("s3", self.uri), request)(Bucket=self._bucket, **arguments)
        except (BotoCoreError, Boto3Error, ClientError, OSError) as error:
            answer: Mapping[str, Any] = error.response if isinstance(error, ClientError) else {}
            code = answer.get("Error", {}).get("Code", "")
            if code in {"404", "NoSuchKey", "NoSuchBucket"}:
                raise FileNotFoundError(str(error)) from error
            if code in _DENIED:
                raise PermissionError(str(error)) from error
            why = (str(error) or type(error).__name__).splitlines()[0]
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if (
                status >= 500
                or status == 429
                or code == "RequestTimeout"
                or classify(error) == "infrastructure"
            ):
                raise SourceError(
                    f"{self.uri}: cannot be read now ({why}); try again later, or fix the connection"
                ) from error
            raise DataError(f"{self.uri}: cannot be read ({why}); fix the path or the credentials") from error


#: A place with delivered files; a path is relative to it, with forward slashes.
Source = Folder | S3Prefix


def _object(path: str, info: Mapping[str, Any], num_bytes: int) -> SourceFile:
    # A request for one object gives full seconds, some servers' listings give fractions: only the seconds are
    # comparable.
    return SourceFile(path, num_bytes, int(info["LastModified"].timestamp()) * 10**9, info["ETag"].strip('"'))
