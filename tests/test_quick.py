"""The quick tests reach the logic of every stage."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

STAGES = (
    "documents", "examples", "chunks", "snapshot", "planning", "training", "evaluation", "release", "report",
    "monitoring", "retraining",
    "erasure", "store", "checking", "settings",
)  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_quick_tests(stage: str) -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    imported = re.compile(rf"^from fullft_assets(\.{stage}\b| import .*\b{stage}\b)", re.MULTILINE)
    assert any("pytest.mark.quick" in text and imported.search(text) for text in texts)
