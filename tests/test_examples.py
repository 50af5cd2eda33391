"""examples: rows in = valid + quarantined, for every task; the rules count what plain Python counts."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fullft_assets import chunks, documents, examples
from fullft_assets.documents.aliases import alias
from fullft_assets.documents.reading import schema
from fullft_assets.errors import GateError
from fullft_assets.examples import identity
from fullft_assets.examples.rules import GATE_OF_GROUPS, GATES, IDENTITY_RULES, REASONS, ROLES, WARNINGS
from fullft_assets.settings import RULES, ExamplesSettings
from fullft_assets.store import CheckOutcome, Store
from fullft_assets.store.hashing import text_hash
from fullft_assets.task import task_of
from tests import project as projects
from tests.licence_delivery import EXAMPLES, Delivery

pytestmark = pytest.mark.quick

Row = dict[str, Any]
GERMAN = "Der Lizenznehmer darf die Software nur unter den folgenden Bedingungen weitergeben und verändern."
ENGLISH = "The licensee may copy, modify and distribute the software under the terms of this licence."
#: What each text that the property test draws is to the rules: said by hand, not computed.
DAMAGED = ("dÃ©jÃ\xa0 cafÃ©", "a \ufffd\ufffd b")
PERSONAL = ("mail jo@example.org now",)
FOREIGN = (GERMAN,)
TEXTS = ("", "  \n", "ab", "one", "two", "three", "x" * 300, ENGLISH, *DAMAGED, *PERSONAL, *FOREIGN)

COMMON: dict[str, Any] = {
    "languages": ["en"],
    "pii": "quarantine",
    "group": "g",
}
LABELLED: dict[str, Any] = {
    **COMMON,
    "label": "kind",
    "labels": ["notice", "text"],
}
SETTINGS = {
    "classification": ExamplesSettings(**LABELLED),
    "multi_label": ExamplesSettings(**LABELLED, task="multi_label"),
    "token_classification": ExamplesSettings(**LABELLED, task="token_classification"),
    "sft": ExamplesSettings(**COMMON, task="sft"),
    "language_modeling": ExamplesSettings(**COMMON, task="language_modeling"),
}


def table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema())


def target_of(row: Row, settings: ExamplesSettings) -> Any:
    if settings.task == "token_classification":
        return tuple(sorted((s["start"], s["end"], s["label"]) for s in row["spans"]))
    if settings.task == "multi_label":
        return frozenset(row["labels"])
    if settings.task == "classification":
        return row["label"]
    return ""


def broken_rules(row: Row, settings: ExamplesSettings) -> set[str]:
    """The rules on single rows that a row breaks: the definition that Great Expectations is held to."""
    if row["problem"] is not None:
        return {"rows_are_well_formed"}
    text, blank = row["text"], row["text"] is None or not row["text"].strip()
    broken = {
        "texts_are_present": blank,
        "text_lengths_are_in_bounds": (not blank and len(text) > settings.max_characters),
        "languages_are_expected": text is not None and any(foreign in text for foreign in FOREIGN),
        "encodings_are_intact": (
            text is not None
            and (any(damaged in text for damaged in DAMAGED) or text.count("\ufffd") > 0.01 * len(text))
        ),
        "personal_data_is_absent": text is not None and any(personal in text for personal in PERSONAL),
    }
    if settings.task == "sft":
        turns = row["messages"] or []
        said = [turn for turn in turns if turn["role"] == "assistant"]
        broken["assistant_turns_are_present"] = (
            not said
            or any(turn["role"] not in ROLES for turn in turns)
            or any(not (turn["content"] or "").strip() for turn in said)
        )
    if settings.task in ("classification", "multi_label", "token_classification"):
        column = (
            "spans"
            if settings.task == "token_classification"
            else "labels"
            if settings.task == "multi_label"
            else "label"
        )
        target = row[column]
        names = (
            [target] if column == "label" else [s["label"] if column == "spans" else s for s in target or []]
        )
        broken["labels_are_present"] = target is None or not all(names)
        broken["labels_are_known"] = any(name and name not in settings.labels for name in names)
    if settings.task == "token_classification":
        size = len(text or "")
        broken["spans_are_in_range"] = any(
            s["start"] < 0 or s["end"] <= s["start"] or s["end"] > size for s in row["spans"] or []
        )
    return {rule for rule, breaks in broken.items() if breaks}


def content_of(row: Row) -> str:
    turns = row["messages"]
    return row["text"] if turns is None else json.dumps([(t["role"], t["content"]) for t in turns])


class Expected:
    """What becomes of each row, and what the valid ones are to each other, decided one by one in plain
    Python.
    """

    def __init__(self, rows: list[Row], settings: ExamplesSettings):
        self.rows, self.settings = rows, settings
        self.broken = {n: rules for n, row in enumerate(rows) if (rules := broken_rules(row, settings))}
        self.superseded: set[int] = set()
        self.in_file: set[int] = set()
        self.merged: set[int] = set()
        self.tied: set[int] = set()
        self.conflicting: set[int] = set()
        self.repeated: set[int] = set()
        ids = defaultdict(list)
        for n in self.valid:
            ids[rows[n]["id"]].append(n)
        for same in ids.values():
            self._one_row_an_id(same)
        self._equal_texts([n for n in self.valid if n not in self.superseded | self.merged])

    def _rank(self, n: int) -> tuple[int, str, int]:
        row = self.rows[n]
        return row["delivered_ns"], row["source"], row["row"]

    def _one_row_an_id(self, same: list[int]) -> None:
        newest = max(same, key=self._rank)
        votes: dict[str, int] = {}
        if self.rows[newest]["annotator"] is not None:
            for n in sorted(same, key=self._rank):
                if self.rows[n]["annotator"] is not None and content_of(self.rows[n]) == content_of(
                    self.rows[newest]
                ):
                    votes[self.rows[n]["annotator"]] = n
        stays = set(votes.values()) if len(votes) > 1 else {newest}
        self.superseded |= set(same) - stays
        self.in_file |= {
            n for n in set(same) - stays if self.rows[n]["source"] == self.rows[newest]["source"]
        }
        counts = Counter(target_of(self.rows[n], self.settings) for n in stays)
        leading = [target for target, count in counts.items() if count == max(counts.values())]
        if len(leading) > 1:
            self.tied |= stays
        else:
            elected = max(
                (n for n in stays if target_of(self.rows[n], self.settings) == leading[0]), key=self._rank
            )
            self.merged |= stays - {elected}

    def _equal_texts(self, left: list[int]) -> None:
        texts = defaultdict(list)
        for n in left:
            texts[content_of(self.rows[n])].append(n)
        for same in texts.values():
            if len({target_of(self.rows[n], self.settings) for n in same}) > 1 or self.tied & set(same):
                self.conflicting |= set(same) - self.tied
                continue
            self.repeated |= set(same) - {min(same)}

    @property
    def counts(self) -> dict[str, int]:
        """Rows that break each rule, by rule."""
        found = Counter(rule for rules in self.broken.values() for rule in rules)
        found["ids_are_unique"] = len(self.in_file)
        found["texts_are_unique"] = len(self.repeated)
        found["equal_texts_have_equal_labels"] = len(self.conflicting | self.tied)
        return found

    @cached_property
    def reasons(self) -> dict[int, list[str]]:
        """The reasons of each quarantined row, in the rules' order."""
        return {n: [REASONS[rule] for rule in REASONS if rule in rules] for n, rules in self.broken.items()}

    @property
    def valid(self) -> list[int]:
        """Rows that are left."""
        return [n for n in range(len(self.rows)) if n not in self.broken]


def places(found: pa.Table) -> list[tuple[str, int]]:
    return [(row["source"], row["row"]) for row in found.select(["source", "row"]).to_pylist()]


@dataclass(frozen=True)
class Seen:
    """What rows are to each other: masks, and the votes."""

    superseded: np.ndarray
    twice_in_a_file: np.ndarray
    contradicting: np.ndarray
    repeated: np.ndarray
    votes: identity.Votes


def within(valid: pa.Table, target: str | None) -> Seen:
    rows = identity.IdentityRows.of(valid.select(identity.COLUMNS))
    is_current, in_file = np.ones(len(rows), bool), np.zeros(len(rows), bool)
    versions = identity.Versions.of(rows, is_current)
    votes = identity.Votes.of(rows, versions, target)
    superseded = identity.superseded(rows, versions, votes)
    in_file[identity.twice_in_a_file(versions, superseded)] = True
    is_current &= ~superseded
    is_current[votes.outvoted] = False
    contradicting = identity.contradicting(rows, is_current, votes.tied, target)
    repeated = identity.repeated(rows, is_current & ~contradicting)
    return Seen(superseded, in_file, contradicting, repeated, votes)


def check_against_plain_python(rows: list[Row], settings: ExamplesSettings) -> examples.Examined:
    examined = examples.examine(table(rows), settings, "00001-test")
    expected = Expected(rows, settings)
    checks = {check.name: check for check in examined.checks}
    for rule in REASONS:
        if rule in checks:
            assert checks[rule].metadata == {
                "num_rows": len(rows),
                "num_failed": expected.counts.get(rule, 0),
            }, rule
            assert checks[rule].passed == (not expected.counts.get(rule)), rule
    assert {rule for rule in expected.counts if expected.counts[rule]} <= {*checks, *IDENTITY_RULES}
    seen = within(examined.valid, task_of(settings).target)
    counted = dict(
        zip(IDENTITY_RULES, (seen.twice_in_a_file, seen.repeated, seen.contradicting), strict=True)
    )
    assert {rule: int(mask.sum()) for rule, mask in counted.items()} == {
        rule: expected.counts[rule] for rule in IDENTITY_RULES
    }
    named = {(rows[n]["source"], rows[n]["row"]): reasons for n, reasons in expected.reasons.items()}
    found = examined.quarantined.select(["source", "row", "reasons"]).to_pylist()
    assert {(row["source"], row["row"]): row["reasons"].split("; ") for row in found} == named
    assert places(examined.valid) == [(rows[n]["source"], rows[n]["row"]) for n in expected.valid]
    assert len(rows) == len(examined.valid) + len(examined.quarantined)
    assert checks["rows_are_accounted_for"].passed
    return examined


NAMES = st.sampled_from(["notice", "text", "poem", ""])
SPANS = st.lists(
    st.fixed_dictionaries({"start": st.integers(-1, 5), "end": st.integers(-1, 6), "label": NAMES}),
    max_size=2,
).map(lambda spans: sorted(spans, key=lambda s: (s["start"], s["end"], s["label"])))
TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from([*ROLES, "critic"]),
            "content": st.sampled_from(["one", "two", "", ENGLISH, *PERSONAL]),
        }
    ),
    max_size=3,
)
TARGETS: dict[str, st.SearchStrategy[Row]] = {
    "classification": st.fixed_dictionaries({"label": st.none() | NAMES}),
    "multi_label": st.fixed_dictionaries({"labels": st.none() | st.lists(NAMES, max_size=2, unique=True)}),
    "token_classification": st.fixed_dictionaries({"spans": st.none() | SPANS}),
    "sft": st.fixed_dictionaries({"messages": st.none() | TURNS}),
    "language_modeling": st.just({}),
}
ABOUT = {
    "id": st.sampled_from(["a", "b", "c", "d"]),
    "group": st.sampled_from([None, "g", "h"]),
    "annotator": st.sampled_from([None, "x", "y", "z"]),
    "problem": st.sampled_from([None, None, None, None, "not JSON"]),
    "source": st.sampled_from(["a.csv", "b.csv", "c.csv"]),
}
# Most draws are sound, so that what rows do to each other is seen too.
MOSTLY_SOUND = {**ABOUT, "problem": st.none()}


@st.composite
def deliveries(draw: Callable[..., Any], task: str) -> list[Row]:
    """Rows of a batch of up to three files, as the documents stage may hand them on."""
    about = draw(st.sampled_from([ABOUT, MOSTLY_SOUND]))
    text = st.none() | st.sampled_from(TEXTS) if about is ABOUT else st.sampled_from(["one", "two", ENGLISH])
    row = st.tuples(st.fixed_dictionaries({**about, "text": text}), TARGETS[task]).map(
        lambda parts: parts[0] | parts[1]
    )
    rows = draw(st.lists(row, max_size=20))
    times = draw(st.fixed_dictionaries({source: st.integers(1, 2) for source in ("a.csv", "b.csv", "c.csv")}))
    blank = dict.fromkeys(schema().names)
    for number, made in enumerate(rows, start=1):
        made |= {"row": number, "delivered_ns": times[made["source"]]}
        if task == "sft":
            turns = made["messages"]
            made["text"] = None if turns is None else "\n\n".join(turn["content"] for turn in turns)
    return [blank | made for made in rows]


@pytest.mark.heavy
class TestAnyDelivery:
    @pytest.mark.parametrize("task", SETTINGS)
    def test_nothing_is_lost_and_each_row_is_where_plain_python_says(self, task: str) -> None:
        # Rows are few and named, so that a failure is read as it was drawn: shrinking would take minutes.
        @settings(
            max_examples=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.reuse, Phase.generate),
        )
        @given(rows=deliveries(task), data=st.data())
        def check(rows: list[Row], data: st.DataObject) -> None:
            examined = check_against_plain_python(data.draw(st.permutations(rows)), SETTINGS[task])
            in_order = Expected(rows, SETTINGS[task])
            valid = [(rows[n]["source"], rows[n]["row"]) for n in in_order.valid]
            assert sorted(places(examined.valid)) == sorted(valid), "the order of arrival decides nothing"

        check()


def sound_rows(*changes: Row, **same: Any) -> list[Row]:
    """Rows of classification that break no rule, apart from their changes."""
    base = dict.fromkeys(schema().names) | {"label": "text", "source": "a.csv", "delivered_ns": 1} | same
    return [
        base | {"id": str(n), "text": f"text number {n}", "row": n} | change
        for n, change in enumerate(changes, start=2)
    ]


PLAIN = ExamplesSettings(label="kind", labels=["notice", "text"])


def check_of(rows: list[Row], name: str, settings: ExamplesSettings = PLAIN) -> CheckOutcome:
    return next(c for c in examples.examine(table(rows), settings, "00001-test").checks if c.name == name)


class TestUnknownLabels:
    def test_they_are_named_beside_those_of_the_yaml(self) -> None:
        check = check_of(
            sound_rows({}, *[{"label": "tag"}] * 3, *[{"label": "reference"}] * 2),
            "quarantined_share_is_bounded",
        )
        assert (
            check.description
            == "batch 00001-test: 5 of 6 rows quarantined, most often: unknown label (`tag` 3, `reference` 2;"
            " examples.labels has notice, text); add them to examples.labels, or fix the source and"
            " deliver it again, or raise examples.max_quarantined_share"
        )

    def test_a_field_of_texts_is_not_quoted(self) -> None:
        check = check_of(
            sound_rows({}, *[{"label": "a text that somebody took for a label"}] * 3),
            "quarantined_share_is_bounded",
        )
        assert "most often: unknown label; fix the source" in check.description


class TestRowChecks:
    def test_a_red_one_names_the_first_places_and_the_fix(self) -> None:
        check = check_of(sound_rows(*[{}] * 4, *[{"text": ""}] * 7), "texts_are_present")
        assert check.severity == "warn"
        assert (
            check.description
            == f"7 of 11 rows quarantined (empty text): {alias('a.csv')}:6, {alias('a.csv')}:7,"
            f" {alias('a.csv')}:8, {alias('a.csv')}:9, {alias('a.csv')}:10 and 2 more; fix them in the"
            " source and deliver the file again"
        )

    @pytest.mark.parametrize(
        "broken",
        [{"problem": "not JSON"}, {"label": None}, {"label": "poem"}],
        ids=lambda broken: next(iter(broken)),
    )
    def test_a_broken_newest_delivery_does_not_shadow_the_good_one(self, broken: Row) -> None:
        rows = sound_rows({"id": "x"}, {"id": "x", "delivered_ns": 2, "source": "b.csv", **broken})
        examined = check_against_plain_python(rows, PLAIN)
        assert places(examined.valid) == [("a.csv", 2)]
        assert places(examined.quarantined) == [("b.csv", 3)]

    def test_masked_personal_data_is_counted_and_gone(self) -> None:
        masking = PLAIN.model_copy(update={"pii": "mask"})
        rows = sound_rows({"text": "write to jo@example.org"}, {})
        examined = examples.examine(table(rows), masking, "b")
        check = next(c for c in examined.checks if c.name == "personal_data_is_absent")
        assert (check.passed, check.metadata) == (True, {"num_rows": 2, "num_failed": 0, "num_masked": 1})
        assert examined.valid["text"].to_pylist() == ["write to [EMAIL]", "text number 3"]
        assert examined.valid["text_hash"][0].as_py() == text_hash("write to [EMAIL]")


class TestBatchChecks:
    def balance(self, *labels: str, **changes: Any) -> CheckOutcome:
        rows = sound_rows(*[{"label": label} for label in labels])
        return check_of(rows, "labels_are_balanced", ExamplesSettings(label="kind", **changes))

    def test_a_rare_label_is_named_with_its_share(self) -> None:
        check = self.balance(*["text"] * 199, "notice")
        assert (check.passed, check.severity) == (False, "warn")
        assert check.metadata == {"num_labels": 2, "num_rare_labels": 1, "smallest_share": 0.005}
        assert check.description == "rarer than 1%: `notice` 0.50%; deliver more of them"

    def test_spans_count_one_by_one(self) -> None:
        spans = [{"start": 0, "end": 4, "label": "NAME"}] * 199 + [{"start": 5, "end": 6, "label": "PLACE"}]
        rows = sound_rows(*[{"spans": spans}] * 100, label=None)
        check = check_of(
            rows,
            "labels_are_balanced",
            ExamplesSettings(task="token_classification", label="s"),
        )
        assert (check.passed, check.metadata["smallest_share"]) == (False, 0.005)

    def test_too_large_a_share_of_quarantined_rows_blocks_the_batch(self) -> None:
        def gate(num_bad: int) -> CheckOutcome:
            return check_of(
                sound_rows(*[{}] * 5, *[{"label": None}] * num_bad), "quarantined_share_is_bounded"
            )

        assert gate(5).passed and not gate(6).passed
        assert gate(6).severity == "error"
        assert "6 of 11 rows quarantined, most often: no label" in gate(6).description


class TestSeverities:
    def checks(self, **severities: str) -> dict[str, CheckOutcome]:
        chosen = ExamplesSettings(label="kind", labels=["notice", "text"], severities=severities)
        return {
            c.name: c
            for c in examples.examine(table(sound_rows({"label": "poem"}, {}, {})), chosen, "b").checks
        }

    def test_the_yaml_says_how_severe_a_rule_is(self) -> None:
        assert self.checks()["labels_are_known"].severity == "warn"
        assert self.checks(labels_are_known="error")["labels_are_known"].severity == "error"
        assert "labels_are_known" not in self.checks(labels_are_known="off")

    def test_what_only_the_snapshot_decides_is_no_check_of_a_batch(self) -> None:
        names = {"texts_are_unique", "equal_texts_have_equal_labels", "ids_are_unique", "annotators_agree"}
        rows = sound_rows({"text": "same"}, {"text": "same"}, {"text": "same", "label": "notice"})
        for severities in ({}, dict.fromkeys(names - {"annotators_agree"}, "error")):
            examined = examples.examine(
                table(rows), ExamplesSettings(label="kind", severities=severities), "b"
            )
            assert len(examined.valid) == 3
            assert names.isdisjoint(check.name for check in examined.checks)


def test_the_documentation_names_every_rule() -> None:
    section = (
        (Path(__file__).parents[1] / "docs/data/rules.md")
        .read_text()
        .partition("## Rules")[2]
        .partition("\n## ")[0]
    )
    named = [
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(named) == sorted([*RULES, *GATES, *GATE_OF_GROUPS, *WARNINGS])


class TestTheKnownReason:
    """A red check says what is wrong with the rows, and names the key where the settings are likelier wrong
    than each row.
    """

    def problems(self, *problems: str | None) -> list[Row]:
        return sound_rows(
            *({"problem": problem} | ({"text": None} if problem else {}) for problem in problems)
        )

    def test_the_commonest_problem_is_quoted_without_its_places(self) -> None:
        rows = self.problems(
            None, "no field `text`", *(f"not JSON: Extra data: line 1 column {n} (char {n})" for n in (3, 7))
        )
        check = check_of(rows, "rows_are_well_formed")
        assert (
            check.description == "3 of 4 rows quarantined (malformed row, most often: not JSON: Extra data):"
            f" {alias('a.csv')}:3, {alias('a.csv')}:4, {alias('a.csv')}:5; fix them in the source and"
            " deliver the file again"
        )
        gate = check_of(rows, "quarantined_share_is_bounded")
        assert (
            "3 of 4 rows quarantined, most often: malformed row (not JSON: Extra data); fix the source"
            in gate.description
        )

    def test_a_field_that_no_row_has_names_the_key(self) -> None:
        rows = self.problems(*["no field `body`"] * 3)
        for name in ("rows_are_well_formed", "quarantined_share_is_bounded"):
            description = check_of(rows, name).description
            assert "no field `body`" in description
            assert (
                "no row has this field: if another one holds the text, name it in documents.text; else fix"
                in description
            )
        assert (
            "documents.text"
            not in check_of(
                self.problems("no field `body`", "not a JSON object"), "rows_are_well_formed"
            ).description
        )

    def test_a_label_that_no_row_has_names_the_key(self) -> None:
        rows = sound_rows(*[{"label": None}] * 3)
        for name in ("labels_are_present", "quarantined_share_is_bounded"):
            assert (
                "no row has a value in the field `kind`: if another one holds the label, name it in"
                " examples.label" in (check_of(rows, name).description)
            )
        assert (
            "examples.label"
            not in check_of(sound_rows({}, {"label": None}), "labels_are_present").description
        )


class TestBatchWithoutAValidRow:
    @pytest.mark.parametrize(("was_read", "passed"), [(True, True), (False, False)])
    def test_files_that_were_read_and_hold_no_rows_are_no_failure(self, was_read: bool, passed: bool) -> None:
        gate = next(
            check
            for check in examples.examine(table([]), PLAIN, "b", any_file_was_read=was_read).checks
            if check.name == "quarantined_share_is_bounded"
        )
        assert gate.passed == passed
        assert (
            passed
            or gate.description
            == "batch b: not one of its files was read; fix the source and deliver it again"
        )

    @pytest.mark.parametrize(
        ("content", "finding"),
        [
            (
                '{"text": ""}\n{"text": "a", "kind": "poem"}\n{half\n',
                "3 of 3 rows quarantined, most often: empty text",
            ),
        ],
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
        assert pq.read_table(store.folder(quarantined) / "quarantined.parquet")["row"].to_pylist() == list(
            range(1, num_rows + 1)
        )
        assert valid.metadata["num_rows"] == quarantined.metadata["num_quarantined"] == num_rows
        with pytest.raises(GateError) as refused:
            chunks.tokenize(store, use_case, valid)
        assert (
            str(refused.value)
            == "tokenized_chunks refused: labeled_examples.quarantined_share_is_bounded is red: "
            f"batch {batch.name}: {finding}; fix the source and deliver it again"
        )
        assert not (Path(store.url) / "letters/tokenized_chunks").exists()


def test_validated_twice_is_found_and_a_lost_quarantine_is_made_again(project: projects.Project) -> None:
    store, use_case = Store(str(project.home / "store")), project.use_case()
    project.deliver(
        "delivery-1.jsonl", [*projects.licence_rows(20), {"id": "bare", "text": "a text without a label"}]
    )
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
    assert quarantined.metadata["uri"] == str(project.documents)


@pytest.mark.heavy
@pytest.mark.parametrize("task", SETTINGS)
@pytest.mark.parametrize("rows", [[], [{}, {"label": "text", "labels": ["text"]}]], ids=["empty", "rows"])
def test_all_tasks_have_one_schema(task: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This one."}]
    found = examples.examine(
        table(sound_rows(*({"messages": turns, "spans": [], "group": "g"} | row for row in rows))),
        SETTINGS[task],
        "b",
    )
    examples.write_examples(found.valid, tmp_path / "examples.parquet")
    stored = pq.read_schema(tmp_path / "examples.parquet")
    expected = [field for field in schema() if field.name != "problem"]
    assert [(field.name, field.type) for field in stored] == [
        *((field.name, field.type) for field in expected),
        ("text_hash", pa.string()),
    ]


@pytest.mark.heavy
class TestRealDelivery:
    def test_each_count_equals_an_independent_one(self, licence_delivery: Delivery) -> None:
        rows = licence_delivery.raw.to_pylist()
        assert len(rows) == 30_692
        expected = Expected(rows, EXAMPLES)
        checks = {check.name: check for check in licence_delivery.examined.checks}
        for rule in REASONS:
            if rule in checks:
                assert checks[rule].metadata == {
                    "num_rows": len(rows),
                    "num_failed": expected.counts.get(rule, 0),
                }, rule
        dirt = ("rows_are_well_formed", "texts_are_present", "labels_are_present", "labels_are_known")
        assert all(expected.counts[rule] for rule in dirt), (
            "the delivery is not dirty enough to prove anything"
        )
        valid = [row for n, row in enumerate(rows) if n not in expected.reasons]
        assert places(licence_delivery.examined.valid) == [(row["source"], row["row"]) for row in valid]
        assert licence_delivery.examined.label_counts == Counter(row["label"] for row in valid)
        smallest = min(Counter(row["label"] for row in valid).values()) / len(valid)
        assert checks["labels_are_balanced"].metadata["smallest_share"] == pytest.approx(smallest)

    def test_each_quarantined_row_is_on_the_line_that_it_names(self, licence_delivery: Delivery) -> None:
        folder = licence_delivery.folder / "documents"
        lines = {
            path.name: path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            for path in folder.iterdir()
        }
        examined = licence_delivery.examined
        assert len(examined.valid) + len(examined.quarantined) == sum(map(len, lines.values()))
        for row in examined.quarantined.to_pylist():
            line = lines[row["source"]][row["row"] - 1]
            if row["reasons"].startswith("malformed row"):
                assert line == '{"id": "cut-off", "source": "Licensed under th'
                continue
            record = json.loads(line)
            assert (record["id"], record["source"]) == (row["id"], row["text"])
            for reason, suffix in (
                ("empty text", "-empty"),
                ("unknown label", "-odd"),
                ("no label", "-bare"),
            ):
                assert (reason in row["reasons"]) == record["id"].endswith(suffix), row
