"""documents/sources: the same files from a folder and a bucket."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import documents
from fullft_assets.automation import runs
from fullft_assets.documents import S3Prefix, delivery
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError, SourceError
from fullft_assets.store import Store
from tests import fault_proxy, project as projects
from tests.delivered import Delivered
from tests.s3_server import S3Server


@pytest.fixture
def bucket(s3_env: S3Server, request: pytest.FixtureRequest) -> Path:
    """A bucket of its own; each file in the folder is an object."""
    return s3_env.make_bucket("b" + str(abs(hash(request.node.nodeid)) % 10**12))


def put(folder: Path, name: str, text: str = '{"text": "a"}\n', at: float = 1_700_000_000) -> Path:
    path = folder / name
    projects.write_files(folder, {name: text})
    os.utime(path, (at, at))
    return path


class TestS3:
    def test_lists_what_a_folder_would(self, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (
            "mail/b.jsonl",
            "mail/a b/c+d ü.csv",
            "mail/x.parquet",
            "mail/.hidden/h.csv",
            "mail/.g.jsonl",
            "mail/j.doc",
            "other/k.jsonl",
        ):
            put(bucket, name)
        prefix = S3Prefix(f"s3://{bucket.name}/mail/")
        found = prefix.files()
        assert [(file.path, file.bytes, file.mtime_ns) for file in found] == [
            (file.path, file.bytes, file.mtime_ns) for file in documents.Folder(bucket / "mail").files()
        ]
        assert prefix.uri == f"s3://{bucket.name}/mail" and all(file.etag for file in found)
        # One object is notified like the listing tells it.
        assert prefix.statuses([file.path for file in found] + ["no.jsonl", "saved"]) == {
            **{file.path: file for file in found},
            "no.jsonl": None,
            "saved": None,
        }
        with prefix.local("a b/c+d ü.csv") as path:
            assert path.read_bytes() == (bucket / "mail/a b/c+d ü.csv").read_bytes()
        assert not path.exists()

    def test_two_writes_within_a_second_are_two_states(self, bucket: Path) -> None:
        put(bucket, "a.jsonl", '{"text": "a"}\n')
        first = S3Prefix(f"s3://{bucket.name}").files()
        put(bucket, "a.jsonl", '{"text": "b"}\n')
        [second] = S3Prefix(f"s3://{bucket.name}").files()
        assert [second._replace(etag="")] == [first[0]._replace(etag="")] and second != first[0]

    def test_an_empty_prefix_is_empty_and_a_missing_bucket_is_one_line(self, bucket: Path) -> None:
        put(bucket, "other/a.jsonl")
        assert S3Prefix(f"s3://{bucket.name}/mail").files() == []
        with pytest.raises(DataError, match=r"^s3://no-such-bucket/mail: bucket not found"):
            S3Prefix("s3://no-such-bucket/mail").files()

    def test_wrong_credentials_are_one_line(self, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(
            DataError,
            match=rf"^s3://{bucket.name}: access denied ",
        ):
            S3Prefix(f"s3://{bucket.name}").files()


class Bucket(Delivered):
    """A project whose documents are in a bucket, and what its sensor and its runs do with them."""

    def __init__(self, project: projects.Project, bucket: Path, **settings: Any):
        super().__init__(project)
        project.configure(documents={"path": f"s3://{bucket.name}/mail", **settings})
        self.folder = bucket / "mail"
        self.uri = f"s3://{bucket.name}/mail"

    def look(self, now: float = 1_700_000_000.0) -> documents.Look:
        return documents.look(self.store, self.project.use_case(), now=now)

    def cut(self, now: float = 1_700_000_000.0) -> list[list[str]]:
        return [[file.path for file in batch.files] for batch in self.look(now).cut]


@pytest.fixture
def letters(project: projects.Project, bucket: Path) -> Bucket:
    return Bucket(project, bucket)


class TestDocumentsOnS3:
    def test_rows_are_those_of_the_same_files_in_a_folder(
        self, letters: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = projects.licence_rows(20)
        projects.write_rows(letters.folder / "a b/lines ü.jsonl", rows[:10])
        pq.write_table(pa.Table.from_pylist(rows[10:]), letters.folder / "a.parquet")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "fetched"))
        (tmp_path / "fetched").mkdir()
        [batch] = letters.look().cut
        raw = letters.keep(batch)
        assert raw.check("files_are_readable").passed and raw.metadata["uri"] == letters.uri
        assert list((tmp_path / "fetched").iterdir()) == []
        local = Bucket(letters.project, letters.folder.parent)
        local.project.configure(documents={"path": str(letters.folder)})
        store = Store(str(tmp_path / "another"))
        [same] = documents.look(store, local.project.use_case()).cut
        assert [file.path for file in same.files] == [file.path for file in batch.files]
        expected = pq.read_table(
            store.folder(documents.keep(store, local.project.use_case(), same.name)) / "documents.parquet"
        )
        found = letters.rows(raw)
        assert [{**row, "delivered_ns": 0} for row in found] == [
            {**row, "delivered_ns": 0} for row in expected.to_pylist()
        ]
        assert sorted(row["text"] for row in found) == sorted(row["text"] for row in rows)

    def test_a_broken_object_and_one_that_is_gone_are_named_and_the_rest_goes_on(
        self, letters: Bucket
    ) -> None:
        projects.write_rows(letters.folder / "good.jsonl", projects.licence_rows(5))
        put(letters.folder, "broken.csv", 'text,kind\n"never closed,e\n')
        gone = put(letters.folder, "gone.jsonl")
        changed = put(letters.folder, "changed.jsonl")
        [batch] = letters.look().cut
        gone.unlink()
        put(letters.folder, changed.name, '{"text": "another"}\n')
        raw = letters.keep(batch)
        assert {row["source"] for row in letters.rows(raw)} == {"good.jsonl"}
        description = raw.check("files_are_readable").description
        assert (
            f"{alias('broken.csv')}: not CSV: " in description
            and f"{alias('gone.jsonl')}: no such object" in description
        )
        assert f"{alias('changed.jsonl')}: changed since " in description
        assert letters.cut() == [["changed.jsonl"]] and letters.cut() == []

    @pytest.mark.parametrize("fault", ["500", "503", "cut", "lost", "no server"])
    def test_an_outage_is_one_line_of_its_own_class_and_the_next_run_is_whole(
        self, letters: Bucket, s3_env: S3Server, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        projects.write_rows(letters.folder / "good.jsonl", projects.licence_rows(5))
        [batch] = letters.look().cut
        line = rf"^{letters.uri}: cannot be read now \(.+\); try again later, or fix the connection$"
        monkeypatch.setattr(fault_proxy, "_MOST_OF_ONE", 99)
        with (
            monkeypatch.context() as outage,
            fault_proxy.serving(s3_env.endpoint, faults=(fault,), share=1.0) as proxy,
        ):
            outage.setenv(
                "AWS_ENDPOINT_URL", "http://127.0.0.1:9" if fault == "no server" else proxy.endpoint
            )
            outage.setenv("AWS_MAX_ATTEMPTS", "1")
            for request in (lambda: letters.keep(batch), S3Prefix(letters.uri).files):
                with pytest.raises(SourceError, match=line) as error:
                    request()
                assert error.value.failure not in runs._FAILS_AGAIN
        assert (
            not list((letters.project.home / "store").rglob("*.parquet"))
            and letters.keep(batch).metadata["num_rows"] == 5
        )

    def test_a_look_lists_so_many_pages_and_the_next_goes_on_until_it_begins_anew(
        self, letters: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "PAGES_A_LOOK", 1)
        for number in range(1_100):
            put(letters.folder, f"b/{number:05}.txt", "x")
        first = letters.look()
        assert [len(batch.files) for batch in first.cut] == [1_000] and first.notes == [
            f"listed up to {alias('b/00999.txt')}; the next look goes on"
        ]
        # What arrives behind the listing is found once it has begun anew.
        put(letters.folder, "a-late.txt", "x")
        put(letters.folder, "b/00007.txt", "rewritten")
        assert [len(batch) for batch in letters.cut()] == [100]
        assert letters.cut() == [["a-late.txt", "b/00007.txt"]] and letters.cut() == []
        put(letters.folder, "c.txt", "x")
        assert [
            [file.path for file in batch.files]
            for batch in documents.look(letters.store, letters.project.use_case(), whole=True).cut
        ] == [["c.txt"]]
