"""A quick look at the delivered documents: a sample of their rows, read as ingestion reads them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fullft_assets.documents.delivery import source_of
from fullft_assets.documents.formats import Delivered, Format, Reading, Record, Unreadable
from fullft_assets.documents.formats.delivered import Head
from fullft_assets.documents.formats.rows import Row
from fullft_assets.documents.reading import FileReader
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.settings.use_case import UseCase

#: Files that are looked at, drawn from all: finding out what is in each takes half a millisecond.
MOST_FILES = 2_000
#: Unpacked bytes that are read, and the rows that are drawn from them.
READ_BYTES = 20 * 2**20
SAMPLE_ROWS = 2_000
#: Minimum number of rows that are read from a file whose format needs the whole file.
_LEAST_ROWS_A_FILE = 20
#: Maximum number of files that are opened in formats that are slow to read, and the maximum size of each.
_MOST_SLOW_FILES = 20
_MOST_SLOW_BYTES = 2**18


@dataclass(frozen=True)
class Sampled:
    """A row of the sample.

    Attributes:
        record: the fields as they were delivered; empty if the row has no fields.
        row: the row as ingestion reads it.
        location: its file and its number in the file.
        text_field: the field in which the text was looked for.
        is_plain: whether the label is a field of the record; in an export of a labelling tool it is not.
    """

    record: dict[str, Any]
    row: Row
    location: str
    text_field: str
    is_plain: bool


@dataclass(frozen=True)
class Corpus:
    """What a quick look at the delivered documents says."""

    files: list[SourceFile] = field(default_factory=list)
    #: Reading stopped after `READ_BYTES`.
    is_cut: bool = False
    #: Files were not opened, since their format is slow to read, or after `READ_BYTES`.
    has_unopened: bool = False
    #: A file that cannot be read.
    note: str | None = None
    #: Files that were looked at, where these are not all.
    num_files_drawn: int | None = None
    #: Delivered files whose endings are not read.
    others: list[str] = field(default_factory=list)
    #: Why other entries of the folder are excluded, by path.
    skipped: dict[str, str] = field(default_factory=dict)
    sample: list[Sampled] = field(default_factory=list)


def look_at_documents(use_case: UseCase) -> Corpus:
    """Read a sample of the rows of `MOST_FILES` within `READ_BYTES`; a bucket is not read.

    Raises:
        DataError: a folder cannot be listed.
    """
    settings = use_case.settings
    if settings.documents.path.startswith("s3://"):
        return Corpus()
    source = source_of(use_case)
    files = source.files()
    drawn_files = files if len(files) <= MOST_FILES else sorted(random.Random(0).sample(files, MOST_FILES))
    rows_a_file = max(_LEAST_ROWS_A_FILE, SAMPLE_ROWS // max(1, len(drawn_files)))
    with FileReader(settings.documents, settings.examples, all_fields=True) as reader:
        look = _Look(reader, rows_a_file)
        # From all over the delivery: a folder often has one label.
        for file in random.Random(0).sample(drawn_files, len(drawn_files)):
            look.add(source, file)
    return Corpus(
        files=files,
        is_cut=look.is_cut,
        has_unopened=look.has_unopened,
        note=look.note,
        num_files_drawn=len(drawn_files) if len(drawn_files) < len(files) else None,
        others=source.others,
        skipped=source.skipped,
        sample=look.sample(),
    )


@dataclass(frozen=True)
class _Read:
    """A record that was read, with what it takes to make a row of it."""

    file: str
    number: int
    record: Record
    meaning: Format
    reading: Reading

    def sampled(self) -> Sampled:
        return Sampled(
            record=self.record if isinstance(self.record, dict) else {},
            row=next((row for _, row in self.meaning.rows([(self.number, self.record)], self.reading)), {}),
            location=f"{self.file}:{self.number}",
            text_field=self.reading.row_settings.text or self.meaning.text,
            is_plain=not self.meaning.written_as,
        )


class _Look:
    """Reads rows from the beginning of files, at most `READ_BYTES` in all. From a file whose format needs the
    whole file, it reads some rows.
    """

    def __init__(self, reader: FileReader, rows_a_file: int) -> None:
        self.is_cut = False
        self.has_unopened = False
        #: Why files cannot be read, by path.
        self._unreadable: dict[str, str] = {}
        self._rows: list[_Read] = []
        self._reader = reader
        self._rows_a_file = rows_a_file
        self._read_bytes = 0
        self._num_slow = 0

    @property
    def note(self) -> str | None:
        if not self._unreadable:
            return None
        number = len(self._unreadable) - 1
        more = f", nor can {number:,} more of the files that were opened; they" if number else "; it"
        return f"{self._unreadable[min(self._unreadable)]}{more} will be skipped"

    def sample(self) -> list[Sampled]:
        rows = random.Random(0).sample(self._rows, min(SAMPLE_ROWS, len(self._rows)))
        return [row.sampled() for row in sorted(rows, key=lambda row: (row.file, row.number))]

    def add(self, source: Source, file: SourceFile) -> None:
        try:
            with source.local(file.path) as path:
                self._add(path, file)
        except (OSError, Unreadable) as error:
            why = getattr(error, "strerror", None) or error
            self._unreadable[file.path] = f"{source.uri}/{file.path}: cannot be read ({why})"

    def _add(self, path: Path, file: SourceFile) -> None:
        file_format, _ = self._reader.formats(Delivered(path, file.path))
        if file_format.is_slow and not file.bytes:
            raise Unreadable("empty")
        is_too_slow = file_format.is_slow and (
            file.bytes > _MOST_SLOW_BYTES or self._num_slow == _MOST_SLOW_FILES
        )
        if self._read_bytes >= READ_BYTES or is_too_slow:
            self.has_unopened = True
            return
        self._num_slow += file_format.is_slow
        head = None if file_format.is_whole_file else Head(READ_BYTES - self._read_bytes)
        try:
            self._rows += self._read(Delivered(path, file.path, head=head))
        finally:
            self._read_bytes += file.bytes if head is None else head.num_bytes
            self.is_cut = self.is_cut or (head is not None and head.is_cut)

    def _read(self, file: Delivered) -> list[_Read]:
        """Return the rows in the head of a file, or the first rows of a file without a head."""
        head = file.head

        def take(records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading) -> list[_Read]:
            rows: list[_Read] = []
            try:
                for number, record in islice(records, self._rows_a_file if head is None else None):
                    rows.append(_Read(file.name, number, record, meaning, reading))
            except Unreadable:
                if head is None or not head.is_cut:
                    raise
            if head is not None and head.is_cut and rows and isinstance(rows[-1].record, str):
                # The row that reading stops in is cut; nothing else is wrong with it.
                rows.pop()
            return rows

        return self._reader.read(file, take)[0]
