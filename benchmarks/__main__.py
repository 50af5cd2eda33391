"""Print the table of all benchmarks and write build/bench.json.

`python -m benchmarks [--only NAME] [--repeats N] [--slow] [--llamafactory FOLDER]`.

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
from benchmarks.drift_report import measure_drift_report
from benchmarks.forgetting import measure_forgetting
from benchmarks.llama_factory import find_python, measure_llama_factory
from benchmarks.low_memory import measure_activations, measure_low_memory, measure_sharing
from benchmarks.near_duplicates import measure_near_duplicates
from benchmarks.packed_training import measure_packed_training
from benchmarks.packing import measure_packing
from benchmarks.personal_data import measure_personal_data
from benchmarks.preparation import Preparation
from benchmarks.small_files import measure_small_files
from benchmarks.tick import measure_tick

#: In the order of running: `second_run` goes on with the home of `demo`, `preparation_one_percent_more` with
#: the runs of `preparation`.
NAMES = (
    "demo",
    "second_run",
    "check",
    "near_duplicates",
    "personal_data",
    "preparation",
    "preparation_one_percent_more",
    "preparation_with_pii_and_language",
    "packing",
    "packed_training",
    "packed_training_llamafactory",
    "low_memory",
    "forgetting",
    "drift_report",
    "tick",
    "small_files",
)
#: Minutes and gigabytes: run only when asked for.
SLOW_NAMES = ("preparation_memory",)
#: Needs an environment of its own.
OPTIONAL_NAME = "packed_training_llamafactory"
_MISSING = (
    f"{OPTIONAL_NAME} needs a virtual environment with LLaMA-Factory, LLAMAFACTORY=folder;"
    " benchmarks/llama_factory.py has how to make one"
)


def _given(python: Path | None) -> Path:
    assert python is not None, "`chosen` leaves the benchmark out without it"
    return python


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        choices=[*NAMES, *SLOW_NAMES],
        metavar="NAME",
        help=f"run one of: {', '.join([*NAMES, *SLOW_NAMES])}",
    )
    parser.add_argument("--slow", action="store_true", help=f"run {', '.join(SLOW_NAMES)} as well")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each side of `demo`; the median counts"
    )
    parser.add_argument(
        "--llamafactory",
        type=Path,
        metavar="FOLDER",
        help=f"virtual environment of LLaMA-Factory, for {OPTIONAL_NAME}",
    )
    parsed = parser.parse_args(arguments)
    try:
        names = chosen(parsed.only, slow=parsed.slow, llamafactory=parsed.llamafactory)
        llamafactory = None if parsed.llamafactory is None else find_python(parsed.llamafactory)
    except ValueError as error:
        parser.error(str(error))
    build = REPOSITORY / "build"
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
        demo = Demo(LICENCES, Path(scratch), build / "bench-logs")
        preparation = Preparation(Path(scratch) / "preparation", demo.logs)
        measure: dict[str, Callable[[], table.Row | list[table.Row]]] = {
            "demo": lambda: measure_demo(demo, parsed.repeats),
            "second_run": lambda: measure_second_run(demo),
            "check": lambda: measure_check(LICENCES.name, demo.logs),
            "near_duplicates": lambda: measure_near_duplicates(demo.logs),
            "personal_data": measure_personal_data,
            "preparation": preparation.measure,
            "preparation_one_percent_more": preparation.measure_one_percent_more,
            "preparation_with_pii_and_language": preparation.measure_pii_and_language,
            "preparation_memory": preparation.measure_memory,
            "packing": lambda: measure_packing(demo.logs),
            "packed_training": lambda: measure_packed_training(build / "smollm2-135m-instruct", demo.logs),
            "packed_training_llamafactory": lambda: measure_llama_factory(
                _given(llamafactory), build / "smollm2-135m-instruct", demo.logs
            ),
            "low_memory": lambda: [
                measure_low_memory(Path(scratch) / "low_memory"),
                measure_activations(Path(scratch) / "activations"),
                measure_sharing(Path(scratch) / "sharing"),
            ],
            "forgetting": lambda: measure_forgetting(demo.logs),
            "drift_report": lambda: measure_drift_report(Path(scratch) / "drift_report", demo.logs),
            "tick": lambda: measure_tick(Path(scratch) / "tick", demo.logs),
            "small_files": lambda: measure_small_files(Path(scratch) / "small_files", demo.logs),
        }
        rows = []
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            made = measure[name]()
            rows += made if isinstance(made, list) else [made]
            # After each row: an interrupted run keeps what it has.
            table.write(rows, build / "bench.json")
    print(table.render(rows))
    return 0


def chosen(only: str | None, *, slow: bool, llamafactory: Path | None) -> list[str]:
    """Return the names of what to run; print what is not run.

    Raises:
        ValueError: only the one was asked for that needs LLaMA-Factory's environment, and none is given.
    """
    if llamafactory is None and only == OPTIONAL_NAME:
        raise ValueError(_MISSING)
    if only:
        return [only]
    names = [*NAMES, *(SLOW_NAMES if slow else ())]
    if llamafactory is None:
        print(f"left out: {_MISSING}", file=sys.stderr, flush=True)
        names.remove(OPTIONAL_NAME)
    return names


if __name__ == "__main__":
    sys.exit(main())
