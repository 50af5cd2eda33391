"""Erasure over several batches: rows with equal texts, made-up ids, erasures that were cut short, the list
itself.

The data stages alone, without Dagster and without a model: a few hundred milliseconds a test.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import chunks, cli, documents, erasure, examples, snapshot
from fullft_assets.cli import commands
from fullft_assets.erasure import erasing
from fullft_assets.erasure.rewriting import ATTEMPTS, TRACEBACKS
from fullft_assets.errors import GateError, StoreError
from fullft_assets.snapshot import frozen_batches
from fullft_assets.store import MANIFEST, Manifest, Store, disk
from tests import project as projects

CASE = "letters"
SPLITS: tuple[snapshot.SplitName, ...] = ("train", "validation", "test")
PLAIN = {
    "examples": {"label": "kind", "group": None, "labels": None, "max_quarantined_share": 1.0},
    "snapshot": {"min_train_rows": 1, "test_share": 0.2, "validation_share": 0.2},
}


class Batches:
    """A use case's batches, as far as the snapshot."""

    def __init__(self, root: Path, **sections: Any):
        self.project = projects.create(root, CASE, rows=1, **{**PLAIN, **sections})
        (self.project.documents / "delivery-1.jsonl").unlink()
        self.store = Store(str(self.project.home / "store"))
        self.made: dict[str, list[Manifest]] = {}
        self.time = 1_700_000_000

    def deliver(self, name: str, content: str | list[dict]) -> list[Manifest]:
        """Deliver a file and put it through the data stages; return its batch's artifacts."""
        path = self.project.documents / name
        if isinstance(content, str):
            path.write_text(content)
        else:
            projects.write_rows(path, content)
        self.time += 10
        os.utime(path, (self.time, self.time))
        return self.ingest()

    def ingest(self) -> list[Manifest]:
        use_case = self.project.use_case()
        found: list[Manifest] = []
        for batch in documents.cut_batches(
            self.store, CASE, self.project.documents, use_case.settings.documents
        ):
            raw = documents.keep(self.store, use_case, batch.name)
            valid, quarantined = examples.validate(self.store, use_case, raw)
            found = [raw, valid, quarantined]
            with suppress(GateError):  # blocked: no row remains
                found.append(chunks.tokenize(self.store, use_case, valid))
                self.made[batch.name] = found
        return found

    def take(self, **options: Any) -> Manifest:
        valid = {name: self.store.load(made[1].ref) for name, made in self.made.items()}
        tokens = {name: self.store.load(made[3].ref) for name, made in self.made.items()}
        return snapshot.take(self.store, self.project.use_case(), valid, tokens, **options)

    def texts(self, taken: Manifest) -> dict[str, tuple[str, Any]]:
        """Return the text and the chunks of each row of a snapshot, as its readers see them."""
        taken = self.store.load(taken.ref)
        splits = [snapshot.load_split(self.store, taken, name) for name in SPLITS]
        return {
            id_: (text, [list(chunk) for chunk in cut])
            for s in splits
            for id_, text, cut in zip(s.ids, s.texts, s.chunks, strict=True)
        }

    def ids(self, stage: str, file: str) -> set[str]:
        return {
            id_
            for m in self.store.artifacts(CASE, stage)
            for id_ in pq.read_table(self.store.folder(m) / file)["id"].to_pylist()
        }

    def fullft(self, *arguments: str) -> int:
        return cli.main([*arguments, "--defs", str(self.project.root / "my_project" / "defs")])

    def traces(self, *values: str) -> list[str]:
        """Return the files of the store that contain a value, or are named after it."""
        return traces(Path(self.store.url), *values)


def traces(root: Path, *values: str) -> list[str]:
    """Return the files below a folder that contain a value, or are named after it."""
    files = []
    for path in (path for path in root.rglob("*") if path.is_file()):
        is_table = path.suffix == ".parquet"
        content = str(pq.read_table(path).to_pylist()) if is_table else path.read_text(errors="replace")
        if any(value in content or value in path.name for value in values):
            files.append(str(path.relative_to(root)))
    return files


def rows(count: int, skip: int = 0) -> list[dict]:
    """Return licence texts with ids d0, d1, ..., half of them of one kind."""
    texts = sorted({rule["text"] for rule in projects.licence_rows(100_000) if 60 < len(rule["text"]) < 400})[
        skip : skip + count
    ]
    return [{"id": f"d{n}", "text": text, "kind": "ab"[n % 2]} for n, text in enumerate(texts, skip)]


@pytest.fixture(scope="module")
def carried_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Batches, str, str]:
    """Deliver equal texts as X and Y, then rewrite the one that stayed: the other counts with the old
    text.
    """
    batches = Batches(tmp_path_factory.mktemp("carried"))
    delivered = rows(60)
    delivered[10] |= {"id": "Y"}
    batches.deliver("a.jsonl", [*delivered, {**delivered[10], "id": "X"}])
    (stayed,) = {"X", "Y"} & batches.texts(batches.take()).keys()
    new = {
        "id": stayed,
        "text": "a wholly new text of the original with words enough to be its own",
        "kind": "a",
    }
    batches.deliver("b.jsonl", [new, *rows(5, 60)])
    return batches, stayed, "X" if stayed == "Y" else "Y"


@pytest.fixture
def copied(carried_once: tuple[Batches, str, str], tmp_path: Path) -> tuple[Batches, str, str]:
    return again(carried_once[0], tmp_path / "again"), *carried_once[1:]


@pytest.fixture
def batches(copied: tuple[Batches, str, str]) -> Batches:
    return copied[0]


def again(batches: Batches, root: Path) -> Batches:
    shutil.copytree(batches.project.root, root, symlinks=True)
    copy = object.__new__(Batches)
    copy.__dict__ |= batches.__dict__ | {
        "project": projects.Project(root, CASE),
        "store": Store(str(root / ".home" / "store")),
        "made": dict(batches.made),
    }
    return copy


class PowerCut(BaseException):
    """The process ends here."""


def power_cut(*_: Any) -> None:
    raise PowerCut


@contextmanager
def killed_at(store: Store, step: int) -> Iterator[list[str]]:
    """Let the process end before the n-th write or removal, without cleaning up, as SIGKILL does; yield the
    steps so far.
    """
    steps: list[str] = []

    def guarded(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def doing(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            if len(steps) == step:
                patched.setattr(shutil, "rmtree", lambda *_, **__: None)
                raise PowerCut
            return do(*arguments, **options)

        return doing

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "write_bytes", guarded("write", store.write_bytes))
        patched.setattr(store, "remove", guarded("remove", store.remove))
        patched.setattr(store, "remove_folder", guarded("remove_folder", store.remove_folder))
        yield steps


class TestRowsWithEqualTexts:
    def test_they_stay_with_their_text_after_the_erasure_of_another_document(
        self, copied: tuple[Batches, str, str]
    ):
        batches, stayed, copy = copied
        taken = batches.take()
        before = batches.texts(taken)
        assert copy in before
        erasure.erase(batches.store, CASE, ["d2", stayed])
        assert batches.texts(taken) == {
            id_: row for id_, row in before.items() if id_ not in ("d2", stayed)
        } and copy in batches.texts(batches.take())


def test_rows_that_no_snapshot_takes_are_gone_as_well(tmp_path: Path):
    """Quarantined ones, those that contradict each other, older versions, in and over batches, and ties."""
    batches = Batches(tmp_path)
    said = {
        name: f"what the {name} one says is found in no licence at all"
        for name in ("bare", "first", "older", "elder", "tied")
    }
    none = [
        {"id": "bare", "text": said["bare"], "kind": None},
        {"id": "one", "text": said["first"], "kind": "a"},
        {"id": "two", "text": said["first"], "kind": "b"},
        {"id": "three", "text": said["older"], "kind": "a"},
        {"id": "three", "text": f"{said['older']}, once more", "kind": "a"},
        *(
            {"id": "four", "text": said["tied"], "kind": kind, "annotator": who}
            for who, kind in (("ann", "a"), ("bob", "b"))
        ),
        {"id": "five", "text": said["elder"], "kind": "a"},
    ]
    batches.deliver("a.jsonl", [*rows(60), *none])
    batches.deliver(
        "b.jsonl", [{"id": "five", "text": f"{said['elder']}, at last", "kind": "b"}, *rows(5, 60)]
    )
    taken = batches.take()
    before = batches.texts(taken)
    listed = ["bare", "one", "two", "three", "four", "five"]
    words = {text[:30] for text in said.values()}
    assert all(batches.traces(each) for each in words), "they were there"
    assert erasure.erase(batches.store, CASE, listed).missing == []
    assert batches.traces(*words, *(f"'{id_}'" for id_ in listed), *(f'"{id_}"' for id_ in listed)) == []
    assert (
        batches.texts(taken) == {id_: row for id_, row in before.items() if id_ not in listed}
        and len(batches.texts(batches.take())) > 30
    )


class TestCutShort:
    def test_readers_refuse_a_half_done_erasure(self, batches: Batches, monkeypatch: pytest.MonkeyPatch):
        taken = batches.take()
        with monkeypatch.context() as patched:
            patched.setattr(erasing, "drop_from_snapshots", power_cut)
            with pytest.raises(PowerCut):
                erasure.erase(batches.store, CASE, ["d2"])
        with pytest.raises(
            StoreError,
            match=f"was rewritten after .*run `fullft erase {CASE}`",
        ):
            batches.texts(taken)
        erasure.erase(batches.store, CASE, ["d2"])
        assert "d2" not in batches.texts(taken)

    def test_a_batch_that_is_rewritten_while_it_is_read_is_one_line(
        self, batches: Batches, monkeypatch: pytest.MonkeyPatch
    ):
        taken = batches.take()
        read = frozen_batches.read_rows

        def slow(path: Path, column: str, positions: Any) -> Any:
            monkeypatch.undo()
            erasure.erase(batches.store, CASE, ["d2"])
            return read(path, column, positions)

        monkeypatch.setattr(frozen_batches, "read_rows", slow)
        with pytest.raises(StoreError, match="was rewritten after"):
            batches.texts(taken)

    @pytest.mark.slow
    def test_wherever_it_is_killed_the_next_finishes_it(
        self, copied: tuple[Batches, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.0)
        origin, stayed, _ = copied
        taken = origin.take()
        listed = ["d2", stayed]
        before = origin.texts(taken)
        text = before["d2"][0]
        whole = again(origin, tmp_path / "whole")
        with killed_at(whole.store, 0) as steps:
            erasure.erase(whole.store, CASE, listed)
        expected, num_steps = {id_: row for id_, row in before.items() if id_ not in listed}, len(steps)
        assert whole.texts(taken) == expected and num_steps > 25
        for step in range(1, num_steps + 1):
            batches = again(origin, tmp_path / str(step))
            with killed_at(batches.store, step), pytest.raises(PowerCut):
                erasure.erase(batches.store, CASE, listed)
            with suppress(StoreError):
                assert batches.texts(taken).items() <= before.items(), f"{step}: refused, or the right rows"
            assert erasure.erase(batches.store, CASE, listed).missing == [], step
            assert batches.texts(taken) == expected, step
            assert batches.traces(text, '"d2"', "'d2'") == [], step
            assert not [ref for stage in erasing.HOLDING for ref in batches.store.unfinished(CASE, stage)], (
                step
            )
            if step % 8 == 0:
                done = {m.ref for stage in erasing.HOLDING for m in batches.store.artifacts(CASE, stage)}
                assert not erasure.erase(batches.store, CASE, listed).rewritten, (
                    f"{step}: nothing is left to do"
                )
                assert done == {
                    m.ref for stage in erasing.HOLDING for m in batches.store.artifacts(CASE, stage)
                }, step
            shutil.rmtree(batches.project.root)


@pytest.mark.quick
class TestMadeUpIds:
    SETTINGS = {"examples": {**PLAIN["examples"], "group": "patient"}}

    def notes(self, *left_out: int) -> str:
        lines = [
            f"note number {n} about something that happened,{'ab'[n % 2]},p{n}"
            for n in range(1, 10)
            if n not in left_out
        ]
        return "\n".join(["text,kind,patient", *lines, ""])

    def test_a_tombstone_does_not_erase_the_next_document_at_that_place(self, tmp_path: Path):
        batches = Batches(tmp_path, **self.SETTINGS)
        batches.deliver("a.csv", self.notes())
        assert erasure.erase(batches.store, CASE, [" P3 "], by="group").num_found == 1, "in any spelling"
        raw, *_ = batches.deliver("a.csv", self.notes(3))
        assert (raw.metadata["num_rows"], raw.metadata["num_erased"]) == (8, 0)
        raw, *_ = batches.deliver("a.csv", self.notes())
        assert (raw.metadata["num_rows"], raw.metadata["num_erased"]) == (8, 1), "its own row stays out"

    def test_chunks_follow_their_examples(self, tmp_path: Path):
        batches = Batches(tmp_path)
        batches.deliver("a.csv", self.notes())
        *_, chunked = batches.deliver("a.csv", self.notes(1))
        first, second = batches.store.artifacts(CASE, "tokenized_chunks")
        assert second.ref == chunked.ref
        # Of the newer delivery `a.csv:3` is note 3, of the older one note 2.
        ids = pq.read_table(batches.store.folder(second) / "chunks.parquet")["id"].to_pylist()
        erasure.erase(batches.store, CASE, ["a.csv:10"])
        assert (
            pq.read_table(batches.store.folder(batches.store.load(second.ref)) / "chunks.parquet")[
                "id"
            ].to_pylist()
            == ids[:-1]
        )
        assert len(pq.read_table(batches.store.folder(batches.store.load(first.ref)) / "chunks.parquet")) == 8

    def test_the_name_of_a_file_that_was_one_document_goes_with_it(self, tmp_path: Path):
        batches = Batches(tmp_path)
        (batches.project.documents / "smith_john.txt").write_text("a note about him and what he had")
        batches.deliver("a.csv", self.notes())
        assert (
            batches.traces("smith_john")
            and erasure.erase(batches.store, CASE, ["smith_john.txt"]).missing == []
        )
        assert batches.traces("smith_john") == []
        assert batches.ingest() == [], "still delivered, it is not taken for a new file"
        # Written to again it is a new file, and reported until it is deleted and the list erased again.
        os.utime(batches.project.documents / "smith_john.txt", (1.8e9, 1.8e9))
        raw, *_ = batches.ingest()
        assert (raw.metadata["num_rows"], raw.metadata["num_erased"]) == (0, 1)
        (batches.project.documents / "smith_john.txt").unlink()
        report = erasure.erase(batches.store, CASE, ["smith_john.txt"])
        assert (report.num_before, report.missing) == (1, []) and batches.traces("smith_john") == []


class TestWhatKilledRunsLeft:
    def test_tracebacks_which_may_quote_a_document_are_gone(self, tmp_path: Path):
        store = Store(str(tmp_path))
        for case in (CASE, "mails"):
            store.keep_traceback(case, ValueError("what a letter says"))
        assert erasure.erase(store, CASE, ["letter-1"]).deleted[TRACEBACKS] == 1 and [
            path.parts[-3] for path in tmp_path.rglob("*.txt")
        ] == ["mails"]

    def test_attempts_without_a_manifest_are_removed_and_those_being_written_are_not(self, batches: Batches):
        raw = batches.store.artifacts(CASE, "raw_documents")[0]
        left = Path(batches.store.url, raw.ref).with_name("00000000000000000001-deadbeef")
        shutil.copytree(batches.store.folder(raw), left)
        (left / MANIFEST).unlink()
        with batches.store.create(CASE, "labeled_examples", "k", version="1", seed=1) as draft:
            (draft.path / "examples.parquet").write_bytes(b"")
            report = erasure.erase(batches.store, CASE, ["d2"])
            assert draft.path.is_dir()
        assert not left.exists() and (report.deleted[ATTEMPTS], report.num_in_flight) == (1, 1)

    def test_a_table_that_cannot_be_read_does_not_hold_the_erasure_up(self, batches: Batches):
        valid = next(
            m for m in batches.store.artifacts(CASE, "labeled_examples") if m.metadata["num_rows"] < 20
        )
        (batches.store.folder(valid) / "quarantined_rows.parquet").unlink()
        report = erasure.erase(batches.store, CASE, ["d2"])
        assert (report.num_found, report.deleted[ATTEMPTS]) == (1, 1) and not Path(
            batches.store.url, valid.ref
        ).exists()


@pytest.mark.quick
class TestTheList:
    def test_an_id_is_matched_exactly_first(self, tmp_path: Path):
        batches = Batches(tmp_path)
        given = [{**row, "id": id_} for row, id_ in zip(rows(4), ("A1 ", "A1", "B1", "\u2028C"), strict=True)]
        batches.deliver("a.jsonl", given)
        (tmp_path / "list.txt").write_bytes("A1 \r\n\n  B1\n\u2028C".encode())
        listed = erasure.read_list(tmp_path / "list.txt")
        assert (
            listed == {"A1 ": 1, "  B1": 3, "\u2028C": 4}
            and erasure.erase(batches.store, CASE, listed).missing == []
        )
        assert batches.ids("raw_documents", "documents.parquet") == {"A1"}

    @pytest.mark.heavy
    def test_lines_that_match_nothing_are_named_and_fail(
        self, batches: Batches, tmp_path: Path, capsys, monkeypatch
    ):
        monkeypatch.setattr(commands, "_open", lambda parsed: (commands._load(parsed), batches.store))
        (tmp_path / "list.txt").write_text("d2\ntypo-1\n" + "".join(f"typo-{n}\n" for n in range(2, 13)))
        assert batches.fullft("erase", CASE, str(tmp_path / "list.txt")) == 1
        said = capsys.readouterr()
        assert "typo" not in said.out and "not found    12 of" in said.out
        lines = said.err.splitlines()
        assert lines[0].startswith(f"{tmp_path / 'list.txt'}:2: `typo-1`: ") and lines[-1].startswith(
            f"{tmp_path / 'list.txt'}: 2 more "
        )
        assert len(lines) == 11
        assert "d2" not in batches.ids("raw_documents", "documents.parquet"), "the others were erased"
        raw, *_ = batches.deliver(
            "c.jsonl", [{**row, "id": f"typo-{n}"} for n, row in enumerate(rows(3, 80), 1)]
        )
        assert raw.metadata["num_erased"] == 3
        (tmp_path / "list.txt").write_text("d2\n")
        assert batches.fullft("erase", CASE, str(tmp_path / "list.txt")) == 0, "erased before is no typo"
        assert "erased before 1 " in capsys.readouterr().out
