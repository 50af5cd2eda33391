"""A store on S3 behind a proxy that spoils answers: nothing is lost, made twice or read damaged."""

import os
from pathlib import Path

import pytest

from fullft_assets.store import Store
from tests import fault_proxy, manifests
from tests.s3_server import S3Server


@pytest.mark.slow
@pytest.mark.fault("S3 fails or damages a file")
@pytest.mark.parametrize("fault", fault_proxy.FAULTS)
def test_artifacts_and_pointers_are_whole_and_counted_once(
    fault: str, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    s3_env.make_bucket(f"faults-{fault}-{os.getpid()}")
    url = f"s3://faults-{fault}-{os.getpid()}/store"
    files = {"a.bin": os.urandom(300_000), "b.txt": b"42"}
    with fault_proxy.serving(s3_env.endpoint, faults=(fault,), share=0.5, seed=17) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "cache"))
        store = Store(url)
        made = manifests.write(store, "mail", "s", "k", files=files)
        for number in range(1, 9):
            store.change_pointer("n", lambda found: {"n": (found or {"n": 0})["n"] + 1})
            assert store.read_pointer("n") == {"n": number}
        monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "another_cache"))
        found = Store(url).find("mail", "s", "k")
        assert found is not None and found.content_digest == made.content_digest
        assert {name: (Store(url).folder(found) / name).read_bytes() for name in files} == files
        assert proxy.injected[fault] >= 5


@pytest.mark.slow
@pytest.mark.fault("S3 fails or damages a file")
@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_a_read_whose_answer_is_cut_is_repeated(
    size: int, s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    s3_env.make_bucket(f"cut-{size}-{os.getpid()}")
    url, content = f"s3://cut-{size}-{os.getpid()}", os.urandom(size)
    Store(url).write_bytes("a", content)  # with a checksum, which botocore compares
    with fault_proxy.serving(s3_env.endpoint, faults=("cut",), share=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = Store(url)
        assert store.read_bytes("a") == content
        proxy.spoilt.clear()
        store.download("a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content and proxy.injected["cut"] >= 4
        assert store.names("") == ["a"] and store.sizes("") == {"/a": size}
        store.remove("a")
        assert not store.names("") and proxy.injected["cut"] >= 10
