"""documents/formats/bounded: no file hangs a batch, fills the memory or ends the process; it is named, and
the others are read.
"""

import csv
import io
import os
import struct
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.documents import formats, reading
from fullft_assets.documents.formats import Delivered, Reading, Record, bounded, delivered
from fullft_assets.documents.formats.delivered import Unpacked
from tests.test_documents_formats import pack, read_batch, shown, written_pdf

pytestmark = pytest.mark.quick

MIB = 2**20
TIMES_SIZE = "unpacks to more than 200 times its size; deliver it unpacked"
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
        case "print":
            print("what a parser says on stdout" * 1000, flush=True)
            yield 1, {"text": "printed"}
        case "unpack":
            with tempfile.TemporaryDirectory(prefix="fullft-") as folder:
                (Path(folder) / "member").write_text("what the member of an archive says")
                os.abort()
        case "raise":
            raise KeyError("text of the document")
        case _:
            yield 1, {"text": "fine"}


def let_html_misbehave(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Read HTML by `misbehaving`, with this time for one record and for all of a file."""
    found = formats.FORMATS.get
    changes = {"records": misbehaving, "seconds": lambda _: seconds}
    monkeypatch.setattr(
        formats.FORMATS,
        "get",
        lambda name: replace(found(name), **changes) if name == "html" else found(name),
    )


@pytest.mark.heavy
def test_a_reader_that_misbehaves_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MAX_MEMORY_BYTES", 2**30)
    let_html_misbehave(monkeypatch, 2.0, 600.0)
    for word in ("hang", "sleep", "fill", "abort", "print", "raise", "well"):
        (tmp_path / f"{word}.html").write_text(f"{word} ")
    batch = read_batch(tmp_path)
    texts = ["printed", *(f"slow but going on {number}" for number in (1, 2, 3)), "fine"]
    assert batch.table["text"].to_pylist() == texts
    assert batch.unreadable == {
        "hang.html": "takes longer than 2 s a record or page, or 600 s in all",
        "fill.html": "takes more than 1 GiB of memory; split it",
        "abort.html": "its reader ended with exit code -6; the file is damaged, or takes too much memory",
        "raise.html": "its reader failed (KeyError)",
    }


@pytest.mark.heavy
def test_nothing_is_left_of_what_a_reader_unpacked_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_html_misbehave(monkeypatch, 20.0, 600.0)
    monkeypatch.setattr(bounded.ReaderProcess, "_idle", [])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "delivered").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"delivered/{name}.html").write_text("unpack ")
    (tmp_path / "delivered/c.html").write_text("well")
    batch = read_batch(tmp_path / "delivered")
    assert (batch.table["text"].to_pylist(), len(batch.unreadable)) == (["fine"], 2)
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_list_of_members_is_not_read_whole_to_tell_a_format(tmp_path: Path) -> None:
    size = 256 * MIB
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size - 4, 4, 0)
    with (tmp_path / "letters.txt").open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(size)
        file.seek(size)
        file.write(end)
    (tmp_path / "page.html").write_bytes(PAGE)
    tracemalloc.start()
    try:
        batch = read_batch(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * MIB
    assert batch.unreadable == {"letters.txt": "not a complete ZIP archive (BadZipFile)"}


@pytest.mark.heavy
def test_a_file_that_is_slow_in_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_html_misbehave(monkeypatch, 20.0, 1.0)
    (tmp_path / "a.html").write_text("sleep")
    (tmp_path / "b.html").write_text("well")
    batch = read_batch(tmp_path)
    assert (batch.table["text"].to_pylist(), batch.unreadable) == (
        ["fine"],
        {"a.html": "takes longer than 20 s a record or page, or 1 s in all"},
    )


def _zeros(codec: str) -> bytes:
    return pack(b'{"text": "' + b"0" * (80 * MIB) + b'"}\n', codec)


def _lines(codec: str) -> bytes:
    return pack(b'{"text": "again and again the same line"}\n' * 2_000_000, codec)


def _dictionary(write: Callable[[pa.Table, io.BytesIO], None]) -> bytes:
    out = io.BytesIO()
    write(pa.table({"text": pa.array(["x" * 100_000] * 1_000).dictionary_encode()}), out)
    return out.getvalue()


def _arrow(table: pa.Table, out: io.BytesIO) -> None:
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _big_pdf() -> bytes:
    stream = zlib.compress(b"BT /F1 12 Tf " + b"( ) Tj " * (30 * MIB) + b"ET", 9)
    head = (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count"
        b" 1>>endobj "
    )
    head += (
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>endobj 4 0"
        b" obj<</Filter/FlateDecode/Length LENGTH>>stream\n"
    )
    return (
        head.replace(b"LENGTH", b"%d" % len(stream))
        + stream
        + b"\nendstream endobj trailer<</Root 1 0 R>>\n%%EOF"
    )


#: Small files that unpack to much, or nest deeply, or were slow.
BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros.jsonl.gz": lambda: _zeros("gzip"),
    "zeros.csv.zst": lambda: _zeros("zstd"),
    "lines.jsonl.gz": lambda: _lines("gzip"),
    "lines.jsonl.zst": lambda: _lines("zstd"),
    "zeros.json.gz": lambda: _zeros("gzip"),
    "rows.parquet": lambda: _dictionary(pq.write_table),
    "rows.arrow": lambda: _dictionary(_arrow),
    "spaces.pdf": _big_pdf,
    "open.html": lambda: b"<a" * 65_536,
    "comments.html": lambda: b"<!--" * 32_768,
    "deep.html": lambda: b"<div>" * 500_000 + b"deep",
    "formatted.html": lambda: b"<p><font><b>" * 100_000 + b"x",
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
    (tmp_path / name).write_bytes(BOMBS[name]())
    (tmp_path / "page.html").write_bytes(PAGE)
    (tmp_path / "z.pdf").write_bytes(written_pdf(shown("a page")))
    before = time.monotonic()
    batch = read_batch(tmp_path)
    assert time.monotonic() - before < 60
    assert batch.table["text"].to_pylist()[-2:] == ["A page that is read.", "a page"]
    if name.startswith(("zeros", "lines", "rows")):
        assert batch.unreadable == {name: TIMES_SIZE}


def test_a_text_a_line_and_a_field_may_be_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered, "MAX_LINE_CHARACTERS", 1_000)
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 1_000)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * 1_000 + '"}\n')
    (tmp_path / "b.csv").write_text("text,kind\n" + "x" * 1_000 + ",y\n")
    (tmp_path / "c.manifest").write_text('{"source-ref": "small.dat"}\n{"source-ref": "large.dat"}\n')
    (tmp_path / "small.dat").write_text("x" * 1_000)
    (tmp_path / "large.dat").write_text("x" * 1_001)
    (tmp_path / "d.csv").write_text('text,kind\n"' + "x\n" * 100_000 + '",y\n')
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
    assert limit == 64 * MIB
    assert batch.table["text"].to_pylist() == ["x" * 1_000, None]
    assert batch.table["problem"].to_pylist() == [
        None,
        "source-ref cannot be read (larger than 0 MiB; split it)",
    ]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_an_archive_may_unpack_to_so_much(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unpacked, "FREE_BYTES", 10_000)
    name = "a.jsonl.gz" if codec == "gzip" else "a.jsonl.zst"
    row = b'{"text": "one"}\n'
    (tmp_path / name).write_bytes(pack(row * 600, codec))
    assert len(read_batch(tmp_path).table) == 600
    (tmp_path / "b.jsonl").write_bytes(row)
    (tmp_path / name).write_bytes(pack(row * 100_000, codec))
    batch = read_batch(tmp_path)
    assert (len(batch.table), batch.unreadable) == (1, {name: TIMES_SIZE})
    monkeypatch.setattr(Unpacked, "FREE_BYTES", 64 * MIB)
    monkeypatch.setattr(Unpacked, "MAX_BYTES", 100_000)
    assert read_batch(tmp_path).unreadable == {name: "unpacks to more than 0 GiB; split it"}


def test_the_archives_of_a_batch_may_unpack_to_so_much_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BATCH_BYTES", MIB)
    row = b'{"text": "again and again the same line, which is packed to nearly nothing"}\n'
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        (tmp_path / name).write_bytes(pack(row * 6_000, "gzip" if name.endswith("gz") else "zstd"))
    for name in ("c.zip", "d.zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.jsonl", row * 6_000)
    (tmp_path / "e.jsonl").write_bytes(row)
    batch = read_batch(tmp_path)
    too_much = (
        "the rows of its batch take more than 1 MiB; lower documents.max_batch_files, and deliver it again"
    )
    assert batch.unreadable == dict.fromkeys(("b.jsonl.zst", "c.zip", "d.zip"), too_much)
    assert len(batch.table) == 6_001 and batch.table.nbytes < MIB
    monkeypatch.undo()
    assert len(read_batch(tmp_path).table) == 24_001, "each of them alone is within its bounds"


@pytest.mark.heavy
def test_a_look_that_stops_early_leaves_the_process_ready(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(50_000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.html").write_bytes(PAGE)
    reading = Reading(wanted=None, fields=None, fetch=lambda _: [], shared=lambda _: process, documents=None)
    with bounded.ReaderProcess() as process:
        rows = bounded.records(
            formats.FORMATS.get("parquet"), Delivered(tmp_path / "a.parquet", "a.parquet"), reading
        )
        assert next(rows) == (1, {"text": "row 0"})
        pages = bounded.records(
            formats.FORMATS.get("html"), Delivered(tmp_path / "b.html", "b.html"), reading
        )
        _, page = next(pages)
        # The look that stopped ends only now, and not the one after it.
        del rows
        assert [*pages] == []
        assert isinstance(page, dict) and page["text"] == "A page that is read."
