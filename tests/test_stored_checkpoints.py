"""Checkpoints of a store on S3 outlive the machine, and another machine or number of processes goes on with
them: `tests.scattered_trainings`.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fullft_assets.errors import StoreError
from fullft_assets.progress import Progress
from fullft_assets.store import Store, checkpoints_ref
from fullft_assets.store.pointers import Lease
from fullft_assets.training import stored_checkpoints
from fullft_assets.training.checkpoints import (
    SEAL,
    STEP_LOG,
    Incident,
    RunHistory,
    StepLog,
    publish,
)
from tests.machine import printed_by
from tests.project import write_files
from tests.s3_server import S3Server

SCENES = ("killed", "own_disks", "parts")


@pytest.fixture(scope="module")
def played(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each scene found."""
    line = ("-m", "tests.scattered_trainings", tmp_path_factory.mktemp("scenes"), s3_server.root, *SCENES)
    # Models that no recipe loaded are probed in `auto`, which is fp32 then, as they are trained.
    env = s3_server.env | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    return json.loads(printed_by(*line, env=env, timeout=1_200).splitlines()[-1])


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    read = load_file if one["weights"].endswith(".safetensors") else torch.load
    expected, found = read(other["weights"]), read(one["weights"])
    assert (
        set(found) == set(expected)
        and [name for name in expected if not torch.equal(found[name], expected[name])] == []
    )


@pytest.mark.slow
@pytest.mark.fault("the machine or node is lost")
def test_killed_with_its_disk_lost_another_machine_ends_with_the_same_weights(played: dict) -> None:
    """BERT with dropout, through the workload."""
    found = played["killed"]
    assert found["stored"][0] == 3 < found["stored"][1] == found["done"]["from"]
    assert (
        found["done"]["steps"]
        == found["straight"]["steps"]
        == list(range(1, len(found["done"]["steps"]) + 1))
    )
    assert_same(found["done"], found["straight"])
    assert found["left"] == [], "the artifact is there, so its checkpoints are not"


@pytest.mark.slow
def test_hosts_of_which_one_has_the_checkpoint_resume_together(played: dict) -> None:
    found = played["own_disks"]
    assert found["done"]["from"] == 3
    assert_same(found["done"], found["straight"])


@pytest.mark.slow
def test_hosts_upload_their_parts_and_other_hosts_go_on_with_equal_bits(played: dict) -> None:
    found = played["parts"]
    assert found["stored"] == ["00000002", "00000003"]
    assert found["files"] == ["part-00000.safetensors", "part-00001.safetensors"]
    assert found["done"]["from"] == 3
    assert_same(found["done"], found["straight"])


def test_a_seal_that_names_a_file_elsewhere_writes_none(s3_env: S3Server, tmp_path: Path) -> None:
    folder = s3_env.make_bucket("elsewhere") / checkpoints_ref("mail", "s", "k") / "00000002-ab"
    write_files(folder.parent, {"planted": "x", f"{folder.name}/{SEAL}": json.dumps({"../planted": 1})})
    stored = stored_checkpoints.StoredCheckpoints(
        Store("s3://elsewhere"), "mail", "s", "k", Progress(silent=True)
    )
    assert stored.fetch(folder.name, tmp_path) == "../planted"
    assert list(tmp_path.rglob("planted")) == []


class Machine:
    """A machine with a work folder of its own, that writes and resumes checkpoints of a few bytes."""

    def __init__(self, folder: Path, bucket: str):
        folder.mkdir()
        self.folder, self.said = folder, []
        progress = Progress(silent=True)
        progress.say = self.said.append
        self.progress, self.store = progress, Store(f"s3://{bucket}")
        self.start()

    def start(self) -> None:
        """A new process."""
        self.stored = stored_checkpoints.StoredCheckpoints(self.store, "mail", "s", "k", self.progress)
        self.history = RunHistory(
            self.folder, stored_history=self.stored.read_history(), store=self.stored.write_history
        )

    def write(self, step: int, weights: str) -> Path:
        target = self.folder / f"checkpoint-{step}"
        aside = self._aside(step, weights)
        self.stored.copy_beside(self.folder, aside)
        publish(aside, target, num_incidents=len(self.history.incidents), is_planned=True)
        return target

    def _aside(self, step: int, weights: str) -> Path:
        aside = self.folder / "unfinished" / f"checkpoint-{step}"
        write_files(aside, {"weights": weights})
        return aside

    def train(self, *steps: tuple[int, float], resumed_from: int = 0) -> None:
        """Write and upload checkpoints, with their validation losses, whose weights say who wrote them."""
        log = StepLog(self.folder / STEP_LOG, resumed_from, incidents=self.history.incidents)
        for step, loss in steps:
            log.append({"step": step, "validation_loss": loss})
            written = self._aside(step, f"{self.folder.name}{step}")
            stored_checkpoints.publish_everywhere(
                written, self.history, log.best_step(), self.stored, is_planned=True
            )
            self.stored.finish()

    def upload(self, *checkpoints: Path, best: int | None = None) -> None:
        self.stored.offer(checkpoints, self.history, best=best)
        self.stored.finish()

    def newest(self) -> str | None:
        found = stored_checkpoints.newest_checkpoint(self.folder, self.history, self.stored, self.progress)
        return None if found is None else (found / "weights").read_text()

    def steps(self) -> list[int]:
        """What a new process finds in the store."""
        return [
            found.step
            for found in stored_checkpoints.StoredCheckpoints(
                self.store, "mail", "s", "k", self.progress
            ).complete(self.history)
        ]


@pytest.fixture
def machines(s3_env: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Machine, Machine]:
    bucket = f"b{abs(hash(request.node.name))}"
    s3_env.make_bucket(bucket)
    return Machine(tmp_path / "one", bucket), Machine(tmp_path / "other", bucket)


def damage_downloads(machine: Machine, times: int) -> None:
    download, left = machine.store.download, [times]

    def damaging(name: str, path: Path) -> None:
        download(name, path)
        if path.name == "weights" and left[0] > 0:
            left[0] -= 1
            path.write_text("X" + path.read_text()[1:])

    machine.store.download = damaging


@pytest.mark.fault("S3 fails or damages a file")
def test_a_checkpoint_that_never_uploads_holds_no_other_one_up(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    upload = one.store.upload

    def refuses_the_best(folder: Path, ref: str, names: list[str]) -> None:
        if folder.name == "checkpoint-2":
            raise OSError("the bucket refuses it")
        upload(folder, ref, names)

    one.store.upload = refuses_the_best
    one.upload(one.write(2, "best"), one.write(4, "w4"), one.write(6, "w6"), one.write(8, "w8"), best=2)
    assert one.steps() == [6, 8], "the newest two are there, and an old one is removed"
    assert "checkpoint-2 could not" in one.said[0]


def test_a_download_that_is_damaged_once_is_repeated(machines: tuple[Machine, Machine]) -> None:
    one, other = machines
    one.upload(one.write(2, "w2"))
    damage_downloads(other, 1)
    assert other.newest() == "w2" and other.said == []
    (other.folder / "checkpoint-2" / "weights").write_text("wX")
    [stored] = other.stored.complete(other.history)
    assert other.stored.fetch(stored.name, other.folder) is None, "a damaged copy is fetched again"
    assert other.newest() == "w2"


def test_a_machine_that_reads_damaged_files_removes_none_from_the_store(
    machines: tuple[Machine, Machine],
) -> None:
    one, other = machines
    one.upload(one.write(2, "w2"), one.write(4, "w4"))
    damage_downloads(other, 1_000)
    assert other.newest() is None
    assert [line.partition("/0")[2][:7] for line in other.said] == ["0000004", "0000002"]
    assert other.steps() == [2, 4]
    other.upload(other.write(6, "w6"))
    assert other.steps() == [6], "it has a checkpoint of its own there now"


def test_weights_that_a_roll_back_on_another_machine_undid_are_never_the_best(
    machines: tuple[Machine, Machine],
) -> None:
    """The second machine resumes at step 4, rolls back to step 2 and writes another step 4; then the first
    one is back.
    """
    one, other = machines
    one.train((2, 1.0), (4, 0.9))
    other.start()
    assert other.newest() == "one4"
    other.history.add(Incident("roll_back", 5, 2, "loss nan", 1.0))
    other.train((4, 0.5), (6, 0.6), resumed_from=2)
    one.start()
    assert one.newest() == "other6"
    uploads = []
    one.store.upload = lambda folder, *_: uploads.append((folder / "weights").read_text())
    one.train((8, 0.7), resumed_from=6)
    assert uploads == ["one8"] and not (one.folder / "checkpoint-4").exists()
    publish(one._aside(4, "undone"), one.folder / "checkpoint-4", num_incidents=0, is_planned=True)
    assert (
        stored_checkpoints.checkpoint_of_step(4, one.folder, one.history, one.stored, one.progress)
        / "weights"
    ).read_text() == "other4"


def test_a_damaged_best_checkpoint_is_fetched_from_the_store(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    one.train((2, 0.5), (4, 0.6))
    (one.folder / "checkpoint-2" / "weights").write_text("xxxx")
    assert (
        stored_checkpoints.checkpoint_of_step(2, one.folder, one.history, one.stored, one.progress)
        / "weights"
    ).read_text() == "one2"
    with pytest.raises(StoreError, match="checkpoint-3 is missing"):
        stored_checkpoints.checkpoint_of_step(3, one.folder, one.history, one.stored, one.progress)


def test_a_checkpoint_without_its_step_log_gets_it_back(machines: tuple[Machine, Machine]) -> None:
    """It was copied there for a process that was not the first one."""
    one, other = machines
    one.train((2, 0.5), (4, 0.6))
    other.start()
    [*_, newest] = other.stored.complete(other.history)
    other.stored.fetch(newest.name, other.folder)
    (other.folder / STEP_LOG).write_text('{"step": 9}\n')
    assert other.newest() == "one4" and StepLog(other.folder / STEP_LOG, 4).best_step() == 2
    later = (one.folder / STEP_LOG).read_text() + '{"step": 4, "validation_loss": 0.1}\n'
    (one.folder / STEP_LOG).write_text(later)
    one.newest()
    assert (one.folder / STEP_LOG).read_text() == later, "a log that goes on from the checkpoint stays"


def test_an_incident_that_did_not_reach_the_store_is_sent_by_the_next_start(
    machines: tuple[Machine, Machine],
) -> None:
    one, other = machines
    write = one.store.write_bytes
    one.store.write_bytes = lambda *_: (_ for _ in ()).throw(OSError("no network"))
    with pytest.raises(OSError, match="no network"):
        one.history.add(Incident("roll_back", 5, 2, "loss nan", 1.0, learning_rate=0.1))
    one.store.write_bytes = write
    RunHistory(one.folder, is_writer=False, store=one.stored.write_history)
    assert one.stored.read_history() is None
    one.start()
    other.start()
    assert other.history.learning_rate == one.history.learning_rate == 0.1


def test_seals_that_are_not_whole_are_of_damaged_checkpoints(machines: tuple[Machine, Machine]) -> None:
    one, other = machines
    one.train((2, 0.5), (4, 0.6))
    (one.folder / "checkpoint-4" / SEAL).write_text('{"w": 3')
    one.start()
    assert one.newest() == "one4", "the store has a good one"
    [_, newest] = one.stored.complete(one.history)
    one.store.write_bytes(f"{checkpoints_ref('mail', 's', 'k')}/{newest.name}/{SEAL}", b'["w"]')
    other.start()
    assert other.newest() == "one2"
    assert f"{newest.name}/{SEAL} is damaged; " in other.said[0]


def test_the_last_upload_before_the_end_is_repeated(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = machines
    monkeypatch.setattr(stored_checkpoints, "_PAUSES", (0.0, 0.0))
    one.upload(one.write(2, "w2"))
    upload, left = one.store.upload, [2]

    def failing(*given: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("SlowDown")
        upload(*given)

    one.store.upload = failing
    one.upload(one.write(4, "w4"))
    assert one.steps() == [2, 4]
    assert [line.partition(" could")[0] for line in one.said] == ["warning: checkpoint-4"] * 2
    left[0] = 1_000
    one.upload(one.write(6, "w6"))
    assert " is not in s3://" in one.said[-1]


class LostLease(Lease):
    is_lost = True

    def require(self) -> None:
        raise StoreError("another process may have taken this work over")


@pytest.mark.fault("a machine that was suspended comes back")
def test_a_machine_that_was_taken_for_dead_stops_and_leaves_its_successors_checkpoints(
    machines: tuple[Machine, Machine],
) -> None:
    one, other = machines
    one.upload(one.write(2, "w2"))
    newest = one.write(4, "w4")
    one.stored._lease = LostLease()
    with pytest.raises(StoreError, match="another machine has taken"):
        one.upload(newest)
    for work in (partial(one.stored.upload, newest), one.stored.remove_all):
        with pytest.raises(StoreError, match="may have taken"):
            work()
    assert other.steps() == [2]
