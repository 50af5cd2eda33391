"""`fullft check` against the import that any check with a loaded model would begin with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import median

from benchmarks.table import Goal, Row
from benchmarks.timing import timed

_REPEATS = 3


def measure_check(use_case: str, logs: Path) -> Row:
    """Measure both, alternating."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    check = [sys.executable, "-m", "fullft_assets.cli", "check", use_case]
    load = [sys.executable, "-c", "from transformers import AutoModelForSequenceClassification, Trainer"]
    ours, theirs = [], []
    for _ in range(_REPEATS):
        ours.append(timed(check, logs / "check.log", env=env))
        theirs.append(timed(load, logs / "import.log", env=env))
    return Row(
        name="check",
        ours=median(found.wall for found in ours),
        other="importing transformers' Trainer",
        theirs=median(found.wall for found in theirs),
        goal=Goal("ours", 3),
        ours_cpu=median(found.cpu for found in ours),
        theirs_cpu=median(found.cpu for found in theirs),
    )
