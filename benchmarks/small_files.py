"""`fullft ingest` of 20,000 small text files in a folder for each label, against the same rows in one
file.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

from benchmarks.preparation import BASE_MODEL, documents
from benchmarks.public_sets import environment_of, write_project
from benchmarks.table import Goal, Row
from benchmarks.timing import Timing, timed

NUM_FILES = 20_000
_GOAL_SECONDS = 120.0


def measure_small_files(scratch: Path, logs: Path, num_files: int = NUM_FILES) -> Row:
    """Return the row of small files: from an empty home to the snapshot."""
    rows = list(islice((row for row in documents(2 * num_files) if row["text"]), num_files))
    for row in rows:
        path = scratch / "many" / "data" / row["kind"] / f"{row['id']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"], encoding="utf-8")
    (scratch / "one" / "data").mkdir(parents=True)
    (scratch / "one" / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    many, one = _ingest(scratch / "many", "folder", logs), _ingest(scratch / "one", "kind", logs)
    return Row("small_files", many.wall, "one file", one.wall, Goal("ours", _GOAL_SECONDS), many.cpu, one.cpu)


def _ingest(project: Path, label: str, logs: Path) -> Timing:
    attributes = {"base_model": BASE_MODEL, "documents": {"path": "data"}, "examples": {"label": label}}
    write_project(project, project.name, attributes)
    defs = project / "my_project" / "defs"
    command = [sys.executable, "-m", "fullft_assets.cli", "ingest", project.name, "--defs", str(defs)]
    log = logs / f"small-files-{project.name}.log"
    return timed(command, log, env=environment_of(project), cwd=project)
