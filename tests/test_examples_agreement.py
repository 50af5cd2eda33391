"""examples: kappa is that of a reference that counts pair by pair."""

import json
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st

from fullft_assets import examples
from fullft_assets.examples.agreement import Agreement, measure
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import CheckOutcome
from tests.test_examples import sound_rows, table

pytestmark = pytest.mark.quick

LABELS = ("fact", "opinion", "other")


def of_items(items: list[dict[str, Any]]) -> list[tuple[int, str, Any]]:
    """Ratings (item, annotator, label) of items given as {annotator: label}."""
    return [(n, who, label) for n, item in enumerate(items) for who, label in item.items()]


def fleiss(items: list[list[str]]) -> float:
    """Fleiss' kappa by its definition: every pair of ratings of an item, every pair of draws from the shares
    of the labels.
    """
    items = [item for item in items if len(item) > 1]
    observed = sum(
        sum(a == b for a, b in combinations(item, 2)) / len(list(combinations(item, 2))) for item in items
    ) / len(items)
    shares = {label: sum(item.count(label) / len(item) for item in items) / len(items) for label in LABELS}
    expected = sum(shares[a] * shares[b] for a, b in product(LABELS, LABELS) if a == b)
    return (observed - expected) / (1 - expected)


def test_who_rates_again_counts_once() -> None:
    items = [1, 1, 1, 2, 2, 3, 3]
    found = measure(
        zip(
            items,
            ["ann", "bob", "ann", "ann", "bob", "bob", "bob"],
            ["no", "yes", "yes", "no", "no", "no", "yes"],
            strict=True,
        )
    )
    assert (found.kappa, found.num_items) == (1, 2)


@pytest.mark.parametrize(
    ("items", "kappa"),
    [([], "nothing"), ([{"ann": "a"}, {"bob": "b"}], "nothing"), ([{"ann": "a", "bob": "a"}], None)],
)
def test_without_two_ratings_or_two_labels_there_is_no_kappa(items: list[dict[str, str]], kappa: Any) -> None:
    found = measure(of_items(items))
    assert ("nothing" if found is None else found.kappa) == kappa


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(
        st.dictionaries(st.sampled_from("abcde"), st.sampled_from(LABELS), min_size=1),
        min_size=2,
        max_size=12,
    )
)
def test_kappa_is_that_of_the_definition(items: list[dict[str, str]]) -> None:
    used = [item for item in items if len(item) > 1]
    assume(len({label for item in used for label in item.values()}) > 1)
    found = measure(of_items(items))
    assert found.num_items == len(used)
    assert found.kappa == pytest.approx(fleiss([list(item.values()) for item in used]))
    for label in {label for item in used for label in item.values()}:
        split = [[LABELS[0] if given == label else LABELS[1] for given in item.values()] for item in used]
        assert found.label_kappas[label] == pytest.approx(fleiss(split))


class TestOfABatch:
    def examine(self, rows: list[dict[str, Any]], **changes: Any) -> tuple[Agreement | None, CheckOutcome]:
        chosen = ExamplesSettings.model_validate(
            {"label": "kind", "severities": {"annotators_agree": "warn"}, **changes}
        )
        examined = examples.examine(table(rows), chosen, "b")
        return examined.agreement, next(c for c in examined.checks if c.name == "annotators_agree")

    def answers(self, *given: Any, id: str = "x", **same: Any) -> dict[str, Any]:
        as_text = [label if isinstance(label, str) else json.dumps(label) for label in given]
        return {
            "id": id,
            "annotations": [{"annotator": f"who {n}", "label": label} for n, label in enumerate(as_text)],
            **same,
        }

    def test_answers_in_one_row_and_rows_of_several_annotators_count_alike(self) -> None:
        pairs = [("text", "text"), ("text", "notice"), ("notice", "notice"), ("notice", "notice")]
        together = sound_rows(*[self.answers(a, b, id=str(n), label=a) for n, (a, b) in enumerate(pairs)])
        apart = sound_rows(
            *[
                {"id": f"id {n}", "text": f"text {n}", "label": label, "annotator": f"who {k}"}
                for n, p in enumerate(pairs)
                for k, label in enumerate(p)
            ]
        )
        expected = measure(of_items([{"ann": a, "bob": b} for a, b in pairs])).kappa
        for rows in (together, apart):
            found, check = self.examine(rows)
            assert (found.kappa, found.num_items) == (pytest.approx(expected), 4)
            assert check.metadata == {"num_items": 4, "kappa": found.kappa}

    def test_poor_agreement_names_the_labels_and_the_fix(self) -> None:
        pairs = [("text", "notice"), ("notice", "text"), ("text", "text"), ("tag", "tag")]
        _, check = self.examine(
            sound_rows(*[self.answers(a, b, id=str(n), label=a) for n, (a, b) in enumerate(pairs)])
        )
        assert (check.passed, check.severity) == (False, "warn")
        assert ", least on `notice` -0.33, `text` 0.00, `tag` 1.00; " in check.description

    def test_nobody_twice_is_nothing_to_judge(self) -> None:
        found, check = self.examine(sound_rows({}, {}))
        assert (found, check.passed, check.metadata, check.description) == (
            None,
            True,
            {"num_items": 0},
            "no text was labelled by two annotators",
        )

    def test_what_was_superseded_does_not_count(self) -> None:
        old = self.answers("text", "notice", label="text")
        new = self.answers("text", "text", label="text", source="b.csv", delivered_ns=2)
        found, _ = self.examine(
            sound_rows(old, new, *[self.answers("notice", "notice", id="y", label="notice")])
        )
        assert (found.kappa, found.num_items) == (1, 2)
