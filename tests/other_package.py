"""The small package of docs/extending.md, as pip installs one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def files() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    return dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', _PAGE.read_text(), re.MULTILINE | re.DOTALL))


def install(site: Path, more: Mapping[str, str] | None = None, **entry_points: dict[str, str]) -> None:
    """Write the package into a folder of modules.

    Args:
        site: the folder.
        more: further modules by file name.
        entry_points: those of the further modules, by group without `fullft_assets.`.
    """
    shown = files()
    project: dict[str, Any] = tomllib.loads(shown.pop("pyproject.toml"))["project"]
    groups = project["entry-points"] | {f"fullft_assets.{group}": points for group, points in entry_points.items()}
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *(f"{name} = {place}" for name, place in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in (shown | dict(more or {})).items():
        (site / name).write_text(source)
