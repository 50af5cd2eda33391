"""documents/formats: each format is read as it is exported, and a malformed row or file says what is wrong
with it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.documents.batches import Batch
from fullft_assets.documents.reading import ReadBatch, read_documents, schema
from fullft_assets.documents.sources import Folder
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from tests import project as projects

pytestmark = pytest.mark.quick

Rows = list[dict[str, Any]]
CHAT = {"task": "sft", "label": None}
SPANS = {"task": "token_classification", "label": "entities"}
MANY = {"task": "multi_label", "label": "topics"}


def read_batch(
    folder: Path,
    examples: dict[str, Any] | None = None,
    files: Mapping[str, str | bytes] | None = None,
    **documents: Any,
) -> ReadBatch:
    """Read a folder as one batch, once these files are written to it."""
    projects.write_files(folder, files or {})
    source = Folder(folder)
    return read_documents(
        source,
        Batch(name="00001-test", files=source.files()),
        DocumentsSettings(path="unused", **documents),
        ExamplesSettings(**{"label": "kind", "group": "expression", **(examples or {})}),
    )


def read(folder: Path, examples: dict[str, Any] | None = None, **documents: Any) -> Rows:
    batch = read_batch(folder, examples, **documents)
    assert batch.unreadable == {} and batch.table.schema == schema()
    return batch.table.to_pylist()


def one(
    folder: Path,
    record: Any,
    examples: dict[str, Any] | None = None,
    **documents: Any,
) -> dict[str, Any]:
    """Return the row that one record is read as."""
    [row] = read(folder, examples, files={"a.jsonl": json.dumps(record) + "\n"}, **documents)
    return row


@pytest.fixture(scope="module")
def licences() -> Rows:
    return projects.licence_rows(120)


def as_csv(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_manifest(rows: Rows) -> str:
    about = {
        "confidence": 0.9,
        "type": "groundtruth/text-classification",
        "human-annotated": "yes",
        "creation-date": "2025-03-01T10:00:00",
    }
    return as_lines(
        [
            {
                "id": r["id"],
                "source": r["text"],
                "expression": r["expression"],
                "kind": 0,
                "kind-metadata": {**about, "class-name": r["kind"]},
            }
            for r in rows
        ]
    )


WRITERS: dict[str, Callable[[Rows], str]] = {
    "a.jsonl": as_lines,
    "b.json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1),
    "c.json": as_lines,
    "d.csv": as_csv,
}


def pack(data: bytes, codec: str) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, codec) as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


class TestContainers:
    @pytest.mark.parametrize("name", WRITERS)
    def test_licence_texts_come_back_as_they_were_written(
        self, tmp_path: Path, licences: Rows, name: str
    ) -> None:
        delivery = [*licences, {**licences[0], "id": "suffix", "text": "'-ism' is a suffix"}]
        rows = read(tmp_path, files={name: WRITERS[name](delivery)})
        assert [(r["id"], r["text"], r["label"], r["group"], r["problem"]) for r in rows] == [
            (r["id"], r["text"], r["kind"], r["expression"].casefold(), None) for r in delivery
        ]
        assert {row["delivered_ns"] for row in rows} == {(tmp_path / name).stat().st_mtime_ns}

    @pytest.mark.parametrize("codec", ["gzip", "zstd"])
    def test_a_broken_archive_is_unreadable_as_a_whole(
        self, tmp_path: Path, licences: Rows, codec: str
    ) -> None:
        ending = {"gzip": ".gz", "zstd": ".zst"}[codec]
        batch = read_batch(
            tmp_path,
            files={
                "good.jsonl": as_lines(licences[:2]),
                f"cut.jsonl{ending}": pack(as_lines(licences).encode(), codec)[:-9],
                f"empty.jsonl{ending}": b"",
                f"other.jsonl{ending}": as_lines(licences).encode(),
            },
        )
        assert batch.table["id"].to_pylist() == [row["id"] for row in licences[:2]]
        assert batch.unreadable[f"cut.jsonl{ending}"].endswith("(Truncated compressed stream)")
        assert batch.unreadable[f"empty.jsonl{ending}"] == f"not a {codec} archive: empty"
        assert batch.unreadable[f"other.jsonl{ending}"].startswith(f"not a complete {codec} archive (")

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("a.json", json.dumps({"text": "a", "kind": "x"}, indent=2), [(1, "a", "x", None)]),
            (
                "a.jsonl",
                '{"text": "a"}\n' + "[" * 100_000 + '\n{"text": "b"}\n',
                [(1, "a", None, None), (2, None, None, "not JSON: nested too deeply"), (3, "b", None, None)],
            ),
        ],
        ids=["one record on many lines", "a line nested without end"],
    )
    def test_a_json_record_is_a_row_or_a_problem_of_its_own(
        self, tmp_path: Path, name: str, content: str, expected: list[tuple]
    ) -> None:
        assert [
            (row["row"], row["text"], row["label"], row["problem"])
            for row in read(tmp_path, files={name: content})
        ] == expected

    def test_a_json_array_names_the_record_and_a_broken_one_counts_for_nothing(self, tmp_path: Path) -> None:
        batch = read_batch(
            tmp_path,
            files={
                "a.json": '[{"text": "a"}, 7, {"kind": "x"}, {"text": "\\ud83d"}]',
                "b.json": '[{"text": "a"},\n {"text": "b", }]',
                "c.json": '[{"text": "a"} {"text": "b"}]',
                "d.json": '[{"text": "a"}]\n{"text": "b"}',
                "e.json": "[]",
                "f.json": '[{"text": "a"}]   "cut',
                # The parser's message quotes bytes around the place, here from inside a character on.
                "g.json": f'[{{"text": "{"é" * 13}secret." 1}}]',
                "h.json": f'[{{"text": "{"é" * 13}secret" 1}}]',
            },
        )
        assert [(row["row"], row["text"], row["problem"]) for row in batch.table.to_pylist()] == [
            (1, "a", None),
            (2, None, "not a JSON object"),
            (3, None, "no field `text`"),
            (4, "?", None),
        ]
        assert " record 1: " in batch.unreadable["b.json"]
        assert re.search(" record 1: .* after array", batch.unreadable["c.json"])
        assert re.search(" record 1: .* trailing garbage$", batch.unreadable["d.json"])
        assert " record 1: text after " in batch.unreadable["f.json"]
        assert {batch.unreadable["g.json"], batch.unreadable["h.json"]} == {
            "not JSON: after record 0: parse error: after key and value, inside map, I expect ',' or '}'"
        }

    @pytest.mark.parametrize("indent", [None, 1])
    @pytest.mark.parametrize("path", ["data", "result.rows"])
    def test_an_object_with_an_array_of_records(self, tmp_path: Path, path: str, indent: int | None) -> None:
        table: Any = [{"text": "a", "kind": "x"}, 7, {"text": "b ]}", "kind": "y"}]
        for name in reversed(path.split(".")):
            table = {"version": {name: [1, "]"]}, name: table, "total": 3}
        rows = read(
            tmp_path,
            files={
                "a.json": json.dumps(table, indent=indent),
                "b.json": '[{"text": "c", "kind": "x"}]',
            },
            records=path,
        )
        assert [(row["row"], row["text"], row["problem"]) for row in rows] == [
            (1, "a", None),
            (2, None, "not a JSON object"),
            (3, "b ]}", None),
            (1, "c", None),
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ('{"rows": [{"text": "a"}]}', "has no array at documents.records"),
            ('{"data": {"text": "a"}}', "has no array at documents.records"),
            ('{"text": "a"}\n{"text": "b"}\n', "not JSON: after record 0: "),
            ('{"data": [{"text": "a"}, {"te', "not JSON: after record 1: "),
            ('{"data": [{"text": "a"}], "total', "not JSON: after record 1: "),
            ('{"data": [{"text": "a"}]} more', "not JSON: after record 1: "),
            ('{"version": nil, "data": []}', "not JSON: after record 0: "),
        ],
    )
    def test_an_object_without_a_whole_array_counts_for_nothing(
        self, tmp_path: Path, content: str, problem: str
    ) -> None:
        batch = read_batch(
            tmp_path,
            files={
                "a.json": content,
                "b.jsonl": '{"text": "b", "kind": "x"}\n',
            },
            records="data",
        )
        assert batch.unreadable["a.json"].startswith(problem) and len(batch.table) == 1

    def test_truth_values_and_whole_numbers_are_one_name_in_every_format(self, tmp_path: Path) -> None:
        fields = ("id", "text", "kind", "expression")
        projects.write_files(
            tmp_path,
            {
                "a.csv": "id,text,kind,expression\n1,a,true,7\n",
                "b.jsonl": '{"id": 1, "text": "a", "kind": true, "expression": 7}\n'
                '{"id": 1.0, "text": "a", "kind": true, "expression": 7.0}\n',
            },
        )
        # A column with a gap is one of floats.
        pq.write_table(
            pa.table(
                {"id": [1.0, None], "text": ["a", "a"], "kind": [True, None], "expression": [7.0, None]}
            ),
            tmp_path / "c.parquet",
        )
        pq.write_table(
            pa.table(
                {
                    name: [value]
                    for name, value in zip(fields, (Decimal("1.00"), "a", True, Decimal("7.0")), strict=True)
                }
            ),
            tmp_path / "d.parquet",
        )
        rows = [row for row in read(tmp_path) if row["label"] is not None]
        assert {(row["id"], row["label"], row["group"]) for row in rows} == {("1", "true", "7")} and len(
            rows
        ) == 5

    def test_a_table_is_read_by_its_bars_or_its_ending(self, tmp_path: Path) -> None:
        rows = read(
            tmp_path,
            files={
                "b.csv": "id|text|kind\n1|a, b|x\n",
                "c.tsv": 'id\ttext, whole\ttext\tkind\n1\t-\t"a, b"\tx\n',
            },
        )
        assert [(row["source"], row["row"], row["text"], row["label"], row["problem"]) for row in rows] == [
            (name, 2, "a, b", "x", None) for name in ("b.csv", "c.tsv")
        ]

    def test_an_explicit_format_is_taken_whatever_the_ending(self, tmp_path: Path) -> None:
        [row] = read(tmp_path, files={"a.txt": '{"text": "a"}\n'}, format="jsonl")
        assert row["text"] == "a" and [row["text"] for row in read(tmp_path)] == ['{"text": "a"}\n']


class TestColumnar:
    def test_nested_columns(self, tmp_path: Path) -> None:
        spans = [{"start": 0, "end": 3, "label": "x"}]
        pq.write_table(
            pa.Table.from_pylist([{"text": "abc", "entities": spans, "topics": ["b", "a", "b"]}]),
            tmp_path / "a.parquet",
        )
        assert read(tmp_path, SPANS)[0]["spans"] == spans and read(tmp_path, MANY)[0]["labels"] == ["a", "b"]

    @pytest.mark.heavy
    def test_a_table_of_datasets_gives_class_names_for_numbers(self, tmp_path: Path, licences: Rows) -> None:
        import datasets

        names = datasets.ClassLabel(names=sorted({row["kind"] for row in licences}))
        features = datasets.Features(
            {"text": datasets.Value("string"), "kind": names, "topics": datasets.Sequence(names)}
        )
        delivered = [{"text": row["text"], "kind": row["kind"], "topics": [row["kind"]]} for row in licences]
        # -1 is no label.
        delivered.append({"text": "a", "kind": -1, "topics": []})
        datasets.Dataset.from_list(delivered, features=features).to_parquet(tmp_path / "a.parquet")
        assert [row["label"] for row in read(tmp_path)] == [*(row["kind"] for row in licences), None]
        assert read(tmp_path, MANY)[0]["labels"] == [licences[0]["kind"]]

    @pytest.mark.parametrize(
        "said",
        [
            "{",
            "5",
            "[]",
            '{"info": {"features": 5}}',
            '{"info": {"features": {"kind": [[{"_type": 5}]]}}}',
            "[" * 99_999,
        ],
    )
    def test_what_datasets_says_of_the_columns_may_be_anything(self, tmp_path: Path, said: str) -> None:
        table = pa.table({"text": ["a"], "kind": ["x"]}).replace_schema_metadata({"huggingface": said})
        pq.write_table(table, tmp_path / "a.parquet")
        assert [(row["text"], row["label"]) for row in read(tmp_path)] == [("a", "x")]

    def test_times_and_wrong_types(self, tmp_path: Path) -> None:
        columns = {
            "text": [1],
            "kind": [[1]],
            "time": [datetime(2025, 3, 1, 12)],
            "expression": [float("nan")],
            "id": [7],
        }
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        [row] = read(tmp_path)
        assert (row["id"], row["time"], row["group"]) == ("7", "2025-03-01T12:00:00", None)
        assert re.fullmatch("field `text` is not .*; field `kind` is a list .*", row["problem"])


PAGE = """<!DOCTYPE html><html><head><title>A  licence</title><style>p {color: red}</style>
<script>if (a < b) { document.write("<p>never</p>") }</script></head>
<body><!-- not this --><h1>Terms &amp; conditions</h1><p>First <b>bold</b>,
then &eacute;&#8364;&nbsp;x.</p><ul><li>one</li><li>two</li></ul>line<br>next<pre>a  b
  c</pre><table><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></table></body></html>"""


class TestWholeFiles:
    def test_text_and_markdown_with_folder_and_file_as_fields(self, tmp_path: Path, licences: Rows) -> None:
        files = {
            f"train/{row['kind']}/{number}.{'md' if number % 2 else 'txt'}": row["text"]
            for number, row in enumerate(licences[:6])
        }
        rows = read(tmp_path, {"label": "folder", "group": "file"}, files={**files, "top.txt": "no folder"})
        assert {(row["text"], row["label"]) for row in rows} == {
            *((row["text"], row["kind"]) for row in licences[:6]),
            ("no folder", None),
        }
        assert all(
            row["group"] == row["source"] and row["row"] == 1 and row["id"] == f"{row['source']}:1"
            for row in rows
        )

    def test_html_is_the_text_that_a_reader_sees(self, tmp_path: Path) -> None:
        [row] = read(tmp_path, files={"a.html": PAGE})
        assert (
            row["text"]
            == "A licence\n\nTerms & conditions\n\nFirst bold, then é€\xa0x.\n\none\ntwo\nline\nnext\n\na "
            " b\n  c\n\n1 2\n3 4"
        )

    def test_html_nested_deeper_than_pythons_stack(self, tmp_path: Path) -> None:
        assert read(tmp_path, files={"a.html": "<b>" * 20_000 + "deep"})[0]["text"] == "deep"

    @pytest.mark.parametrize(
        ("charset", "encoding"),
        [("iso-8859-1", "cp1252"), ("windows-1251", "cp1251"), ("Shift_JIS", "cp932")],
    )
    def test_the_charset_that_a_page_declares(self, tmp_path: Path, charset: str, encoding: str) -> None:
        word = {"cp1252": "naïve €", "cp1251": "Лицензия", "cp932": "許諾"}[encoding]
        batch = read_batch(
            tmp_path,
            files={
                "a.html": (
                    f'<meta http-equiv="Content-Type" content="text/html; charset={charset}"><p>{word}'
                ).encode(encoding)
            },
        )
        assert (batch.table["text"].to_pylist(), batch.encodings) == ([word], {"a.html": encoding})


def written_pdf(*contents: bytes, filters: bytes = b"") -> bytes:
    """Return a PDF with one page for each content stream, as the standard spells it."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, stream in enumerate(contents):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
            f" /Contents {5 + 2 * i} 0 R >>".encode()
        )
        objects.append(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), filters, stream))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return (
        out
        + head
        + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    )


def shown(*lines: str) -> bytes:
    body = " ".join(f"({line}) Tj T*" for line in lines)
    return f"BT /F1 12 Tf 14 TL 72 720 Td {body} ET".encode("cp1252")


class TestPdf:
    def test_the_text_layer_of_all_pages(self, tmp_path: Path) -> None:
        [row] = read(
            tmp_path,
            files={
                "a.pdf": written_pdf(
                    shown("Permission is hereby granted", "free of charge"), shown("caf\xe9")
                )
            },
        )
        assert row["text"] == "Permission is hereby granted\nfree of charge\n\ncafé"
        assert (
            row["id"],
            row["row"],
            row["problem"],
        ) == ("a.pdf:1", 1, None)

    def test_no_text_layer_encrypted_cut_and_no_pdf_at_all(self, tmp_path: Path) -> None:
        import pypdf

        whole = written_pdf(shown("text"))
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(whole))
        writer.encrypt("secret", algorithm="AES-256")
        writer.write(tmp_path / "locked.pdf")
        batch = read_batch(
            tmp_path,
            files={
                "cut.pdf": whole[:-40],
                "none.pdf": "just text",
                "empty.pdf": b"",
                "scan.pdf": written_pdf(b"0 0 612 792 re f"),
                "good.pdf": whole,
            },
        )
        assert batch.unreadable == {
            "locked.pdf": "encrypted; deliver it without a password",
            "cut.pdf": "not a complete PDF (cut off: no end mark)",
            "none.pdf": "not a PDF",
            "empty.pdf": "not a PDF",
        }
        assert {row["source"]: (row["text"], row["problem"]) for row in batch.table.to_pylist()} == {
            "scan.pdf": (
                None,
                "no text layer (scanned pages?); recognise the text, such as with ocrmypdf, and deliver"
                " again",
            ),
            "good.pdf": ("text", None),
        }


class TestEncodings:
    TEXT = "Die Lizenzgeber übertragen die Nutzungsrechte für größere Änderungen – „gemäß“ § 5."

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
    def test_a_byte_order_mark_is_followed(self, tmp_path: Path, name: str, encoding: str) -> None:
        rows = [{"text": self.TEXT, "kind": "x"}]
        written = {"a.jsonl": as_lines, "a.csv": as_csv, "a.json": json.dumps}.get(
            name, lambda rows: rows[0]["text"]
        )(rows)
        batch = read_batch(tmp_path, files={name: written.encode(encoding)})
        assert batch.table["text"].to_pylist() == [self.TEXT] and batch.encodings == (
            {} if encoding == "utf-8-sig" else {name: encoding}
        )

    @pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl.gz"])
    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            ("cp1252", TEXT),
            ("cp1252", "café"),
            ("cp1251", "Лицензиар предоставляет лицензиату право использования программы для ЭВМ."),
            ("gb18030", "本软件按以下条件授予许可，您可以自由使用、复制和修改。"),
            ("cp932", "このソフトウェアは、以下の条件に従って使用を許諾されます。"),
        ],
    )
    def test_another_encoding_is_found_and_reported(
        self, tmp_path: Path, name: str, encoding: str, text: str
    ) -> None:
        rows = [{"text": "plain ASCII first", "kind": "x"}, {"text": text, "kind": "x"}]
        data = {"a.csv": as_csv, "a.txt": lambda rows: rows[1]["text"]}.get(name, as_lines)(rows).encode(
            encoding
        )
        batch = read_batch(tmp_path, files={name: pack(data, "gzip") if name.endswith(".gz") else data})
        assert batch.table["text"].to_pylist()[-1] == text and batch.encodings == {name: encoding}

    def test_the_settings_encoding_is_taken_and_a_file_that_it_does_not_fit_is_named(
        self, tmp_path: Path
    ) -> None:
        batch = read_batch(
            tmp_path,
            files={
                "a.jsonl": '{"text": "žluť"}\n'.encode("cp1250"),
                "b.jsonl": b'{"text": "fine"}\n{"text": "\x81"}\n',
                "c.txt": b"\x81",
            },
            encoding="cp1250",
        )
        assert batch.table["text"].to_pylist() == ["žluť"] and batch.encodings == {"a.jsonl": "cp1250"}
        assert batch.unreadable == {"b.jsonl": "not cp1250 on line 2", "c.txt": "not cp1250 on line 1"}

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
    def test_damaged_utf8_is_not_decoded_as_something_else(self, tmp_path: Path, name: str) -> None:
        lines = [{"text": self.TEXT}] * 5
        data = bytearray(as_lines(lines).encode())
        data[data.rindex("ü".encode())] = 0xFF
        batch = read_batch(
            tmp_path,
            files={
                name: bytes(data),
                "good.jsonl": as_lines(lines),
            },
        )
        assert len(batch.table) == 5
        assert set(batch.unreadable) == {name} and batch.unreadable[name].startswith("not UTF-8")
        assert name != "a.jsonl" or batch.unreadable[name].startswith("not UTF-8 on line 5;")

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.md", "a.html", "a.json"])
    def test_binary_data_is_refused(self, tmp_path: Path, name: str) -> None:
        import numpy as np

        batch = read_batch(
            tmp_path,
            files={
                name: np.random.default_rng(5).bytes(5_000),
                f"zeros-{name}": b"abc" + bytes(300),
                "good.jsonl": '{"text": "good"}\n',
            },
        )
        assert batch.table["text"].to_pylist() == ["good"]
        assert set(batch.unreadable) == {
            name,
            f"zeros-{name}",
        }
        assert all(why.startswith("binary data") for why in batch.unreadable.values())


class TestPlainRecords:
    def test_every_field_has_its_column(self, tmp_path: Path) -> None:
        record = {
            "text": "a",
            "kind": "x",
            "expression": "g",
            "ward": "icu",
            "on": " v2 ",
            "by": "ann",
            "time": "2025-01-02",
            "confidence": "0.5",
            "id": 3,
        }
        row = one(
            tmp_path,
            {**record, "human_annotated": "no"},
            {"domain": "ward", "slice_by": "on"},
            annotator="by",
        )
        assert [
            row[name]
            for name in (
                "id",
                "group",
                "domain",
                "slice_by",
                "annotator",
                "time",
                "confidence",
                "human_annotated",
            )
        ] == [
            "3",
            "g",
            "icu",
            "v2",
            "ann",
            "2025-01-02",
            0.5,
            False,
        ]
        assert row["problem"] is None

    @pytest.mark.parametrize(
        ("given", "expected"),
        [("yes", True), ("NO", False), (True, True), (0, False), ("true", True), (None, None), ("", None)],
    )
    def test_human_annotated(self, tmp_path: Path, given: Any, expected: bool | None) -> None:
        row = one(tmp_path, {"text": "a", "human-annotated": given})
        assert (row["human_annotated"], row["problem"]) == (expected, None)

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"kind": ["x"]}, "field `kind` is a list where a name or a number is expected"),
            ({"kind": {"a": 1}}, "field `kind` is an object where a name or a number is expected"),
            ({"expression": ["g"]}, "field `expression` is a list where a name or a number is expected"),
            ({"id": {}}, "field `id` is an object where a name or a number is expected"),
            ({"confidence": "high"}, "confidence is not a number"),
            ({"confidence": [1]}, "confidence is not a number"),
            ({"confidence": "nan"}, "confidence is not a number"),
            ({"human_annotated": "maybe"}, "human_annotated is neither yes nor no"),
            ({"human_annotated": 2}, "human_annotated is neither yes nor no"),
            ({"text": 7}, "field `text` is not text"),
        ],
    )
    def test_a_value_of_the_wrong_shape_names_its_field(
        self, tmp_path: Path, fields: dict[str, Any], problem: str
    ) -> None:
        row = one(tmp_path, {"text": "a", **fields})
        assert (row["problem"], row["row"]) == (problem, 1)

    @pytest.mark.parametrize(
        ("given", "labels"),
        [
            (["b", "a", "b"], ["a", "b"]),
            ("x", ["x"]),
            ([], []),
            ("", None),
            (None, None),
            ([1, None], ["1"]),
            ('["b", "a"]', ["a", "b"]),
            ("['b, c', \"it's\"]", ["b, c", "it's"]),
            ("['b' 'a'\n 'c']", ["a", "b", "c"]),
            ("[]", []),
            ("['a", ["['a"]),
            ("a, b", ["a, b"]),
        ],
    )
    def test_labels(self, tmp_path: Path, given: Any, labels: list[str] | None) -> None:
        row = one(tmp_path, {"text": "a", "topics": given}, MANY)
        assert (row["labels"], row["label"], row["problem"]) == (labels, None, None)

    @pytest.mark.parametrize(
        "span",
        [
            {"start": 1, "end": 3, "label": "x"},
            {"startOffset": 1, "endOffset": 3, "label": "x"},
            {"start_offset": 1, "end_offset": 3, "labels": ["x"]},
            [1, 3, "x"],
        ],
    )
    def test_spans(self, tmp_path: Path, span: Any) -> None:
        first = {"start": 0, "end": 1, "label": "y"}
        row = one(tmp_path, {"text": "abcd", "entities": [span, first]}, SPANS)
        assert row["spans"] == [first, {"start": 1, "end": 3, "label": "x"}] and row["problem"] is None

    def test_spans_in_a_csv_file_are_json(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(
            as_csv([{"text": "abcd", "entities": '[[1, 3, "x"]]'}, {"text": "b", "entities": ""}])
        )
        assert [row["spans"] for row in read(tmp_path, SPANS)] == [
            [{"start": 1, "end": 3, "label": "x"}],
            None,
        ]

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ("x", "field `entities` is of type str where a list of spans is expected"),
            ([5], "span 1 of field `entities` is neither an object nor [start, end, label]"),
            (
                [[0, 1, "x"], {"end": 3, "label": "x"}],
                "span 2 of field `entities` has no whole number as its start",
            ),
            (
                [{"start": 0, "end": "3", "label": "x"}],
                "span 1 of field `entities` has no whole number as its end",
            ),
            (
                [{"start": 0, "end": 2**40, "label": "x"}],
                "span 1 of field `entities` has no whole number as its end",
            ),
            (
                [{"start": True, "end": 2, "label": "x"}],
                "span 1 of field `entities` has no whole number as its start",
            ),
            ([{"start": 0, "end": 3}], "span 1 of field `entities` has no label"),
            ([{"start": 0, "end": 3, "label": 7}], "span 1 of field `entities` has no label"),
        ],
    )
    def test_spans_of_the_wrong_shape(self, tmp_path: Path, value: Any, problem: str) -> None:
        row = one(tmp_path, {"text": "abcd", "entities": value}, SPANS)
        assert (row["spans"], row["problem"]) == (None, problem)


ABOUT = {
    "type": "groundtruth/text-classification",
    "job-name": "labeling-job/kinds",
    "human-annotated": "yes",
    "creation-date": "2025-03-01T10:00:00",
}


class TestGroundTruth:
    def rows(self, folder: Path, lines: Rows, examples: dict[str, Any] | None = None) -> Rows:
        return read(folder, examples, files={"output.manifest": as_lines(lines)})

    def test_metadata_fills_confidence_human_and_time(self, tmp_path: Path) -> None:
        rows = self.rows(
            tmp_path,
            [
                {
                    "source": "a",
                    "kind": 0,
                    "kind-metadata": {**ABOUT, "class-name": "notice", "confidence": 0.75},
                },
                {
                    "source": "b",
                    "kind": "1",
                    "kind-metadata": {**ABOUT, "class-name": "text", "human-annotated": "no"},
                },
            ],
        )
        assert [(r["label"], r["confidence"], r["human_annotated"], r["time"]) for r in rows] == [
            ("notice", 0.75, True, ABOUT["creation-date"]),
            ("text", None, False, ABOUT["creation-date"]),
        ]

    def test_multi_label(self, tmp_path: Path) -> None:
        about = {
            **ABOUT,
            "class-map": {"0": "patent", "2": "copyleft"},
            "confidence-map": {"0": 0.9, "2": 0.4},
        }
        rows = self.rows(
            tmp_path,
            [
                {"source": "a", "topics": [2, 0], "topics-metadata": about},
                {
                    "source": "b",
                    "topics": [],
                    "topics-metadata": {**about, "class-map": {}, "confidence-map": {}},
                },
            ],
            MANY,
        )
        assert [(r["labels"], r["confidence"]) for r in rows] == [
            (["copyleft", "patent"], 0.4),
            ([], None),
        ]

    def test_text_spans(self, tmp_path: Path) -> None:
        entities = [
            {"label": "org", "startOffset": 4, "endOffset": 9},
            {"label": "date", "startOffset": 0, "endOffset": 3},
        ]
        value = {"annotations": {"entities": entities, "labels": [{"label": "org", "shortDisplayName": "O"}]}}
        about = {**ABOUT, "entities": [{"confidence": 0.8}, {"confidence": 0.3}]}
        rows = self.rows(
            tmp_path,
            [
                {"source": "now Apache", "entities": value, "entities-metadata": about},
                {"source": "b", "entities": {"annotations": {}}},
            ],
            SPANS,
        )
        assert rows[0]["spans"] == [
            {"start": 0, "end": 3, "label": "date"},
            {"start": 4, "end": 9, "label": "org"},
        ]
        assert (rows[0]["confidence"], rows[0]["human_annotated"]) == (0.3, True)
        assert (rows[1]["spans"], rows[1]["problem"]) == (
            None,
            "field `entities` has no `annotations.entities`",
        )

    def test_nothing_that_a_row_names_is_fetched(self, tmp_path: Path) -> None:
        names = ["../secret.txt", "s3://texts/0.txt", "http://127.0.0.1:9/x", "file:///etc/hostname"]
        lines = as_lines([{"source-ref": name, "kind": "x", "kind-metadata": ABOUT} for name in names])
        projects.write_files(tmp_path, {"secret.txt": "outside", "in/output.manifest": lines})
        assert [(row["text"], row["problem"]) for row in read(tmp_path / "in")] == [
            (None, "no field `source`")
        ] * 4


def annotation(
    by: Any,
    *values: Any,
    kind: str = "choices",
    cancelled: bool = False,
    at: str = "2025-03-01T10:00:00Z",
    **more: Any,
) -> dict[str, Any]:
    name = {"choices": "kind", "taxonomy": "kind", "labels": "entities"}[kind]
    regions = [
        {"id": str(i), "from_name": name, "to_name": "text", "type": kind, "value": value}
        for i, value in enumerate(values)
    ]
    other = {"from_name": "remark", "to_name": "text", "type": "textarea", "value": {"text": ["unclear"]}}
    return {
        "id": 9,
        "completed_by": by,
        "result": [other, *regions],
        "was_cancelled": cancelled,
        "created_at": at,
        "updated_at": at,
        **more,
    }


def task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"text": "a licence", **data},
        "annotations": list(annotations),
        "predictions": [],
        "meta": {"ward": "icu"},
        "project": 1,
    }


class TestLabelStudio:
    def rows(self, folder: Path, tasks: Rows, examples: dict[str, Any] | None = None) -> Rows:
        return read(folder, examples, files={"project-1.json": json.dumps(tasks)})

    def test_choices_of_one_and_of_several_annotators_without_the_cancelled_ones(
        self, tmp_path: Path
    ) -> None:
        x, y = {"choices": ["x"]}, {"choices": ["y"]}
        rows = self.rows(
            tmp_path,
            [
                task(
                    1,
                    annotation({"id": 7, "email": "ann@example.org"}, x, at="2025-03-02T00:00:00Z"),
                    annotation(2, y, cancelled=True),
                    expression="mit",
                ),
                task(2, annotation(1, x), annotation(2, y, at="2025-04-01T00:00:00Z"), annotation(3, x)),
                task(3, annotation(1, x), annotation(2, y)),
                task(4, annotation(1, x, cancelled=True)),
                task(5, annotation(1, x), annotation(2, y, ground_truth=True)),
                task(6, annotation(1, x), annotation(1, y)),
                task(7, annotation(1, {"choices": ["x", "y"]})),
            ],
            {"domain": "ward"},
        )
        assert [row["label"] for row in rows] == ["x", "x", None, None, "y", "y", None]
        assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7"]
        assert (rows[0]["annotator"], rows[0]["time"], rows[0]["group"], rows[0]["domain"]) == (
            "ann@example.org",
            "2025-03-02T00:00:00Z",
            "mit",
            "icu",
        )
        assert (rows[0]["human_annotated"], rows[0]["annotations"], rows[3]["human_annotated"]) == (
            True,
            None,
            None,
        )
        assert rows[1]["annotations"] == [
            {"annotator": a, "label": label} for a, label in (("1", "x"), ("2", "y"), ("3", "x"))
        ]
        assert (rows[1]["confidence"], rows[1]["annotator"], rows[1]["time"]) == (
            pytest.approx(2 / 3),
            None,
            "2025-04-01T00:00:00Z",
        )
        assert [row["problem"] for row in rows] == [
            None,
            None,
            "the annotators of field `kind` disagree: no label has the most votes",
            None,
            None,
            None,
            "field `kind` is a list where a name or a number is expected",
        ]

    def test_several_choices_and_a_taxonomy(self, tmp_path: Path) -> None:
        many = {"task": "multi_label"}
        votes = [
            annotation(i, {"choices": choices}) for i, choices in enumerate((["b", "a"], ["b"], ["b", "c"]))
        ]
        taxonomy = annotation(1, {"taxonomy": [["law", "patent"], ["tax"]]}, kind="taxonomy")
        rows = self.rows(
            tmp_path, [task(1, votes[0]), task(2, *votes), task(3, taxonomy), task(4, annotation(1))], many
        )
        assert [row["labels"] for row in rows] == [["a", "b"], ["b"], ["law / patent", "tax"], []]
        assert rows[1]["annotations"][0] == {"annotator": "0", "label": '["a", "b"]'} and rows[1][
            "confidence"
        ] == pytest.approx((0.5 + 1 + 0.5) / 3)

    def test_spans(self, tmp_path: Path) -> None:
        span = {"start": 2, "end": 9, "text": "licence", "labels": ["thing"]}
        html = {
            "start": "/p[1]/text()[1]",
            "end": "/p[1]/text()[1]",
            "globalOffsets": {"start": 0, "end": 1},
            "hypertextlabels": ["x"],
            "labels": ["x"],
        }
        agree, other = (
            annotation(1, span, kind="labels"),
            annotation(2, {**span, "end": 8, "text": "licenc"}, kind="labels"),
        )
        rows = self.rows(
            tmp_path,
            [
                task(1, annotation(1, span, html, kind="labels")),
                task(2, agree, other),
                task(3, annotation(1)),
            ],
            SPANS,
        )
        thing = {"start": 2, "end": 9, "label": "thing"}
        assert [row["spans"] for row in rows] == [[{"start": 0, "end": 1, "label": "x"}, thing], [], []]
        assert [json.loads(each["label"]) for each in rows[1]["annotations"]] == [
            [thing],
            [{**thing, "end": 8}],
        ]

    @pytest.mark.parametrize(
        ("annotations", "problem"),
        [
            ("x", "field `annotations` is not a list of annotations"),
            ([1], "field `annotations` is not a list of annotations"),
            ([{"result": [1]}], "field `annotations` has a result that is not a list of regions"),
            ([{"result": [{"from_name": "kind"}]}], "field `kind` has a region without a value"),
            (
                [{"result": [{"from_name": "kind", "value": {"choices": [{}]}}]}],
                "field `kind` is an object where a name or a number is expected",
            ),
        ],
    )
    def test_a_broken_task_names_the_field(self, tmp_path: Path, annotations: Any, problem: str) -> None:
        rows = self.rows(tmp_path, [task(1), {**task(2), "annotations": annotations}])
        assert [(row["row"], row["text"], row["problem"]) for row in rows] == [
            (1, "a licence", None),
            (2, "a licence", problem),
        ]


class TestArgilla:
    def rows(
        self, folder: Path, records: Rows, examples: dict[str, Any] | None = None, **documents: Any
    ) -> Rows:
        return read(folder, examples, files={"records.json": json.dumps(records)}, **documents)

    def test_records_of_2(self, tmp_path: Path) -> None:
        record = {
            "id": "r1",
            "fields": {"text": "a licence"},
            "metadata": {"expression": "mit"},
            "suggestions": {},
            "vectors": {},
            "_server_id": "s",
        }
        suggestion = {"kind": {"value": "y", "score": 0.9, "agent": "model"}}
        rows = self.rows(
            tmp_path,
            [
                {
                    **record,
                    "responses": {"kind": [{"value": "x", "user_id": "u1"}]},
                    "suggestions": suggestion,
                },
                {
                    **record,
                    "responses": {"kind": [{"value": v, "user_id": f"u{i}"} for i, v in enumerate("xyy")]},
                },
                {**record, "responses": {}, "suggestions": suggestion},
                {**record, "responses": {"kind": [{"value": "x", "user_id": "u1", "status": "discarded"}]}},
                {
                    **record,
                    "responses": {
                        "kind": [
                            {"value": "x", "user_id": "u1", "status": "draft"},
                            {"value": "y", "user_id": "u2", "status": "submitted"},
                        ]
                    },
                },
            ],
        )
        assert [row["label"] for row in rows] == ["x", "y", None, None, "y"] and [
            row["annotator"] for row in rows
        ] == ["u1", None, None, None, "u2"]
        assert [row["human_annotated"] for row in rows] == [True, True, None, None, True]
        assert rows[1]["annotations"] == [{"annotator": f"u{i}", "label": v} for i, v in enumerate("xyy")]
        assert {(row["id"], row["group"], row["text"], row["problem"]) for row in rows} == {
            ("r1", "mit", "a licence", None)
        }

    def test_a_broken_record_names_the_question(self, tmp_path: Path) -> None:
        record = {"id": "1", "fields": {"text": "a"}, "suggestions": {}}
        rows = self.rows(
            tmp_path,
            [
                {**record, "responses": {"kind": "x"}},
                {**record, "responses": ["x"]},
                {**record, "responses": {"kind": [{"value": {"a": 1}}]}},
            ],
        )
        assert [row["problem"] for row in rows] == [
            "the responses to `kind` are not a list of objects",
            "field `responses` is no object with the responses by question",
            "field `kind` is an object where a name or a number is expected",
        ]


ASKED, SAID = {"role": "user", "content": "May I?"}, {"role": "assistant", "content": "You may."}
SYSTEM = {"role": "system", "content": "Be brief."}
NOTHING_ELSE = {"extras": None, "weight": None}


class TestChat:
    @pytest.mark.parametrize(
        ("record", "messages"),
        [
            ({"messages": [SYSTEM, ASKED, SAID]}, [SYSTEM, ASKED, SAID]),
            (
                {
                    "messages": [
                        {"role": "Human", "content": "May I?"},
                        {"role": "model", "content": [{"type": "text", "text": "You may."}]},
                    ]
                },
                [ASKED, SAID],
            ),
            (
                {
                    "conversations": [
                        {"from": "human", "value": "May I?"},
                        {"from": "gpt", "value": "You may."},
                    ],
                    "system": "Be brief.",
                },
                [SYSTEM, ASKED, SAID],
            ),
            ({"conversations": [{"from": "observation", "value": "4"}]}, [{"role": "tool", "content": "4"}]),
            (
                {"instruction": "May", "input": "I?", "output": "You may."},
                [{"role": "user", "content": "May\n\nI?"}, SAID],
            ),
            (
                {
                    "instruction": "May I?",
                    "input": "",
                    "output": "You may.",
                    "history": [["a", "b"]],
                    "system": "",
                },
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, ASKED, SAID],
            ),
            (
                {"instruction": "May", "context": "I?", "response": "You may."},
                [{"role": "user", "content": "May\n\nI?"}, SAID],
            ),
            ({"prompt": "May I?", "completion": "You may."}, [ASKED, SAID]),
            ({"question": "May I?", "answer": "You may."}, [ASKED, SAID]),
            ({"prompt": "May I?", "response": "You may."}, [ASKED, SAID]),
            ({"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED, SAID]),
            (
                {"messages": [ASKED, {"role": "assistant", "content": None}]},
                [ASKED, {"role": "assistant", "content": ""}],
            ),
            (
                {
                    "messages": [ASKED, {**SAID, "tool_calls": [], "weight": None, "thinking": ""}],
                    "tools": [],
                },
                [ASKED, SAID],
            ),
        ],
    )
    def test_every_form_becomes_messages(
        self, tmp_path: Path, record: dict[str, Any], messages: Rows
    ) -> None:
        row = one(tmp_path, record, CHAT)
        assert [said | NOTHING_ELSE for said in messages] == row["messages"] and row["text"] == "\n\n".join(
            message["content"] for message in messages
        )
        assert row["problem"] is None

    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ({"text": "a"}, "no field `messages`, `conversations`, `instruction`, `prompt` or `question`"),
            ({"messages": []}, "field `messages` has no message"),
            ({"messages": "May I?"}, "field `messages` is not a list of messages"),
            ({"messages": [ASKED, 5]}, "turn 2 of field `messages` is not an object"),
            (
                {"messages": [{"role": "judge", "content": "a"}]},
                "turn 1 of field `messages` has no known role",
            ),
            (
                {"messages": [ASKED, {"role": "assistant", "content": {"a": 1}}]},
                "turn 2 of field `messages` is not text",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]},
                "turn 1 of field `messages` is not text",
            ),
            ({"instruction": "a"}, "no field `output` or `response`"),
            ({"prompt": "a"}, "no field `completion` or `response`"),
            ({"question": "a"}, "no field `answer` or `response`"),
            ({"prompt": 5, "completion": "a"}, "field `prompt` is not a list of messages"),
            ({"instruction": "a", "input": 5, "output": "b"}, "field `input` is not text"),
            (
                {"instruction": "a", "output": "b", "history": [["a"]]},
                "field `history` is not a list of [question, answer]",
            ),
        ],
    )
    def test_a_malformed_conversation_names_turn_and_field(
        self, tmp_path: Path, record: dict[str, Any], problem: str
    ) -> None:
        row = one(tmp_path, record, CHAT)
        assert (row["messages"], row["text"], row["problem"]) == (None, None, problem)

    def test_messages_in_parquet(self, tmp_path: Path) -> None:
        rows = [{"messages": [ASKED, SAID]}, {"messages": [SYSTEM, ASKED, SAID]}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert [row["messages"] for row in read(tmp_path, CHAT)] == [
            [said | NOTHING_ELSE for said in row["messages"]] for row in rows
        ]

    def test_language_modeling_needs_text_alone(self, tmp_path: Path) -> None:
        row = one(tmp_path, {"text": "a"}, {"task": "language_modeling", "label": None})
        assert (row["text"], row["label"], row["problem"]) == ("a", None, None)
