"""examples: of rows with one id or one text the right one counts, and what was mended leaves quarantine."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import unit_hash
from tests import project as projects
from tests.test_examples import PLAIN, TIED, check_against_plain_python, places, sound_rows, table

LATER: dict[str, Any] = {"source": "b.csv", "delivered_ns": 2}


class TestOneRowAnId:
    def test_the_newest_delivery_counts_wherever_it_stands(self) -> None:
        rows = sound_rows({"id": "x", "label": "notice", **LATER}, {"id": "x"}, {"id": "x", "delivered_ns": 0, "source": "z.csv"})
        for order in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
            examined = check_against_plain_python(order, PLAIN)
            assert places(examined.valid) == [("b.csv", 2)]
            assert set(examined.superseded["reasons"].to_pylist()) == {examples.SUPERSEDED}

    def test_twice_in_one_file_is_told_and_the_last_counts(self) -> None:
        rows = sound_rows({"id": "x"}, {"id": "x"}, {"id": "y"}, {"id": "y", **LATER})
        examined = check_against_plain_python(rows, PLAIN)
        check = next(c for c in examined.checks if c.name == "ids_are_unique")
        assert (check.passed, check.metadata["num_failed"]) == (False, 1)
        assert check.description.startswith("1 of 4 rows found (id stands twice in one file): a.csv:2; ")
        assert places(examined.valid) == [("a.csv", 3), ("b.csv", 5)]

    def test_what_is_superseded_shadows_no_text(self) -> None:
        rows = sound_rows({"id": "x", "text": "same"}, {"id": "x", "text": "other"}, {"id": "y", "text": "same", "label": "notice"})
        assert places(check_against_plain_python(rows, PLAIN).valid) == [("a.csv", 3), ("a.csv", 4)]


class TestAnnotators:
    def votes(self, *labels: str, **changes: Any) -> examples.Examined:
        given = [{"id": "x", "text": "same", "label": label, "annotator": f"who {n}"} for n, label in enumerate(labels)]
        return check_against_plain_python(sound_rows(*given, **changes), PLAIN)

    def test_the_majority_counts_and_every_vote_is_kept(self) -> None:
        examined = self.votes("notice", "text", "notice")
        [row] = examined.valid.to_pylist()
        assert (row["label"], row["row"]) == ("notice", 4)
        assert [(a["annotator"], a["label"]) for a in row["annotations"]] == [("who 0", "notice"), ("who 1", "text"), ("who 2", "notice")]
        assert examined.superseded["reasons"].to_pylist() == [examples.MERGED] * 2

    def test_a_tie_is_quarantined_whole(self) -> None:
        examined = self.votes("notice", "text")
        assert examined.quarantined["reasons"].to_pylist() == [TIED] * 2
        assert len(examined.valid) == 0

    def test_who_labels_again_has_one_vote(self) -> None:
        again = {"id": "x", "text": "same", "label": "notice", "annotator": "who 0", **LATER}
        others = [{"id": "x", "text": "same", "label": "text", "annotator": who} for who in ("who 0", "who 1")]
        last = {"id": "x", "text": "same", "label": "notice", "annotator": "who 2", **LATER}
        examined = check_against_plain_python(sound_rows(*others, again, last), PLAIN)
        assert examined.valid["label"].to_pylist() == ["notice"]
        assert examined.agreement is not None and examined.agreement.num_annotators == 3

    def test_votes_on_an_older_text_do_not_count(self) -> None:
        old = [{"id": "x", "text": "before", "label": "notice", "annotator": who} for who in ("a", "b")]
        new = {"id": "x", "text": "after", "label": "text", "annotator": "a", **LATER}
        examined = check_against_plain_python(sound_rows(*old, new), PLAIN)
        assert examined.valid["label"].to_pylist() == ["text"]


class TestEqualTexts:
    def test_which_one_stays_is_the_one_that_the_split_puts_first(self) -> None:
        rows = sound_rows(*[{"text": "same", "group": group} for group in ("z", "b", "m")])
        firsts = {seed: min("zbm", key=lambda group, seed=seed: unit_hash(seed, "split", group)) for seed in range(3)}
        assert len(set(firsts.values())) > 1, "seeds that agree prove nothing"
        for seed, first in firsts.items():
            for order in (rows, rows[::-1]):
                assert examples.examine(table(order), PLAIN, "b", seed).valid["group"].to_pylist() == [first]

    @pytest.mark.parametrize(
        ("column", "settings", "one", "other"),
        [
            ("label", {}, "text", "notice"),
            ("labels", {"multi_label": True}, ["text"], ["notice", "text"]),
            (
                "spans",
                {"task": "token_classification"},
                [{"start": 0, "end": 2, "label": "text"}],
                [{"start": 0, "end": 3, "label": "text"}],
            ),
        ],
        ids=["label", "labels", "spans"],
    )
    def test_contradicting_targets_are_quarantined_all(self, column: str, settings: dict[str, Any], one: Any, other: Any) -> None:
        chosen = ExamplesSettings(label="kind", labels=["notice", "text"], **settings)
        rows = sound_rows(*[{"text": "same", column: target} for target in (one, other, one)], {column: one})
        examined = check_against_plain_python(rows, chosen)
        assert examined.quarantined["reasons"].to_pylist() == ["equal text with another label"] * 3
        assert len(examined.valid) == 1
        assert set(examined.left_out["why"].to_pylist()) == {"conflicting"}
        assert examined.left_out[column].to_pylist() == [one, other, one], "other batches learn what they may contradict"

    def test_labels_in_another_order_are_no_contradiction(self) -> None:
        chosen = ExamplesSettings(label="kind", multi_label=True)
        rows = sound_rows({"text": "same", "labels": ["a", "b"]}, {"text": "same", "labels": ["b", "a"]})
        assert len(check_against_plain_python(rows, chosen.model_copy(update={"labels": ["a", "b"]})).valid) == 1


class Stages:
    """The data stages of a small project, one batch a delivery."""

    def __init__(self, project: projects.Project):
        self.project, self.store = project, Store(str(project.home / "store"))
        self.use_case = project.use_case()
        self.labeled: dict[str, Manifest] = {}
        self.tokenized: dict[str, Manifest] = {}

    def deliver(self, file: str, rows: list[dict[str, Any]], second: int) -> tuple[Any, Any]:
        """Deliver a file, take its batch through the stages and return (valid, quarantined) rows."""
        path = self.project.deliver(file, rows)
        os.utime(path, (1_700_000_000 + second, 1_700_000_000 + second))
        [batch] = documents.cut_batches(self.store, "letters", self.project.documents, self.use_case.settings.documents)
        raw = documents.keep(self.store, self.use_case, batch.name)
        valid, quarantined = examples.validate(self.store, self.use_case, raw)
        self.labeled[batch.name], self.tokenized[batch.name] = valid, chunks.tokenize(self.store, self.use_case, valid)
        read = [pq.read_table(self.store.folder(m) / f) for m, f in ((valid, "examples.parquet"), (quarantined, "quarantined.parquet"))]
        return read[0], read[1]

    def snapshot_labels(self) -> dict[str, str]:
        """Return the label of each id in a snapshot over everything delivered."""
        taken = snapshot.take(self.store, self.use_case, self.labeled, self.tokenized)
        index = pq.read_table(self.store.folder(taken) / "index.parquet")
        return dict(zip(index["id"].to_pylist(), index["label"].to_pylist(), strict=True))


@pytest.fixture
def stages(project: projects.Project) -> Stages:
    every_row = {"near_duplicate_similarity": 1.0, "max_heldout_rows_per_group": 1_000, "min_rows_per_label": 1}
    project.configure(snapshot=every_row)
    return Stages(project)


class TestMendedDelivery:
    @pytest.mark.parametrize("file", ["delivery-1.jsonl", "mended.jsonl"], ids=["same-file", "other-file"])
    def test_a_mended_row_leaves_quarantine(self, stages: Stages, file: str) -> None:
        rows = projects.licence_rows(400)
        sick = [{**rows[0], "kind": "poem"}, {**rows[1], "text": ""}, *rows[2:]]
        valid, quarantined = stages.deliver("delivery-1.jsonl", sick, 0)
        assert quarantined.select(["id", "source", "row", "reasons"]).to_pylist() == [
            {"id": rows[0]["id"], "source": "delivery-1.jsonl", "row": 1, "reasons": "unknown label"},
            {"id": rows[1]["id"], "source": "delivery-1.jsonl", "row": 2, "reasons": "empty text"},
        ]
        before = stages.snapshot_labels()
        assert not before.keys() & {rows[0]["id"], rows[1]["id"]}
        mended = rows if file == "delivery-1.jsonl" else rows[:2]
        valid, quarantined = stages.deliver(file, mended, 10)
        assert len(quarantined) == 0
        assert {rows[0]["id"], rows[1]["id"]} <= set(valid["id"].to_pylist())
        after = stages.snapshot_labels()
        assert after == before | {row["id"]: row["kind"] for row in rows[:2]}

    @pytest.mark.parametrize("annotators", [None, ("ann", "bob")], ids=["two-ids", "two-annotators"])
    def test_a_settled_contradiction_leaves_quarantine(self, stages: Stages, annotators: tuple[str, str] | None) -> None:
        rows = projects.licence_rows(400)
        one, other = ({**rows[0], "kind": kind} for kind in ("notice", "text"))
        if annotators is None:
            other = {**other, "id": "another id"}
        else:
            one, other = {**one, "annotator": annotators[0]}, {**other, "annotator": annotators[1]}
        _, quarantined = stages.deliver("delivery-1.jsonl", [one, other, *rows[1:]], 0)
        assert quarantined["reasons"].to_pylist() == ([TIED] if annotators else ["equal text with another label"]) * 2
        before = stages.snapshot_labels()
        assert rows[0]["id"] not in before
        settled = {**other, "kind": "notice"} if annotators is None else {**one, "annotator": "referee"}
        stages.deliver("settled.jsonl", [settled], 10)
        assert stages.snapshot_labels() == before | {settled["id"]: "notice"}

    def test_a_broken_redelivery_does_not_shadow_the_good_row(self, stages: Stages) -> None:
        rows = projects.licence_rows(400)
        stages.deliver("delivery-1.jsonl", rows, 0)
        before = stages.snapshot_labels()
        _, quarantined = stages.deliver("correction.jsonl", [{**rows[0], "kind": "poem"}, {"text": "a new one", "kind": "tag"}], 10)
        assert quarantined["id"].to_pylist() == [rows[0]["id"]]
        assert stages.snapshot_labels().items() >= before.items()
