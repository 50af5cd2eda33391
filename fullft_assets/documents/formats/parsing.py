"""What the readers of binary formats share: a broken file is one line, an archive is bounded, and half a
character is none.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fullft_assets.documents.formats.delivered import Unreadable

#: Bounds of an archive: its members, and the bytes that they unpack to.
MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 2**30
_CHUNK_BYTES = 2**20
_IS_ENCRYPTED = 0x1
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
    """Open a zip archive whose members are few, small enough, not encrypted, and whose checksums fit.

    Raises:
        Unreadable: one of these does not hold, or it is no zip archive.
    """
    with path.open("rb") as data:
        if data.read(len(OLE_MAGIC)) == OLE_MAGIC:
            raise Unreadable(
                f"not {kind}: encrypted with a password, or in the old format of Office; save it as {kind}"
            )
    with parsing(kind), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise Unreadable(f"has more than {MAX_MEMBERS:,} members")
        # More than a member's header gives is never unpacked.
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise Unreadable(f"unpacks to more than {MAX_UNPACKED_BYTES // 2**20:,} MiB; split it")
        if any(member.flag_bits & _IS_ENCRYPTED for member in members):
            raise Unreadable("encrypted; deliver it without a password")
        yield archive


def check_members(archive: zipfile.ZipFile) -> None:
    """Unpack every member once, so that a checksum that does not fit is found before a parser reads half of a
    member.

    Raises:
        zipfile.BadZipFile: a member is damaged.
    """
    for member in archive.infolist():
        with archive.open(member) as data:
            while data.read(_CHUNK_BYTES):
                pass


def whole_characters(text: str) -> str:
    """Return a text whose halves of surrogate pairs are joined; a lone half, which is no character, becomes
    U+FFFD.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
