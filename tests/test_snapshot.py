"""snapshot: no leak between the splits, whatever the order of arrival, and no held-out group ever
trained on.
"""

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_array

from benchmarks.frozen import freeze
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.settings import SnapshotSettings, UseCaseSettings
from fullft_assets.snapshot import Frozen, deliveries, labels, split, verdict_check
from fullft_assets.snapshot.all_rows import BatchRows
from fullft_assets.snapshot.batches import build_sketches
from fullft_assets.snapshot.ledger import EMPTY, Ledger
from fullft_assets.snapshot.near_text.pairs import SIMILARITY
from fullft_assets.snapshot.split import freeze_batches
from fullft_assets.store import CheckOutcome
from fullft_assets.store.hashing import text_hash
from fullft_assets.task import TASKS
from tests import project as projects
from tests.test_data_report import metadata as snapshot_metadata

pytestmark = pytest.mark.quick

SETTINGS = SnapshotSettings(min_train_rows=20, test_share=0.2, validation_share=0.15)
#: Place of each split; rows move to one before their own alone.
ORDER = {"test": 0, "validation": 1, "train": 2}
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text", "text_hash", "label", "group", "source")),
        ("labels", pa.list_(pa.string())),
        ("spans", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
        ("row", pa.int64()),
        ("delivered_ns", pa.int64()),
    ]
)


def table(rows: list[dict[str, Any]], delivered_ns: int = 1) -> pa.Table:
    blank = {"group": None, "source": "a.jsonl", "delivered_ns": delivered_ns}
    filled = [
        {**blank, "row": n, "text_hash": text_hash(r["text"]), **r} for n, r in enumerate(rows, start=1)
    ]
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def freeze_rows(
    *batches: list[dict[str, Any]],
    seed: int = 1,
    task: str = "classification",
    ledger: Ledger = EMPTY,
    **changes: Any,
) -> Frozen:
    """Freeze batches that were delivered one after the other, each as files of its own unless its rows say
    otherwise.
    """
    tables = {
        f"{n:05}-x": table([{"source": f"{n}.jsonl", **row} for row in rows], n)
        for n, rows in enumerate(batches, start=1)
    }
    files = {
        name: {row["source"]: row["delivered_ns"] for row in rows.sort_by("delivered_ns").to_pylist()}
        for name, rows in tables.items()
    }
    return freeze(tables, files, SETTINGS.model_copy(update=changes), seed, task=task, ledger=ledger)


def rows_of(frozen: Frozen) -> list[dict[str, Any]]:
    return frozen.index.to_pylist()


def split_by_text(frozen: Frozen) -> dict[str, str]:
    return {row["text_hash"]: row["split"] for row in rows_of(frozen)}


def left_out(frozen: Frozen) -> int:
    return sum(frozen.metadata["left_out"].values())


def similar_pairs(reference: list[str], candidates: list[str], similarity: float) -> list[tuple[int, int]]:
    """All (candidate, reference) pairs of at least this Jaccard similarity of word 3-shingles, by brute
    force.
    """

    def shingles(text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        found = (
            {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
            if len(words) > 3
            else {tuple(words) or (text,)}
        )
        return [hash(shingle) for shingle in found]

    sets = [np.array(shingles(text)) for text in [*candidates, *reference]]
    starts = np.cumsum([0, *map(len, sets)])
    columns = np.unique(np.concatenate(sets), return_inverse=True)[1]
    both = csr_array((np.ones(len(columns), np.int32), columns, starts))
    first, second = both[: len(candidates)], both[len(candidates) :].T.tocsr()
    sizes, other_sizes = np.diff(first.indptr), np.bincount(second.indices, minlength=len(reference))
    found = []
    # Some rows at a time: nearly every two licences share a shingle.
    for start in range(0, len(candidates), 256):
        common = (first[start : start + 256] @ second).tocoo()
        row, column = common.coords[0] + start, common.coords[1]
        near = common.data / (sizes[row] + other_sizes[column] - common.data) >= similarity - 1e-12
        found += zip(row[near].tolist(), column[near].tolist(), strict=True)
    return found


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    """1,500 real texts, unique, with their licence expressions as groups."""
    unique = {row["text"]: row for row in projects.licence_rows(1_600)}
    return [
        {"id": row["id"], "text": row["text"], "label": row["kind"], "group": row["expression"]}
        for row in list(unique.values())[:1_500]
    ]


#: Groups whose hash under the tests' seed lets them train, and holds them out for the test.
TRAINS, TESTS = "h1", "h2"
CLASSIFICATION = TASKS.get("classification")


@pytest.fixture(scope="module")
def frozen(real: list[dict[str, Any]]) -> Frozen:
    return freeze_rows(real)


class TestNoLeak:
    def test_splits_share_no_id_text_or_group(self, frozen: Frozen) -> None:
        for field in ("id", "text_hash", "group"):
            where = defaultdict(set)
            for row in rows_of(frozen):
                where[row[field]].add(row["split"])
            assert all(len(splits) == 1 for splits in where.values()), field
        assert [check.passed for check in frozen.checks if check.name == "splits_are_disjoint"] == [True]

    def test_no_training_row_is_near_to_a_held_out_row(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        text = {text_hash(row["text"]): row["text"] for row in real}
        texts = {
            split: [text[h] for h, s in split_by_text(frozen).items() if s == split]
            for split in ("train", "validation", "test")
        }
        for held_out, others in (("test", "train"), ("validation", "train"), ("test", "validation")):
            assert similar_pairs(texts[held_out], texts[others], SIMILARITY) == [], (held_out, others)
        assert frozen.metadata["left_out"]["train rows near a test row"] > 0, (
            "nothing to withhold proves nothing"
        )

    def test_every_row_is_kept_or_counted(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        assert len(rows_of(frozen)) + left_out(frozen) == len(real)
        counts = Counter(row["split"] for row in rows_of(frozen))
        assert {split: frozen.metadata[f"num_{split}_rows"] for split in counts} == counts

    def test_equal_ids_in_two_splits_would_turn_the_gate_red(
        self, real: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliveries, "superseded", lambda rows, versions, votes: np.zeros(len(rows), bool))
        monkeypatch.setattr(split, "_drop_once_held_out", lambda *arguments: None)
        rows = [{**row, "id": "same" if n % 2 else row["id"]} for n, row in enumerate(real)]
        check = next(check for check in freeze_rows(rows).checks if check.name == "splits_are_disjoint")
        assert (check.passed, check.severity) == (False, "error") and re.match(
            r"3 ids.* \(documents\.id\)$", check.description
        )


def test_another_seed_is_another_split(real: list[dict[str, Any]], frozen: Frozen) -> None:
    assert split_by_text(freeze_rows(real, seed=2)) != split_by_text(frozen)


class TestCaps:
    def test_held_out_rows_of_a_group_are_capped(self, real: list[dict[str, Any]]) -> None:
        found = freeze_rows(real, max_heldout_rows_per_group=3)
        taken = Counter((row["split"], row["group"]) for row in rows_of(found) if row["split"] != "train")
        assert (
            max(taken.values()) == 3
            and found.metadata["left_out"]["held-out rows over the cap of their group"] > 0
        )
        assert len(rows_of(found)) + left_out(found) == len(real)

    def test_training_and_validation_rows_are_drawn_down_to_their_maximum(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        found = freeze_rows(real, max_train_rows=300, max_validation_rows=40)
        assert (found.metadata["num_train_rows"], found.metadata["num_validation_rows"]) == (300, 40)
        assert (
            found.metadata["num_test_rows"] == frozen.metadata["num_test_rows"]
            and split_by_text(found).items() <= split_by_text(frozen).items()
        )

    def test_too_few_training_rows_block(self, real: list[dict[str, Any]]) -> None:
        checks = {
            check.name: check for check in freeze_rows(real, max_train_rows=99, min_train_rows=100).checks
        }
        assert (checks["training_rows_suffice"].passed, checks["training_rows_suffice"].severity) == (
            False,
            "error",
        )
        assert re.match(
            r"99 .* snapshot\.min_train_rows \(100\)", checks["training_rows_suffice"].description
        )


class TestBatches:
    def test_a_file_delivered_again_supersedes_its_older_rows(self, real: list[dict[str, Any]]) -> None:
        old = [{**row, "source": "a.jsonl"} for row in real[:800]] + [
            {**row, "source": "b.jsonl"} for row in real[800:1_000]
        ]
        found = freeze_rows(old, [{**row, "source": "a.jsonl"} for row in real[100:800]])
        assert found.metadata["left_out"]["superseded by a newer delivery of their file"] == 800
        assert split_by_text(found) == split_by_text(freeze_rows(real[100:1_000]))
        assert {place["batch"] for place in found.places.to_pylist() if place["source"] == "a.jsonl"} == {
            "00002-x"
        }

    def test_of_an_id_twice_in_a_file_the_last_row_counts_and_is_reported(
        self, real: list[dict[str, Any]]
    ) -> None:
        again = [{**row, "text": f"{row['text']} as amended"} for row in real[:30]]
        found = freeze_rows([*real, *again], real[100:110])
        assert found.num_breaking["ids_are_unique"] == 30, "a later file may have the same id"
        texts = {row["id"]: row["text_hash"] for row in rows_of(found)}
        counted = [texts[row["id"]] == text_hash(row["text"]) for row in again if row["id"] in texts]
        assert len(counted) > 10 and all(counted)

    def test_the_newest_row_of_an_id_counts_whatever_batch_it_came_in(
        self, real: list[dict[str, Any]]
    ) -> None:
        corrected = [{**row, "label": "tag" if row["label"] != "tag" else "text"} for row in real[:60]]
        found = freeze({"00001-x": table(corrected, 7), "00002-x": table(real, 3)}, {}, SETTINGS, 1)
        assert found.metadata["left_out"]["superseded by a newer delivery of their id"] == 60
        labels = {row["id"]: row["label"] for row in rows_of(found)}
        assert sum(row["id"] in labels for row in corrected) > 20 and all(
            labels[row["id"]] == row["label"] for row in corrected if row["id"] in labels
        )

    def test_a_later_copy_moves_a_text_to_test_and_never_away_from_it(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        before = split_by_text(frozen)
        some = [row for n, row in enumerate(real) if n % 3 == 0 and text_hash(row["text"]) in before]
        for group, moved in ((TESTS, {"train", "validation", "test"}), (TRAINS, {"train"})):
            copies = [{**row, "id": f"{row['id']}-copy", "group": group} for row in some]
            after = split_by_text(freeze_rows(real, copies, max_heldout_rows_per_group=10_000))
            expected = {
                text_hash(row["text"]): "test" if group == TESTS else before[text_hash(row["text"])]
                for row in some
            }
            assert {h: after[h] for h in expected.keys() & after.keys()} == {
                h: expected[h] for h in expected.keys() & after.keys()
            }
            # Only rows that train may be missing now: some are near to a text that was moved.
            assert {before[h] for h in before.keys() - after.keys()} <= moved - {"test"} and len(
                expected.keys() & after.keys()
            ) > 0.8 * len(some)

    def test_equal_texts_with_other_labels_are_all_left_out(self, real: list[dict[str, Any]]) -> None:
        odd = [
            {**row, "id": f"{row['id']}-z", "label": "tag" if row["label"] != "tag" else "text"}
            for row in real[:50]
        ]
        found = freeze_rows(real, odd)
        assert found.metadata["left_out"]["equal text with another label"] == 100
        assert not {text_hash(row["text"]) for row in odd} & split_by_text(found).keys()

    def test_rows_that_overlap_an_evaluation_set_do_not_train(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        overlaps = np.arange(len(real)) % 10 == 0
        rows = table(real)
        sketches = build_sketches(rows, 1).drop_columns(["overlaps"])
        sketches = sketches.append_column("overlaps", pa.array(overlaps))
        batch = BatchRows(rows.drop_columns(["text"]), {}, sketches.column, rows["text"].take)
        found = freeze_batches({"a": batch}, SETTINGS, 1, task=CLASSIFICATION)
        marked = {text_hash(row["text"]) for row in real[::10]}
        before, after = split_by_text(frozen), split_by_text(found)
        assert {h for h in marked if before.get(h) == "train"} == before.keys() - after.keys()
        assert (
            found.metadata["left_out"]["train rows that overlap an external evaluation set"]
            >= len(before) - len(after)
            > 50
        )


class TestOnceHeldOut:
    """What was held out is never trained on, under any later arrival."""

    def test_a_row_that_moves_to_a_group_that_trains_is_left_out(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        held_out = [row for row in rows_of(frozen) if row["split"] != "train"][:20]
        by_id = {row["id"]: row for row in real}
        moved = [
            {**by_id[row["id"]], "text": f"rewritten {n}", "group": TRAINS} for n, row in enumerate(held_out)
        ]
        found = freeze_rows(real, moved)
        assert not {row["id"] for row in held_out} & {row["id"] for row in rows_of(found)}
        assert found.metadata["left_out"]["held out before: an older delivery of their id or text was"] == 20

    def test_a_copy_of_a_text_that_was_withdrawn_from_the_test_is_left_out(
        self, real: list[dict[str, Any]], frozen: Frozen
    ) -> None:
        tested = {row["id"] for row in rows_of(frozen) if row["split"] == "test"}
        gone = [row for row in real if row["id"] in tested][::2]
        copies = [
            {**row, "id": f"{row['id']}-copy", "group": TRAINS, "source": "copies.jsonl"} for row in gone
        ]
        whole = [{**row, "source": "a.jsonl"} for row in real]
        found = freeze_rows(
            whole, copies, [row for row in whole if row["id"] not in {row["id"] for row in gone}]
        )
        assert len(gone) > 25 and not {text_hash(row["text"]) for row in copies} & {
            h for h, s in split_by_text(found).items() if s != "test"
        }


class TestTasks:
    def test_plain_text_has_no_labels(self, real: list[dict[str, Any]]) -> None:
        found = freeze_rows([{**row, "label": None} for row in real], task="language_modeling")
        assert (found.labels, found.metadata["label_statistics"], found.metadata["rare_labels"]) == (
            [],
            [],
            [],
        )
        assert (
            found.metadata["label_counts"] == {"train": {}, "validation": {}, "test": {}}
            and "label" not in found.index.column_names
        )

    @pytest.mark.parametrize(
        ("task", "column", "targets"),
        [
            ("multi_label", "labels", [["a", "b"], ["a"]]),
            (
                "token_classification",
                "spans",
                [[{"start": 0, "end": 2, "label": "A"}], [{"start": 0, "end": 1, "label": "A"}]],
            ),
        ],
    )
    def test_equal_texts_with_other_targets_conflict(
        self, real: list[dict[str, Any]], task: str, column: str, targets: list[Any]
    ) -> None:
        first = [{**row, column: targets[0]} for row in real]
        again = [{**row, "id": f"{row['id']}-z", column: targets[n % 2]} for n, row in enumerate(real[:100])]
        left = freeze_rows(first, again, task=task).metadata["left_out"]
        assert (left["equal text with another label"], left["duplicate text"]) == (100, 50)


class TestRareLabels:
    def test_effective_number_of_groups(self) -> None:
        # Label 0: one group of 4 rows, two of 1: 36 / 18. Label 1: five groups of one row.
        group = np.array([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7])
        given = labels.Labels(np.arange(11), np.array([0] * 6 + [1] * 5), ["big", "even"])
        found = {s["label"]: s for s in labels.label_statistics(given, np.zeros(11, np.int64), group)}
        assert (
            found["big"] == {"label": "big", "split": "test", "rows": 6, "groups": 3, "k_eff": 2.0}
            and found["even"]["k_eff"] == 5.0
        )

    def test_labels_of_few_test_groups_are_named(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        check = next(check for check in frozen.checks if check.name == "labels_are_common")
        rare = frozen.metadata["rare_labels"]
        assert rare and (check.passed, check.severity) == (False, "warn")
        assert all(f"`{label}` (" in check.description for label in rare)
        k_eff = {s["label"]: s["k_eff"] for s in frozen.metadata["label_statistics"] if s["split"] == "test"}
        assert {label for label, k in k_eff.items() if k < 20} == set(rare) and check.metadata[
            "least_k_eff"
        ] == min(k_eff.values())


@pytest.mark.parametrize("batches", [[[]], []])
def test_no_rows_are_one_line(batches: list[list[dict[str, Any]]]) -> None:
    line = r"^snapshot: no valid examples in any batch; look at quarantined_examples for the reasons\Z"
    with pytest.raises(DataError, match=line):
        freeze_rows(*batches)


def test_too_few_test_groups_for_any_verdict_are_counted() -> None:
    asked = UseCaseSettings.model_validate(
        {"base_model": "m", "documents": {"path": "d"}, "examples": {"label": "kind", "group": "who"}}
    )
    check = verdict_check(snapshot_metadata(num_test_groups=7), asked)
    assert (check.passed, check.severity, check.metadata) == (False, "warn", {"num_test_groups": 7})
    # 23 more test groups, of which one in 0.15 is held out.
    assert (
        re.match("7 test groups, .* 30 .* 154 more .*of 100 in all 30%", check.description)
        and "`who` in examples.group" in check.description
    )
    assert verdict_check(snapshot_metadata(num_test_groups=30), asked).passed


class TestWhatIsToldOfDeliveries:
    ROWS = projects.licence_rows(240)

    def rows(self, start: int, stop: int, **changes: Any) -> list[dict[str, Any]]:
        return [
            {"id": f"d{n}", "text": row["text"], "label": "ab"[n % 2]} | changes
            for n, row in enumerate(self.ROWS)
        ][start:stop]

    @staticmethod
    def check(frozen: Frozen, name: str) -> CheckOutcome:
        return next(check for check in (*frozen.checks, frozen.order) if check.name == name)

    def test_whether_ids_name_one_document_does_not_depend_on_the_batches(self) -> None:
        first = self.rows(0, 230, source="a.jsonl")
        for count, passed in ((1, True), (12, False)):
            other = [
                {**row, "id": f"d{n}"} for n, row in enumerate(self.rows(228, 228 + count, source="b.jsonl"))
            ]
            together, apart = (
                self.check(frozen, "ids_name_one_document")
                for frozen in (freeze_rows([*first, *other]), freeze_rows(first, other))
            )
            for check in (together, apart):
                assert (check.passed, check.metadata) == (
                    passed,
                    {"num_reused_ids": count},
                )
                assert check.description.startswith(f"{count} of 230 ids ")

    def test_a_correction_with_an_older_time_is_counted(self) -> None:
        kept = self.rows(0, 120, delivered_ns=1_700_000_000 * 10**9)
        late = self.rows(0, 5, label="c", delivered_ns=1_600_000_000 * 10**9)
        frozen = freeze_rows(kept, late)
        check = self.check(frozen, "later_rows_are_newer")
        assert "c" not in frozen.labels
        assert (check.passed, check.severity, check.metadata) == (
            False,
            "warn",
            {"num_late_rows": 5},
        )
        assert (
            f"such as {alias('2.jsonl')} (2020-09-13 12:26:40) to {alias('1.jsonl')} of an earlier batch"
            " (2023-11-14 22:13:20)" in check.description
        )
        # What says the same again, and what was cut first, loses nothing.
        assert self.check(freeze_rows(kept, self.rows(0, 5, delivered_ns=1)), "later_rows_are_newer").passed
        assert self.check(freeze_rows(late, kept), "later_rows_are_newer").passed

    def test_a_file_put_back_with_an_older_time_is_counted(self) -> None:
        kept = self.rows(0, 120, delivered_ns=1_700_000_000 * 10**9, source="a.jsonl")
        back = self.rows(100, 130, delivered_ns=1_600_000_000 * 10**9, source="a.jsonl")
        check = self.check(freeze_rows(kept, back), "later_rows_are_newer")
        assert check.metadata == {"num_late_rows": 10}, "those that stand as they are lose nothing"
        assert (
            f"such as {alias('a.jsonl')} (2020-09-13 12:26:40) to {alias('a.jsonl')} of an earlier batch"
            " (2023-11-14 22:13:20)" in check.description
        )
