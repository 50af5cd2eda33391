"""documents: nothing that was delivered is lost, and every row can be traced to its file and line."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fullft_assets import documents
from fullft_assets.documents import Batch, SourceFile, batches, raw as raw_documents
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.delivered import Delivered, die_at_a_write

pytestmark = pytest.mark.quick

DEFAULTS = DocumentsSettings(path="unused")


def batch_of(folder: Path) -> Batch:
    return Batch(name="00001-test", files=documents.Folder(folder).files())


def read(
    folder: Path,
    files: dict[str, str],
    *,
    label: str | None = "kind",
    group: str | None = "expression",
    **changes: Any,
) -> list[dict[str, Any]]:
    """Write files to a folder, and return the rows that they are read as."""
    projects.write_files(folder, files)
    examples = ExamplesSettings(label=label, group=group)
    found = documents.read_documents(
        documents.Folder(folder), batch_of(folder), DEFAULTS.model_copy(update=changes), examples
    )
    assert found.unreadable == {}
    return found.table.to_pylist()


class TestScan:
    def test_finds_known_endings_at_any_depth_and_leaves_hidden_and_partial_files_out(
        self, tmp_path: Path
    ) -> None:
        names = (
            "b.jsonl",
            "a/c.MANIFEST",
            "a/b/d.csv",
            "e.json",
            ".f.jsonl.partial",
            ".g.jsonl",
            ".hidden/h.csv",
            "i.csv.part",
            "j.doc",
            "k.jsonl.gz",
            "l.TXT",
        )
        projects.write_files(tmp_path, dict.fromkeys(names, "{}"))
        assert [file.path for file in documents.Folder(tmp_path).files()] == [
            "a/b/d.csv",
            "a/c.MANIFEST",
            "b.jsonl",
            "e.json",
            "k.jsonl.gz",
            "l.TXT",
        ]

    def test_other_endings_are_left_in_place_and_named(self, tmp_path: Path) -> None:
        names = ["a.doc", "b/c.doc", "b/d.DOC", "notes.pdf.gz", "REMARKS", os.fsdecode(b"caf\xe9.xls")]
        projects.write_files(
            tmp_path / "in", dict.fromkeys((*names, "e.jsonl", "_SUCCESS", "f.csv.part"), "x")
        )
        source = documents.Folder(tmp_path / "in")
        assert [file.path for file in source.files()] == ["e.jsonl"]
        (line,) = documents.left_in_place(source.others, named=True)
        assert line.startswith("6 file(s) ")
        assert line.partition(": ")[2] == (
            "3 .doc (a.doc, b/c.doc, ...), 1 .pdf.gz (notes.pdf.gz), 1 .xls (caf\\xe9.xls),"
            " 1 without an ending (REMARKS)"
        )

    def test_linked_folders_are_followed_and_a_circle_ends(self, tmp_path: Path) -> None:
        hidden = tmp_path / "in/.hidden"
        projects.write_files(hidden, {"a.jsonl": "{}"})
        (hidden / "back").symlink_to(tmp_path / "in")
        (tmp_path / "in/linked").symlink_to(hidden)
        assert [file.path for file in documents.Folder(tmp_path / "in").files()] == ["linked/a.jsonl"]
        source = documents.Folder(hidden)
        assert [file.path for file in source.files()] == ["a.jsonl"] and list(source.skipped) == ["back"]

    def test_no_entry_stops_a_look_or_leads_out_of_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        projects.write_files(tmp_path, {"in/b/a.jsonl": "{}", "outside.txt": "secret"})
        (folder / "inside.jsonl").symlink_to(folder / "b/a.jsonl")
        (folder / "dangling.jsonl").symlink_to("nowhere.jsonl")
        (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
        (folder / "zero.txt").symlink_to("/dev/zero")
        (folder / "loop.jsonl").symlink_to("loop.jsonl")
        os.mkfifo(folder / "pipe.jsonl")
        source = documents.Folder(folder)
        leaves, loop = (
            "a link that leaves the folder; deliver the file itself",
            os.strerror(errno.ELOOP),
        )
        assert [file.path for file in source.files()] == ["b/a.jsonl", "dangling.jsonl", "inside.jsonl"]
        expected = {
            "link.txt": leaves,
            "zero.txt": leaves,
            "loop.jsonl": loop,
            "pipe.jsonl": "not a regular file",
        }
        assert source.skipped == expected
        (line,) = documents.skipped(source.skipped, named=False)
        assert f"2 ({leaves})" in line
        assert "link.txt" not in line, "what is kept names no file"
        (line,) = documents.skipped(source.skipped, named=True)
        assert line.startswith("4 entries of ")
        assert f": link.txt ({leaves})" in line
        assert "\n" not in line
        for name in expected:
            with pytest.raises(OSError), source.local(name):
                pass
            assert source.digest(SourceFile(name, 0, 0)).startswith("unreadable: ")


class TestBatches:
    def cut(self, tmp_path: Path, now: float | None = None, **changes: Any) -> list[list[str]]:
        store = Store(str(tmp_path / "store"))
        made = documents.cut_batches(
            store, "mail", tmp_path / "in", DEFAULTS.model_copy(update=changes), now=now
        )
        assert documents.list_batches(store, "mail")[-len(made) or 10**9 :] == made
        return [[file.path for file in batch.files] for batch in made]

    def put(self, tmp_path: Path, name: str, size: int = 10, at: float = 1_700_000_000) -> None:
        projects.write_files(tmp_path / "in", {name: b"x" * size})
        os.utime(tmp_path / "in" / name, (at, at))

    def test_cut_by_bytes_and_a_larger_file_is_a_batch_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DocumentsSettings, "max_batch_bytes", 100)
        for name, size in (("a", 40), ("b", 60), ("c", 1), ("d", 500), ("e", 5)):
            self.put(tmp_path, f"{name}.jsonl", size)
        assert self.cut(tmp_path) == [
            ["a.jsonl", "b.jsonl"],
            ["c.jsonl"],
            ["d.jsonl"],
            ["e.jsonl"],
        ]

    def test_a_file_written_to_a_moment_ago_waits_and_one_from_the_future_does_not(
        self, tmp_path: Path
    ) -> None:
        now = 1_700_000_000.0
        for name, at in (("old", now - 60), ("young", now - 59), ("skewed", now + 59), ("future", now + 60)):
            self.put(tmp_path, f"{name}.jsonl", at=at)
        store, source = Store(str(tmp_path / "store")), documents.Folder(tmp_path / "in")
        _, young = batches.settled(source, DEFAULTS.model_copy(update={"settle_seconds": 60}), now)
        assert (
            self.cut(tmp_path, now, settle_seconds=60) == [["future.jsonl", "old.jsonl"]]
            and batches.num_new(store, "mail", young) == 2
        )
        # While it is being written its time moves on; what is cut at last is the whole.
        self.put(tmp_path, "young.jsonl", size=99, at=now + 30)
        assert self.cut(tmp_path, now + 60, settle_seconds=60) == [] and self.cut(
            tmp_path, now + 90, settle_seconds=60
        ) == [["young.jsonl"]]
        assert self.cut(tmp_path, now + 119, settle_seconds=60) == [["skewed.jsonl"]]
        assert batches.num_new(store, "mail", batches.settled(source, DEFAULTS, None)[0]) == 0

    def test_a_tick_that_dies_at_any_write_is_made_good_by_the_next(self, tmp_path: Path) -> None:
        for number in range(6):
            self.put(tmp_path, f"{number}.jsonl")
        for dies_after in (False, True, False):
            die_at_a_write(lambda: self.cut(tmp_path, max_batch_files=2), dies_after=dies_after)
        assert self.cut(tmp_path, max_batch_files=2) == [["2.jsonl", "3.jsonl"], ["4.jsonl", "5.jsonl"]]
        cut = documents.list_batches(Store(str(tmp_path / "store")), "mail")
        assert [file.path for batch in cut for file in batch.files] == [
            f"{number}.jsonl" for number in range(6)
        ]
        assert [batch.name[:5] for batch in cut] == ["00001", "00002", "00003"]

    @pytest.mark.heavy
    def test_sensors_and_runs_at_the_same_time_cut_each_file_once(self, tmp_path: Path) -> None:
        for number in range(60):
            self.put(tmp_path, f"{number:02}.jsonl")
        code = (
            "import sys; from pathlib import Path; from fullft_assets import documents; from"
            " fullft_assets.store import Store;from fullft_assets.settings import DocumentsSettings as S;"
            f" sys.stdin.readline();documents.cut_batches(Store({str(tmp_path / 'store')!r}), 'mail',"
            f" Path({str(tmp_path / 'in')!r}), S(path='x', max_batch_files=3))"
        )
        # They begin together, when all of them are loaded.
        running = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(3)]
        for process in running:
            process.stdin.close()
        assert [process.wait() for process in running] == [0, 0, 0]
        cut = documents.list_batches(Store(str(tmp_path / "store")), "mail")
        assert sorted(file.path for batch in cut for file in batch.files) == [
            f"{number:02}.jsonl" for number in range(60)
        ]

    @settings(max_examples=40, deadline=None)
    @given(
        ticks=st.lists(
            st.tuples(
                st.lists(
                    st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.integers(1, 3)), max_size=4
                ),
                st.booleans(),
            ),
            max_size=6,
        )
    )
    def test_whatever_is_delivered_between_ticks_is_cut_once(
        self, ticks: list[tuple[list[tuple[str, int, int]], bool]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("ledger")
        (folder / "in").mkdir()
        seen, cut = set(), []
        for deliveries, is_fresh_process in ticks:
            for name, size, at in deliveries:
                self.put(folder, f"{name}.jsonl", size, at)
            seen |= set(documents.Folder(folder / "in").files())
            if is_fresh_process:
                batches._memory.clear()
            made = documents.cut_batches(
                Store(str(folder / "store")),
                "mail",
                folder / "in",
                DEFAULTS.model_copy(update={"max_batch_files": 2}),
            )
            cut += [file for batch in made for file in batch.files]
        assert len(cut) == len(set(cut)) and set(cut) == seen


class TestJsonLines:
    def test_each_line_keeps_its_own_number_and_a_broken_one_says_why(self, tmp_path: Path) -> None:
        lines = [
            '{"text": "a", "kind": "x"}',
            "",
            "{broken",
            "[1]",
            '{"text": 7}',
            '{"kind": "x"}',
            '{"text": null}',
            "   ",
            '{"text": "b"}',
        ]
        rows = read(tmp_path, files={"a.jsonl": "\n".join(lines)})
        assert [(row["id"], row["row"], row["text"]) for row in rows] == [
            (f"a.jsonl:{n}", n, t)
            for n, t in ((1, "a"), (3, None), (4, None), (5, None), (6, None), (7, None), (9, "b"))
        ]
        assert [row["problem"] for row in rows] == [
            None,
            "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            "not a JSON object",
            "field `text` is not text",
            "no field `text`",
            None,
            None,
        ]

    def test_half_a_surrogate_pair_is_a_malformed_row_and_a_whole_pair_is_text(self, tmp_path: Path) -> None:
        rows = read(
            tmp_path,
            files={
                "a.jsonl": '{"text": "\\ud83d\\ude00"}\n{"text": "\\uD83D"}\n'
                '{"text": "a", "kind": "\\udc00"}\n'
            },
        )
        assert [row["text"] for row in rows] == ["😀", None, None]
        assert [row["problem"] for row in rows] == [None, *["not Unicode: half of a surrogate pair"] * 2]


class TestCsv:
    def test_quotes_and_line_ends_inside_fields_and_rows_are_named_by_their_first_line(
        self, tmp_path: Path
    ) -> None:
        rows = read(
            tmp_path,
            files={
                "a.csv": 'text,kind\n"two\nlines",x\n\n"a ""quoted"" word, and a comma",y\n'
                'only one field\nm,n,o\n"z",w\n'
            },
        )
        assert [(row["row"], row["text"], row["label"]) for row in rows] == [
            (2, "two\nlines", "x"),
            (5, 'a "quoted" word, and a comma', "y"),
            (6, None, None),
            (7, None, None),
            (8, "z", "w"),
        ]
        assert [row["problem"].split()[1] for row in rows[2:4]] == ["fewer", "more"]

    def test_two_columns_of_one_name_are_refused_and_columns_without_one_are_not(
        self, tmp_path: Path
    ) -> None:
        projects.write_files(
            tmp_path,
            {
                "a.csv": "text,kind,text\na,x,b\n",
                "b.csv": "text,kind,,\na,x,,\n",
            },
        )
        found = documents.read_documents(
            documents.Folder(tmp_path), batch_of(tmp_path), DEFAULTS, ExamplesSettings(label="kind")
        )
        assert "two columns" in found.unreadable["a.csv"] and found.table["text"].to_pylist() == ["a"]


class Kept(Delivered):
    """What a folder has, cut by hand."""

    def cut(self) -> list[Batch]:
        return documents.cut_batches(self.store, "letters", self.project.documents, DEFAULTS)

    def keep_cut(self) -> Manifest:
        [batch] = self.cut()
        return self.keep(batch)


@pytest.fixture
def letters(project: projects.Project) -> Kept:
    return Kept(project)


class TestUnreadableFiles:
    def test_each_is_named_and_the_batch_goes_on_with_the_others(self, letters: Kept) -> None:
        folder = letters.project.documents
        (folder / "quote.csv").write_text('text,kind\na,b\nc,d\n"never closed,e\n')
        (folder / "gone.manifest").symlink_to(folder / "nowhere")
        (folder / "cut.parquet").write_bytes(b"PAR1 and no footer")
        reasons = {
            "cut.parquet": "",  # in the words of its reader
            "gone.manifest": "No such file or directory",
            "quote.csv": (
                "not CSV: unexpected end of data, in the row that starts on line 4: fix its quotes, or set"
                " documents.csv.quoting to none"
            ),
        }
        raw = letters.keep_cut()
        check = raw.check("files_are_readable")
        assert (check.passed, check.severity) == (False, "warn")
        assert check.metadata == {
            "num_files": 4,
            "num_unreadable": 3,
            "num_changed": 0,
        }
        for name, reason in reasons.items():
            assert f"{alias(name)}: {reason}" in check.description
        assert "; fix and deliver" in check.description and "\n" not in check.description
        assert list(raw.metadata["files"]) == ["delivery-1.jsonl"] and raw.metadata["num_rows"] == 400
        assert {row["source"] for row in letters.rows(raw)} == {"delivery-1.jsonl"}

    def test_a_batch_without_a_readable_file_is_one_line_and_leaves_nothing(self, letters: Kept) -> None:
        path = letters.project.documents / "delivery-1.csv"
        (letters.project.documents / "delivery-1.jsonl").unlink()
        path.write_text('text,kind\n"never closed,e\n')
        [batch] = letters.cut()
        with pytest.raises(DataError) as raised:
            letters.keep(batch)
        assert str(raised.value).startswith(f"{path.parent}: {alias(path.name)} cannot be read (")
        assert not list((letters.project.home / "store").rglob("*.parquet"))
        # The fixed file is another one to the ledger, and goes through.
        path.write_text("text,kind\na,notice\n")
        assert letters.keep_cut().metadata["num_rows"] == 1 and not documents.is_delivered(
            documents.Folder(letters.project.documents), batch
        )

    def test_a_name_that_is_no_text_is_left_in_place_and_named(self, letters: Kept) -> None:
        (letters.project.documents / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"text": "a"}\n')
        [batch] = letters.cut()
        raw = letters.keep(batch)
        assert f"{alias(batch.files[0].path)}: its name " in raw.check("files_are_readable").description
        assert raw.metadata["num_rows"] == 400 and letters.cut() == []


class TestChangedFiles:
    def test_one_rewritten_while_it_is_read_is_not_taken_for_what_was_cut(
        self, letters: Kept, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        projects.write_rows(letters.project.documents / "other.jsonl", projects.licence_rows(5, skip=400))
        read = documents.read_documents

        def rewritten_meanwhile(*arguments: Any) -> Any:
            found = read(*arguments)
            letters.project.deliver("other.jsonl", projects.licence_rows(7, skip=500))
            return found

        monkeypatch.setattr(raw_documents, "read_documents", rewritten_meanwhile)
        raw = letters.keep_cut()
        assert {row["source"] for row in letters.rows(raw)} == {"delivery-1.jsonl"} and list(
            raw.metadata["files"]
        ) == ["delivery-1.jsonl"]
        assert f"{alias('other.jsonl')}: changed while " in raw.check("files_are_readable").description
        monkeypatch.setattr(raw_documents, "read_documents", read)
        assert [row["row"] for row in letters.rows(letters.keep_cut())] == list(range(1, 8))

    def test_one_rewritten_before_its_run_leaves_an_empty_batch_and_comes_in_the_next(
        self, letters: Kept
    ) -> None:
        [batch] = letters.cut()
        letters.project.deliver("delivery-1.jsonl", projects.licence_rows(30, skip=400))
        raw = letters.keep(batch)
        assert (raw.metadata["num_rows"], raw.metadata["files"]) == (0, {})
        check = raw.check("files_are_readable")
        assert f"{alias('delivery-1.jsonl')}: changed since " in check.description and check.passed
        assert "fix" not in check.description, "nothing is wrong with a file that grows"
        assert letters.keep_cut().metadata["num_rows"] == 30

    def test_rows_read_at_delivery_outlive_their_file(self, letters: Kept) -> None:
        for number in (2, 3):
            projects.write_rows(
                letters.project.documents / f"delivery-{number}.jsonl",
                projects.licence_rows(10, skip=number * 400),
            )
        (letters.project.documents / "late.parquet").symlink_to(letters.project.root / "nowhere")
        [batch] = letters.cut()
        first = letters.keep(batch)
        (letters.project.documents / "delivery-2.jsonl").unlink()
        letters.project.deliver("delivery-3.jsonl", projects.licence_rows(1))
        assert letters.keep(batch) == first
        os.utime(letters.project.documents / "delivery-1.jsonl", (1, 1))
        assert letters.keep(batch) == first

    def test_a_file_that_is_gone_and_was_never_read_is_one_line(self, letters: Kept) -> None:
        [batch] = letters.cut()
        letters.project.deliver("delivery-2.jsonl", projects.licence_rows(1))
        (letters.project.documents / "delivery-1.jsonl").unlink()
        with pytest.raises(
            DataError,
            match=rf"{alias('delivery-1.jsonl')} cannot be read \(No ",
        ):
            letters.keep(batch)


def test_kept_documents_are_found_again_and_trace_each_row_to_its_line(letters: Kept) -> None:
    [batch] = letters.cut()
    raw = letters.keep(batch)
    assert letters.keep(batch) == raw
    status = (letters.project.documents / "delivery-1.jsonl").stat()
    delivered = [
        json.loads(line) for line in (letters.project.documents / "delivery-1.jsonl").read_text().splitlines()
    ]
    assert [
        (r["id"], r["text"], r["label"], r["group"], r["row"], r["delivered_ns"]) for r in letters.rows(raw)
    ] == [
        (d["id"], d["text"], d["kind"], d["expression"].casefold(), n, status.st_mtime_ns)
        for n, d in enumerate(delivered, start=1)
    ]
    assert raw.metadata == {
        "batch": batch.name,
        "uri": str(letters.project.documents),
        "num_files": 1,
        "num_bytes": status.st_size,
        "num_rows": 400,
        "num_malformed": 0,
        "num_erased": 0,
        "num_masked": 0,
        "files": {"delivery-1.jsonl": status.st_mtime_ns},
        "encodings": {},
        "num_files_by_encoding": {"utf-8": 1},
    }
