"""snapshot, whatever arrives in which order and in which batches: the same rows give the same snapshot, and
what was held out never trains.

Deliveries of real texts are drawn with what happens to them later: corrections, moves to other groups,
copies, labels that contradict, rows that break, files delivered again without some rows. They go through the
rules of each batch, as they would in a run. Each batch keeps all its valid rows; the snapshot decides over
all.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.frozen import freeze
from fullft_assets import examples
from fullft_assets.documents.reading import schema
from fullft_assets.errors import GateError
from fullft_assets.settings import ExamplesSettings, SnapshotSettings
from fullft_assets.snapshot import Frozen
from fullft_assets.snapshot.ledger import EMPTY, Ledger
from fullft_assets.snapshot.near_text import pairs as near_texts
from fullft_assets.store.hashing import text_hash, unit_hash
from tests import prepared, project as projects
from tests.machine import printed_by
from tests.test_snapshot import ORDER, TESTS, TRAINS, similar_pairs

SEED = 1
SETTINGS = SnapshotSettings(
    min_train_rows=20,
    test_share=0.25,
    validation_share=0.25,
    min_rows_per_label=1,
    max_heldout_rows_per_group=3,
)
EXAMPLES = ExamplesSettings(label="kind", group="expression", labels=["notice", "reference"])
#: In no licence.
TEXT = "these few words are about nothing that any licence says"
NUM_FILES, ROWS_A_FILE = 6, 25


@dataclass(frozen=True)
class File:
    """One delivery of a file: its rows are `(id, text, label, group)`, and the `annotator` where there is
    one.
    """

    path: str
    delivered_ns: int
    rows: tuple[tuple[str | None, ...], ...] = field(repr=False)

    def documents(self) -> list[dict[str, Any]]:
        names = ("id", "text", "label", "group", "annotator")
        place = {"source": self.path, "delivered_ns": self.delivered_ns}
        return [
            {**dict(zip(names, row, strict=False)), **place, "row": n}
            for n, row in enumerate(self.rows, start=1)
        ]


Batch = tuple[File, ...]


@cache
def examined(batch: Batch) -> examples.Examined:
    """Validate a batch; equal batches of several snapshots once."""
    return examples.examine(
        pa.Table.from_pylist([row for file in batch for row in file.documents()], schema=schema()),
        EXAMPLES,
        "b",
    )


def snapshot_of(batches: list[Batch], ledger: Ledger = EMPTY) -> Frozen:
    found = {f"{n:05}": examined(batch) for n, batch in enumerate(batches)}
    files = {f"{n:05}": {file.path: file.delivered_ns for file in batch} for n, batch in enumerate(batches)}
    return freeze({name: batch.valid for name, batch in found.items()}, files, SETTINGS, SEED, ledger=ledger)


def texts_of(batches: list[Batch], frozen: Frozen) -> list[str]:
    """Return the text that each row of the index is read with."""
    stored = {f"{n:05}": examined(batch).valid["text"] for n, batch in enumerate(batches)}
    return [stored[place["batch"]][place["position"]].as_py() for place in frozen.places.to_pylist()]


@cache
def base() -> tuple[File, ...]:
    """Real texts of two labels, each once."""
    unique = {
        row["text"]: row
        for row in projects.licence_rows(1_000)
        if row["kind"] in EXAMPLES.labels and len(row["text"]) < 2_000
    }
    rows = [(row["id"], row["text"], row["kind"], row["expression"]) for row in unique.values()][
        : NUM_FILES * ROWS_A_FILE
    ]
    return tuple(
        File(f"file-{n}.jsonl", 1, tuple(rows[n * ROWS_A_FILE : (n + 1) * ROWS_A_FILE]))
        for n in range(NUM_FILES)
    )


@cache
def near_copies() -> File:
    """Long texts, each once in a group that is held out and, nearly the same, in one that would train."""
    long = [row for file in base() for row in file.rows if len(row[1]) > 300][:3]
    groups = (("held out", TESTS), ("would train", TRAINS))
    return File(
        "near.jsonl",
        1,
        tuple(
            (f"{row[0]} {said}", f"{row[1]} {said}", row[2], group) for row in long for said, group in groups
        ),
    )


@cache
def others() -> list[str]:
    """Real texts that are not in `base`, no two of which begin alike."""
    texts = [
        row["text"] for row in projects.licence_rows(2_000, skip=2_000) if 300 < len(row["text"]) < 2_000
    ]
    return list({text[:40]: text for text in texts}.values())


@cache
def quotes() -> File:
    """Long texts in groups that are held out and, inside longer ones, in others that would train; and the
    other way round.
    """
    rows = []
    for number, (text, *around) in enumerate(zip(*[iter(others()[:12])] * 3, strict=True)):
        groups = (TESTS, TRAINS) if number % 2 else (TRAINS, TESTS)
        rows += [
            (f"quoted {number}", text, "notice", groups[0]),
            (f"quotes {number}", f" {text} ".join(around), "notice", groups[1]),
        ]
    return File("quotes.jsonl", 1, tuple(rows))


ROWS = st.integers(0, NUM_FILES * ROWS_A_FILE - 1)


@st.composite
def changed_rows(draw: st.DrawFn) -> tuple[str | None, ...]:
    """A row that came before, by its own id or another's, with its own text or another's, label, group and
    annotator as they come.
    """
    known = [row for file in base() for row in file.rows]
    id_, text, label, group = known[draw(ROWS)]
    other = known[draw(ROWS)]
    text = draw(st.sampled_from([text, text, other[1], f"{text} amended", f"wholly rewritten {id_}"]))
    label = draw(st.sampled_from([label, label, label, "notice", "reference", "no known label"]))
    group = draw(st.sampled_from([group, group, other[3], TRAINS, TESTS, None]))
    annotator = draw(st.sampled_from([None, None, "ann", "bob"]))
    return draw(st.sampled_from([id_, id_, f"copy-{id_}", other[0]])), text, label, group, annotator


@st.composite
def later_files(draw: st.DrawFn, number: int) -> File:
    """A file of changed rows, or an older one delivered again with some rows changed or gone."""
    rows = draw(st.lists(changed_rows(), min_size=1, max_size=5))
    # Times may tie: then the names decide.
    if draw(st.booleans()):
        return File(f"later-{number}.jsonl", 2 + number // 2, tuple(rows))
    old = base()[draw(st.integers(0, NUM_FILES - 1))]
    gone = draw(st.sets(st.integers(0, ROWS_A_FILE - 1), max_size=4))
    return File(old.path, 100 + number, (*(row for n, row in enumerate(old.rows) if n not in gone), *rows))


@st.composite
def deliveries(draw: st.DrawFn) -> list[File]:
    return [*base(), near_copies(), *(draw(later_files(number)) for number in range(draw(st.integers(1, 4))))]


@st.composite
def cuts(draw: st.DrawFn, files: list[File]) -> list[Batch]:
    """Cut files into batches: any files in any order, each file at most once a batch."""
    batches: dict[int, list[File]] = defaultdict(list)
    for file in draw(st.permutations(files)):
        number = draw(st.integers(0, 2))
        while any(file.path == other.path for other in batches[number]):
            number += 3
        batches[number].append(file)
    return [tuple(batch) for batch in batches.values() if batch]


def test_groups_are_where_the_tests_need_them() -> None:
    assert unit_hash(SEED, "split", TESTS) < SETTINGS.test_share < 0.5 < unit_hash(SEED, "split", TRAINS)


def assert_nothing_leaks(frozen: Frozen, texts: list[str]) -> None:
    """Check that no id, text or group is in two splits and that no row is near to one of a split that goes
    before its own, by comparing all pairs.
    """
    assert next(check for check in frozen.checks if check.name == "splits_are_disjoint").passed
    rows = frozen.index.to_pylist()
    of_split = {split: [n for n, row in enumerate(rows) if row["split"] == split] for split in ORDER}
    for first, second in combinations(ORDER, 2):
        for name in ("id", "text_hash", "group"):
            assert {rows[n][name] for n in of_split[first]}.isdisjoint(
                rows[n][name] for n in of_split[second]
            ), name
        held_out, others = ([texts[n] for n in of_split[split]] for split in (first, second))
        assert similar_pairs(held_out, others, near_texts.SIMILARITY) == [], (first, second)


class TestAnyCut:
    @pytest.mark.slow
    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_gives_the_same_snapshot(self, data: st.DataObject) -> None:
        files = data.draw(deliveries())
        alone = snapshot_of([(file,) for file in files])
        cut = data.draw(cuts(files))
        found = snapshot_of(cut)
        assert [text_hash(text) for text in texts_of(cut, found)] == found.index["text_hash"].to_pylist()
        assert_nothing_leaks(found, texts_of(cut, found))
        assert found.index.equals(alone.index) and found.labels == alone.labels
        assert {**found.metadata, "num_batches": None} == {
            **alone.metadata,
            "num_batches": None,
        }, "what is left out is counted alike"
        assert found.num_breaking == alone.num_breaking
        assert sum(len(examined(batch).valid) for batch in cut) == len(found.index) + sum(
            found.metadata["left_out"].values()
        ), "rows are accounted for"
        assert found.checks == alone.checks and found.agreement == alone.agreement


class TestNearRows:
    def test_few_texts_read_at_a_time_give_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batches: list[Batch] = [base(), (near_copies(), quotes())]
        whole = snapshot_of(batches)
        assert whole.metadata["left_out"]["train rows near a test row"] >= 3
        assert whole.metadata["left_out"]["train rows that contain a test row or are inside one"] >= 3
        monkeypatch.setattr(near_texts, "_READ_SHINGLES", 100)
        monkeypatch.setattr(near_texts, "_JOINED_ROWS", 50)
        few = snapshot_of(batches)
        assert few.index.equals(whole.index) and few.metadata == whole.metadata

    def test_a_text_inside_many_others_is_not_looked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(near_texts, "MAX_ROWS", 3)
        text, *around = sorted(others()[20:40], key=len)[:9:2]
        quoting = [(f"r{n}", f"{before} {text}", "notice", TRAINS) for n, before in enumerate(around)]
        first = File("first.jsonl", 1, (("quoted", text, "notice", TESTS), quoting[0]))
        more = File("more.jsonl", 1, tuple(quoting[1:]))
        trained = [
            "r0" in snapshot_of([base(), *((file,) for file in delivered)]).index["id"].to_pylist()
            for delivered in ([first], [first, more])
        ]
        assert trained == [False, True]


def partitions(files: tuple[File, ...]) -> Iterator[list[Batch]]:
    """Every way to cut files into batches."""
    if not files:
        yield []
        return
    first, *rest = files
    for cut in partitions(tuple(rest)):
        yield [(first,), *cut]
        yield from (
            [(first, *batch) if n == at else batch for n, batch in enumerate(cut)] for at in range(len(cut))
        )


class TestAnnotators:
    """Several annotators' answers of one id count alike, whichever of them share a batch."""

    @pytest.mark.parametrize(
        ("answers", "voted"),
        [
            ([("ann", "notice"), ("bob", "notice"), ("cat", "reference")], "notice"),
            ([("ann", "notice"), ("bob", "reference"), ("cat", "notice"), ("dan", "reference")], None),
            # Of each annotator the newest answer counts.
            ([("ann", "reference"), ("bob", "reference"), ("ann", "notice"), ("cat", "notice")], "notice"),
            # Who has no name corrects all who came before.
            ([("ann", "notice"), ("bob", "notice"), (None, "reference")], "reference"),
        ],
        ids=["majority", "tie", "changed", "settled"],
    )
    def test_vote_over_all_batches(self, answers: list[tuple[str | None, str]], voted: str | None) -> None:
        files = tuple(
            File(f"{n}.jsonl", 5 + n, (("x", TEXT, label, "g", who),))
            for n, (who, label) in enumerate(answers)
        )
        for more in ((), (File("copy.jsonl", 5, (("y", TEXT, voted or "notice", "z"),)),)):
            found = [snapshot_of([base(), *cut, *((file,) for file in more)]) for cut in partitions(files)]
            labels = {
                row["label"] for row in found[0].index.to_pylist() if row["text_hash"] == text_hash(TEXT)
            }
            assert labels == ({voted} if voted else set()), "a tie contradicts a copy as well"
            assert all(each.index.equals(found[0].index) for each in found)

    def test_of_rows_with_the_answer_of_most_the_newest_counts(self) -> None:
        labels = {"ann": "notice", "bob": "reference", "cat": "notice"}
        files = tuple(File(f"{who}.jsonl", 5, (("x", TEXT, labels[who], "g", who),)) for who in labels)
        frozen = snapshot_of([base(), files])
        places = zip(frozen.index["id"].to_pylist(), frozen.places["source"].to_pylist(), strict=True)
        assert [source for id_, source in places if id_ == "x"] == ["cat.jsonl"]

    def test_answers_about_an_older_text_do_not_count(self) -> None:
        files = tuple(File(f"{who}.jsonl", 5, (("x", TEXT, "notice", "g", who),)) for who in ("ann", "bob"))
        newer = File("newer.jsonl", 6, (("x", f"{TEXT}, amended", "reference", "g", "ann"),))
        rows = snapshot_of([base(), files, (newer,)]).index.to_pylist()
        assert [row["label"] for row in rows if row["id"] == "x"] == ["reference"]

    def test_it_is_in_the_metadata_and_is_judged_by_a_check(self, tmp_path: Path) -> None:
        prepared.write_tiny_model(tmp_path / "model")
        examined = {"severities": {"annotators_agree": "warn"}}
        project = projects.create(
            tmp_path, rows=400, base_model="model", documents={"max_batch_files": 1}, examples=examined
        )
        for n, who in enumerate(("ann", "bob")):
            labels = [("notice", "reference"), ("reference", "notice"), ("text", "text")]
            rows = [
                {
                    "id": f"x{i}",
                    "text": f"{TEXT} {i}",
                    "kind": said[n],
                    "annotator": who,
                    "expression": f"e{i}",
                }
                for i, said in enumerate(labels)
            ]
            project.deliver(f"{who}.jsonl", rows)
        taken = prepared.take(project).snapshot
        assert len(taken.metadata["parts"]) == 3 and taken.metadata["kappa"] == pytest.approx(0.0, abs=1e-9)
        assert taken.metadata["kappa_per_label"] == pytest.approx(
            {"notice": -0.5, "reference": -0.5, "text": 1.0}
        )
        check = taken.check("annotators_agree")
        assert (check.passed, check.severity, check.metadata["num_items"]) == (False, "warn", 3)
        ties = taken.check("equal_texts_have_equal_labels")
        assert (ties.passed, ties.severity, ties.metadata) == (False, "warn", {"num_failed": 4})

    def test_a_rule_on_row_identity_has_the_severity_that_the_yaml_gives_it_in_the_snapshot(
        self, tmp_path: Path
    ) -> None:
        prepared.write_tiny_model(tmp_path / "model")
        severities = {"equal_texts_have_equal_labels": "error", "texts_are_unique": "off"}
        project = projects.create(tmp_path, rows=400, base_model="model", examples={"severities": severities})
        rows = [
            {"id": id_, "text": TEXT, "kind": kind} for id_, kind in (("x", "notice"), ("y", "reference"))
        ]
        for n, row in enumerate(rows):
            project.deliver(f"later-{n}.jsonl", [row])
        taken = prepared.take(project).snapshot
        check = taken.check("equal_texts_have_equal_labels")
        assert (check.passed, check.severity, check.metadata) == (False, "error", {"num_failed": 2})
        assert {"texts_are_unique", "annotators_agree"}.isdisjoint(each.name for each in taken.checks)
        with pytest.raises(GateError, match="equal_texts_have_equal_labels"):
            taken.require_green("training")


class TestRowsOfOneBatch:
    """Which rows of a batch count depends on what arrives later in other ones."""

    def rows(self, *batches: Batch) -> dict[str, dict[str, Any]]:
        batches_ = [base(), *batches]
        frozen = snapshot_of(batches_)
        return {
            row["id"]: {**row, "text": text}
            for row, text in zip(frozen.index.to_pylist(), texts_of(batches_, frozen), strict=True)
        }

    def test_a_contradiction_that_is_corrected_is_used_again(self) -> None:
        both = (File("a.jsonl", 5, (("x", TEXT, "notice", "g"), ("y", TEXT, "reference", "g"))),)
        assert not {"x", "y"} & self.rows(both).keys()
        found = self.rows(both, (File("b.jsonl", 6, (("y", TEXT, "notice", "g"),)),))
        # Of the two that agree now the first stays.
        assert (found["x"]["text"], found["x"]["label"]) == (TEXT, "notice") and "y" not in found

    def test_an_older_version_of_another_file_counts_when_the_newer_one_is_withdrawn(self) -> None:
        versions = (
            File("a.jsonl", 5, (("x", TEXT, "notice", "g"),)),
            File("b.jsonl", 6, (("x", "a wholly other text", "notice", "g"),)),
        )
        assert self.rows(versions, (File("b.jsonl", 7, ()),))["x"]["text"] == TEXT

    def test_a_row_that_breaks_in_a_new_delivery_of_its_file_is_out_until_it_is_repaired(self) -> None:
        first = base()[0]
        id_, text, _, group = first.rows[3]
        broken = File(first.path, 5, (*first.rows[:3], (id_, text, "no known label", group), *first.rows[4:]))
        assert id_ in self.rows() and id_ not in self.rows((broken,))
        assert id_ in self.rows((broken,), (File(first.path, 6, first.rows),))


class TestKilled:
    def stages(self, project: projects.Project, folder: Path, *seeds: int) -> dict[str, Any]:
        line = ("-m", "tests.killed_stages", project.yaml_path, folder, *seeds)
        return json.loads(
            printed_by(*line, env=project.env() | {"TOKENIZERS_PARALLELISM": "false"}, timeout=300)
        )

    @pytest.mark.slow
    def test_at_any_moment_and_run_again_gives_the_same_digests(self, tmp_path: Path) -> None:
        project = projects.create(tmp_path / "project", rows=0, documents={"max_batch_files": 2})
        for number in range(4):
            project.deliver(f"delivery-{number}.jsonl", projects.licence_rows(80, skip=80 * number))
        found = self.stages(project, tmp_path, *range(6))
        assert (
            len(found["whole"]["training_snapshot"]) == 1
            and [killed["digests"] for killed in found["killed"]] == [found["whole"]] * 6
        )
        assert sum(killed["num_kills"] for killed in found["killed"]) >= 12
