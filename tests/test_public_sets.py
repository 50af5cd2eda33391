"""Public labelled sets that are not the demos', with a newcomer's YAML, through the whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import public_sets
from tests import smollm2

#: What keeps a run short, and nothing that a set would need to get through.
SHORT: dict[str, Any] = {
    "chunks": {"max_tokens": 48},
    "snapshot": {"max_train_rows": 320, "max_validation_rows": 80},
    "planning": {"min_predicted_gain": -1.0},
    "evaluation": {"resamples": 200},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("diagnoses", 1_500), ("entities", 800), ("conversations", 600)])
def test_a_public_set_goes_through_the_whole_graph(tmp_path: Path, name: str, rows: int) -> None:
    """Very short texts with 22 labels in 263 groups; Chinese with spans; conversations in 28 languages."""
    model = smollm2.write_tiny_model(tmp_path / "model") if name == "conversations" else None
    # Weights of eight numbers a token learn at another rate.
    training = {"epochs": 1, **({} if model is None else {"learning_rate": 0.02})}
    found = public_sets.measure(name, tmp_path / "project", whole_graph=True, model=model, rows=rows, **SHORT, training=training)
    assert found.returncode == 0, "\n".join(found.last_lines)
    assert found.rows == rows
    assert all(found.splits.values()), found.splits
    assert found.rows == found.quarantined + sum(found.left_out.values()) + sum(found.splits.values())
    assert len(found.scores) == 2 and all(0 <= score <= 1 for score in found.scores.values()), found.scores
