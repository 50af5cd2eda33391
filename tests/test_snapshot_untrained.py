"""Conversations without a trained token: set aside row by row, and their batch held back only where most rows
are so.
"""

from pathlib import Path
from typing import Any

import pytest

from fullft_assets import snapshot
from fullft_assets.documents.names import alias
from tests import prepared, project as projects, smollm2

REASON = "conversations without a trained token"
SECTIONS = {
    "documents": {"max_batch_files": 1},
    "examples": {"task": "sft", "label": None, "labels": None, "group": None},
    "chunks": {"max_tokens": 64, "max_chunks": 1, "stride": 4},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.write_tiny_model(tmp_path_factory.mktemp("model"))


def conversation(number: int, *, cut_before_the_answer: bool = False) -> dict[str, Any]:
    question = f"What is licence {number}? " * (20 if cut_before_the_answer else 1)
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"It is the {number}th one."},
    ]
    return {"id": f"c{number}", "messages": messages}


def project(root: Path, model: Path, rows: list[dict[str, Any]]) -> projects.Project:
    created = projects.create(root, rows=0, base_model=str(model), **SECTIONS)
    created.deliver("delivery-1.jsonl", rows)
    return created


def test_such_a_row_is_set_aside_alone_and_named(tmp_path: Path, model: Path) -> None:
    rows = [conversation(number, cut_before_the_answer=number == 6) for number in range(40)]
    taken = prepared.take(project(tmp_path, model, rows))
    found = snapshot.SnapshotMetadata.of(taken.snapshot)
    assert found.batches_left_out == [] and found.left_out[REASON] == 1
    assert found.num_train_rows + found.num_validation_rows + found.num_test_rows == 39
    assert "c6" not in snapshot.read_index(taken.store, taken.snapshot)["id"].to_pylist()
    (batch,) = found.parts.values()
    check = taken.store.load(batch.chunks).check("rows_have_trained_tokens")
    assert (check.passed, check.severity) == (False, "warn")
    assert check.description.startswith(
        f"1 of 40 rows have no trained token: {alias('delivery-1.jsonl')}:7; "
    )
    report = (taken.store.folder(taken.snapshot) / "report.md").read_text()
    assert f"- 1 {REASON}: delivery-1.jsonl:7" in report
    assert "- **rows_have_trained_tokens**: batch " in report
