"""The delivered documents as far as a quick look goes: a sample of their rows, read as ingestion reads
them.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fullft_assets.documents.delivery import source_of
from fullft_assets.documents.formats import Delivered, Format, Reading, Record, Unreadable
from fullft_assets.documents.formats.delivered import Head
from fullft_assets.documents.formats.rows import Row
from fullft_assets.documents.reading import FileReader
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase

#: Files that are looked at, drawn from all: finding out what is in each takes half a millisecond.
MOST_FILES = 2_000
#: Unpacked bytes of files of rows that are read, from the first row of each on.
READ_BYTES = 50 * 2**20
#: Rows that are looked at, drawn from those that are read; no more files of other formats are opened for them
#: after so many bytes.
SAMPLE_ROWS = 2_000
SAMPLE_BYTES = 20 * 2**20
#: Rows of a file of another format that are read, at least.
_LEAST_ROWS_A_FILE = 20
#: So many files of formats that are slow to read are opened, and only up to so many bytes each.
_MOST_SLOW_FILES, _MOST_SLOW_BYTES = 20, 2**18


@dataclass(frozen=True)
class Sampled:
    """A row of the sample.

    Attributes:
        record: its fields as they were delivered; empty where the row is none.
        row: what ingestion makes of it.
        place: its file and its number there.
        text_field: the field that the text was looked for in.
        is_plain: its label is a field of the record, as in no export.
        is_elsewhere: its text is in another file or object, which is not opened.
        is_refused: it is elsewhere, and may not be read there or is not there.
    """

    record: dict[str, Any]
    row: Row
    place: str
    text_field: str
    is_plain: bool
    is_elsewhere: bool
    is_refused: bool = False


@dataclass(frozen=True)
class Corpus:
    """The delivered documents, as far as a quick look goes."""

    files: list[SourceFile] = field(default_factory=list)
    #: Reading stopped after `READ_BYTES`.
    is_cut: bool = False
    #: Files were not opened, since their format is slow to read, or after `SAMPLE_BYTES`.
    has_unopened: bool = False
    #: A file that cannot be read.
    note: str | None = None
    #: Files that were looked at, where these are not all.
    num_files_drawn: int | None = None
    #: Delivered files whose endings are not read.
    others: list[str] = field(default_factory=list)
    #: Those of test splits of a saved `DatasetDict`.
    kept_out: list[str] = field(default_factory=list)
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
    look, sample = _look_at(source, drawn_files, settings)
    return Corpus(
        files=files,
        is_cut=look.is_cut,
        has_unopened=look.has_unopened,
        note=look.note,
        num_files_drawn=len(drawn_files) if len(drawn_files) < len(files) else None,
        others=source.others,
        kept_out=source.kept_out,
        skipped=source.skipped,
        sample=sample,
    )


def _look_at(
    source: Source, files: list[SourceFile], settings: UseCaseSettings
) -> tuple[_Look, list[Sampled]]:
    rows_a_file = max(_LEAST_ROWS_A_FILE, SAMPLE_ROWS // max(1, len(files)))
    with FileReader(
        source, settings.documents, settings.examples, all_fields=True, look_rows=rows_a_file
    ) as reader:
        look = _Look(reader, rows_a_file)
        # From all over the delivery: a folder often has one label.
        for file in random.Random(0).sample(files, len(files)):
            look.add(source, file)
        return look, look.sample()


@dataclass(frozen=True, order=True)
class _Drawn:
    """A record of the sample; of all records those with the largest `draw` are in it."""

    draw: float
    file: str
    number: int
    record: Record = field(compare=False)
    meaning: Format = field(compare=False)
    reading: Reading = field(compare=False)

    def sampled(self) -> Sampled:
        fetched: list[str | OSError] = []

        def fetch(references: list[str]) -> list[str | OSError]:
            fetched.extend(self.reading.fetch(references))
            return fetched

        rows = self.meaning.rows([(self.number, self.record)], replace(self.reading, fetch=fetch))
        row = next((row for _, row in rows), {})
        record = self.record if isinstance(self.record, dict) else {}
        text_field = self.reading.wanted.text or self.meaning.text
        is_refused = any(isinstance(text, OSError) for text in fetched)
        place = f"{self.file}:{self.number}"
        return Sampled(record, row, place, text_field, not self.meaning.written_as, bool(fetched), is_refused)


class _Look:
    """Draws rows: files of rows are read within `READ_BYTES` in all, of others some rows each."""

    def __init__(self, reader: FileReader, rows_a_file: int) -> None:
        self.is_cut = False
        self.has_unopened = False
        #: Why files cannot be read, by path.
        self._unreadable: dict[str, str] = {}
        self._drawn: list[_Drawn] = []
        self._reader = reader
        self._rows_a_file = rows_a_file
        #: Bytes of files of rows that were read, unpacked.
        self._read_bytes = 0
        #: Bytes of the other files that were opened for the sample, and how many of these are slow to read.
        self._opened_bytes = 0
        self._num_slow = 0

    @property
    def note(self) -> str | None:
        if not self._unreadable:
            return None
        number = len(self._unreadable) - 1
        more = f", nor can {number:,} more of the files that were opened; they" if number else "; it"
        return f"{self._unreadable[min(self._unreadable)]}{more} will be skipped"

    def sample(self) -> list[Sampled]:
        return [
            drawn.sampled() for drawn in sorted(self._drawn, key=lambda drawn: (drawn.file, drawn.number))
        ]

    def add(self, source: Source, file: SourceFile) -> None:
        try:
            with source.local(file.path) as path:
                self._add(path, file)
        except (OSError, Unreadable) as error:
            why = getattr(error, "strerror", None) or error
            self._unreadable[file.path] = f"{source.uri}/{file.path}: cannot be read ({why})"

    def _add(self, path: Path, file: SourceFile) -> None:
        written, _ = self._reader.formats(Delivered(path, file.path))
        if not (written.is_whole_file or written.has_row_groups):
            head = Head(READ_BYTES - self._read_bytes)
            if head.max_bytes > 0:
                self._read(Delivered(path, file.path, head=head))
            self._read_bytes += head.num_bytes
            self.is_cut = self.is_cut or head.is_cut or head.max_bytes <= 0
            return
        is_slow = written.is_slow
        if is_slow and not file.bytes:
            raise Unreadable("empty")
        is_too_slow = is_slow and (file.bytes > _MOST_SLOW_BYTES or self._num_slow == _MOST_SLOW_FILES)
        if self._opened_bytes >= SAMPLE_BYTES or is_too_slow:
            self.has_unopened = True
            return
        self._num_slow += is_slow
        self._opened_bytes += file.bytes
        self._read(Delivered(path, file.path))

    def _read(self, file: Delivered) -> None:
        """Read a file's rows until its head ends, without a head only its part of the sample."""

        def take(records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading) -> list[_Drawn]:
            # Seeded anew: a file may be read again in another encoding.
            draw = random.Random(zlib.crc32(file.name.encode(errors="surrogateescape")))
            sample = list(self._drawn)
            number, record = 0, None
            try:
                for count, (number, record) in enumerate(records, start=1):
                    number_drawn = draw.random()
                    if len(sample) < SAMPLE_ROWS or number_drawn > sample[0].draw:
                        heapq.heappush(
                            sample, _Drawn(number_drawn, file.name, number, record, meaning, reading)
                        )
                    if len(sample) > SAMPLE_ROWS:
                        heapq.heappop(sample)
                    if file.head is None and count >= self._rows_a_file:
                        break
            except Unreadable:
                if file.head is None or not file.head.is_cut:
                    raise
            if file.head is not None and file.head.is_cut and isinstance(record, str):
                # The row that reading stops in is cut; nothing else is wrong with it.
                sample = [each for each in sample if (each.file, each.number) != (file.name, number)]
                heapq.heapify(sample)
            return sample

        self._drawn, _ = self._reader.read(file, take)
