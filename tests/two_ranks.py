"""Two ranks of a training, forks of this process, in one scene after the other: `python -m tests.two_ranks
FOLDER [SCENE ...]`

What only happens where one rank is behind is made to happen: it waits for a file that the other one leaves.
Prints by scene what each rank returned; None of one that failed, or waited for ever.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fullft_assets.errors import Interrupted, StoreError
from fullft_assets.models import inference
from fullft_assets.models.token_loss import TokenLoss
from fullft_assets.progress import Progress
from fullft_assets.training import finetuning, loop, ranks
from fullft_assets.training.checkpoints import Incident, RunHistory
from fullft_assets.training.watching import Validator
from tests.machine import free_port
from tests.optimizer_steps import Stopping
from tests.test_packed import LLAMA, SETTINGS, Built, fit, recipe, training

#: A scene takes two or three of them.
SECONDS = 60


def main(folder: Path, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({scene: play(folder / scene, SCENES[scene]) for scene in scenes}))


def play(
    folder: Path, scene: Callable[[Path, int], Any], count: int = 2, *, of_host: int | None = None
) -> list[Any]:
    """Play a scene in so many processes, each with its rank, and return what each returned; all are on one
    host, or so many on each.
    """
    port = free_port()
    folder.mkdir(parents=True)
    ranks = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            places = {
                "RANK": rank,
                "LOCAL_RANK": rank % (of_host or count),
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": of_host or count,
                "MASTER_PORT": port,
            }
            if count > 1:
                os.environ.update(
                    {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
                )
            status = 1
            try:
                (folder / f"{rank}.json").write_text(json.dumps([scene(folder / "work", rank)]))
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
    add, build = RunHistory.add, finetuning.TrainingSegment.__init__

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

    RunHistory.add, finetuning.TrainingSegment.__init__ = add_late, build_spoiled
    settings = SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    done = fit(LLAMA, training(60, marked=True), settings, folder, num_processes=2, resumable=True)
    return {
        "segments": segments,
        "incidents": [(i.kind, i.step, i.to_step) for i in done.incidents],
        "steps": done.num_steps,
    }


def keep_best(folder: Path, rank: int) -> Any:
    """Which rank loads the best checkpoint; the first one's scores, which are all alike, decide."""
    load, loaded = loop.load_weights, []

    def load_seen(*arguments: Any) -> None:
        load(*arguments)
        loaded.append(arguments[1].name)

    def score(self: Built, model: Any, listener: Any) -> dict[str, float]:
        return {"loss": 2.0 - rank}

    loop.load_weights, Built.score = load_seen, score
    settings = SETTINGS.model_copy(update={"keep_best": True})
    options = {"num_processes": 2, "resumable": True, "evaluate_at": range(1, 5)}
    done = fit(LLAMA, training(60, marked=True), settings, folder, **options)
    scores = [line["validation_loss"] for line in done.history if "validation_loss" in line]
    return {"best": done.step, "scores": scores, "loaded": loaded}


def score_together(folder: Path, rank: int) -> Any:
    """Each has the whole model: the scores of the documents, and how many passes a rank makes, alone and with
    the other one, also where the second rank runs out of memory once.
    """
    built, passes, of_tokens = recipe(LLAMA, training(60, marked=True)), [], TokenLoss.of_tokens
    model, failing = built.load(SETTINGS), []

    def counted(loss: TokenLoss, model: Any, inputs: Any, labels: Any) -> Any:
        passes.append(len(labels))
        if failing and len(labels) > 1:
            raise torch.OutOfMemoryError(failing.pop())
        return of_tokens(loss, model, inputs, labels)

    def score(take: Callable[..., Any]) -> Any:
        passes.clear()
        return [take(partial(built.score, model), Progress(silent=True)), len(passes)]

    TokenLoss.of_tokens, inference.BATCH_TOKENS["cpu"] = counted, 128
    found = {"alone": score(lambda work, progress: work(progress))}
    ranks.connect()
    found["together"] = score(ranks.deal_passes)
    failing.extend(["no memory"] * rank)
    return {**found, "less_memory": score(ranks.deal_passes)}


def stop_while_scoring(folder: Path, rank: int) -> Any:
    """The second rank alone is asked to stop, while both score the weights after step 2."""
    progress, scored, validate, score = Progress(silent=True), [], Validator.validate, Built.score

    def validate_stopped(self: Validator, step: int, model: Any) -> Any:
        progress.stop_requested = rank == 1
        return validate(self, step, model)

    def score_noted(self: Built, model: Any, listener: Any) -> dict[str, float]:
        scored.append("begun")
        found = score(self, model, listener)
        scored.append("done")
        return found

    Validator.validate, Built.score = validate_stopped, score_noted
    options = {"num_processes": 2, "resumable": True, "evaluate_at": (2,)}
    data = training(60, marked=True)
    try:
        fit(LLAMA, data, SETTINGS, folder, progress=progress, **options)
        said = ""
    except Interrupted as error:
        said = str(error)
    left = sorted(path.name for path in folder.glob("checkpoint-*"))
    done = fit(LLAMA, data, SETTINGS, folder, **options)
    steps = [line["step"] for line in done.history if "validation_loss" in line]
    return {"scored": scored, "said": said, "left": left, "from": done.resumed_from_step, "steps": steps}


def own_disks(folder: Path, rank: int) -> Any:
    """A training is stopped and goes on where the second rank has a disk of its own, without the
    checkpoint.
    """
    data = training(60, marked=True)
    with suppress(Interrupted):
        fit(LLAMA, data, SETTINGS, folder, progress=Stopping(1), num_processes=2, resumable=True)
    own = folder if rank == 0 else folder.with_name("own")
    try:
        fit(LLAMA, data, SETTINGS, own, num_processes=2, resumable=True)
    except StoreError as error:
        return str(error)


SCENES: dict[str, Callable[[Path, int], Any]] = {
    scene.__name__: scene
    for scene in (
        roll_back,
        keep_best,
        own_disks,
        score_together,
        stop_while_scoring,
    )
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENES))
