"""A package of somebody else adds a format, a metric and a baseline by entry points; the whole graph uses them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fullft_assets.resources import pointers
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.prepared import write_tiny_model
from tests.test_task import THEIR_BASELINE, THEIR_METRIC

THEIR_FORMAT = '''
from fullft_assets.documents.formats import Format


def records(file, reading):
    """Yield a record of each line: kind, expression and text between tabs."""
    with file.text() as lines:
        for number, line in enumerate(lines, start=1):
            kind, expression, text = line.rstrip("\\n").split("\\t")
            yield number, {"kind": kind, "expression": expression, "text": text}


FORMAT = Format(records=records, endings=(".tabbed",), is_text=True)
'''
ENTRY_POINTS = """
[fullft_assets.formats]
tabbed = their_format:FORMAT
[fullft_assets.metrics]
worst_recall = their_metric:METRIC
[fullft_assets.baselines]
first_letter = their_baseline:FirstLetter
"""


def install(site: Path) -> None:
    """Write a package as pip installs one."""
    metadata = site / "their_parts-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    for name, source in (("format", THEIR_FORMAT), ("metric", THEIR_METRIC), ("baseline", THEIR_BASELINE)):
        (site / f"their_{name}.py").write_text(source)


@pytest.mark.slow
def test_its_format_metric_and_baseline_go_through_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]))
    project = projects.create(tmp_path / "project")
    write_tiny_model(project.root / "model")
    project.configure(
        base_model="model",
        planning={"min_predicted_gain": -1.0, "baselines": ["majority", "tfidf", "first_letter"]},
        evaluation={"resamples": 200, "metrics": ["worst_recall"]},
    )
    for delivered in project.documents.iterdir():
        delivered.unlink()
    rows = projects.licence_rows(400)
    lines = ("\t".join((row["kind"], row["expression"], " ".join(row["text"].split()))) for row in rows)
    (project.documents / "delivery.tabbed").write_text("\n".join(lines) + "\n", encoding="utf-8")

    done = project.fullft("run", project.name, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    store = Store(str(project.home / "store"))
    (raw,) = pointers.latest_by_partition(store, project.name, "raw_documents").values()
    assert raw.metadata["num_rows"] == 400
    report = latest(store, project.name, "evaluation_report")
    assert {"worst_recall", "first_letter_macro_f1", "first_letter_worst_recall"} <= set(report.metadata)
    assert 0 <= report.metadata["worst_recall"] <= 1
    assert latest(store, project.name, "cheaper_baselines").metadata["scores"].keys() == {"majority", "tfidf", "first_letter"}
    page = (store.folder(report) / "report.html").read_text(encoding="utf-8")
    assert "worst recall" in page and "first letter of the text" in page


def latest(store: Store, case: str, asset: str) -> Manifest:
    found: Any = pointers.latest(store, case, asset)
    assert found is not None, asset
    return found
