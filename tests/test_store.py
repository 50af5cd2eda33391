"""store: an incomplete artifact does not exist, in a local folder and on a real S3 server."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import LocalStore
from werkzeug.serving import make_server

from fullft_assets import release
from fullft_assets.documents import batches
from fullft_assets.documents.sources import SourceFile
from fullft_assets.errors import DiskError, GateError, SettingsError, StoreError
from fullft_assets.job import Job, read_job, read_jobs
from fullft_assets.launch import records
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import (
    CheckOutcome,
    Draft,
    Identity,
    Manifest,
    Outcome,
    Store,
    artifact_key,
    artifacts,
    buckets,
    disk,
    pointers,
)
from fullft_assets.store.buckets import Bucket, FileVersion
from fullft_assets.store.metadata import Metadata
from tests import manifests, project as projects
from tests.machine import limited_files, set_environment
from tests.s3_server import S3Server
from tests.serving import serving

pytestmark = pytest.mark.quick


OUTSIDE = ["/etc/a", "../a", "x/../../a", "x//a", "./a", "x/.", "x/", "", "..\\a", "C:\\a", "a\0b"]


class Place:
    """A store, and the folder of this machine with its files."""

    def __init__(self, url: str, disk: Path):
        self.store, self.disk = Store(url), disk

    def make(
        self,
        files: Mapping[str, str],
        *,
        inputs: Mapping[str, Any] | None = None,
        checks: list[CheckOutcome] | None = None,
    ) -> Manifest:
        def write(draft: Draft) -> Outcome:
            projects.write_files(draft.path, files)
            return {"num_rows": len(files)}, checks or []

        return self.store.ensure(
            "mail", "raw_documents", write, version="1", settings={"a": 1}, inputs=inputs or {}, seed=1
        )


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(str(tmp_path / "store"), tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_env")
    bucket = f"bucket-{tmp_path.name.replace('_', '-')}".lower()[:60].strip("-")
    return Place(f"s3://{bucket}/some/prefix", server.make_bucket(bucket) / "some/prefix")


class TestArtifacts:
    def test_made_once_then_found_with_everything_that_was_said_of_it(self, place: Place) -> None:
        check = CheckOutcome(name="rows_are_whole", passed=True, metadata={"num_rows": 3})
        made = place.make({"a.txt": "alpha", "deep/b.txt": "beta"}, inputs={"x": "y"}, checks=[check])
        again = place.make({"never": "written"}, inputs={"x": "y"})
        assert (
            again == made == place.store.load(made.ref) == place.store.find("mail", "raw_documents", made.key)
        )
        assert (made.metadata, made.checks, made.inputs, made.settings) == (
            {"num_rows": 2},
            [check],
            {"x": "y"},
            {"a": 1},
        )
        folder = place.store.folder(made)
        assert {name: (folder / name).read_text() for name in made.files} == {
            "a.txt": "alpha",
            "deep/b.txt": "beta",
        }
        assert (place.disk / made.ref / "deep/b.txt").read_text() == "beta"

    def test_of_a_removal_that_was_cut_short_nothing_is_found(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = place.make({"a.txt": "alpha"})

        def cut(*_: Any) -> None:
            raise OSError("cut")

        monkeypatch.setattr(Store, "remove_folder", cut)
        with pytest.raises(OSError, match="cut"):
            place.store.delete(made)
        assert place.store.artifacts("mail", "raw_documents") == []

    @pytest.mark.heavy
    def test_what_a_killed_process_left_is_removed_once_nobody_can_be_writing_it(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = place.make({"a.txt": "alpha"})
        left = f"mail/raw_documents/{made.key}/00000000000000000001-deadbeef"
        projects.write_files(place.disk / left, {"deep/b.txt": "beta"})
        assert place.store.unfinished("mail", "raw_documents") == [left]
        if not place.store.is_local:
            assert not place.store.discard(left), "somebody may be uploading more"
            monkeypatch.setattr("fullft_assets.store.artifacts.ABANDONED_SECONDS", 0.0)
        assert place.store.discard(left) and place.store.unfinished("mail", "raw_documents") == []
        assert not place.store.discard(made.ref), "a complete one stays"
        assert place.store.artifacts("mail", "raw_documents") == [made]

    @pytest.mark.heavy
    def test_an_error_while_writing_leaves_nothing(self, place: Place) -> None:
        def fail(draft: Draft) -> Outcome:
            (draft.path / "half.txt").write_text("half")
            raise OSError("disk full")

        arguments: dict[str, Any] = {"version": "1", "settings": {}, "inputs": {}, "seed": 1}
        with pytest.raises(OSError, match="disk full"):
            place.store.ensure("mail", "chunks", fail, **arguments)
        assert place.store.find("mail", "chunks", artifact_key("chunks", "1", {}, {}, 1)) is None
        assert not list(place.disk.rglob("*.txt"))

    def test_the_attempt_that_was_committed_first_wins(self, place: Place) -> None:
        made = []
        with (
            place.store.create("mail", "s", "k", version="1", seed=1) as slow,
            place.store.create("mail", "s", "k", version="1", seed=1) as fast,
        ):
            for draft in (fast, slow):
                (draft.path / "a").write_text(draft.path.name)
                made.append(draft.commit(settings={}, inputs={}, metadata={}))
                assert place.store.find("mail", "s", "k") == made[0]
        assert made[0].attempt > made[1].attempt

    def test_a_missing_or_short_file_is_reported_and_another_attempt_repairs_all_references(
        self, place: Place
    ) -> None:
        made = place.make({"a.txt": "alpha", "b.txt": "beta"})
        for damage in (lambda path: path.write_text("al"), Path.unlink):
            damage(place.disk / made.ref / "a.txt")
            with pytest.raises(
                StoreError,
                match=r"a\.txt: (missing|differs from).*; .*materialise raw_documents again$",
            ):
                place.store.folder(made)
        again = place.make({"a.txt": "alpha", "b.txt": "beta"})
        assert again.ref != made.ref and (place.store.folder(made) / "a.txt").read_text() == "alpha"
        shutil.rmtree(place.disk / made.ref)
        assert place.store.load(made.ref) == again

    def test_an_attempt_with_other_content_is_never_used_instead(self, place: Place) -> None:
        made = place.make({"a.txt": "alpha"})
        (place.disk / made.ref / "a.txt").unlink()
        place.make({"a.txt": "omega"})
        with pytest.raises(StoreError, match="missing"):
            place.store.folder(made)

    def test_a_torn_manifest_is_reported_and_skipped(self, place: Place) -> None:
        made = place.make({"a.txt": "alpha"})
        manifest = place.disk / made.ref / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:100])
        with pytest.raises(StoreError, match=r"manifest\.json: unreadable"):
            place.store.load(made.ref)
        assert place.make({"a.txt": "alpha"}).ref != made.ref

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_a_manifest_that_names_a_file_outside_of_its_folder_is_refused(
        self, tmp_path: Path, name: str
    ) -> None:
        place = Place(str(tmp_path), tmp_path)
        made = place.make({"a.txt": "alpha"})
        manifest = place.disk / made.ref / "manifest.json"
        given = json.loads(manifest.read_bytes())
        manifest.write_text(json.dumps(given | {"files": {name: given["files"]["a.txt"]}}))
        with pytest.raises(StoreError, match="is no name of"):
            place.store.load(made.ref)
        assert place.store.find("mail", "raw_documents", made.key) is None
        manifest.write_text(json.dumps(given | {"attempt": name}))
        with pytest.raises(StoreError, match="is no name of"):
            place.store.load(made.ref)

    def test_a_pointer_is_replaced_and_listed(self, place: Place) -> None:
        assert place.store.read_pointer("mail/batch/b") is None
        assert place.store.list_pointers("mail/batch") == []
        for name in ("mail/batch/b", "mail/batch/a", "mail/batch/deeper/c"):
            place.store.write_pointer(name, {"ref": 1})
            place.store.write_pointer(name, {"ref": "ö"})
        assert place.store.read_pointer("mail/batch/b") == {"ref": "ö"}
        assert place.store.list_pointers("mail/batch") == ["a", "b"]


class TestOnDisk:
    def fill(self, root: Path) -> Place:
        place = Place(str(root), root)
        place.make({"a.txt": "alpha", "deep/er/b.txt": "beta"})
        place.store.write_pointer("mail/champion", {})
        place.store.change_pointer("mail/champion", lambda found: {"n": 1})
        place.store.work_folder("mail", "s", "k")
        with place.store.alone("mail/batch"):
            pass
        return place

    def test_one_that_waits_reads_who_has_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(pointers, "_RENEW_SECONDS", 0.05)
        monkeypatch.setenv("DAGSTER_HOME", "/srv/home")
        store = Store(str(tmp_path))
        with ThreadPoolExecutor(1) as pool, store.alone("x"):
            pool.submit(store.alone("x").__enter__)
            while not caplog.messages:
                time.sleep(0.01)
        (line,) = caplog.messages
        assert re.search(rf"x.lock: process {os.getpid()} of \S+ with DAGSTER_HOME=/srv/home has ", line)

    def modes(self, root: Path) -> set[tuple[bool, str]]:
        return {(path.is_dir(), oct(path.stat().st_mode & 0o7777)) for path in (root, *root.rglob("*"))}

    @pytest.mark.parametrize("umask", [0o022, 0o002])
    def test_what_is_made_is_for_its_user_alone(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            self.fill(tmp_path / "new" / "store")
            (tmp_path / "old").mkdir(0o755)
            (tmp_path / "old").chmod(0o755)
            self.fill(tmp_path / "old")
        finally:
            os.umask(before)
        private = {(True, "0o700"), (False, "0o600")}
        assert self.modes(tmp_path / "new") == private
        assert set.union(*(self.modes(path) for path in (tmp_path / "old").iterdir())) == private

    def test_unless_a_group_may_write_to_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        (tmp_path / "store").chmod(0o2770)
        self.fill(tmp_path / "store")
        assert self.modes(tmp_path / "store") == {(True, "0o2770"), (False, "0o660")}

    def test_names_of_all_files_and_folders_are_on_the_disk_before_the_manifest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[Path] = []
        for module in (disk, artifacts):
            monkeypatch.setattr(
                module, "sync", lambda path, sync=disk.sync: synced.append(path) or sync(path)
            )
        root = tmp_path / "new" / "store"
        folder = root / Place(str(root), root).make({"a.txt": "alpha", "deep/er/b.txt": "beta"}).ref
        assert synced.pop() == folder, "last the manifest's name"
        named = {
            folder / "deep",
            folder / "deep/er",
            *(parent for parent in folder.parents if parent.is_relative_to(tmp_path)),
        }
        assert set(synced) == {folder, folder / "a.txt", folder / "deep/er/b.txt", *named}


#: Counts a pointer up so many times, each time by one more than what is there.
COUNT = """
import os, sys
from fullft_assets.store import Store
store = Store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    store.change_pointer("demo/champion", lambda old: {"n": (old or {"n": 0})["n"] + 1, "by": os.getpid()})
"""


def count_in_two_processes(url: str, times: int) -> int:
    command = [sys.executable, "-c", COUNT, url, str(times)]
    for process in [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return Store(url).read_pointer("demo/champion")["n"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket of a second server that heeds the conditions of PutObject, as S3 does.

    It answers one request at a time: with threads it would compare and write in two steps.
    """
    one_at_a_time = make_server(
        "127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False
    )
    with serving(one_at_a_time) as server:
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        set_environment(monkeypatch, variables)
        name = f"b{abs(hash(tmp_path))}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}/some/prefix"


class Clock:
    """A clock that moves while somebody sleeps, or while the machine is suspended."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.now = self.suspended = 0.0
        self.tick = lambda: None

    def monotonic(self) -> float:
        return self.now

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.now + self.suspended

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.tick()


class Once(threading.Event):
    """Ends a loop after one round."""

    def wait(self, timeout: float | None = None) -> bool:
        was_set = self.is_set()
        self.set()
        return was_set


@pytest.mark.heavy
class TestLeases:
    """Work that one process does at a time, on any machine that sees the bucket."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The clock of the leases, which only the looks of one that waits move; a machine that stalls changes
        nothing.
        """
        clock = Clock()
        monkeypatch.setattr(pointers, "time", clock)
        monkeypatch.setattr(pointers, "_LOOK_SECONDS", 5.0)
        return clock

    def test_two_hosts_that_look_at_once_cut_each_file_once(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second one looks, and sees one file more, while the first one is recording what it saw."""
        for name, seconds in {"_VALID_SECONDS": 120.0, "_DEAD_SECONDS": 240.0, "_LOOK_SECONDS": 0.05}.items():
            monkeypatch.setattr(pointers, name, seconds)
        first, second = Store(bucket), Store(bucket)
        for number, host in enumerate((first, second)):  # hosts share no disk
            monkeypatch.setattr(
                host,
                "work_folder",
                lambda *key, number=number: Store(bucket).work_folder(f"host{number}", *key),
            )
        files = [SourceFile(f"{number}.csv", 10, number) for number in range(5)]
        settings, recording = DocumentsSettings(path="x", max_batch_files=2), threading.Event()
        write = first.write_pointer

        def slowly(name: str, value: Mapping[str, Any]) -> None:
            recording.set()
            time.sleep(1)
            write(name, value)

        monkeypatch.setattr(first, "write_pointer", slowly)
        with ThreadPoolExecutor(1) as pool:
            earlier = pool.submit(batches.record, first, "mail", files[:4], settings, uri="s3://there")
            assert recording.wait(30)
            batches.record(second, "mail", files[::-1], settings, uri="s3://there")
            earlier.result()
        cut = [file.path for batch in batches.list_batches(second, "mail") for file in batch.files]
        assert sorted(cut) == ["0.csv", "1.csv", "2.csv", "3.csv", "4.csv"]

    def test_one_that_is_alive_keeps_its_lease(
        self, bucket: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pointers, "_PATIENCE_SECONDS", 100.0)
        renew, holders = pointers._BucketLease.renew_until, queue.Queue()
        # Its thread says that it runs; its signs of life come by the fake clock.
        monkeypatch.setattr(pointers._BucketLease, "renew_until", lambda lease, _: holders.put(lease))
        with Store(bucket).alone("x") as lease:
            holder = holders.get(timeout=60)
            clock.tick = lambda: renew(holder, Once())
            with (
                pytest.raises(
                    StoreError,
                    match=rf"x\.json: process {os.getpid()} of \S+ (with DAGSTER_HOME=\S+ )?has ",
                ),
                Store(bucket).alone("x"),
            ):
                pass
            lease.require()
        with Store(bucket).alone("x") as lease:
            lease.require()

    def test_one_that_is_gone_loses_it_and_may_write_no_more(
        self,
        bucket: str,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(
            pointers._BucketLease, "renew_until", lambda *_: None
        )  # as a process that was stopped
        store = Store(bucket)
        with store.alone("x") as stopped:
            stopped.require()
            with Store(bucket).alone("x") as other:
                assert clock.now > pointers._DEAD_SECONDS
                assert caplog.text.count("one that was killed is known after") == 1
                other.require()
                with pytest.raises(
                    StoreError,
                    match="another process may .* command again",
                ):
                    stopped.require()
                holder = store.read_pointer("leases/x")
        assert holder is not None and holder["by"] is not None

    @pytest.mark.fault("a machine that was suspended comes back")
    def test_nor_may_one_whose_machine_was_suspended(
        self, bucket: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pointers._BucketLease, "renew_until", lambda *_: None)
        with Store(bucket).alone("x") as lease:
            lease.require()
            clock.suspended = 21.0
            with pytest.raises(StoreError, match="another process may"):
                lease.require()


@pytest.mark.heavy
class TestChangedPointers:
    @pytest.mark.parametrize("number", [200, pytest.param(500, marks=pytest.mark.long)])
    def test_no_change_of_two_processes_is_lost(self, tmp_path: Path, number: int) -> None:
        assert count_in_two_processes(str(tmp_path / "store"), number) == 2 * number

    @pytest.mark.parametrize("number", [20, pytest.param(500, marks=pytest.mark.long)])
    def test_nor_in_a_bucket(self, bucket: str, number: int) -> None:
        assert count_in_two_processes(bucket, number) == 2 * number

    def test_a_change_that_was_overtaken_in_a_bucket_is_made_again(self, bucket: str) -> None:
        store, seen = Store(bucket), []

        def change(found: dict[str, Any] | None) -> dict[str, Any]:
            seen.append(found)
            if len(seen) < 3:  # once where there was nothing, once where there was something
                Store(bucket).write_pointer("demo/champion", {"other": len(seen)})
            return {**(found or {}), "mine": True}

        store.change_pointer("demo/champion", change)
        assert seen == [None, {"other": 1}, {"other": 2}]
        assert store.read_pointer("demo/champion") == {"other": 2, "mine": True}

    @pytest.mark.fault("S3 fails or damages a file")
    def test_a_write_whose_answer_was_lost_is_not_made_twice(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(bucket)
        write = store.write_if_version
        monkeypatch.setattr(store, "write_if_version", lambda *given: write(*given) and False)
        store.change_pointer("n", lambda found: {"n": (found or {"n": 0})["n"] + 1})
        assert store.read_pointer("n") == {"n": 1}

    def test_an_error_or_none_leaves_it_and_frees_the_lock(self, place: Place) -> None:
        place.store.write_pointer("n", {"n": 1})
        with pytest.raises(GateError):
            place.store.change_pointer("n", lambda found: (_ for _ in ()).throw(GateError("no")))
        place.store.change_pointer("n", lambda found: None)
        assert place.store.read_pointer("n") == {"n": 1}
        place.store.change_pointer("n", lambda found: {"n": 2})
        assert place.store.read_pointer("n") == {"n": 2}
        assert set(place.store.list_pointers("")) - {"store"} == {"n"}  # a bucket has an id by then


class TestContentDigest:
    def test_follows_content_and_key_but_not_logs(self, tmp_path: Path) -> None:
        def digest_of(name: str, files: dict[str, str], **more: Any) -> str:
            return Place(str(tmp_path / name), tmp_path / name).make(files, **more).content_digest

        base = digest_of("a", {"w": "1", "logs/steps.jsonl": "fast"})
        assert digest_of("b", {"w": "1", "logs/steps.jsonl": "slow", "logs/more": ""}) == base
        assert digest_of("c", {"w": "2", "logs/steps.jsonl": "fast"}) != base
        assert digest_of("d", {"v": "1"}) != base and digest_of("e", {"w": "1"}, inputs={"x": 2}) != base

    def test_an_identity_names_what_counts_and_survives_a_rewrite(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))

        def made(x: str, seen: str, values: dict[str, Any], inputs: dict[str, Any]) -> Manifest:
            def write(draft: Draft) -> Outcome:
                projects.write_files(draft.path, {"x": x, "seen": seen})
                draft.identity = Identity(files=["x"], values=values)
                return {}, []

            return store.ensure(
                "mail", "training_snapshot", write, version="1", settings={}, inputs=inputs, seed=1
            )

        base = made("1", "one way", {"labels": ["a"]}, {"batch": 1})
        other = made("1", "another way", {"labels": ["a"]}, {"batch": 2})
        assert other.key != base.key and other.content_digest == base.content_digest
        assert made("2", "one way", {"labels": ["a"]}, {"batch": 3}).content_digest != base.content_digest
        assert made("1", "one way", {"labels": ["b"]}, {"batch": 4}).content_digest != base.content_digest
        assert store.load(base.ref).content_digest == base.content_digest, "as read again"

        def edit(name: str, text: str) -> Callable[[Path], Mapping[str, Any]]:
            return lambda folder: {"num_characters": (folder / name).write_text(text)}

        seen = store.rewrite(base, edit("seen", "edited"))
        assert seen.content_digest == base.content_digest
        assert store.rewrite(seen, edit("x", "edited")).content_digest not in (
            base.content_digest,
            other.content_digest,
        )

    def test_the_key_follows_each_of_its_parts(self) -> None:
        parts: list[tuple[str, str, Any, dict[str, Any], int]] = [
            ("s", "1", {"a": 1, "b": 2}, {"x": "y"}, 1),
            ("t", "1", {"a": 1, "b": 2}, {"x": "y"}, 1),
            ("s", "2", {"a": 1, "b": 2}, {"x": "y"}, 1),
            ("s", "1", {"a": 1, "b": 3}, {"x": "y"}, 1),
            ("s", "1", {"a": 1, "b": 2}, {"x": "z"}, 1),
            ("s", "1", {"a": 1, "b": 2}, {"x": "y"}, 2),
        ]
        assert len({artifact_key(*part) for part in parts}) == len(parts)
        assert artifact_key("s", "1", {"b": 2, "a": 1}, {"x": "y"}, 1) == artifact_key(*parts[0])


def test_only_a_red_error_check_refuses(tmp_path: Path) -> None:
    place = Place(str(tmp_path), tmp_path)
    warned = place.make({}, checks=[CheckOutcome(name="w", passed=False, severity="warn")], inputs={"n": 1})
    warned.require_green("tokenized_chunks")
    red = place.make(
        {},
        checks=[CheckOutcome(name="rows", passed=False, description="3 rows are lost")],
        inputs={"n": 2},
    )
    with pytest.raises(
        GateError, match=r"^tokenized_chunks refused: raw_documents\.rows is red: 3 rows are lost$"
    ):
        red.require_green("tokenized_chunks")
    with pytest.raises(StoreError, match="no check `other`"):
        red.check("other")


class Counted(Metadata):
    num_rows: int
    note: str | None = None


class Renamed(Metadata):
    num_lines: int


class Scored(Metadata):
    spread_field = "scores"
    num_rows: int
    scores: dict[str, float] = {}


class TestMetadata:
    def test_the_items_of_one_field_are_keys_like_the_others(self, tmp_path: Path) -> None:
        scored = Scored(num_rows=2, scores={"macro_f1": 0.5})
        assert scored.as_dict() == {"num_rows": 2, "macro_f1": 0.5}
        assert Scored.model_validate(scored.as_dict()) == scored

    def test_what_is_rewritten_keeps_its_digest_and_what_earlier_stores_noted_is_not_read(
        self, tmp_path: Path
    ) -> None:
        place = Place(str(tmp_path), tmp_path)
        made = place.make({"a": "1"})
        again = place.store.rewrite(
            made, lambda folder: {"num_rows": (folder / "a").write_text("11"), "replaces": ["before"]}
        )
        assert again.content_digest == place.store.load(made.ref).content_digest == made.content_digest
        assert again.files["a"].bytes == 2 and Counted.of(again) == Counted(num_rows=2)

    def test_other_keys_are_an_error_with_its_fix(self, tmp_path: Path) -> None:
        made = Place(str(tmp_path), tmp_path).make({"a": "1"})
        with pytest.raises(
            StoreError,
            match=rf"^{made.ref}: .* \(num_lines: .*\); materialise it again$",
        ):
            Renamed.of(made)


KILLED = """
import sys, time
from fullft_assets.store import Store
with Store(sys.argv[1]).create("mail", "s", "k", version="1", seed=1) as draft:
    (draft.path / "weights.safetensors").write_bytes(b"x" * 1_000_000)
    if sys.argv[2] == "manifest":
        draft._files.write_bytes = lambda name, data: (print("ready", flush=True), time.sleep(600))
        draft.commit(settings={}, inputs={}, metadata={})
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.heavy
class TestKilledWriter:
    @pytest.mark.parametrize("moment", ["files", "manifest"])
    def test_leaves_nothing_that_is_found_and_the_next_attempt_works(self, place: Place, moment: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, place.store.url, moment], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if moment == "manifest" or place.store.is_local:
            assert list(place.disk.rglob("weights.safetensors")), "the writer was killed before it wrote"
        assert place.store.find("mail", "s", "k") is None
        made = manifests.write(place.store, "mail", "s", "k", files={"a": "a"})
        assert place.store.find("mail", "s", "k") == made


class TestS3:
    @pytest.fixture
    def place(self, s3_env: S3Server, tmp_path: Path) -> Place:
        bucket = f"only-s3-{time.time_ns()}"
        return Place(f"s3://{bucket}", s3_env.make_bucket(bucket))

    @pytest.mark.heavy
    def test_a_server_that_cannot_compare_and_swap_is_refused_and_keeps_nothing_of_the_probe(
        self, place: Place, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (place.disk / "a").write_bytes(b"1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_env.behind)
        store = Store(place.store.url)
        with pytest.raises(SettingsError, match=f"^{place.store.url}: .* If-Match and If-None-Match"):
            store.change_pointer("n", lambda found: {"n": 1})
        with pytest.raises(SettingsError), store.create("mail", "s", "k", version="1", seed=1):
            pass
        assert (store.read_bytes("a"), store.find("mail", "s", "k"), store.read_pointer("n")) == (
            b"1",
            None,
            None,
        )
        assert [path for path in place.disk.rglob("*") if path.is_file()] == [place.disk / "a"]

    @pytest.mark.heavy
    def test_fetched_once_and_kept(self, place: Place, s3_env: S3Server) -> None:
        made = place.make({"a.txt": "alpha", "deep/b.txt": "beta"})
        folder = place.store.folder(made)
        (folder / "a.txt").write_text("al")
        assert (place.store.folder(made) / "a.txt").read_text() == "alpha", "a copy that was cut is fetched"
        shutil.rmtree(place.disk / "mail")
        assert place.store.folder(made) == folder
        assert sorted(path.name for path in folder.parent.iterdir()) == [made.attempt]

    def test_a_corrupted_object_of_equal_size_is_detected_and_not_kept(self, place: Place) -> None:
        made = place.make({"a.txt": "alpha", "b.txt": "beta"})
        (place.disk / made.ref / "b.txt").write_text("bet4")
        with pytest.raises(StoreError) as raised:
            place.store.folder(made)
        path = f"{place.store.url}/{made.ref}/b.txt"
        assert (
            str(raised.value)
            == f"{path}: differs from its digest; delete it and materialise raw_documents again"
        )
        assert not [path for path in Path(os.environ["FULLFT_CACHE"]).rglob("*") if path.is_file()]
        # The fix that the message names.
        (place.disk / made.ref / "b.txt").unlink()
        assert place.make({"a.txt": "alpha", "b.txt": "beta"}).ref != made.ref
        assert (place.store.folder(made) / "b.txt").read_text() == "beta"

    @pytest.mark.heavy
    def test_a_wrong_secret_is_refused(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        place.make({"a": "a"})
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(PermissionError):
            Store(place.store.url).read_pointer("any")

    @pytest.mark.heavy
    def test_a_job_file_is_read_back_by_its_uri_alone(self, place: Place, project: projects.Project) -> None:
        job = Job(
            case="letters",
            stage="s",
            key="k",
            project_root=str(project.root),
            store_url=place.store.url,
            settings=project.use_case().settings,
            inputs={"training_snapshot": "a/b/c/d"},
        )
        uri = job.write(place.store)
        assert uri == f"{place.store.url}/jobs/letters/s/k/{job.sha256}.json"
        assert job.arguments(place.store) == ["--job", uri, "--sha256", job.sha256]
        assert read_job(uri, job.sha256).model_dump() == job.model_dump()
        other = job.model_copy(update={"inputs": {}})
        other.write(place.store)
        assert {each.sha256 for each in read_jobs(place.store, "letters", "s", "k")} == {
            job.sha256,
            other.sha256,
        }
        (place.disk / f"jobs/letters/s/k/{job.sha256}.json").write_bytes(b"{}")
        with pytest.raises(StoreError, match=r"\.json: was changed after"):
            read_jobs(place.store, "letters", "s", "k")


@pytest.mark.heavy
def test_every_write_asks_for_encryption_with_the_given_key(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullft_assets.resources.store import open_url

    monkeypatch.setenv("FULLFT_KMS_KEY", "alias/models")
    store = open_url(bucket)
    store.write_pointer("champion", {})
    manifests.write(store, "mail", "s", "k", files={"weights": "w"})
    client, name = boto3.client("s3"), bucket.split("/")[2]
    objects = client.list_objects_v2(Bucket=name)["Contents"]
    assert {Path(each["Key"]).name for each in objects} >= {"champion.json", "weights", "manifest.json"}
    for each in objects:
        head = client.head_object(Bucket=name, Key=each["Key"])
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/models")
        assert head["BucketKeyEnabled"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with (
        limited_files(1_000),
        pytest.raises(DiskError) as raised,
        store.create("letters", "raw_documents", "k1", version="1", seed=0) as draft,
    ):
        (draft.path / "data").write_bytes(bytes(2_000))
    assert str(raised.value).startswith(f"{tmp_path}: no room for letters/raw_documents ([Errno 27] ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.find("letters", "raw_documents", "k1") is None


@pytest.mark.parametrize("name", ["pointers/c/champion.json", "jobs/j.json"])
def test_no_room_for_a_pointer_or_a_job_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = Store(str(tmp_path))
    store.write_json(name, {"is": "kept"})
    message = rf"^{tmp_path}: no room for {name} \(File too large\)"
    with limited_files(1_000), pytest.raises(DiskError, match=message):
        store.write_json(name, {"is": "x" * 2_000})
    assert store.read_json(name) == {"is": "kept"}
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize("content", [b'{"id": ', b"[]", b"[" * 20_000, b"\xff"], ids=repr)
def test_a_damaged_pointer_is_one_line(place: Place, content: bytes) -> None:
    place.store.write_bytes("pointers/c/champion.json", content)
    line = rf"^{place.store.url}/pointers/c/champion.json: damaged, no JSON object; put a copy of it back"
    with pytest.raises(StoreError, match=line):
        place.store.read_pointer("c/champion")
    with pytest.raises(StoreError, match=line):
        place.store.change_pointer("c/champion", lambda value: value)


def test_a_champion_and_a_launch_of_other_keys_are_one_line(place: Place) -> None:
    place.store.write_pointer("c/champion", {"checkpoint": "c/finetuned_checkpoint/k"})
    place.store.write_pointer("launches/c/probe/k", {"attempt": "first"})
    for read in (
        partial(release.read_champion, place.store, "c"),
        partial(release.freeze, place.store, "c", reason="r", by="test"),
        lambda: list(records.launches(place.store, "c")),
    ):
        with pytest.raises(StoreError) as refused:
            read()
        assert re.match(
            rf"{place.store.url}/pointers/(c/champion|launches/c/probe/k).json: damaged, \w+: [^\n]+;"
            " put a copy of it back$",
            str(refused.value),
        )


def test_a_server_that_compares_etags_without_their_quotes_is_understood(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ceph's gateway does."""
    store, conditions = place.store, []
    bucket = SimpleNamespace(
        version_of=lambda *_: FileVersion('"1"', None),
        write_where=lambda *given: conditions.append(given[2].e_tag) or '"' not in given[2].e_tag,
    )
    monkeypatch.setattr(Store, "bucket", bucket)
    assert store.write_if_version("n", b"2", FileVersion('"1"', None)) and conditions == ['"1"', "1"]
    assert not store.write_if_version("n", b"2", FileVersion('"0"', None)), "somebody changed it"


def test_objects_are_removed_where_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they are removed one by one, and a request ends at the first that is gone."""
    for number in range(1, 100):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(buckets, "_opened", lambda *_: LocalStore(tmp_path))
    Bucket("gs://a").remove([str(number) for number in range(100)])
    assert not list(tmp_path.iterdir())
