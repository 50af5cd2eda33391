"""Runs a project's data stages again and again, killed at some moment each time, until one run comes through.

`python -m tests.killed_stages DEFS_YAML STORE SEED KILLS`: prints the content digest of each stage's artifacts, and where it was killed.
A moment is a call that opens, makes or renames something in the store, counted by an audit hook; the kill is SIGKILL, with nothing
cleaned up. Each kill falls into the next one of PLACES, at a moment drawn from those that a whole run has in it. Modules are loaded once
and each run is a fork, so that a run costs what its work costs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.store import Store
from fullft_assets.use_case import load_use_case

STAGES = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks", "near_duplicate_index", "training_snapshot")
#: Folder of the store -> moments of a run in it, of which one is drawn: within its first artifact, which each run must reach.
PLACES = {"pointers/": 3, **dict.fromkeys((f"/{stage}/" for stage in STAGES), 8)}
_EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.replace", "os.rmdir", "shutil.rmtree"})


def run(yaml: Path, url: str) -> None:
    """Run the stages over whatever is delivered."""
    use_case, store = load_use_case(yaml), Store(url)
    source = documents.source_of(use_case)
    documents.cut_batches(store, use_case.name, source, use_case.settings.documents)
    valid, tokenized = {}, {}
    for name in [batch.name for batch in documents.list_batches(store, use_case.name)]:
        raw = documents.keep(store, use_case, name)
        valid[name], _ = examples.validate(store, use_case, raw)
        tokenized[name] = chunks.tokenize(store, use_case, valid[name])
    snapshot.take(store, use_case, valid, tokenized)


def kill_at(moment: int, folder: str, place: str) -> None:
    """Kill this process at the n-th call that touches a place in the folder."""
    left = moment

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in _EVENTS and (path := str(arguments[0])).startswith(folder) and place in f"{path}/":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(yaml: Path, url: str, seed: int, kills: int) -> None:
    draws = random.Random(seed)
    killed: list[str] = []
    while True:
        place, moments = list(PLACES.items())[len(killed) % len(PLACES)] if len(killed) < kills else ("", 0)
        moment = draws.randint(1, moments) if place else sys.maxsize
        child = os.fork()
        if child == 0:
            kill_at(moment, url, place)
            run(yaml, url)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed.append(place.strip("/"))
    use_case, store = load_use_case(yaml), Store(url)
    found = {stage: [m.content_digest for m in store.artifacts(use_case.name, stage)] for stage in STAGES}
    print(json.dumps({"killed": killed, "digests": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
