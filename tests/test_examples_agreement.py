"""examples: kappa is scikit-learn's for two annotators, and for more that of a reference that counts pair by
pair.
"""

import json
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from fullft_assets import examples
from fullft_assets.examples.agreement import Agreement, measure, measure_sets
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import CheckOutcome
from tests.test_examples import sound_rows, table

pytestmark = pytest.mark.quick

LABELS = ("fact", "opinion", "other")
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=2, max_size=30)


def of_items(items: list[dict[str, Any]]) -> list[list[Any]]:
    """Columns (item, annotator, label) of items given as {annotator: label}."""
    rows = [(n, who, label) for n, item in enumerate(items) for who, label in item.items()]
    return [list(column) for column in zip(*rows, strict=True)]


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


class TestTwoAnnotators:
    @pytest.mark.heavy
    @settings(max_examples=60, deadline=None)
    @given(pairs=PAIRS)
    def test_kappa_is_scikit_learns(self, pairs: list[tuple[str, str]]) -> None:
        first, second = zip(*pairs, strict=True)
        assume(len({*first, *second}) > 1)
        found = measure(*of_items([{"ann": a, "bob": b} for a, b in pairs]))
        assert found is not None and found.method == "cohen"
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
        for label in {*first, *second}:
            one, other = ([str(given == label) for given in ratings] for ratings in (first, second))
            assert found.label_kappas[label] == pytest.approx(cohen_kappa_score(one, other))

    def test_who_rates_again_counts_once(self) -> None:
        items, people = [1, 1, 1, 2, 2, 3, 3], ["ann", "bob", "ann", "ann", "bob", "bob", "bob"]
        found = measure(items, people, ["no", "yes", "yes", "no", "no", "no", "yes"])
        assert (found.kappa, found.num_items) == (1, 2)

    @pytest.mark.parametrize(
        ("items", "kappa"),
        [([], "nothing"), ([{"ann": "a"}, {"bob": "b"}], "nothing"), ([{"ann": "a", "bob": "a"}], None)],
    )
    def test_without_two_ratings_or_two_labels_there_is_no_kappa(
        self, items: list[dict[str, str]], kappa: Any
    ) -> None:
        found = measure(*(of_items(items) if items else ([], [], [])))
        assert ("nothing" if found is None else found.kappa) == kappa


class TestMoreAnnotators:
    @settings(max_examples=60, deadline=None)
    @given(
        items=st.lists(
            st.dictionaries(st.sampled_from("abcde"), st.sampled_from(LABELS), min_size=1),
            min_size=2,
            max_size=12,
        )
    )
    def test_kappa_is_that_of_the_definition(self, items: list[dict[str, str]]) -> None:
        used = [item for item in items if len(item) > 1]
        assume(len({who for item in used for who in item}) > 2)
        assume(len({label for item in used for label in item.values()}) > 1)
        found = measure(*of_items(items))
        assert (found.method, found.num_items) == ("fleiss", len(used))
        assert found.kappa == pytest.approx(fleiss([list(item.values()) for item in used]))
        for label in {label for item in used for label in item.values()}:
            split = [[LABELS[0] if given == label else LABELS[1] for given in item.values()] for item in used]
            assert found.label_kappas[label] == pytest.approx(fleiss(split))

    def test_fleiss_own_example(self) -> None:
        # Fleiss 1971, table 1 as Wikipedia prints it: 10 subjects, 14 raters, 5 categories, kappa 0.210.
        counts = [
            "0 0 0 0 14",
            "0 2 6 4 2",
            "0 0 3 5 6",
            "0 3 9 2 0",
            "2 2 8 1 1",
            "7 7 0 0 0",
            "3 2 6 3 0",
            "2 5 3 2 2",
            "6 5 2 1 0",
            "0 2 2 3 7",
        ]
        items = []
        for line in counts:
            given = [f"category {n}" for n, count in enumerate(map(int, line.split())) for _ in range(count)]
            items.append({f"rater {n}": label for n, label in enumerate(given)})
        assert measure(*of_items(items)).kappa == pytest.approx(0.210, abs=5e-4)


def test_sets_agree_label_by_label() -> None:
    sets = [({"a", "b"}, {"a"}), ({"a"}, {"a"}), ({"b"}, {"b"}), ({"b"}, {"a"})]
    found = measure_sets(*of_items([{"ann": sorted(x), "bob": sorted(y)} for x, y in sets]))
    for label in ("a", "b"):
        one, other = zip(*[(label in x, label in y) for x, y in sets], strict=True)
        assert found.label_kappas[label] == pytest.approx(cohen_kappa_score(one, other))
    flat = [[(label in x, label in y) for label in "ab"] for x, y in sets]
    one, other = zip(*[pair for item in flat for pair in item], strict=True)
    assert (found.kappa, found.num_items) == (pytest.approx(cohen_kappa_score(one, other)), 4)


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
        expected = cohen_kappa_score(*zip(*pairs, strict=True))
        for rows in (together, apart):
            found, check = self.examine(rows)
            assert (found.kappa, found.num_items, found.num_annotators) == (pytest.approx(expected), 4, 2)
            assert check.metadata["kappa"] == found.kappa

    def test_poor_agreement_names_the_labels_and_the_fix(self) -> None:
        pairs = [("text", "notice"), ("notice", "text"), ("text", "text"), ("tag", "tag")]
        _, check = self.examine(
            sound_rows(*[self.answers(a, b, id=str(n), label=a) for n, (a, b) in enumerate(pairs)])
        )
        assert (check.passed, check.severity) == (False, "warn")
        assert check.description == (
            "Cohen's kappa 0.20 of 2 annotators on 4 texts is below 0.6, "
            "least on `notice` -0.33, `text` 0.00, `tag` 1.00; sharpen the guideline for these labels"
        )
        assert check.metadata["lowest_label_kappa"] == pytest.approx(-1 / 3)

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
        others = [self.answers("notice", "notice", id="y", label="notice")]
        found, _ = self.examine(sound_rows(old, new, *others))
        assert (found.kappa, found.num_items) == (1, 2)

    def test_spans_agree_word_by_word_also_where_personal_data_is_masked(self) -> None:
        text = "write to jo.with.a.long.name@example.org or to Ann in Rome"
        name, place = (
            {"start": text.index(w), "end": text.index(w) + len(w), "label": label}
            for w, label in (("Ann", "NAME"), ("Rome", "PLACE"))
        )
        row = self.answers(
            [name, place], [name, {**place, "label": "NAME"}], text=text, spans=[name, place], label=None
        )
        found, _ = self.examine(sound_rows(row), task="token_classification", pii="mask")
        words = {
            "write": "",
            "to": "",
            "EMAIL": "",
            "or": "",
            "to ": "",
            "Ann": "NAME",
            "in": "",
            "Rome": "PLACE",
        }
        ann, bob = list(words.values()), [*list(words.values())[:-1], "NAME"]
        assert (found.kappa, found.num_items) == (pytest.approx(cohen_kappa_score(ann, bob)), 1)
        assert found.label_kappas.keys() == {"NAME", "PLACE"}
