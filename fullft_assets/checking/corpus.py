"""The delivered documents as far as a quick look goes: rows are counted, and a sample of them is read as
ingestion reads them.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
#: Rows are counted in this many bytes, and estimated from them beyond.
COUNTED_BYTES = 50 * 2**20
#: Rows that are looked at, drawn from those that are counted; no more files are opened for them after so many
#: bytes.
SAMPLE_ROWS = 2_000
SAMPLE_BYTES = 20 * 2**20
#: Rows of a file whose rows are known without reading it, and rows of the sample that all such files have at
#: least.
_LEAST_ROWS_A_FILE = 20
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
    """The delivered documents, as far as a quick look goes. None: not known."""

    files: list[SourceFile]
    num_rows: int | None
    #: False: `num_rows` is estimated from the first `COUNTED_BYTES` of the files that were looked at.
    is_exact: bool
    #: A file that cannot be read.
    note: str | None
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
    """Count rows in `MOST_FILES` within `COUNTED_BYTES`, and read a sample of them; a bucket is not read.

    Raises:
        DataError: a folder cannot be listed.
    """
    settings = use_case.settings
    if settings.documents.path.startswith("s3://"):
        return Corpus(files=[], num_rows=None, is_exact=False, note=None)
    source = source_of(use_case)
    files = source.files()
    drawn = files if len(files) <= MOST_FILES else sorted(random.Random(0).sample(files, MOST_FILES))
    look, sample = _look_at(source, drawn, settings)
    is_part = len(drawn) < len(files)
    return Corpus(
        files=files,
        num_rows=round(look.num_rows * len(files) / len(drawn)) if is_part else look.num_rows,
        is_exact=look.is_exact and not is_part,
        note=look.note,
        num_files_drawn=len(drawn) if is_part else None,
        others=source.others,
        kept_out=source.kept_out,
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
    rows_a_file = max(_LEAST_ROWS_A_FILE, SAMPLE_ROWS // max(1, len(files)))
    with FileReader(
        source, settings.documents, settings.examples, all_fields=True, look_rows=rows_a_file, log=log
    ) as reader:
        look = _Look(reader, rows_a_file)
        for file in files:
            look.add(source, file)
        look.open_others(source)
        return look, look.sample()


@dataclass(frozen=True, order=True)
class _Drawn:
    """A record of the sample; of all records those with the largest `draw` are in it."""

    draw: float
    place: str
    record: Record = field(compare=False)
    meaning: Format = field(compare=False)
    reading: Reading = field(compare=False)

    def sampled(self) -> Sampled:
        fetched: list[str | OSError] = []

        def fetch(references: list[str]) -> list[str | OSError]:
            fetched.extend(self.reading.fetch(references))
            return fetched

        number = int(self.place.rpartition(":")[2])
        row = next(
            (
                row
                for _, row in self.meaning.rows([(number, self.record)], replace(self.reading, fetch=fetch))
            ),
            {},
        )
        record = self.record if isinstance(self.record, dict) else {}
        text_field = self.reading.wanted.text or self.meaning.text
        is_refused = any(isinstance(text, OSError) for text in fetched)
        return Sampled(
            record, row, self.place, text_field, not self.meaning.written_as, bool(fetched), is_refused
        )


class _Look:
    """Counts rows and draws some: files of rows are read within `COUNTED_BYTES` in all, others only for the
    sample.
    """

    def __init__(self, reader: FileReader, rows_a_file: int) -> None:
        self.is_exact = True
        #: Why the first file that cannot be read cannot, and how many there are.
        self._unreadable, self._num_unreadable = "", 0
        self._drawn: list[_Drawn] = []
        self._reader = reader
        self._rows_a_file = rows_a_file
        self._known_rows = 0
        self._read_rows = 0
        #: Bytes of the files whose rows are counted by reading; and those that were read, as delivered and
        #: unpacked.
        self._bytes = 0
        self._read_bytes = 0
        self._unpacked_bytes = 0
        #: Bytes of the other files that were opened for the sample.
        self._opened_bytes = 0
        #: Files whose rows are known without reading them, and whether their format is slow to read.
        self._others: list[tuple[SourceFile, bool]] = []

    @property
    def num_rows(self) -> int:
        """Rows in all; those that were not read are estimated from the others."""
        if self.is_exact or not self._read_bytes:
            return self._known_rows + self._read_rows
        return self._known_rows + round(self._read_rows * self._bytes / self._read_bytes)

    @property
    def note(self) -> str | None:
        if self._num_unreadable < 2:
            return f"{self._unreadable}; it will be skipped" if self._unreadable else None
        return (
            f"{self._unreadable}, nor can {self._num_unreadable - 1:,} more of the files that were opened;"
            " they will be skipped"
        )

    def sample(self) -> list[Sampled]:
        return [drawn.sampled() for drawn in sorted(self._drawn, key=lambda drawn: _in_order(drawn.place))]

    def add(self, source: Source, file: SourceFile) -> None:
        with self._noting(source, file), source.local(file.path) as path:
            self._add(path, file)

    def open_others(self, source: Source) -> None:
        """Read some of the files whose rows are known without it, from all over the delivery: a folder often
        has one label.

        They get their share of the sample, which the rows that were counted by reading may have filled.
        """
        share = self._known_rows / max(1, self.num_rows)
        counted, self._drawn = self._drawn, []
        room = max(
            SAMPLE_ROWS - len(counted),
            min(round(SAMPLE_ROWS * share), SAMPLE_ROWS - _LEAST_ROWS_A_FILE),
            _LEAST_ROWS_A_FILE,
        )
        num_slow = 0
        for file, is_slow in random.Random(0).sample(self._others, len(self._others)):
            if len(self._drawn) >= room or self._opened_bytes >= SAMPLE_BYTES:
                break
            if is_slow and (file.bytes > _MOST_SLOW_BYTES or num_slow == _MOST_SLOW_FILES):
                continue
            num_slow += is_slow
            self._opened_bytes += file.bytes
            with self._noting(source, file), source.local(file.path) as path:
                self._read(Delivered(path, file.path))
        others = heapq.nlargest(room, self._drawn)
        self._drawn = [*others, *heapq.nlargest(SAMPLE_ROWS - len(others), counted)]

    @contextmanager
    def _noting(self, source: Source, file: SourceFile) -> Iterator[None]:
        try:
            yield
        except (OSError, Unreadable) as error:
            why = getattr(error, "strerror", None) or error
            self._unreadable = self._unreadable or f"{source.uri}/{file.path}: cannot be read ({why})"
            self._num_unreadable += 1

    def _add(self, path: Path, file: SourceFile) -> None:
        written, _ = self._reader.formats(Delivered(path, file.path))
        if written.is_whole_file:
            if written.is_slow and not file.bytes:
                raise Unreadable("empty")
            self._known_rows += 1
            self._others.append((file, written.is_slow))
        elif written.num_rows is not None:
            self._known_rows += written.num_rows(path)
            self._others.append((file, written.is_slow))
        else:
            self._count(path, file)

    def _count(self, path: Path, file: SourceFile) -> None:
        budget = COUNTED_BYTES - self._unpacked_bytes
        if budget <= 0:
            self.is_exact = False
        else:
            head = Head(budget)
            self._read_rows += self._read(Delivered(path, file.path, head=head))
            self._unpacked_bytes += head.num_bytes
            self._read_bytes += head.num_packed_bytes if head.is_cut else file.bytes
            self.is_exact = self.is_exact and not head.is_cut
        self._bytes += file.bytes

    def _read(self, file: Delivered) -> int:
        """Read a file's rows until its head ends, without a head only its part of the sample; return how many
        these were.
        """

        def take(
            records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading
        ) -> tuple[int, list[_Drawn]]:
            # Seeded anew: a file may be read again in another encoding.
            draw = random.Random(zlib.crc32(file.name.encode(errors="surrogateescape")))
            drawn = list(self._drawn)
            num_rows = 0
            place, record = "", None
            try:
                for number, record in records:
                    num_rows += 1
                    number_drawn, place = draw.random(), f"{file.name}:{number}"
                    if len(drawn) < SAMPLE_ROWS or number_drawn > drawn[0].draw:
                        heapq.heappush(drawn, _Drawn(number_drawn, place, record, meaning, reading))
                    if len(drawn) > SAMPLE_ROWS:
                        heapq.heappop(drawn)
                    if file.head is None and num_rows >= self._rows_a_file:
                        break
            except Unreadable:
                if file.head is None or not file.head.is_cut:
                    raise
            if file.head is not None and file.head.is_cut and isinstance(record, str):
                # The row that reading stops in is cut; nothing else is wrong with it.
                num_rows, drawn = num_rows - 1, [each for each in drawn if each.place != place]
                heapq.heapify(drawn)
            return num_rows, drawn

        (num_rows, self._drawn), _ = self._reader.read(file, take)
        return num_rows


def _in_order(place: str) -> tuple[str, int]:
    file, _, row = place.rpartition(":")
    return file, int(row)
