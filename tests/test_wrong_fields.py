"""A wrong field name, or a group written in two ways, never leaves one patient on both sides of the split
unnoticed.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frozen import freeze
from fullft_assets import examples
from fullft_assets.documents.batches import Batch
from fullft_assets.documents.formats.labels import group_key
from fullft_assets.documents.reading import read_documents
from fullft_assets.documents.sources import Folder
from fullft_assets.settings import DocumentsSettings, ExamplesSettings, SnapshotSettings
from tests import project as projects

pytestmark = pytest.mark.quick

ROWS, PATIENTS = 1_000, 200
SETTINGS = SnapshotSettings(
    min_train_rows=20, test_share=0.2, validation_share=0.15, max_heldout_rows_per_group=100
)

Row = dict[str, Any]


def rows() -> list[Row]:
    """Real texts, five of each patient; equal texts would be left out."""
    texts = list(dict.fromkeys(row["text"] for row in projects.licence_rows(2 * ROWS)))[:ROWS]
    return [
        {"text": text, "kind": "ab"[n % 2], "patient": f"P{n % PATIENTS:05}", "true": n % PATIENTS}
        for n, text in enumerate(texts)
    ]


def read(
    folder: Path, delivered: list[Row], documents: Row | None = None, **chosen: Any
) -> examples.Examined:
    projects.write_rows(folder / "data/a.jsonl", delivered)
    source = Folder(folder / "data")
    settings = ExamplesSettings(**{"label": "kind", "group": "patient", **chosen})
    wanted = DocumentsSettings(path="data", **(documents or {}))
    table = read_documents(source, Batch("b", source.files()), wanted, settings).table
    return examples.examine(table, settings, "b", id_field=wanted.id)


def red(examined: examples.Examined) -> dict[str, str]:
    """Return why the batch is held back, by check."""
    return {
        check.name: check.description
        for check in examined.checks
        if not check.passed and check.severity == "error"
    }


def patients_on_two_sides(examined: examples.Examined, delivered: list[Row]) -> int:
    frozen = freeze({"b": examined.valid}, {"b": {"a.jsonl": 1}}, SETTINGS, seed=1)
    sides = defaultdict(set)
    for place, row in zip(frozen.places.to_pylist(), frozen.index.to_pylist(), strict=True):
        sides[delivered[place["row"] - 1]["true"]].add(row["split"])
    assert len(sides) > PATIENTS / 2
    return sum(len(splits) > 1 for splits in sides.values())


def misnamed(row: Row, n: int) -> Row:
    return {**{name: value for name, value in row.items() if name != "patient"}, "Patient": row["patient"]}


def without(row: Row, n: int) -> Row:
    return {**row, "patient": None if n % 5 < 2 else row["patient"]}


def as_null(row: Row, n: int) -> Row:
    return {**row, "patient": ("NULL", "n/a")[n % 2] if n % 5 < 2 else row["patient"]}


@pytest.mark.parametrize("change", [misnamed, without, as_null])
def test_rows_without_their_group_hold_the_batch_back(tmp_path: Path, change: Callable[[Row, int], Row]):
    assert "groups_are_given" in red(read(tmp_path, [change(row, n) for n, row in enumerate(rows())]))


def spaced(row: Row, n: int) -> Row:
    return {**row, "patient": row["patient"] + " \t"[n % 2] if n % 3 else row["patient"]}


def lower(row: Row, n: int) -> Row:
    return {**row, "patient": row["patient"].lower() if n % 3 else row["patient"]}


def numbered(row: Row, n: int) -> Row:
    return {
        **row,
        "patient": (f"{row['true']:05}", row["true"], float(row["true"]), f"{row['true']}.0")[n % 3 + n % 2],
    }


def same(row: Row, n: int) -> Row:
    return row


@pytest.mark.heavy
@pytest.mark.parametrize("change", [same, spaced, lower, numbered])
def test_a_group_in_several_spellings_is_on_one_side(tmp_path: Path, change: Callable[[Row, int], Row]):
    delivered = [change(row, n) for n, row in enumerate(rows())]
    examined = read(tmp_path, delivered)
    assert red(examined) == {}
    assert patients_on_two_sides(examined, delivered) == 0


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("00012", "12", "12.0", " 12\u00a0", "１２"), "12"),
        (("0", "000", "0.0"), "0"),
        (("ACME  GmbH ", "Acme GmbH", "acme\u00a0gmbh"), "acme gmbh"),
        (("Mu\u0308ller", "Müller"), "müller"),
        (("1.50",), "1.50"),
        (("P-007",), "p-007"),
    ],
)
def test_the_spellings_of_a_group(names: tuple[str, ...], key: str):
    assert {group_key(name) for name in names} == {key}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("documents", "chosen", "key"),
    [
        ({"id": "docid"}, {}, "documents.id names `docid`"),
        ({}, {"group": "patien"}, "examples.group names `patien`"),
        ({}, {"domain": "ward"}, "examples.domain names `ward`"),
        ({}, {"slice_by": "device"}, "examples.slice_by names `device`"),
    ],
)
def test_a_field_that_no_row_has_holds_the_batch_back(tmp_path: Path, documents: Row, chosen: Row, key: str):
    why = red(read(tmp_path, rows(), documents, **chosen))["named_fields_have_values"]
    assert why.startswith(f"{key}, in which 0 of the 1,000 ")


def test_ten_ways_to_write_a_label_are_one(tmp_path: Path):
    missing = ["NULL", "NaN", "n/a", "#N/A", "\\N", "-", "", "nan ", None]
    kinds = [" akut", "AKUT", "akut", "Akut ", *missing, "ruhig"]
    delivered = [{**row, "kind": kinds[n % len(kinds)]} for n, row in enumerate(rows())]
    known = read(tmp_path, delivered, labels=["akut", "ruhig"])
    assert set(known.label_counts) == {"akut", "ruhig"}
    assert examples.count_reasons(known.quarantined)["reasons"] == {"no label": len(known.quarantined)}
    seen = read(tmp_path, delivered)
    assert set(seen.label_counts) == {"akut", "AKUT", "Akut", "ruhig"}
    frozen = freeze({"b": seen.valid}, {"b": {"a.jsonl": 1}}, SETTINGS, seed=1)
    from fullft_assets.snapshot.checks import identity_outcomes

    check = next(
        c
        for c in identity_outcomes(frozen, ExamplesSettings(label="kind"))
        if c.name == "labels_have_one_spelling"
    )
    assert (check.passed, check.metadata["num_spellings"]) == (False, 3)
    assert "kut" not in check.description, "labels may be texts"


@pytest.mark.parametrize("task", ["multi_label", "token_classification"])
def test_labels_in_lists_and_spans_are_trimmed_and_listed(tmp_path: Path, task: str):
    kind: Any = (
        ["  AKUT", "NULL", "akut"] if task == "multi_label" else [{"start": 0, "end": 2, "label": "AKUT "}]
    )
    empty = "NULL"
    delivered = [{**row, "kind": kind} for row in rows()[:4]] + [
        {**row, "kind": empty} for row in rows()[4:6]
    ]
    examined = read(tmp_path, delivered, labels=["akut", "ruhig"], task=task)
    assert (set(examined.label_counts), len(examined.quarantined)) == ({"akut"}, 2)
    why = str(red(read(tmp_path / "other", delivered, labels=["ruhig", "c"], task=task)))
    assert "unknown label (`AKUT` 4" in why and "; examples.labels has ruhig, c)" in why


def test_votes_on_one_label_in_two_spellings_agree(tmp_path: Path):
    def task(values: list[str]) -> Row:
        by = [
            {
                "completed_by": n,
                "result": [{"from_name": "kind", "value": {"choices": [value]}}],
                "was_cancelled": False,
            }
            for n, value in enumerate(values)
        ]
        return {"data": {"text": "A text.", "patient": "p"}, "annotations": by}

    projects.write_files(tmp_path / "data", {"tasks.json": json.dumps([task(["akut", " akut", "n/a"])])})
    source = Folder(tmp_path / "data")
    settings = ExamplesSettings(label="kind", group="patient")
    table = read_documents(source, Batch("b", source.files()), DocumentsSettings(path="data"), settings).table
    [row] = table.to_pylist()
    assert (row["label"], row["confidence"], len(row["annotations"])) == ("akut", 1.0, 2)
