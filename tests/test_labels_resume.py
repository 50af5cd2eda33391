"""Several labels a row, and labelled spans: training killed with SIGKILL at many moments ends with the
weights, and the thresholds, of one that was not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import licence_labels
from tests.prepared import prepare
from tests.test_graph_labels import LABELS, MULTI_LABEL, SPANS
from tests.test_resume import EVERY, SECONDS, Run, assert_same_as


@pytest.mark.long
@pytest.mark.parametrize(
    ("examples", "rows"),
    [
        (MULTI_LABEL, lambda: licence_labels.labelled_rows(160, known=set(LABELS))),
        (SPANS, lambda: licence_labels.spanned_rows(160)),
    ],
    ids=["multi_label", "token_classification"],
)
def test_killed_again_and_again_it_ends_with_the_same_model(
    tmp_path: Path, examples: dict[str, Any], rows: Any
) -> None:
    training = {
        "checkpoint_every_steps": EVERY,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "micro_batch_size": 4,
    }
    snapshot = {"min_train_rows": 20, "test_share": 0.2, "validation_share": 0.2}
    options = {"examples": examples, "training": training, "snapshot": snapshot, "chunks": {"max_windows": 2}}
    prepared = prepare(tmp_path, tiny=True, delivered=rows(), **options)
    straight, killed = Run(prepared, "straight"), Run(prepared, "killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_trainings", straight.command[-1], killed.command[-1], "6", "5"],
        env={**prepared.project.env(), "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 6 and any(kill["checkpoints"] for kill in kills)
    assert_same_as(straight, killed)
    configs = [
        json.loads((prepared.store.folder(run.manifest()) / "model" / "config.json").read_text())
        for run in (straight, killed)
    ]
    assert configs[0] == configs[1]
    assert ("label_thresholds" in configs[0]) == (examples is MULTI_LABEL)
