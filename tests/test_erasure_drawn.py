"""Erasure of general documents: those that are replayed, and those that forgetting is measured on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import erasure, snapshot
from fullft_assets.erasure import erasing
from fullft_assets.erasure.rewriting import TRAININGS
from fullft_assets.errors import GateError, Interrupted, StoreError
from fullft_assets.launch.workloads import training
from fullft_assets.release import starting_point
from fullft_assets.snapshot import general, loading
from fullft_assets.store import Manifest, Store
from fullft_assets.training.finetuning import exclusive
from tests import manifests, project as projects
from tests.optimizer_steps import Stopping
from tests.prepared import Prepared, prepare, prepare_language_model, write_general
from tests.test_erasure_batches import PowerCut, power_cut, traces

BOTH = {"general": {"path": "general", "max_tokens": 2_000}, "replay": {"path": "general", "share": 0.2}}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A language model's snapshot with both; half of the general documents have ids, each of the others is a
    file called after somebody.
    """
    root = tmp_path_factory.mktemp("drawn")
    texts = write_general(root / "general", 60)
    (root / "general" / "general.jsonl").unlink()
    projects.write_rows(
        root / "general" / "named.jsonl",
        [{"id": f"G-{n:03}", "text": text} for n, text in enumerate(texts[:40])],
    )
    for n, text in enumerate(texts[40:]):
        (root / "general" / f"patient-{n:03}.txt").write_text(text)
    return prepare_language_model(root, snapshot=BOTH, rows=80)


@pytest.fixture
def case(origin: Prepared, tmp_path: Path) -> Prepared:
    shutil.copytree(origin.store.url, tmp_path / "store")
    return replace(origin, store=Store(str(tmp_path / "store")))


def drawn(case: Prepared, kind: str) -> list[dict[str, Any]]:
    made = case.store.load(case.store.load(case.snapshot.ref).metadata[kind])
    return pq.read_table(case.store.folder(made) / "examples.parquet").to_pylist()


def named(case: Prepared, kind: str) -> dict[str, Any]:
    return next(row for row in drawn(case, kind) if row["id"].startswith("G-"))


def stopped(case: Prepared, key: str, taken: Manifest) -> Path:
    """Begin to train and stop with a checkpoint; return the folder of this unfinished work."""
    job = replace(case, snapshot=taken).job(
        "finetuned_checkpoint", key, training={"epochs": 2, "checkpoint_every_steps": 1}
    )
    job.write(case.store)
    with pytest.raises(Interrupted):
        training.work(job, case.store, Stopping(1))
    folder = case.store.work_folder(case.use_case.name, "finetuned_checkpoint", key)
    assert list(folder.rglob("*.safetensors")), "it has learned"
    return folder


@pytest.mark.parametrize("kind", ["general", "replay"])
def test_nothing_of_it_is_left(case: Prepared, kind: str) -> None:
    gone = named(case, kind)
    before = {name: drawn(case, name) for name in ("general", "replay")}
    marks = (gone["text"][:80], repr(gone["text"])[1:80], gone["id"], gone["text_hash"])
    assert traces(Path(case.store.url), *marks), "it was there"
    report = erasure.erase(case.store, case.use_case.name, [gone["id"]])
    assert (report.num_found, report.missing) == (1, [])
    assert report.rewritten == {
        f"{kind}_documents": 1,
        "training_snapshot": 1,
    }
    assert traces(Path(case.store.url), *marks) == []
    for name, rows in before.items():
        assert drawn(case, name) == [row for row in rows if row["id"] != gone["id"]], name


def test_what_is_left_of_replay_is_packed_anew_with_its_own_windows(case: Prepared) -> None:
    before, rows = snapshot.load_training(case.store, case.snapshot), drawn(case, "replay")
    made = case.store.load(case.snapshot.metadata["replay"])
    windows = pq.read_table(case.store.folder(made) / "chunks.parquet")["windows"].to_pylist()
    at = next(n for n, row in enumerate(rows) if row["id"].startswith("G-"))
    erasure.erase(case.store, case.use_case.name, [rows[at]["id"]])
    assert not snapshot.table_folder(case.store, case.use_case.name).exists(), "it has its tokens"
    taken = case.store.load(case.snapshot.ref)
    left = snapshot.load_training(case.store, taken)
    expected = [window for n, cut in enumerate(windows) if n != at for window in cut]
    assert left.chunks.to_pylist() == before.chunks[: before.num_task_chunks].to_pylist() + expected
    assert left.packing.num_tokens == sum(map(len, left.chunks))
    num_tokens = sum(map(len, expected))
    assert (taken.metadata["num_replay_rows"], taken.metadata["num_replay_tokens"]) == (
        len(rows) - 1,
        num_tokens,
    )
    assert (taken.metadata["num_packed_rows"], taken.metadata["packing_fill"]) == (
        left.packing.num_rows,
        left.packing.fill,
    )
    assert case.store.load(made.ref).metadata["share"] == pytest.approx(
        num_tokens / (num_tokens + (sum(map(len, left.chunks)) - num_tokens))
    )
    assert taken.content_digest != case.snapshot.content_digest, "training on it is asked for again"
    assert case.take_again().ref == taken.ref


@pytest.mark.parametrize("kind", ["general", "replay"])
def test_it_is_not_drawn_again(case: Prepared, kind: str) -> None:
    gone = named(case, kind)
    file = next(row for row in drawn(case, kind) if row["id"].startswith("patient-"))
    erasure.erase(case.store, case.use_case.name, [gone["id"], file["source"]])
    limits = case.use_case.settings.snapshot
    less, more = (
        limits.general.model_copy(update={"max_tokens": 1_900}),
        limits.replay.model_copy(update={"share": 0.21}),
    )
    limits = limits.model_copy(update={"general": less, "replay": more})
    fresh = replace(
        case,
        use_case=replace(
            case.use_case, settings=case.use_case.settings.model_copy(update={"snapshot": limits})
        ),
    )
    taken = fresh.take_again()
    assert taken.key != case.snapshot.key
    fresh = replace(fresh, snapshot=taken)
    rows = drawn(fresh, "general") + drawn(fresh, "replay")
    assert rows and not {gone["text"], file["text"]} & {row["text"] for row in rows}
    assert case.store.load(taken.metadata[kind]).metadata["num_unusable"]["erased"] == 2


@pytest.mark.parametrize("kind", ["general", "replay"])
def test_readers_refuse_until_one_that_was_cut_short_is_finished(
    case: Prepared, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[..., Any] = {"general": general.load, "replay": loading.load_training}[kind]
    gone = named(case, kind)
    file = next(row for row in drawn(case, kind) if row["id"].startswith("patient-"))["source"]
    with monkeypatch.context() as patched:
        patched.setattr(erasing, "drop_from_snapshots", power_cut)
        with pytest.raises(PowerCut):
            erasure.erase(case.store, case.use_case.name, [gone["id"], file])
    with pytest.raises(StoreError, match=f"the {kind} set was rewritten "):
        read(case.store, case.store.load(case.snapshot.ref))
    report = erasure.erase(case.store, case.use_case.name, [gone["id"], file])
    assert report.missing == [] and traces(Path(case.store.url), gone["id"], file) == []
    taken = case.store.load(case.snapshot.ref)
    assert read(case.store, taken) and [each["lost_from"] for each in taken.metadata["erasures"]] == [[kind]]


@pytest.mark.slow
def test_a_checkpoint_that_replayed_it_is_named_and_one_that_was_measured_on_it_is_not(
    case: Prepared,
) -> None:
    checkpoint = case.train("k", epochs=0.1)
    assert erasure.erase(case.store, case.use_case.name, [named(case, "general")["id"]]).trained_on == []
    assert go_on_from(case, checkpoint) == checkpoint
    report = erasure.erase(case.store, case.use_case.name, [named(case, "replay")["id"]])
    assert (
        report.trained_on == report.champions == [checkpoint.ref]
        and f"learned from {checkpoint.ref} (champion)" in report.lines()
    )
    with pytest.raises(GateError, match="documents that were erased"):
        go_on_from(case, checkpoint)
    # One that goes on from it has learned it as well.
    job = replace(case, snapshot=case.store.load(case.snapshot.ref)).job("finetuned_checkpoint", "next")
    job.model_copy(update={"inputs": {**job.inputs, "champion": checkpoint.ref}}).write(case.store)
    folder = case.store.work_folder(case.use_case.name, "finetuned_checkpoint", "next")
    assert erasure.erase(case.store, case.use_case.name, []).deleted[TRAININGS] == 1 and not folder.exists()
    # One that is trained on what is left has not.
    replace(case, snapshot=case.store.load(case.snapshot.ref)).train("since", epochs=0.1)
    assert erasure.erase(case.store, case.use_case.name, []).trained_on == [checkpoint.ref]
    # Nor where something else is erased later, which it was only measured on.
    later = erasure.erase(case.store, case.use_case.name, [named(case, "general")["id"]])
    assert later.trained_on == [checkpoint.ref]


def go_on_from(case: Prepared, checkpoint: Manifest) -> Manifest | None:
    """Return what a training on the snapshot of today begins with if this checkpoint is champion."""
    manifests.promote(case.store, case.use_case.name, checkpoint.ref, snapshot=case.snapshot.ref)
    sections = case.use_case.settings.training.model_copy(update={"retrain_from": "champion"})
    settings = case.use_case.settings.model_copy(update={"training": sections})
    revision, taken = checkpoint.metadata["base_model_revision"], case.store.load(case.snapshot.ref)
    return starting_point.find(
        case.store, case.use_case.name, settings, taken, revision=revision, decision=taken.content_digest
    )


@pytest.mark.parametrize(("ewc", "learned"), [(0.0, False), (0.1, True)])
def test_the_general_set_teaches_where_it_says_which_weights_matter(
    tmp_path: Path, ewc: float, learned: bool
) -> None:
    write_general(tmp_path / "general", 8)
    case = prepare(tmp_path, tiny=True, rows=400, snapshot={"general": {"path": "general"}})
    checkpoint = case.train("k", epochs=1, ewc=ewc)
    report = erasure.erase(case.store, case.use_case.name, [drawn(case, "general")[0]["id"]])
    assert report.trained_on == ([checkpoint.ref] if learned else [])


def test_unfinished_training_that_learned_from_it_is_removed(case: Prepared) -> None:
    first = stopped(case, "k1", case.snapshot)
    held = case.store.work_folder(case.use_case.name, "finetuned_checkpoint", "k2")
    shutil.copytree(first, held, dirs_exist_ok=True)
    case.job("finetuned_checkpoint", "k2").write(case.store)
    with exclusive(held):
        report = erasure.erase(case.store, case.use_case.name, [named(case, "replay")["id"]])
    assert (first.exists(), held.exists()) == (False, True)
    assert (
        report.deleted[TRAININGS],
        report.num_in_flight,
    ) == (1, 1)
    report = erasure.erase(case.store, case.use_case.name, [named(case, "general")["id"]])
    assert report.deleted[TRAININGS] == 1 and not held.exists()
    # What began after the erasure stays.
    since = case.store.work_folder(case.use_case.name, "finetuned_checkpoint", "k3")
    replace(case, snapshot=case.store.load(case.snapshot.ref)).job("finetuned_checkpoint", "k3").write(
        case.store
    )
    report = erasure.erase(case.store, case.use_case.name, [])
    assert since.exists() and not report.deleted[TRAININGS]
