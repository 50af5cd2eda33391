"""retention: after a clean-up, champions that are kept can be compared with and returned to, and a new run
works; on a disk and on a real S3 server.
"""

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
from fullft_assets.resources import set_latest
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from tests import manifests, test_evaluation_workload as classification
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow

CASE = "mail"
#: The champions one after the other, of which one is kept beside the present one and the first; and a
#: candidate that lost.
ORDERS = {
    "first": [0, 1, 2],
    "second": [1, 0, 2],
    "loser": [1, 2, 0],
    "third": [0, 2, 1],
    "fourth": [2, 1, 0],
}


class Kept(classification.Lab):
    """A use case with a history of champions, on real artifacts."""

    def __init__(self, root: Path):
        super().__init__(root)
        settings = self.use_case.settings
        kept = settings.retention.model_copy(update={"keep_champions": 1})
        self.use_case = replace(self.use_case, settings=settings.model_copy(update={"retention": kept}))
        self.base, self.first_baselines = self.snapshot, self.baselines
        self.checkpoints: dict[str, Manifest] = {}
        self.snapshots: dict[str, Manifest] = {}
        self.valid = self.store.artifacts(CASE, "labeled_examples")[0]
        self.chunks = self.store.artifacts(CASE, "tokenized_chunks")[0]
        self.index = self.store.artifacts(CASE, "near_duplicate_index")[0]
        self.other_chunks = self.tokenized(max_tokens=24)
        for name, order in ORDERS.items():
            self.snapshot = self.snapshots[name] = self.take(self.variant(name))
            if name == "third":
                self.baselines = self.artifact(
                    "cheaper_baselines", "b2", self._fit_baselines, self.baselines.metadata
                )
            model = classification.small_model(self.labels, order)
            # The one in use was trained from a model that learned from this, of which nothing else is left.
            past = PastTraining(checkpoint="gone", snapshot=self.base.ref, snapshot_digest="gone")
            lineage: Any = [past.model_dump()] if name == "fourth" else []
            self.checkpoints[name] = self.checkpoint(name, model, lineage=lineage)
            if name != "loser":
                ref, taken = self.checkpoints[name].ref, self.snapshots[name].ref
                manifests.promote(self.store, CASE, ref, snapshot=taken, promoted_at=time.time())
        set_latest(self.store, CASE, "labeled_examples", self.valid, "b1")
        set_latest(self.store, CASE, "tokenized_chunks", self.chunks, "b1")
        set_latest(self.store, CASE, "training_snapshot", self.snapshot)
        set_latest(self.store, CASE, "finetuned_checkpoint", self.checkpoints["fourth"])

    def variant(self, name: str) -> UseCase:
        """Return the use case with settings that have a snapshot taken."""
        settings = self.use_case.settings
        limits = settings.snapshot.model_copy(
            update={"max_validation_rows": 1_000 + list(ORDERS).index(name)}
        )
        return replace(self.use_case, settings=settings.model_copy(update={"snapshot": limits}))

    def tokenized(self, *, max_tokens: int) -> Manifest:
        settings = self.use_case.settings
        cut = settings.chunks.model_copy(update={"max_tokens": max_tokens})
        use_case = replace(self.use_case, settings=settings.model_copy(update={"chunks": cut}))
        return chunks.tokenize(self.store, use_case, self.valid)

    @property
    def whole(self) -> set[str]:
        made = [made for stage in self.store.names(CASE) for made in self.store.artifacts(CASE, stage)]
        return {each.ref for each in made if self.store.find(CASE, each.stage, each.key) is not None}

    @property
    def expected(self) -> set[str]:
        """Refs of what is older than the third champion, and needed by none that is kept."""
        gone = [each[name] for each in (self.checkpoints, self.snapshots) for name in ("second", "loser")]
        return {each.ref for each in (*gone, self.first_baselines, self.index, self.other_chunks)}


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
def test_weights_and_tables_go_that_are_older_than_the_kept_champions(lab: Kept) -> None:
    before = lab.whole
    copies = {name: lab.store.folder(lab.checkpoints[name]) for name in ("second", "fourth")}
    refs = {ref for stage in lab.store.names(CASE) for ref in lab.store.refs(CASE, stage)}
    found = retention.plan(lab.store, lab.use_case)
    assert set(found.artifacts) == lab.expected
    assert f"{len(lab.expected):7,} in all" in found.lines[-1]
    assert lab.whole == before, "listing removes nothing"
    retention.clean(lab.store, lab.use_case)
    assert lab.whole == before - lab.expected
    assert {ref for stage in lab.store.names(CASE) for ref in lab.store.refs(CASE, stage)} == refs, (
        "manifests stay"
    )
    assert lab.store.read_bytes(f"{lab.snapshots['second'].ref}/ledger.parquet") is not None, (
        "so does what was held out"
    )
    assert [(folder / "model" / "config.json").is_file() for folder in copies.values()] == [False, True]
    assert retention.plan(lab.store, lab.use_case) == retention.CleanUp()


def test_afterwards_champions_can_be_compared_with_and_returned_to(lab: Kept) -> None:
    retention.clean(lab.store, lab.use_case)
    # A new run: the snapshot is found, another is taken, and a candidate is compared with the champion.
    assert lab.take(lab.variant("fourth")).ref == lab.snapshot.ref
    assert lab.store.folder(lab.take(lab.variant("second"))).is_dir(), "what went is made again"
    candidate = lab.checkpoint("new", classification.small_model(lab.labels, [2, 0, 1]))
    assert "champion" in lab.evaluate(candidate, "report-new", lab.checkpoints["fourth"]).metadata["scores"]
    # Back to the one that is kept, then to the first; the one between them is gone, and nothing returns to
    # it.
    for name in ("third", "first"):
        champion = release.rollback(lab.store, CASE, reason="worse", by="run")
        assert champion.checkpoint == lab.checkpoints[name].ref
        assert (lab.store.folder(lab.store.load(champion.checkpoint)) / "model/config.json").is_file()
        assert len(snapshot.load_split(lab.store, lab.store.load(champion.snapshot), "train"))


def test_the_command_lists_and_removes_only_with_yes(
    made: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.store.url, tmp_path / "store")
    settings = made.use_case.settings.model_copy(update={"store": str(tmp_path / "store")})
    monkeypatch.setattr(commands, "_load", lambda _: replace(made.use_case, settings=settings))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    weights = list((tmp_path / "store" / CASE).rglob("*.safetensors"))
    assert commands.main(["clean", CASE]) == 0
    *_, total, last = capsys.readouterr().out.splitlines()
    assert f"{len(made.expected):7,} in all" in total and "`fullft clean mail --yes` does" in last
    assert list((tmp_path / "store" / CASE).rglob("*.safetensors")) == weights
    assert commands.main(["clean", CASE, "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "removed"
    assert len(list((tmp_path / "store" / CASE).rglob("*.safetensors"))) == 3


def test_a_run_in_progress_is_waited_for(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = dg.DagsterRun(
            job_name="mail_model",
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.STARTED,
            tags={"use_case": CASE},
        )
        instance.add_run(run)
        with pytest.raises(StoreError, match=r"mail: run .* \(mail_model\) is in progress"):
            require_idle(CASE, instance)
        require_idle(CASE, instance, but=run.run_id)
        require_idle("letters", instance)
        ask = idle_from_now(CASE, instance)
        instance.report_run_failed(run)
        require_idle(CASE, instance)
        with pytest.raises(StoreError, match="was in progress during"):
            ask()
