"""The store in a container of Azure: Microsoft's emulator, `npm install --global azurite`."""

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from fullft_assets.store import Store
from tests import manifests
from tests.machine import free_port
from tests.test_store import count_in_two_processes

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="needs azurite-blob of npm on the PATH"),
]
ACCOUNT = "letters"


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A prefix of a new container, at which this process's environment points."""
    port = free_port()
    key = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{key}")
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    for name, value in {"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": key, "ENDPOINT": endpoint}.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("FULLFT_CACHE", str(tmp_path / "cache"))
    command = ["azurite-blob", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    place = ["--location", str(tmp_path / "azurite"), "--blobPort", str(port)]
    with subprocess.Popen([*command, *place], stdout=subprocess.DEVNULL) as server:
        try:
            create_container(endpoint, key, "box")
            yield "az://box/some/store"
        finally:
            server.kill()


def create_container(endpoint: str, key: str, name: str) -> None:
    """Create a container by a signed request; the server may be starting."""
    date = formatdate(usegmt=True)
    about = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(key), f"PUT{chr(10) * 12}{about}".encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
        "Content-Length": "0",
    }
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    for _ in range(300):
        try:
            urllib.request.urlopen(request).close()
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("azurite did not start")


def test_artifacts_and_pointers_are_whole(container: str, tmp_path: Path) -> None:
    store, weights = Store(container), os.urandom(30_000_000)
    made = manifests.write(store, "mail", "s", "k", files={"deep/weights": weights})
    assert store.find("mail", "s", "k") == made
    assert (store.folder(made) / "deep/weights").read_bytes() == weights
    assert count_in_two_processes(container, 500) == 1_000
    store.delete(made)
    assert store.sizes("mail") == {}
