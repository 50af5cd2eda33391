"""examples: of rows with one id or one text the right one counts, and rows that were fixed leave
quarantine.
"""

import os
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of
from tests import project as projects
from tests.test_examples import PLAIN, Seen, check_against_plain_python, sound_rows, table, within

pytestmark = pytest.mark.quick

LATER: dict[str, Any] = {"source": "b.csv", "delivered_ns": 2}


def seen(rows: list[dict[str, Any]], settings: ExamplesSettings = PLAIN) -> Seen:
    """Return what rows are to each other, after a check that their batch counts the same and keeps
    them all.
    """
    examined = check_against_plain_python(rows, settings)
    assert len(examined.valid) == len(rows)
    return within(examined.valid, task_of(settings).target)


def rows_of(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


class TestOneRowAnId:
    def test_the_newest_delivery_counts_wherever_it_is(self) -> None:
        rows = sound_rows(
            {"id": "x", "label": "notice", **LATER},
            {"id": "x"},
            {"id": "x", "delivered_ns": 0, "source": "z.csv"},
        )
        for order in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
            assert [order[n]["source"] for n in rows_of(~seen(order).superseded)] == ["b.csv"]

    def test_twice_in_one_file_is_reported_and_the_last_counts(self) -> None:
        rows = sound_rows({"id": "x"}, {"id": "x"}, {"id": "y"}, {"id": "y", **LATER})
        assert rows_of(seen(rows).twice_in_a_file) == [0]
        assert rows_of(seen(rows).superseded) == [0, 2]

    def test_what_is_superseded_repeats_and_contradicts_nothing(self) -> None:
        rows = sound_rows(
            {"id": "x", "text": "same"},
            {"id": "x", "text": "other"},
            {"id": "y", "text": "same", "label": "notice"},
        )
        found = seen(rows)
        assert rows_of(found.superseded) == [0]
        assert not found.contradicting.any() and not found.repeated.any()


class TestAnnotators:
    def votes(self, *labels: str) -> Seen:
        given = [
            {"id": "x", "text": "same", "label": label, "annotator": f"who {n}"}
            for n, label in enumerate(labels)
        ]
        return seen(sound_rows(*given))

    def test_the_newest_row_with_the_majoritys_answer_counts(self) -> None:
        found = self.votes("notice", "text", "notice")
        assert found.votes.outvoted.tolist() == [0, 1] and not len(found.votes.tied)
        assert found.votes.answers == ["notice", "text", "notice"]

    def test_a_tie_contradicts_every_row_with_its_text(self) -> None:
        found = self.votes("notice", "text")
        assert found.votes.tied.tolist() == [0, 1]
        assert rows_of(found.contradicting) == [0, 1]

    def test_who_labels_again_has_one_vote(self) -> None:
        again = {"id": "x", "text": "same", "label": "notice", "annotator": "who 0", **LATER}
        others = [
            {"id": "x", "text": "same", "label": "text", "annotator": who} for who in ("who 0", "who 1")
        ]
        last = {"id": "x", "text": "same", "label": "notice", "annotator": "who 2", **LATER}
        rows = sound_rows(*others, again, last)
        found = seen(rows)
        assert (rows_of(found.superseded), sorted(found.votes.outvoted.tolist())) == ([0], [1, 2])
        agreement = examples.examine(table(rows), PLAIN, "b").agreement
        assert agreement is not None and agreement.num_annotators == 3

    def test_votes_on_an_older_text_do_not_count(self) -> None:
        old = [{"id": "x", "text": "before", "label": "notice", "annotator": who} for who in ("a", "b")]
        new = {"id": "x", "text": "after", "label": "text", "annotator": "a", **LATER}
        found = seen(sound_rows(*old, new))
        assert (rows_of(found.superseded), len(found.votes.voters)) == ([0, 1], 0)


class TestEqualTexts:
    @pytest.mark.parametrize(
        ("column", "settings", "one", "other"),
        [
            ("label", {}, "text", "notice"),
            ("labels", {"task": "multi_label"}, ["text"], ["notice", "text"]),
            (
                "spans",
                {"task": "token_classification"},
                [{"start": 0, "end": 2, "label": "text"}],
                [{"start": 0, "end": 3, "label": "text"}],
            ),
        ],
        ids=["label", "labels", "spans"],
    )
    def test_all_rows_of_a_text_with_several_targets_contradict_each_other(
        self, column: str, settings: dict[str, Any], one: Any, other: Any
    ) -> None:
        chosen = ExamplesSettings(label="kind", labels=["notice", "text"], **settings)
        rows = sound_rows(*[{"text": "same", column: target} for target in (one, other, one)], {column: one})
        found = seen(rows, chosen)
        assert (rows_of(found.contradicting), rows_of(found.repeated)) == ([0, 1, 2], [])

    def test_labels_in_another_order_are_no_contradiction(self) -> None:
        chosen = ExamplesSettings(label="kind", task="multi_label", labels=["a", "b"])
        found = seen(
            sound_rows({"text": "same", "labels": ["a", "b"]}, {"text": "same", "labels": ["b", "a"]}), chosen
        )
        assert (rows_of(found.contradicting), rows_of(found.repeated)) == ([], [1])


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
        [batch] = documents.cut_batches(
            self.store, "letters", self.project.documents, self.use_case.settings.documents
        )
        raw = documents.keep(self.store, self.use_case, batch.name)
        valid, quarantined = examples.validate(self.store, self.use_case, raw)
        self.labeled[batch.name], self.tokenized[batch.name] = (
            valid,
            chunks.tokenize(self.store, self.use_case, valid),
        )
        read = [
            pq.read_table(self.store.folder(m) / f)
            for m, f in ((valid, "examples.parquet"), (quarantined, "quarantined.parquet"))
        ]
        return read[0], read[1]

    def snapshot_labels(self) -> dict[str, str]:
        """Return the label of each id in a snapshot over everything delivered."""
        taken = snapshot.take(self.store, self.use_case, self.labeled, self.tokenized)
        index = pq.read_table(self.store.folder(taken) / "index.parquet")
        return dict(zip(index["id"].to_pylist(), index["label"].to_pylist(), strict=True))


@pytest.fixture
def stages(project: projects.Project) -> Stages:
    every_row = {
        "max_heldout_rows_per_group": 1_000,
        "min_rows_per_label": 1,
    }
    project.configure(snapshot=every_row)
    return Stages(project)


class TestFixedDelivery:
    @pytest.mark.parametrize("file", ["delivery-1.jsonl", "fixed.jsonl"], ids=["same-file", "other-file"])
    @pytest.mark.heavy
    def test_a_fixed_row_leaves_quarantine(self, stages: Stages, file: str) -> None:
        rows = projects.licence_rows(400)
        sick = [{**rows[0], "kind": "poem"}, {**rows[1], "text": ""}, *rows[2:]]
        valid, quarantined = stages.deliver("delivery-1.jsonl", sick, 0)
        assert quarantined.select(["id", "source", "row", "reasons"]).to_pylist() == [
            {"id": rows[0]["id"], "source": "delivery-1.jsonl", "row": 1, "reasons": "unknown label"},
            {"id": rows[1]["id"], "source": "delivery-1.jsonl", "row": 2, "reasons": "empty text"},
        ]
        before = stages.snapshot_labels()
        assert not before.keys() & {rows[0]["id"], rows[1]["id"]}
        fixed = rows if file == "delivery-1.jsonl" else rows[:2]
        valid, quarantined = stages.deliver(file, fixed, 10)
        assert len(quarantined) == 0
        assert {rows[0]["id"], rows[1]["id"]} <= set(valid["id"].to_pylist())
        after = stages.snapshot_labels()
        assert after == before | {row["id"]: row["kind"] for row in rows[:2]}

    @pytest.mark.heavy
    @pytest.mark.parametrize("annotators", [None, ("ann", "bob")], ids=["two-ids", "two-annotators"])
    def test_a_settled_contradiction_is_used_again(
        self, stages: Stages, annotators: tuple[str, str] | None
    ) -> None:
        rows = projects.licence_rows(400)
        one, other = ({**rows[0], "kind": kind} for kind in ("notice", "text"))
        if annotators is None:
            other = {**other, "id": "another id"}
        else:
            one, other = {**one, "annotator": annotators[0]}, {**other, "annotator": annotators[1]}
        valid, quarantined = stages.deliver("delivery-1.jsonl", [one, other, *rows[1:]], 0)
        assert (len(valid), len(quarantined)) == (len(rows) + 1, 0)
        before = stages.snapshot_labels()
        assert rows[0]["id"] not in before
        settled = {**other, "kind": "notice"} if annotators is None else {**one, "annotator": "referee"}
        stages.deliver("settled.jsonl", [settled], 10)
        assert stages.snapshot_labels() == before | {settled["id"]: "notice"}
