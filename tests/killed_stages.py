"""Runs a project's data stages again and again, killed at a random moment each time, until one run comes
through.

`python -m tests.killed_stages DEFS_YAML FOLDER SEED...`: runs them once undisturbed in a store of its own,
then in one store a seed. Prints the content digests of each stage's artifacts, and of each seed how many runs
were killed.

A moment is a call that opens or renames a file of the store, drawn of as many as the undisturbed run has. The
kill is SIGKILL, with nothing cleaned up. Modules are loaded once and each run is a fork, so that a run costs
what its work costs.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import great_expectations.expectations.core
import pyarrow.dataset
import tokenizers

from fullft_assets import snapshot
from fullft_assets.checking.validation import load_use_case
from fullft_assets.store import Store
from tests.prepared import ingest

STAGES = (
    "raw_documents",
    "labeled_examples",
    "quarantined_examples",
    "tokenized_chunks",
    "near_duplicate_index",
    "training_snapshot",
)
#: What the stages import at their first use takes two seconds, which each fork would spend anew.
LOADED = (great_expectations.expectations.core, pyarrow.dataset, tokenizers)


def run(yaml: Path, url: str) -> None:
    use_case, store = load_use_case(yaml), Store(url)
    snapshot.take(store, use_case, *ingest(store, use_case))


def is_killed(yaml: Path, url: str, touch: float, count: Path) -> bool:
    """Run the stages in a process that dies at its n-th touch of the store, and return whether it did; else
    the file has how many touches there were.
    """
    child = os.fork()
    if child == 0:
        num_touches = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal num_touches
            if event in ("open", "os.rename") and str(arguments[0]).startswith(f"{url}/"):
                num_touches += 1
                if num_touches >= touch:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run(yaml, url)
        count.write_text(str(num_touches))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def digests(yaml: Path, url: str) -> dict[str, list[str]]:
    use_case, store = load_use_case(yaml), Store(url)
    return {
        stage: sorted(made.content_digest for made in store.artifacts(use_case.name, stage))
        for stage in STAGES
    }


def main(yaml: Path, folder: Path, seeds: list[int]) -> None:
    whole, count = str(folder / "whole"), folder / "count"
    is_killed(yaml, whole, float("inf"), count)
    num_touches = int(count.read_text())
    killed = []
    for seed in seeds:
        url, chance, num_kills = str(folder / str(seed)), random.Random(seed), 0
        while is_killed(yaml, url, chance.randint(1, num_touches), count):
            num_kills += 1
        killed.append({"num_kills": num_kills, "digests": digests(yaml, url)})
    print(json.dumps({"whole": digests(yaml, whole), "killed": killed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
