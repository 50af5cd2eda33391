"""The delivered documents as far as a quick look goes: a sample of their rows, read as ingestion reads
them.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fullft_assets.documents.delivery import source_of
from fullft_assets.documents.formats import Delivered, Format, Reading, Record, Unreadable
from fullft_assets.documents.formats.delivered import Head
from fullft_assets.documents.formats.rows import Row
from fullft_assets.documents.reading import FileReader
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.settings import LogSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase

#: Files that are looked at, drawn from all: finding out what is in each takes half a millisecond.
MOST_FILES = 2_000
#: Unpacked bytes of files of rows that are read, from the first row of each on.
READ_BYTES = 50 * 2**20
#: Rows that are looked at, drawn from those that are read; no more files of other formats are opened for them
#: after so many bytes.
SAMPLE_ROWS = 2_000
SAMPLE_BYTES = 20 * 2**20
#: Production files whose rows are looked at.
_NEWEST_FILES = 100
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
    """

    record: dict[str, Any]
    row: Row
    place: str
    text_field: str
    is_plain: bool


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
        skipped=source.skipped,
        sample=sample,
    )


def look_at_production(use_case: UseCase) -> list[Sampled]:
    """Return a sample of the newest production rows, with what a model answered; none of a bucket, or before
    production has delivered.

    Only of the newest files: older ones may be from before the log.

    Raises:
        DataError: a folder cannot be listed.
    """
    settings = use_case.settings
    path = settings.monitoring.path
    if path is None or "://" in path or not use_case.resolve(path).exists():
        return []
    source = source_of(use_case, "window")
    newest = sorted(source.files(), key=lambda file: file.mtime_ns)[-_NEWEST_FILES:]
    return _look_at(source, newest, settings, settings.monitoring.log)[1]


def _look_at(
    source: Source, files: list[SourceFile], settings: UseCaseSettings, log: LogSettings | None = None
) -> tuple[_Look, list[Sampled]]:
    with FileReader(settings.documents, settings.examples, all_fields=True, log=log) as reader:
        look = _Look(reader)
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
        rows = self.meaning.rows([(self.number, self.record)], self.reading)
        row = next((row for _, row in rows), {})
        record = self.record if isinstance(self.record, dict) else {}
        text_field = self.reading.wanted.text or self.meaning.text
        return Sampled(record, row, f"{self.file}:{self.number}", text_field, not self.meaning.written_as)


class _Look:
    """Draws rows: files of rows are read within `READ_BYTES` in all, whole documents within other bounds."""

    def __init__(self, reader: FileReader) -> None:
        self.is_cut = False
        self.has_unopened = False
        #: Why files cannot be read, by path.
        self._unreadable: dict[str, str] = {}
        self._drawn: list[_Drawn] = []
        self._reader = reader
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
        if not written.is_whole_file:
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
        """Read a file's rows until its head ends."""

        def take(records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading) -> list[_Drawn]:
            # Seeded anew: a file may be read again in another encoding.
            draw = random.Random(zlib.crc32(file.name.encode(errors="surrogateescape")))
            sample = list(self._drawn)
            number, record = 0, None
            try:
                for number, record in records:
                    number_drawn = draw.random()
                    if len(sample) < SAMPLE_ROWS or number_drawn > sample[0].draw:
                        heapq.heappush(
                            sample, _Drawn(number_drawn, file.name, number, record, meaning, reading)
                        )
                    if len(sample) > SAMPLE_ROWS:
                        heapq.heappop(sample)
            except Unreadable:
                if file.head is None or not file.head.is_cut:
                    raise
            if file.head is not None and file.head.is_cut and isinstance(record, str):
                # The row that reading stops in is cut; nothing else is wrong with it.
                sample = [each for each in sample if (each.file, each.number) != (file.name, number)]
                heapq.heapify(sample)
            return sample

        self._drawn, _ = self._reader.read(file, take)
