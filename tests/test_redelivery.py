"""A delivery that was damaged and comes again: its window is no broken feed, and it counts once for live
quality.
"""

import gzip
import json
import os
from typing import Any

import pytest

from fullft_assets import documents, monitoring
from fullft_assets.errors import DataError
from fullft_assets.job import Job
from fullft_assets.launch.workloads import monitoring as workload
from fullft_assets.progress import Progress
from fullft_assets.store import Manifest, Store
from tests import manifests, project as projects
from tests.test_live_quality import CASE, Live, snapshot_of

GOOD = [{"id": row["id"], "text": row["text"]} for row in projects.licence_rows(40, skip=3_000)]


class Feed:
    """Production of a project, window by window, with a drift report of each that nobody read."""

    def __init__(self, project: projects.Project):
        project.configure(monitoring={"path": "data/letters/production"})
        self.project, self.store, self.clock = project, Store(str(project.home / "store")), 1_000

    def write(self, file: str, content: bytes | list[dict[str, Any]]) -> documents.Batch:
        path = self.project.production / file
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            projects.write_rows(path, content)
        self.clock += 10
        os.utime(path, (self.clock, self.clock))
        settings = self.project.use_case().settings.documents
        return documents.cut_batches(self.store, CASE, self.project.production, settings, "window")[-1]

    def keep(self, window: documents.Batch) -> Manifest:
        return documents.keep(self.store, self.project.use_case(), window.name, "window")

    def report(self, window: Manifest) -> Manifest:
        return manifests.write(
            self.store, CASE, "drift_report", window.key[:8], manifests.drift("alarm", documents=window.ref)
        )


@pytest.fixture
def feed(project: projects.Project) -> Feed:
    return Feed(project)


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_a_window_whose_files_were_rewritten_before_it_was_read_is_no_broken_feed(feed: Feed) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in GOOD).encode())
    window = feed.write("monday.jsonl.gz", whole[:-20])
    with pytest.raises(DataError, match=r"deliver it again"):
        feed.keep(window)
    later = feed.keep(feed.write("monday.jsonl.gz", whole))
    earlier = feed.keep(window)
    assert documents.RawMetadata.of(earlier).num_rows == 0 and documents.RawMetadata.of(
        later
    ).num_rows == len(GOOD)
    assert monitoring.is_read_by_another_window(earlier) and not monitoring.is_read_by_another_window(later)
    job = Job(
        case=CASE,
        stage="drift_report",
        key="k1",
        project_root=str(feed.project.root),
        store_url=feed.store.url,
        settings=feed.project.use_case().settings,
        inputs={"production_documents": earlier.ref},
    )
    workload.work(job, feed.store, Progress(silent=True))
    made = feed.store.find(CASE, "drift_report", "k1")
    assert made is not None and monitoring.DriftMetadata.of(made).status == "insufficient_data"
    assert made.checks[0].passed and "delivered again" in made.checks[0].description


def test_live_quality_counts_a_document_as_it_was_delivered_last(project: projects.Project) -> None:
    seen = Live(project, Store(str(project.home / "store")))
    rows = [{**row, "expression": row["id"]} for row in projects.licence_rows(30, skip=2_000)]
    seen.promote(snapshot_of(seen.store, seen.label("learned.jsonl", rows[:5])))
    damaged = [{**row, "text": row["text"][::-1]} for row in rows[5:]]
    seen.see("w0.jsonl", damaged, predicted=dict.fromkeys((row["id"] for row in rows), "no such label"))
    seen.see("w1.jsonl", rows[5:], predicted={row["id"]: row["kind"] for row in rows})
    seen.label("late.jsonl", rows[5:])
    counted = seen.count()
    assert counted.num_windows == 2 and 0 < counted.num_right == counted.num_labelled <= 25
