"""retention: after a clean-up, champions that are kept can be read and returned to, and a new run works;
on a disk and on a real S3 server.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets import chunks, release, retention, snapshot
from fullft_assets.automation import idle_from_now, require_idle
from fullft_assets.checkpoint.metadata import PastTraining
from fullft_assets.cli import commands
from fullft_assets.errors import StoreError
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.jobs import Job
from fullft_assets.launchers import records
from fullft_assets.resources import latest, set_latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store, checkpoints_ref
from fullft_assets.store.hashing import file_digest
from tests import manifests
from tests import test_evaluation_workload as classification
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow

CASE = "mail"
DAYS = 24 * 3600.0
#: What a name is short for: three champions after the first one, of which one is kept beside the present one,
#: and a candidate that lost.
ORDERS = {
    "first": [0, 1, 2],
    "second": [1, 0, 2],
    "third": [0, 2, 1],
    "fourth": [2, 1, 0],
    "loser": [1, 2, 0],
}


class Kept(classification.Lab):
    """A use case with a history of champions, on real artifacts that are far older than the horizon of
    `now`.
    """

    def __init__(self, root: Path):
        super().__init__(root)
        settings = self.use_case.settings
        kept = settings.retention.model_copy(update={"keep_champions": 1})
        self.use_case = replace(self.use_case, settings=settings.model_copy(update={"retention": kept}))
        self.reports: dict[str, Manifest] = {}
        self.checkpoints: dict[str, Manifest] = {}
        self.valid = self.store.artifacts(CASE, "labeled_examples")[0]
        # The first champion was trained from a model that learned from this, of which nothing else is left.
        self.earlier_chunks, other = self.tokenized(max_tokens=24)
        batch = ExamplesMetadata.of(self.valid).batch
        self.earlier = snapshot.take(self.store, other, {batch: self.valid}, {batch: self.earlier_chunks})
        for name, order in ORDERS.items():
            past = PastTraining(
                checkpoint="gone", snapshot=self.earlier.ref, snapshot_digest="gone"
            ).model_dump()
            lineage: Any = [past] if name == "first" else []
            self.checkpoints[name] = self.checkpoint(
                name, classification.small_model(self.labels, order), lineage=lineage
            )
            self.reports[name] = self._report(name)
            if name != "loser":
                release.promote(self.store, CASE, self.champion(name))
        shared = settings.model_copy(
            update={"snapshot": settings.snapshot.model_copy(update={"test_share": 0.4})}
        )
        self.superseded = self.take(replace(self.use_case, settings=shared))
        self.snapshot = self.take(self.use_case)
        self.other_chunks, _ = self.tokenized(max_tokens=32)
        self.chunks = self.store.artifacts(CASE, "tokenized_chunks")[0]
        set_latest(self.store, CASE, "labeled_examples", self.valid, "b1")
        set_latest(self.store, CASE, "tokenized_chunks", self.chunks, "b1")
        set_latest(self.store, CASE, "training_snapshot", self.snapshot)
        set_latest(self.store, CASE, "finetuned_checkpoint", self.checkpoints["fourth"])
        set_latest(self.store, CASE, "evaluation_report", self.reports["fourth"])

    def tokenized(self, *, max_tokens: int) -> tuple[Manifest, UseCase]:
        """Tokenise the batch with other windows; return the chunks, and the use case that has them."""
        settings = self.use_case.settings
        other = settings.model_copy(
            update={"chunks": settings.chunks.model_copy(update={"max_tokens": max_tokens})}
        )
        use_case = replace(self.use_case, settings=other)
        return chunks.tokenize(self.store, use_case, self.valid), use_case

    def _report(self, name: str) -> Manifest:
        if name in ("second", "loser"):  # they go unread
            with self.store.create(
                CASE, "evaluation_report", f"report-{name}", version="1", seed=17
            ) as draft:
                return draft.commit(
                    settings={},
                    inputs={"finetuned_checkpoint": self.checkpoints[name].content_digest},
                    metadata={},
                )
        return self.evaluate(
            self.checkpoints[name], f"report-{name}", None if name == "first" else self.checkpoints["first"]
        )

    def champion(self, name: str) -> release.Champion:
        refs = {
            "checkpoint": self.checkpoints[name].ref,
            "snapshot": self.snapshot.ref,
            "evaluation": self.reports[name].ref,
        }
        return release.Champion(**refs, score=0.5, promoted_at=time.time(), run_id="run")

    def job_on(self, taken: Manifest) -> Job:
        return Job(
            case=CASE, stage="finetuned_checkpoint", key="running", project_root=str(self.root), store_url=self.store.url,
            settings=self.use_case.settings, inputs={"training_snapshot": taken.ref},
        )  # fmt: skip

    @property
    def now(self) -> float:
        return time.time() + 100 * DAYS

    @property
    def refs(self) -> set[str]:
        return {ref for stage in self.store.names(CASE) for ref in self.store.refs(CASE, stage)}

    @property
    def expected(self) -> set[str]:
        """Refs of what nothing needs."""
        return {
            *(each[name].ref for name in ("second", "loser") for each in (self.checkpoints, self.reports)),
            self.superseded.ref,
            self.other_chunks.ref,
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("mail"))


# In CI a bucket has the main path alone.
@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.long)])
def lab(made: Kept, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    """The use case with a store of its own."""
    before = made.store
    if request.param == "disk":
        shutil.copytree(before.url, tmp_path / "store")
        made.store = Store(str(tmp_path / "store"))
    else:
        server: S3Server = request.getfixturevalue("s3_env")
        bucket = f"retention-{uuid.uuid4().hex[:8]}"
        shutil.copytree(before.url, server.make_bucket(bucket) / "store")
        made.store = Store(f"s3://{bucket}/store")
    yield made
    made.store = before


@pytest.mark.parametrize("lab", ["disk", "bucket"], indirect=True)
def test_what_a_kept_champion_was_made_from_stays_and_the_rest_goes(lab: Kept) -> None:
    before = lab.refs
    found = retention.plan(lab.store, lab.use_case, lab.now)
    assert {each.ref for each in found.artifacts} == lab.expected
    assert f"{len(lab.expected):7,} in all" in found.lines[-1]
    assert lab.refs == before, "listing removes nothing"
    retention.clean(lab.store, lab.use_case, lab.now)
    assert lab.refs == before - lab.expected
    assert retention.plan(lab.store, lab.use_case, lab.now) == retention.CleanUp()
    assert {lab.earlier.ref, lab.earlier_chunks.ref} <= lab.refs


def assert_complete(store: Store, report: Manifest) -> None:
    """Check that what a report judged is in the store, with the files that were judged."""
    for name, stage in (
        ("training_snapshot", None),
        ("finetuned_checkpoint", None),
        ("champion", "finetuned_checkpoint"),
    ):
        if name not in report.inputs:
            continue
        artifacts = store.artifacts(report.case, stage or name)
        judged = next(each for each in artifacts if each.content_digest == report.inputs[name])
        for file, entry in judged.files.items():
            assert file_digest(store.folder(judged) / file) == entry.sha256


def test_afterwards_champions_can_be_read_compared_with_and_returned_to(lab: Kept) -> None:
    retention.clean(lab.store, lab.use_case, lab.now)
    for name in ("first", "third", "fourth"):
        assert_complete(lab.store, lab.reports[name])
    # A new run: the snapshot is found, and a candidate is compared with the champion.
    assert lab.take(lab.use_case).ref == lab.snapshot.ref
    candidate = lab.checkpoint("new", classification.small_model(lab.labels, [2, 0, 1]))
    report = lab.evaluate(candidate, "report-new", lab.checkpoints["fourth"])
    assert_complete(lab.store, report)
    # Back to the one that is kept, then to the first; the one between them is gone, and nothing returns to
    # it.
    for name in ("third", "first"):
        champion = release.rollback(lab.store, CASE, reason="worse", by="run")
        assert champion.checkpoint == lab.checkpoints[name].ref
        assert (lab.store.folder(lab.store.load(champion.checkpoint)) / "model/config.json").is_file()


def test_nothing_young_goes(lab: Kept) -> None:
    before = lab.refs
    assert retention.clean(lab.store, lab.use_case) == retention.CleanUp()
    assert lab.refs == before


def test_inputs_of_a_job_that_runs_stay(lab: Kept) -> None:
    job = lab.job_on(lab.superseded)
    launch = records.Launch(
        case=CASE, stage=job.stage, key=job.key, workload="training", launcher={}, place="here", run_id="r",
        job=job.arguments(lab.store), submitted_at=time.time(),
    )  # fmt: skip
    records.claim(lab.store, launch, lambda _: True)
    assert lab.superseded.ref not in {
        each.ref for each in retention.plan(lab.store, lab.use_case, lab.now).artifacts
    }
    records.end(lab.store, launch, "failed", "planted", "data")
    assert lab.superseded.ref in {
        each.ref for each in retention.plan(lab.store, lab.use_case, lab.now).artifacts
    }


def test_one_that_is_cut_short_leaves_nothing_half_valid_and_the_next_finishes_it(
    lab: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException): ...

    before, expected = lab.refs, lab.expected
    remove = lab.store._fs.rm

    def dies(path: str, **options: object) -> None:
        if "pointers" not in path:
            raise PowerCut
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lab.store._fs, "rm", dies)
        with pytest.raises(PowerCut):
            retention.clean(lab.store, lab.use_case, lab.now)
    (cut,) = before - lab.refs
    assert cut in expected
    assert lab.store.unfinished(CASE, cut.split("/")[1]) == [cut], "its files are there, without the manifest"
    assert lab.store.find(*cut.split("/")[:3]) is None
    monkeypatch.setattr("fullft_assets.store.artifacts.ABANDONED_SECONDS", 0.0)
    retention.clean(lab.store, lab.use_case, lab.now)
    assert lab.refs == before - expected
    assert [ref for stage in lab.store.names(CASE) for ref in lab.store.unfinished(CASE, stage)] == []


def test_a_manifest_that_cannot_be_read_stops_it(lab: Kept) -> None:
    lab.store.write_bytes(f"{lab.snapshot.ref}/manifest.json", b"{")
    before = lab.refs
    with pytest.raises(StoreError, match="unreadable"):
        retention.clean(lab.store, lab.use_case, lab.now)
    assert lab.refs == before


def test_old_predictions_go_unless_they_count_for_the_champion(lab: Kept) -> None:
    for window, model in (("w1", "second"), ("w2", "fourth")):
        with lab.store.create(CASE, "batch_predictions", window, version="1", seed=1) as draft:
            made = draft.commit(
                settings={},
                inputs={"finetuned_checkpoint": lab.checkpoints[model].content_digest},
                metadata={},
            )
        set_latest(lab.store, CASE, "batch_predictions", made, window)
        with lab.store.create(CASE, "drift_report", window, version="1", seed=1) as draft:
            set_latest(
                lab.store,
                CASE,
                "drift_report",
                draft.commit(settings={}, inputs={}, metadata=manifests.drift("ok")),
                window,
            )
    retention.clean(lab.store, lab.use_case, lab.now)
    assert lab.store.list_pointers(f"latest/{CASE}/batch_predictions") == ["w2"]
    assert {latest(lab.store, CASE, "drift_report", window) is None for window in ("w1", "w2")} == {False}, (
        "verdicts stay"
    )
    assert [made.key for made in lab.store.artifacts(CASE, "batch_predictions")] == ["w2"]


def test_a_training_that_began_with_a_removed_checkpoint_may_begin_anew(lab: Kept) -> None:
    for name in ("second", "fourth"):
        lab.store.write_pointer(f"{CASE}/starting_points/{name}", {"checkpoint": lab.checkpoints[name].ref})
    retention.clean(lab.store, lab.use_case, lab.now)
    assert lab.store.list_pointers(f"{CASE}/starting_points") == ["fourth"]


def test_checkpoints_of_trainings_that_ended_or_were_given_up_go(
    lab: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("fourth", "given-up", "young"):
        folder = lab.store.work_folder(CASE, "finetuned_checkpoint", key)
        (folder / "weights").write_text("x" * 1000)
        old = lab.now if key == "young" else time.time()
        for path in (folder / "weights", folder):
            os.utime(path, (old, old))
        if not lab.store.is_local and key != "young":
            lab.store.write_bytes(f"checkpoints/{CASE}/finetuned_checkpoint/{key}/weights", b"x" * 1000)
    found = retention.clean(lab.store, lab.use_case, lab.now)
    assert [(folder.name, size) for folder, size in found.folders.items()] == [
        ("fourth", 1000),
        ("given-up", 1000),
    ]
    assert [folder.name for folder in lab.store.work_folders(CASE, "finetuned_checkpoint")] == ["young"]
    assert list(found.stored_folders.values()) == ([] if lab.store.is_local else [1000, 1000])
    assert lab.store.names(f"checkpoints/{CASE}/finetuned_checkpoint") == []


@pytest.mark.parametrize("lab", ["bucket"], indirect=True)
def test_checkpoints_in_a_bucket_that_a_machine_trains_with_stay(
    lab: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PATIENCE_SECONDS", 1.0)
    ref = checkpoints_ref(CASE, "finetuned_checkpoint", "alive")
    lab.store.write_bytes(f"{ref}/weights", b"x")
    with lab.store.alone(ref):
        assert retention.clean(lab.store, lab.use_case, lab.now).stored_folders == {}
    assert lab.store.read_bytes(f"{ref}/weights") == b"x"


def test_copies_of_what_goes_are_removed_from_this_machine(lab: Kept) -> None:
    copies = {name: lab.store.folder(lab.checkpoints[name]) for name in ("second", "fourth")}
    retention.clean(lab.store, lab.use_case, lab.now)
    assert [folder.is_dir() for folder in copies.values()] == [False, True]


def test_the_command_lists_and_removes_only_with_yes(
    made: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.store.url, tmp_path / "store")
    settings = made.use_case.settings.model_copy(update={"store": str(tmp_path / "store")})
    monkeypatch.setattr(commands, "_load", lambda _: replace(made.use_case, settings=settings))
    monkeypatch.setattr(retention, "DAY_SECONDS", 0.0)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    attempts = len(list((tmp_path / "store" / CASE).glob("*/*/*/manifest.json")))
    assert commands.main(["clean", CASE]) == 0
    *_, total, last = capsys.readouterr().out.splitlines()
    assert (
        f"{len(made.expected):7,} in all" in total
        and last == "nothing was removed; `fullft clean mail --yes` does it"
    )
    assert len(list((tmp_path / "store" / CASE).glob("*/*/*/manifest.json"))) == attempts
    assert commands.main(["clean", CASE, "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "removed"
    assert len(list((tmp_path / "store" / CASE).glob("*/*/*/manifest.json"))) == attempts - len(made.expected)


def test_a_run_in_progress_is_waited_for(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = dg.DagsterRun(
            job_name="mail_model",
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.STARTED,
            tags={"use_case": CASE},
        )
        instance.add_run(run)
        with pytest.raises(
            StoreError, match=r"mail: run .* \(mail_model\) is in progress; clean up when it has ended"
        ):
            require_idle(CASE, instance)
        require_idle(CASE, instance, but=run.run_id)
        require_idle("letters", instance)
        ask = idle_from_now(CASE, instance)
        instance.report_run_failed(run)
        require_idle(CASE, instance)
        with pytest.raises(StoreError, match="was in progress during the clean-up"):
            ask()
