"""The texts that the rows of a manifest name: files of the delivery folder, or objects of the buckets that
may be read.
"""

from __future__ import annotations

import errno
import io
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.aws import as_os_errors, s3_client
from fullft_assets.documents.formats import Unreadable, encodings
from fullft_assets.documents.formats.delivered import MAX_TEXT_BYTES
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings

if TYPE_CHECKING:
    from fullft_assets.documents.sources import Source

#: Objects that are fetched at a time.
_FETCHERS = 16
_S3 = "s3://"


class References:
    """Fetches what references name. They are read with all rights of the run, so where they may point is
    bounded.

    Args:
        source: the delivery; its bucket may be read.
        documents: encoding, and other buckets that may be read.
        out_of_reach: the URL of the store, below which nothing is read.
    """

    def __init__(self, source: Source, documents: DocumentsSettings, out_of_reach: str | None = None):
        self._source = source
        self._encoding = documents.encoding
        own_buckets = [source.uri.removeprefix(_S3).partition("/")[0]] if source.uri.startswith(_S3) else []
        self._buckets = {*own_buckets, *documents.reference_buckets}
        self._out_of_reach = None if out_of_reach is None else f"{out_of_reach.rstrip('/')}/"

    def texts(self, manifest: str, references: Sequence[str]) -> list[str | OSError]:
        """Return the text that each reference names, or why it cannot be read.

        Raises:
            DataError: S3 cannot be reached.
        """

        def fetch(reference: str) -> bytes | OSError:
            try:
                return self._bytes(manifest, reference)
            except OSError as error:
                return error

        with ThreadPoolExecutor(_FETCHERS) as pool:
            fetched = list(pool.map(fetch, references))
        texts = iter(
            encodings.decode_all([data for data in fetched if isinstance(data, bytes)], self._encoding)
        )
        texts_or_errors = [next(texts) if isinstance(data, bytes) else data for data in fetched]
        return [OSError(str(text)) if isinstance(text, Unreadable) else text for text in texts_or_errors]

    def refusal(self, manifest: str, reference: str) -> OSError | None:
        """Return why a reference cannot be read, as far as this is known without an answer of S3; None:
        nothing speaks against it.
        """
        try:
            if "://" in reference:
                self._object(reference)
            else:
                with self._file(manifest, reference):
                    pass
        except OSError as error:
            return error
        return None

    def _bytes(self, manifest: str, reference: str) -> bytes:
        """Return the bytes that a reference names: an object of S3, or a file below the delivery folder,
        relative to its manifest.
        """
        if "://" in reference:
            return _fetched(*self._object(reference))
        with self._file(manifest, reference) as local:
            return local.read_bytes()

    @contextmanager
    def _file(self, manifest: str, reference: str) -> Iterator[Path]:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(manifest), reference))
        if path.startswith(("/", "../")) or "\0" in path:
            raise OSError("outside of the delivery folder")
        with self._source.local(path) as local:
            _refuse_large(local.stat().st_size)
            yield local

    def _object(self, reference: str) -> tuple[str, str]:
        """Return the bucket and the key that an address names, if it may be read."""
        if not reference.startswith(_S3):
            raise OSError("neither a path nor an s3:// address")
        bucket, _, key = reference.removeprefix(_S3).partition("/")
        if not (bucket and key):
            raise OSError("an s3:// address without a bucket or a key")
        if bucket not in self._buckets:
            raise OSError("its bucket is not that of documents.path, nor among documents.reference_buckets")
        # However the address is written: `//` and `/./` are part of a key for S3, not for every server.
        if (
            self._out_of_reach is not None
            and f"{_S3}{bucket}{posixpath.normpath('/' + key.lstrip('/'))}/".startswith(self._out_of_reach)
        ):
            raise OSError("in the store, which no document may name")
        return bucket, key


def _refuse_large(num_bytes: int) -> None:
    if num_bytes > MAX_TEXT_BYTES:
        raise OSError(f"larger than {MAX_TEXT_BYTES // 2**20:,} MiB; split it")


def _fetched(bucket: str, key: str) -> bytes:
    s3 = s3_client(f"s3://{bucket}/{key}")
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    content = io.BytesIO()
    try:
        with as_os_errors():
            _refuse_large(s3.head_object(Bucket=bucket, Key=key)["ContentLength"])
            s3.download_fileobj(bucket, key, content)
    except ParamValidationError as error:
        raise OSError("not an address that S3 knows") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object") from error
    except (BotoCoreError, Boto3Error, ClientError) as error:
        # The row would have no text even once S3 answers again: the run fails instead, and a later one reads
        # all of it.
        raise _not_reached(str(error) or type(error).__name__) from error
    return content.getvalue()


def _not_reached(why: str) -> DataError:
    return DataError(f"source-ref: S3 cannot be reached ({why}); fix the credentials or the network")
