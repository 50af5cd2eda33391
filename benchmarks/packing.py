"""`snapshot.packing.plan` over a million lengths against a plain best-fit-decreasing loop, in CPU seconds.

Each side runs in a process of its own: `python -m benchmarks.packing SIDE [N]`.
"""

from __future__ import annotations

import json
import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.table import Goal, Row
from benchmarks.timing import timed

NUM_LENGTHS = 1_000_000
CAPACITY = 2_048
_PROCESSES = 3
_GOAL_SECONDS = 2.0


def measure_packing(logs: Path, num_lengths: int = NUM_LENGTHS) -> Row:
    """Measure both sides, alternating."""
    sides: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for _ in range(_PROCESSES):
        for name, found in sides.items():
            log = logs / f"packing-{name}.log"
            timed([sys.executable, "-m", "benchmarks.packing", name, str(num_lengths)], log)
            found.append(json.loads(log.read_text().splitlines()[-1]))
    ours, theirs = (median(run["cpu"] for run in sides[name]) for name in ("ours", "loop"))
    rows = {name: found[0]["num_rows"] for name, found in sides.items()}
    return Row(
        name="packing",
        ours=ours,
        other="a loop with bisect",
        theirs=theirs,
        goal=Goal("ours", _GOAL_SECONDS),
        notes=[
            f"CPU seconds; {num_lengths:,} lognormal lengths into {rows['ours']:,} rows of {CAPACITY:,}"
            f" tokens, {sides['ours'][0]['fill']:.3%} full; the loop takes {rows['loop']:,} rows"
        ],
        details={"num_lengths": num_lengths, "num_rows": rows, "fill": sides["ours"][0]["fill"]},
    )


def lengths(count: int) -> np.ndarray:
    """Return lengths as texts have them: lognormal, median 300 tokens, some longer than a row."""
    return np.maximum(1, np.random.default_rng(17).lognormal(np.log(300), 1.0, count)).astype(np.int64)


def with_ours(given: np.ndarray) -> tuple[int, float]:
    """Return the rows that our plan takes, and how full they are."""
    from fullft_assets.snapshot import packing

    found = packing.plan(given, CAPACITY, seed=17)
    return found.num_rows, found.fill


def with_loop(given: np.ndarray) -> tuple[int, float]:
    """Return the same for one piece after the other, the open rows in a sorted list."""
    pieces: list[tuple[int, int]] = []
    for text, length in enumerate(given.tolist()):
        whole, rest = divmod(length, CAPACITY)
        pieces += [(CAPACITY, text)] * whole + [(rest, text)] * (rest > 0)
    pieces.sort(reverse=True)
    rooms: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for length, text in pieces:
        place = bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, row = CAPACITY, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(place)
        rows[row].append(text)
        if room > length:
            insort(rooms, (room - length, row))
    return len(rows), float(given.sum()) / (len(rows) * CAPACITY)


SIDES: dict[str, Callable[[np.ndarray], tuple[int, float]]] = {"ours": with_ours, "loop": with_loop}


def _main(side: str, count: str = str(NUM_LENGTHS)) -> None:
    given = lengths(int(count))
    SIDES[side](given[:1_000])
    started = time.process_time()
    num_rows, fill = SIDES[side](given)
    print(json.dumps({"cpu": time.process_time() - started, "num_rows": num_rows, "fill": fill}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
