"""examples: rows in = valid + quarantined, for every task; the rules count what plain Python counts."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from fullft_assets import chunks, examples
from fullft_assets.documents.reading import schema
from fullft_assets.errors import GateError
from fullft_assets.examples.rules import GATE_OF_GROUPS, GATES, REASONS, ROLES
from fullft_assets.settings import RULES, ExamplesSettings
from fullft_assets.store import CheckOutcome, Store
from fullft_assets.store.hashing import text_hash
from tests import project as projects
from tests.prepared import validate

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


class Expected:
    """What becomes of each row, decided one by one in plain Python."""

    def __init__(self, rows: list[Row], settings: ExamplesSettings):
        self.rows, self.settings = rows, settings
        self.broken = {n: rules for n, row in enumerate(rows) if (rules := broken_rules(row, settings))}

    @property
    def counts(self) -> dict[str, int]:
        """Rows that break each rule, by rule."""
        return Counter(rule for rules in self.broken.values() for rule in rules)

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
    assert {rule for rule in expected.counts if expected.counts[rule]} <= {*checks}
    named = {(rows[n]["source"], rows[n]["row"]): reasons for n, reasons in expected.reasons.items()}
    found = examined.quarantined.select(["source", "row", "reasons"]).to_pylist()
    assert {(row["source"], row["row"]): row["reasons"] for row in found} == named
    assert places(examined.valid) == [(rows[n]["source"], rows[n]["row"]) for n in expected.valid]
    assert len(rows) == len(examined.valid) + len(examined.quarantined)
    assert checks["rows_are_accounted_for"].passed
    return examined


def test_reasons_that_an_earlier_release_joined_are_read() -> None:
    assert examples.reasons_of(pa.table({"reasons": ["no label; empty text", "no label"]})) == [
        ["no label", "empty text"],
        ["no label"],
    ]


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
@pytest.mark.parametrize("task", SETTINGS)
def test_nothing_is_lost_and_each_row_is_where_plain_python_says(task: str) -> None:
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


def check_of(rows: list[Row], name: str) -> CheckOutcome:
    return next(c for c in examples.examine(table(rows), PLAIN, "00001-test").checks if c.name == name)


@pytest.mark.parametrize(
    ("names", "description"),
    [
        (
            [*["tag"] * 3, *["reference"] * 2],
            "5 of 6 rows quarantined, most often: unknown label (`tag` 3, `reference` 2; examples.labels has"
            " notice, text); add them to examples.labels, or fix",
        ),
        (
            ["a text that somebody took for a label"] * 3,
            "3 of 4 rows quarantined, most often: unknown label; fix",
        ),
    ],
    ids=["labels", "texts"],
)
def test_unknown_labels_are_named_beside_those_of_the_yaml_and_texts_are_not(
    names: list[str], description: str
) -> None:
    assert check_of(
        sound_rows({}, *({"label": name} for name in names)), "quarantined_share_is_bounded"
    ).description == (
        f"batch 00001-test: {description} the source and deliver it again, or raise"
        " examples.max_quarantined_share"
    )


def test_masked_personal_data_is_counted_and_gone() -> None:
    examined = examples.examine(
        table(sound_rows({"text": "write to jo@example.org"}, {})),
        PLAIN.model_copy(update={"pii": "mask"}),
        "b",
    )
    check = next(c for c in examined.checks if c.name == "personal_data_is_absent")
    assert (check.passed, check.metadata) == (True, {"num_rows": 2, "num_failed": 0, "num_masked": 1})
    assert examined.valid["text"].to_pylist() == ["write to [EMAIL]", "text number 3"]
    assert examined.valid["text_hash"][0].as_py() == text_hash("write to [EMAIL]")


def test_too_large_a_share_of_quarantined_rows_blocks_the_batch() -> None:
    def gate(num_bad: int) -> CheckOutcome:
        return check_of(sound_rows(*[{}] * 5, *[{"label": None}] * num_bad), "quarantined_share_is_bounded")

    assert gate(5).passed and not gate(6).passed
    assert gate(6).severity == "error"
    assert "6 of 11 rows quarantined, most often: no label" in gate(6).description


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
    assert sorted(named) == sorted([*RULES, *GATES, *GATE_OF_GROUPS])


class TestBatchWithoutAValidRow:
    @pytest.mark.parametrize(("was_read", "passed"), [(True, True), (False, False)])
    def test_files_that_were_read_and_hold_no_rows_are_no_failure(self, was_read: bool, passed: bool) -> None:
        gate = next(
            check
            for check in examples.examine(table([]), PLAIN, "b", any_file_was_read=was_read).checks
            if check.name == "quarantined_share_is_bounded"
        )
        assert gate.passed == passed
        assert passed or gate.description.startswith("batch b: not one ")

    def test_it_is_kept_with_its_quarantine_its_gate_is_red_and_chunks_refuse(
        self, project: projects.Project
    ) -> None:
        store, use_case = Store(str(project.home / "store")), project.use_case()
        (project.documents / "delivery-1.jsonl").write_text(
            '{"text": ""}\n{"text": "a", "kind": "poem"}\n{half\n'
        )
        _, valid, quarantined = validate(store, use_case)
        assert len(pq.read_table(store.folder(valid) / "examples.parquet")) == 0
        assert pq.read_table(store.folder(quarantined) / "quarantined.parquet")["row"].to_pylist() == [
            1,
            2,
            3,
        ]
        assert valid.metadata["num_rows"] == quarantined.metadata["num_quarantined"] == 3
        with pytest.raises(GateError) as refused:
            chunks.tokenize(store, use_case, valid)
        assert str(refused.value).startswith(
            "tokenized_chunks refused: labeled_examples.quarantined_share_is_bounded is red: "
            f"batch {valid.metadata['batch']}: 3 of 3 rows quarantined, most often: empty text; "
        )
        assert not (Path(store.url) / "letters/tokenized_chunks").exists()


def test_validated_twice_is_found_and_a_lost_quarantine_is_made_again(project: projects.Project) -> None:
    store, use_case = Store(str(project.home / "store")), project.use_case()
    project.deliver(
        "delivery-1.jsonl", [*projects.licence_rows(20), {"id": "bare", "text": "a text without a label"}]
    )
    raw, *first = validate(store, use_case)
    assert [*examples.validate(store, use_case, raw)] == first
    (store.folder(first[1]) / "quarantined.parquet").unlink()
    valid, quarantined = examples.validate(store, use_case, raw)
    assert valid == first[0]
    assert quarantined.ref != first[1].ref
    assert quarantined.content_digest == first[1].content_digest
    assert quarantined.metadata["reasons"] == {"no label": 1}
    assert quarantined.metadata["uri"] == str(project.documents)
