"""Shared fixtures: a small project of its own, and one whose whole graph has been run once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import project as projects


@pytest.fixture
def project(tmp_path: Path) -> projects.Project:
    """A project with one use case, 400 delivered rows, nothing run yet."""
    return projects.create(tmp_path)
