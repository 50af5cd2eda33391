"""The store and the deliveries in buckets of the S3 server that compose.yaml ships: conditional writes, pages
of listings, versions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3
import pytest

from fullft_assets import documents
from fullft_assets.documents import sources
from fullft_assets.store import Store
from tests import project as projects, seaweedfs
from tests.machine import set_environment
from tests.prepared import take
from tests.s3_server import S3Server
from tests.test_store import count_in_two_processes

pytestmark = pytest.mark.slow

#: An upload of so much has several parts.
NUM_BYTES = 120_000_000


def client() -> Any:
    """A client of S3; boto3's own session keeps the credentials of the test before."""
    return boto3.Session().client("s3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server by the command of compose.yaml."""
    with seaweedfs.serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket of the server, at which this process's environment points."""
    set_environment(monkeypatch, {**server.env, "FULLFT_CACHE": str(tmp_path / "cache")})
    name = f"b{abs(hash(tmp_path))}"
    client().create_bucket(Bucket=name)
    return name


def test_the_server_of_the_compose_file_is_healthy_and_admits_nobody_without_a_key(
    server: S3Server, bucket: str
) -> None:
    address = seaweedfs.service()["healthcheck"]["test"][-1]
    with urlopen(address.replace("http://127.0.0.1:8333", server.endpoint)) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{server.endpoint}/{bucket}")
    assert refused.value.code == 403


def test_no_change_of_two_processes_is_lost(bucket: str) -> None:
    assert count_in_two_processes(f"s3://{bucket}/store", 500) == 1_000


def test_of_two_writes_under_one_condition_one_is_refused(bucket: str) -> None:
    store = Store(f"s3://{bucket}/store")
    assert store.write_if_version("pointers/a.json", b"1", None) and not store.write_if_version(
        "pointers/a.json", b"2", None
    )
    version = store.bucket.version_of("pointers/a.json")
    assert store.write_if_version("pointers/a.json", b"3", version) and not store.write_if_version(
        "pointers/a.json", b"4", version
    )
    assert store.read_bytes("pointers/a.json") == b"3"


def test_an_artifact_is_made_found_read_and_removed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"s3://{bucket}/some/prefix")
    with store.create("mail", "s", "k", version="1", seed=1) as draft:
        (draft.path / "deep").mkdir()
        with (draft.path / "deep/weights").open("wb") as file:
            file.truncate(NUM_BYTES)
        made = draft.commit(settings={}, inputs={}, metadata={})
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "another machine"))
    found = Store(store.url).find("mail", "s", "k")
    assert found is not None and found.content_digest == made.content_digest
    assert (Store(store.url).folder(found) / "deep/weights").stat().st_size == NUM_BYTES
    store.delete(made)
    assert store.find("mail", "s", "k") is None and store.sizes("mail") == {}


def test_the_data_stages_give_the_same_as_on_a_local_folder(bucket: str, project: projects.Project) -> None:
    local, remote = (
        take(project, store=Store(url)).snapshot
        for url in (str(project.home / "store"), f"s3://{bucket}/store")
    )
    assert (remote.content_digest, remote.key) == (local.content_digest, local.key)


def test_a_listing_of_several_pages_has_each_file_once(bucket: str, project: projects.Project) -> None:
    """A gateway may begin a page with the key after which it was asked to go on."""
    s3, names = client(), [f"{number:04d}.jsonl" for number in range(2_105)]
    for name in names:
        s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=b'{"text": "a"}\n')
    project.configure(documents={"path": f"s3://{bucket}/in"})
    source = documents.source_of(project.use_case(), "batch")
    assert isinstance(source, sources.S3Prefix)
    assert [file.path for file in source.listed()[0]] == names
    found, after = source.listed(most_pages=1)
    while after:
        more, after = source.listed(after, most_pages=1)
        found += more
    assert [file.path for file in found] == names


def test_pointers_change_where_the_bucket_keeps_versions(bucket: str) -> None:
    store = Store(f"s3://{bucket}/store")
    client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    store.change_pointer("champion", lambda _: {"n": 1})
    store.change_pointer("champion", lambda _: {"n": 2})
    assert store.read_pointer("champion") == {"n": 2}
