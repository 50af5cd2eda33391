"""A suppressed finding of ruff or pyright says why it is none, behind it or in the line above."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
SUPPRESSED = re.compile(r"# ?(noqa|type: ?ignore|pyright: ?ignore)")
NAMES_RULE = re.compile(r"# (noqa: [A-Z0-9, ]+|pyright: ignore\[\w+\])")
WITH_REASON = re.compile(r"# (noqa: [A-Z0-9, ]+|pyright: ignore\[\w+\])  # \w")


def test_each_suppression_names_its_rule_and_its_reason() -> None:
    paths = [
        path
        for folder in ("fullft_assets", "benchmarks", "tests", "docs")
        for path in (ROOT / folder).rglob("*.py")
    ]
    suppressed = 0
    without_reason = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path != Path(__file__) else []
        for number, line in enumerate(lines):
            if SUPPRESSED.search(line):
                suppressed += 1
                is_explained_above = NAMES_RULE.search(line) and lines[number - 1].strip().startswith("# ")
                if not WITH_REASON.search(line) and not is_explained_above:
                    without_reason.append(f"{path.relative_to(ROOT)}:{number + 1}")
    assert suppressed
    assert without_reason == []
