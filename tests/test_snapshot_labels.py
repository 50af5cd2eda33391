"""The split keeps labels: each is on every side that it has groups for, what was held out never trains, rare
labels are set aside.
"""

import random
import re
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.frozen import freeze
from fullft_assets.errors import DataError
from fullft_assets.settings import ExamplesSettings, SnapshotSettings, UseCaseSettings
from fullft_assets.snapshot import Frozen, checks
from fullft_assets.snapshot.ledger import EMPTY, Ledger
from fullft_assets.store import CheckOutcome
from fullft_assets.store.hashing import text_hash, unit_hash
from tests import project as projects
from tests.test_settings import LEAST
from tests.test_snapshot import ORDER, SCHEMA

pytestmark = pytest.mark.quick

SETTINGS = SnapshotSettings(min_train_rows=1, test_share=0.15)
SPLITS = ("train", "validation", "test")


def rows_of_groups(groups: dict[str, tuple[str, int]], start: int = 0) -> list[dict[str, Any]]:
    """Rows of groups, given the label and the number of rows of each group."""
    found = [(group, label) for group, (label, count) in groups.items() for _ in range(count)]
    words = [f"w{start + n}x{k}" for n in range(len(found)) for k in range(8)]
    return [
        {
            "id": f"{start + n}-{group}",
            "text": " ".join(words[8 * n : 8 * n + 8]),
            "group": group,
            "label": label,
        }
        for n, (group, label) in enumerate(found)
    ]


def take(
    *batches: list[dict[str, Any]],
    ledger: Ledger = EMPTY,
    seed: int = 1,
    task: str = "classification",
    **changes: Any,
) -> Frozen:
    """Freeze batches of rows with `id`, `text`, `group` and a target."""
    tables = {}
    for number, rows in enumerate(batches):
        filled = [
            {
                "source": f"{number}.jsonl",
                "delivered_ns": 1,
                "row": n,
                "text_hash": text_hash(row["text"]),
                **row,
            }
            for n, row in enumerate(rows, start=1)
        ]
        tables[f"{number:05}"] = pa.Table.from_pylist(filled, schema=SCHEMA)
    return freeze(tables, {}, SETTINGS.model_copy(update=changes), seed, task=task, ledger=ledger)


def splits_of(frozen: Frozen, label: str) -> dict[str, str]:
    return {row["group"]: row["split"] for row in frozen.index.to_pylist() if row["label"] == label}


def check_of(frozen: Frozen, name: str = "labels_are_split") -> CheckOutcome:
    return next(check for check in frozen.checks if check.name == name)


def groups_hashed_to(split: str, number: int, seed: int = 1, prefix: str = "g") -> list[str]:
    """Names of groups that the hash alone puts into a split."""
    low, high = {"test": (0, 0.15), "validation": (0.15, 0.25), "train": (0.25, 1)}[split]
    names = (f"{prefix}{n}" for n in range(100_000))
    return list(islice((name for name in names if low <= unit_hash(seed, "split", name) < high), number))


@pytest.fixture(scope="module")
def common() -> list[dict[str, Any]]:
    """Two labels of 60 groups each, which no move is needed for."""
    return rows_of_groups({f"common {n}": ("ab"[n % 2], 2) for n in range(120)})


class TestSides:
    @pytest.mark.parametrize("hashed", SPLITS)
    @pytest.mark.parametrize(
        ("number", "expected"), [(1, ["train"]), (2, ["test", "train"]), (3, ["test", "train", "validation"])]
    )
    def test_a_label_of_few_groups_has_the_sides_that_it_can_have(
        self, common: list[dict[str, Any]], hashed: str, number: int, expected: list[str]
    ) -> None:
        rare = rows_of_groups(dict.fromkeys(groups_hashed_to(hashed, number), ("rare", 5)), start=1_000)
        frozen = take([*common, *rare])
        assert sorted(splits_of(frozen, "rare").values()) == expected
        assert frozen.metadata["labels_untested"] == (["rare"] if number == 1 else [])
        assert frozen.metadata["num_labels_without_validation_row"] == (number < 3)
        assert frozen.labels == ["a", "b", "rare"]

    def test_without_labels_no_split_is_empty(self) -> None:
        frozen = take(
            rows_of_groups(dict.fromkeys(groups_hashed_to("train", 5), ("", 3))), task="language_modeling"
        )
        assert {row["split"] for row in frozen.index.to_pylist()} == set(SPLITS)
        assert frozen.metadata["num_groups_moved"] == 2
        # Checks on labels are neither defined nor made.
        settings = UseCaseSettings.model_validate({**LEAST, "examples": {"task": "language_modeling"}})
        assert not any(
            name.startswith("labels_")
            for name in {
                *({spec.name for spec in checks.checks_of(settings)}),
                *(check.name for check in frozen.checks),
            }
        )

    def test_a_group_with_most_of_a_labels_rows_trains(self, common: list[dict[str, Any]]) -> None:
        first, second, third = sorted(
            groups_hashed_to("train", 3), key=lambda group: unit_hash(1, "split", group)
        )
        rare = rows_of_groups({first: ("rare", 100), second: ("rare", 5), third: ("rare", 5)}, start=1_000)
        assert splits_of(take([*common, *rare]), "rare") == {
            first: "train",
            second: "test",
            third: "validation",
        }


def held_out(
    num_groups: int, rows_a_group: int, ledger: Ledger = EMPTY, **changes: Any
) -> tuple[set[str], Frozen]:
    """Groups that are tested by default, and the snapshot."""
    groups = {f"g{n}": (("a", "b")[n % 2], rows_a_group) for n in range(num_groups)}
    changes = {"test_share": None, "min_train_rows": 100, **changes}
    frozen = take(rows_of_groups(groups), ledger=ledger, **changes)
    return {row["group"] for row in frozen.index.to_pylist() if row["split"] == "test"}, frozen


def test_of_few_groups_more_are_tested_where_that_makes_a_verdict_possible() -> None:
    few, frozen = held_out(120, 5)
    assert len(few) == 36 > 1.4 * len(held_out(120, 5, test_share=0.15)[0])
    grown = held_out(600, 5, frozen.ledger)[0]
    assert few <= grown, "what was held out stays held out"
    assert grown - few == held_out(600, 5)[0] - few
    for sizes in ((95, 5), (140, 1)):  # too few groups for any verdict; too few rows left to train
        assert held_out(*sizes)[0] == held_out(*sizes, test_share=0.15)[0]


class TestGrowth:
    @pytest.fixture(scope="class")
    def real(self) -> list[dict[str, Any]]:
        """Real groups and two fields of real rules: the labels of 1,500 rows, many of them rare."""
        return [
            {
                "id": row["id"],
                "text": f"{row['id']} {row['text'][:300]}",
                "label": row["expression"].split("-")[0],
                "group": row["expression"],
            }
            for row in projects.licence_rows(1_500)
        ]

    @pytest.mark.heavy
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_no_group_goes_from_held_out_to_training(self, real: list[dict[str, Any]], seed: int) -> None:
        chosen, ledger = random.Random(seed), EMPTY
        rows, known, num_moved = chosen.sample(real, len(real)), dict[str, str](), 0
        for stop in range(300, len(rows) + 1, 300):
            frozen = take(rows[:stop], ledger=ledger, seed=seed)
            ledger, num_moved = frozen.ledger, num_moved + frozen.metadata["num_groups_moved"]
            for row in frozen.index.to_pylist():
                before = known.setdefault(row["group"], row["split"])
                assert ORDER[row["split"]] <= ORDER[before], f"{row['group']} was {before}"
                known[row["group"]] = row["split"]
            untested = set(frozen.metadata["labels_untested"])
            tested = {row["label"] for row in frozen.index.to_pylist() if row["split"] == "test"}
            assert tested | untested == set(frozen.labels)
        assert num_moved > 0, "the hash alone would have done"

    def test_a_label_whose_only_training_group_is_erased_is_set_aside_until_a_new_group_comes(
        self, common: list[dict[str, Any]]
    ) -> None:
        first, second = groups_hashed_to("train", 2)
        rare = rows_of_groups({first: ("rare", 5), second: ("rare", 5)}, start=1_000)
        before = take([*common, *rare])
        trains = next(group for group, split in splits_of(before, "rare").items() if split == "train")
        left = take([*common, *(row for row in rare if row["group"] != trains)], ledger=before.ledger)
        assert left.labels == ["a", "b"]
        assert left.metadata["labels_set_aside"] == [
            {"label": "rare", "rows": 5, "groups": 1, "reason": "no_training_row"}
        ]
        new = rows_of_groups({groups_hashed_to("test", 1)[0]: ("rare", 5)}, start=2_000)
        again = take([*common, *(row for row in rare if row["group"] != trains), *new], ledger=left.ledger)
        assert sorted(splits_of(again, "rare").values()) == ["test", "train"]

    def test_what_was_held_out_stays_so_where_the_shares_shrink(self, common: list[dict[str, Any]]) -> None:
        before = take(common, test_share=0.4, validation_share=0.2)
        after = take(common, ledger=before.ledger)
        held_out = {row["group"] for row in before.index.to_pylist() if row["split"] != "train"}
        assert not held_out & {row["group"] for row in after.index.to_pylist() if row["split"] == "train"}


class TestSetAside:
    def test_rare_labels_are_set_aside_counted_and_named(self, common: list[dict[str, Any]]) -> None:
        frozen = take([*common, *rows_of_groups({"q1": ("poem", 3), "q2": ("song", 1)}, start=1_000)])
        assert frozen.labels == ["a", "b"]
        assert frozen.metadata["left_out"]["rows of labels that are set aside"] == 4
        assert frozen.metadata["labels_set_aside"] == [
            {"label": "poem", "rows": 3, "groups": 1, "reason": "few_rows"},
            {"label": "song", "rows": 1, "groups": 1, "reason": "few_rows"},
        ]
        check = check_of(frozen)
        assert (check.passed, check.severity) == (False, "warn")
        assert re.fullmatch(
            r"2 .* snapshot\.min_rows_per_label \(5\) .*: `poem` \(3 rows, 1 .*\), `song` \(1 row, 1 .*\)",
            check.description,
        )
        assert frozen.index.equals(take(common).index), "the rest is as without them"

    def test_where_a_row_has_several_labels_it_stays_without_the_rare_one(self) -> None:
        rows = rows_of_groups({f"c{n}": ("", 1) for n in range(200)})
        labelled = [{**row, "labels": ["a", "b"] if n % 3 else ["a"]} for n, row in enumerate(rows)]
        for row in labelled[:3]:
            row["labels"] = [*row["labels"], "rare"]
        frozen = take(labelled, task="multi_label")
        assert frozen.labels == ["a", "b"] and len(frozen.index) == len(rows)
        given = {row["id"]: row["labels"] for row in labelled}
        assert all(
            row["labels"] == [name for name in given[row["id"]] if name != "rare"]
            for row in frozen.index.to_pylist()
        )

    def test_a_label_that_may_be_a_text_is_not_named(self, common: list[dict[str, Any]]) -> None:
        label = "a text that came in the place of a label " * 20
        description = check_of(take([*common, *rows_of_groups({"q": (label, 1)}, start=1_000)])).description
        assert "a text that came" not in description and "1 label (not named" in description


@pytest.mark.parametrize(
    ("num_copies", "severity", "passed"), [(12, "warn", True), (40, "warn", False), (1, "error", False)]
)
def test_few_copies_are_counted_and_nothing_is_shown_as_failed(
    common: list[dict[str, Any]], num_copies: int, severity: str, passed: bool
) -> None:
    copies = [{**row, "id": f"copy {n}"} for n, row in enumerate(common[:num_copies])]
    settings = ExamplesSettings.model_validate(
        {"label": "kind", "severities": {"texts_are_unique": severity}}
    )
    rows = [*common, *copies, {**common[-1], "text": "another"}]
    found = {check.name: check for check in checks.identity_outcomes(take(rows), settings)}
    assert f".jsonl:{len(common)} and " in found["ids_are_unique"].description
    assert found.keys() == {
        "ids_are_unique",
        "texts_are_unique",
        "equal_texts_have_equal_labels",
        "labels_have_one_spelling",
    }
    check = found["texts_are_unique"]
    assert (check.passed, check.severity, check.metadata) == (
        passed,
        severity,
        {"num_failed": num_copies},
    )


class TestRefusals:
    def message(self, rows: list[dict[str, Any]], **changes: Any) -> str:
        with pytest.raises(DataError) as raised:
            take(rows, **changes)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_no_two_labels_are_left(self) -> None:
        assert re.match(
            r"snapshot: 1 of 3 .* 30 rows: 2 .* snapshot\.min_rows_per_label \(5\) rows, and 0 ",
            self.message(rows_of_groups({"g1": ("a", 30), "g2": ("b", 3), "g3": ("c", 1)})),
        )

    def test_one_label(self) -> None:
        rows = rows_of_groups({f"g{n}": ("a", 1) for n in range(30)})
        assert re.match(r"snapshot: .* \(`a`\) in 30 rows; .* examples\.label ", self.message(rows))

    def test_nothing_to_test(self) -> None:
        rows = [{**row, "label": "ab"[n % 2]} for n, row in enumerate(rows_of_groups({"g": ("", 30)}))]
        assert re.search(
            r"no test row, .* \(30 train, 0 validation, 0 test; test_share 0\.15, .* 0\.1, seed 7\); .*"
            r" examples\.group ",
            self.message(rows, seed=7),
        )

    @pytest.mark.parametrize("num_ids", [1, 4])
    def test_ids_that_repeat_are_named_with_what_to_do(self, num_ids: int) -> None:
        """Ids that name a patient, say, or a kind: of each only the newest row is left."""
        rows = rows_of_groups({f"g{n}": ("ab"[n % 2], 1) for n in range(300)})
        message = self.message([{**row, "id": f"i{n % num_ids}"} for n, row in enumerate(rows)])
        assert re.search(rf" the ids: {300 - num_ids} of 300 rows .* documents\.id, ", message)
        assert "the ids" not in self.message(
            [{**row, "id": f"i{n % 160}"} for n, row in enumerate(rows)], min_rows_per_label=200
        )


class TestDraws:
    @pytest.fixture(scope="class")
    def long_tail(self) -> list[dict[str, Any]]:
        """41 labels from 1,200 rows to 6, in groups of up to 40 rows."""
        sizes = {f"label {n:02}": max(6, int(1_200 / (1 + n) ** 1.5)) for n in range(41)}
        groups = {}
        for label, size in sizes.items():
            for number, begin in enumerate(range(0, size, step := 40 if size > 400 else 2)):
                groups[f"{label} {number}"] = (label, min(step, size - begin))
        return rows_of_groups(groups)

    @pytest.mark.heavy
    @pytest.mark.parametrize(("most", "split"), [(100, "validation"), (400, "train"), (41, "train")])
    def test_no_label_is_lost(self, long_tail: list[dict[str, Any]], most: int, split: str) -> None:
        everything = take(long_tail)
        drawn = (
            take(long_tail, max_train_rows=most)
            if split == "train"
            else take(long_tail, max_validation_rows=most)
        )
        labels = {row["label"] for row in drawn.index.to_pylist() if row["split"] == split}
        assert labels == {row["label"] for row in everything.index.to_pylist() if row["split"] == split}
        assert drawn.metadata[f"num_{split}_rows"] == min(most, everything.metadata[f"num_{split}_rows"])

    def test_training_rows_are_drawn_from_more_groups_than_evenly(self) -> None:
        groups = {f"giant {n}": ("ab"[n % 2], 300) for n in range(4)} | {
            f"small {n}": ("ab"[n % 2], 1) for n in range(300)
        }
        drawn = take(rows_of_groups(groups), max_train_rows=200)
        rows = [row for row in drawn.index.to_pylist() if row["split"] == "train"]
        giants = sum(row["group"].startswith("giant") for row in rows)
        num_giant = sum(
            split == "train"
            for group, split in {
                r["group"]: r["split"] for r in take(rows_of_groups(groups)).index.to_pylist()
            }.items()
            if group.startswith("giant")
        )
        assert len(rows) == 200
        assert giants / 200 < 0.75 * 300 * num_giant / (300 * num_giant + 225), (
            "an even draw would take them by their rows"
        )

    def test_the_cap_keeps_a_label_that_one_giant_group_alone_tests(self) -> None:
        group = groups_hashed_to("test", 1)[0]
        rows = rows_of_groups({f"c{n}": ("", 1) for n in range(100)} | {group: ("", 60)})
        labelled = [{**row, "labels": ["a"]} for row in rows]
        rare = rows_of_groups(
            {groups_hashed_to("train", 1, prefix="t")[0]: ("", 8), group: ("", 1)}, start=5_000
        )
        labelled += [{**row, "labels": ["a", "rare"]} for row in rare]
        for seed in range(1, 4):
            chosen = groups_hashed_to("test", 1, seed)[0]
            renamed = [
                {**row, "group": chosen if row["group"] == group else row["group"]} for row in labelled
            ]
            frozen = take(renamed, task="multi_label", seed=seed)
            tested = [
                row for row in frozen.index.to_pylist() if row["split"] == "test" and row["group"] == chosen
            ]
            assert len(tested) == 10 and any("rare" in row["labels"] for row in tested)


class TestLedger:
    def test_no_name_of_a_group_is_in_it(self, common: list[dict[str, Any]], tmp_path) -> None:
        take(common).ledger.write(tmp_path / "ledger.parquet", ["x"])
        assert b"common" not in (tmp_path / "ledger.parquet").read_bytes()
