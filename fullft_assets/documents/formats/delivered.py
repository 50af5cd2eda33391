"""A delivered file, opened: unpacked and decoded, or one line that says why not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from fullft_assets.documents.formats import compression_of


class Unreadable(Exception):
    """A file cannot be read as a whole; the message says why, and holds nothing of its content."""


@dataclass(frozen=True)
class Delivered:
    """A local copy of a delivered file.

    `name` is its path relative to the source, `encoding` how its text is decoded.
    """

    path: Path
    name: str
    encoding: str = "utf-8-sig"

    @property
    def compression(self) -> str | None:
        """The codec that the file is packed with, or None."""
        return compression_of(self.name)

    @contextmanager
    def binary(self) -> Iterator[BinaryIO]:
        """Open the file's bytes, unpacked.

        Raises:
            OSError: the file cannot be opened.
            Unreadable: it is no whole archive.
        """
        if self.compression is None:
            with self.path.open("rb") as file:
                yield file
            return
        import pyarrow as pa

        if self.path.stat().st_size == 0:
            raise Unreadable(f"not a {self.compression} archive: empty")
        try:
            with pa.input_stream(str(self.path), compression=self.compression) as stream, io.BufferedReader(stream, 2**20) as file:
                yield file
        except OSError as error:
            if error.strerror:  # the system's own error; pyarrow's has none
                raise
            raise Unreadable(f"not a whole {self.compression} archive ({str(error).splitlines()[0]})") from error

    @contextmanager
    def text(self, newline: str | None = None) -> Iterator[TextIO]:
        """Open the file's text, unpacked and decoded strictly."""
        with self.binary() as file, io.TextIOWrapper(file, encoding=self.encoding, newline=newline) as text:
            yield text

    def data(self) -> bytes:
        """Return all bytes, unpacked."""
        with self.binary() as file:
            return file.read()
