"""Two ranks of a training, forks of this process, in one scene after the other: `python -m tests.two_ranks FOLDER [SCENE ...]`

What only happens where one rank is behind is made to happen: it waits for a file that the other one leaves. Prints by scene what each rank
returned; None of one that failed, or waited for ever.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fullft_assets.workloads import finetuning
from fullft_assets.workloads.guards import Course, Incident
from tests.test_packed import LLAMA, SETTINGS, fit, training

#: A scene takes two or three of them.
SECONDS = 60


def main(folder: Path, scenes: list[str]) -> None:
    torch.set_num_threads(1)
    print(json.dumps({scene: _play(folder / scene, SCENES[scene]) for scene in scenes}))


def _play(folder: Path, scene: Callable[[Path, int], Any]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    ranks = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
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
    written = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(path.read_text())[0] if path.is_file() else None for path in written]


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def roll_back(folder: Path, rank: int) -> Any:
    """Step 5 is spoiled once; the first rank writes the course only as the second one has chosen where to go on."""
    chosen, legs, passes = folder.parent / "chosen", [], []
    add, build, freeze = Course.add, finetuning._Leg.__init__, finetuning.layers.freeze

    def add_late(course: Course, incident: Incident, **options: Any) -> None:
        if rank == 0:
            _wait_for(chosen)
        add(course, incident, **options)

    def freeze_chosen(*arguments: Any) -> None:
        if rank == 1 and legs:
            chosen.touch()
        freeze(*arguments)

    def spoil(module: Any, inputs: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            passes.append(1)
            if len(passes) == 5:
                output.logits = output.logits * torch.nan

    def build_spoiled(leg: Any, work: Any) -> None:
        build(leg, work)
        legs.append(leg.first_step)
        leg.model.register_forward_hook(spoil)

    Course.add, finetuning.layers.freeze, finetuning._Leg.__init__ = add_late, freeze_chosen, build_spoiled
    settings = SETTINGS.model_copy(update={"checkpoint_every_steps": 2})
    done = fit(LLAMA, training(60, marked=True), settings, folder, num_processes=2, resumable=True)
    return {"legs": legs, "incidents": [(i.kind, i.step, i.to_step) for i in done.incidents], "steps": done.num_steps}


SCENES: dict[str, Callable[[Path, int], Any]] = {"roll_back": roll_back}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENES))
