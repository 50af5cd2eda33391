"""Trainings whose machines share nothing but a bucket, in one scene after the other: `python -m
tests.scattered_trainings FOLDER BUCKETS SCENE ...`

FOLDER is empty, BUCKETS the folder of the S3 server that the environment names. A process is a fork of this
one; its machine is a folder. Prints by scene what it found.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fullft_assets.errors import FullftError
from fullft_assets.jobs.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.store import Store, pointers
from fullft_assets.training.stored_checkpoints import StoredCheckpoints, stored_checkpoints
from fullft_assets.workloads.training import work
from tests import two_ranks
from tests.optimizer_steps import Stopping
from tests.prepared import Prepared, prepare
from tests.test_packed import KEEP_BEST, LLAMA, OVERFITTING, SETTINGS, fit, training
from tests.two_ranks import play

CASE, STAGE = "mail", "finetuned_checkpoint"
SHORT = SETTINGS.model_copy(update={"checkpoint_every_steps": 2, "micro_batch_size": 1})
NEVER = 1_000_000


def main(folder: Path, buckets: Path, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    # A machine that was killed is known to be gone at once.
    pointers._DEAD_SECONDS, pointers._LOOK_SECONDS = 2.0, 0.2
    two_ranks.SECONDS = 300
    print(
        json.dumps(
            {
                scene: SCENES[scene](Scene(folder / scene, buckets / scene.replace("_", "-")))
                for scene in scenes
            }
        )
    )


class Noting(Stopping):
    """Asks for a stop after some steps, and keeps what is said."""

    def __init__(self, after: int):
        super().__init__(after)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Scene:
    """Machines, and a bucket of their own."""

    def __init__(self, folder: Path, bucket: Path):
        self.folder, self.bucket, self._count = folder, bucket, 0
        folder.mkdir()
        bucket.mkdir()

    def machines(self, count: int) -> list[Path]:
        """New machines, with empty disks."""
        self._count += 1
        return [self.folder / f"machine-{self._count}-{number}" for number in range(count)]

    def train(
        self,
        machines: Sequence[Path],
        stop_after: int = NEVER,
        *,
        chosen: TrainingSettings = SHORT,
        is_stored: bool = True,
        before: Callable[[Any], None] = lambda stored: None,
        **options: Any,
    ) -> dict[str, Any]:
        """Train in a process of each machine until the end or a stop; return what the first one found."""

        def scene(_: Path, rank: int) -> dict[str, Any]:
            machines[rank].mkdir(exist_ok=True)
            os.environ["FULLFT_CACHE"] = str(machines[rank])
            progress = Noting(stop_after)
            given: dict[str, Any] = {"data": training(60, marked=True), "chosen": chosen, **options}
            run = partial(
                fit,
                LLAMA,
                folder=machines[rank],
                progress=progress,
                num_processes=len(machines),
                resumable=True,
                **given,
            )
            try:
                if is_stored:
                    with stored_checkpoints(
                        Store(f"s3://{self.bucket.name}/some/prefix"), CASE, STAGE, "k", progress
                    ) as stored:
                        before(stored)
                        _wait_for_each_upload(stored)
                        done = run(stored=stored)
                else:
                    done = run()
            except FullftError as error:
                return {"error": str(error), "said": progress.said}
            if rank == 0:
                torch.save(done.model.state_dict(), machines[0] / "weights.pt")
            log = [(line["step"], line["loss"], line["grad_norm"]) for line in done.history if "loss" in line]
            incidents = [(incident.kind, incident.step, incident.to_step) for incident in done.incidents]
            found = {
                "from": done.resumed_from_step,
                "log": log,
                "step": done.step,
                "said": progress.said,
                "incidents": incidents,
            }
            return found | {"weights": str(machines[0] / "weights.pt")}

        self._count += 1
        found = play(self.folder / f"run-{self._count}", scene, len(machines), is_one_host=False)
        assert all(each is not None for each in found), found
        assert len({each.get("from") for each in found}) == 1, found
        return found[0]

    def stored(self) -> list[Path]:
        """The folders of the sealed checkpoints in the bucket."""
        root = self.bucket / "some" / "prefix" / "checkpoints" / CASE / STAGE / "k"
        return sorted(path.parent for path in root.glob("*/complete.json"))


def _wait_for_each_upload(stored: StoredCheckpoints) -> None:
    """Have each checkpoint in the bucket before the next step, however fast the steps are."""
    offer = stored.offer

    def offer_and_wait(*arguments: Any, **options: Any) -> None:
        offer(*arguments, **options)
        stored.finish()

    stored.offer = offer_and_wait


def other_number(scene: Scene, first: int, then: int) -> dict[str, Any]:
    """One number of machines trains until a stop, another one to the end."""
    stopped = scene.train(scene.machines(first), 3)
    stored = [path.name.split("-")[0] for path in scene.stored()]
    done = scene.train(scene.machines(then))
    # Where all train on one disk, to the end with the first number.
    straight = scene.train(scene.machines(1) * first, is_stored=False)
    return {"stopped": stopped["error"], "stored": stored, "done": done, "straight": straight}


def own_disks(scene: Scene) -> dict[str, Any]:
    """Two hosts stop; the bucket is emptied, and the second one gets a new disk: only the first one has the
    checkpoint.
    """
    first, second = scene.machines(2)
    scene.train([first, second], 3)
    for path in scene.stored():
        shutil.rmtree(path)
    done = scene.train([first, *scene.machines(1)])
    shared = scene.machines(1)[0]
    return {"done": done, "straight": scene.train([shared, shared], is_stored=False)}


def roll_back(scene: Scene) -> dict[str, Any]:
    """Two hosts with disks of their own roll back from step 5 to the checkpoint that the first one wrote
    after step 2.
    """

    def host(folder: Path, rank: int) -> Any:
        os.environ["FULLFT_CACHE"] = str(scene.folder / f"cache{rank}")
        own = folder.with_name(f"disk{rank}")
        own.mkdir()
        with stored_checkpoints(
            Store(f"s3://{scene.bucket.name}/some/prefix"), CASE, STAGE, "k", Progress(silent=True)
        ) as stored:
            two_ranks.fit = lambda config, data, settings, _, **options: fit(
                config, data, settings, own, stored=stored, **options
            )
            return two_ranks.roll_back(folder, rank)

    return {"hosts": play(scene.folder / "run", host, is_one_host=False)}


def damaged(scene: Scene) -> dict[str, Any]:
    """The newest checkpoint in the bucket has lost the end of a file, the one before a bit; another machine
    continues.
    """
    scene.train(scene.machines(1), 5)
    cut, flipped = scene.stored()[:0:-1][:2]
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    content = bytearray((flipped / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (flipped / "optimizer.pt").write_bytes(content)
    return {
        "damaged": [cut.name, flipped.name],
        "done": scene.train(scene.machines(1)),
        "straight": scene.train(scene.machines(1), is_stored=False),
    }


def keep_best(scene: Scene) -> dict[str, Any]:
    """The best weights were written on a machine that is gone."""
    options = {**OVERFITTING, "chosen": KEEP_BEST, "evaluate_at": None}
    straight = scene.train(scene.machines(1), is_stored=False, **options)
    scene.train(scene.machines(1), straight["step"] + 4, **options)
    return {"straight": straight, "done": scene.train(scene.machines(1), **options)}


def failed_upload(scene: Scene) -> dict[str, Any]:
    """The bucket fails while the first checkpoint is uploaded."""
    uploads = []

    def fail_once(stored: StoredCheckpoints) -> None:
        upload = stored._store.upload

        def failing(folder: Path, ref: str, names: list[str]) -> None:
            uploads.append(folder.name)
            upload(folder, ref, names[: len(names) // 2] if len(uploads) == 1 else names)
            if len(uploads) == 1:
                raise OSError("the bucket is on fire")

        stored._store.upload = failing

    stopped = scene.train(scene.machines(1), 5, before=fail_once)
    root = scene.stored()[0].parent
    return {
        "said": stopped["said"],
        "stored": [int(path.name.split("-")[0]) for path in scene.stored()],
        "all": len(list(root.glob("0*"))),
    }


def fenced(scene: Scene) -> dict[str, Any]:
    """A machine stands still when its first checkpoint is uploaded, loses its training to another one, and
    wakes up.
    """

    def stand_still(stored: StoredCheckpoints) -> None:
        upload = stored._upload

        def last(path: Path) -> None:
            upload(path)
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(3)  # it notices when it renews

        stored._upload = last

    outcome, [stale] = scene.folder / "stale.json", scene.machines(1)
    child = os.fork()
    if child == 0:
        pointers._RENEW_SECONDS, pointers._VALID_SECONDS = 0.5, 10.0
        outcome.write_text(json.dumps(scene.train([stale], before=stand_still)))
        os._exit(0)
    while not scene.stored():
        time.sleep(0.05)
    pointers._DEAD_SECONDS = 12.0
    after = scene.train(scene.machines(1), 5)
    pointers._DEAD_SECONDS = 2.0
    left = [path.name for path in scene.stored()]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _is_stopped_child(process, child):
            os.kill(int(process.name), signal.SIGCONT)
    os.waitpid(child, 0)
    return {
        "stale": json.loads(outcome.read_text()),
        "after": after,
        "left": left,
        "now": [path.name for path in scene.stored()],
    }


def _is_stopped_child(process: Path, parent: int) -> bool:
    try:
        state, of = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:  # it has ended
        return False
    return state == "T" and int(of) == parent


def killed(scene: Scene) -> dict[str, Any]:
    """The workload is killed after its second upload, its disk is lost, and another machine runs the same
    job.
    """
    case = prepare(
        scene.folder / "case",
        tiny=True,
        training={"checkpoint_every_steps": 3, "precision": "fp32", "learning_rate": 1e-3},
    )
    shutil.copytree(case.store.url, scene.bucket / "some" / "prefix")
    straight = _work(scene, case, case.store.url, scene.machines(1)[0])
    url = f"s3://{scene.bucket.name}/some/prefix"
    [lost] = scene.machines(1)
    checkpoints = scene.bucket / "some" / "prefix" / "checkpoints" / case.use_case.name / STAGE
    _work(scene, case, url, lost, kill_after=2)
    stored = sorted(int(path.parent.name.split("-")[0]) for path in checkpoints.glob("k/*/complete.json"))
    shutil.rmtree(lost)
    done = _work(scene, case, url, scene.machines(1)[0])
    return {
        "straight": straight,
        "done": done,
        "stored": stored,
        "left": [str(path) for path in checkpoints.rglob("*") if path.is_file()],
    }


def _work(scene: Scene, case: Prepared, url: str, machine: Path, kill_after: int = 0) -> Any:
    def train(_: Path, rank: int) -> Any:
        os.environ["FULLFT_CACHE"] = str(machine)
        uploads, upload = [], StoredCheckpoints._upload

        def counted(stored: StoredCheckpoints, path: Path) -> None:
            upload(stored, path)
            uploads.append(path)
            if len(uploads) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        StoredCheckpoints._upload = counted
        job, store = case.job(STAGE, "k").model_copy(update={"store_url": url}), Store(url)
        work(job, store, Progress(silent=True))
        made = store.find(job.case, job.stage, job.key)
        model = store.folder(made)
        steps = [
            line["step"]
            for line in map(json.loads, (model / "logs" / "metrics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        return {
            "weights": str(model / "model" / "model.safetensors"),
            "from": made.metadata["resumed_from_step"],
            "steps": steps,
        }

    scene._count += 1
    return play(scene.folder / f"run-{scene._count}", train, 1)[0]


SCENES: dict[str, Callable[[Scene], Any]] = {
    **{
        scene.__name__: scene
        for scene in (own_disks, roll_back, damaged, keep_best, failed_upload, fenced, killed)
    },
    "two_to_one": lambda scene: other_number(scene, 2, 1),
    "one_to_two": lambda scene: other_number(scene, 1, 2),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
