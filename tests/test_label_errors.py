"""Likely label errors and the worst errors of a classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullft_assets import report
from fullft_assets.report import DoubtfulRow
from fullft_assets.settings import DocumentsSettings
from fullft_assets.tasks.classification import assessment as label_errors
from tests.test_report import LABELS, evaluation_of, full_report

pytestmark = pytest.mark.quick

NAMES = ["invoice", "letter", "order", "never"]


def test_swapped_labels_are_found() -> None:
    pytest.importorskip("cleanlab")
    truth = np.arange(300) % 3
    probabilities = np.full((300, 4), 0.02)
    probabilities[np.arange(300), truth] = 0.94
    given = truth.copy()
    given[:9] = (truth[:9] + 1) % 3
    found = label_errors.likely_label_errors([f"d{row}" for row in range(300)], given, probabilities, NAMES)
    assert found is not None and {row.id for row in found} == {f"d{row}" for row in range(9)}
    assert (
        found[0].predicted == NAMES[truth[int(found[0].id[1:])]]
        and found[0].label == NAMES[given[int(found[0].id[1:])]]
    )


@pytest.mark.heavy
def test_without_cleanlab_the_report_says_that_nobody_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert label_errors.likely_label_errors(["a"], np.array([0]), np.eye(4)[:1], NAMES) is None
    monkeypatch.undo()
    report.write(tmp_path, full_report(evaluation_of(LABELS), label_errors=None))
    assert (
        "they were not searched for errors, as cleanlab is not installed"
        in (tmp_path / "report.md").read_text()
    )


def test_the_worst_errors_are_the_wrong_rows_of_the_highest_loss() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.8, 0.2]])
    found = label_errors.worst_errors(["a", "b", "c", "d"], np.array([1, 1, 1, 1]), probabilities, NAMES[:2])
    assert [(row.id, row.label, row.predicted, row.probability) for row in found] == [
        ("a", "letter", "invoice", 0.9), ("d", "letter", "invoice", 0.8), ("b", "letter", "invoice", 0.6),
    ]  # fmt: skip


@pytest.mark.heavy
def test_ids_are_in_the_page_alone_and_all_rows_in_the_file(tmp_path: Path) -> None:
    rows = [DoubtfulRow(f"zoon-{n}", "<b>letter", "order", 0.97, 0.01) for n in range(30)]
    report.write(tmp_path, full_report(evaluation_of(LABELS), worst=rows[:2], label_errors=rows))
    report.write_label_errors(tmp_path / "label_errors.jsonl", rows, "kind")
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert '<tr data-document="zoon-19">' in page and "zoon-20" not in page and "<b>letter" not in page
    assert (
        "zoon" not in markdown
        and "30 test and validation rows have a label that is probably wrong" in markdown
    )
    lines = [json.loads(line) for line in (tmp_path / "label_errors.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and lines[0] == {
        "id": "zoon-0",
        "kind": "<b>letter",
        "suggested": "order",
        "probability": 0.97,
    }


_LINE = '{"doc": "z,1", "kind": "a letter", "suggested": "order", "probability": 0.97}\n'


@pytest.mark.parametrize(
    ("sources", "csv", "name", "first"),
    [
        (
            ["a.csv", "b/c.CSV.gz", "d.jsonl", None],
            {},
            "label_errors.csv",
            'doc,kind,suggested,probability\n"z,1",a letter,order,0.97\n',
        ),
        (
            ["a.csv"],
            {"delimiter": ";"},
            "label_errors.csv",
            "doc;kind;suggested;probability\nz,1;a letter;order;0.97\n",
        ),
        (
            ["a.csv"],
            {"delimiter": ","},
            "label_errors.csv",
            'doc,kind,suggested,probability\n"z,1",a letter,order,0.97\n',
        ),
        (
            ["a.tsv"],
            {},
            "label_errors.tsv",
            "doc\tkind\tsuggested\tprobability\nz,1\ta letter\torder\t0.97\n",
        ),
        (["a.csv"], {"quoting": "none"}, "label_errors.jsonl", _LINE),
        (["a.csv"], {"header": 3}, "label_errors.jsonl", _LINE),
        (["a.parquet"], {}, "label_errors.jsonl", _LINE),
    ],
)
def test_annotators_get_the_format_that_the_labels_came_in(
    tmp_path: Path, sources: list[str | None], csv: dict[str, Any], name: str, first: str
) -> None:
    chosen = csv if "header" in csv else {"csv": csv}
    path = tmp_path / report.label_errors_file(sources, DocumentsSettings(path="data", **chosen))
    report.write_label_errors(
        path, [DoubtfulRow("z,1", "a letter", "order", 0.97, 0.01)], "kind", "doc", csv.get("delimiter")
    )
    assert path.name == name and path.read_text() == first
    rows = report.read_list(path)
    assert [row["doc"] for row in rows] == ["z,1"]
    report.write_list(path, rows, report.delimiter_of(path))  # as an erasure does
    assert path.read_text() == first
    report.write_list(path, [])
    assert report.read_list(path) == []


@pytest.mark.heavy
def test_no_cell_is_a_formula_and_ids_and_labels_come_back(tmp_path: Path) -> None:
    path = tmp_path / "label_errors.csv"
    report.write_label_errors(
        path,
        [DoubtfulRow("=1+1", "@kind", "-x", 0.97, 0.01), DoubtfulRow("'=2", "'a", "b", 0.9, 0.1)],
        "kind",
        "doc",
    )
    assert path.read_text().splitlines()[1:] == ["'=1+1,'@kind,'-x,0.97", "''=2,'a,b,0.9"]
    assert [(row["doc"], row["kind"], row["suggested"]) for row in report.read_list(path)] == [
        ("=1+1", "@kind", "-x"),
        ("'=2", "'a", "b"),
    ]
