"""Print the table of all benchmarks and write build/bench.json: `python -m benchmarks [--only NAME] [--repeats N]`.

Everything measured runs in processes of its own, one at a time; leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import table
from benchmarks.check import measure_check
from benchmarks.demo import LICENCES, REPOSITORY, Demo, measure_demo, measure_second_run
from benchmarks.near_duplicates import measure_near_duplicates

#: In the order of running: `second_run` goes on with the home of `demo`.
NAMES = ("demo", "second_run", "check", "near_duplicates")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=NAMES, metavar="NAME", help=f"run one of: {', '.join(NAMES)}")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side of `demo`; the median counts")
    parsed = parser.parse_args(arguments)
    build = REPOSITORY / "build"
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
        demo = Demo(LICENCES, Path(scratch), build / "bench-logs")
        measure: dict[str, Callable[[], table.Row]] = {
            "demo": lambda: measure_demo(demo, parsed.repeats),
            "second_run": lambda: measure_second_run(demo),
            "check": lambda: measure_check(LICENCES.name, demo.logs),
            "near_duplicates": lambda: measure_near_duplicates(demo.logs),
        }
        rows = []
        for name in [parsed.only] if parsed.only else NAMES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(measure[name]())
            # After each row: an interrupted run keeps what it has.
            table.write(rows, build / "bench.json")
    print(table.render(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
