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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fullft_assets.errors import FullftError
from fullft_assets.launch.workloads.training import work
from fullft_assets.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.store import Store, pointers
from fullft_assets.training.stored_checkpoints import StoredCheckpoints, stored_checkpoints
from tests import two_ranks
from tests.optimizer_steps import Stopping
from tests.prepared import Prepared, prepare
from tests.test_packed import LLAMA, SETTINGS, fit, training

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
        self._count += 1
        return [self.folder / f"machine-{self._count}-{number}" for number in range(count)]

    def train(
        self,
        machines: Sequence[Path],
        stop_after: int = NEVER,
        *,
        chosen: TrainingSettings = SHORT,
        is_stored: bool = True,
    ) -> dict[str, Any]:
        """Train in a process of each machine until the end or a stop; return what the first one found."""

        def scene(_: Path, rank: int) -> dict[str, Any]:
            machines[rank].mkdir(exist_ok=True)
            os.environ["FULLFT_CACHE"] = str(machines[rank])
            _wait_for_each_upload()
            progress = Noting(stop_after)
            run = partial(
                fit,
                LLAMA,
                data=training(60, marked=True),
                chosen=chosen,
                folder=machines[rank],
                progress=progress,
                num_processes=len(machines),
                resumable=True,
            )
            try:
                if is_stored:
                    with stored_checkpoints(
                        Store(f"s3://{self.bucket.name}/some/prefix"), CASE, STAGE, "k", progress
                    ) as stored:
                        done = run(checkpoints=stored)
                else:
                    done = run()
            except FullftError as error:
                return {"error": str(error), "said": progress.said}
            if rank == 0:
                torch.save(done.model.state_dict(), machines[0] / "weights.pt")
            log = [(line["step"], line["loss"], line["grad_norm"]) for line in done.history if "loss" in line]
            return {
                "from": done.resumed_from_step,
                "log": log,
                "said": progress.said,
                "weights": str(machines[0] / "weights.pt"),
            }

        self._count += 1
        found = two_ranks.play(self.folder / f"run-{self._count}", scene, len(machines), of_host=1)
        assert all(each is not None for each in found), found
        assert len({each.get("from") for each in found}) == 1, found
        return found[0]

    def stored(self) -> list[Path]:
        """The folders of the sealed checkpoints in the bucket."""
        root = self.bucket / "some" / "prefix" / "checkpoints" / CASE / STAGE / "k"
        return sorted(path.parent for path in root.glob("*/complete.json"))


def _wait_for_each_upload() -> None:
    """Have each checkpoint of this process in the bucket before the next step, however fast the steps are."""
    offer = StoredCheckpoints.offer

    def offer_and_wait(stored: StoredCheckpoints, *arguments: Any, **options: Any) -> None:
        offer(stored, *arguments, **options)
        stored.finish()

    StoredCheckpoints.offer = offer_and_wait


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


def parts(scene: Scene) -> dict[str, Any]:
    """Two hosts with disks of their own share a model and stop; two others have nothing but the bucket."""
    chosen = SHORT.model_copy(update={"sharding": "fsdp2"})
    scene.train(scene.machines(2), 3, chosen=chosen)
    stored = [path.name.split("-")[0] for path in scene.stored()]
    files = sorted(path.name for path in scene.stored()[-1].glob("*.safetensors"))
    done = scene.train(scene.machines(2), chosen=chosen)
    shared = scene.machines(1)[0]
    straight = scene.train([shared, shared], is_stored=False, chosen=chosen)
    return {"stored": stored, "files": files, "done": done, "straight": straight}


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
    return {
        "straight": straight,
        "done": _work(scene, case, url, scene.machines(1)[0]),
        "stored": stored,
        "left": [str(path) for path in checkpoints.rglob("*") if path.is_file()],
    }


def _work(scene: Scene, case: Prepared, url: str, machine: Path, kill_after: int = 0) -> Any:
    def train(_: Path, rank: int) -> Any:
        os.environ["FULLFT_CACHE"] = str(machine)
        _wait_for_each_upload()
        uploads: set[Path] = set()
        upload = StoredCheckpoints.upload

        def counted(stored: StoredCheckpoints, path: Path) -> None:
            upload(stored, path)
            uploads.add(path)
            if len(uploads) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        StoredCheckpoints.upload = counted
        job, store = case.job(STAGE, "k").model_copy(update={"store_url": url}), Store(url)
        work(job, store, Progress(silent=True))
        made = store.find(job.case, job.stage, job.key)
        model = store.folder(made)
        return {
            "weights": str(model / "model" / "model.safetensors"),
            "from": made.metadata["resumed_from_step"],
            "steps": [
                line["step"]
                for line in map(json.loads, (model / "logs" / "metrics.jsonl").read_text().splitlines())
                if "loss" in line
            ],
        }

    scene._count += 1
    return two_ranks.play(scene.folder / f"run-{scene._count}", train, 1)[0]


SCENES: dict[str, Callable[[Scene], Any]] = {scene.__name__: scene for scene in (own_disks, parts, killed)}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
