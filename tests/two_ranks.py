"""Two ranks of a training, forks of this process, in one scene after the other: `python -m tests.two_ranks
FOLDER [SCENE ...]`

What only happens where one rank is behind is made to happen: it waits for a file that the other one leaves.
Prints by scene what each rank returned; None of one that failed, or waited for ever.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fullft_assets.errors import Interrupted, StoreError
from fullft_assets.jobs import read_job
from fullft_assets.jobs.launch import ERROR_FILE
from fullft_assets.jobs.progress import Progress
from fullft_assets.models import inference
from fullft_assets.tasks.classification import recipe as classification
from fullft_assets.training import finetuning
from fullft_assets.training.checkpoints import Incident, RunHistory
from fullft_assets.training.finetuning import TrainingSegment
from fullft_assets.workloads import entry
from fullft_assets.workloads.training import work as train_job
from tests.prepared import prepare
from tests.test_packed import CAPACITY, LLAMA, SETTINGS, Built, fit, training

#: A scene takes two or three of them.
SECONDS = 60


def main(folder: Path, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({scene: play(folder / scene, SCENES[scene]) for scene in scenes}))


def play(
    folder: Path, scene: Callable[[Path, int], Any], count: int = 2, *, is_one_host: bool = True
) -> list[Any]:
    """Play a scene in so many processes, each with its rank, and return what each returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    ranks = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            local, of_host = (rank, count) if is_one_host else (0, 1)
            places = {
                "RANK": rank,
                "LOCAL_RANK": local,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": of_host,
                "MASTER_PORT": port,
            }
            if count > 1:
                os.environ.update(
                    {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
                )
            status = 1
            try:
                found = scene(folder / "work", rank)
                (folder / f"{rank}.json").write_text(json.dumps([found]))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        ranks.append(child)
    deadline = time.monotonic() + SECONDS
    left = dict.fromkeys(ranks)
    while left and time.monotonic() < deadline:
        left = {child: None for child in left if os.waitpid(child, os.WNOHANG) == (0, 0)}
        time.sleep(0.02)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    written = [folder / f"{rank}.json" for rank in range(count)]
    return [json.loads(path.read_text())[0] if path.is_file() else None for path in written]


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def roll_back(folder: Path, rank: int) -> Any:
    """Step 5 is spoiled once; the first rank writes the history only as the second one has its own."""
    recorded, segments, passes = folder.parent / "recorded", [], []
    add, build = RunHistory.add, TrainingSegment.__init__

    def add_late(history: RunHistory, incident: Incident, **options: Any) -> None:
        if rank == 0:
            _wait_for(recorded)
        add(history, incident, **options)
        recorded.touch()

    def spoil(module: Any, inputs: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            passes.append(1)
            if len(passes) == 5:
                output.logits = output.logits * torch.nan

    def build_spoiled(segment: Any, run: Any) -> None:
        build(segment, run)
        segments.append(segment.first_step)
        segment.model.register_forward_hook(spoil)

    RunHistory.add, TrainingSegment.__init__ = add_late, build_spoiled
    settings = SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    done = fit(LLAMA, training(60, marked=True), settings, folder, num_processes=2, resumable=True)
    return {
        "segments": segments,
        "incidents": [(i.kind, i.step, i.to_step) for i in done.incidents],
        "steps": done.num_steps,
    }


def own_scores(folder: Path, rank: int) -> Any:
    """The second rank scores each look better than the one before, the first one all alike."""
    looks = []

    def score(self: Built, model: Any, listener: Any) -> dict[str, float]:
        looks.append(1)
        return {"loss": 2.0 - rank * 0.1 * len(looks)}

    Built.score = score
    settings = SETTINGS.model_copy(update={"keep_best": True})
    done = fit(
        LLAMA,
        training(60, marked=True),
        settings,
        folder,
        num_processes=2,
        resumable=True,
        evaluate_at=range(1, 5),
    )
    return {
        "best": done.step,
        "scores": [line["validation_loss"] for line in done.history if "validation_loss" in line],
    }


def keep_best(folder: Path, rank: int) -> Any:
    """Which rank loads the best checkpoint."""
    load, loaded = finetuning.load_weights, []

    def load_seen(*arguments: Any) -> None:
        load(*arguments)
        loaded.append(arguments[1].name)

    finetuning.load_weights = load_seen
    return {**own_scores(folder, rank), "loaded": loaded}


def stop_while_scoring(folder: Path, rank: int) -> Any:
    """The second rank alone is asked to stop, in a pass of the scoring after step 2, before which it had to
    halve its batches.
    """
    inference.BATCH_TOKENS["cpu"] = 2 * CAPACITY
    progress, passes, score, load = Progress(silent=True), [], Built.score, Built.load
    scored_in: list[int] = []

    def score_counted(self: Built, model: Any, listener: Any) -> dict[str, float]:
        passes.append(0)
        found = score(self, model, listener)
        scored_in.append(passes[-1])
        return found

    def look(module: Any, inputs: Any) -> None:
        if module.training or not passes:
            return
        passes[-1] += 1
        if rank == 1 and passes == [1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        progress.stop_requested = progress.stop_requested or (rank == 1 and passes == [6])

    def load_watched(self: Built, chosen: Any) -> Any:
        model = load(self, chosen)
        model.register_forward_pre_hook(look)
        return model

    Built.score, Built.load = score_counted, load_watched
    options = {"num_processes": 2, "resumable": True, "evaluate_at": (2,)}
    data = training(60, marked=True)
    try:
        fit(LLAMA, data, SETTINGS, folder, progress=progress, **options)
        said = ""
    except Interrupted as error:
        said = str(error)
    left = sorted(path.name for path in folder.glob("checkpoint-*"))
    done = fit(LLAMA, data, SETTINGS, folder, **options)
    scored = [line["step"] for line in done.history if "validation_loss" in line]
    return {
        "passes": passes,
        "scored_in": scored_in,
        "said": said,
        "left": left,
        "from": done.resumed_from_step,
        "scored": scored,
    }


def wise_ft(folder: Path, rank: int) -> Any:
    """Counts what is scored and loaded after training; then again, where the second rank alone is asked to
    stop meanwhile.
    """
    seen: list[str] = []
    progress, score, load = Progress(silent=True), Built.score, Built.load_original

    def score_counted(self: Built, model: Any, listener: Any) -> dict[str, float]:
        seen.append("score")
        return score(self, model, listener)

    def load_counted(self: Built, chosen: Any) -> Any:
        seen.append("load")
        return load(self, chosen)

    def stop(*arguments: Any) -> None:
        progress.stop_requested = rank == 1
        free(*arguments)

    Built.score, Built.load_original = score_counted, load_counted
    settings = SETTINGS.model_copy(update={"wise_ft": [0.5, 1.0]})
    done = fit(LLAMA, training(60, marked=True), settings, folder, num_processes=2, resumable=True)
    alone, free = list(seen), finetuning.free_memory
    finetuning.free_memory = stop
    try:
        fit(
            LLAMA,
            training(60, marked=True),
            settings,
            folder,
            progress=progress,
            num_processes=2,
            resumable=True,
        )
    except Interrupted as error:
        return {"alone": alone, "alpha": done.interpolated.alpha, "scores": done.scores, "said": str(error)}


def own_disks(folder: Path, rank: int) -> Any:
    """A training is stopped and goes on where the second rank has a disk of its own, without the
    checkpoint.
    """
    stopping, data = Progress(silent=True), training(60, marked=True)
    stopping.stop_requested = True
    with suppress(Interrupted):
        fit(LLAMA, data, SETTINGS, folder, progress=stopping, num_processes=2, resumable=True)
    own = folder if rank == 0 else folder.with_name("own")
    try:
        fit(LLAMA, data, SETTINGS, own, num_processes=2, resumable=True)
    except StoreError as error:
        return str(error)


def out_of_memory(folder: Path, rank: int) -> Any:
    """The workload on two ranks: from the seventh step on the second one has no room for more than two rows a
    pass.
    """
    root, uri = folder.parent / "case", folder.parent / "uri"
    if rank == 0:
        case = prepare(
            root, tiny=True, training={"micro_batch_size": 4, "checkpoint_every_steps": 4, "track": []}
        )
        aside = uri.with_suffix(".partial")
        aside.write_text(case.job("finetuned_checkpoint", launcher={"processes": 2}).write(case.store))
        aside.replace(uri)
    _wait_for(uri)
    return _work_in_little_memory(uri.read_text(), rank)


def out_of_memory_again(folder: Path, rank: int) -> Any:
    """The same command, after `out_of_memory`."""
    return _work_in_little_memory((folder.parent.parent / "out_of_memory" / "uri").read_text(), rank)


def _work_in_little_memory(uri: str, rank: int) -> Any:
    load, passes = classification.load_for_training, []

    def look(module: Any, inputs: Any, named: dict[str, Any]) -> None:
        if module.training:
            passes.append(len(named["input_ids"]))
            if rank == 1 and len(passes) > 6 and passes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def load_limited(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        model.register_forward_pre_hook(look, with_kwargs=True)
        return model

    classification.load_for_training = load_limited
    os.environ.pop(ERROR_FILE, None)  # as when started by hand: the ranks share the store alone
    status = entry.run_job(train_job, uri, Progress(silent=True))
    job = read_job(uri)
    store = job.open_store()
    made = store.find(job.case, job.stage, job.key)
    failures = Path(store.url, "failures", job.case, job.stage, f"{job.key}.json")
    return {
        "status": status,
        "passes": passes,
        "failure": json.loads(failures.read_text()) if rank == 0 and failures.is_file() else None,
        "metadata": (
            {name: made.metadata[name] for name in ("incidents", "micro_batch_size", "resumed_from_step")}
            if made
            else None
        ),
    }


SCENES: dict[str, Callable[[Path, int], Any]] = {
    scene.__name__: scene
    for scene in (
        roll_back,
        own_scores,
        keep_best,
        own_disks,
        stop_while_scoring,
        wise_ft,
        out_of_memory,
        out_of_memory_again,
    )
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENES))
