"""documents: nested fields, the settings of CSV, and offsets of spans that count something else than
characters.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import project as projects
from tests.test_documents_formats import MANY, SPANS, one, read

pytestmark = pytest.mark.quick

NESTED = {"payload": {"body": "a text", "meta": {"who": "x", "kind": "k"}}, "doc": {"no": 7}}


def test_a_path_names_a_field_inside_of_another(tmp_path: Path) -> None:
    examples = {"label": "payload.meta.kind", "group": "payload.meta.who", "domain": "doc.no"}
    row = one(tmp_path, NESTED, examples, text="payload.body", id="doc.no")
    assert [row[name] for name in ("text", "label", "group", "domain", "id")] == [
        "a text",
        "k",
        "x",
        "7",
        "7",
    ]
    pq.write_table(pa.Table.from_pylist([{**NESTED, "other": 1}]), tmp_path / "a.parquet")
    again = read(tmp_path, examples, text="payload.body", id="doc.no")
    assert [each["text"] for each in again] == ["a text"] * 2 and again[1]["label"] == "k"


def test_a_field_with_a_dot_in_its_name_wins_and_a_missing_path_is_named(tmp_path: Path) -> None:
    assert one(tmp_path, {"a.b": "flat", "a": {"b": "nested"}}, text="a.b")["text"] == "flat"
    assert one(tmp_path, {"a.b": {"c": "half"}, "a": {}}, text="a.b.c")["text"] == "half"
    assert one(tmp_path, {"a": {"c": "x"}}, text="a.b")["problem"] == "no field `a.b`"
    assert one(tmp_path, {"a": {"b": None}}, text="a.b")["problem"] is None
    assert one(tmp_path, {"a": {"b": ["x"]}, "text": "t"}, {**MANY, "label": "a.b"})["labels"] == ["x"]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    assert (
        len(
            one(tmp_path, {"a": {"turns": turns}}, {"task": "sft", "label": None}, text="a.turns")["messages"]
        )
        == 2
    )


def put(folder: Path, text: str, name: str = "a.csv") -> None:
    (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('"Text, with more";kind\nA, b;x\n', {"text": "Text, with more"}),
        ("name, first;text;kind\nA;A, b;x\nB;c;y\n", {}),
        ("text~kind\nA, b~x\n", {"csv": {"delimiter": "~"}}),
        ('text\tkind\n"A, b\tx\n', {"csv": {"quoting": "none"}, "text": "text"}),
        ("Report\n\ntext;kind\nA, b;x\n", {"header": 3}),
        ("A, b;x\nc;y\n", {"header": "none", "csv": {"delimiter": ";"}, "text": "column_1"}),
    ],
)
def test_csv_is_read_as_its_header_and_the_settings_say(
    tmp_path: Path, text: str, settings: dict[str, Any]
) -> None:
    put(tmp_path, text)
    (row, *_) = read(
        tmp_path, {"label": "column_2" if settings.get("header") == "none" else "kind"}, **settings
    )
    assert (row["text"].lstrip('"'), row["label"], row["problem"]) == ("A, b", "x", None)


@pytest.mark.parametrize(
    ("text", "field", "texts"),
    [
        ('kind;text\nx;"A; b"\ny;c\n', "text", ["A; b", "c"]),
        ("kind;nr\ttext\nx\tA; b\ny\tc\n", "text", ["A; b", "c"]),
    ],
)
def test_a_tsv_whose_header_has_no_tab_is_read_by_what_fits_its_rows(
    tmp_path: Path, text: str, field: str, texts: list[str]
) -> None:
    put(tmp_path, text, "a.tsv")
    assert [row["text"] for row in read(tmp_path, {"label": "kind"}, text=field)] == texts


@pytest.mark.parametrize(("delimiter", "name"), [("\t", "a.tsv"), (",", "a.csv")])
def test_a_quote_that_is_not_closed_loses_no_rows_unsaid(delimiter: str, name: str, tmp_path: Path) -> None:
    rows = [delimiter.join((str(n), f"The text {n}", f"k{n % 3}")) for n in range(200)]
    rows[20] = delimiter.join(("20", '"The text', "k2"))
    rows[73] = delimiter.join(("73", 'The text"', "k1"))
    put(tmp_path, "\n".join([delimiter.join(("id", "text", "kind")), *rows, ""]), name)
    assert {row["row"]: row["problem"] for row in read(tmp_path) if row["problem"]} == {
        22: "a quoted field has rows in it: close its quote, or set documents.csv.quoting to none"
    }
    assert len(read(tmp_path, csv={"quoting": "none"})) == 200


def test_an_address_in_quotes_is_no_row(tmp_path: Path) -> None:
    put(tmp_path, "id,text\n" + "".join(f'{n},"{n} Long Street\n12345 Town, Country"\n' for n in range(200)))
    assert [row["problem"] for row in read(tmp_path)] == [None] * 200


def test_paragraphs_in_quotes_are_no_error(tmp_path: Path) -> None:
    texts = [row["text"] for row in projects.licence_rows(60)]
    put(tmp_path, "text,kind\n" + "".join('"' + text.replace('"', '""') + '",x\n' for text in texts))
    assert [row["text"].splitlines() for row in read(tmp_path)] == [text.splitlines() for text in texts]


TEXT = "😀 The Ada Institute 👍🏽 of Example"


def span(start: int, end: int, quote: str | None = None) -> dict[str, Any]:
    return {"start": start, "end": end, "label": "org", **({} if quote is None else {"text": quote})}


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_offsets_in_utf_16_are_converted_by_the_exported_text(tmp_path: Path) -> None:
    quotes = ["Ada Institute", "Example", "👍🏽"]
    at = [TEXT.index(quote) for quote in quotes]
    right = sorted((start, start + len(quote)) for start, quote in zip(at, quotes, strict=True))
    wrong = [
        span(units(TEXT[:start]), units(TEXT[: start + len(quote)]), quote)
        for start, quote in zip(at, quotes, strict=True)
    ]
    wrong[1].pop("text")  # it is converted with the others
    row = one(tmp_path, {"text": TEXT, "entities": wrong}, SPANS)
    assert [(each["start"], each["end"]) for each in row["spans"]] == right and row["problem"] is None
    row = one(
        tmp_path,
        {"text": TEXT, "entities": [span(start, end, TEXT[start:end]) for start, end in right]},
        SPANS,
    )
    assert [(each["start"], each["end"]) for each in row["spans"]] == right and row["problem"] is None


def test_a_span_with_another_text_is_named_and_one_without_is_taken_as_it_is(tmp_path: Path) -> None:
    for text, spans, problem in (
        ("The Ada Institute", [span(4, 7, "Ada"), span(4, 7, "Bob")], 2),
        (TEXT, [span(0, 3, "The")], 1),
        ("The Ada Institute", [span(4, 7)], None),
        ("The  Ada\nInstitute", [span(5, 18, "Ada Institute")], None),
    ):
        row = one(tmp_path, {"text": text, "entities": spans}, SPANS)
        said = (
            None
            if problem is None
            else (
                f"span {problem} of field `entities` was exported with another text than the one at its"
                " offsets"
            )
        )
        assert row["problem"] == said
