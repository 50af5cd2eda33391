"""Erasure: after it no file of the store holds the document, what pointed at its batch still reads, and its
file cannot bring it back.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from fullft_assets import erasure, snapshot
from fullft_assets.resources import open_store
from fullft_assets.store import Store
from tests import project as projects
from tests.prepared import write_tiny_model
from tests.project import Project
from tests.test_erasure_batches import traces

CASE = "letters"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose whole graph was run once; how well its model of 1 MB learns plays no part."""
    root = tmp_path_factory.mktemp("finished")
    write_tiny_model(root / "model")
    sections = {"planning": {"min_predicted_gain": -1}, "training": {"learning_rate": 5e-3}}
    project = projects.create(root, CASE, rows=400, base_model="model", **sections)
    done = project.fullft("run", CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", CASE)


@pytest.fixture
def store(project: Project) -> Iterator[Store]:
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        yield open_store(project.use_case(), instance)


def test_a_training_document_is_gone_everywhere_and_the_checkpoint_is_named(store: Store):
    (taken,) = store.artifacts(CASE, "training_snapshot")
    train = snapshot.load_split(store, taken, "train", windows=False)
    # What another document says as well rightly stays; and an id may be the text or the group of another one.
    delivered = projects.licence_rows(400)
    texts = [row["text"] for row in delivered]
    names = {row[column] for row in delivered for column in ("text", "expression")}
    id_, text = next(
        (id_, text)
        for id_, text in zip(train.ids, train.texts, strict=True)
        if len(text) > 80 and sum(text[:60] in other for other in texts) == 1 and id_ not in names
    )
    marks = (repr(text)[1:80], text[:80], f"'{id_}'", f'"{id_}"')
    assert traces(Path(store.url), *marks), "it was there"
    report = erasure.erase(store, CASE, [id_], reason="asked for")
    assert traces(Path(store.url), *marks) == []
    (checkpoint,) = store.artifacts(CASE, "finetuned_checkpoint")
    assert report.num_found == 1
    assert report.trained_on == [checkpoint.ref]
    assert report.rewritten["raw_documents"] == report.rewritten["training_snapshot"] == 1
    assert report.deleted["cheaper_baselines"] == 1, "they know its words"
    assert not any(id_ in line for line in report.lines())


def test_the_name_of_a_group_without_rows_is_nowhere(project: Project, store: Store):
    (report,) = store.artifacts(CASE, "evaluation_report")
    gone = max(pq.read_table(store.folder(report) / "predictions.parquet")["group"].to_pylist())
    forms = [f"| {gone} |", f"`{gone}`", f'"{gone}"']
    assert not [mark for mark in forms if mark in project.logged()], "nor was it ever logged"
    erasure.erase(store, CASE, [gone], by="group")
    pages = [
        path
        for path in Path(store.url).rglob("*")
        if path.suffix in (".html", ".md") or path.name == "evaluation.json"
    ]
    assert not [
        path for path in pages for mark in (*forms, f">{gone}<") if mark in path.read_text(encoding="utf-8")
    ]
