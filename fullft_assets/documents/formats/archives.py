"""ZIP: the members that a folder would be read for, each by its ending.

A member that cannot be read is one quarantined row, and the others are read. No member is unpacked under its
own name, so no name leads anywhere else.
"""

import lzma
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fullft_assets.documents.formats import encodings
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable, archive_of, ending_of
from fullft_assets.documents.formats.registered import Format, Reading, format_of, is_readable
from fullft_assets.documents.names import is_ignored

#: The largest member that is read, in bytes, unpacked.
MAX_MEMBER_BYTES = 256 * 2**20
_ARCHIVES = (".zip", ".jar", ".7z", ".rar", ".tar", ".tgz")


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number in the archive, record or problem) of each row of each member, in the archive's order.

    A record without an id is named ARCHIVE/MEMBER:ROW. The first record of all decides what records mean (see
    `Format.looks_like`).

    Raises:
        Unreadable: the archive is damaged, encrypted or too large, has an archive in it, or a name that leads
            out of it.
    """
    id_field = dict(reading.wanted.names).get("id", "id")
    number = 0
    with (
        archive_of(file.path, "ZIP archive", is_checked=False) as archive,
        tempfile.TemporaryDirectory(prefix="fullft-") as folder,
    ):
        numbered = enumerate(archive.infolist(), start=1)
        members = {
            at: member for at, member in numbered if not member.is_dir() and not is_ignored(_checked(member))
        }
        if any(ending_of(member.filename) in _ARCHIVES for member in members.values()):
            raise Unreadable("has an archive in it; unpack it and deliver its files")
        for member_number, member in members.items():
            shown = member.filename.encode("utf-8", "replace").decode().replace("\n", " ")
            name = f"{file.name}/{shown}"
            for at, record in _member(archive, member, Delivered(Path(folder, "member"), name), reading):
                number += 1
                if isinstance(record, str):
                    # By its number: a problem is shown where no file is named.
                    yield number, f"member {member_number}{f', row {at}' if at else ''}: {record}"
                else:
                    yield (
                        number,
                        record
                        if record.get(id_field) not in (None, "")
                        else {**record, id_field: f"{name}:{at}"},
                    )


def _checked(member: zipfile.ZipInfo) -> str:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or ":" in path.parts[0]
        or stat.S_ISLNK(member.external_attr >> 16)
    ):
        raise Unreadable("has a link, or a member whose name leads out of the archive")
    return member.filename


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Delivered, reading: Reading
) -> list[tuple[int, Record]]:
    format_ = format_of(member.filename)
    if format_ is None or format_.records is None or not is_readable(member.filename):
        return [(0, "not read: no format has its ending")]
    if member.file_size > min(MAX_MEMBER_BYTES, format_.max_bytes or MAX_MEMBER_BYTES):
        return [(0, "too large; deliver it outside of the archive")]
    read: Any = format_.records
    try:
        with archive.open(member) as packed, file.path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        # Of an export of an annotation tool all fields are needed.
        inner = replace(reading, fields=None)
        if not format_.is_text:
            return list(_going_on(read(file, inner), reading))
        records, _ = encodings.read_text(
            file,
            reading.documents.encoding,
            format_.declared_encoding,
            lambda text: list(_going_on(read(text, inner), reading)),
        )
        return records
    except Unreadable as error:
        return [(0, str(error))]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
        return [(0, f"damaged, or packed by an unknown method ({type(error).__name__})")]


def _going_on(records: Iterable[tuple[int, Record]], reading: Reading) -> Iterator[tuple[int, Record]]:
    for numbered in records:
        reading.advance()
        yield numbered


FORMAT = Format(records, endings=(".zip",), is_recognised_by_content=True)
