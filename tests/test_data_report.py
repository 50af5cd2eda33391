"""The data report: what a person should know of the data before training, for every task."""

import re
from typing import Any

import pytest

from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.snapshot.data_report import DataFacts, Example, ExcludedRows, render, target_of, to_page
from tests import prepared, project as projects

pytestmark = pytest.mark.quick


def metadata(**changes: Any) -> SnapshotMetadata:
    statistics = [
        {"label": "cold", "split": "train", "rows": 30, "groups": 12, "k_eff": 10.5},
        {"label": "cold", "split": "test", "rows": 4, "groups": 4, "k_eff": 4.0},
        {"label": "flu", "split": "train", "rows": 10, "groups": 2, "k_eff": 1.22},
    ]
    found = {
        "labels": ["cold", "flu"],
        "label_statistics": statistics,
        "rare_labels": ["cold"],
        "left_out": {"duplicate text": 1_200},
    }
    counts = dict.fromkeys(
        (
            "num_batches",
            "num_validation_rows",
            "num_test_groups",
            "num_rows_over_max_tokens",
            "num_labels_set_aside",
            "num_labels_without_validation_row",
            "num_groups_moved",
        ),
        0,
    )
    empty = {
        "label_counts": {},
        "batches_left_out": [],
        "parts": {},
        "text_tokens": {},
        "labels_set_aside": [],
        "labels_untested": [],
    }
    return SnapshotMetadata.model_validate(
        {**found, **counts, **empty, "num_train_rows": 40, "num_test_rows": 4, **changes}
    )


def lines(found: SnapshotMetadata, num_tokens: list[int], **options: Any) -> list[str]:
    facts = DataFacts(left_out=[ExcludedRows(reason, count, []) for reason, count in found.left_out.items()])
    options = {"max_tokens": 8, "max_chunks": None, "facts": facts, **options}
    return render(found, num_tokens, **options).splitlines()


def test_sizes_balance_and_excluded_rows() -> None:
    report = lines(metadata(), [3, 9, 40])
    assert "| rows | 40 | 0 | 4 |" in report
    assert "| cold | 30 (75%); 12 groups; k_eff 10.5 | 0 | 4 (100%); 4 groups; k_eff 4.0 |" in report
    assert "| flu | 10 (25%); 2 groups; k_eff 1.2 | 0 | 0 |" in report
    assert "- 1,200 duplicate text" in report


def test_a_task_without_labels_shows_how_its_rows_are_packed() -> None:
    found = metadata(
        labels=[],
        label_statistics=[],
        rare_labels=[],
        left_out={},
        num_packed_rows=1_234,
        packing_fill=0.9987,
    )
    report = lines(
        found, [5], max_chunks=2, example=Example("some text", "the text itself", ["some", "text"])
    )
    assert "## Labels" not in report and "- nothing" in report
    assert "Packed for training: 1,234 rows, 99.87% full." in report
    assert "what is trained: **the text itself**" in report and "some text" in report


def test_a_span_is_shown_with_its_characters() -> None:
    # So that spans which are all off by one are seen.
    assert (
        target_of({"spans": [{"label": "drug", "start": 5, "end": 12}]}, "take aspirin now", False)
        == "drug [5:12] “aspirin”"
    )


HOSTILE = (
    "![t](http://host/x.png)",
    "<script>alert(1)</script>",
    "a|b",
    "``` x",
    "[a](http://b)",
    "**b**\n# h",
)


LONG = "a label that is a sentence, without_any_space_" + "x" * 60


def page_of(name: str, **about: str) -> str:
    """Return the page of a report in which a user wrote this wherever a user writes."""
    statistics = [{"label": name, "split": "train", "rows": 1, "groups": 1, "k_eff": 1.0}]
    found = metadata(labels=[name, name.upper()], label_statistics=statistics, rare_labels=[name])
    facts = DataFacts(
        num_rows=9,
        num_valid=5,
        quarantined=[ExcludedRows(name, 4, [f"{name}:3"])],
        num_groups=1,
        largest_groups=[(name, "train", 1)],
        held_back={name: ["groups_are_given"]},
        to_do=[("groups_are_given", name)],
    )
    return to_page(
        render(
            found,
            [3],
            max_tokens=8,
            max_chunks=None,
            facts=facts,
            example=Example(name, name, [name]),
            **about,
        )
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_what_users_wrote_is_shown_as_it_is(name: str) -> None:
    page = page_of(name)
    for tag in ("<script>alert", "<img", "<a ", "<h1>h", "<strong>b"):
        assert tag not in page
    assert page.count("<h2>") == 8 and page.count("<pre>") == 3
    assert page.count("<td") == 4 + 5 + 2 * 4 + 3, "a | ends no cell"


@pytest.mark.heavy
@pytest.mark.browser
def test_a_page_fits_a_telephone_and_its_title_says_what_it_is_of(tmp_path) -> None:
    from tests.ui import chromium, open_file

    source = f"s3://bucket/_{'y' * 60}/<a>_&"
    (tmp_path / "report.html").write_text(page_of(LONG, case="my_letters", source=source))
    with chromium() as page:
        assert open_file(page, tmp_path / "report.html", 390) == []
        assert (
            re.sub(r"[-\d]+ [\d:]+ UTC", "NOW", page.title())
            == f"Data report of my_letters, NOW, of the documents in {source}"
        )


@pytest.mark.heavy
def test_rows_that_are_set_aside_are_counted_by_reason_with_their_places(tmp_path) -> None:
    rows = projects.licence_rows(600)
    for n in (5, 9):
        rows[n]["text"] = " "
    for n in range(20, 28):
        rows[n]["kind"] = "NULL"
    rows[40]["text"] = rows[41]["text"]
    rows[40] |= {"kind": rows[41]["kind"], "expression": rows[41]["expression"]}
    rows[50]["expression"] = None
    rows[60]["kind"] = long_label = "a kind of licence that nobody has ever heard of"
    taken = prepared.prepare(tmp_path, tiny=True, delivered=rows, examples={"labels": None})
    folder = taken.store.folder(taken.snapshot)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert (
        "- 8 no label: delivery-1.jsonl:21, delivery-1.jsonl:22, delivery-1.jsonl:23, delivery-1.jsonl:24,"
        " delivery-1.jsonl:25, ..." in text
    )
    assert "- 2 empty text: delivery-1.jsonl:6, delivery-1.jsonl:10\n" in text and "| 600 | 10 |" in text
    left_out = text.partition("## Excluded rows")[2].partition("##")[0]
    counts = [
        int(line.split()[1].replace(",", "")) for line in left_out.splitlines() if line.startswith("- ")
    ]
    assert sum(counts) == sum(taken.snapshot.metadata["left_out"].values())
    assert "delivery-1.jsonl:4" in left_out, "a copy is named by its place"
    to_do = text.partition("## What to do")[2].partition("##")[0]
    assert "**labels_are_present**: batch " in to_do
    assert "delivery-1.jsonl:21, " in to_do and "file-" not in text, "a file has one name on the page"
    assert "1 label (see Labels below)" in to_do
    assert "not named" not in text
    assert f"- {long_label}: 1 rows" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "http" not in page.partition("One training row")[0]


def test_labels_without_rows_on_a_side_are_named() -> None:
    changes = {
        "labels_set_aside": [{"label": "plague", "rows": 3, "groups": 1, "reason": "few_rows"}],
        "num_labels_set_aside": 1,
        "labels_untested": ["flu"],
        "num_groups_moved": 2,
    }
    report = lines(metadata(**changes), [3])
    assert "- plague: 3 rows, 1 groups; fewer than snapshot.min_rows_per_label" in report
    assert "Trained but not tested, because there is no other group: flu." in report
    assert "2 groups are not where their hash puts them, so that each label is in each split." in report
