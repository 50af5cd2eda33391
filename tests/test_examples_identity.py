"""examples: of rows with one id or one text the right one counts, and rows that were fixed leave
quarantine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fullft_assets import examples
from fullft_assets.examples import identity
from fullft_assets.settings import ExamplesSettings
from fullft_assets.task import task_of
from tests.test_examples import PLAIN, sound_rows, table

pytestmark = pytest.mark.quick

LATER: dict[str, Any] = {"source": "b.csv", "delivered_ns": 2}


@dataclass(frozen=True)
class Seen:
    """What rows are to each other: masks, and the votes."""

    superseded: np.ndarray
    twice_in_a_file: list[int]
    contradicting: np.ndarray
    repeated: np.ndarray
    votes: identity.Votes


def seen(given: list[dict[str, Any]], settings: ExamplesSettings = PLAIN) -> Seen:
    valid = examples.examine(table(given), settings, "b").valid
    assert len(valid) == len(given), "a batch sets none aside"
    rows = identity.IdentityRows.of(valid.select(identity.COLUMNS))
    target = task_of(settings).target
    is_current = np.ones(len(rows), bool)
    versions = identity.Versions.of(rows, is_current)
    votes = identity.Votes.of(rows, versions, target)
    superseded = identity.superseded(rows, versions, votes)
    in_file = identity.twice_in_a_file(versions, superseded).tolist()
    is_current &= ~superseded
    is_current[votes.outvoted] = False
    contradicting = identity.contradicting(rows, is_current, votes.tied, target)
    repeated = identity.repeated(rows, is_current & ~contradicting)
    return Seen(superseded, in_file, contradicting, repeated, votes)


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
        assert seen(rows).twice_in_a_file == [0]
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
        assert agreement is not None and agreement.num_items == 1

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
