"""What a clean-up removes, and what happens meanwhile, on small artifacts with the inputs and metadata of
real ones.
"""

import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fullft_assets import erasure, release, retention
from fullft_assets.erasure import checkpoints
from fullft_assets.errors import StoreError
from fullft_assets.job import Job
from fullft_assets.launch import records
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.production import RetentionSettings
from fullft_assets.store import Manifest, Store
from tests import manifests
from tests.test_erasure_batches import PowerCut, killed_at

pytestmark = pytest.mark.quick

CASE = "mail"
CHECKPOINT = "finetuned_checkpoint"


@dataclass
class Lab:
    """A use case with five champions, each judged against the one before, of which `keep_champions` keeps one
    beside the present one.
    """

    store: Store
    champions: list[release.Champion] = field(default_factory=list)

    @property
    def use_case(self) -> Any:
        return SimpleNamespace(
            name=CASE, settings=SimpleNamespace(retention=RetentionSettings(keep_champions=1))
        )

    def make(
        self,
        stage: str,
        key: str,
        inputs: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Manifest:
        files = {"weights": stage + key}
        return manifests.write(self.store, CASE, stage, key, metadata, files=files, inputs=inputs or {})

    def candidate(self, number: int, incumbent: release.Champion | None) -> release.Champion:
        """Make a snapshot, a checkpoint, its evaluation against the incumbent, and the decision."""
        against = None if incumbent is None else self.store.load(incumbent.checkpoint)
        compared = {"incumbent": against and against.ref, "anchor": None, "seed_runs": []}
        taken = self.make("training_snapshot", f"s{number}")
        made = self.make(
            CHECKPOINT, f"c{number}", {"training_snapshot": taken.content_digest}, {"snapshot": taken.ref}
        )
        inputs = {CHECKPOINT: made.content_digest} | (
            {} if against is None else {"champion": against.content_digest}
        )
        report = self.make("evaluation_report", f"e{number}", inputs, {"checkpoint": made.ref, **compared})
        self.store.write_pointer(
            f"{CASE}/decisions/{made.key}", {**compared, "evaluation": report.ref, "promote": True}
        )
        return release.Champion(
            checkpoint=made.ref,
            snapshot=taken.ref,
            evaluation=report.ref,
            score=0.5,
            promoted_at=time.time(),
            run_id="run",
        )

    def set_latest(self, made: Manifest, partition: str = "all") -> None:
        self.store.write_pointer(f"latest/{CASE}/{made.stage}/{partition}", {"ref": made.ref})

    def unfinished(self, key: str, *, is_old: bool = False, **inputs: Manifest) -> Path:
        """Return the work folder of a training that was stopped, before all champions or just now."""
        settings = UseCaseSettings.model_validate(
            {"base_model": "none", "documents": {"path": "none"}, "examples": {"label": "none"}}
        )
        Job(
            case=CASE,
            stage=CHECKPOINT,
            key=key,
            project_root=".",
            store_url=self.store.url,
            settings=settings,
            inputs={name: made.ref for name, made in inputs.items()},
        ).write(self.store)
        folder = self.store.work_folder(CASE, CHECKPOINT, key)
        (folder / "weights").write_text("learned")
        for path in (folder / "weights", folder):
            os.utime(path, (1.0 if is_old else time.time() + 1,) * 2)
        return folder

    @property
    def keys(self) -> set[str]:
        """Keys of the artifacts that have their files."""
        refs = {ref for stage in self.store.names(CASE) for ref in self.store.refs(CASE, stage)}
        return {ref.split("/")[2] for ref in refs if self.store.read_bytes(f"{ref}/weights") is not None}

    def promote(self, number: int) -> None:
        self.champions.append(self.candidate(number, self.champions[-1] if self.champions else None))
        release.promote(self.store, CASE, self.champions[-1])

    @property
    def history(self) -> list[str]:
        return [past.champion.checkpoint.split("/")[2] for past in release.read_history(self.store, CASE)]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(Store(str(tmp_path / "store")))
    for number in range(5):
        lab.promote(number)
    return lab


def named(*numbers: int) -> set[str]:
    return {f"{kind}{number}" for kind in "sce" for number in numbers}


def test_weights_of_champions_before_the_kept_ones_go_and_reports_stay(lab: Lab) -> None:
    """The present one, the one before and the first stay."""
    found = retention.clean(lab.store, lab.use_case)
    assert lab.keys == named(0, 3, 4) | {"e1", "e2"} and lab.history == ["c3", "c0"]
    assert found.lines[:2] == [
        f"no roll-back returns to {lab.champions[number].checkpoint}, which leaves the history"
        for number in (2, 1)
    ]
    release.rollback(lab.store, CASE, reason="worse", by="me")
    assert retention.clean(lab.store, lab.use_case) == retention.CleanUp()


def test_the_newest_predictions_go_with_their_champion(lab: Lab) -> None:
    lab.set_latest(lab.make("batch_predictions", "w1"), "2026-01")
    for number in (5, 6):
        lab.promote(number)
    lab.set_latest(lab.make("batch_predictions", "w2"), "2026-02")
    lab.set_latest(lab.make("tokenized_chunks", "b1"), "b1")
    retention.clean(lab.store, lab.use_case)
    assert lab.keys >= {"w2", "b1"} and "w1" not in lab.keys


def test_a_roll_back_before_anything_was_removed_ends_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = retention.plan

    def slow(*args: Any) -> retention.CleanUp:
        found = plan(*args)
        for _ in range(3):
            release.rollback(lab.store, CASE, reason="worse", by="me")
        return found

    before = lab.keys
    monkeypatch.setattr(retention, "plan", slow)
    with pytest.raises(StoreError, match="mail: the champion was changed"):
        retention.clean(lab.store, lab.use_case)
    monkeypatch.setattr(retention, "plan", plan)
    assert lab.keys == before and lab.history == ["c2", "c3", "c4", "c0"]
    retention.clean(lab.store, lab.use_case)
    assert named(0, 1) <= lab.keys, "it is the champion now"


@pytest.mark.parametrize("event", ["promotion", "run"])
def test_what_happens_between_two_removals_ends_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    other, running = lab.candidate(9, lab.champions[-1]), False
    before, remove = lab.keys, lab.store.remove_files

    def require_idle() -> None:
        if running:
            raise StoreError("mail: run 1 is in progress")

    def slow(*arguments: Any) -> None:
        nonlocal running
        remove(*arguments)
        running = event == "run"
        if event == "promotion":
            release.promote(lab.store, CASE, other, reason="needed")

    monkeypatch.setattr(lab.store, "remove_files", slow)
    with pytest.raises(
        StoreError, match="champion was changed" if event == "promotion" else "run 1 is in progress"
    ):
        retention.clean(lab.store, lab.use_case, require_idle=require_idle)
    assert len(before - lab.keys) == 1


@pytest.mark.parametrize("is_old", [False, True])
def test_what_an_unfinished_training_began_with_stays_as_long_as_its_checkpoints(
    lab: Lab, is_old: bool
) -> None:
    taken, start = lab.make("training_snapshot", "superseded"), lab.make(CHECKPOINT, "start")
    for number in (5, 6):
        lab.promote(number)
    folder = lab.unfinished("stopped", is_old=is_old, training_snapshot=taken, champion=start)
    retention.clean(lab.store, lab.use_case)
    assert folder.exists() != is_old
    assert {"superseded", "start"} & lab.keys == (set() if is_old else {"superseded", "start"})


def test_inputs_of_a_job_that_runs_stay(lab: Lab) -> None:
    taken = lab.make("training_snapshot", "superseded")
    for number in (5, 6):
        lab.promote(number)
    shutil.rmtree(lab.unfinished("running", training_snapshot=taken))
    about = {"case": CASE, "stage": CHECKPOINT, "key": "running"}
    launch = records.Launch(
        **about, workload="training", launcher={}, place="here", run_id="r", job=[], submitted_at=time.time()
    )
    records.claim(lab.store, launch, lambda _: True)
    assert taken.ref not in retention.plan(lab.store, lab.use_case).artifacts
    records.end(lab.store, launch, "failed", "planted", "data")
    assert taken.ref in retention.plan(lab.store, lab.use_case).artifacts


def test_one_that_is_cut_short_is_finished_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lab.keys
    with killed_at(lab.store, 4), pytest.raises(PowerCut):
        retention.clean(lab.store, lab.use_case)
    assert named(0, 3, 4) | {"e1", "e2"} < lab.keys < before
    retention.clean(lab.store, lab.use_case)
    assert lab.keys == named(0, 3, 4) | {"e1", "e2"}


def test_a_manifest_that_cannot_be_read_stops_it(lab: Lab) -> None:
    lab.store.write_bytes(f"{lab.champions[3].snapshot}/manifest.json", b"{")
    before = lab.keys
    with pytest.raises(StoreError, match="unreadable"):
        retention.clean(lab.store, lab.use_case)
    assert lab.keys == before


def test_a_training_that_began_with_a_removed_checkpoint_may_begin_anew(lab: Lab) -> None:
    for number in (2, 4):
        pointer = {"checkpoint": lab.champions[number].checkpoint}
        lab.store.write_pointer(f"{CASE}/starting_points/{number}", pointer)
    retention.clean(lab.store, lab.use_case)
    assert lab.store.list_pointers(f"{CASE}/starting_points") == ["4"]


def test_an_erasure_takes_a_training_on_a_snapshot_that_is_gone_for_one_that_learned(tmp_path: Path) -> None:
    """One on a snapshot that never lost a row stays."""
    lab = Lab(Store(str(tmp_path / "store")))
    taken = lab.make("training_snapshot", "taken")
    folder = lab.unfinished("stopped", training_snapshot=taken)
    assert checkpoints.drop_unfinished(lab.store, CASE, []) == (0, 0) and folder.exists()
    assert checkpoints.drop_unfinished(lab.store, CASE, [taken.ref]) == (0, 0)
    lab.store.delete(taken)
    assert checkpoints.drop_unfinished(lab.store, CASE, []) == (1, 0) and not folder.exists()


def test_checkpoints_in_the_store_stay_while_a_training_that_holds_no_lease_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = Store(str(tmp_path / "store")), f"checkpoints/{CASE}/{CHECKPOINT}/k1/sagemaker/step_1"
    store.write_bytes(name, b"weights")
    store.write_pointer(f"launches/{CASE}/{CHECKPOINT}/k1", {"ended_at": None})
    monkeypatch.setattr(Store, "stored_work", lambda *_: ["k1"])  # as on S3
    assert checkpoints.drop_unfinished(store, CASE, []) == (0, 1) and store.read_bytes(name) == b"weights"
    store.write_pointer(f"launches/{CASE}/{CHECKPOINT}/k1", {"ended_at": 1.0})
    assert checkpoints.drop_unfinished(store, CASE, []) == (1, 0) and store.read_bytes(name) is None


def test_checkpoints_stay_where_the_model_lost_a_file_and_is_trained_again(lab: Lab) -> None:
    folders = {key: lab.unfinished(key) for key in ("whole", "damaged")}
    for key in folders:
        made = lab.make(CHECKPOINT, key)
        if key == "damaged":
            (Path(lab.store.url) / made.ref / "weights").unlink()
    assert list(retention.plan(lab.store, lab.use_case).folders) == [folders["whole"]]


def test_checkpoints_stay_where_a_training_went_on_after_the_look(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = retention.plan, lab.unfinished("stopped", is_old=True)

    def slow(*args: Any) -> retention.CleanUp:
        found = plan(*args)
        assert list(found.folders) == [folder]
        os.utime(folder / "weights")
        return found

    monkeypatch.setattr(retention, "plan", slow)
    assert retention.clean(lab.store, lab.use_case).folders == {} and (folder / "weights").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("work", ["clean", "erase"])
def test_erasures_and_clean_ups_wait_for_each_other(lab: Lab, work: str) -> None:
    begin = {
        "clean": lambda: retention.clean(lab.store, lab.use_case),
        "erase": lambda: erasure.erase(Store(lab.store.url), "new", []),
    }
    case = {"clean": CASE, "erase": "new"}[work]
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (begin[work](), ended.set()))
    with lab.store.alone_with_artifacts(case):
        thread.start()
        assert not ended.wait(0.5)
    assert ended.wait(30)
    thread.join()
