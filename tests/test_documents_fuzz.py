"""documents/formats: whatever a damaged file holds, rows or one line that says why come out; no crash, no
hang, no silent loss.
"""

import copy
import csv
import gzip
import io
import json
import random
import re
import signal
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.documents.formats import Delivered, compression_of, name_of_format, tables
from fullft_assets.documents.formats.rows import Wanted
from fullft_assets.documents.formats.sniffing import _UNTRUSTED, format_of_content
from fullft_assets.documents.reading import ReadBatch, read_documents, schema
from fullft_assets.documents.sources import SourceFile
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from tests import outlook_message
from tests import project as projects
from tests import test_documents_formats as formats
from tests import test_documents_office as office

#: Longest time that reading a few kilobytes may take; far above what it takes, far below a hang.
LIMIT_SECONDS = 30
SPANS = {"task": "token_classification", "label": "entities"}
MANY = {"task": "multi_label", "label": "topics"}
ROWS = projects.licence_rows(12)


class Seed(NamedTuple):
    """A valid file that is damaged, and the settings that it is read with."""

    name: str
    make: Callable[[], bytes]
    examples: dict[str, Any] = {}
    documents: dict[str, Any] = {}
    times: int = 100


def _table() -> pa.Table:
    topics = [["b", "a"], [], ["a"]]
    spans = [{"start": 0, "end": 4, "label": "x"}]
    return pa.Table.from_pylist(
        [
            {**row, "topics": topics[i % 3], "entities": spans, "confidence": i / 12}
            for i, row in enumerate(ROWS)
        ]
    )


def _parquet(**options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(_table(), out, row_group_size=5, **options)
    return out.getvalue()


def _arrow(new: Callable[..., Any]) -> bytes:
    out = io.BytesIO()
    with new(out, _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=5)
    return out.getvalue()


def _chat() -> bytes:
    turns = [
        {"role": "user", "content": "Which licence is this?"},
        {"role": "assistant", "content": ROWS[0]["text"]},
    ]
    alpaca = {"instruction": "Name the kind.", "input": ROWS[1]["text"], "output": ROWS[1]["kind"]}
    shared = {
        "conversations": [{"from": "human", "value": "And this?"}, {"from": "gpt", "value": ROWS[2]["text"]}]
    }
    return formats.as_lines(
        [{"messages": turns}, alpaca, shared, {"prompt": turns[:1], "completion": turns[1:]}] * 3
    ).encode()


def _label_studio() -> bytes:
    x, y = {"choices": ["x"]}, {"choices": ["y"]}
    tasks = [
        formats.task(i, formats.annotation(1, x), formats.annotation(2, y if i % 2 else x), text=r["text"])
        for i, r in enumerate(ROWS)
    ]
    return json.dumps(tasks, indent=1).encode()


def _argilla() -> bytes:
    responses = {
        "kind": [{"value": "x", "user_id": "u1"}, {"value": "x", "user_id": "u2", "status": "draft"}]
    }
    return json.dumps(
        [
            {"id": r["id"], "fields": {"text": r["text"]}, "responses": responses, "suggestions": {}}
            for r in ROWS
        ]
    ).encode()


def _spans() -> bytes:
    return formats.as_lines(
        [
            {"text": row["text"], "entities": [[0, 4, "x"], {"start": 5, "end": 6, "label": "y"}]}
            for row in ROWS
        ]
    ).encode()


def _short_label_studio(value: Callable[[int], Any], field: str = "kind") -> list[dict[str, Any]]:
    """Label Studio's JSON-MIN: a record an annotation, two of each task."""
    about = {"created_at": "2025-03-01T10:00:00Z", "lead_time": 3.1}
    tasks = [(task, row["text"], annotator) for task, row in enumerate(ROWS[:6]) for annotator in (1, 2)]
    return [
        {"id": task, "text": text, field: value(i), "annotation_id": i, "annotator": annotator, **about}
        for i, (task, text, annotator) in enumerate(tasks)
    ]


def _regions(_: int) -> list[dict[str, Any]]:
    return [{"start": 0, "end": 4, "text": "word", "labels": ["x"]}]


def _label_studio_spans() -> bytes:
    tasks = [
        formats.task(i, formats.annotation(1, *_regions(i), kind="labels"), text=row["text"])
        for i, row in enumerate(ROWS)
    ]
    return json.dumps(tasks).encode()


def _flat_argilla() -> bytes:
    said = {
        "kind.responses": ["x", "y"],
        "kind.responses.users": ["u1", "u2"],
        "kind.responses.status": ["submitted", "discarded"],
    }
    return json.dumps(
        [
            {"id": row["id"], "_server_id": "s", "text": row["text"], "kind.suggestion": "z", **said}
            for row in ROWS
        ]
    ).encode()


def _manifest_of_many() -> bytes:
    about = {
        **formats.ABOUT,
        "class-map": {"0": "patent", "2": "copyleft"},
        "confidence-map": {"0": 0.9, "2": 0.4},
    }
    return formats.as_lines(
        [{"source": row["text"], "topics": [2, 0], "topics-metadata": about} for row in ROWS]
    ).encode()


def _manifest_of_spans() -> bytes:
    value = {
        "annotations": {
            "entities": [{"label": "org", "startOffset": 0, "endOffset": 4}],
            "labels": [{"label": "org"}],
        }
    }
    about = {**formats.ABOUT, "entities": [{"confidence": 0.8}]}
    return formats.as_lines(
        [{"source": row["text"], "entities": value, "entities-metadata": about} for row in ROWS]
    ).encode()


def _manifest_of_references() -> bytes:
    about = {**formats.ABOUT, "class-name": "notice", "confidence": 0.75}
    return formats.as_lines(
        [{"source-ref": "good.jsonl", "kind": 0, "kind-metadata": about} for _ in ROWS]
    ).encode()


def _pdf() -> bytes:
    text = max((row["text"] for row in ROWS), key=len)
    words = "".join(letter for letter in text if letter.isascii() and letter not in "()\\").split()
    return formats.written_pdf(
        *(
            formats.shown(" ".join(words[i : i + 8]), " ".join(words[i + 8 : i + 16]))
            for i in range(0, 64, 16)
        )
    )


def _workbook() -> bytes:
    book = office.workbook([list(ROWS[0]), *(list(row.values()) for row in ROWS)], [])
    book.worksheets[0].merge_cells("C3:C5")
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _mail() -> bytes:
    made = office.message(Subject="Größe", From="a@example.org", Message_ID="<1@example.org>")
    made.set_content(ROWS[0]["text"] + "\n\nOn Monday, B wrote:\n> – naïve €\n")
    made.add_alternative("<p>not this</p>", subtype="html")
    made.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="a.pdf")
    return bytes(made)


def _rtf() -> str:
    text = "".join(letter if letter.isascii() and letter not in "\\{}" else "?" for letter in ROWS[0]["text"])
    return (
        r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}\f0 Caf\'e9 \u-10179?\u-8704?\par {\b "
        + text.replace("\n", "\\par ")
        + r"}\par}"
    )


def _outlook() -> bytes:
    return outlook_message.written({outlook_message.SUBJECT: "Größe", outlook_message.BODY: ROWS[0]["text"]})


def _archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (
            ("a.txt", ROWS[0]["text"].encode()),
            ("b/c.jsonl", _lines()),
            ("d.csv", formats.as_csv(ROWS).encode()),
        ):
            archive.writestr(name, data)
    return out.getvalue()


def _lines() -> bytes:
    return formats.as_lines(
        [{**row, "text": f"{row['text']} – naïve €"} if i % 2 else row for i, row in enumerate(ROWS)]
    ).encode()


SEEDS = {
    "json lines": Seed("a.jsonl", _lines, times=240),
    "json lines in UTF-16": Seed("a.jsonl", lambda: _lines().decode().encode("utf-16")),
    "json lines in cp1252": Seed("a.jsonl", lambda: _lines().decode().encode("cp1252", "replace")),
    "json lines of another name": Seed("a.json", _lines),
    "json array": Seed("a.json", lambda: json.dumps(ROWS, indent=1).encode()),
    "csv": Seed("a.csv", lambda: formats.as_csv(ROWS).encode(), times=240),
    "manifest": Seed("a.manifest", lambda: formats.as_manifest(ROWS).encode()),
    "label studio": Seed("a.json", _label_studio),
    "label studio, many labels": Seed("a.json", _label_studio, MANY),
    "label studio, short form": Seed(
        "a.json", lambda: json.dumps(_short_label_studio(lambda i: "x")).encode(), times=60
    ),
    "label studio, spans": Seed("a.json", _label_studio_spans, SPANS, times=60),
    "label studio, short form of spans": Seed(
        "a.json", lambda: json.dumps(_short_label_studio(_regions, "entities")).encode(), SPANS, times=60
    ),
    "label studio, csv": Seed(
        "a.csv",
        lambda: formats.as_csv(_short_label_studio(lambda i: "x")).encode(),
        documents={"format": "label_studio"},
        times=60,
    ),
    "argilla": Seed("a.json", _argilla),
    "argilla, flat": Seed("a.json", _flat_argilla, times=60),
    "manifest, many labels": Seed("a.manifest", _manifest_of_many, MANY, times=60),
    "manifest of spans": Seed("a.manifest", _manifest_of_spans, SPANS, times=60),
    "manifest of references": Seed("a.manifest", _manifest_of_references, times=60),
    "tsv": Seed("a.tsv", lambda: formats.as_csv(ROWS).replace(",", "\t").encode(), times=60),
    "json lines, zstd": Seed("a.jsonl.zst", lambda: formats.pack(_lines(), "zstd"), times=60),
    "manifest, zstd": Seed(
        "a.manifest.zst", lambda: formats.pack(formats.as_manifest(ROWS).encode(), "zstd"), times=60
    ),
    "chat": Seed("a.jsonl", _chat, formats.CHAT),
    "spans": Seed("a.jsonl", _spans, SPANS),
    "gzip": Seed("a.jsonl.gz", lambda: formats.pack(_lines(), "gzip"), times=180),
    "zstd": Seed("a.csv.zst", lambda: formats.pack(formats.as_csv(ROWS).encode(), "zstd"), times=180),
    "parquet": Seed("a.parquet", _parquet, times=240),
    "parquet, plain": Seed(
        "a.parquet", lambda: _parquet(compression="none", use_dictionary=False), MANY, times=240
    ),
    "parquet, checksums": Seed("a.parquet", lambda: _parquet(write_page_checksum=True), SPANS),
    "arrow stream": Seed("a.arrow", lambda: _arrow(pa.ipc.new_stream), SPANS, times=240),
    "arrow file": Seed("a.arrow", lambda: _arrow(pa.ipc.new_file), MANY, times=240),
    "plain text": Seed("a.txt", lambda: ROWS[0]["text"].encode()),
    "plain text, gzip": Seed("a.txt.gz", lambda: formats.pack(ROWS[0]["text"].encode(), "gzip"), times=60),
    "markdown": Seed("a.md", lambda: f"# Licence\n\n{ROWS[1]['text']}".encode()),
    "html": Seed("a.html", formats.PAGE.encode, times=180),
    "pdf": Seed("a.pdf", _pdf, times=40),
    "docx": Seed("a.docx", office.letter, times=40),
    "xlsx": Seed("a.xlsx", _workbook, times=20),
    "eml": Seed("a.eml", _mail, times=60),
    "mbox": Seed(
        "a.mbox",
        lambda: b"".join(b"From a@example.org Mon May  6 07:08:00 2024\n" + _mail() for _ in range(3)),
        times=60,
    ),
    "rtf": Seed("a.rtf", lambda: _rtf().encode(), times=60),
    "jats": Seed("a.xml", office.JATS.encode, times=60),
    "pubmed": Seed("a.xml", office.PUBMED.encode, times=60),
    "akoma ntoso": Seed("a.akn", office.AKOMA.encode, times=30),
    "tei": Seed("a.xml", office.TEI.encode, times=30),
    "msg": Seed("a.msg", _outlook, times=60),
    "zip": Seed("a.zip", _archive, times=40),
    "csv under .txt": Seed("a.txt", lambda: formats.as_csv(ROWS).encode(), times=60),
}
#: Formats that a file must be of to have one row.
SINGLE = ("html", "pdf", "docx", "eml", "msg", "rtf")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a file with flipped bits, its end cut off, a piece of it elsewhere, bytes put in, or a piece
    missing.
    """
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, to = sorted(chance.choices(range(len(out) + 1), k=2))
        match chance.randrange(6):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[chance.randrange(len(out) + 1) :] += out[at : min(to, at + 200)]
            case 3:
                out[at:at] = chance.choice(
                    (bytes(4), b"\xff" * 3, b'"', b"\n", b"\r", b"{", b"\\ud800", b"<", chance.randbytes(8))
                )
            case 4:
                del out[at : min(to, at + 50)]
            case _ if out:
                out[min(at, len(out) - 1)] = chance.randrange(256)
    return bytes(out)


class OneFile:
    """A source whose one file is set anew for each reading, beside a good one."""

    def __init__(self, folder: Path, name: str):
        self.uri, self.folder, self.name = str(folder), folder, name
        (folder / "good.jsonl").write_text(
            '{"text": "good", "messages": [{"role": "user", "content": "good"}]}\n'
        )

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        yield self.folder / path

    def read(self, data: bytes, seed: Seed, *, alone: bool = False) -> ReadBatch:
        (self.folder / self.name).write_bytes(data)
        files = [SourceFile(name, 1, 1) for name in (self.name, "good.jsonl")[: 1 if alone else 2]]
        with within(LIMIT_SECONDS):
            return read_documents(self, formats.Batch("00001-x", files), *settings_of(seed))


def settings_of(seed: Seed) -> tuple[DocumentsSettings, ExamplesSettings]:
    return _settings(json.dumps(seed.documents), json.dumps(seed.examples))


@cache
def _settings(documents: str, examples: str) -> tuple[DocumentsSettings, ExamplesSettings]:
    """Return settings that were given as JSON; checking them takes a sixth of the time of reading a small
    file.
    """
    labelled = {"label": "kind", "group": "expression", **json.loads(examples)}
    return DocumentsSettings(path="x", **json.loads(documents)), ExamplesSettings(**labelled)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not read within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", SEEDS)
def test_a_damaged_file_gives_rows_or_its_reason(kind: str, tmp_path: Path) -> None:
    damage(kind, range(SEEDS[kind].times), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", SEEDS)
def test_ten_thousand_damaged_files_give_rows_or_their_reason(kind: str, tmp_path: Path) -> None:
    damage(kind, range(1_000, 11_000), tmp_path)


def damage(kind: str, numbers: range, tmp_path: Path) -> None:
    """Read damaged files; check that the rest of a batch goes on, and that no row is lost without a
    reason.
    """
    seed = SEEDS[kind]
    source, whole = OneFile(tmp_path, seed.name), seed.make()
    path = tmp_path / seed.name
    intact = source.read(whole, seed)
    assert intact.unreadable == {} and len(intact.table) > 1, "the undamaged file is read"
    assert_nothing_is_lost(seed, path, rows_of(intact, seed), intact.encodings.get(seed.name, "utf-8-sig"))
    outcomes = {"read": 0, "unreadable": 0}
    for number in numbers:
        data = damaged(whole, random.Random(f"{kind} {number}"))
        batch = source.read(data, seed)
        assert batch.table.schema == schema()
        batch.table.validate(full=True)
        assert batch.table["source"].to_pylist()[-1] == "good.jsonl", "the rest goes on"
        rows = rows_of(batch, seed)
        if seed.name in batch.unreadable:
            why = batch.unreadable[seed.name]
            assert rows == [] and why and "\n" not in why and len(why) < 200
            outcomes["unreadable"] += 1
        else:
            assert_nothing_is_lost(seed, path, rows, batch.encodings.get(seed.name, "utf-8-sig"))
            outcomes["read"] += 1
    assert sum(outcomes.values()) == len(numbers) and outcomes["read"] + (kind.startswith("arrow")) > 0


def rows_of(batch: ReadBatch, seed: Seed) -> list[dict[str, Any]]:
    return [row for row in batch.table.to_pylist() if row["source"] == seed.name]


def _unpacked(name: str, data: bytes) -> bytes:
    match compression_of(name):
        case "gzip":
            return gzip.decompress(data)
        case "zstd":
            return pa.input_stream(pa.BufferReader(data), compression="zstd").read()
    return data


def _numbers_of_lines(text: str) -> list[int]:
    lines = io.StringIO(text, newline=None)
    return [number for number, line in enumerate(lines, start=1) if not line.isspace()]


def _first_of_tasks(ids: Iterable[Any]) -> list[int]:
    """Return the numbers of the records that begin a task, given each record's id; one without is a task of
    its own.
    """
    runs = groupby(
        enumerate(ids, start=1), lambda item: item[1] if isinstance(item[1], int | str) else (item[0],)
    )
    return [next(run)[0] for _, run in runs]


def _numbers_in_json(text: str) -> list[int]:
    """Return the numbers of the records that make a row: of an array, of one record, or lines."""
    first = next((line for line in io.StringIO(text, newline=None) if not line.isspace()), "")
    if not first.lstrip().startswith("["):
        return [1] if _is_record(text) and not _is_record(first) else _numbers_of_lines(text)
    # The parser of arrays takes these for spaces, too.
    records = json.loads(text.translate(dict.fromkeys(map(ord, "\v\f"), " ")))
    one = next((record for record in records if isinstance(record, dict)), {})
    if isinstance(one.get("data"), dict) or not {"annotation_id", "annotator"} <= one.keys():
        return list(range(1, len(records) + 1))
    # JSON-MIN: the annotations of one task, which stand one after the other, make one row.
    return _first_of_tasks(record.get("id") if isinstance(record, dict) else None for record in records)


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _num_in_csv(text: str, seed: Seed) -> int:
    lines, delimiter = tables._lines_and_delimiter(
        io.StringIO(text, newline=""), seed.name, DocumentsSettings(path="data")
    )
    fields = [fields for fields in csv.reader(lines, delimiter=delimiter) if fields]
    first = next((at for at, row in enumerate(fields) if any(row)), len(fields))
    names, *records = fields[first:] or [[]]
    if seed.documents.get("format") != "label_studio":
        return len(records)
    ids = (
        dict(zip(names, fields, strict=True)).get("id") if len(fields) == len(names) else None
        for fields in records
    )
    return len(_first_of_tasks(ids))


def assert_no_quote_hides_a_row(seed: Seed, data: bytes, rows: list[dict[str, Any]]) -> None:
    """Check that each row that the damage left alone has a row, or is part of one whose problem is named.

    It does not depend on how our reader or Python's parses: the row is found by its bytes, at the beginning
    of a line.
    """
    numbers = sorted(row["row"] for row in rows)
    named = {row["row"] for row in rows if row["problem"]}
    header = len(re.findall(rb"\r\n?|\n", (re.match(rb"\s*", data) or [b""])[0])) + 1
    for row in ROWS:
        written = formats.as_csv([row]).split("\r\n", 1)[1].encode()
        written = written.replace(b",", b"\t") if seed.name == "a.tsv" else written
        for found in re.finditer(rb"(?<![^\r\n])" + re.escape(written), data):
            line = len(re.findall(rb"\r\n?|\n", data[: found.start()])) + 1
            last = max((number for number in numbers if number <= line), default=0)
            assert line <= header or last == line or last in named, f"the row of line {line} is lost"


def _num_in_tables(data: bytes) -> int:
    try:
        return pa.ipc.open_file(pa.BufferReader(data)).read_all().num_rows
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.BufferReader(data)).read_all().num_rows


def _sniffed(seed: Seed, path: Path) -> str:
    form = name_of_format(seed.name)
    assert form is not None
    return format_of_content(Delivered(path, seed.name), form, Wanted.of(*settings_of(seed)))


def assert_nothing_is_lost(seed: Seed, path: Path, rows: list[dict[str, Any]], encoding: str) -> None:
    """Check that a file that was read has a row for each record that it holds."""
    form, data = name_of_format(seed.name), path.read_bytes()
    if form in _UNTRUSTED:
        sniffed = _sniffed(seed, path)
        if sniffed != form and (form, sniffed) != ("text", "csv"):
            return
        form = sniffed
    if form in ("jsonl", "ground_truth"):
        assert [row["row"] for row in rows] == _numbers_of_lines(_unpacked(seed.name, data).decode(encoding))
    elif form == "json":
        assert [row["row"] for row in rows] == _numbers_in_json(_unpacked(seed.name, data).decode(encoding))
    elif form == "csv":
        if "format" not in seed.documents and not encoding.startswith(("utf-16", "utf-32")):
            assert_no_quote_hides_a_row(seed, _unpacked(seed.name, data), rows)
        assert len(rows) == _num_in_csv(_unpacked(seed.name, data).decode(encoding), seed)
    elif form == "arrow":
        assert len(rows) == _num_in_tables(data)
    elif form == "parquet":
        assert len(rows) == pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    elif form in ("text", *SINGLE):
        assert len(rows) == 1
    elif form == "xlsx":
        assert [row["row"] for row in rows] == list(range(2, len(ROWS) + 2)), "a checksum guards each row"
    elif form == "mbox":
        assert len(rows) == len(re.findall(rb"(?:\A(?:[ \t\r\v\f]*\n)?|\n[ \t\r\v\f]*\n)From ", data))
    elif form == "xml":
        assert len(rows) == max(1, data.count(b"</PubmedArticle>"))
    elif form == "zip":
        assert len(rows) >= len(zipfile.ZipFile(io.BytesIO(data)).namelist())
    assert all(
        row["problem"] or row["text"] is not None or form in ("json", "jsonl", "parquet", "arrow")
        for row in rows
    )


#: Values that fit the JSON but not the place where they stand.
ODD = [
    None,
    True,
    0,
    -1,
    10**25,
    1.5,
    float("nan"),
    "",
    "s3://",
    "{",
    "[]",
    [],
    {},
    [[]],
    [{}],
    [None],
    ["x", "y"],
    {"a": 1},
    "2025-13-45T99",
]
#: Fields that say what a record is.
TELLING = [
    "id",
    "text",
    "kind",
    "entities",
    "topics",
    "kind.responses",
    "kind.responses.users",
    "responses",
    "annotation",
    "fields",
    "source-ref",
]
RECORDS = [
    kind
    for kind, seed in SEEDS.items()
    if name_of_format(seed.name) in ("json", "jsonl", "ground_truth") and "in " not in kind
]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value inside a record."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places_in(value[key], (*path, key))


def oddly_changed(record: Any, chance: random.Random) -> Any:
    """Return a record with odd values in some places, in new fields, or in place of none."""
    record = copy.deepcopy(record)
    for _ in range(chance.choice((1, 1, 2, 4))):
        *path, last = chance.choice([*places_in(record)] or [("id",)])
        inner = record
        for key in path:
            inner = inner[key]
        match chance.randrange(4):
            case 0 if isinstance(inner, dict):
                inner.pop(last, None)
            case 1:
                record[chance.choice(TELLING)] = copy.deepcopy(chance.choice(ODD))
            case _:
                inner[last] = copy.deepcopy(chance.choice(ODD))
    return record


@pytest.mark.parametrize("kind", RECORDS)
def test_values_of_any_type_in_any_place_give_rows(kind: str, tmp_path: Path) -> None:
    """Bytes that are damaged seldom leave JSON; here it stays JSON, and the types are wrong."""
    seed = SEEDS[kind]
    source, whole = OneFile(tmp_path, seed.name), _unpacked(seed.name, seed.make()).decode()
    is_array = whole.startswith("[")
    records = json.loads(whole) if is_array else [json.loads(line) for line in whole.splitlines()]
    for number in range(60):
        chance = random.Random(f"values {kind} {number}")
        changed = [
            oddly_changed(record, chance) if chance.random() < 0.7 else record for record in records[:6]
        ]
        data = (json.dumps(changed) if is_array else formats.as_lines(changed)).encode()
        batch = source.read(formats.pack(data, codec) if (codec := compression_of(seed.name)) else data, seed)
        batch.table.validate(full=True)
        rows = rows_of(batch, seed)
        assert batch.unreadable == {}
        assert all(
            row["problem"] is None or ("\n" not in row["problem"] and len(row["problem"]) < 300)
            for row in rows
        )
        if "short form" not in kind:  # where the annotations of one task make one row
            assert [row["row"] for row in rows] == list(range(1, len(changed) + 1))


@pytest.mark.parametrize("number", range(150))
def test_lines_before_and_after_the_damage_are_all_there(number: int, tmp_path: Path) -> None:
    chance = random.Random(f"lines {number}")
    lines = formats.as_lines(ROWS).encode().splitlines(keepends=True)
    first = chance.randrange(len(lines))
    last = chance.randrange(first, min(first + 2, len(lines)))
    broken = damaged(b"".join(lines[first : last + 1]), chance)
    seed = SEEDS["json lines"]
    batch = OneFile(tmp_path, "a.jsonl").read(
        b"".join(lines[:first]) + broken + b"\n" + b"".join(lines[last + 1 :]), seed
    )
    if "a.jsonl" in batch.unreadable:
        assert not any(row["source"] == "a.jsonl" for row in batch.table.to_pylist())
        return
    texts = [row["text"] for row in batch.table.to_pylist() if row["source"] == "a.jsonl"]
    assert texts[:first] == [row["text"] for row in ROWS[:first]]
    after = len(lines) - last - 1
    assert texts[len(texts) - after :] == [row["text"] for row in ROWS[last + 1 :]]


@pytest.mark.parametrize("number", range(60))
def test_rows_of_a_csv_file_before_the_damage_are_all_there(number: int, tmp_path: Path) -> None:
    chance = random.Random(f"csv {number}")
    num_intact = chance.randrange(1, len(ROWS))
    whole = formats.as_csv(ROWS).encode()
    at = len(formats.as_csv(ROWS[:num_intact]).encode())
    batch = OneFile(tmp_path, "a.csv").read(whole[:at] + damaged(whole[at:], chance), SEEDS["csv"])
    if "a.csv" not in batch.unreadable:
        texts = [row["text"] for row in rows_of(batch, SEEDS["csv"])]
        assert texts[:num_intact] == [row["text"] for row in ROWS[:num_intact]]


@pytest.mark.parametrize("number", range(60))
def test_a_damaged_gzip_archive_is_unreadable_or_gives_every_row_as_it_was(
    number: int, tmp_path: Path
) -> None:
    seed = SEEDS["gzip"]
    source, whole = OneFile(tmp_path, seed.name), seed.make()
    rows = rows_of(source.read(whole, seed), seed)
    batch = source.read(damaged(whole, random.Random(f"gzip {number}")), seed)
    assert seed.name in batch.unreadable or rows_of(batch, seed) == rows, "a checksum guards all of it"
