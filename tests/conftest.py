"""Shared fixtures, and what a quick test may not load."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from fullft_assets.demos import licences
from tests import project as projects, s3_server as s3_servers
from tests.licence_delivery import Delivery
from tests.machine import set_environment

if TYPE_CHECKING:
    from tests.prepared import Prepared

# To look for garbage among the objects of torch, transformers and Dagster takes longer than many a test.
gc.set_threshold(100_000, 50, 1_000)

# Nothing here has to outlive a power cut, and to wait for the disk thousands of times takes longer than the
# tests of the store.
os.fsync = lambda _: None

# `make` names a home that a fresh checkout does not have yet; each test has one of its own.
os.environ.pop("DAGSTER_HOME", None)

# Of each process of the tests its own: workloads of several wait for no core of each other.
os.environ["FULLFT_CACHE"] = tempfile.mkdtemp(prefix="fullft-tests-")

#: Seconds to import, and with them come models and Dagster instances.
HEAVY = ("torch", "transformers", "dagster")


#: Has the context variable with what the instance that was entered last knows of definitions.
_DEFS_STATE = "dagster._core.storage.defs_state.base"


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of the searches for garbage, pytest's own at the end
    included.
    """
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["FULLFT_CACHE"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the Dagster instance of an earlier test: where instances end in another order than they began, a
    gone one stays in a context variable, and definitions that are loaded next would ask it for their state.
    Forget its project, too: they all have one name.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]
    if _DEFS_STATE in sys.modules:
        sys.modules[_DEFS_STATE]._current_storage.set(None)


@pytest.fixture(autouse=True)
def _stays_quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the quick test that loads what a quick test may not; looked at only where no other tests share the
    process.
    """
    yield
    if request.config.getoption("markexpr").startswith("quick and not heavy"):
        loaded = [name for name in HEAVY if name in sys.modules]
        assert not loaded, f"a quick test, or what it imports, loads {', '.join(loaded)}"


@pytest.fixture
def project(tmp_path: Path) -> projects.Project:
    """A project with one use case, 400 delivered rows, nothing run yet."""
    return projects.create(tmp_path)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_servers.S3Server]:
    """A real S3 server; each test makes a bucket of its own."""
    with s3_servers.serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_env(
    s3_server: s3_servers.S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> s3_servers.S3Server:
    """The S3 server, with this process's environment pointing at it and a cache of fetched artifacts of its
    own.
    """
    set_environment(monkeypatch, {**s3_server.env, "FULLFT_CACHE": str(tmp_path / "cache")})
    return s3_server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS account without anything in it, which the environment names."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    set_environment(monkeypatch, variables)
    # The servers of a process share their accounts.
    urlopen(f"http://{host}:{port}/moto-api/reset", b"").close()
    yield
    server.stop()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Prepared":
    """A module's own project, up to the snapshot, with a small base model of random weights."""
    from tests.prepared import prepare

    prepared = prepare(tmp_path_factory.mktemp("tiny"), tiny=True)
    gc.freeze()  # the loop collects garbage for each segment, and would walk over all that the imports made
    return prepared


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's own format: in bf16, which some CPUs are good at, another batch rounds differently."""
    monkeypatch.setattr("fullft_assets.models.precision._cpu_has_bf16_units", lambda: False)


@pytest.fixture(scope="session")
def licence_delivery(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """The sample delivery in full."""
    return Delivery(licences.write(tmp_path_factory.mktemp("delivery") / "licences"))
