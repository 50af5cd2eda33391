"""Public labelled sets that are not the demos', with a newcomer's YAML, through the whole graph."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import public_sets
from tests import smollm2

#: What keeps a run short, and nothing that a set would need to get through.
SHORT: dict[str, Any] = {
    "chunks": {"max_tokens": 48},
    "snapshot": {"max_train_rows": 160, "max_validation_rows": 60},
    "planning": {"min_predicted_gain": -1.0},
}


def test_the_table_has_one_line_a_set_with_its_rows_and_scores() -> None:
    found = public_sets.Outcome(
        seconds=61.4,
        returncode=0,
        rows=1_500,
        quarantined=3,
        left_out={"duplicate text": 2, "of another reason": 0},
        splits={"train": 1_000, "validation": 200, "test": 295},
        num_labels=7,
        num_labels_set_aside=1,
        last_lines=[],
        scores={"fine-tuned": 0.9, "tfidf": 0.81},
        metric="macro_f1",
        interval=(0.88, 0.921),
    )
    rows = ["1,500", "1,000 / 200 / 295", "3 quarantined; 2 duplicate text", "7 (1 set aside)"]
    assert found.cells(whole_graph=False) == [*rows, "61"]
    assert found.cells(whole_graph=True) == [*rows, "macro_f1 0.900 (0.880 to 0.921)", "0.810 (tfidf)", "61"]
    for whole_graph in (False, True):
        assert public_sets.header(whole_graph).splitlines()[0].count("|") == len(found.cells(whole_graph)) + 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("name", "rows"), [("diagnoses", 1_500), ("entities", 800), ("conversations", 600)])
def test_a_public_set_goes_through_the_whole_graph(tmp_path: Path, name: str, rows: int) -> None:
    """Very short texts with 22 labels in 263 groups; Chinese with spans; conversations in 28 languages."""
    model = smollm2.write_tiny_model(tmp_path / "model") if name == "conversations" else None
    # Weights of eight numbers a token learn at another rate.
    training = {"epochs": 1, **({} if model is None else {"learning_rate": 0.02})}
    found = public_sets.measure(
        name, tmp_path / "project", whole_graph=True, model=model, rows=rows, **SHORT, training=training
    )
    assert found.returncode == 0, "\n".join(found.last_lines)
    assert found.rows == rows
    assert all(found.splits.values()), found.splits
    assert found.rows == found.quarantined + sum(found.left_out.values()) + sum(found.splits.values())
    assert found.interval is not None and found.interval[0] <= found.scores["fine-tuned"] <= found.interval[1]
    assert len(found.scores) == 2 and all(0 <= score <= 1 for score in found.scores.values()), found.scores
