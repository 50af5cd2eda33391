"""`snapshot.near_duplicates` against datasketch's MinHash LSH on the same real texts.

Both propose pairs with 128 permutations and confirm each by the exact Jaccard similarity of the same
word shingles. Each side runs in a process of its own: `python -m benchmarks.near_duplicates SIDE`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.table import Goal, Row
from benchmarks.timing import timed

NUM_REFERENCE, NUM_CANDIDATES = 2_000, 8_000
SIMILARITY = 0.8
_RUNS_A_PROCESS, _PROCESSES = 3, 3
_WORD = re.compile(r"\w+")


def measure_near_duplicates(logs: Path) -> Row:
    """Measure both sides, alternating."""
    sides = {name: [] for name in SIDES}
    for _ in range(_PROCESSES):
        for name, found in sides.items():
            log = logs / f"near-duplicates-{name}.log"
            timed([sys.executable, "-m", "benchmarks.near_duplicates", name], log)
            found.append(json.loads(log.read_text().splitlines()[-1]))
    ours, theirs = (
        median(s for found in sides[name] for s in found["seconds"]) for name in ("ours", "datasketch")
    )
    num_found = {name: found[0]["num_found"] for name, found in sides.items()}
    return Row(
        name="near_duplicates",
        ours=ours,
        other="datasketch",
        theirs=theirs,
        goal=Goal("ratio", 0.125),
        notes=[
            f"{NUM_REFERENCE + NUM_CANDIDATES:,} texts; near-duplicates found: "
            + ", ".join(f"{n:,} {name}" for name, n in num_found.items())
        ],
        details={"num_texts": NUM_REFERENCE + NUM_CANDIDATES, "num_found": num_found},
    )


def texts() -> tuple[list[str], list[str]]:
    """Return reference and candidate texts: distinct licence rules in an order without meaning."""
    from fullft_assets.demos import licences

    found = sorted(
        {rule["text"]: rule["id"] for rule in licences.rules() if rule["text"].strip()}.items(),
        key=lambda item: item[1][::-1],
    )
    chosen = [text for text, _ in found[: NUM_REFERENCE + NUM_CANDIDATES]]
    return chosen[:NUM_REFERENCE], chosen[NUM_REFERENCE:]


def with_ours(reference: list[str], candidates: list[str]) -> set[int]:
    """Return the positions of the candidates near to a reference text."""
    from fullft_assets.snapshot.near_text.pairs import near_duplicates

    return set(near_duplicates(reference, candidates, SIMILARITY))


def with_datasketch(reference: list[str], candidates: list[str]) -> set[int]:
    """Return the same with datasketch, as its documentation shows it (sketches made in bulk).

    Left to choose its bands for the threshold, it misses one near text in six; `params` makes both sides find
    the same.
    """
    from datasketch import MinHash, MinHashLSH

    shingles = [_shingles(text) for text in [*reference, *candidates]]
    sketches = MinHash.bulk([[s.encode() for s in row] for row in shingles], num_perm=128, seed=17)
    index = MinHashLSH(threshold=SIMILARITY, num_perm=128, params=(21, 6))
    with index.insertion_session() as session:
        for position in range(len(reference)):
            session.insert(position, sketches[position])
    found = set()
    for position in range(len(reference), len(sketches)):
        mine = shingles[position]
        near = [shingles[int(str(key))] for key in index.query(sketches[position])]
        if any(len(mine & other) / len(mine | other) >= SIMILARITY for other in near):
            found.add(position - len(reference))
    return found


SIDES: dict[str, Callable[[list[str], list[str]], set[int]]] = {
    "ours": with_ours,
    "datasketch": with_datasketch,
}


def _shingles(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def _main(side: str) -> None:
    reference, candidates = texts()
    SIDES[side](reference[:50], candidates[:50])
    seconds, found = [], set()
    for _ in range(_RUNS_A_PROCESS):
        started = time.perf_counter()
        found = SIDES[side](reference, candidates)
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "num_found": len(found)}))


if __name__ == "__main__":
    _main(sys.argv[1])
