"""documents: a file whose ending lies is read as what it certainly is; text that only looks like a format
stays text.
"""

import json
from pathlib import Path

import openpyxl
import pytest

from fullft_assets.documents.formats import sniffing
from tests import project as projects
from tests import test_documents_formats as formats
from tests.test_documents_formats import read, read_batch
from tests.test_documents_office import JATS, letter, message, pack

pytestmark = pytest.mark.quick

ROWS = projects.licence_rows(5)


def mail() -> bytes:
    made = message(Subject="Hello", From="a@example.org", Message_ID="<1@example.org>")
    made.set_content("Body")
    return bytes(made)


def workbook(path: Path) -> bytes:
    book = openpyxl.Workbook()
    book.worksheets[0].append(["text", "kind"])
    book.worksheets[0].append(["In a cell", "x"])
    book.save(path)
    data = path.read_bytes()
    path.unlink()
    return data


def archive(path: Path) -> bytes:
    pack(path, {"a.txt": "In an archive"})
    data = path.read_bytes()
    path.unlink()
    return data


def test_a_lying_ending_is_no_obstacle(tmp_path: Path) -> None:
    contents: dict[str, bytes | str] = {
        "a.txt": r"{\rtf1\ansi Some rich text\par}",
        "b.txt": mail(),
        "c.txt": JATS,
        "d.txt": formats.as_csv(ROWS),
        "e.txt": formats.as_lines(ROWS),
        "f.txt": json.dumps(ROWS, indent=1),
        "g.txt": formats.written_pdf(formats.shown("A page")),
        "h.txt": letter(),
        "i.txt": workbook(tmp_path / "x.xlsx"),
        "j.txt": archive(tmp_path / "x.zip"),
        "k.txt": "<!DOCTYPE html><html><body><p>A web page</p></body></html>",
        "l.docx": formats.written_pdf(formats.shown("A page")),
        "m.pdf": letter(),
        "n.zip": letter(),
        "o.jsonl": json.dumps(ROWS),
        "p.csv": formats.as_lines(ROWS),
        "q.eml": "From a@example.org Mon May  6 07:08:00 2024\n" + mail().decode().replace("\r\n", "\n"),
        "r.xlsx": "<html><body><table><tr><td>An old export</td></tr></table></body></html>",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    texts: dict[str, list[str]] = {}
    for row in read(tmp_path):
        texts.setdefault(row["source"], []).append(row["text"])
    docx = texts["h.txt"]
    assert docx[0].startswith("Clinic of Example")
    lines = [row["text"] for row in ROWS]
    assert texts == {
        "a.txt": ["Some rich text"],
        "b.txt": ["Hello\n\nBody"],
        "c.txt": texts["c.txt"],
        **dict.fromkeys(("d.txt", "e.txt", "f.txt", "o.jsonl", "p.csv"), lines),
        **dict.fromkeys(("g.txt", "l.docx"), ["A page"]),
        **dict.fromkeys(("h.txt", "m.pdf", "n.zip"), docx),
        "i.txt": ["In a cell"],
        "j.txt": ["In an archive"],
        "k.txt": ["A web page"],
        "q.eml": ["Hello\n\nBody"],
        "r.xlsx": ["An old export"],
    }
    assert texts["c.txt"][0].startswith("On E. coli")


@pytest.mark.parametrize(
    "text",
    [
        "From: the director\nTo: all\nSubject: keys\n\nLock the doors.",
        "From the beginning of 2024\nall was well.",
        "{json} is a format\n[x] is a box",
        "text, kind and group are columns\nof the table",
        '{"name": "a configuration"}\n',
        "a,b\n1,2\n",
        "PKI is an acronym",
        "<p>of a page is a paragraph",
    ],
)
def test_text_that_looks_like_a_format_stays_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    [row] = read(tmp_path)
    assert row["text"] == text


def test_a_given_format_is_not_doubted_and_what_nothing_reads_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(JATS)
    assert read(tmp_path, format="text")[0]["text"] == JATS
    pack(tmp_path / "slides.txt", {"[Content_Types].xml": "<x/>", "ppt/presentation.xml": "<x/>"})
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n')
    assert read_batch(tmp_path).unreadable == {
        "slides.txt": "a file of Office that is neither DOCX nor XLSX; convert it"
    }


def test_a_page_of_comments_is_reported_in_no_time() -> None:
    assert sniffing._HTML.match("<!--a-->" * 8_000 + "text") is None


def test_an_archive_of_an_unknown_version_or_with_a_damaged_name_is_one_file_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    whole = archive(tmp_path / "x.zip")
    entry = whole.rindex(b"PK\x01\x02")
    newer, named = bytearray(whole), bytearray(whole)
    newer[entry + 6] = 77  # the version that is needed to extract it: 7.7
    named[entry + 9] |= 0x08  # its name is UTF-8,
    named[entry + 46] = 0xFF  # which no name begins with
    (tmp_path / "newer.zip").write_bytes(newer)
    (tmp_path / "named.zip").write_bytes(named)
    (tmp_path / "whole.txt").write_text("A text.")
    found = read_batch(tmp_path)
    assert [reason for _, reason in sorted(found.unreadable.items())] == [
        "not a complete ZIP archive (UnicodeDecodeError)",
        "not a complete ZIP archive (NotImplementedError)",
    ]
    assert found.table.num_rows == 1
