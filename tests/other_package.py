"""The small package of docs/extending.md, as pip installs one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def files() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    return dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', _PAGE.read_text(), re.MULTILINE | re.DOTALL))


def install(site: Path) -> None:
    """Write the package into a folder of modules."""
    shown = files()
    project: dict[str, Any] = tomllib.loads(shown.pop("pyproject.toml"))["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{name} = {place}" for name, place in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in shown.items():
        (site / name).write_text(source)
