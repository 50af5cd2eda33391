"""documents/formats/bounded: no file hangs a batch, fills the memory or ends the process; it is named, and
the others are read.
"""

import csv
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.documents import formats, reading
from fullft_assets.documents.formats import Delivered, Reading, Record, bounded, delivered
from tests import project as projects
from tests.test_documents_formats import pack, read_batch, shown, written_pdf

pytestmark = pytest.mark.quick

MIB = 2**20
TIMES_SIZE = "unpacks to more than 200 times its size; deliver it unpacked"
PLANTED = ["AWS_SECRET_ACCESS_KEY", "DAGSTER_POSTGRES_PASSWORD", "HF_TOKEN", "MY_OWN", "SLACK_URL"]
PAGE = b"<html><body><p>A page that is read.</p></body></html>"


def misbehaving(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Do what the first word of a file says; it runs in the process that reads."""
    match file.path.read_text().partition(" ")[0]:
        case "hang":
            while True:
                pass
        case "sleep":
            for number in range(1, 4):
                time.sleep(0.7)
                yield number, {"text": f"slow but going on {number}"}
        case "fill":
            taken = []
            while True:
                taken.append(bytes(64 * MIB))
        case "abort":
            os.abort()
        case "tell":
            yield 1, {"text": ", ".join(sorted({"PATH", *PLANTED} & {*os.environ}))}
        case "print":
            print("what a parser says on stdout" * 1000, flush=True)
            yield 1, {"text": "printed"}
        case "raise":
            raise KeyError("text of the document")
        case _:
            yield 1, {"text": "fine"}


def let_html_misbehave(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Read HTML by `misbehaving`, with this time for one record and for all of a file."""
    found = formats.FORMATS.get
    monkeypatch.setattr(
        formats.FORMATS,
        "get",
        lambda name: replace(found(name), records=misbehaving) if name == "html" else found(name),
    )
    for name, value in zip(("STEP_SECONDS", "FILE_SECONDS"), seconds, strict=True):
        monkeypatch.setattr(bounded, name, value)


@pytest.mark.heavy
def test_a_reader_that_misbehaves_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MAX_MEMORY_BYTES", 2**30)
    monkeypatch.setattr(bounded.ReaderProcess, "_idle", [])  # those have the variables of another test
    for name in PLANTED:
        monkeypatch.setenv(name, "planted")
    let_html_misbehave(monkeypatch, 2.0, 600.0)
    for word in ("hang", "sleep", "fill", "abort", "print", "raise", "tell", "well"):
        (tmp_path / f"{word}.html").write_text(f"{word} ")
    batch = read_batch(tmp_path)
    texts = ["printed", *(f"slow but going on {number}" for number in (1, 2, 3)), "MY_OWN, PATH", "fine"]
    assert batch.table["text"].to_pylist() == texts
    assert batch.unreadable == {
        "hang.html": "takes longer than 2 s a record or page, or 600 s in all",
        "fill.html": "takes more than 1 GiB of memory; split it",
        "abort.html": "its reader ended with exit code -6; the file is damaged, or takes too much memory",
        "raise.html": "its reader failed (KeyError)",
    }


@pytest.mark.heavy
def test_a_file_that_is_slow_in_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_html_misbehave(monkeypatch, 20.0, 1.0)
    projects.write_files(
        tmp_path,
        {
            "a.html": "sleep",
            "b.html": "well",
        },
    )
    batch = read_batch(tmp_path)
    assert batch.table["text"].to_pylist() == ["fine"] and batch.unreadable["a.html"].endswith(
        "or 1 s in all"
    )


def _rows() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(["x" * 100_000] * 1_000).dictionary_encode()}), out)
    return out.getvalue()


def _big_pdf() -> bytes:
    text = b"BT /F1 12 Tf " + b"( ) Tj " * (30 * MIB) + b"ET"
    return written_pdf(zlib.compress(text, 9), filters=b"/Filter /FlateDecode")


#: Small files that unpack to much, or nest deeply, or were slow.
BOMBS: dict[str, Callable[[], bytes]] = {
    "rows.parquet": _rows,
    "spaces.pdf": _big_pdf,
    "open.html": lambda: b"<a" * 65_536,
    "deep.html": lambda: b"<div>" * 500_000 + b"deep",
    "deep.json": lambda: b"[" * 5_000_000,
    "deep.jsonl": lambda: b'{"a":' * 1_000_000,
    "number.json": lambda: b'{"text": ' + b"9" * 20_000_000 + b"}",
    "quotes.csv": lambda: b"text,kind\n" + b'"a""' * 5_000_000,
    "charset.html": lambda: b"<meta charset=" * 100_000 + "ä".encode("cp1252"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "rows.parquet" else pytest.mark.long) for name in BOMBS]
)
@pytest.mark.heavy
def test_a_bomb_is_cut_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    projects.write_files(
        tmp_path,
        {
            name: BOMBS[name](),
            "page.html": PAGE,
            "z.pdf": written_pdf(shown("a page")),
        },
    )
    before = time.monotonic()
    batch = read_batch(tmp_path)
    assert time.monotonic() - before < 60
    assert batch.table["text"].to_pylist()[-2:] == [
        "A page that is read.",
        "a page",
    ]
    if name.startswith("rows"):
        assert batch.unreadable == {name: TIMES_SIZE}


def test_a_text_a_line_and_a_field_may_be_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered, "MAX_LINE_CHARACTERS", 1_000)
    projects.write_files(
        tmp_path,
        {
            "a.jsonl": '{"text": "short"}\n{"text": "' + "x" * 1_000 + '"}\n',
            "b.csv": "text,kind\n" + "x" * 1_000 + ",y\n",
            "c.jsonl": '{"text": "good"}\n',
            "d.csv": 'text,kind\n"' + "x\n" * 100_000 + '",y\n',
        },
    )
    with (tmp_path / "e.txt").open("wb") as file:
        file.truncate(delivered.MAX_TEXT_BYTES + 1)
    limit = csv.field_size_limit(100_000)
    try:
        batch = read_batch(tmp_path)
    finally:
        csv.field_size_limit(limit)
    assert batch.unreadable == {
        "a.jsonl": "line 2 is longer than 0 Mi characters; split it",
        "b.csv": "line 2 is longer than 0 Mi characters; split it",
        "d.csv": (
            "not CSV: field larger than field limit (100000), in the row that starts on line 2: fix its"
            " quotes, or set documents.csv.quoting to none"
        ),
        "e.txt": "larger than 32 MiB; split it",
    }
    assert limit == 64 * MIB and batch.table["text"].to_pylist() == ["good"]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_an_archive_may_unpack_to_so_much(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivered.Unpacked, "FREE_BYTES", 10_000)
    name = "a.jsonl.gz" if codec == "gzip" else "a.jsonl.zst"
    row = b'{"text": "one"}\n'
    (tmp_path / name).write_bytes(pack(row * 600, codec))
    assert len(read_batch(tmp_path).table) == 600
    projects.write_files(
        tmp_path,
        {
            "b.jsonl": row,
            name: pack(row * 100_000, codec),
        },
    )
    batch = read_batch(tmp_path)
    assert (len(batch.table), batch.unreadable) == (1, {name: TIMES_SIZE})
    monkeypatch.setattr(delivered.Unpacked, "FREE_BYTES", 64 * MIB)
    monkeypatch.setattr(delivered.Unpacked, "MAX_BYTES", 100_000)
    assert read_batch(tmp_path).unreadable == {name: "unpacks to more than 0 GiB; split it"}


def test_the_archives_of_a_batch_may_unpack_to_so_much_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BATCH_BYTES", MIB)
    row = b'{"text": "again and again the same line, which is packed to nearly nothing"}\n'
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        (tmp_path / name).write_bytes(pack(row * 6_000, "gzip" if name.endswith("gz") else "zstd"))
    (tmp_path / "e.jsonl").write_bytes(row)
    batch = read_batch(tmp_path)
    too_much = (
        "the rows of its batch take more than 1 MiB; lower documents.max_batch_files, and deliver it again"
    )
    assert batch.unreadable == {"b.jsonl.zst": too_much}
    assert len(batch.table) == 6_001 and batch.table.nbytes < MIB
    monkeypatch.undo()
    assert len(read_batch(tmp_path).table) == 12_001, "each of them alone is within its bounds"


@pytest.mark.heavy
def test_a_look_that_stops_early_leaves_the_process_ready(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(50_000)]}), tmp_path / "a.parquet")
    (tmp_path / "b.html").write_bytes(PAGE)
    reading = Reading(row_settings=None, fields=None, documents=None)
    process = bounded.ReaderProcess()

    def records(format_: str, name: str) -> Iterator[tuple[int, Record]]:
        return process.records(
            formats.FORMATS.get(format_).records, Delivered(tmp_path / name, name), reading
        )

    with closing(process):
        rows = records("parquet", "a.parquet")
        assert next(rows) == (1, {"text": "row 0"})
        pages = records("html", "b.html")
        _, page = next(pages)
        # The look that stopped ends only now, and not the one after it.
        del rows
        assert [*pages] == []
        assert isinstance(page, dict)
        assert page["text"] == "A page that is read."
