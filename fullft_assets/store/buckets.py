"""A prefix of a bucket of S3, Google Cloud Storage or Azure."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from fullft_assets.extras import require
from fullft_assets.store.disk import Entry

A = TypeVar("A")
#: Beginnings of the URLs of buckets.
SCHEMES = ("s3://", "gs://", "az://")
#: A request ends after so long without a byte; a whole answer may take hours.
_TIMEOUTS: Any = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "12h"}
#: Seconds before each further try of a request whose answer was cut or lost.
_PAUSES = (0.2, 1.0, 3.0)


class FileVersion(NamedTuple):
    """A version of an object: S3 and Azure compare the ETag, Google Cloud Storage the generation."""

    e_tag: str | None
    version: str | None


class BucketError(OSError):
    """A bucket refused a request or could not be reached."""


class Bucket:
    """A prefix of a bucket.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`. S3 is reached as every
            AWS client is (AWS_ENDPOINT_URL, AWS_PROFILE, a role), the others by the variables of their own
            tools (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
        kms_key: key of AWS KMS that encrypts each object on S3; None: what the bucket is set to.

    All methods raise `BucketError` if the bucket cannot be reached, `PermissionError` if it may not be used.
    """

    def __init__(self, url: str, kms_key: str | None = None):
        require("obstore", f"store {url}")
        if url.startswith("s3://"):
            require("boto3", f"store {url}")
        self._url = url
        self._kms_key = kms_key

    @property
    def _objects(self) -> Any:
        # Variables that decide which account and server a bucket is reached with.
        account = tuple(
            sorted(
                (name, os.environ[name])
                for name in os.environ
                if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))
            )
        )
        with _as_os_errors(self._url):
            return _opened(self._url, self._kms_key, account)

    def read(self, name: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def read() -> bytes:
            with _as_os_errors(self._url):
                return self._objects.get(name).bytes().to_bytes()

        return _repeated(read)

    def write(self, name: str, data: bytes) -> None:
        """Write or replace an object in one atomic step."""
        self._ask("put", name, data)

    def write_where(self, name: str, data: bytes, version: FileVersion | None) -> bool:
        """Write an object if it still has this version (None: if there is none); return whether it was
        written. One that was written while its answer was lost counts as not written.
        """
        from obstore import exceptions

        parts = () if version is None else version._asdict().items()
        mode = "create" if version is None else {part: value for part, value in parts if value is not None}
        try:
            _repeated(lambda: self._ask("put", name, data, mode=mode))
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
            return False
        return True

    def version_of(self, name: str) -> FileVersion | None:
        """Return the version of an object, or None if there is no such object."""
        try:
            info = self._ask("head", name)
        except FileNotFoundError:
            return None
        return FileVersion(info["e_tag"], info["version"])

    def upload(self, path: Path, name: str) -> None:
        """Copy a file of this machine to an object."""
        # Least bytes of a part of an upload.
        # Parts of an upload, at most: S3 takes 10,000.
        self._ask("put", name, path, chunk_size=max(16 * 2**20, path.stat().st_size // 9_000))

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a file of this machine.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def download() -> None:
            with _as_os_errors(self._url), path.open("wb") as file:
                for part in self._objects.get(name):
                    file.write(part)

        _repeated(download)

    def copy(self, name: str, target: str) -> None:
        """Copy an object within the bucket."""
        self._ask("copy", name, target)

    def names(self, folder: str) -> list[str]:
        """Return the names of what is directly in a folder."""
        children = _repeated(lambda: self._ask("list_with_delimiter", folder))
        paths = [*children["common_prefixes"], *(info["path"] for info in children["objects"])]
        return sorted(PurePosixPath(path).name for path in paths)

    def entries(self, folder: str, *, is_deep: bool = True) -> list[Entry]:
        """Return the files in a folder, and where `is_deep` in those below it, 1,000 a request."""

        def entries() -> list[Entry]:
            with _as_os_errors(self._url):
                objects = self._objects
                pages = objects.list(folder) if is_deep else [objects.list_with_delimiter(folder)["objects"]]
                return [
                    Entry(
                        info["path"].removeprefix(f"{folder}/"),
                        info["size"],
                        info["last_modified"].timestamp(),
                        info["e_tag"] or "",
                    )
                    for page in pages
                    for info in page
                ]

        return _repeated(entries)

    def remove(self, names: Collection[str]) -> None:
        """Remove objects; nothing where there is none."""
        try:
            _repeated(lambda: self._ask("delete", list(names)))
        except FileNotFoundError:
            # Where objects are removed one by one, a repeated request ends at the first that is gone.
            for name in names if len(names) > 1 else ():
                self.remove([name])

    def remove_folder(self, folder: str) -> None:
        """Remove an object and all objects below it; nothing where there is none."""
        names = [f"{folder}/{entry.name}" for entry in self.entries(folder)]
        if names:
            self.remove(names)

    def _ask(self, request: str, *arguments: Any, **options: Any) -> Any:
        with _as_os_errors(self._url):
            return getattr(self._objects, request)(*arguments, **options)


@lru_cache(maxsize=32)
def _opened(url: str, kms_key: str | None, account: tuple[tuple[str, str], ...]) -> Any:
    """Return obstore's object for a bucket; the environment's settings are part of its name in the cache."""
    from obstore.store import from_url

    if not url.startswith("s3://"):
        is_emulated = any(value.startswith("http://") for _, value in account)
        return from_url(url, client_options=_TIMEOUTS | {"allow_http": is_emulated})
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        raise PermissionError("no AWS credentials; give them in the environment, by a profile or by a role")
    endpoint = session.client("s3", region_name=session.region_name or "us-east-1").meta.endpoint_url
    encryption: dict[str, Any] = {}
    if kms_key:
        encryption = {
            "server_side_encryption": "aws:kms",
            "sse_kms_key_id": kms_key,
            "sse_bucket_key_enabled": True,
        }
    return from_url(
        url,
        endpoint=endpoint,
        region=session.region_name or "us-east-1",
        client_options=_TIMEOUTS | {"allow_http": endpoint.startswith("http://")},
        credential_provider=Boto3CredentialProvider(session),
        **encryption,
    )


def _repeated(do: Callable[[], A]) -> A:
    """Return what a request returns; one whose answer was cut or lost is repeated, as obstore does before an
    answer begins.
    """
    for pause in _PAUSES:
        try:
            return do()
        except BucketError:
            time.sleep(pause)
    return do()


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    """Turn obstore's errors into Python's own, each of one line."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except exceptions.BaseError as error:
        line = str(error).strip().splitlines()[0]
        if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
            raise PermissionError(f"{url}: access denied ({line})") from error
        raise BucketError(f"{url}: {line}") from error
