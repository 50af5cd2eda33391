"""snapshot: no leak between the splits, whatever the order of arrival, and no held-out group ever trained on."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_array

from fullft_assets import snapshot
from fullft_assets.errors import DataError
from fullft_assets.examples import text_hash
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot import Frozen, freeze
from tests import project as projects
from tests.licence_delivery import Delivery

SETTINGS = SnapshotSettings(min_train_rows=20, test_share=0.2, validation_share=0.15)
SIMILARITY = SETTINGS.near_duplicate_similarity
COLUMNS = ("id", "text", "text_hash", "label", "group", "source", "row")


def table(rows: list[dict[str, Any]]) -> pa.Table:
    filled = [{"group": None, "source": "a.jsonl", "row": n, "text_hash": text_hash(r["text"]), **r} for n, r in enumerate(rows, start=1)]
    types = [(name, pa.int64() if name == "row" else pa.string()) for name in COLUMNS]
    return pa.Table.from_pylist(filled, schema=pa.schema(types))


def freeze_rows(*batches: list[dict[str, Any]], deliveries: list[list[str]] | None = None, seed: int = 1, **changes: Any) -> Frozen:
    names = [f"{number:05}-x" for number in range(1, len(batches) + 1)]
    files = dict(zip(names, deliveries or [[f"{name}.jsonl"] for name in names], strict=True))
    return freeze(dict(zip(names, map(table, batches), strict=True)), files, SETTINGS.model_copy(update=changes), seed)


def rows_of(frozen: Frozen) -> list[dict[str, Any]]:
    return frozen.index.to_pylist()


def split_by_text(frozen: Frozen) -> dict[str, str]:
    return {row["text_hash"]: row["split"] for row in rows_of(frozen)}


def left_out(frozen: Frozen) -> int:
    return sum(frozen.metadata["left_out"].values())


def similar_pairs(reference: list[str], candidates: list[str], similarity: float) -> list[tuple[int, int]]:
    """All (candidate, reference) pairs of at least this Jaccard similarity of word 3-shingles, by brute force."""
    vocabulary: dict[tuple[str, ...], int] = {}

    def indicator(texts: list[str]) -> csr_array:
        columns, starts = [], [0]
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            shingles = {tuple(words[i : i + 3]) for i in range(len(words) - 2)} if len(words) > 3 else {tuple(words) or (text,)}
            columns += [vocabulary.setdefault(shingle, len(vocabulary)) for shingle in sorted(shingles)]
            starts.append(len(columns))
        return csr_array((np.ones(len(columns), np.int32), columns, starts), shape=(len(texts), 10_000_000))

    first, second = indicator(candidates), indicator(reference)
    sizes, other_sizes = np.diff(first.indptr), np.diff(second.indptr)
    common = (first @ second.T).tocoo()
    jaccard = common.data / (sizes[common.coords[0]] + other_sizes[common.coords[1]] - common.data)
    near = jaccard >= similarity - 1e-12
    return list(zip(common.coords[0][near].tolist(), common.coords[1][near].tolist(), strict=True))


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    """1,500 real texts, unique, with their licence expressions as groups."""
    unique = {row["text"]: row for row in projects.licence_rows(1_600)}
    return [
        {"id": row["id"], "text": row["text"], "label": row["kind"], "group": row["expression"]} for row in list(unique.values())[:1_500]
    ]


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

    def test_no_training_row_is_near_to_a_held_out_row(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        text = {text_hash(row["text"]): row["text"] for row in real}
        texts = {split: [text[h] for h, s in split_by_text(frozen).items() if s == split] for split in ("train", "validation", "test")}
        for held_out, others in (("test", "train"), ("validation", "train"), ("test", "validation")):
            assert similar_pairs(texts[held_out], texts[others], SIMILARITY) == [], (held_out, others)
        assert frozen.metadata["left_out"]["train rows near a test row"] > 0, "nothing to withhold proves nothing"

    def test_without_groups_as_well(self, real: list[dict[str, Any]]) -> None:
        found = freeze_rows([{**row, "group": None} for row in real])
        text = {text_hash(row["text"]): row["text"] for row in real}
        texts = {split: [text[h] for h, s in split_by_text(found).items() if s == split] for split in ("train", "validation", "test")}
        assert similar_pairs(texts["test"] + texts["validation"], texts["train"], SIMILARITY) == []

    def test_every_row_is_kept_or_counted(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        assert len(rows_of(frozen)) + left_out(frozen) == len(real)
        counts = Counter(row["split"] for row in rows_of(frozen))
        assert {split: frozen.metadata[f"num_{split}_rows"] for split in counts} == counts

    def test_equal_ids_in_two_splits_turn_the_gate_red(self, real: list[dict[str, Any]]) -> None:
        rows = [{**row, "id": "same" if n % 2 else row["id"]} for n, row in enumerate(real)]
        check = next(check for check in freeze_rows(rows).checks if check.name == "splits_are_disjoint")
        assert (check.passed, check.severity) == (False, "error")
        assert check.description == "3 ids, texts or groups stand in two splits; give documents unique ids (documents.id)"


class TestOrderAndGrowth:
    @pytest.mark.parametrize("num_batches", [1, 5])
    def test_order_of_arrival_does_not_matter(self, real: list[dict[str, Any]], frozen: Frozen, num_batches: int) -> None:
        # The same texts under other ids and groups too: which of them stands must not depend on the order.
        again = [{**row, "id": f"{row['id']}-again", "group": f"other {n % 7}"} for n, row in enumerate(real[:200])]
        first = split_by_text(freeze_rows(real, again))
        for seed in range(3):
            rows = random.Random(seed).sample([*real, *again], len(real) + len(again))
            assert split_by_text(freeze_rows(*[rows[n::num_batches] for n in range(num_batches)])) == first

    def test_more_data_never_moves_a_held_out_group_into_training(self, real: list[dict[str, Any]]) -> None:
        known: dict[str, str] = {}
        for size in (600, 900, 1_200, 1_500):
            for row in rows_of(freeze_rows(real[:size])):
                assert known.setdefault(row["group"], row["split"]) == row["split"]

    def test_another_seed_is_another_split(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        assert split_by_text(freeze_rows(real, seed=2)) != split_by_text(frozen)

    def test_unit_hash_is_uniform_and_keyed(self) -> None:
        places = np.array([snapshot.unit_hash(1, "split", str(n)) for n in range(4_000)])
        assert np.histogram(places, bins=10, range=(0, 1))[0].min() > 320
        assert abs(np.corrcoef(places, [snapshot.unit_hash(2, "split", str(n)) for n in range(4_000)])[0, 1]) < 0.06


class TestCaps:
    def test_held_out_rows_of_a_group_are_capped(self, real: list[dict[str, Any]]) -> None:
        found = freeze_rows(real, max_heldout_rows_per_group=3)
        taken = Counter((row["split"], row["group"]) for row in rows_of(found) if row["split"] != "train")
        assert max(taken.values()) == 3
        assert found.metadata["left_out"]["held-out rows over the cap of their group"] > 0
        assert len(rows_of(found)) + left_out(found) == len(real)

    def test_training_and_validation_rows_are_drawn_down_to_their_maximum(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        found = freeze_rows(real, max_train_rows=300, max_validation_rows=40)
        assert (found.metadata["num_train_rows"], found.metadata["num_validation_rows"]) == (300, 40)
        assert found.metadata["num_test_rows"] == frozen.metadata["num_test_rows"]
        assert split_by_text(found).items() <= split_by_text(frozen).items()

    def test_too_few_training_rows_block(self, real: list[dict[str, Any]]) -> None:
        checks = {check.name: check for check in freeze_rows(real, max_train_rows=99, min_train_rows=100).checks}
        assert (checks["training_rows_suffice"].passed, checks["training_rows_suffice"].severity) == (False, "error")
        assert checks["training_rows_suffice"].description == "99 training rows, fewer than snapshot.min_train_rows (100); deliver more"
        assert (checks["training_rows_are_plenty"].passed, checks["training_rows_are_plenty"].severity) == (False, "warn")


class TestBatches:
    def test_a_file_delivered_again_supersedes_its_older_rows(self, real: list[dict[str, Any]]) -> None:
        old = [{**row, "source": "a.jsonl"} for row in real[:800]] + [{**row, "source": "b.jsonl"} for row in real[800:1_000]]
        new = [{**row, "source": "a.jsonl"} for row in real[100:800]]
        found = freeze_rows(old, new, deliveries=[["a.jsonl", "b.jsonl"], ["a.jsonl"]])
        assert found.metadata["left_out"]["superseded by a newer delivery of their file"] == 800
        assert split_by_text(found) == split_by_text(freeze_rows(real[100:1_000]))
        assert {row["batch"] for row in rows_of(found) if row["source"] == "a.jsonl"} == {"00002-x"}

    def test_equal_texts_of_other_batches_are_kept_once(self, real: list[dict[str, Any]], frozen: Frozen) -> None:
        found = freeze_rows(real, [{**row, "id": f"{row['id']}-z"} for row in real[:50]])
        assert found.metadata["left_out"]["duplicate text of another batch"] == 50
        assert split_by_text(found) == split_by_text(frozen)

    def test_equal_texts_with_other_labels_are_all_left_out(self, real: list[dict[str, Any]]) -> None:
        odd = [{**row, "id": f"{row['id']}-z", "label": "tag" if row["label"] != "tag" else "text"} for row in real[:50]]
        found = freeze_rows(real, odd)
        assert found.metadata["left_out"]["equal text with another label in another batch"] == 100
        assert not {text_hash(row["text"]) for row in odd} & split_by_text(found).keys()


class TestOneLine:
    def message(self, *batches: list[dict[str, Any]], **changes: Any) -> str:
        with pytest.raises(DataError) as raised:
            freeze_rows(*batches, **changes)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_a_label_seen_once(self, real: list[dict[str, Any]]) -> None:
        assert self.message([*real[:300], {"id": "q", "text": "roses are red", "label": "poem", "source": "odd.csv", "row": 7}]) == (
            "odd.csv:7: label `poem` has 1 row, fewer than snapshot.min_rows_per_label (5); deliver more, or leave it out of examples.labels"
        )

    def test_one_label_only(self, real: list[dict[str, Any]]) -> None:
        rows = [row for row in real if row["label"] == "notice"]
        assert self.message(rows) == f"snapshot: only one label (`notice`) in {len(rows):,} rows; a classifier needs two"

    def test_no_rows(self) -> None:
        assert self.message([]) == "snapshot: no valid examples in any batch; look at quarantined_examples for the reasons"
        assert self.message() == "snapshot: no valid examples in any batch; look at quarantined_examples for the reasons"

    def test_a_label_of_one_group_cannot_be_measured(self, real: list[dict[str, Any]]) -> None:
        poems = [
            {"id": f"q{n}", "text": f"{word} is the flower of verse {n}", "label": "poem", "group": "g"} for n, word in enumerate("abcdef")
        ]
        assert re.fullmatch(
            r"snapshot: no (train|test|validation) row with label `poem` \(its rows share too few groups or are near-duplicates\); "
            r"deliver more groups with it, or leave it out of examples\.labels",
            self.message([*real, *poems]),
        )


class TestNearDuplicates:
    def test_finds_what_brute_force_finds_in_3000_real_texts(self) -> None:
        texts = [row["text"] for row in projects.licence_rows(3_000)]
        reference, candidates = texts[::2], texts[1::2]
        expected = {candidate for candidate, _ in similar_pairs(reference, candidates, 0.8)}
        found = snapshot.near_duplicates(reference, candidates, 0.8, seed=17)
        assert len(expected) > 100
        assert found.keys() <= expected, "each is confirmed by the exact similarity"
        assert len(found) >= 0.99 * len(expected)
        pairs = set(similar_pairs(reference, candidates, 0.8))
        assert all(pair in pairs for pair in found.items())

    @pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.9, 1.0])
    def test_bands_propose_a_pair_at_the_threshold(self, similarity: float) -> None:
        num_rows = snapshot._band_rows(similarity)
        assert 1 - (1 - similarity**num_rows) ** (128 // num_rows) >= 0.98

    @pytest.mark.parametrize(("reference", "candidates"), [([], ["a"]), (["a"], []), ([], [])])
    def test_nothing_is_near_to_nothing(self, reference: list[str], candidates: list[str]) -> None:
        assert snapshot.near_duplicates(reference, candidates, 0.8, seed=1) == {}

    def test_short_texts_and_texts_without_a_word_are_compared_whole(self) -> None:
        assert snapshot.near_duplicates(["MIT", "***", "a b c"], ["mit!", "###", "***", "a b", "A  B, C"], 0.8, seed=1) == {
            0: 0,
            2: 1,
            4: 2,
        }


class TestWholeDelivery:
    def test_a_random_row_split_leaks_near_duplicates_where_this_one_has_none(self, licence_delivery: Delivery) -> None:
        valid = licence_delivery.examined.valid
        found = freeze({"00001-all": valid}, {}, SnapshotSettings(), 17)
        texts = valid["text"].to_pylist()
        split = defaultdict(list)
        for row in rows_of(found):
            split[row["split"]].append(texts[row["position"]])
        assert len(texts) == len(rows_of(found)) + left_out(found) == 30_454
        # A seed other than the snapshot's own: a pair that its sketches missed would be seen here.
        assert snapshot.near_duplicates(split["test"] + split["validation"], split["train"], SIMILARITY, seed=99) == {}
        order = np.random.default_rng(0).permutation(len(texts))
        held_out = [texts[i] for i in order[: len(split["test"])]]
        rest = [texts[i] for i in order[len(split["test"]) :][: len(split["train"]) // 3]]
        assert len(snapshot.near_duplicates(held_out, rest, SIMILARITY, seed=99)) > 200
