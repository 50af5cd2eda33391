"""corpus: the delivered documents as far as a quick look goes: rows counted, the first ones read as ingestion reads them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fullft_assets.base_model import BaseModelHeader
from fullft_assets.documents.formats import Delivered, Format, Reading, Record, Unreadable
from fullft_assets.documents.formats.delivered import Head
from fullft_assets.documents.reading import FileReader
from fullft_assets.documents.sources import Folder, SourceFile
from fullft_assets.errors import SettingsError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase

#: Rows are counted in this many bytes, and estimated from them beyond.
COUNTED_BYTES = 50 * 2**20
SAMPLE_ROWS = 100
SAMPLE_CHARACTERS = 20_000


@dataclass(frozen=True)
class Corpus:
    """The delivered documents, as far as a quick look goes. None: not known."""

    files: list[SourceFile]
    num_rows: int | None
    #: False: `num_rows` is estimated from the first `COUNTED_BYTES`.
    is_exact: bool
    #: Mean tokens of a sampled text, special tokens included.
    mean_tokens: float | None
    #: What looks wrong in the files or in the sampled rows.
    note: str | None
    #: Delivered files whose endings are not read.
    others: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


def look_at_documents(use_case: UseCase, model: BaseModelHeader) -> Corpus:
    """Count rows within `COUNTED_BYTES` and tokenise the first `SAMPLE_ROWS` texts; a bucket is not looked at.

    Raises:
        DataError: a folder cannot be listed.
        SettingsError: the base model's tokenizer cannot be read.
    """
    settings = use_case.settings
    if settings.documents.path.startswith("s3://"):
        return Corpus(files=[], num_rows=None, is_exact=False, mean_tokens=None, note=None)
    source = Folder(use_case.resolve(settings.documents.path))
    files = source.files()
    with FileReader(source, settings.documents, settings.examples, all_fields=True) as reader:
        look = _Look(reader)
        for file in files:
            look.add(source.folder / file.path, file)
    texts = [found.text for found in look.sample if found.text]
    note = look.note or (_note(look.sample, settings) if texts else _no_text_note(look.sample) if look.has_sampled else None)
    return Corpus(files, look.num_rows, look.is_exact, _mean_tokens(texts, model), note, source.others)


@dataclass(frozen=True)
class _Sampled:
    """One sampled record: its fields, its text, and the field that the text was looked for in."""

    record: dict[str, Any]
    text: str | None
    field: str
    #: Why there is no text.
    problem: str | None
    #: False: an export whose label is not a field of its record.
    is_plain: bool


class _NotFetched(Exception):
    """The text of a record is in another file or object, which a quick look does not open."""


class _Look:
    """Counts rows and keeps the first ones: files of rows are read within `COUNTED_BYTES` in all, others only for the sample."""

    def __init__(self, reader: FileReader) -> None:
        self.is_exact = True
        self.note: str | None = None
        self.sample: list[_Sampled] = []
        #: Rows were read whose text should be in them.
        self.has_sampled = False
        self._reader = reader
        self._known_rows = 0
        self._read_rows = 0
        #: Bytes of the files whose rows are counted by reading; and those that were read, as delivered and unpacked.
        self._bytes = 0
        self._read_bytes = 0
        self._unpacked_bytes = 0

    @property
    def num_rows(self) -> int:
        """Rows in all; those that were not read are estimated from the others."""
        if self.is_exact or not self._read_bytes:
            return self._known_rows + self._read_rows
        return self._known_rows + round(self._read_rows * self._bytes / self._read_bytes)

    def add(self, path: Path, file: SourceFile) -> None:
        """Count one file. One that cannot be read is noted: ingestion leaves it out too."""
        try:
            written, _ = self._reader.formats(file.path)
            if written.is_whole_file or written.num_rows is not None:
                if self._has_room and not written.is_slow:
                    self._read(Delivered(path, file.path))
                self._known_rows += 1 if written.num_rows is None else written.num_rows(path)
            else:
                self._count(path, file)
        except (OSError, Unreadable) as error:
            why = getattr(error, "strerror", None) or error
            self.note = self.note or f"{path}: cannot be read ({why}); it will be left out"

    @property
    def _has_room(self) -> bool:
        return len(self.sample) < SAMPLE_ROWS

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
        """Read a file's rows until its head ends, without a head until the sample is full; return how many these were."""

        def take(records: Iterator[tuple[int, Record]], meaning: Format, reading: Reading) -> tuple[int, list[_Sampled], int]:
            num_rows, sample, num_elsewhere = 0, list[_Sampled](), 0
            try:
                for _, record in records:
                    num_rows += 1
                    has_room = len(self.sample) + len(sample) < SAMPLE_ROWS
                    if has_room and isinstance(record, dict):
                        try:
                            sample.append(_sampled(record, meaning, reading))
                        except _NotFetched:
                            num_elsewhere += 1
                    elif not has_room and file.head is None:
                        break
            except Unreadable:
                if file.head is None or not file.head.is_cut:
                    raise
            return num_rows, sample, num_elsewhere

        (num_rows, sample, num_elsewhere), _ = self._reader.read(file, take)
        self.sample += sample
        self.has_sampled = self.has_sampled or not num_elsewhere
        return num_rows


def _sampled(record: dict[str, Any], meaning: Format, reading: Reading) -> _Sampled:
    def fetch(references: list[str]) -> list[str | OSError]:
        raise _NotFetched

    row = next((row for _, row in meaning.rows([(1, record)], replace(reading, fetch=fetch))), {})
    return _Sampled(record, row.get("text"), reading.wanted.text or meaning.text, row.get("problem"), not meaning.written_as)


def _mean_tokens(texts: list[str], model: BaseModelHeader) -> float | None:
    if not texts:
        return None
    from tokenizers import Tokenizer

    path = model.folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a plain Exception for a file that it cannot read
        raise SettingsError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    total = 0.0
    for text in texts:
        shown = text[:SAMPLE_CHARACTERS]
        total += len(tokenizer.encode(shown).ids) * len(text) / len(shown)
    return total / len(texts)


def _note(sample: list[_Sampled], settings: UseCaseSettings) -> str | None:
    label = settings.examples.label
    if label is None or any(label in found.record or not found.is_plain for found in sample):
        return None
    return _missing_field("examples.label", label, sample)


def _no_text_note(sample: list[_Sampled]) -> str | None:
    if not sample:
        return "no row could be read; rows that are not JSON objects are quarantined"
    field, problem = sample[0].field, sample[0].problem
    if problem not in (None, f"no field `{field}`"):
        return f"none of the first {len(sample)} rows can be used; the first: {problem}"
    if any(field in found.record for found in sample):
        return f"documents.text: `{field}` is empty in each of the first {len(sample)} rows; such rows are quarantined"
    return _missing_field("documents.text", field, sample)


def _missing_field(key: str, field: str, sample: list[_Sampled]) -> str:
    fields = list(dict.fromkeys(name for found in sample for name in found.record if name))
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"their fields: {', '.join(fields)}"
    return f"{key}: none of the first {len(sample)} rows has a `{field}`; {hint}"
