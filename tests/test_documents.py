"""documents: nothing that was delivered is lost, and every row can be traced to its file and line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fullft_assets import documents
from fullft_assets.documents import Batch, SourceFile
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import Store
from tests import project as projects

DEFAULTS = DocumentsSettings(path="unused")


def batch_of(folder: Path) -> Batch:
    return Batch(name="00001-test", files=documents.scan(folder))


def read(folder: Path, *, label: str | None = "kind", group: str | None = "expression", **changes: Any) -> list[dict[str, Any]]:
    table, unreadable = documents.read_documents(folder, batch_of(folder), DEFAULTS.model_copy(update=changes), label=label, group=group)
    assert unreadable == {}
    return table.to_pylist()


class TestScan:
    def test_finds_known_endings_at_any_depth_and_leaves_hidden_and_partial_files_out(self, tmp_path: Path) -> None:
        for name in (
            "b.jsonl",
            "a/c.MANIFEST",
            "a/b/d.csv",
            "e.json",
            ".f.jsonl.partial",
            ".g.jsonl",
            ".hidden/h.csv",
            "i.csv.part",
            "j.txt",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
        assert [file.path for file in documents.scan(tmp_path)] == ["a/b/d.csv", "a/c.MANIFEST", "b.jsonl", "e.json"]

    def test_a_missing_folder_is_one_line_with_the_mend(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=re.escape(f"{tmp_path}/no: folder not found; deliver the documents there or mend documents.path")
        ):
            documents.scan(tmp_path / "no")

    def test_linked_folders_are_followed_and_a_circle_ends(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/a.jsonl").write_text("{}")
        delivered = tmp_path / "delivered"
        delivered.mkdir()
        (delivered / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/back").symlink_to(delivered)
        assert [file.path for file in documents.scan(delivered)] == ["linked/a.jsonl"]


class TestBatches:
    def cut(self, tmp_path: Path, **changes: Any) -> list[list[str]]:
        store = Store(str(tmp_path / "store"))
        made = documents.cut_batches(store, "mail", tmp_path / "in", DEFAULTS.model_copy(update=changes))
        assert documents.list_batches(store, "mail")[-len(made) or 10**9 :] == made
        return [[file.path for file in batch.files] for batch in made]

    def put(self, tmp_path: Path, name: str, size: int = 10, at: int = 1_700_000_000) -> None:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x" * size)
        os.utime(tmp_path / "in" / name, (at, at))

    def test_cut_by_count(self, tmp_path: Path) -> None:
        for name in "abcde":
            self.put(tmp_path, f"{name}.jsonl")
        assert self.cut(tmp_path, max_batch_files=2) == [["a.jsonl", "b.jsonl"], ["c.jsonl", "d.jsonl"], ["e.jsonl"]]

    def test_cut_by_bytes_and_a_larger_file_is_a_batch_of_its_own(self, tmp_path: Path) -> None:
        for name, size in (("a", 40), ("b", 60), ("c", 1), ("d", 500), ("e", 5)):
            self.put(tmp_path, f"{name}.jsonl", size)
        assert self.cut(tmp_path, max_batch_bytes=100) == [["a.jsonl", "b.jsonl"], ["c.jsonl"], ["d.jsonl"], ["e.jsonl"]]

    def test_cutting_twice_cuts_nothing(self, tmp_path: Path) -> None:
        self.put(tmp_path, "a.jsonl")
        assert self.cut(tmp_path) == [["a.jsonl"]]
        assert self.cut(tmp_path) == []

    def test_a_late_file_with_a_lower_name_and_an_equal_time_is_found(self, tmp_path: Path) -> None:
        self.put(tmp_path, "m.jsonl")
        self.cut(tmp_path)
        self.put(tmp_path, "a.jsonl")
        self.put(tmp_path, "z.jsonl", at=1)
        assert self.cut(tmp_path) == [["a.jsonl", "z.jsonl"]]

    def test_a_rewritten_file_comes_again(self, tmp_path: Path) -> None:
        self.put(tmp_path, "a.jsonl")
        self.cut(tmp_path)
        self.put(tmp_path, "a.jsonl", at=1_700_000_001)
        assert self.cut(tmp_path) == [["a.jsonl"]]

    def test_a_file_is_found_when_its_partial_name_is_replaced(self, tmp_path: Path) -> None:
        self.put(tmp_path, ".a.jsonl.partial")
        assert self.cut(tmp_path) == []
        (tmp_path / "in/.a.jsonl.partial").rename(tmp_path / "in/a.jsonl")
        assert self.cut(tmp_path) == [["a.jsonl"]]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(sizes=st.lists(st.integers(0, 300), max_size=30), most=st.integers(1, 5), most_bytes=st.integers(1, 400))
    def test_every_file_is_in_exactly_one_bounded_batch(self, sizes: list[int], most: int, most_bytes: int) -> None:
        files = [SourceFile(path=f"{i:02}.csv", bytes=size, mtime_ns=0) for i, size in enumerate(sizes)]
        cut = list(documents._bounded(files, DEFAULTS.model_copy(update={"max_batch_files": most, "max_batch_bytes": most_bytes})))
        assert [file for batch in cut for file in batch] == files
        for batch in cut:
            assert 1 <= len(batch) <= most
            assert len(batch) == 1 or sum(file.bytes for file in batch) <= most_bytes

    def test_an_unknown_batch_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="mail: no batch `00009-x` was cut; let the new-documents sensor cut it"):
            documents.read_batch(Store(str(tmp_path)), "mail", "00009-x")


class TestGroundTruth:
    def write(self, folder: Path, *lines: dict[str, Any]) -> None:
        (folder / "output.manifest").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_class_name_wins_over_the_index_and_an_attribute_without_metadata_is_taken_as_it_is(self, tmp_path: Path) -> None:
        about = {"class-name": "notice", "confidence": 0.75, "type": "groundtruth/text-classification", "human-annotated": "yes"}
        self.write(
            tmp_path,
            {"source": "a", "kind": 0, "kind-metadata": about},
            {"source": "b", "kind": "0", "kind-metadata": {**about, "confidence": 0}},
            {"source": "c", "kind": "text"},
            {"source": "d", "kind": 3},
            {"source": "e"},
            {"source": "f", "kind": 1, "kind-metadata": {"class-name": None, "failure-reason": "no worker agreed"}},
        )
        rows = read(tmp_path)
        assert [row["label"] for row in rows] == ["notice", "notice", "text", "3", None, None]
        assert [row["confidence"] for row in rows] == [0.75, 0.0, None, None, None, None]
        assert all(row["problem"] is None for row in rows)

    def test_a_reference_to_an_object_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"source-ref": "s3://bucket/a.txt", "kind": 0})
        assert [row["problem"] for row in read(tmp_path)] == ["no field `source` (source-ref is not read)"]


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
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        rows = read(tmp_path)
        assert [(row["id"], row["row"], row["text"]) for row in rows] == [
            (f"a.jsonl:{n}", n, t) for n, t in ((1, "a"), (3, None), (4, None), (5, None), (6, None), (7, None), (9, "b"))
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
        (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\uD83D"}\n{"text": "a", "kind": "\\udc00"}\n')
        rows = read(tmp_path)
        assert [row["text"] for row in rows] == ["😀", None, None]
        assert [row["problem"] for row in rows] == [None, *["not Unicode: half of a surrogate pair"] * 2]

    def test_own_ids_groups_and_fields_of_the_use_case(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(
            '{"body": "a", "nr": 12, "kind": true, "expression": 5}\n{"body": "b", "nr": "", "expression": ""}\n'
        )
        rows = read(tmp_path, text="body", id="nr")
        assert [(r["id"], r["label"], r["group"]) for r in rows] == [("12", "True", "5"), ("a.jsonl:2", None, None)]

    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
        (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbftext,kind\r\nc,x\r\n")
        assert [(r["text"], r["problem"]) for r in read(tmp_path)] == [("a", None), ("b", None), ("c", None)]


class TestCsv:
    def test_quotes_and_line_ends_inside_fields_and_rows_are_named_by_their_first_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text('text,kind\n"two\nlines",x\n\n"a ""quoted"" word, and a comma",y\nonly one field\nm,n,o\n"z",w\n')
        rows = read(tmp_path)
        assert [(row["row"], row["text"], row["label"]) for row in rows] == [
            (2, "two\nlines", "x"),
            (5, 'a "quoted" word, and a comma', "y"),
            (6, None, None),
            (7, None, None),
            (8, "z", "w"),
        ]
        assert [row["problem"] for row in rows][2:4] == ["has fewer fields than the header", "has more fields than the header"]

    def test_a_confidence_is_a_number_here_too(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,kind,confidence\na,x,0.25\nb,x,\nc,x,high\n")
        rows = read(tmp_path)
        assert [row["confidence"] for row in rows] == [0.25, None, None]
        assert [row["problem"] for row in rows] == [None, None, "confidence is not a number"]

    @settings(max_examples=60, deadline=None)
    @given(
        texts=st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(lambda text: text.strip("\r\n")), max_size=8
        )
    )
    def test_whatever_is_written_as_csv_is_read_back(self, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("csv")
        out = io.StringIO()
        writer = csv.writer(out, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "kind"])
        writer.writerows([text, "x"] for text in texts)
        (folder / "a.csv").write_bytes(out.getvalue().encode())
        assert [row["text"] for row in read(folder)] == texts


def broken_files(folder: Path) -> dict[str, str]:
    """Write one file of each kind that cannot be read; return the reason by name."""
    (folder / "bytes.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    (folder / "wide.csv").write_bytes("text,kind\na,b\n".encode("utf-16"))
    (folder / "quote.csv").write_text('text,kind\na,b\nc,d\n"never closed,e\n')
    (folder / "gone.manifest").symlink_to(folder / "nowhere")
    (folder / "folder.jsonl").write_text("{}")
    return {
        "bytes.jsonl": "not UTF-8 on line 2",
        "folder.jsonl": "Is a directory",
        "gone.manifest": "No such file or directory",
        "quote.csv": "not CSV: unexpected end of data, in the row that starts on line 4",
        "wide.csv": "not UTF-8 on line 1",
    }


class TestUnreadableFiles:
    def test_each_is_named_with_its_reason_and_none_of_its_rows_is_half_in(self, tmp_path: Path) -> None:
        reasons = broken_files(tmp_path)
        (tmp_path / "good.jsonl").write_text('{"text": "good"}\n')
        batch = batch_of(tmp_path)
        (tmp_path / "folder.jsonl").unlink()
        (tmp_path / "folder.jsonl").mkdir()
        table, unreadable = documents.read_documents(tmp_path, batch, DEFAULTS, label="kind", group=None)
        assert unreadable == reasons
        assert table["text"].to_pylist() == ["good"]

    def test_the_batch_goes_on_with_the_readable_files_and_warns(self, project: projects.Project) -> None:
        broken_files(project.documents)
        [batch] = documents.cut_batches(Store(str(project.home)), "letters", project.documents, DEFAULTS)
        raw = documents.keep(Store(str(project.home)), project.use_case(), batch.name)
        check = raw.check("files_are_readable")
        assert (check.passed, check.severity) == (False, "warn")
        assert check.metadata == {"num_files": 6, "num_unreadable": 4}
        assert f"{project.documents}/quote.csv: not CSV: unexpected end of data, in the row that starts on line 4" in check.description
        assert check.description.endswith("; mend and deliver again") and "\n" not in check.description
        assert raw.metadata["files"] == ["delivery-1.jsonl", "folder.jsonl"]
        assert raw.metadata["num_rows"] == 401

    def test_a_batch_without_a_readable_file_is_one_line_and_leaves_nothing(self, project: projects.Project) -> None:
        store, use_case = Store(str(project.home / "store")), project.use_case()
        (project.documents / "delivery-1.jsonl").write_bytes(b"\xff\xfe")
        [batch] = documents.cut_batches(store, "letters", project.documents, DEFAULTS)
        with pytest.raises(DataError) as raised:
            documents.keep(store, use_case, batch.name)
        path = project.documents / "delivery-1.jsonl"
        assert str(raised.value) == f"{path}: cannot be read (not UTF-8 on line 1); mend the file and deliver it again"
        assert not list((project.home / "store").rglob("*.parquet"))
        # The mended file is another one to the ledger, and goes through.
        project.deliver("delivery-1.jsonl", projects.licence_rows(3))
        [mended] = documents.cut_batches(store, "letters", project.documents, DEFAULTS)
        assert documents.keep(store, use_case, mended.name).metadata["num_rows"] == 3


def test_kept_documents_are_found_again_and_change_with_the_bytes_of_a_file(project: projects.Project) -> None:
    store, use_case = Store(str(project.home / "store")), project.use_case()
    [batch] = documents.cut_batches(store, "letters", project.documents, DEFAULTS)
    raw = documents.keep(store, use_case, batch.name)
    assert documents.keep(store, use_case, batch.name) == raw
    rows = pq.read_table(store.folder(raw) / "documents.parquet").to_pylist()
    delivered = [json.loads(line) for line in (project.documents / "delivery-1.jsonl").read_text().splitlines()]
    assert [(r["id"], r["text"], r["label"], r["group"], r["row"]) for r in rows] == [
        (d["id"], d["text"], d["kind"], d["expression"], n) for n, d in enumerate(delivered, start=1)
    ]
    project.deliver("delivery-1.jsonl", projects.licence_rows(400, skip=1))
    assert documents.keep(store, use_case, batch.name).content_digest != raw.content_digest
