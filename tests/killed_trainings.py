"""Trains a job straight, and its twin in processes that kill themselves.

`python -m tests.killed_trainings STRAIGHT KILLED KILLS SEED [SPOILED [PROCESSES]]`

Each process is a fork of this one, so none pays for the imports. It ends by SIGKILL as it is about to touch
its work folder for the n-th time (a line of the step log, a file of a checkpoint, a sync, a rename, a
removal), n drawn from the seed. Prints where each one was. Two more end so while they write the trained model
into the store, and one as it is about to remove its checkpoints: there must be nothing of the artifact, or
all. Runs the last one to its end. In step SPOILED the outputs are nan, until a guard has rolled back once. Of
several PROCESSES that train together the first one kills itself, and the others are killed at once.
"""

import gc
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fullft_assets.job import read_job
from fullft_assets.launch.workloads.training import work
from fullft_assets.progress import Progress
from fullft_assets.training.finetuning import TrainingSegment
from tests.machine import free_port

#: Touches of the work folder before the kill: at least a checkpoint's worth, so that the work goes on.
TOUCHES = (20, 100)
#: Touches of the artifact before the kill: its folder is there by then, and its manifest is not.
WRITTEN = range(5, 20)
#: What may count as a touch.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "sync")


def main(straight: str, uri: str, kills: int, seed: int, spoiled: int = 0, processes: int = 1) -> None:
    """Run the first job straight and the second one with so many kills."""
    torch.set_num_threads(1)
    gc.freeze()
    if spoiled:
        _spoil(spoiled)
    assert _fork(lambda: _train(straight), processes) == 0
    job = read_job(uri)
    store = job.open_store()
    folder = store.work_folder(job.case, job.stage, job.key)
    rng = random.Random(seed)
    for _ in range(kills):
        status = _fork(
            lambda touches=rng.randint(*TOUCHES): _train_until(uri, touches, _within(folder)), processes
        )
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
        saving = any((folder / "unfinished").glob("checkpoint-*/*"))
        print(
            json.dumps(
                {"checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")), "saving": saving}
            ),
            flush=True,
        )
    if store.find(job.case, job.stage, job.key) is None:
        artifact = Path(store.url, job.case, job.stage, job.key)
        for touches in sorted(rng.sample(WRITTEN, 2)):
            status = _fork(lambda touches=touches: _train_until(uri, touches, _within(artifact)), processes)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL and any(artifact.iterdir()), (
                status,
                touches,
            )
            assert store.find(job.case, job.stage, job.key) is None, touches
        status = _fork(
            lambda: _train_until(uri, 1, lambda event, path: (event, path) == ("shutil.rmtree", str(folder))),
            processes,
        )
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        assert store.find(job.case, job.stage, job.key) is not None and any(folder.iterdir())
    assert _fork(lambda: _train(uri), processes) == 0
    assert folder not in store.work_folders(job.case, job.stage), "checkpoints of what is whole"


def _within(folder: Path) -> Callable[[str, str], bool]:
    return lambda event, path: path.startswith(str(folder))


def _fork(run: Any, processes: int) -> int:
    """Run the processes of a training; return the wait status of the first one, or of another that failed."""
    port = free_port()
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                places = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                }
                os.environ.update({name: str(value) for name, value in places.items()})
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            run()
            os._exit(0)
        children.append(child)
    ended: dict[int, int] = {}
    while len(ended) < processes and not any(ended.values()):
        child, status = os.wait()
        ended[children.index(child)] = status
    for rank in set(range(processes)) - set(ended):
        # The first one's own SIGKILL differs from this by the signal; neither lets Python tidy up.
        os.kill(children[rank], signal.SIGKILL if rank else signal.SIGTERM)
        ended[rank] = os.waitpid(children[rank], 0)[1]
    return next((status for _, status in sorted(ended.items()) if status), 0)


def _train_until(uri: str, touches: int, counts: Callable[[str, str], bool]) -> None:
    """Train until the n-th touch that counts, identified by its name (as in Python's audit hooks; `sync`) and
    its path.
    """
    if os.environ.get("RANK", "0") != "0":
        _train(uri)
        return
    left = touches

    def touch(event: str, path: str) -> None:
        nonlocal left
        if event in EVENTS and counts(event, path):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync

    def counted_sync(descriptor: int) -> None:
        touch("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    os.fsync = counted_sync
    sys.addaudithook(lambda event, arguments: touch(event, str(arguments[0])) if event in EVENTS else None)
    _train(uri)


def _train(uri: str) -> None:
    job = read_job(uri)
    work(job, job.open_store(), Progress(silent=True))


def _spoil(step: int) -> None:
    build = TrainingSegment.__init__

    def build_spoiled(segment: Any, shared: Any) -> None:
        build(segment, shared)
        if segment.history.num_roll_backs == 0:
            segment.model.register_forward_hook(lambda model, inputs, output: spoil(segment, model, output))

    def spoil(segment: Any, model: Any, output: Any) -> None:
        if model.training and segment.step == step - 1:
            output.logits = output.logits * float("nan")

    TrainingSegment.__init__ = build_spoiled


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
