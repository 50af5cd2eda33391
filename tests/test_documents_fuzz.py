"""documents/formats: whatever a damaged file holds, rows or one line that says why come out; no crash, no
hang, no silent loss.
"""

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.documents.formats import compression_of, name_of_format, tables
from fullft_assets.documents.reading import ReadBatch, read_documents, schema
from fullft_assets.documents.sources import SourceFile
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from tests import project as projects, test_documents_formats as formats, test_documents_office as office

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


def _workbook() -> bytes:
    book = office.workbook([list(ROWS[0]), *(list(row.values()) for row in ROWS)], [])
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


def _lines() -> bytes:
    return formats.as_lines(
        [{**row, "text": f"{row['text']} – naïve €"} if i % 2 else row for i, row in enumerate(ROWS)]
    ).encode()


SEEDS = {
    "json lines": Seed("a.jsonl", _lines, times=240),
    "json lines in UTF-16": Seed("a.jsonl", lambda: _lines().decode().encode("utf-16")),
    "json lines in cp1252": Seed("a.jsonl", lambda: _lines().decode().encode("cp1252", "replace")),
    "json array": Seed("a.json", lambda: json.dumps(ROWS, indent=1).encode()),
    "csv": Seed("a.csv", lambda: formats.as_csv(ROWS).encode(), times=240),
    "manifest": Seed("a.manifest", lambda: formats.as_manifest(ROWS).encode()),
    "label studio": Seed("a.json", _label_studio),
    "argilla": Seed("a.json", _argilla),
    "chat": Seed("a.jsonl", _chat, formats.CHAT),
    "spans": Seed("a.jsonl", _spans, SPANS),
    "gzip": Seed("a.jsonl.gz", lambda: formats.pack(_lines(), "gzip"), times=180),
    "zstd": Seed("a.csv.zst", lambda: formats.pack(formats.as_csv(ROWS).encode(), "zstd"), times=180),
    "parquet": Seed("a.parquet", _parquet, times=240),
    "parquet, plain": Seed(
        "a.parquet", lambda: _parquet(compression="none", use_dictionary=False), MANY, times=240
    ),
    "plain text": Seed("a.txt", lambda: ROWS[0]["text"].encode()),
    "html": Seed("a.html", formats.PAGE.encode, times=180),
    "pdf": Seed("a.pdf", lambda: formats.written_pdf(*[formats.shown("A page", "of text")] * 4), times=40),
    "docx": Seed("a.docx", office.letter, times=40),
    "xlsx": Seed("a.xlsx", _workbook, times=20),
    "eml": Seed("a.eml", _mail, times=60),
    "mbox": Seed(
        "a.mbox",
        lambda: b"".join(b"From a@example.org Mon May  6 07:08:00 2024\n" + _mail() for _ in range(3)),
        times=60,
    ),
    "rtf": Seed("a.rtf", lambda: _rtf().encode(), times=60),
    "xml": Seed("a.xml", office.PUBMED.encode, documents={"records": "PubmedArticle"}, times=60),
}
#: Formats that a file must be of to have one row.
SINGLE = ("text", "html", "pdf", "docx", "eml", "rtf")


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

    def read(self, data: bytes, seed: Seed) -> ReadBatch:
        (self.folder / self.name).write_bytes(data)
        batch = formats.Batch("00001-x", [SourceFile(name, 1, 1) for name in (self.name, "good.jsonl")])
        examples = {"label": "kind", "group": "expression", **seed.examples}
        return read_documents(
            self, batch, DocumentsSettings(path="x", **seed.documents), ExamplesSettings(**examples)
        )


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
        batch = source.read(damaged(whole, random.Random(f"{kind} {number}")), seed)
        assert batch.table.schema == schema()
        batch.table.validate(full=True)
        assert batch.table["source"].to_pylist()[-1] == "good.jsonl", "the rest goes on"
        rows = rows_of(batch, seed)
        if seed.name in batch.unreadable:
            why = batch.unreadable[seed.name]
            assert rows == []
            assert why
            assert "\n" not in why
            assert len(why) < 200
            outcomes["unreadable"] += 1
        else:
            assert_nothing_is_lost(seed, path, rows, batch.encodings.get(seed.name, "utf-8-sig"))
            outcomes["read"] += 1
    assert sum(outcomes.values()) == len(numbers) and outcomes["read"] > 0


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
    return [
        number for number, line in enumerate(io.StringIO(text, newline=None), start=1) if not line.isspace()
    ]


def _numbers_in_json(text: str) -> list[int]:
    """Return the numbers of the records that make a row: of an array, of one record, or lines."""
    first = next((line for line in io.StringIO(text, newline=None) if not line.isspace()), "")
    if not first.lstrip().startswith("["):
        return [1] if _is_record(text) and not _is_record(first) else _numbers_of_lines(text)
    # The parser of arrays takes these for spaces, too.
    return list(range(1, len(json.loads(text.translate(dict.fromkeys(map(ord, "\v\f"), " ")))) + 1))


def _is_record(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _num_in_csv(text: str, name: str) -> int:
    lines, delimiter = tables._lines_and_delimiter(
        io.StringIO(text, newline=""), name, DocumentsSettings(path="data")
    )
    fields = [fields for fields in csv.reader(lines, delimiter=delimiter) if fields]
    return max(0, len(fields) - next((at for at, row in enumerate(fields) if any(row)), len(fields)) - 1)


def assert_nothing_is_lost(seed: Seed, path: Path, rows: list[dict[str, Any]], encoding: str) -> None:
    """Check that a file that was read has a row for each record that it holds."""
    form, data = name_of_format(seed.name), path.read_bytes()
    if form in ("jsonl", "ground_truth"):
        assert [row["row"] for row in rows] == _numbers_of_lines(_unpacked(seed.name, data).decode(encoding))
    elif form == "json":
        assert [row["row"] for row in rows] == _numbers_in_json(data.decode(encoding))
    elif form == "csv":
        assert len(rows) == _num_in_csv(_unpacked(seed.name, data).decode(encoding), seed.name)
    elif form == "parquet":
        assert len(rows) == pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    elif form in SINGLE:
        assert len(rows) == 1
    elif form == "xlsx":
        assert [row["row"] for row in rows] == list(range(2, len(ROWS) + 2)), "a checksum guards each row"
    elif form == "mbox":
        assert len(rows) == len(re.findall(rb"(?:\A(?:[ \t\r\v\f]*\n)?|\n[ \t\r\v\f]*\n)From ", data))
    elif form == "xml":
        assert len(rows) == data.count(b"</PubmedArticle>")
    assert all(
        row["problem"] or row["text"] is not None or form in ("json", "jsonl", "parquet") for row in rows
    )
