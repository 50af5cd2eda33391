"""Erasure: after it no file of the store holds the document, what pointed at its batch still reads, and its
file cannot bring it back.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from fullft_assets import documents, erasure, release, snapshot
from fullft_assets.resources import latest, open_store
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.prepared import write_tiny_model
from tests.project import Project

CASE = "letters"

pytestmark = pytest.mark.slow


def own_words(store: Store) -> tuple[str, list[str]]:
    """Return a word that TF-IDF learned from some training documents and that no other document has, and
    their ids.
    """
    (baselines,) = store.artifacts(CASE, "cheaper_baselines")
    (checkpoint,) = store.artifacts(CASE, "finetuned_checkpoint")
    learned = set().union(*json.loads((store.folder(baselines) / "tfidf.json").read_text(encoding="utf-8")))
    # The model's own vocabulary stays.
    known = json.loads((store.folder(checkpoint) / "model" / "tokenizer.json").read_text(encoding="utf-8"))[
        "model"
    ]["vocab"]
    ids_of: dict[str, list[str]] = {}
    for row in documents_of(store):
        for word in set(re.findall(r"\w+", row["text"].lower())):
            ids_of.setdefault(word, []).append(row["id"])
    train = {row["id"] for row in index_rows(store, "train")}
    return next(
        (word, ids)
        for word, ids in sorted(ids_of.items())
        if len(word) > 6
        and word.isalpha()
        and word in learned
        and word not in known
        and train.issuperset(ids)
    )


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


def table_of(store: Store, stage: str, file: str) -> list[dict]:
    """Return the rows of a table of the one artifact of a stage."""
    (artifact,) = store.artifacts(CASE, stage)
    return pq.read_table(store.folder(artifact) / file).to_pylist()


def documents_of(store: Store) -> list[dict]:
    return table_of(store, "raw_documents", "documents.parquet")


def index_rows(store: Store, split: str) -> list[dict]:
    texts = documents_of(store)
    count = Counter(row["text"] for row in texts)
    # A text that another document has as well rightly stays, as that one's.
    alone = {row["id"] for row in texts if count[row["text"]] == 1}
    rows = table_of(store, "training_snapshot", "index.parquet")
    return [row for row in rows if row["split"] == split and row["id"] in alone]


def text_of(store: Store, id_: str) -> str:
    return next(row["text"] for row in documents_of(store) if row["id"] == id_)


def files_with(store: Store, text: str, id_: str) -> list[str]:
    """Return the files of the store that contain a text or an id, Parquet ones read as tables."""
    found = []
    for path in Path(store.url).rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            # Column by column: a licence's id may be another one's whole text.
            if any(
                name in table.column_names and value in table[name].to_pylist()
                for name, value in (("text", text), ("id", id_))
            ):
                found.append(str(path))
        elif path.suffix in (".html", ".md", ".json", ".jsonl", ".txt"):
            content = path.read_text(encoding="utf-8")
            if text[:80] in content or id_ in content:
                found.append(str(path))
    return found


def test_a_training_document_is_gone_everywhere_and_the_champion_is_named(store: Store):
    id_ = index_rows(store, "train")[3]["id"]
    text = text_of(store, id_)
    assert files_with(store, text, id_), "it was there"
    report = erasure.erase(store, CASE, [id_], reason="asked for")
    assert files_with(store, text, id_) == []
    (checkpoint,) = store.artifacts(CASE, "finetuned_checkpoint")
    assert report.num_found == 1
    assert report.trained_on == [checkpoint.ref]
    assert report.measured_on == []
    assert report.rewritten["raw_documents"] == report.rewritten["training_snapshot"] == 1
    assert report.deleted["cheaper_baselines"] == 1, "they know its words"
    assert not any(id_ in line for line in report.lines())


def trained_again(store: Store, checkpoint: Manifest, key: str) -> Manifest:
    """Write a checkpoint like this one under another key."""
    with store.create(CASE, checkpoint.stage, key, version=checkpoint.version, seed=checkpoint.seed) as draft:
        shutil.copytree(
            store.folder(checkpoint),
            draft.path,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("manifest.json"),
        )
        return draft.commit(
            settings=checkpoint.settings, inputs=checkpoint.inputs, metadata=checkpoint.metadata
        )


def test_present_and_past_champions_are_marked_among_the_checkpoints(store: Store):
    (first,) = store.artifacts(CASE, "finetuned_checkpoint")
    second, other = trained_again(store, first, "k2"), trained_again(store, first, "k3")
    for number, made in enumerate((first, second)):
        champion = release.Champion(
            checkpoint=made.ref,
            snapshot=made.metadata["snapshot"],
            evaluation="e",
            score=0.5,
            promoted_at=float(number),
            run_id="r",
        )
        release.promote(store, CASE, champion)
    assert release.read_champion(store, CASE).checkpoint == second.ref
    assert release.read_history(store, CASE)[0].champion.checkpoint == first.ref
    report = erasure.erase(store, CASE, [index_rows(store, "train")[3]["id"]])
    assert report.trained_on == [first.ref, second.ref, other.ref]
    assert report.champions == [first.ref, second.ref]
    shown = [line for line in report.lines() if line.startswith("learned from")]
    assert shown == [
        f"learned from {first.ref} (champion)",
        f"learned from {second.ref} (champion)",
        f"learned from {other.ref}",
    ]
    assert (
        store.read_pointer(f"{CASE}/erasures/{store.list_pointers(f'{CASE}/erasures')[0]}")["champions"]
        == report.champions
    )


def test_a_test_document_was_only_measured_on(store: Store):
    id_ = index_rows(store, "test")[0]["id"]
    report = erasure.erase(store, CASE, [id_])
    assert report.trained_on == []
    assert len(report.measured_on) == 1


def test_all_documents_of_a_group(store: Store):
    group = index_rows(store, "train")[0]["group"]
    num_of_group = sum(row["group"] == group for row in documents_of(store))
    report = erasure.erase(store, CASE, [group], by="group")
    assert report.num_found == num_of_group
    remaining = table_of(store, "labeled_examples", "examples.parquet")
    assert group not in {row["group"] for row in remaining}
    (labeled,) = store.artifacts(CASE, "labeled_examples")
    assert labeled.metadata["num_valid"] == len(remaining)


def test_the_name_of_a_group_without_rows_is_nowhere(project: Project, store: Store):
    gone = max(table_of(store, "evaluation_report", "predictions.parquet"), key=lambda row: row["group"])[
        "group"
    ]
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


def test_tracebacks_which_may_quote_a_document_are_gone(tmp_path: Path):
    store = Store(str(tmp_path))
    for case in ("letters", "mails"):
        store.keep_traceback(case, ValueError("what a letter says"))
    report = erasure.erase(store, "letters", ["letter-1"])
    assert "deleted      1 tracebacks, which may quote them" in report.lines()
    assert [path.parts[-3] for path in tmp_path.rglob("*.txt")] == ["mails"]


def test_its_file_delivered_again_does_not_bring_it_back(project: Project, store: Store):
    id_ = index_rows(store, "train")[0]["id"]
    erasure.erase(store, CASE, [id_])
    project.deliver("delivery-2.jsonl", projects.licence_rows(400))
    use_case = project.use_case()
    (batch,) = documents.cut_batches(store, CASE, project.documents, use_case.settings.documents)
    raw = documents.keep(store, use_case, batch.name)
    assert raw.metadata["num_erased"] == 1
    assert id_ not in pq.read_table(store.folder(raw) / "documents.parquet")["id"].to_pylist()


def test_a_new_snapshot_is_taken_without_it(project: Project, store: Store):
    id_ = index_rows(store, "train")[0]["id"]
    erasure.erase(store, CASE, [id_])
    (labeled,) = store.artifacts(CASE, "labeled_examples")
    (tokenized,) = store.artifacts(CASE, "tokenized_chunks")
    batch = labeled.metadata["batch"]
    taken = snapshot.take(store, project.use_case(), {batch: labeled}, {batch: tokenized})
    assert taken.key != store.artifacts(CASE, "training_snapshot")[0].key
    assert id_ not in snapshot.load_split(store, taken, "train").ids


@pytest.mark.long
def test_the_next_run_plans_again_without_them(project: Project, store: Store):
    word, ids = own_words(store)
    erasure.erase(store, CASE, ids)
    done = project.fullft("run", CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    taken, baselines = (latest(store, CASE, name) for name in ("training_snapshot", "cheaper_baselines"))
    assert baselines.inputs["training_snapshot"] == taken.content_digest
    assert word not in json.loads((store.folder(baselines) / "tfidf.json").read_text(encoding="utf-8"))
    assert not set(ids) & set(snapshot.load_split(store, taken, "train").ids)


def test_the_command(project: Project, tmp_path: Path):
    listed = tmp_path / "list.txt"
    listed.write_text("nobody-knows-this-id\n")
    done = project.fullft("erase", CASE, str(listed), "--reason", "asked for")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "0 documents erased, 1 ids or groups listed"
    assert (
        done.stderr.strip()
        == f"{listed}:1: `nobody-knows-this-id`: no document has this id; fix the line and erase again"
    )
    missing = project.fullft("erase", CASE, str(tmp_path / "none.txt"))
    assert missing.returncode == 1
    assert (
        missing.stderr.strip()
        == f"{tmp_path / 'none.txt'}: cannot be read (No such file or directory); give a text file with one"
        " document id a line"
    )
