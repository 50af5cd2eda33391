"""Summaries of the newest artifacts: they save reads, and never change what is known."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fullft_assets.resources import set_latest, store as module, summary_by_partition
from fullft_assets.store import Manifest, Store
from tests import manifests
from tests.s3_server import S3Server

CASE, ASSET = "letters", "labeled_examples"


@dataclass
class Place:
    """A store, the folder of this machine with its files, and which artifacts a summary was made from since
    the last question.
    """

    store: Store
    disk: Path
    asked: list[str] = field(default_factory=list)

    def make(self, partition: str, rows: int) -> Manifest:
        files = {"rows.txt": "x" * rows}
        made = manifests.write(self.store, CASE, ASSET, partition, {"num_rows": rows}, files=files)
        set_latest(self.store, CASE, ASSET, made, partition)
        return made

    def summary(self, version: str = "1") -> tuple[dict[str, Any], list[str]]:
        """Return the summary, and the partitions whose artifacts were read for it."""
        self.asked.clear()

        def derive(manifest: Manifest) -> list[Any]:
            self.asked.append(manifest.key)
            return [manifest.metadata["num_rows"]]

        return summary_by_partition(self.store, CASE, ASSET, derive, version=version), sorted(self.asked)

    @property
    def file(self) -> Path:
        return self.disk / "summaries" / CASE / f"{ASSET}.json"


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    if request.param == "disk":
        return Place(Store(str(tmp_path / "store")), tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_env")
    bucket = f"summaries-{abs(hash(request.node.name)) % 10**8}"
    return Place(Store(f"s3://{bucket}/store"), server.make_bucket(bucket) / "store")


def test_what_is_known_is_not_read_again_and_what_changed_is(place: Place) -> None:
    assert place.summary() == ({}, [])
    for number in range(5):
        place.make(f"b{number}", number)
    rows = {f"b{number}": [number] for number in range(5)}
    assert place.summary() == (rows, list(rows)) and place.summary() == (rows, [])
    place.make("b1", 10)
    place.make("b5", 5)
    place.make("a0", 7)
    changed = {**rows, "b1": [10], "b5": [5], "a0": [7]}
    assert place.summary() == (changed, ["a0", "b1", "b5"]) and place.summary() == (changed, [])
    assert place.summary(version="2") == (changed, sorted(changed))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_text('{"entries": [1]}'),
    ],
    ids=["lost", "cut off", "of another kind"],
)
def test_one_that_is_lost_or_damaged_is_made_again(place: Place, damage: Callable[[Path], object]) -> None:
    rows = {f"b{number}": [number] for number in range(3)}
    for name, (number,) in rows.items():
        place.make(name, number)
    place.summary()
    damage(place.file)
    assert place.summary() == (rows, ["b0", "b1", "b2"]) and place.summary() == (rows, [])


def test_an_artifact_that_is_rewritten_under_its_pointer_is_read_again(place: Place) -> None:
    made = place.make("b0", 4)
    place.make("b1", 5)

    def shorten(folder: Path) -> dict[str, Any]:
        (folder / "rows.txt").write_text("x")
        return {"num_rows": 1}

    def dies() -> None:
        with place.store.rewriting(CASE):
            assert place.summary() == ({"b0": [4], "b1": [5]}, ["b0", "b1"])
            place.store.rewrite(made, shorten)
            raise KeyboardInterrupt

    place.summary()
    with pytest.raises(KeyboardInterrupt):
        dies()
    # Half done: nothing is remembered until it is done again.
    for _ in range(2):
        assert place.summary() == ({"b0": [1], "b1": [5]}, ["b0", "b1"])
    with place.store.rewriting(CASE):
        pass
    assert place.summary() == ({"b0": [1], "b1": [5]}, ["b0", "b1"])
    assert place.summary() == ({"b0": [1], "b1": [5]}, [])
