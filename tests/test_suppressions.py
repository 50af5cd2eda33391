"""A suppressed finding of ruff or pyright says why it is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
SUPPRESSED = re.compile(r"# ?(noqa|type: ?ignore|pyright: ?ignore)")
WITH_REASON = re.compile(r"# (noqa: [A-Z0-9, ]+|pyright: ignore\[\w+\])  # \w")


def test_each_suppression_names_its_rule_and_its_reason() -> None:
    paths = [
        path
        for folder in ("fullft_assets", "benchmarks", "tests", "docs")
        for path in (ROOT / folder).rglob("*.py")
    ]
    lines = [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in paths
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if SUPPRESSED.search(line)
    ]
    assert lines
    assert [place for place, line in lines if not WITH_REASON.search(line)] == []
