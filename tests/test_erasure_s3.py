"""Erasure from a store on S3: afterwards neither the bucket, nor the local copies, nor the temporary folder
hold the document.
"""

import os
import tempfile
import time
from pathlib import Path

import pytest

from fullft_assets import erasure, snapshot
from fullft_assets.erasure import checkpoints
from fullft_assets.erasure.rewriting import TRAININGS
from fullft_assets.store import Store, checkpoints_ref
from tests.project import write_files
from tests.s3_server import S3Server
from tests.test_erasure_batches import CASE, Batches, rows, traces


@pytest.fixture
def places(s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where an artifact of a store on S3 may lie: the bucket's folder, the local copies, and the temporary
    folder.
    """
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return {
        "bucket": s3_env.make_bucket(f"erased-{time.time_ns()}"),
        "copies": Path(os.environ["FULLFT_CACHE"]),
        "temporary": tmp_path / "temporary",
    }


def test_nothing_of_a_document_is_left_in_the_bucket_or_the_local_copies(
    places: dict[str, Path], tmp_path: Path
) -> None:
    batches = Batches(tmp_path / "project")
    batches.store = Store(f"s3://{places['bucket'].name}/some/prefix")
    delivered = rows(24)
    batches.deliver("a.jsonl", delivered)
    (batches.project.documents / "smith_john.txt").write_text("a note about him and what he had")
    batches.deliver("b.jsonl", rows(8, 24))
    taken = batches.take()
    before = batches.texts(taken)
    assert {"d2", "d9"} <= before.keys()
    marks = ("'d2'", '"d2"', repr(delivered[2]["text"])[1:60], "smith_john", "a note about him")
    assert traces(places["bucket"], *marks) and traces(places["copies"], *marks), (
        "it was there, and was fetched"
    )
    report = erasure.erase(batches.store, CASE, ["d2", "smith_john.txt"])
    assert (report.num_found, report.missing, report.num_in_flight) == (2, [], 0)
    assert {name: traces(path, *marks) for name, path in places.items()} == {
        "bucket": [],
        "copies": [],
        "temporary": [],
    }
    assert batches.texts(taken) == {id_: row for id_, row in before.items() if id_ != "d2"}
    assert {name: traces(path, *marks) for name, path in places.items()} == {
        "bucket": [],
        "copies": [],
        "temporary": [],
    }
    assert "d2" not in snapshot.load_split(batches.store, batches.take(), "train").ids


def test_unfinished_trainings_lose_their_checkpoints_in_the_bucket(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a machine is training is left alone."""
    monkeypatch.setattr(checkpoints, "_PATIENCE_SECONDS", 1.0)
    batches = Batches(tmp_path / "project")
    store = batches.store = Store(f"s3://{places['bucket'].name}/some/prefix")
    batches.deliver("a.jsonl", rows(24))
    batches.take()
    kept = {
        key: places["bucket"] / "some/prefix" / checkpoints_ref(CASE, "finetuned_checkpoint", key)
        for key in ("over", "alive")
    }
    for folder in kept.values():
        write_files(folder, {"00000002-ab/model.safetensors": "what it has learned of him"})
    with store.alone(checkpoints_ref(CASE, "finetuned_checkpoint", "alive")):
        report = erasure.erase(store, CASE, ["d2"])
    assert (report.deleted[TRAININGS], report.num_in_flight) == (1, 1) and [
        key for key, folder in kept.items() if traces(folder, "him")
    ] == ["alive"]
    assert erasure.erase(store, CASE, ["d3"]).deleted[TRAININGS] == 1 and not traces(
        places["bucket"], "learned of him"
    )
