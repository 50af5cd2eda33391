"""The format of a file by its first bytes, where its ending may be wrong. Only certain signs count, so that
text about a format stays text.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullft_assets.documents.formats import encodings
from fullft_assets.documents.formats.delivered import Delivered, Unreadable
from fullft_assets.documents.formats.labels import parsed
from fullft_assets.documents.formats.rows import Wanted, has_field

_HEAD_BYTES = 2**16
#: Format by the bytes that its files begin with.
_MAGIC = ((b"%PDF-", "pdf"), (b"{\\rtf", "rtf"), (b"PAR1", "parquet"), (b"ARROW1", "arrow"))
_ZIP = b"PK\x03\x04"
#: The format of a zip archive by a member that it must have.
_PACKAGES = {"word/document.xml": "docx", "xl/workbook.xml": "xlsx"}
#: An archive's list of members that is looked at here: 100,000 names, the most that its reader takes.
_MOST_LISTED_BYTES = 8 * 2**20
_HTML = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*(?:<!doctype\s+html|<html[\s>])", re.IGNORECASE | re.DOTALL
)
_XML = re.compile(r"\s*<\?xml\s")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,40}:(?:\s|$)|[ \t]\S")
#: Of these a program writes at least one into each message; From and Subject are in a memo as well.
_OF_MAIL = re.compile(r"^(?:message-id|mime-version|received|return-path):", re.IGNORECASE | re.MULTILINE)
_MBOX = re.compile(r"From \S+ .*\d{4}\s*$")
#: Formats whose files are recognised by their first bytes alone.
_CERTAIN = {"pdf", "rtf", "parquet", "arrow", "docx", "xlsx", "zip"}
#: Of a format by its ending, what its text may turn out to be.
_MAY_BE = {
    "text": {"html", "xml", "eml", "mbox", "json", "csv"},
    "csv": {"json"},
    "jsonl": {"json", "csv"},
    "eml": {"mbox"},
    "mbox": {"eml"},
    "xml": {"html"},
    **dict.fromkeys(("pdf", "rtf", "docx", "xlsx"), {"html"}),
}
#: Formats whose ending is not trusted: ours, without the exports of annotation tools.
_UNTRUSTED = _CERTAIN | _MAY_BE.keys() | {"html", "json", "msg"}


def format_of_content(file: Delivered, by_ending: str, wanted: Wanted) -> str:
    """Return the name of a file's format: the one of its content where that is certain, else the one of its
    ending.

    Raises:
        Unreadable: its compression is damaged, or no format reads what it certainly is.
    """
    if by_ending not in _UNTRUSTED:
        return by_ending
    with replace(file, head=None).binary() as data:
        head = data.read(_HEAD_BYTES)
    by_content = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if head.startswith(_ZIP):
        by_content = _of_archive(file.path)
    if by_content is None:
        if by_ending in _MAY_BE:
            text = _text(head)
            by_content = _by_text(text, len(head) == _HEAD_BYTES, wanted)
            # Lines of JSON are what they should be, and stay with the reader that streams them.
            is_itself = by_ending == "jsonl" and by_content == "json" and not text.lstrip().startswith("[")
            by_content = by_content if by_content in _MAY_BE[by_ending] and not is_itself else None
    elif file.compression is not None:
        raise Unreadable(f"a packed {by_content} file; unpack it, and give it the ending .{by_content}")
    return by_content or by_ending


def _of_archive(path: Path) -> str | None:
    try:
        with _ReadInParts(path) as data, zipfile.ZipFile(data) as archive:
            names = set(archive.namelist())
    # Damaged, of a version that zipfile does not know, or with a name that is not UTF-8 though its entry says
    # so.
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        # Or with more names than any file of Office: the reader of archives has bounds, and says so.
        return "zip" if path.stat().st_size > _MOST_LISTED_BYTES else None
    package = next((name for member, name in _PACKAGES.items() if member in names), None)
    if package is None and "[Content_Types].xml" in names:
        raise Unreadable("a file of Office that is neither DOCX nor XLSX; convert it")
    return package or ("zip" if "mimetype" not in names else None)


class _ReadInParts(io.FileIO):
    """A file of which no more bytes are read at once than a list of members may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        is_too_much = size is not None and size > _MOST_LISTED_BYTES
        return b"" if is_too_much else super().read(-1 if size is None else size) or b""


def _text(head: bytes) -> str:
    """Return the first bytes as text, in which only ASCII characters are sure to be right."""
    return head.decode(encodings.of_mark(head) or "latin-1", "ignore").lstrip("\ufeff")


def _by_text(text: str, is_cut: bool, wanted: Wanted) -> str | None:
    lines = text.splitlines()
    if is_cut:
        lines = lines[:-1]
    if not lines:
        return None
    if _HTML.match(text):
        return "html"
    if _XML.match(text):
        return "xml"
    if _MBOX.fullmatch(lines[0]) and _is_mail(lines[1:]):
        return "mbox"
    if _is_mail(lines):
        return "eml"
    if _is_json(text, [line for line in lines if line.strip()], wanted):
        return "json"
    return "csv" if _is_csv(lines, wanted) else None


def _is_mail(lines: list[str]) -> bool:
    end = next((at for at, line in enumerate(lines) if not line.strip()), len(lines))
    head = lines[:end]
    return (
        end > 1 and all(_HEADER.match(line) for line in head) and _OF_MAIL.search("\n".join(head)) is not None
    )


def _is_json(text: str, lines: list[str], wanted: Wanted) -> bool:
    if text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            start = text.index("[") + 1
            first, _ = json.JSONDecoder().raw_decode(text[start:].lstrip())
            return has_text(first, wanted)
        return False
    return len(lines) > 1 and all(has_text(parsed(line), wanted) for line in lines[:2])


def has_text(record: Any, wanted: Wanted) -> bool:
    """Return whether a record is an object that has the text (of a conversation, its messages), or is perhaps
    a task of Label Studio.
    """
    if not isinstance(record, dict):
        return False
    fields = (
        wanted.fields - {name for _, name in wanted.names} if wanted.has_messages else {wanted.text or "text"}
    )
    return any(has_field(record, field) for field in fields) or isinstance(record.get("data"), dict)


def _is_csv(lines: list[str], wanted: Wanted) -> bool:
    needed = {wanted.text or "text", *([wanted.label] if wanted.label else [])}
    for delimiter in ",;\t|":
        with suppress(csv.Error):
            rows = [
                row for row in csv.reader((f"{line}\n" for line in lines[:20]), delimiter=delimiter) if row
            ]
            names = {name.strip('"') for name in rows[0]} if rows else set()
            if len(names) > 1 and needed <= names and len(rows) > 1 and len(rows[1]) == len(rows[0]):
                return True
    return False
