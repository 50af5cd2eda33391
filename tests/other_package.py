"""Packages of others as pip installs one: a module, and metadata with entry points. One of them is that of
docs/extending.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def files() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    return dict(
        re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )


def install_shown(site: Path) -> None:
    """Write the package of the page into a folder of modules."""
    shown = files()
    project: dict[str, Any] = tomllib.loads(shown.pop("pyproject.toml"))["project"]
    install(site, project["name"], shown, project["entry-points"])


def install(
    site: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Write a package into a folder of modules as pip does: its files by name, and its entry points by group;
    return its metadata.
    """
    metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{point} = {at}" for point, at in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for file, source in modules.items():
        (site / file).write_text(source)
    return metadata
