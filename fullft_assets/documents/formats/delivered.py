"""A delivered file, opened: unpacked and decoded, or one line that says why not.

A broken file of a binary format is one line as well, an archive is bounded, and half a character is none.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

import pyarrow as pa

#: Codec (by the name that pyarrow gives it) by ending.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def ending_of(name: str) -> str:
    """Return a file's ending in lower case; the ending of a compression is left out."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def compression_of(name: str) -> str | None:
    """Return the codec that a file is packed with, or None."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)


#: A record by its field names, or the problem of a row that is none.
Record = dict[str, Any] | str
#: The largest text that is one document, in bytes: a file, or what a reference names.
MAX_TEXT_BYTES = 32 * 2**20
#: The longest line of a file that is read line by line, and the longest field of a CSV file, in characters.
MAX_LINE_CHARACTERS = 64 * 2**20
_NOT_ASCII = bytes(range(128, 256))


class Unreadable(Exception):
    """A file cannot be read to its end; the message gives the reason and nothing of the content."""


class Unpacked:
    """Counts the bytes that a file gives, and refuses more than an honest file has.

    Args:
        num_bytes: size of the file.
    """

    #: More than `MAX_RATIO` times its size a file may only give up to `FREE_BYTES`. Text is packed to a
    #: tenth, repetitive logs to a hundredth.
    MAX_RATIO = 200
    FREE_BYTES = 64 * 2**20
    MAX_BYTES = 4 * 2**30

    def __init__(self, num_bytes: int):
        self._most_by_ratio = max(self.FREE_BYTES, self.MAX_RATIO * num_bytes)
        self._most = max(self.MAX_BYTES, num_bytes)
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count some more bytes.

        Raises:
            Unreadable: there are too many.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._most_by_ratio:
            raise Unreadable(f"unpacks to more than {self.MAX_RATIO} times its size; deliver it unpacked")
        if self._num_bytes > self._most:
            raise Unreadable(f"unpacks to more than {self.MAX_BYTES // 2**30} GiB; split it")


class _Counted(io.RawIOBase):
    def __init__(self, stream: Any, unpacked_bytes: Unpacked):
        self._stream = stream
        self._unpacked = unpacked_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        number = self._stream.readinto(buffer)
        self._unpacked.add(number)
        return number


@dataclass
class Head:
    """The first bytes of a file, for a quick look at it: where reading stops, and how far it came."""

    max_bytes: int
    #: Bytes that were read, unpacked.
    num_bytes: int = 0
    is_cut: bool = False

    def ends_with(self, num_bytes: int) -> bool:
        """Count bytes that were read, and return whether reading stops behind them."""
        self.num_bytes += num_bytes
        self.is_cut = self.num_bytes >= self.max_bytes
        return self.is_cut


class _HeadReader(io.RawIOBase):
    def __init__(self, file: BinaryIO, head: Head):
        self._file = file
        self._head = head
        head.num_bytes = 0
        head.is_cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (head := self._head).num_bytes >= head.max_bytes:
            head.is_cut = True
            return 0
        data = self._file.read(len(buffer))
        head.num_bytes += len(data)
        if head.num_bytes >= head.max_bytes:
            # The last character may be cut in two.
            data = data[: len(data) // 4 * 4].rstrip(_NOT_ASCII)
        buffer[: len(data)] = data
        return len(data)


@dataclass(frozen=True)
class Delivered:
    """A local copy of a delivered file.

    `name` is its path relative to the source, `encoding` how its text is decoded, `head` how much of it is
    read at most.
    """

    path: Path
    name: str
    encoding: str = "utf-8-sig"
    head: Head | None = None

    @property
    def compression(self) -> str | None:
        """The codec that the file is packed with, or None."""
        return compression_of(self.name)

    def document(self, text: str) -> dict[str, Any]:
        """Return the record of a file that is one document: its text, its path, and the name of the folder
        that it is in.
        """
        return {"text": text, "file": self.name, "folder": PurePosixPath(self.name).parent.name or None}

    @contextmanager
    def binary(self) -> Iterator[BinaryIO]:
        """Open the file's bytes, unpacked.

        Raises:
            OSError: the file cannot be opened.
            Unreadable: its compression is damaged.
        """
        if self.compression is None:
            with self.path.open("rb") as file:
                yield self._first_bytes(file)
            return

        if self.path.stat().st_size == 0:
            raise Unreadable(f"not a {self.compression} archive: empty")
        try:
            with (
                pa.OSFile(str(self.path)) as archive,
                pa.CompressedInputStream(archive, self.compression) as stream,
                io.BufferedReader(_Counted(stream, Unpacked(self.path.stat().st_size)), 2**20) as file,
            ):
                yield self._first_bytes(file)
        except OSError as error:
            if error.strerror:  # the system's own error; pyarrow's has none
                raise
            raise Unreadable(
                f"not a complete {self.compression} archive ({str(error).splitlines()[0]})"
            ) from error

    def _first_bytes(self, file: BinaryIO) -> BinaryIO:
        return file if self.head is None else io.BufferedReader(_HeadReader(file, self.head))

    @contextmanager
    def text(self, newline: str | None = None) -> Iterator[TextIO]:
        """Open the file's text, unpacked and decoded strictly."""
        with self.binary() as file, io.TextIOWrapper(file, encoding=self.encoding, newline=newline) as text:
            yield text

    @contextmanager
    def lines(self, newline: str | None = None) -> Iterator[Iterator[str]]:
        """Open the file's text, line by line; a line that is too long raises `Unreadable`."""
        with self.text(newline) as text:
            yield _bounded_lines(text)

    def whole_text(self, max_bytes: int) -> str:
        """Return all of the file's text, unpacked and decoded strictly, with its line ends as they are.

        Raises:
            Unreadable: it unpacks to more characters than `max_bytes`.
        """
        with self.text(newline="") as text:
            content = text.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise Unreadable(f"unpacks to more than {max_bytes // 2**20:,} MiB; split it")
        return content

    def data(self) -> bytes:
        """Return all bytes, unpacked."""
        with self.binary() as file:
            return file.read()


def _bounded_lines(text: TextIO) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARACTERS:
            raise Unreadable(
                f"line {number} is longer than {MAX_LINE_CHARACTERS // 2**20:,} Mi characters; split it"
            )
        yield line


#: Bounds of an archive: its members, and the bytes that they unpack to.
MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 2**30
#: How files of Office begin that are no zip archive: .doc, .xls, and whatever is encrypted with a password.
OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@contextmanager
def parsing(kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on a broken file into `Unreadable`; its message may contain the text and
    is dropped.

    Raises:
        Unreadable: the parser raised anything but an error of the system or of memory, or for a missing
            package.
    """
    try:
        yield
    except (Unreadable, TimeoutError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # a parser of damaged files raises whatever it stumbles over
        if isinstance(error, OSError) and error.strerror:
            raise
        raise Unreadable(f"not a complete {kind} ({type(error).__name__})") from error


@contextmanager
def archive_of(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members are few, small enough, whole and not encrypted.

    Args:
        path: the archive.
        kind: what it is called.

    Raises:
        Unreadable: one of these does not hold, or it is no zip archive.
    """
    with path.open("rb") as data:
        if data.read(len(OLE_MAGIC)) == OLE_MAGIC:
            raise Unreadable(
                f"not {kind}: encrypted with a password, or in the old format of Office; save it as {kind}"
            )
    with parsing(kind), zipfile.ZipFile(path) as archive:
        if len(members := archive.infolist()) > MAX_MEMBERS:
            raise Unreadable(f"has more than {MAX_MEMBERS:,} members")
        # More than a member's header gives is never unpacked.
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise Unreadable(f"unpacks to more than {MAX_UNPACKED_BYTES // 2**20:,} MiB; split it")
        if any(member.flag_bits & 0x1 for member in members):
            raise Unreadable("encrypted; deliver it without a password")
        # Unpacked once, so that a checksum that does not fit is found before a parser reads half of a member.
        if archive.testzip() is not None:
            raise Unreadable(f"not a complete {kind} (BadZipFile)")
        yield archive


def whole_characters(text: str) -> str:
    """Return a text whose halves of surrogate pairs are joined; a lone half, which is no character, becomes
    U+FFFD.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
