"""Packages of somebody else add parts of seven kinds by entry points; the whole graph uses them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets import monitoring, resources
from fullft_assets.store import Store
from tests import project as projects
from tests.other_package import DRIFT_TEST, GATE, OPTIMIZER, install, install_shown
from tests.prepared import write_tiny_model


@pytest.mark.slow
def test_all_that_they_add_goes_through_the_graph(tmp_path: Path) -> None:
    install_shown(tmp_path / "site")
    install(
        tmp_path / "site",
        "their-other-parts",
        {
            "their_optimizer.py": OPTIMIZER,
            "their_kernels.py": "",
            "their_gate.py": GATE,
            "their_drift.py": DRIFT_TEST,
        },
        {
            "fullft_assets.optimizers": {"momentum": "their_optimizer:MOMENTUM"},
            "fullft_assets.gates": {"labels_are_few": "their_gate:GATE"},
            "fullft_assets.drift_tests": {"longer": "their_drift:Longer"},
        },
    )
    project = projects.create(tmp_path / "project")
    write_tiny_model(project.root / "model")
    project.configure(
        base_model="model",
        examples={"task": "urgency"},
        planning={"min_predicted_gain": -1.0, "baselines": ["majority", "tfidf", "first_letter"]},
        evaluation={"metrics": ["worst_recall"]},
        training={"optimizer": "momentum"},
        release={"gates": {"labels_are_few": {"most": 99}}},
        monitoring={
            "path": f"data/{project.name}/production",
            "drift_tests": ["longer"],
            "min_window_rows": 20,
        },
    )
    for delivered in project.documents.iterdir():
        delivered.unlink()
    rows = projects.licence_rows(400)
    lines = ("\t".join((row["kind"], row["expression"], " ".join(row["text"].split()))) for row in rows)
    (project.documents / "delivery.tabbed").write_text("\n".join(lines) + "\n", encoding="utf-8")

    projects.write_rows(project.production / "week-1.jsonl", projects.licence_rows(60, skip=400))

    # A process of its own: one keeps the packages that it has found.
    subprocess.run(
        [sys.executable, "-m", "tests.asset_runs", str(project.root), project.name],
        env={**project.env(), "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{Path(__file__).parents[1]}"},
        check=True,
        timeout=600,
    )

    store = Store(str(project.home / "store"))
    (raw,) = resources.latest_by_partition(store, project.name, "raw_documents").values()
    assert raw.metadata["num_rows"] == 400
    report = resources.latest(store, project.name, "evaluation_report")
    assert json.loads((store.folder(report) / "evaluation.json").read_text())["task"] == "urgency"
    assert {"macro_f1", "worst_recall"} <= set(report.metadata["scores"]["first_letter"])
    assert 0 <= report.metadata["worst_recall"] <= 1
    assert resources.latest(store, project.name, "cheaper_baselines").metadata["scores"].keys() == {
        "majority",
        "tfidf",
        "first_letter",
    }
    page = (store.folder(report) / "report.html").read_text(encoding="utf-8")
    assert "worst recall" in page and "first letter of the text" in page

    checkpoint = resources.latest(store, project.name, "finetuned_checkpoint")
    assert checkpoint.settings["training"]["optimizer"] == "momentum"
    assert "labels_are_few" in {check.name for check in report.checks}
    (window,) = resources.latest_by_partition(store, project.name, "drift_report").values()
    assert monitoring.Sums.load(store.folder(window) / monitoring.SUMS).means["longer"].shape == (1,)
