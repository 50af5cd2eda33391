"""examples: rows in = valid + quarantined, each with the right reasons; Great Expectations counts what plain Python counts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fullft_assets import chunks, documents, examples
from fullft_assets.documents import COLUMNS
from fullft_assets.errors import GateError
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Store
from tests import project as projects
from tests.licence_delivery import EXAMPLES, Delivery

STRICT = ExamplesSettings(label="kind", labels=["notice", "text"], min_characters=3, max_characters=12, min_confidence=0.5)


def expected_failures(rows: list[dict[str, Any]], settings: ExamplesSettings) -> dict[str, set[int]]:
    """The rows that break each rule, counted in plain Python: the definition that Great Expectations is held to."""
    found: dict[str, set[int]] = {rule: set() for rule in examples.ROW_RULES}
    sound = []
    for number, row in enumerate(rows):
        blank = row["text"] is None or not row["text"].strip()
        broken = {
            "rows_are_well_formed": row["problem"] is not None,
            "texts_are_present": blank,
            "text_lengths_are_in_bounds": not blank and not settings.min_characters <= len(row["text"]) <= settings.max_characters,
            "labels_are_present": row["label"] is None,
            "labels_are_known": settings.labels is not None and row["label"] is not None and row["label"] not in settings.labels,
            "annotations_are_confident": row["confidence"] is not None and row["confidence"] < settings.min_confidence,
        }
        for rule, breaks in broken.items():
            if breaks:
                found[rule].add(number)
        if not any(broken.values()):
            sound.append(number)
    labels = defaultdict(set)
    for number in sound:
        labels[rows[number]["text"]].add(rows[number]["label"])
    ids: set[str] = set()
    rest = []
    for number in sound:
        if rows[number]["id"] in ids:
            found["ids_are_unique"].add(number)
        ids.add(rows[number]["id"])
        if len(labels[rows[number]["text"]]) > 1:
            found["equal_texts_have_equal_labels"].add(number)
        elif number not in found["ids_are_unique"]:
            rest.append(number)
    kept: dict[str, int] = {}
    for number in sorted(rest, key=lambda n: (rows[n]["group"] or "", rows[n]["id"], n)):
        if kept.setdefault(rows[number]["text"], number) != number:
            found["texts_are_unique"].add(number)
    return found


def check_against_plain_python(rows: list[dict[str, Any]], settings: ExamplesSettings) -> examples.Examined:
    schema = pa.schema([(n, pa.float64() if n == "confidence" else pa.int64() if n == "row" else pa.string()) for n in COLUMNS])
    examined = examples.examine(pa.Table.from_pylist(rows, schema=schema), settings, "00001-test")
    expected = expected_failures(rows, settings)
    counted = {c.name: c.metadata["num_failed"] for c in examined.checks if c.name in examples.ROW_RULES}
    assert counted == {rule: len(numbers) for rule, numbers in expected.items()}
    reasons = defaultdict(list)
    for rule, reason in examples.ROW_RULES.items():
        for number in expected[rule]:
            reasons[rows[number]["source"], rows[number]["row"]].append(reason)
    quarantined = {(row["source"], row["row"]): row["reasons"].split("; ") for row in examined.quarantined.to_pylist()}
    assert quarantined == reasons
    valid = [(row["source"], row["row"]) for row in examined.valid.to_pylist()]
    assert valid == [place for row in rows if (place := (row["source"], row["row"])) not in reasons]
    assert len(examined.valid) + len(examined.quarantined) == len(rows)
    return examined


class TestRealDelivery:
    def test_each_count_equals_an_independent_one(self, licence_delivery: Delivery) -> None:
        rows = licence_delivery.raw.to_pylist()
        expected = expected_failures(rows, EXAMPLES)
        checks = {check.name: check for check in licence_delivery.examined.checks}
        assert len(rows) == 30_692
        for rule, numbers in expected.items():
            assert checks[rule].metadata == {"num_rows": len(rows), "num_failed": len(numbers)}, rule
            assert checks[rule].passed == (not numbers)
        dirt = ("rows_are_well_formed", "texts_are_present", "labels_are_present", "labels_are_known", "texts_are_unique")
        assert all(expected[rule] for rule in dirt), "the delivery is not dirty enough to prove anything"
        assert licence_delivery.examined.label_counts == Counter(
            row["label"] for number, row in enumerate(rows) if not any(number in numbers for numbers in expected.values())
        )

    def test_each_quarantined_row_stands_on_the_line_that_it_names(self, licence_delivery: Delivery) -> None:
        folder = licence_delivery.folder / "documents"
        lines = {path.name: path.read_text(encoding="utf-8").removesuffix("\n").split("\n") for path in folder.iterdir()}
        examined = licence_delivery.examined
        assert len(examined.valid) + len(examined.quarantined) == sum(map(len, lines.values()))
        for row in examined.quarantined.to_pylist():
            line = lines[row["source"]][row["row"] - 1]
            if row["reasons"].startswith("malformed row"):
                assert line == '{"id": "cut-off", "source": "Licensed under th'
                continue
            record = json.loads(line)
            assert (record["id"], record["source"]) == (row["id"], row["text"])
            for reason, suffix in (("empty text", "-empty"), ("unknown label", "-odd"), ("no label", "-bare")):
                assert (reason in row["reasons"]) == record["id"].endswith(suffix), row


ROWS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        "text": st.sampled_from([None, "", "  \n", "ab", "one", "two", "three", "much too long"]),
        "label": st.sampled_from([None, "notice", "text", "poem"]),
        "confidence": st.sampled_from([None, 0.0, 0.5, 0.9]),
        "group": st.sampled_from([None, "g", "h"]),
        "problem": st.sampled_from([None, None, None, "not JSON"]),
    }
)


class TestDirtyRows:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rows=st.lists(ROWS, min_size=1, max_size=25))
    def test_nothing_is_lost_whatever_comes(self, rows: list[dict[str, Any]]) -> None:
        check_against_plain_python([row | {"source": "a.csv", "row": n} for n, row in enumerate(rows, start=2)], STRICT)

    def rows(self, *changes: dict[str, Any]) -> list[dict[str, Any]]:
        sound = {"text": "same", "label": "text", "confidence": 0.9, "group": None, "problem": None, "source": "a.csv"}
        return [sound | {"id": str(n), "row": n} | change for n, change in enumerate(changes, start=2)]

    @pytest.mark.parametrize(
        "broken", [{"problem": "not JSON"}, {"label": None}, {"label": "poem"}, {"confidence": 0.1}], ids=lambda broken: next(iter(broken))
    )
    def test_a_broken_first_delivery_does_not_shadow_the_good_one(self, broken: dict[str, Any]) -> None:
        examined = check_against_plain_python(self.rows({"id": "x", **broken}, {"id": "x"}), STRICT)
        assert examined.valid["row"].to_pylist() == [3]

    def test_a_row_left_out_for_its_id_does_not_shadow_its_text(self) -> None:
        rows = self.rows({"id": "x", "text": "other"}, {"id": "x"}, {"id": "y"})
        assert check_against_plain_python(rows, STRICT).valid["text"].to_pylist() == ["other", "same"]

    def test_which_of_equal_texts_stays_does_not_depend_on_their_order(self) -> None:
        rows = self.rows({"group": "z"}, {"group": "b"}, {"group": "m"})
        for order in (rows, rows[::-1], [rows[1], rows[2], rows[0]]):
            assert check_against_plain_python(order, STRICT).valid["group"].to_pylist() == ["b"]

    def test_a_red_row_check_names_the_first_places_and_the_mend(self) -> None:
        rows = self.rows(*[{"text": f"fine {n}"} for n in range(4)], *[{"text": ""} for _ in range(7)])
        check = next(c for c in check_against_plain_python(rows, STRICT).checks if c.name == "texts_are_present")
        assert check.severity == "warn"
        assert check.description == (
            "7 of 11 rows quarantined (empty text): a.csv:6, a.csv:7, a.csv:8, a.csv:9, a.csv:10 and 2 more; "
            "mend them in the source and deliver the file again"
        )

    def test_too_large_a_share_of_quarantined_rows_blocks_the_batch(self) -> None:
        def gate(num_bad: int) -> bool:
            rows = self.rows(*[{"text": f"fine {n}"} for n in range(5)], *[{"label": None}] * num_bad)
            return next(c for c in check_against_plain_python(rows, STRICT).checks if c.name == "quarantined_share_is_bounded").passed

        assert gate(5) and not gate(6)


class TestBatchWithoutAValidRow:
    @pytest.mark.parametrize(
        ("content", "finding"),
        [
            ('{"text": ""}\n{"text": "a", "kind": "poem"}\n{half\n', "3 of 3 rows quarantined, most often: empty text"),
            ("", "its files hold no rows"),
        ],
        ids=["dirt", "empty-file"],
    )
    def test_it_is_kept_with_its_quarantine_its_gate_is_red_and_chunks_refuse(
        self, project: projects.Project, content: str, finding: str
    ) -> None:
        store, use_case = Store(str(project.home / "store")), project.use_case()
        (project.documents / "delivery-1.jsonl").write_text(content)
        [batch] = documents.cut_batches(store, "letters", project.documents, use_case.settings.documents)
        raw = documents.keep(store, use_case, batch.name)
        valid, quarantined = examples.validate(store, use_case, raw)
        num_rows = content.count("\n")
        assert len(pq.read_table(store.folder(valid) / "examples.parquet")) == 0
        assert pq.read_table(store.folder(quarantined) / "quarantined.parquet")["row"].to_pylist() == list(range(1, num_rows + 1))
        assert valid.metadata["num_rows"] == quarantined.metadata["num_quarantined"] == num_rows
        with pytest.raises(GateError) as refused:
            chunks.tokenize(store, use_case, valid)
        assert str(refused.value) == (
            "tokenized_chunks refused: labeled_examples.quarantined_share_is_bounded is red: "
            f"batch {batch.name}: {finding}; mend the source and deliver it again"
        )
        assert not (Path(store.url) / "letters/tokenized_chunks").exists()


def test_validated_twice_is_found_and_a_lost_quarantine_is_made_again(project: projects.Project) -> None:
    store, use_case = Store(str(project.home / "store")), project.use_case()
    project.deliver("delivery-1.jsonl", [*projects.licence_rows(20), {"id": "bare", "text": "a text without a label"}])
    [batch] = documents.cut_batches(store, "letters", project.documents, use_case.settings.documents)
    raw = documents.keep(store, use_case, batch.name)
    first = examples.validate(store, use_case, raw)
    assert examples.validate(store, use_case, raw) == first
    (store.folder(first[1]) / "quarantined.parquet").unlink()
    valid, quarantined = examples.validate(store, use_case, raw)
    assert valid == first[0]
    assert quarantined.ref != first[1].ref
    assert quarantined.content_digest == first[1].content_digest
    assert quarantined.metadata["reasons"] == {"no label": 1}
