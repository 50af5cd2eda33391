"""A package of somebody else adds a format, a metric, a baseline and a task by entry points; the whole graph
uses them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fullft_assets import resources
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.other_package import install_shown
from tests.prepared import write_tiny_model


@pytest.mark.slow
def test_its_format_metric_baseline_and_task_go_through_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shown(tmp_path / "site")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    project = projects.create(tmp_path / "project")
    write_tiny_model(project.root / "model")
    project.configure(
        base_model="model",
        examples={"task": "urgency"},
        planning={"min_predicted_gain": -1.0, "baselines": ["majority", "tfidf", "first_letter"]},
        evaluation={"metrics": ["worst_recall"]},
    )
    for delivered in project.documents.iterdir():
        delivered.unlink()
    rows = projects.licence_rows(400)
    lines = ("\t".join((row["kind"], row["expression"], " ".join(row["text"].split()))) for row in rows)
    (project.documents / "delivery.tabbed").write_text("\n".join(lines) + "\n", encoding="utf-8")

    done = project.fullft("run", project.name, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    store = Store(str(project.home / "store"))
    (raw,) = resources.latest_by_partition(store, project.name, "raw_documents").values()
    assert raw.metadata["num_rows"] == 400
    report = latest(store, project.name, "evaluation_report")
    assert json.loads((store.folder(report) / "evaluation.json").read_text())["task"] == "urgency"
    assert {"macro_f1", "worst_recall"} <= set(report.metadata["scores"]["first_letter"])
    assert 0 <= report.metadata["worst_recall"] <= 1
    assert latest(store, project.name, "cheaper_baselines").metadata["scores"].keys() == {
        "majority",
        "tfidf",
        "first_letter",
    }
    page = (store.folder(report) / "report.html").read_text(encoding="utf-8")
    assert "worst recall" in page and "first letter of the text" in page


def latest(store: Store, case: str, asset: str) -> Manifest:
    found: Any = resources.latest(store, case, asset)
    assert found is not None, asset
    return found
