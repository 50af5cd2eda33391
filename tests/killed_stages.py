"""Runs a project's data stages again and again, killed at some moment each time, until one run comes through.

`python -m tests.killed_stages DEFS_YAML FOLDER SEED...`: runs them once undisturbed in a store of its own,
then in one store a seed, where each of PLACES has one kill. Prints the content digests of each stage's
artifacts, and of each kill its moment and of how many.

A moment is a call that opens or renames a file of an artifact (or of a pointer) that is not whole yet, from
its folder to its manifest's place, counted by an audit hook; one is drawn of all that the undisturbed run has
in the place. The kills come in the order of that run: so what a kill is meant for is still to be written when
its turn comes. The kill is SIGKILL, with nothing cleaned up. Modules are loaded once and each run is a fork,
so that a run costs what its work costs.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import great_expectations.expectations.core
import pyarrow.dataset
import tokenizers

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.checking.validation import load_use_case
from fullft_assets.store import Store

STAGES = (
    "raw_documents",
    "labeled_examples",
    "quarantined_examples",
    "tokenized_chunks",
    "near_duplicate_index",
    "training_snapshot",
)
PLACES = ("pointers", *STAGES)
#: What the stages import at their first use takes two seconds, which each fork would spend anew.
LOADED = (great_expectations.expectations.core, pyarrow.dataset, tokenizers)


class Kill(NamedTuple):
    """A kill at the n-th touch of what is being written (`stage/key`, or a pointer): touch `number` of
    `total` in its place.
    """

    written: str
    touch: int
    place: str
    number: int
    total: int


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


def watch(url: str, touch: Callable[[str], None]) -> None:
    """Before each call that opens or renames a file of an artifact or a pointer that is not whole yet, call
    `touch` with its name.
    """
    whole: set[str] = set()

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename") or not (path := str(arguments[0])).startswith(f"{url}/"):
            return
        *folders, file = path.removeprefix(f"{url}/").split("/")
        # Manifests and pointers are written aside and renamed.
        name, _, is_aside = file.partition(".json.")
        if folders[:1] == ["pointers"]:
            written = "/".join([*folders, name]) if is_aside else ""
        else:
            written = "/".join([*folders, file][1:3]) if folders[1:2] and folders[1] in STAGES else ""
        if written and written not in whole:
            touch(written)
        if is_aside and event == "os.rename":
            whole.add(written)

    sys.addaudithook(hook)


def forked(do: Callable[[], None]) -> int:
    """Do something in a process of its own and return its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        do()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(yaml: Path, url: str, path: Path) -> None:
    """Run the stages and write what was touched to a file."""
    touched: list[str] = []
    watch(url, touched.append)
    run(yaml, url)
    path.write_text(json.dumps(touched))


def killed(yaml: Path, url: str, kill: Kill) -> None:
    """Run the stages and die on the way."""
    left = kill.touch

    def touch(written: str) -> None:
        nonlocal left
        left -= written == kill.written
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(url, touch)
    run(yaml, url)


def draw(touched: list[str], seed: int) -> list[Kill]:
    """Draw one moment of each place, in the order of the run in which all this was touched."""
    chance, found = random.Random(seed), []
    for place in PLACES:
        here = [at for at, written in enumerate(touched) if written.split("/")[0] == place]
        at = chance.choice(here)
        found.append(
            (
                at,
                Kill(touched[at], touched[: at + 1].count(touched[at]), place, here.index(at) + 1, len(here)),
            )
        )
    return [kill for _, kill in sorted(found)]


def digests(yaml: Path, url: str) -> dict[str, list[str]]:
    use_case, store = load_use_case(yaml), Store(url)
    return {
        stage: sorted(made.content_digest for made in store.artifacts(use_case.name, stage))
        for stage in STAGES
    }


def main(yaml: Path, folder: Path, seeds: list[int]) -> None:
    trace, whole = folder / "touched.json", str(folder / "whole")
    assert forked(lambda: traced(yaml, whole, trace)) == 0
    touched = json.loads(trace.read_text())
    found = []
    for seed in seeds:
        url, kills = str(folder / str(seed)), draw(touched, seed)
        for kill in kills:
            assert forked(lambda url=url, kill=kill: killed(yaml, url, kill)) == -signal.SIGKILL, kill
        assert forked(lambda url=url: run(yaml, url)) == 0
        moments = {kill.place: [kill.number, kill.total] for kill in kills}
        found.append({"moments": moments, "digests": digests(yaml, url)})
    print(json.dumps({"whole": digests(yaml, whole), "killed": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
